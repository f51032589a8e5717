//! A server of made-up token transfers, for benchmarks and for trying things out:
//! `token-transfers [--port N] [--events N] [--last LEDGER] [--pause-ms N] [--seed N]`. It prints its
//! address, and serves until it is stopped.

use std::io::Write;

use calve_e2e::transfers::{Generated, Server, Settings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut settings = Settings::default();
    let (mut events, mut seed, mut last) = (1000, 1, None);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or("a value is missing")?;
        match name.as_str() {
            "--port" => settings.port = value.parse()?,
            "--events" => events = value.parse()?,
            "--last" => last = Some(value.parse()?),
            "--pause-ms" => settings.pause_ms = value.parse()?,
            "--seed" => seed = value.parse()?,
            _ => return Err(format!("unknown: {name}").into()),
        }
    }
    let mut generated = Generated::new(seed, events);
    generated.last = last;
    let server = Server::start(generated, settings);
    writeln!(std::io::stdout(), "{}", server.endpoint())?;
    loop {
        std::thread::park();
    }
}

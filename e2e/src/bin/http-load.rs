//! Load on the HTTP source, for benchmarks:
//! `http-load --port N [--connections N] [--events N] [--seconds N] [--rate N]`. Each connection posts
//! requests of `events` sales events; flat out, or `rate` events a second in all. Prints one JSON object:
//! what was acknowledged, and how long answers took. With a rate they are timed from when the request
//! was due, so that a stall counts for all that it held up.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use calve_e2e::http::Client;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Bodies that each connection posts in turn.
const BODIES: u64 = 16;

#[derive(Clone, Copy)]
struct Load {
    port: u16,
    connections: u64,
    events: u64,
    seconds: f64,
    rate: f64,
}

/// What one connection has seen.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    busy: u64,
    bytes: u64,
    last: Option<Instant>,
}

fn bodies(seed: u64, events: u64) -> Vec<Vec<u8>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut event = |n: u64| {
        format!(
            "{{\"ts\":{},\"user_id\":{},\"region\":\"{}\",\"amount\":{:.2},\"sku\":\"sku-{}\"}}\n",
            1_767_225_600 + n,
            random.random_range(0..100_000),
            ["eu", "us", "apac"][random.random_range(0..3)],
            random.random_range(0.0..100.0),
            random.random_range(0..500)
        )
    };
    let mut body = |_| (0..events).map(&mut event).collect::<String>().into_bytes();
    (0..BODIES).map(&mut body).collect()
}

#[allow(
    clippy::disallowed_methods,
    reason = "the schedule of a load, which nothing has to cancel"
)]
fn one(load: Load, connection: u64, begun: Instant) -> Seen {
    let mut client = Client::new(load.port);
    let bodies = bodies(connection, load.events);
    let mut seen = Seen::default();
    let apart = load.events as f64 * load.connections as f64 / load.rate;
    for request in 0_u64.. {
        let mut from = Instant::now();
        if load.rate > 0.0 {
            // Connections take turns.
            let turn = request as f64 + connection as f64 / load.connections as f64;
            // What was due before the end counts, however late it is posted.
            if turn * apart >= load.seconds {
                break;
            }
            from = begun + Duration::from_secs_f64(turn * apart);
            thread::sleep(from.saturating_duration_since(Instant::now()));
        } else if begun.elapsed().as_secs_f64() >= load.seconds {
            break;
        }
        let body = &bodies[(request % BODIES) as usize];
        loop {
            match client.post("", body) {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) if answer.status == 429 => {
                    seen.busy += 1;
                    thread::sleep(Duration::from_millis(20));
                }
                other => panic!("{other:?}"),
            }
        }
        seen.latencies.push(from.elapsed());
        seen.bytes += body.len() as u64;
        seen.last = Some(Instant::now());
    }
    seen
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut load = Load {
        port: 8090,
        connections: 16,
        events: 500,
        seconds: 10.0,
        rate: 0.0,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or("a value is missing")?;
        match name.as_str() {
            "--port" => load.port = value.parse()?,
            "--connections" => load.connections = value.parse()?,
            "--events" => load.events = value.parse()?,
            "--seconds" => load.seconds = value.parse()?,
            "--rate" => load.rate = value.parse()?,
            _ => return Err(format!("unknown: {name}").into()),
        }
    }
    let begun = Instant::now();
    let threads: Vec<_> = (0..load.connections)
        .map(|connection| thread::spawn(move || one(load, connection, begun)))
        .collect();
    let mut latencies = Vec::new();
    let (mut busy, mut bytes, mut last) = (0, 0, begun);
    for thread in threads {
        let seen = thread.join().map_err(|_| "a connection failed")?;
        latencies.extend(seen.latencies);
        busy += seen.busy;
        bytes += seen.bytes;
        last = last.max(seen.last.unwrap_or(begun));
    }
    latencies.sort_unstable();
    let seconds = (last - begun).as_secs_f64().max(1e-9);
    let at = |share: f64| {
        let place = (latencies.len() as f64 * share) as usize;
        let found = latencies.get(place.min(latencies.len().saturating_sub(1)));
        found.map(|latency| latency.as_secs_f64() * 1e3)
    };
    let events = latencies.len() as u64 * load.events;
    let report = json!({
        "events": events,
        "bytes": bytes,
        "seconds": seconds,
        "events_per_s": events as f64 / seconds,
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "max_ms": at(1.0),
        "busy": busy,
    });
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

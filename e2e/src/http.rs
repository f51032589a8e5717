//! A client of the HTTP source: requests over connections that are kept, sent again until they are
//! answered.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;

use crate::pause;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A port that is free now. No other test gets it, and no connection: those are given ports from 32,768 on.
/// So it stays free while the server that has it starts, or starts again.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes of tests that run side by side begin at different ones.
    let first = std::process::id().wrapping_mul(137);
    (0..10_000)
        .map(|_| first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)))
        .map(|n| 10_000 + (n % 10_000) as u16)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a port")
}

/// One client, with one connection at a time.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Value,
    /// Whether it said when to try again.
    pub retry_after: bool,
}

impl Client {
    /// A client of a port of this machine; it connects with the first request.
    pub fn new(port: u16) -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            stream: None,
        }
    }

    /// Posts lines of JSON; `headers` end with `\r\n`, each.
    ///
    /// # Errors
    /// When no whole answer came: then nobody knows whether the events were taken.
    pub fn post(&mut self, headers: &str, body: &[u8]) -> io::Result<Answer> {
        self.post_as("application/x-ndjson", headers, body)
    }

    /// Posts what is of another type.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub fn post_as(&mut self, kind: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let answer = self.try_post(kind, headers, body);
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    fn try_post(&mut self, kind: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let stream = if let Some(stream) = &mut self.stream {
            stream
        } else {
            let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            self.stream.insert(BufReader::new(stream))
        };
        let mut request = format!(
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n{headers}\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        stream.get_mut().write_all(&request)?;
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status = line.get(9..12).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| broken("no status"))?;
        let (mut length, mut closes, mut retry_after) = (0, false, false);
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let header = line.trim().to_ascii_lowercase();
            let (name, value) = header.split_once(':').unwrap_or((&header, ""));
            match (name, value.trim()) {
                ("", _) => break,
                ("content-length", value) => {
                    length = value.parse().map_err(|_| broken("no length"))?;
                }
                ("connection", "close") => closes = true,
                ("retry-after", _) => retry_after = true,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        if closes {
            self.stream = None;
        }
        Ok(Answer {
            status,
            body: serde_json::from_slice(&body).unwrap_or_default(),
            retry_after,
        })
    }

    /// Posts until the answer is 200, whatever happens to the server; at each other answer or none the
    /// same request again.
    ///
    /// # Panics
    /// At an answer that another try cannot change.
    pub fn post_until_taken(&mut self, key: &str, body: &[u8]) -> Answer {
        let header = format!("Idempotency-Key: {key}\r\n");
        loop {
            match self.post(&header, body) {
                Ok(answer) if answer.status == 200 => return answer,
                Ok(answer) => assert!(
                    matches!(answer.status, 408 | 429 | 503),
                    "{answer:?} key={key}"
                ),
                Err(_) => {}
            }
            pause(10);
        }
    }
}

/// Waits until somebody listens at a port.
///
/// # Panics
/// When nobody does for a minute.
pub fn wait_for(port: u16) {
    for _ in 0..1200 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return;
        }
        pause(50);
    }
    panic!("nobody listens: port={port}");
}

//! An HTTP server between calve and another, which does to requests what networks and servers do: it
//! loses answers, answers late, refuses for a while. One request for each connection.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// A request, as a plan sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET, POST, …
    pub method: String,
    /// With the query.
    pub path: String,
    /// How many requests of this kind came before: see [`Proxy::start`].
    pub before: usize,
}

impl Request {
    /// Whether it commits to a table.
    pub fn is_commit(&self) -> bool {
        let table = self.path.split("/tables/").nth(1);
        self.method == "POST" && table.is_some_and(|name| !name.contains('/'))
    }
}

/// What becomes of a request.
pub enum Fault {
    /// It is passed on, and so is the answer.
    None,
    /// It is not passed on; an answer with this status and these headers.
    Refuse(u16, &'static str),
    /// It is passed on, and answered with this status.
    Instead(u16),
    /// It is passed on, and the connection is cut before an answer.
    Lose,
    /// The connection is cut at once.
    Cut,
    /// It is passed on twice, and the second answer counts.
    Twice,
    /// It is passed on, and another answer is made of the body of the real one.
    Change(Box<dyn Fn(&str) -> String + Send>),
}

type Plan = dyn Fn(&Request) -> Fault + Send + Sync;

/// A proxy that runs until it is dropped.
pub struct Proxy {
    port: u16,
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the one that listens.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Proxy {
    /// Stands before the server on a port of this machine. The plan is asked for each request; requests
    /// with the same method that commit, or do not, are counted together.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(to: u16, plan: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let proxy = Self {
            port,
            ended: Arc::default(),
            seen: Arc::default(),
        };
        let (ended, seen) = (Arc::clone(&proxy.ended), Arc::clone(&proxy.seen));
        let plan: Arc<Plan> = Arc::new(plan);
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                let (plan, seen) = (Arc::clone(&plan), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let _ = serve(from, to, &*plan, &seen);
                });
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The requests that came, in order.
    ///
    /// # Panics
    /// When a thread of it has died.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no thread died").clone()
    }
}

/// Of the commits to tables, all but the first of each nine in trouble of one kind or another; of other
/// requests, now and then one is refused.
pub fn troubles(request: &Request) -> Fault {
    if !request.is_commit() {
        return match request.before % 13 {
            5 => Fault::Refuse(503, "retry-after: 0\r\n"),
            8 => Fault::Cut,
            11 => Fault::Refuse(429, "retry-after: 0\r\n"),
            _ => Fault::None,
        };
    }
    match request.before % 9 {
        1 => Fault::Lose,
        2 => Fault::Instead(500),
        3 => Fault::Refuse(503, "retry-after: 0\r\n"),
        4 => Fault::Twice,
        5 => Fault::Instead(504),
        6 => Fault::Cut,
        7 => Fault::Refuse(429, "retry-after: 0\r\n"),
        8 => Fault::Instead(502),
        _ => Fault::None,
    }
}

fn serve(
    mut from: TcpStream,
    to: u16,
    plan: &Plan,
    seen: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(from.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut parts = first.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (parts.next(), parts.next()) else {
        return Ok(());
    };
    let mut head = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if !lower.starts_with("connection:") {
            head.push_str(&line);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut request = Request {
        method,
        path,
        before: 0,
    };
    if let Ok(mut seen) = seen.lock() {
        let like = |other: &&Request| {
            other.method == request.method && other.is_commit() == request.is_commit()
        };
        request.before = seen.iter().filter(like).count();
        seen.push(request.clone());
    }
    // As HTTP/1.0, so that the answer ends with the connection.
    let sent = format!("{} {} HTTP/1.0\r\n{head}\r\n", request.method, request.path);
    let pass = || -> std::io::Result<(String, Vec<u8>)> {
        let mut to = TcpStream::connect(("127.0.0.1", to))?;
        to.write_all(sent.as_bytes())?;
        to.write_all(&body)?;
        let mut answer = Vec::new();
        to.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.unwrap_or(answer.len().saturating_sub(4));
        let status = String::from_utf8_lossy(&answer[..end]);
        let status = status.lines().next().unwrap_or_default();
        let status = status.split_once(' ').map_or("502", |(_, status)| status);
        Ok((status.to_owned(), answer[end + 4..].to_vec()))
    };
    let (status, more, answer) = match plan(&request) {
        Fault::None => {
            let (status, body) = pass()?;
            (status, "", body)
        }
        Fault::Refuse(status, headers) => (format!("{status} Refused"), headers, Vec::new()),
        Fault::Instead(status) => {
            pass()?;
            (format!("{status} Instead"), "", Vec::new())
        }
        Fault::Lose => {
            pass()?;
            return from.shutdown(Shutdown::Both);
        }
        Fault::Cut => return from.shutdown(Shutdown::Both),
        Fault::Twice => {
            pass()?;
            let (status, body) = pass()?;
            (status, "", body)
        }
        Fault::Change(change) => {
            let (status, body) = pass()?;
            let body = change(&String::from_utf8_lossy(&body));
            (status, "", body.into_bytes())
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{more}connection: close\r\n\r\n",
        answer.len()
    );
    from.write_all(head.as_bytes())?;
    from.write_all(&answer)
}

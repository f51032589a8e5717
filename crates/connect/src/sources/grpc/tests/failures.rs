//! Failures of servers and connections: what passes, and what stops.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::atomic::AtomicBool,
};

use super::*;

#[test]
fn the_stream_goes_on_after_every_passing_failure() {
    for code in [
        Code::Unavailable,
        Code::Internal,
        Code::Unknown,
        Code::Cancelled,
        Code::Aborted,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
    ] {
        let server = Server::start(move |number, start| {
            let mut acts = ledgers(&SIZES, start);
            // In the middle of a group, of another one each time.
            if let Some(cut) = [5, 2, 30].get(number) {
                acts.truncate(*cut);
                acts.push(Act::Fail(code));
            }
            acts
        });
        let mut source = server.source(RESUME);
        let all = read_to_end(&mut source, &Offsets::default()).expect("read");
        assert_eq!(listed(&all), expected(&SIZES), "{code:?}");
        offsets_after(&all);
        assert_eq!(source.link().expect("a link").reconnects(), 3);
        assert_eq!(
            server.starts(),
            [1, 2, 2, 2],
            "the last whole group is known"
        );
    }
}

#[test]
fn what_will_not_pass_stops_with_a_hint() {
    for (code, kind, shown) in [
        (Code::Unauthenticated, ErrorKind::Config, "UNAUTHENTICATED"),
        (
            Code::PermissionDenied,
            ErrorKind::Config,
            "PERMISSION_DENIED",
        ),
        (Code::InvalidArgument, ErrorKind::Config, "INVALID_ARGUMENT"),
        (Code::Unimplemented, ErrorKind::Config, "UNIMPLEMENTED"),
        (Code::NotFound, ErrorKind::Config, "NOT_FOUND"),
    ] {
        let server = Server::start(move |_, _| vec![Act::Fail(code)]);
        let error = read(&mut server.source(RESUME), &Offsets::default()).expect_err("stops");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            error.message().contains(shown) && error.hint_text().is_some(),
            "{error:?}"
        );
        assert_eq!(server.starts().len(), 1);
    }
    // A time without anything new ends even what may pass.
    let server = Server::start(|_, _| vec![Act::Send(event(1, "a")), Act::Fail(Code::Internal)]);
    let brief = format!("{RESUME}, retry_for: 1s");
    let error = read(&mut server.source(&brief), &Offsets::default()).expect_err("stops");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(server.starts().len() > 1);
}

#[test]
fn a_message_above_the_limit_names_it() {
    let large = event(1, &"x".repeat(2000));
    for compression in ["none", "gzip"] {
        let large = large.clone();
        let server = Server::start(move |_, _| vec![Act::Send(large.clone())]);
        let more = format!("{RESUME}, max_message_size: 1KB, compression: {compression}");
        let error = read(&mut server.source(&more), &Offsets::default()).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains("max_message_size=1000"), "{error}");
        assert_eq!(error.hint_text(), Some("raise `max_message_size`"));
    }
}

#[test]
fn a_lost_server_is_found_again_and_dropped_calls_lose_nothing() {
    let first = Server::start(|_, start| {
        let mut acts = ledgers(&SIZES, start);
        acts.truncate(30);
        acts.push(Act::Hold);
        acts
    });
    let address = first.address;
    let mut second = None;
    let mut source = first.source(RESUME);
    let mut all = Vec::new();
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let mut first = Some(first);
        loop {
            // The third group never ends, so nothing comes until the server is another one.
            if listed(&all).len() == 4 && first.take().is_some() {
                second = Some(Server::start_at(address, |_, start| ledgers(&SIZES, start)));
            }
            let next = tokio::time::timeout(Duration::from_millis(3), source.next());
            match next.await.map(|event| event.expect("next")) {
                Ok(SourceEvent::Batch(raw)) => all.push(raw),
                Ok(SourceEvent::End) => break,
                _ => {}
            }
        }
    });
    assert_eq!(second.expect("another one").starts(), [2]);
    offsets_after(&all);
    assert_eq!(listed(&all), expected(&SIZES));
}

#[test]
fn a_silent_stream_is_cut_by_the_deadline_and_goes_on_where_it_was() {
    let server = Server::start(|number, start| {
        let mut acts = ledgers(&SIZES, start);
        // In the middle of a group, of another one each time, and once between two.
        if let Some(cut) = [5, 2, 42].get(number) {
            acts.truncate(*cut);
            acts.push(Act::Hold);
        }
        acts
    });
    let mut source = server.source(&format!("{RESUME}, deadline: 1s"));
    let mut all = Vec::new();
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        loop {
            match source.next().await.expect("next") {
                SourceEvent::Batch(raw) => all.push(raw),
                SourceEvent::End => break,
                _ => {}
            }
        }
    });
    assert_eq!(listed(&all), expected(&SIZES));
    offsets_after(&all);
    assert_eq!(server.starts(), [1, 2, 2, 3]);
    assert_eq!(source.link().expect("a link").reconnects(), 3);
}

#[test]
fn silence_and_failure_again_and_again_end_with_retry_for() {
    let server = Server::start(|_, _| vec![Act::Hold]);
    let mut source = server.source(&format!("{RESUME}, deadline: 100ms, retry_for: 1s"));
    let error = block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let end = async {
            loop {
                if let Err(error) = source.next().await {
                    return error;
                }
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(20), end);
        end.await.expect("it ends")
    });
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("DEADLINE_EXCEEDED"), "{error}");
    assert!(server.starts().len() > 2);
}

#[test]
fn a_deadline_longer_than_what_counts_as_held_does_not_disable_retry_for() {
    let server = Server::start(|_, _| vec![Act::Hold]);
    let mut source = server.source(&format!("{RESUME}, deadline: 100ms, retry_for: 1s"));
    source.retries.held = Duration::from_millis(50);
    let error = block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let end = async {
            loop {
                if let Err(error) = source.next().await {
                    return error;
                }
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(20), end);
        end.await.expect("it ends")
    });
    assert!(error.message().contains("DEADLINE_EXCEEDED"), "{error}");
}

#[test]
fn connections_that_held_and_ended_well_are_no_failures() {
    let server = Server::start(|number, _| match number % 2 {
        0 => vec![Act::Fail(Code::Unavailable)],
        _ => vec![Act::Pause(Duration::from_millis(100))],
    });
    let more = format!("{RESUME}, at_end: reconnect, retry_for: 1s");
    let mut source = server.source(&more);
    source.retries.held = Duration::from_millis(50);
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        // Without an end, whatever the time: far more than `retry_for`.
        while server.starts().len() < 16 {
            let event = tokio::time::timeout(Duration::from_millis(50), source.next());
            if let Ok(event) = event.await {
                event.expect("it goes on");
            }
        }
    });
}

#[test]
fn the_deadline_counts_from_when_there_is_a_connection() {
    let server = Server::start(|_, start| ledgers(&SIZES, start));
    let mut source = server.source(&format!("{RESUME}, deadline: 400ms"));
    let all = block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let connection = std::mem::replace(&mut source.connection, Connection::Over);
        let Connection::Opening(opening) = connection else {
            panic!("it is opened at once");
        };
        let link = source.link().expect("a link");
        source.connection = Connection::Opening(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(900)).await;
            link.set_connected(true);
            // Some looks at it, and then the answer.
            tokio::time::sleep(Duration::from_millis(150)).await;
            opening.await
        }));
        let mut all = Vec::new();
        loop {
            match source.next().await.expect("next") {
                SourceEvent::Batch(raw) => all.push(raw),
                SourceEvent::End => return all,
                _ => {}
            }
        }
    });
    assert_eq!(listed(&all), expected(&SIZES));
    assert_eq!(source.link().expect("a link").reconnects(), 0);
}

/// Stands before a server and passes bytes on, until it swallows those of the connections that are open
/// then: they stay, and nobody answers any more.
struct Swallower {
    address: SocketAddr,
    swallow: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Swallower {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let this = Self {
            address: listener.local_addr().expect("an address"),
            swallow: Arc::default(),
            ended: Arc::default(),
            sockets: Arc::default(),
        };
        let (swallow, ended) = (Arc::clone(&this.swallow), Arc::clone(&this.ended));
        let sockets = Arc::clone(&this.sockets);
        std::thread::spawn(move || {
            for (number, from) in listener.incoming().flatten().enumerate() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                let to = TcpStream::connect(to).expect("the server");
                let both = [(&from, &to), (&to, &from)];
                for (from, to) in both {
                    let (from, to) = (from.try_clone(), to.try_clone());
                    let (from, to) = (from.expect("a socket"), to.expect("a socket"));
                    let swallow = (number == 0).then(|| Arc::clone(&swallow));
                    std::thread::spawn(move || pass(from, to, swallow.as_deref()));
                }
                sockets.lock().extend([from, to]);
            }
        });
        this
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, swallow: Option<&AtomicBool>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 {
            break;
        }
        let swallowed = swallow.is_some_and(|swallow| swallow.load(Ordering::Acquire));
        if !swallowed && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

impl Drop for Swallower {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the one that listens.
        let _ = TcpStream::connect(self.address);
        for socket in self.sockets.lock().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_connection_that_nobody_answers_is_found_by_keep_alive() {
    for keep_alive in [true, false] {
        let server = Server::start(|number, start| {
            let mut acts = ledgers(&SIZES, start);
            if number == 0 {
                acts.truncate(30);
                acts.push(Act::Hold);
            }
            acts
        });
        let between = Swallower::start(server.address);
        let more = if keep_alive { ", keep_alive: 1s" } else { "" };
        let mut config = server.config(&format!("{RESUME}{more}"));
        config.endpoint = format!("http://{}", between.address);
        let mut source = GrpcSource::new(&config, &pool(), "p", Path::new("")).expect("a source");
        let mut all = Vec::new();
        let ended = block_on(async {
            source.open(&Offsets::default()).await.expect("open");
            let mut more = async |enough: usize| {
                loop {
                    match source.next().await.expect("next") {
                        SourceEvent::Batch(raw) => all.push(raw),
                        SourceEvent::End => break,
                        _ => {}
                    }
                    if listed(&all).len() == enough {
                        break;
                    }
                }
            };
            more(4).await;
            between.swallow.store(true, Ordering::Release);
            let limit = Duration::from_secs(if keep_alive { 30 } else { 3 });
            let rest = tokio::time::timeout(limit, more(usize::MAX));
            rest.await.is_ok()
        });
        assert_eq!(ended, keep_alive, "without pings nobody knows");
        assert!(listed(&all).len() >= 4, "it was read before");
        if keep_alive {
            assert_eq!(listed(&all), expected(&SIZES));
            offsets_after(&all);
            assert_eq!(server.starts(), [1, 2]);
        }
    }
}

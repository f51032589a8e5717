//! The source against a server in this process that does what a script says.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    task::Context,
};

use calve_engine::ErrorKind;
use parking_lot::Mutex;
use prost_reflect::{DynamicMessage, Value, prost::Message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Request, Response,
    body::Body,
    codec::CompressionEncoding,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, ServerStreamingService},
};

use super::*;
use crate::sources::testing::{account, block_on, offsets_after, read};

const PROTO: &str = r#"
    syntax = "proto3";
    package p;
    message Ask { uint32 start = 1; uint32 end = 2; }
    message Event { uint32 ledger = 1; string text = 2; Meta meta = 3; }
    message Meta { int64 unused = 1; }
    service Events { rpc Get (Ask) returns (stream Event); }
"#;

fn pool() -> DescriptorPool {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.proto");
    std::fs::write(&file, PROTO).expect("write");
    let set = protox::compile([&file], [folder.path()]).expect("compiles");
    DescriptorPool::from_file_descriptor_set(set).expect("a pool")
}

fn event(ledger: u32, text: &str) -> Bytes {
    let event = pool().get_message_by_name("p.Event").expect("known");
    let mut message = DynamicMessage::new(event);
    message.set_field_by_name("ledger", Value::U32(ledger));
    message.set_field_by_name("text", Value::String(text.to_owned()));
    Bytes::from(message.encode_to_vec())
}

/// What the server does, one after the other.
#[derive(Clone, Debug)]
enum Act {
    Send(Bytes),
    Fail(Code),
    /// Says nothing any more.
    Hold,
}

/// What the server does for the request number `n` that begins at a ledger.
type Script = Arc<dyn Fn(usize, u32) -> Vec<Act> + Send + Sync>;

#[derive(Clone)]
struct Scripted {
    script: Script,
    asked: Arc<Mutex<Vec<(u32, http::HeaderMap)>>>,
    sent: Arc<AtomicU64>,
}

impl NamedService for Scripted {
    const NAME: &'static str = "p.Events";
}

impl ServerStreamingService<Bytes> for Scripted {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let ask = pool().get_message_by_name("p.Ask").expect("known");
            let message =
                DynamicMessage::decode(ask, request.get_ref().clone()).expect("a request");
            let start = message
                .get_field_by_name("start")
                .expect("a field")
                .as_u32();
            let start = start.expect("a number");
            let headers = request.metadata().clone().into_headers();
            let number = {
                let mut asked = this.asked.lock();
                asked.push((start, headers));
                asked.len() - 1
            };
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                for act in (this.script)(number, start) {
                    let item = match act {
                        Act::Send(message) => Ok(message),
                        Act::Fail(code) => Err(Status::new(code, "as the script says")),
                        Act::Hold => std::future::pending().await,
                    };
                    let bytes = item.as_ref().map_or(0, Bytes::len) as u64;
                    if sender.send(item).await.is_err() {
                        return;
                    }
                    this.sent.fetch_add(bytes, Ordering::Relaxed);
                }
            });
            Ok(Response::new(ReceiverStream::new(receiver)))
        })
    }
}

impl Service<http::Request<Body>> for Scripted {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(RawCodec).send_compressed(CompressionEncoding::Gzip);
            Ok(grpc.server_streaming(this, request).await)
        })
    }
}

/// A server on a runtime of its own: dropped, it cuts every connection.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(u32, http::HeaderMap)>>>,
    sent: Arc<AtomicU64>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    fn start(script: impl Fn(usize, u32) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), script)
    }

    /// At an address that another one had, as soon as that is gone.
    fn start_at(
        address: SocketAddr,
        script: impl Fn(usize, u32) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let scripted = Scripted {
            script: Arc::new(script),
            asked: Arc::default(),
            sent: Arc::default(),
        };
        let (asked, sent) = (Arc::clone(&scripted.asked), Arc::clone(&scripted.sent));
        // Not by `block_on`: a test may be within a runtime of its own.
        let listener = loop {
            if let Ok(listener) = std::net::TcpListener::bind(address) {
                break listener;
            }
            std::thread::yield_now();
        };
        listener.set_nonblocking(true).expect("a listener");
        let listener = {
            let _within = runtime.enter();
            tokio::net::TcpListener::from_std(listener).expect("a listener")
        };
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(scripted);
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        Self {
            address,
            asked,
            sent,
            runtime: Some(runtime),
        }
    }

    fn starts(&self) -> Vec<u32> {
        self.asked.lock().iter().map(|(start, _)| *start).collect()
    }

    fn config(&self, more: &str) -> GrpcConfig {
        let yaml = format!(
            "{{ endpoint: 'http://{}', method: p.Events/Get, request: {{ start: 1 }}, {more} }}",
            self.address
        );
        serde_yaml_ng::from_str(&yaml).expect("a config")
    }

    fn source(&self, more: &str) -> GrpcSource {
        GrpcSource::new(&self.config(more), &pool(), "p", Path::new("")).expect("a source")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

const RESUME: &str =
    "resume: { request_field: start, from_column: ledger, idle: 0s }, batch_bytes: 64";

/// Ledgers 1.. of so many events; from the one that was asked for.
fn ledgers(sizes: &[usize], start: u32) -> Vec<Act> {
    let mut acts = Vec::new();
    for (ledger, size) in (1..).zip(sizes) {
        if ledger >= start {
            let one = |n: usize| Act::Send(event(ledger, &format!("{ledger}/{n}")));
            acts.extend((0..*size).map(one));
        }
    }
    acts
}

/// Offset, ordinal and bytes of each message.
fn listed(batches: &[RawBatch]) -> Vec<(u64, u32, Vec<u8>)> {
    let mut all = Vec::new();
    for raw in batches {
        let Payload::Messages(messages) = &raw.payload else {
            panic!("messages");
        };
        for at in 0..messages.len() {
            let bytes = messages.get(at).to_vec();
            all.push((messages.offsets[at], messages.ordinals[at], bytes));
        }
    }
    all
}

fn expected(sizes: &[usize]) -> Vec<(u64, u32, Vec<u8>)> {
    let mut all = Vec::new();
    for (ledger, size) in (1_u32..).zip(sizes) {
        for n in 0..*size {
            let bytes = event(ledger, &format!("{ledger}/{n}")).to_vec();
            all.push((u64::from(ledger), n as u32, bytes));
        }
    }
    all
}

const SIZES: [usize; 6] = [3, 1, 40, 0, 7, 2];

#[test]
fn batches_hold_whole_groups_and_reading_goes_on_behind_each() {
    let server = Server::start(|_, start| ledgers(&SIZES, start));
    let from = Offsets::default();
    let all = read(&mut server.source(RESUME), &from).expect("read");
    assert_eq!(listed(&all), expected(&SIZES));
    assert!(all.last().expect("the last").last);
    let end = offsets_after(&all);
    assert!(end.0["p"].done);
    for count in 0..all.len() {
        let from = offsets_after(&all[..count]);
        let rest = read(&mut server.source(RESUME), &from).expect("read");
        let mut offsets = from.clone();
        for raw in &rest {
            account(&mut offsets, raw);
        }
        assert_eq!(offsets, end);
        let mut both = listed(&all[..count]);
        both.extend(listed(&rest));
        assert_eq!(both, expected(&SIZES), "from={from:?}");
    }
    // What has ended may have more now; within a bound it has not.
    assert_eq!(
        listed(&read(&mut server.source(RESUME), &end).expect("read")),
        []
    );
    assert_eq!(server.starts().last(), Some(&6), "the last group once more");
    let asked = server.starts().len();
    let bounded = RESUME.replace("idle: 0s", "idle: 0s, until_field: end");
    let source = || {
        let mut config = server.config(&bounded);
        config.request.insert("end".to_owned(), 6.into());
        GrpcSource::new(&config, &pool(), "p", Path::new("")).expect("a source")
    };
    let all = read(&mut source(), &Offsets::default()).expect("read");
    assert_eq!(listed(&all), expected(&SIZES));
    let end = offsets_after(&all);
    assert_eq!(listed(&read(&mut source(), &end).expect("read")), []);
    assert_eq!(server.starts().len(), asked + 1, "once, and not again");
}

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
        let all = read(&mut source, &Offsets::default()).expect("read");
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
fn silence_ends_a_group_and_what_comes_later_goes_on_with_it() {
    let server = Server::start(|number, start| {
        let mut acts = ledgers(&SIZES, start);
        // Silence in the middle of the third group, then the connection is lost and it goes on.
        if number == 0 {
            acts.truncate(20);
            acts.push(Act::Hold);
        }
        acts
    });
    let more =
        "resume: { request_field: start, from_column: ledger, idle: 100ms }, batch_bytes: 1KiB";
    let mut source = server.source(more);
    let first = read(&mut source, &Offsets::default()).expect("read");
    assert_eq!(listed(&first), expected(&SIZES)[..20], "until it was idle");
    let from = offsets_after(&first);
    assert_eq!((from.0["p"].offset, from.0["p"].done), (3, false));
    let rest = read(&mut server.source(more), &from).expect("read");
    let both = [listed(&first), listed(&rest)].concat();
    assert_eq!(both, expected(&SIZES));
    assert_eq!(server.starts(), [1, 3]);
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
fn who_does_not_read_holds_the_server_back() {
    let large = "x".repeat(10_000);
    let server = Server::start(move |_, _| {
        let one = |ledger| Act::Send(event(ledger, &large));
        (1..2000).map(one).collect()
    });
    let more = "resume: { request_field: start, from_column: ledger }, batch_bytes: 100KB";
    let mut source = server.source(more);
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        while !matches!(source.next().await, Ok(SourceEvent::Batch(_))) {}
        // The connection lives while nobody reads, so that it could take more if it wanted to.
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let sent = server.sent.load(Ordering::Relaxed);
            if sent == before {
                break;
            }
            before = sent;
        }
        assert!(before > 100_000, "something was sent: {before}");
        assert!(
            before < 5 << 20,
            "no more than the window and what is under way: {before}"
        );
        let mut bytes = 0;
        while let Ok(SourceEvent::Batch(raw)) = source.next().await {
            bytes += raw.bytes();
        }
        assert!(
            bytes > 19_000_000,
            "the rest comes when it is read: {bytes}"
        );
    });
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let server = Server::start(|_, start| ledgers(&[1], start));
    let more = format!("{RESUME}, token: 's3cret ', metadata: {{ X-Tenant: t7 }}");
    let config = server.config(&more);
    read(&mut server.source(&more), &Offsets::default()).expect("read");
    let headers = server.asked.lock()[0].1.clone();
    assert_eq!(headers["authorization"], "Bearer s3cret");
    assert_eq!(headers["x-tenant"], "t7");
    let shown = format!(
        "{config:?} {}",
        serde_json::to_string(&config).expect("JSON")
    );
    assert!(
        !shown.contains("s3cret") && !shown.contains("t7"),
        "{shown}"
    );
    assert!(!config.fingerprint().contains("s3cret"));
}

#[test]
fn without_resume_messages_are_counted_and_a_reconnect_takes_what_comes() {
    let server = Server::start(|number, _| {
        let mut acts = ledgers(&[2, 1], 1);
        if number == 0 {
            acts.push(Act::Fail(Code::Unavailable));
        }
        acts
    });
    let all = read(&mut server.source("lossy: true"), &Offsets::default()).expect("read");
    let offsets: Vec<u64> = listed(&all).iter().map(|(offset, _, _)| *offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
    assert_eq!(offsets_after(&all).0["p"].offset, 6);
}

#[test]
fn an_end_may_mean_that_there_is_more_later() {
    let server = Server::start(|number, start| {
        let sizes = &SIZES[..(number + 1).min(SIZES.len())];
        if number == 8 {
            return vec![Act::Fail(Code::NotFound)];
        }
        ledgers(sizes, start)
    });
    let mut source = server.source(&format!("{RESUME}, at_end: reconnect"));
    let mut all = Vec::new();
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        loop {
            match source.next().await {
                Ok(SourceEvent::Batch(raw)) => all.push(raw),
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Config);
                    return;
                }
            }
        }
    });
    assert_eq!(listed(&all), expected(&SIZES));
    offsets_after(&all);
}

#[test]
fn wrong_settings_are_refused() {
    let parse = |more: &str| {
        let yaml = format!("{{ endpoint: 'http://h:1', method: p.E/Get, {more} }}");
        serde_yaml_ng::from_str::<GrpcConfig>(&yaml).expect("a config")
    };
    let good = "proto: p.proto, resume: { request_field: start, from_column: ledger }";
    assert!(parse(good).validate().is_ok());
    for (more, why) in [
        ("proto: p.proto".to_owned(), "events would be lost"),
        (good.replace("proto: p.proto, ", ""), "nothing says"),
        (format!("{good}, reflection: true"), "both reflection"),
        (format!("{good}, lossy: true"), "both `resume`"),
        (format!("{good}, tls: {{ ca: c }}"), "has none"),
        (
            format!("{good}, token: a, metadata: {{ Authorization: b }}"),
            "both token",
        ),
        (
            format!("{good}, metadata: {{ 'a b': c }}"),
            "name of metadata",
        ),
        (
            format!("{good}, metadata: {{ a-bin: c }}"),
            "name of metadata",
        ),
        (format!("{good}, keep_alive: 0s"), "keep_alive is zero"),
        (format!("{good}, batch_bytes: 0"), "batch_bytes"),
        (format!("{good}, token: ' '"), "token is empty"),
    ] {
        let error = parse(&more).validate().expect_err(&more);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(why), "{more}: {error}");
        assert!(!error.message().contains("token: a"));
    }
    let mut config = parse(good);
    for (endpoint, fine) in [
        ("https://h", true),
        ("http://h:1", true),
        ("h:1", false),
        ("ftp://h", false),
        ("http://user:pass@h", false),
        ("", false),
    ] {
        config.endpoint = endpoint.to_owned();
        assert_eq!(config.validate().is_ok(), fine, "{endpoint}");
    }
}

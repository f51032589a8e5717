//! The source against a server in this process that does what a script says.

use std::{
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
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

use super::{codec::RawCodec, *};
use crate::sources::testing::{account, block_on, offsets_after, pool_of, read};

const PROTO: &str = r#"
    syntax = "proto3";
    package p;
    message Ask { uint32 start = 1; uint32 end = 2; }
    message Event { uint32 ledger = 1; string text = 2; Meta meta = 3; }
    message Meta { int64 unused = 1; }
    service Events { rpc Get (Ask) returns (stream Event); }
"#;

fn pool() -> DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let made = POOL.get_or_init(|| pool_of(PROTO));
    made.clone()
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
    /// Says nothing any more, or for so long.
    Hold,
    Pause(Duration),
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
                        Act::Pause(span) => {
                            tokio::time::sleep(span).await;
                            continue;
                        }
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
        let begun = Instant::now();
        let listener = loop {
            match std::net::TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(error) => assert!(begun.elapsed() < Duration::from_mins(1), "{error}"),
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
    "resume: { request_field: start, from_column: ledger, idle: 0s }, batch_bytes: 200";

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

/// Reads until the source ends; silence, as of a slow machine, does not count.
fn read_to_end(source: &mut dyn Source, from: &Offsets) -> Result<Vec<RawBatch>> {
    block_on(async {
        source.open(from).await?;
        let mut all = Vec::new();
        loop {
            match source.next().await? {
                SourceEvent::Batch(raw) => all.push(raw),
                SourceEvent::End => return Ok(all),
                _ => {}
            }
        }
    })
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

mod failures;
mod reading;
mod settings;

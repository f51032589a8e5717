//! The server: one method that streams ledgers, with faults.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, ServerStreamingService},
    transport::{Certificate, Identity, ServerTlsConfig},
};

use super::{
    content::Ledgers,
    protocol::{DESCRIPTORS, token_transfer_service::GetEventsRequest},
};

/// What goes wrong, once, when a ledger is served.
#[derive(Clone, Debug)]
pub struct Fault {
    /// In which ledger.
    pub ledger: u32,
    /// After so many of its events.
    pub after: usize,
    /// What happens.
    pub what: What,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum What {
    /// The call fails.
    Status(Code),
    /// Every connection is cut.
    Cut,
    /// This message is sent.
    Message(Bytes),
    /// Nothing more is sent; the connection stays.
    Silence,
    /// The stream ends as if all were well.
    End,
}

/// How a server is.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The port; 0: any.
    pub port: u16,
    /// Faults, each for one time.
    pub faults: Vec<Fault>,
    /// What clients must send as a bearer token.
    pub token: Option<String>,
    /// Certificate and key, PEM.
    pub tls: Option<(String, String)>,
    /// Who must have signed the certificates of clients, PEM; none: clients need no certificate.
    pub client_ca: Option<String>,
    /// The network's newest ledger at the start; none: the last one that there is.
    pub tip: Option<u32>,
    /// Wait so long before each ledger, in ms.
    pub pause_ms: u64,
}

/// A running server; dropped, it is gone.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    ledgers: Arc<dyn Ledgers>,
    faults: Mutex<Vec<Fault>>,
    asked: Mutex<Vec<(u32, u32)>>,
    sent: std::sync::atomic::AtomicU64,
    token: Option<String>,
    tip: watch::Sender<u32>,
    connections: Mutex<Vec<std::net::TcpStream>>,
    pause_ms: u64,
}

impl Server {
    /// Starts one on 127.0.0.1, with threads of its own.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn start(ledgers: impl Ledgers + 'static, settings: Settings) -> Self {
        Self::with_threads(ledgers, settings, 1)
    }

    /// As [`Server::start`], with so many threads.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn with_threads(
        ledgers: impl Ledgers + 'static,
        settings: Settings,
        threads: usize,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .expect("a runtime");
        let tip = settings.tip.or(ledgers.last()).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            ledgers: Arc::new(ledgers),
            faults: Mutex::new(settings.faults),
            asked: Mutex::default(),
            sent: std::sync::atomic::AtomicU64::new(0),
            token: settings.token,
            tip: watch::channel(tip).0,
            connections: Mutex::default(),
            pause_ms: settings.pause_ms,
        });
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(("127.0.0.1", settings.port)))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let (accepted, incoming) = mpsc::channel(1);
        let of_accept = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stream = of_accept.remember(stream);
                if accepted.send(stream).await.is_err() {
                    return;
                }
            }
        });
        let service = EventService(Arc::clone(&shared));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .build_v1()
            .expect("descriptors");
        let mut server = tonic::transport::Server::builder();
        if let Some((cert, key)) = settings.tls {
            let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
            if let Some(ca) = settings.client_ca {
                tls = tls.client_ca_root(Certificate::from_pem(ca));
            }
            server = server.tls_config(tls).expect("certificates");
        }
        runtime.spawn(
            server
                .add_service(service)
                .add_service(reflection)
                .serve_with_incoming(ReceiverStream::new(incoming)),
        );
        Self {
            address,
            shared,
            runtime: Some(runtime),
        }
    }

    /// `http://…`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The network has come to a ledger.
    pub fn set_tip(&self, ledger: u32) {
        self.shared.tip.send_replace(ledger);
    }

    /// Start and end of each request so far.
    pub fn asked(&self) -> Vec<(u32, u32)> {
        lock(&self.shared.asked).clone()
    }

    /// Events given to connections so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.shared.cut();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.cut();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Keeps a second handle of a connection, to cut it.
    fn remember(&self, stream: tokio::net::TcpStream) -> std::io::Result<tokio::net::TcpStream> {
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        lock(&self.connections).push(stream.try_clone()?);
        tokio::net::TcpStream::from_std(stream)
    }

    fn cut(&self) {
        for connection in lock(&self.connections).drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// The fault of a ledger, which is gone then.
    fn fault(&self, ledger: u32) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let at = faults.iter().position(|fault| fault.ledger == ledger)?;
        Some(faults.remove(at))
    }

    /// Streams ledgers as the real server does: it ends when it sees a ledger behind the last one.
    async fn stream(&self, start: u32, end: u32, to: mpsc::Sender<Piece>) {
        let mut tip = self.tip.subscribe();
        let mut ledger = start;
        loop {
            if tip.wait_for(|tip| *tip >= ledger).await.is_err() {
                return;
            }
            if end != 0 && (ledger > end || end < start) {
                return;
            }
            if self.ledgers.last().is_some_and(|last| ledger > last) {
                return std::future::pending().await;
            }
            if self.pause_ms > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(self.pause_ms)).await;
            }
            let mut events = self.ledgers.events(ledger);
            let fault = self.fault(ledger);
            if let Some(fault) = &fault {
                let rest = events.split_off(fault.after.min(events.len()));
                if let What::Message(message) = &fault.what {
                    events.push(message.clone());
                    events.extend(rest);
                }
            }
            let count = events.len() as u64;
            if count > 0 && to.send(Piece::Events(events)).await.is_err() {
                return;
            }
            self.sent
                .fetch_add(count, std::sync::atomic::Ordering::Relaxed);
            match fault.map(|fault| fault.what) {
                Some(What::Status(code)) => {
                    let status = Status::new(code, "the fault that was asked for");
                    let _ = to.send(Piece::Fail(status)).await;
                    return;
                }
                Some(What::Cut) => {
                    // What was sent before should be on its way.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    self.cut();
                    return;
                }
                Some(What::Silence) => return std::future::pending().await,
                Some(What::End) => return,
                Some(What::Message(_)) | None => {}
            }
            ledger += 1;
        }
    }
}

enum Piece {
    Events(Vec<Bytes>),
    Fail(Status),
}

/// The events of pieces, one by one.
struct Events {
    pieces: mpsc::Receiver<Piece>,
    open: std::vec::IntoIter<Bytes>,
}

impl Stream for Events {
    type Item = Result<Bytes, Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.open.next() {
                return Poll::Ready(Some(Ok(event)));
            }
            match self.pieces.poll_recv(cx) {
                Poll::Ready(Some(Piece::Events(events))) => self.open = events.into_iter(),
                Poll::Ready(Some(Piece::Fail(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[derive(Clone)]
struct EventService(Arc<Shared>);

impl NamedService for EventService {
    const NAME: &'static str = "token_transfer_service.EventService";
}

impl ServerStreamingService<Bytes> for EventService {
    type Response = Bytes;
    type ResponseStream = Events;
    type Future = BoxFuture<Response<Events>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            if let Some(token) = &shared.token {
                let given = request.metadata().get("authorization");
                let wanted = format!("Bearer {token}");
                if given.is_none_or(|given| given.as_bytes() != wanted.as_bytes()) {
                    return Err(Status::unauthenticated("who are you?"));
                }
            }
            let asked = GetEventsRequest::decode(request.into_inner())
                .map_err(|_| Status::invalid_argument("not a request"))?;
            let (start, end) = (asked.start_ledger, asked.end_ledger);
            lock(&shared.asked).push((start, end));
            let (to, pieces) = mpsc::channel(2);
            tokio::spawn(async move { shared.stream(start, end, to).await });
            Ok(Response::new(Events {
                pieces,
                open: Vec::new().into_iter(),
            }))
        })
    }
}

impl Service<http::Request<Body>> for EventService {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/token_transfer_service.EventService/GetTTPEvents" {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            Ok(Grpc::new(Raw).server_streaming(this, request).await)
        })
    }
}

/// Messages that are encoded already.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(into, message);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(64 << 10, 48 << 10)
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, length)))
    }
}

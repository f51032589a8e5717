//! Connections: a thread with a runtime of its own, so that neither a slow sink nor a reader that waits
//! holds up an answer.

use std::{net::SocketAddr, pin::pin, sync::Arc, thread, time::Duration};

use calve_engine::{Error, Result};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::intake::Intake;

/// Threads that serve connections, at the most; the work is done by others.
const MOST_THREADS: usize = 4;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the end waits for the last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// After an accept that failed, as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What a server is made of.
pub(super) struct Serving {
    pub(super) intake: Arc<Intake>,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) max_connections: usize,
    pub(super) request_timeout: Duration,
}

/// A server: it ends when this is dropped.
pub(super) struct Server {
    address: SocketAddr,
    closing: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Listens, and serves.
    ///
    /// # Errors
    /// `Config` when the address is taken or cannot be listened on.
    pub(super) fn start(listen: SocketAddr, serving: Serving) -> Result<Self> {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.min(MOST_THREADS))
            .max_blocking_threads(cores.max(2))
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(|e| Error::io("cannot start the threads of the HTTP source", e))?;
        let (closing, closed) = watch::channel(false);
        let (bound, binding) = std::sync::mpsc::sync_channel(1);
        let serve = move || {
            let listener = runtime.block_on(TcpListener::bind(listen));
            let listener = listener.and_then(|listener| {
                let address = listener.local_addr()?;
                Ok((listener, address))
            });
            match listener {
                Ok((listener, address)) => {
                    let _ = bound.send(Ok(address));
                    runtime.block_on(accept(listener, Arc::new(serving), closed));
                }
                Err(error) => {
                    let _ = bound.send(Err(error));
                }
            }
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        let thread = thread::Builder::new()
            .name("http-server".to_owned())
            .spawn(serve)
            .map_err(|e| Error::io("cannot start the thread of the HTTP source", e))?;
        let bound = binding
            .recv()
            .map_err(|_| Error::internal("the thread of the HTTP source died"))?;
        let address = bound.map_err(|error| {
            Error::config(format!("cannot listen: listen={listen}"))
                .because(error)
                .hint("is another process there? choose another port")
        })?;
        Ok(Self {
            address,
            closing,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.closing.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, serving: Arc<Serving>, mut closed: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(serving.max_connections));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            _ = closed.changed() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (serving, closed) = (Arc::clone(&serving), closed.clone());
                tokio::spawn(async move {
                    let _place = place;
                    connection(stream, peer, serving, closed).await;
                });
            }
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    // What is accepted already is answered, as far as that takes no longer.
    let all = u32::try_from(serving.max_connections).unwrap_or(u32::MAX);
    let _ = timeout(LAST_ANSWERS, places.acquire_many(all)).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    serving: Arc<Serving>,
    closed: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = &serving.tls else {
        return serve(stream, peer, &serving, closed).await;
    };
    match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, peer, &serving, closed).await,
        Ok(Err(error)) => tracing::debug!(%peer, "the TLS handshake failed: {error}"),
        Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
    }
}

async fn serve<S>(stream: S, peer: SocketAddr, serving: &Serving, mut closed: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let intake = Arc::clone(&serving.intake);
    let limit = serving.request_timeout;
    let service = service_fn(move |request: Request<Incoming>| {
        Arc::clone(&intake).answer(request, peer, limit)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limit);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let closing = async move { closed.wait_for(|closed| *closed).await.is_ok() };
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        _ = closing => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, "a connection ended: {error}");
    }
}

//! The server beside a running pipeline: `/health`, `/ready`, `/metrics`, `/api/status`.
//!
//! It reads the metrics and changes nothing. Beyond loopback it asks for a bearer token; only
//! `/health` stays open, for whoever restarts the process. Whether the pipeline is ready is decided
//! by [`Progress`] and [`not_ready`], values in and values out.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use calve_engine::{
    Error, Result, clock,
    metrics::{Metrics, Status},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The monitors' figures as JSON. Called on a thread that may block.
pub(crate) type Figures = Arc<dyn Fn() -> Value + Send + Sync>;

/// How often it is noted whether events wait for a commit.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Figures are made at most this often, however many ask: making them holds up batchers a little.
const FIGURES_AGE: Duration = Duration::from_secs(1);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const PAGE: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>calve</title>
<h1>calve</h1>
<ul>
<li><a href=\"/api/status\">/api/status</a>: what the pipeline does
<li><a href=\"/metrics\">/metrics</a>: for Prometheus
<li><a href=\"/ready\">/ready</a>: connected, and commits are on time
<li><a href=\"/health\">/health</a>: the process lives
</ul>
";

/// An address that is taken, and not served yet.
pub(crate) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    token: Option<[u8; 32]>,
    /// Where there are metrics only.
    metrics: Option<TcpListener>,
}

impl Bound {
    /// Takes the address: before anything else is done, so that a port that somebody else has stops
    /// the start and not the run. Port 0 takes any free one. Beyond loopback requests must bring a
    /// token.
    ///
    /// # Errors
    /// `Config` beyond loopback without a token, and when the address cannot be had.
    pub(crate) async fn to(listen: SocketAddr, token: Option<&str>) -> Result<Self> {
        let token = required_token(listen, token)?;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Error::config(format!("cannot listen: listen={listen}"))
                .because(error)
                .hint("set serve.listen to an address of this machine with a free port; port 0 takes any")
        })?;
        let address = listener.local_addr().map_err(|error| {
            Error::unavailable(format!("cannot listen: listen={listen}")).because(error)
        })?;
        Ok(Self {
            listener,
            address,
            token,
            metrics: None,
        })
    }

    /// Serves metrics at another address, too.
    pub(crate) fn and_metrics(mut self, other: Self) -> Self {
        self.metrics = Some(other.listener);
        self
    }
}

/// What a server serves.
pub(crate) struct Serve {
    /// What is served.
    pub(crate) metrics: Metrics,
    /// The monitors' figures.
    pub(crate) figures: Option<Figures>,
    /// Not ready when events wait for a commit longer than this.
    pub(crate) overdue_after: Duration,
}

impl Serve {
    /// Serves until `stop`. Gives the address that it listens on.
    pub(crate) fn start(self, bound: Bound, stop: CancellationToken) -> SocketAddr {
        let Bound {
            listener,
            address,
            token,
            metrics,
        } = bound;
        let shared = Arc::new(Shared {
            token,
            metrics: self.metrics,
            figures: self.figures,
            made: tokio::sync::Mutex::new(None),
            overdue_after: self.overdue_after,
            progress: Mutex::new(Progress::default()),
        });
        tokio::spawn(watch(Arc::clone(&shared), stop.clone()));
        if let Some(listener) = metrics {
            spawn(listener, metrics_router(Arc::clone(&shared)), stop.clone());
        }
        spawn(listener, router(shared), stop);
        address
    }
}

fn spawn(listener: TcpListener, router: Router, stop: CancellationToken) {
    let server =
        axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::warn!(%error, "the server stopped");
        }
    });
}

struct Shared {
    /// SHA-256 of the token.
    token: Option<[u8; 32]>,
    metrics: Metrics,
    figures: Option<Figures>,
    made: tokio::sync::Mutex<Option<(Instant, Value)>>,
    overdue_after: Duration,
    progress: Mutex<Progress>,
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/status", get(status))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), guard))
        .route("/health", get(async || "ok"))
        .with_state(shared)
}

fn metrics_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), guard))
        .route("/health", get(async || "ok"))
        .with_state(shared)
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.metrics.status();
    let waiting = shared.progress.lock().observe(&status, clock::now_ms());
    let reasons = not_ready(&status, waiting, shared.overdue_after);
    let code = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons });
    (code, Json(body)).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    shared.metrics.set_process(crate::memory::now());
    (
        [(header::CONTENT_TYPE, OPENMETRICS)],
        shared.metrics.encode(),
    )
        .into_response()
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.metrics.status();
    let Ok(mut body) = serde_json::to_value(&status) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if let Some(figures) = &shared.figures {
        body["figures"] = made_figures(&shared, Arc::clone(figures)).await;
    }
    Json(body).into_response()
}

async fn made_figures(shared: &Shared, figures: Figures) -> Value {
    let mut made = shared.made.lock().await;
    if let Some((when, value)) = &*made
        && when.elapsed() < FIGURES_AGE
    {
        return value.clone();
    }
    let value = tokio::task::spawn_blocking(move || figures()).await;
    let value = value.unwrap_or(Value::Null);
    *made = Some((Instant::now(), value.clone()));
    value
}

async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match &shared.token {
        Some(token) if !carries(request.headers(), token) => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer")],
            "a bearer token is needed\n",
        )
            .into_response(),
        _ => next.run(request).await,
    }
}

/// Notes progress also while nobody asks, so that the first question gets the right answer.
async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let status = shared.metrics.status();
        shared.progress.lock().observe(&status, clock::now_ms());
    }
}

/// The digest of the token that requests must carry; none: the server is open, to this machine.
fn required_token(listen: SocketAddr, token: Option<&str>) -> Result<Option<[u8; 32]>> {
    let token = token.map(str::trim).filter(|token| !token.is_empty());
    if token.is_none() && !listen.ip().to_canonical().is_loopback() {
        return Err(Error::config(format!(
            "a server that others can reach needs a token: listen={listen}"
        ))
        .hint("set serve.token (such as ${CALVE_TOKEN}), or listen on 127.0.0.1"));
    }
    Ok(token.map(digest))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The request carries the token. Digests of one length are compared without an early end, so the
/// time that it takes tells nothing about the token.
fn carries(headers: &HeaderMap, token: &[u8; 32]) -> bool {
    let Some(value) = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
    else {
        return false;
    };
    let Some((scheme, given)) = value.split_once(' ') else {
        return false;
    };
    let differs = digest(given.trim())
        .iter()
        .zip(token)
        .fold(0, |differs, (a, b)| differs | (a ^ b));
    scheme.eq_ignore_ascii_case("bearer") && std::hint::black_box(differs) == 0
}

/// Since when events wait for a commit.
///
/// A source that is quiet commits nothing and is not overdue. Events that were read between a cut and
/// the end of its commit count as committed until the next event comes; they are never counted as
/// waiting wrongly.
#[derive(Default)]
struct Progress {
    last_commit_ms: i64,
    /// Events read when that commit was noticed.
    events: u64,
    waiting_since_ms: Option<i64>,
}

impl Progress {
    /// Takes a look, and says how long events have waited; none: nothing waits.
    fn observe(&mut self, status: &Status, now_ms: i64) -> Option<Duration> {
        if status.last_commit_ms != self.last_commit_ms {
            *self = Self {
                last_commit_ms: status.last_commit_ms,
                events: status.events,
                waiting_since_ms: None,
            };
        }
        if status.events > self.events {
            self.waiting_since_ms.get_or_insert(now_ms);
        }
        let since = self.waiting_since_ms?;
        Some(Duration::from_millis(
            now_ms.saturating_sub(since).max(0) as u64
        ))
    }
}

/// Why the pipeline is not ready; empty: it is.
fn not_ready(status: &Status, waiting: Option<Duration>, overdue_after: Duration) -> Vec<String> {
    if status.state == "done" {
        return Vec::new();
    }
    let mut reasons = Vec::new();
    if status.state != "running" {
        reasons.push(format!("the pipeline does not run: state={}", status.state));
    }
    if !status.connected {
        reasons.push("the source is not connected".to_owned());
    }
    if status.behind {
        reasons.push("commits are behind: too many epochs wait".to_owned());
    }
    if let Some(waiting) = waiting.filter(|waiting| *waiting > overdue_after) {
        reasons.push(format!(
            "a commit is overdue: waiting_s={} allowed_s={}",
            waiting.as_secs(),
            overdue_after.as_secs()
        ));
    }
    reasons
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;

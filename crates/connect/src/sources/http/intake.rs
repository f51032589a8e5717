//! What becomes of a request: the order of its checks, and its answer.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use calve_engine::{Secret, seams::Link};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    body::{self, Budget, Charge, Encoding, Limits},
    check::Checks,
    config::HttpConfig,
    events::{self, Kind, Taking},
    flights::Flights,
    refusal::{BadEvent, Refusal},
};
use crate::{
    formats::FormatConfig,
    sources::wal::{Appender, Entry, Key, Known},
};

const LONGEST_KEY: usize = 255;
/// How much is read of the body of a request that is refused, and for how long.
const DRAINED_BYTES: usize = 4 << 20;
const DRAIN: Duration = Duration::from_secs(2);

/// Takes requests. Shared by all connections.
pub(super) struct Intake {
    path: String,
    tokens: Vec<[u8; 32]>,
    format: FormatConfig,
    limits: Limits,
    taking: Taking,
    max_pending: u64,
    checks: Checks,
    appender: Appender,
    flights: Flights,
    budget: Arc<Budget>,
    link: Arc<Link>,
    /// Requests that are under way are finished, and no others are taken.
    stopping: AtomicBool,
    under_way: AtomicUsize,
}

/// Nobody knows whether the events of a request are in the log: its connection is closed.
#[derive(Debug)]
pub(super) struct Unanswered;

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody knows whether the events are in the log")
    }
}

impl std::error::Error for Unanswered {}

/// A request that is under way.
struct UnderWay(Arc<Intake>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is answered to a request that is taken.
struct Receipt {
    events: u32,
    refused: u32,
    bad: Vec<BadEvent>,
    repeated: bool,
}

/// What the headers say of a request that may be taken.
struct Head {
    kind: Kind,
    encoding: Encoding,
    key: Option<[u8; 16]>,
}

/// A request that has come.
struct Posted {
    head: Head,
    body: Bytes,
    charge: Charge,
}

impl Intake {
    pub(super) fn new(
        config: &HttpConfig,
        format: &FormatConfig,
        checks: Checks,
        appender: Appender,
        budget: Arc<Budget>,
        link: Arc<Link>,
    ) -> Self {
        let token = |token: &Secret| Sha256::digest(token.expose().trim()).into();
        let framing = match format {
            FormatConfig::Protobuf(config) => config.framing,
            _ => crate::formats::protobuf::Framing::default(),
        };
        Self {
            path: config.path.clone(),
            tokens: config.tokens.iter().map(token).collect(),
            format: format.clone(),
            limits: Limits {
                body: config.max_body.0,
                decompressed: config.max_decompressed.0,
                ratio: u64::from(config.max_ratio),
            },
            taking: Taking {
                framing,
                max_depth: config.max_depth,
                on_bad_event: config.on_bad_event,
            },
            max_pending: config.max_pending.0,
            checks,
            appender,
            flights: Flights::default(),
            budget,
            link,
            stopping: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
        }
    }

    /// No more requests are taken.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When there is no answer that is surely right.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
        limit: Duration,
    ) -> Result<Response<Full<Bytes>>, Unanswered> {
        let response = match Arc::clone(&self).receive(request, limit).await {
            Ok(receipt) => respond(&receipt),
            Err(refusal) if refusal.is_silent => return Err(Unanswered),
            Err(refusal) => {
                tracing::debug!(%peer, status = refusal.status.as_u16(), "{}", refusal.error);
                refuse(&refusal)
            }
        };
        if let Some(intake) = self.link.intake() {
            intake.answered(response.status().as_u16());
        }
        Ok(response)
    }

    /// The body comes within `limit`.
    async fn receive(
        self: Arc<Self>,
        request: Request<Incoming>,
        limit: Duration,
    ) -> Result<Receipt, Refusal> {
        // Counted first: who sees the count at zero behind `stop` sees no request any more.
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let under_way = UnderWay(Arc::clone(&self));
        if request.uri().path() != self.path {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                format!("events are posted to {}", self.path),
            ));
        }
        if request.method() != Method::POST {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "events are posted: use POST",
            ));
        }
        let (head, mut body) = request.into_parts();
        let posted = match self.read(&head.headers, &mut body, limit).await {
            Ok(posted) => posted,
            Err(refusal) => {
                // A client that still sends would not see why.
                let _ = tokio::time::timeout(DRAIN, body::drain(&mut body, DRAINED_BYTES)).await;
                return Err(refusal);
            }
        };
        // A client that goes away now does not stop what has begun.
        let taking = tokio::spawn(async move {
            let _under_way = under_way;
            self.take(posted).await
        });
        taking.await.map_err(|error| internal(&error))?
    }

    async fn read(
        &self,
        headers: &HeaderMap,
        body: &mut Incoming,
        limit: Duration,
    ) -> Result<Posted, Refusal> {
        let head = self.head(headers)?;
        let mut charge = self.budget.charge();
        let body = body::read(body, &self.limits, &mut charge);
        let body = tokio::time::timeout(limit, body).await;
        let late = "the body did not come in time";
        let body = body.map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, late))??;
        Ok(Posted { head, body, charge })
    }

    /// What can be said before the body has come.
    fn head(&self, headers: &HeaderMap) -> Result<Head, Refusal> {
        self.authorize(headers)?;
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Refusal::stopping());
        }
        let kind = Kind::parse(text_of(headers, &header::CONTENT_TYPE)?, &self.format)?;
        let encoding = Encoding::parse(text_of(headers, &header::CONTENT_ENCODING)?)?;
        let key = key_of(headers)?;
        if self.appender.pending() >= self.max_pending {
            return Err(Refusal::busy("too much is waiting to be written"));
        }
        Ok(Head {
            kind,
            encoding,
            key,
        })
    }

    fn authorize(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        // Digests are compared: how long that takes says nothing about a token.
        let given: Option<[u8; 32]> = given.map(|token| Sha256::digest(token).into());
        if given.is_some_and(|given| self.tokens.contains(&given)) {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "a bearer token is needed",
        ))
    }

    async fn take(self: Arc<Self>, posted: Posted) -> Result<Receipt, Refusal> {
        let Posted {
            head,
            body,
            mut charge,
        } = posted;
        let Head {
            kind,
            encoding,
            key,
        } = head;
        let limits = self.limits;
        let (body, digest, charge) = blocking(move || {
            let body = body::decompress(encoding, body, &limits, &mut charge)?;
            let digest = key.map(|_| short(&Sha256::digest(&body)));
            Ok((body, digest, charge))
        })
        .await?;
        let key = key.zip(digest).map(|(key, body)| Key { key, body });
        let mut flight = None;
        if let Some(key) = key {
            // The first one that takes off looks again: another may have landed before it.
            while flight.is_none() {
                flight = self.flights.take_off(key.key).await;
                if let Some(known) = self.appender.known(&key.key) {
                    return self.repeated(known, key);
                }
            }
        }
        let receipt = self.append(kind, body, key).await;
        drop((flight, charge));
        receipt
    }

    fn repeated(&self, known: Known, key: Key) -> Result<Receipt, Refusal> {
        if known.key.body != key.body {
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "the same Idempotency-Key came with another body before",
            ));
        }
        if let Some(intake) = self.link.intake() {
            intake.repeated();
        }
        Ok(Receipt {
            events: known.events,
            refused: known.refused,
            bad: Vec::new(),
            repeated: true,
        })
    }

    async fn append(&self, kind: Kind, body: Bytes, key: Option<Key>) -> Result<Receipt, Refusal> {
        let (taking, checks) = (self.taking.clone(), self.checks.clone());
        let taken = blocking(move || events::take(kind, body, &taking, &checks)).await?;
        let receipt = Receipt {
            events: taken.events,
            refused: taken.refused,
            bad: taken.bad,
            repeated: false,
        };
        if taken.events == 0 || taken.units == 0 {
            return Ok(receipt);
        }
        let bytes = taken.payload.len() as u64;
        let room = self.appender.room(bytes, self.max_pending);
        // One that is larger than all that may wait is taken when nothing waits.
        let room = room.or_else(|| self.appender.room(bytes, bytes));
        let room = room.ok_or_else(|| Refusal::busy("too much is waiting to be written"))?;
        let entry = Entry {
            content: taken.content,
            units: taken.units,
            events: taken.events,
            refused: taken.refused,
            key,
            payload: taken.payload,
        };
        self.appender.append(entry, room).await?;
        if let Some(intake) = self.link.intake() {
            intake.accepted(u64::from(receipt.events));
        }
        Ok(receipt)
    }
}

/// Runs work where it holds up no connection.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| internal(&error))?
}

fn internal(error: &tokio::task::JoinError) -> Refusal {
    if error.is_cancelled() {
        return Refusal::stopping();
    }
    tracing::error!("a request could not be handled; this is a bug in calve: {error}");
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the request could not be handled",
    )
}

fn short(digest: &[u8]) -> [u8; 16] {
    digest.first_chunk().copied().unwrap_or_default()
}

fn text_of<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<&'a str, Refusal> {
    let value = headers.get(name).map(HeaderValue::to_str).transpose();
    let value = value.map_err(|_| Refusal::bad_request(format!("{name} is no text")))?;
    Ok(value.unwrap_or_default())
}

fn key_of(headers: &HeaderMap) -> Result<Option<[u8; 16]>, Refusal> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    if key.is_empty() || key.len() > LONGEST_KEY {
        return Err(Refusal::bad_request(format!(
            "Idempotency-Key has not 1 to {LONGEST_KEY} characters"
        )));
    }
    Ok(Some(short(&Sha256::digest(key.as_bytes()))))
}

fn respond(receipt: &Receipt) -> Response<Full<Bytes>> {
    let mut answer = json!({ "accepted": receipt.events });
    if receipt.refused > 0 {
        answer["refused"] = receipt.refused.into();
    }
    if !receipt.bad.is_empty() {
        answer["bad"] = json!(receipt.bad);
    }
    if receipt.repeated {
        answer["repeated"] = true.into();
    }
    json_response(StatusCode::OK, &answer)
}

fn refuse(refusal: &Refusal) -> Response<Full<Bytes>> {
    let mut answer = json!({ "error": refusal.error });
    if !refusal.bad.is_empty() {
        answer["bad"] = json!(refusal.bad);
    }
    let mut response = json_response(refusal.status, &answer);
    let headers = response.headers_mut();
    if let Some(seconds) = refusal.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    match refusal.status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

fn json_response(status: StatusCode, answer: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut body = answer.to_string();
    body.push('\n');
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

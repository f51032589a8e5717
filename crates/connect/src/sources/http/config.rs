//! The settings of the HTTP source.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use calve_engine::{Error, Result, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    formats::FormatConfig,
    sources::wal::WalConfig,
    units::{ByteSize, Span},
};

/// Events that are posted to calve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address and port. Beyond loopback `tokens` are needed.
    pub listen: SocketAddr,
    /// Where events are posted to.
    pub path: String,
    /// Bearer tokens, of which each request needs one; never shown. Several, so that they can be changed
    /// one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Secret>,
    /// Our certificate and its key: with them the source speaks TLS only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<HttpTls>,
    /// Where and how requests are kept until they are committed.
    pub wal: WalConfig,
    /// Bytes of events that are accepted and not read yet; beyond it requests are answered 429.
    pub max_pending: ByteSize,
    /// A body that is larger, as it is sent, is answered 413.
    pub max_body: ByteSize,
    /// A body that is larger when it is decompressed is answered 413.
    pub max_decompressed: ByteSize,
    /// A body that grows by more when it is decompressed is answered 413.
    pub max_ratio: u32,
    /// JSON that is nested deeper is answered 400.
    pub max_depth: u32,
    /// Connections at the same time; more wait.
    pub max_connections: u32,
    /// A request that takes longer to come is answered 408; a connection that says nothing for as long
    /// is closed.
    pub request_timeout: Span,
    /// What becomes of a request with an event that cannot be decoded.
    pub on_bad_event: OnBadEvent,
    /// How long `Idempotency-Key`s are remembered.
    pub idempotency_ttl: Span,
    /// How many of them are remembered: beyond it the oldest are forgotten before their time.
    pub max_idempotency_keys: u32,
    /// Bytes of events that make a batch, when there are so many at once.
    pub batch_bytes: ByteSize,
}

/// A certificate and its private key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpTls {
    /// The certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What becomes of a request with events that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadEvent {
    /// It is answered 400, and none of its events is taken.
    #[default]
    RejectRequest,
    /// The others are taken; the answer names those that are not.
    AcceptRest,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8090)),
            path: "/events".to_owned(),
            tokens: Vec::new(),
            tls: None,
            wal: WalConfig::default(),
            max_pending: ByteSize(1 << 30),
            max_body: ByteSize(16 << 20),
            max_decompressed: ByteSize(64 << 20),
            max_ratio: 100,
            max_depth: 64,
            max_connections: 4096,
            request_timeout: Span(Duration::from_secs(30)),
            on_bad_event: OnBadEvent::default(),
            idempotency_ttl: Span(Duration::from_hours(24)),
            max_idempotency_keys: 1_000_000,
            batch_bytes: ByteSize(1 << 20),
        }
    }
}

impl HttpConfig {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn validate(&self, format: &FormatConfig) -> Result<()> {
        if matches!(format, FormatConfig::Csv(_) | FormatConfig::Parquet(_)) {
            return Err(Error::config(format!(
                "http does not take this format: format={}",
                format.name()
            ))
            .hint("json, debezium, protobuf and arrow are taken"));
        }
        if let FormatConfig::Arrow(arrow) = format
            && arrow.columns.is_none()
        {
            return Err(Error::config(
                "arrow over http needs `columns`: its schema is not inferred",
            )
            .hint("declare them: `format: { arrow: { columns: { id: bigint } } }`"));
        }
        if !self.path.starts_with('/') || self.path.contains(['?', '#']) {
            return Err(Error::config(format!("not a path: path={}", self.path))
                .hint("write for example /events"));
        }
        if self.tokens.iter().any(|t| t.expose().trim().is_empty()) {
            return Err(Error::config("one of tokens is empty"));
        }
        if self.tokens.is_empty() && !self.listen.ip().is_loopback() {
            return Err(Error::config(format!(
                "listen is not loopback, and there are no tokens: listen={}",
                self.listen
            ))
            .hint("set `tokens: [\"${TOKEN}\"]`, or listen on 127.0.0.1"));
        }
        let sizes = [
            ("max_body", self.max_body.0, 1, 1 << 30),
            ("max_decompressed", self.max_decompressed.0, 1, 1 << 30),
            ("max_depth", u64::from(self.max_depth), 1, 512),
            ("max_ratio", u64::from(self.max_ratio), 1, u64::MAX),
            (
                "max_connections",
                u64::from(self.max_connections),
                1,
                1 << 20,
            ),
            (
                "max_idempotency_keys",
                u64::from(self.max_idempotency_keys),
                1,
                u64::MAX,
            ),
            ("batch_bytes", self.batch_bytes.0, 1, 1 << 30),
            ("max_pending", self.max_pending.0, 1, u64::MAX),
        ];
        for (name, value, least, most) in sizes {
            if value < least || value > most {
                return Err(Error::config(format!(
                    "{name} is not between {least} and {most}: {name}={value}"
                )));
            }
        }
        if self.request_timeout.0.is_zero() {
            return Err(Error::config("request_timeout is zero"));
        }
        self.wal.validate()
    }
}

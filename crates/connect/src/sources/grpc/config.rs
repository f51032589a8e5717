//! The settings of the gRPC source.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, time::Duration};

use calve_engine::{Error, Result, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tonic::{
    codegen::http::{Uri, uri::PathAndQuery},
    metadata::AsciiMetadataValue,
};

use super::wanted::{self, Wanted};
use crate::{
    descriptors::{DescriptorConfig, OneOrMany, one_or_many},
    formats::protobuf::MAX_BYTES,
    units::{ByteSize, Span},
};

/// What is decoded at once is less than this.
const MOST_BATCH_BYTES: u64 = MAX_BYTES as u64;

/// A server-streaming method of any gRPC server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrpcConfig {
    /// `http://host:port`, or `https://` for TLS.
    pub endpoint: String,
    /// The method, `package.Service/Method`; it must stream its answers, and take one request.
    pub method: String,
    /// The request, field by field, in protobuf's JSON mapping.
    #[serde(default)]
    pub request: serde_json::Map<String, serde_json::Value>,
    /// Descriptor set of the service, as `protoc --include_imports --descriptor_set_out` makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor_set: Option<PathBuf>,
    /// `.proto` files of the service, one or many.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many"
    )]
    #[schemars(with = "OneOrMany<PathBuf>")]
    pub proto: Vec<PathBuf>,
    /// Folders in which imports are looked for, one or many.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many"
    )]
    #[schemars(with = "OneOrMany<PathBuf>")]
    pub include: Vec<PathBuf>,
    /// Asks the server for its descriptors at each start.
    #[serde(default)]
    pub reflection: bool,
    /// How a stream goes on after a restart or a lost connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<ResumeConfig>,
    /// Accepts that without `resume` whatever the server sends while calve is not connected is lost.
    #[serde(default)]
    pub lossy: bool,
    /// Certificates, for `https://`. Default: those that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Metadata (headers) of each request; values are never shown. Those of names that end in `-bin` are
    /// bytes, in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, Secret>,
    /// Bearer token of each request; never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Time between HTTP/2 pings over a connection; a ping that is not answered for as long ends it.
    /// Default: none, since many servers close connections that ping often; TCP finds a peer that is
    /// gone in 25 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<Span>,
    /// How long one try to connect may take.
    #[serde(default = "ten_seconds")]
    pub connect_timeout: Span,
    /// A stream that says nothing for so long is opened anew. Default: silence is no fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// A larger message stops the pipeline.
    #[serde(default = "max_message_size")]
    pub max_message_size: ByteSize,
    /// How answers may be compressed; a server that cannot answers without.
    #[serde(default)]
    pub compression: Compression,
    /// How long to try again while nothing new is received, or a connection holds for five minutes.
    /// Default: for ever when the stream is endless, five minutes when the request has a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_for: Option<Span>,
    /// What the end of the stream means.
    #[serde(default)]
    pub at_end: AtEnd,
    /// Bytes of messages that make a batch, when there are so many at once; with 16 more for each.
    #[serde(default = "batch_bytes")]
    pub batch_bytes: ByteSize,
}

pub(crate) fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

pub(crate) fn max_message_size() -> ByteSize {
    ByteSize(4 << 20)
}

fn batch_bytes() -> ByteSize {
    ByteSize(1 << 20)
}

/// Certificates of a TLS connection, as PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Who signs the server's certificate. Default: whom the system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Our own certificate, for servers that want one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name in the server's certificate. Default: the endpoint's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// How messages are compressed on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// What the end of a stream means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AtEnd {
    /// Everything was read: the run ends.
    #[default]
    End,
    /// The server had enough for now: the stream is opened anew.
    Reconnect,
}

/// How a stream goes on where it was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeConfig {
    /// Field of the request (a path) that says where the stream begins.
    pub request_field: String,
    /// Field of the messages (a path) that holds the same: a whole number or a timestamp, which never
    /// falls. Messages with the same value stand together, and are never torn apart.
    pub from_column: String,
    /// Whether the stream begins with the value of `request_field`, or behind it.
    #[serde(default = "yes")]
    pub inclusive: bool,
    /// Field of the request (a path) that says where the stream ends, inclusive; zero or absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_field: Option<String>,
    /// After so much silence a group of messages counts as complete; `0s`: only a later value, or an end
    /// of the stream that is `at_end: end`, completes it. Longer than the pauses that the server makes
    /// within a group.
    #[serde(default = "half_a_minute")]
    pub idle: Span,
    /// A timestamp of the messages (a path) that never falls from group to group: with it the source
    /// gives the watermark, and `max_delay` does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<String>,
    /// A group of messages that is larger stops the pipeline. 16 bytes are counted for each message
    /// beside its own.
    #[serde(default = "max_group_bytes")]
    pub max_group_bytes: ByteSize,
    /// Goes on in the middle of a group by the count of its messages, though the last one that was taken
    /// is another one when the server gives it again.
    #[serde(default)]
    pub trust_order: bool,
}

fn yes() -> bool {
    true
}

fn half_a_minute() -> Span {
    Span(Duration::from_secs(30))
}

fn max_group_bytes() -> ByteSize {
    ByteSize(64 << 20)
}

impl GrpcConfig {
    /// Where the types of the service are described, if not by reflection.
    pub fn descriptors(&self) -> DescriptorConfig {
        DescriptorConfig {
            descriptor_set: self.descriptor_set.clone(),
            proto: self.proto.clone(),
            include: self.include.clone(),
        }
    }

    /// Service and method.
    pub(super) fn method(&self) -> Result<(&str, &str)> {
        let name = self.method.strip_prefix('/').unwrap_or(&self.method);
        match name.split_once('/') {
            Some((service, method))
                if !service.is_empty() && !method.is_empty() && !method.contains('/') =>
            {
                Ok((service, method))
            }
            _ => Err(
                Error::config(format!("not the name of a method: method={}", self.method))
                    .hint("write `package.Service/Method`"),
            ),
        }
    }

    /// The path of the method in a request.
    pub(super) fn path(&self) -> Result<PathAndQuery> {
        let (service, method) = self.method()?;
        let path = format!("/{service}/{method}");
        path.parse().map_err(|_| {
            Error::config(format!("not the name of a method: method={}", self.method))
                .hint("write `package.Service/Method`")
        })
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.path()?;
        self.connection()?;
        let descriptors = self.descriptors();
        descriptors.validate()?;
        match (self.reflection, descriptors.is_empty()) {
            (true, false) => {
                return Err(Error::config("both reflection and descriptors are given")
                    .hint("keep `reflection: true`, or `proto` or `descriptor_set`"));
            }
            (false, true) => {
                return Err(Error::config("nothing says what the service's messages are")
                    .hint("name `proto: service.proto`, `descriptor_set: FILE`, or `reflection: true`"));
            }
            _ => {}
        }
        match &self.resume {
            None if !self.lossy => Err(Error::config(
                "without `resume` a stream cannot go on where it was left: events would be lost",
            )
            .hint(
                "write `resume: { request_field: …, from_column: … }`; or `lossy: true`, if what is sent while \
                 calve is not connected may be lost",
            )),
            Some(_) if self.lossy => {
                Err(Error::config("both `resume` and `lossy` are given").hint("keep one of them"))
            }
            _ => Ok(()),
        }
    }

    /// A stream that is opened anew before its last group counts as complete never completes it.
    fn patience(&self, idle: Span) -> Result<()> {
        match self.deadline {
            Some(deadline) if !idle.0.is_zero() && deadline.0 <= idle.0 => Err(Error::config(
                format!("deadline is not longer than idle: deadline={deadline} idle={idle}"),
            )
            .hint("raise `deadline`, or lower `idle`")),
            _ => Ok(()),
        }
    }

    /// What must not change while a pipeline has checkpoints: which events come, and in which order.
    /// Where they come from may change, and where they end.
    pub(crate) fn fingerprint(&self) -> String {
        let mut request = self.request.clone();
        let mut resumed = String::new();
        if let Some(resume) = &self.resume {
            if let Some(until) = &resume.until_field {
                remove(&mut request, until);
            }
            resumed = format!(
                " resume={}:{}:{}",
                resume.request_field, resume.from_column, resume.inclusive
            );
        }
        let method = self.method.trim_start_matches('/');
        // Records keep it, and a request may hold what is nobody's business.
        let request = sorted(&serde_json::Value::Object(request)).to_string();
        let digest = Sha256::digest(request.as_bytes());
        let digest = digest[..16].iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        format!("grpc method={method} request=sha256:{digest}{resumed}")
    }

    /// Whether the end of the stream ends the run.
    pub(crate) fn is_bounded(&self) -> bool {
        self.at_end == AtEnd::End
    }

    /// How long to try again, where the request has a bound, or has none.
    pub(super) fn retry_for(&self, bound: bool) -> Option<Duration> {
        match self.retry_for {
            Some(span) => Some(span.0),
            None => bound.then_some(Duration::from_mins(5)),
        }
    }

    /// Makes the request's parts that do not change.
    pub(super) fn wanted(&self) -> Result<Wanted> {
        Wanted::new(self, self.path()?)
    }
}

/// Takes a field out of a request: by names with dots between them, each as the `.proto` file or as the
/// JSON mapping has it. A message that held nothing else goes with it.
fn remove(request: &mut serde_json::Map<String, serde_json::Value>, path: &str) {
    let (name, inner) = path
        .split_once('.')
        .map_or((path, None), |(name, inner)| (name, Some(inner)));
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let keys: Vec<String> = request
        .keys()
        .filter(|key| plain(key) == plain(name))
        .cloned()
        .collect();
    for key in keys {
        if let (Some(inner), Some(serde_json::Value::Object(message))) =
            (inner, request.get_mut(&key))
        {
            remove(message, inner);
            if !message.is_empty() {
                continue;
            }
        }
        request.remove(&key);
    }
}

/// The same for every order of keys.
fn sorted(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_unstable();
            let pairs = keys.into_iter().map(|key| (key.clone(), sorted(&map[key])));
            Value::Object(pairs.collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

impl GrpcConfig {
    /// Checks how the server is reached.
    pub(crate) fn connection(&self) -> Result<()> {
        if let Some(resume) = &self.resume {
            self.patience(resume.idle)?;
        }
        let endpoint = &self.endpoint;
        let tls = is_tls(endpoint)?;
        if self.tls.is_some() && !tls {
            return Err(Error::config(format!(
                "tls is set, and the endpoint has none: endpoint={endpoint}"
            ))
            .hint("write `https://…`, or leave `tls` out"));
        }
        if let Some(tls) = &self.tls
            && tls.cert.is_some() != tls.key.is_some()
        {
            return Err(Error::config("tls.cert and tls.key go together")
                .hint("give both for a client certificate, or none"));
        }
        for name in self.metadata.keys() {
            if name.eq_ignore_ascii_case("authorization") && self.token.is_some() {
                return Err(
                    Error::config("both token and metadata.authorization are given")
                        .hint("keep one of them"),
                );
            }
        }
        if let Some(token) = &self.token {
            let plain = AsciiMetadataValue::try_from(token.expose()).is_ok();
            if token.expose().trim().is_empty() || !plain {
                return Err(Error::config(
                    "token is empty, or no text that a header can hold",
                ));
            }
        }
        for (name, span) in [
            ("keep_alive", self.keep_alive),
            ("connect_timeout", Some(self.connect_timeout)),
            ("deadline", self.deadline),
        ] {
            if span.is_some_and(|span| span.0.is_zero()) {
                return Err(Error::config(format!("{name} is zero")).hint("write for example 10s"));
            }
        }
        wanted::metadata(self)?;
        self.sizes()
    }

    /// How large a batch may become where flow control asks; none: the file says how large it is.
    pub(super) fn most_asked(&self) -> Option<usize> {
        let group = self.resume.as_ref().map(|resume| resume.max_group_bytes);
        let most = group.unwrap_or(self.max_message_size).0;
        let room = MOST_BATCH_BYTES.saturating_sub(most) / 2;
        (self.batch_bytes == batch_bytes()).then_some((room as usize).max(1))
    }

    /// What a batch can come to must fit what decodes it. (It becomes columns of up to twice its size, whose
    /// values are counted in 31 bits.)
    fn sizes(&self) -> Result<()> {
        let group = self.resume.as_ref().map(|resume| resume.max_group_bytes);
        let sizes = [
            ("max_message_size", Some(self.max_message_size)),
            ("batch_bytes", Some(self.batch_bytes)),
            ("resume.max_group_bytes", group),
        ];
        for (name, size) in sizes {
            if size.is_some_and(|size| size.0 == 0) {
                return Err(Error::config(format!("{name} is zero")).hint("write for example 1MiB"));
            }
        }
        // The last group, or message, of a batch comes upon what is nearly one.
        let (name, most) = match group {
            Some(group) => ("resume.max_group_bytes", group),
            None => ("max_message_size", self.max_message_size),
        };
        if self.batch_bytes.0.saturating_add(most.0) >= MOST_BATCH_BYTES {
            return Err(Error::config(format!(
                "batch_bytes and {name} together are not below 512MiB: batch_bytes={} {name}={most}",
                self.batch_bytes
            ))
            .hint(format!("lower `{name}`, or `batch_bytes`")));
        }
        if self.max_message_size.0 >= MOST_BATCH_BYTES {
            return Err(Error::config("max_message_size is not below 512MiB"));
        }
        Ok(())
    }
}

/// Whether an endpoint wants TLS.
///
/// # Errors
/// `Config` when it is no endpoint.
pub(super) fn is_tls(endpoint: &str) -> Result<bool> {
    let wrong = || {
        Error::config(format!("not an endpoint: endpoint={endpoint}"))
            .hint("write `http://host:port`, or `https://host:port` for TLS")
    };
    let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    if authority.as_str().contains('@') {
        return Err(Error::config("an endpoint has no user or password")
            .hint("give credentials by `token` or `metadata`"));
    }
    match uri.scheme_str() {
        Some("http") => Ok(false),
        Some("https") => Ok(true),
        _ => Err(wrong()),
    }
}

//! What is asked of a server each time: connection, TLS, metadata, the method's path.

use std::{error::Error as _, path::Path, time::Duration};

use bytes::Bytes;
use calve_engine::{Error, Result};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codec::CompressionEncoding,
    codegen::http::{HeaderMap, HeaderValue, uri::PathAndQuery},
    metadata::{
        AsciiMetadataKey, AsciiMetadataValue, BinaryMetadataKey, BinaryMetadataValue, MetadataMap,
    },
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    codec::RawCodec,
    config::{Compression, GrpcConfig, is_tls},
};

/// HTTP/2 lets a server send so much that nobody has taken yet: it bounds what waits in memory while
/// the pipeline is slow, and is enough for a connection over a long way.
const WINDOW_BYTES: u32 = 2 << 20;

/// A peer that is gone without a word is found after 25 s, which is sooner than silence ends a group.
const SILENT_FOR: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// The parts of a call that are the same each time.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    metadata: MetadataMap,
    path: PathAndQuery,
    compression: Compression,
    max_message_bytes: usize,
}

impl Wanted {
    pub(super) fn new(config: &GrpcConfig, path: PathAndQuery) -> Result<Self> {
        Ok(Self {
            metadata: metadata(config)?,
            path,
            compression: config.compression,
            max_message_bytes: config.max_message_size.0 as usize,
        })
    }

    /// Calls the method with an encoded request.
    pub(super) async fn call(
        &self,
        channel: Channel,
        request: Bytes,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut client = Grpc::new(channel).max_decoding_message_size(self.max_message_bytes);
        let encoding = match self.compression {
            Compression::None => None,
            Compression::Gzip => Some(CompressionEncoding::Gzip),
            Compression::Zstd => Some(CompressionEncoding::Zstd),
        };
        if let Some(encoding) = encoding {
            client = client.accept_compressed(encoding);
        }
        client
            .ready()
            .await
            .map_err(|error| explained(Status::from_error(error.into())))?;
        let mut request = Request::new(request);
        *request.metadata_mut() = self.metadata.clone();
        let answer = client.server_streaming(request, self.path.clone(), RawCodec);
        Ok(answer.await.map_err(explained)?.into_inner())
    }
}

/// The metadata of each request.
pub(super) fn metadata(config: &GrpcConfig) -> Result<MetadataMap> {
    let mut metadata = MetadataMap::new();
    for (name, value) in &config.metadata {
        let no_name = || {
            Error::config(format!("not a name of metadata: name={name}")).hint(
                "letters, digits, `-`, `_` and `.`; names that begin with grpc- are gRPC's own",
            )
        };
        let wrong = || Error::config(format!("not a value of metadata: path=metadata.{name}"));
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("grpc-") {
            return Err(no_name());
        }
        if lower.ends_with("-bin") {
            let key = BinaryMetadataKey::from_bytes(lower.as_bytes()).map_err(|_| no_name())?;
            let header = HeaderValue::from_str(value.expose().trim()).map_err(|_| wrong())?;
            // Such a header is base64 on its way, as it is in the pipeline file.
            let mut headers = HeaderMap::new();
            headers.insert("value-bin", header);
            let given = MetadataMap::from_headers(headers);
            let bytes = given
                .get_bin("value-bin")
                .and_then(|value| value.to_bytes().ok());
            let bytes = bytes.ok_or_else(|| {
                wrong().hint("the values of names that end in -bin are bytes, in base64")
            })?;
            let mut value = BinaryMetadataValue::from_bytes(&bytes);
            value.set_sensitive(true);
            metadata.insert_bin(key, value);
            continue;
        }
        let key = AsciiMetadataKey::from_bytes(lower.as_bytes()).map_err(|_| no_name())?;
        let mut value = AsciiMetadataValue::try_from(value.expose()).map_err(|_| wrong())?;
        value.set_sensitive(true);
        metadata.insert(key, value);
    }
    if let Some(token) = &config.token {
        let mut value = AsciiMetadataValue::try_from(format!("Bearer {}", token.expose().trim()))
            .map_err(|_| Error::config("token is no text that a header can hold"))?;
        value.set_sensitive(true);
        metadata.insert("authorization", value);
    }
    Ok(metadata)
}

/// How to reach the server. Certificates are read now.
///
/// # Errors
/// `Config` for certificates that cannot be read.
pub(super) fn endpoint(config: &GrpcConfig, base: &Path) -> Result<Endpoint> {
    let address = config.endpoint.as_str();
    let wrong = |error: tonic::transport::Error| {
        Error::config(format!("cannot use the endpoint: endpoint={address}")).because(error)
    };
    let mut endpoint = Endpoint::from_shared(address.to_owned())
        .and_then(|e| e.user_agent(concat!("calve/", env!("CARGO_PKG_VERSION"))))
        .map_err(wrong)?
        .tcp_nodelay(true)
        .tcp_keepalive(Some(SILENT_FOR))
        .tcp_keepalive_interval(Some(PROBE_EVERY))
        .tcp_keepalive_retries(Some(PROBES))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    // Servers may take pings for an attack (`too_many_pings`), so nobody sends them unasked.
    if let Some(keep_alive) = config.keep_alive {
        endpoint = endpoint
            .http2_keep_alive_interval(keep_alive.0)
            .keep_alive_timeout(keep_alive.0)
            .keep_alive_while_idle(true);
    }
    if is_tls(address)? {
        let certificates = config.tls.clone().unwrap_or_default();
        let read = |path: &Path| {
            let path = base.join(path);
            std::fs::read(&path).map_err(|error| {
                Error::config(format!(
                    "cannot read a certificate or key: file={}",
                    path.display()
                ))
                .because(error)
            })
        };
        let mut tls = match &certificates.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&certificates.cert, &certificates.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        if let Some(domain) = &certificates.domain {
            tls = tls.domain_name(domain);
        }
        endpoint =
            endpoint.tls_config(tls).map_err(|error| {
                Error::config("cannot use the certificates").because(error).hint(
                "`tls` takes PEM files: `ca` who signed the server's, `cert` and `key` our own",
            )
            })?;
    }
    Ok(endpoint)
}

/// A connection, with TLS and HTTP/2 agreed upon, within `limit`.
pub(super) async fn connect(endpoint: &Endpoint, limit: Duration) -> Result<Channel, Status> {
    match tokio::time::timeout(limit, endpoint.connect()).await {
        Ok(connected) => connected.map_err(|error| of_transport(Code::Unavailable, chain(&error))),
        Err(_) => Err(Status::unavailable("nobody answers within connect_timeout")),
    }
}

/// A failure of the connection, with its causes: tonic's own message is only that there was one.
pub(super) fn explained(status: Status) -> Status {
    match status.source() {
        Some(source) => {
            let (said, why) = (status.message(), chain(source));
            let text = if why.starts_with(said) {
                why
            } else {
                format!("{said}: {why}")
            };
            of_transport(status.code(), text)
        }
        None => status,
    }
}

fn of_transport(code: Code, text: String) -> Status {
    // With TLS 1.3 a client has its connection before the server has looked at its certificate.
    if CERTIFICATE_ALERTS.iter().any(|alert| text.contains(alert)) {
        return Status::unauthenticated(format!("{NO_CERTIFICATE}: {text}"));
    }
    Status::new(code, text)
}

const NO_CERTIFICATE: &str = "the server does not accept our certificate, or wants one";

/// What a server says that does not like a certificate, as the TLS library writes it.
const CERTIFICATE_ALERTS: [&str; 8] = [
    "alert: CertificateRequired",
    "alert: BadCertificate",
    "alert: UnsupportedCertificate",
    "alert: CertificateRevoked",
    "alert: CertificateExpired",
    "alert: CertificateUnknown",
    "alert: UnknownCA",
    // Its signature is not that of the signer that it names.
    "alert: DecryptError",
];

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Whether a call that failed so may be tried again.
pub(super) fn is_passing(status: &Status) -> bool {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::Unimplemented
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::DataLoss => false,
        // Our own decoder says so of a message that is too large once it is unpacked.
        Code::ResourceExhausted => !status.message().starts_with("Error decompressing"),
        Code::Unavailable
        | Code::Internal
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Ok => true,
    }
}

/// A call that failed, as an error of ours.
pub(super) fn failed(status: &Status, endpoint: &str, method: &str, limit: u64) -> Error {
    let code = name(status.code());
    let what = format!("the call failed: endpoint={endpoint} method={method} code={code}");
    let said = status.message().trim();
    let ours = said.starts_with("Error, decoded message length too large")
        || said.starts_with("Error decompressing: size limit");
    let error = |kind: fn(String) -> Error| {
        if said.is_empty() {
            kind(what.clone())
        } else {
            kind(format!("{what}: {said}"))
        }
    };
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted if ours => {
            Error::config(format!(
                "a message is larger than max_message_size: endpoint={endpoint} method={method} \
                 max_message_size={limit}"
            ))
            .hint("raise `max_message_size`")
        }
        Code::Unauthenticated if said.starts_with(NO_CERTIFICATE) => error(Error::config)
            .hint("`tls.cert` and `tls.key` are our certificate and its key; the server must trust who signed it"),
        Code::Unauthenticated => error(Error::config)
            .hint("set `token: ${TOKEN}`, or what the server wants as `metadata`"),
        Code::PermissionDenied => error(Error::config).hint("the credentials may not do this"),
        Code::Unimplemented => error(Error::config).hint(
            "the server has no such method: look at `method`; names and case count. An answer that is compressed \
             in another way says so, too: look at `compression`",
        ),
        Code::InvalidArgument | Code::NotFound | Code::OutOfRange | Code::FailedPrecondition => {
            error(Error::config).hint("look at `request`")
        }
        Code::DataLoss => error(Error::corrupt),
        _ => error(Error::unavailable),
    }
}

/// The name of a code as specifications write it.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

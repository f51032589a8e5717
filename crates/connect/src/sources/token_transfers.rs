//! Token transfers of the Stellar network, as a token-transfer server streams them: the gRPC source
//! with nothing left to set. A ledger is the unit of order, resume and watermark.

use std::{collections::BTreeMap, path::Path, time::Duration};

use calve_engine::{Error, Result, Secret};
use prost_reflect::{DescriptorPool, MessageDescriptor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::grpc::{AtEnd, Compression, GrpcConfig, GrpcSource, ResumeConfig, TlsConfig};
use crate::{
    descriptors,
    formats::{FormatConfig, protobuf},
    units::{ByteSize, Span},
};

/// Name of the one source partition.
pub(crate) const PARTITION: &str = "ledgers";

/// Token transfers of the Stellar network, ledger by ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenTransfersConfig {
    /// The server: `http://host:port`, or `https://` for TLS.
    pub endpoint: String,
    /// The first ledger.
    pub start_ledger: u32,
    /// The last ledger, inclusive; 0: none, the stream is followed.
    #[serde(default)]
    pub end_ledger: u32,
    /// After so much silence the last ledger counts as complete; `0s`: only a later one completes it.
    #[serde(default = "half_a_minute")]
    pub idle: Span,
    /// Goes on in the middle of a ledger that silence ended by the count of its events, though the last one
    /// that was taken is another one when the server gives it again.
    #[serde(default)]
    pub trust_order: bool,
    /// One more column, `amount_decimal`, a `decimal(38, 0)`; an event with an amount of 39 digits is a
    /// reject then.
    #[serde(default)]
    pub decimal_amount: bool,
    /// Certificates, for `https://`. Default: those that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Metadata (headers) of each request; values are never shown.
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
    #[serde(default = "super::grpc::ten_seconds")]
    pub connect_timeout: Span,
    /// A stream that says nothing for so long is opened anew. Default: silence is no fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// A larger message stops the pipeline.
    #[serde(default = "super::grpc::max_message_size")]
    pub max_message_size: ByteSize,
    /// How answers may be compressed.
    #[serde(default)]
    pub compression: Compression,
    /// How long to try again while nothing new is received. Default: for ever when the stream is
    /// followed, else five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_for: Option<Span>,
}

fn half_a_minute() -> Span {
    Span(Duration::from_secs(30))
}

impl TokenTransfersConfig {
    /// The same as settings of the gRPC source, but for the descriptors, which are built in.
    pub(super) fn grpc(&self) -> GrpcConfig {
        let request = [
            ("start_ledger".to_owned(), self.start_ledger.into()),
            ("end_ledger".to_owned(), self.end_ledger.into()),
        ];
        GrpcConfig {
            endpoint: self.endpoint.clone(),
            method: protobuf::GET_TOKEN_TRANSFERS.to_owned(),
            request: request.into_iter().collect(),
            descriptor_set: None,
            proto: Vec::new(),
            include: Vec::new(),
            reflection: false,
            resume: Some(ResumeConfig {
                request_field: "start_ledger".to_owned(),
                from_column: "meta.ledger_sequence".to_owned(),
                inclusive: true,
                until_field: Some("end_ledger".to_owned()),
                idle: self.idle,
                watermark: Some("meta.closed_at".to_owned()),
                max_group_bytes: ByteSize(64 << 20),
                trust_order: self.trust_order,
            }),
            lossy: false,
            tls: self.tls.clone(),
            metadata: self.metadata.clone(),
            token: self.token.clone(),
            keep_alive: self.keep_alive,
            connect_timeout: self.connect_timeout,
            deadline: self.deadline,
            max_message_size: self.max_message_size,
            compression: self.compression,
            retry_for: self.retry_for,
            at_end: if self.end_ledger == 0 {
                AtEnd::Reconnect
            } else {
                AtEnd::End
            },
            batch_bytes: ByteSize(1 << 20),
        }
    }

    /// The format with its columns.
    pub(super) fn format(&self) -> Result<FormatConfig> {
        let mut format = protobuf::token_transfers()?;
        if self.decimal_amount
            && let Some(columns) = &mut format.columns
        {
            columns.0.push(protobuf::decimal_amount());
        }
        Ok(FormatConfig::Protobuf(format))
    }

    pub(super) fn source(&self, base: &Path) -> Result<GrpcSource> {
        let (pool, _) = Self::describe()?;
        GrpcSource::new(&self.grpc(), &pool, PARTITION, base)
    }

    /// The descriptors that are built in, and the type of the events.
    pub(super) fn describe() -> Result<(DescriptorPool, MessageDescriptor)> {
        let pool = protobuf::token_transfer_types()?;
        let message = descriptors::message(&pool, protobuf::TOKEN_TRANSFER)?;
        Ok((pool, message))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let (start, end) = (self.start_ledger, self.end_ledger);
        if start == 0 {
            return Err(
                Error::config("start_ledger is 0: ledgers are counted from 1")
                    .hint("name the first ledger that you want"),
            );
        }
        if end != 0 && end < start {
            return Err(Error::config(format!(
                "end_ledger is before start_ledger: start_ledger={start} end_ledger={end}"
            ))
            .hint("end_ledger is inclusive; 0 follows the network"));
        }
        self.grpc().connection()
    }

    /// What must not change while a pipeline has checkpoints; the end may.
    pub(crate) fn fingerprint(&self) -> String {
        format!("token_transfers start_ledger={}", self.start_ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::{SourceConfig, SourceContext};

    fn config(more: &str) -> TokenTransfersConfig {
        let yaml = format!("{{ endpoint: 'http://h:1', {more} }}");
        serde_yaml_ng::from_str(&yaml).expect("a config")
    }

    #[test]
    fn a_range_that_cannot_be_is_refused() {
        for (more, fine) in [
            ("start_ledger: 5", true),
            ("start_ledger: 5, end_ledger: 5", true),
            ("start_ledger: 5, end_ledger: 4", false),
            ("start_ledger: 0", false),
            ("start_ledger: 5, token: ''", false),
            ("start_ledger: 5, tls: { ca: x }", false),
            ("start_ledger: 5, deadline: 20s", false),
            ("start_ledger: 5, deadline: 31s", true),
            ("start_ledger: 5, deadline: 20s, idle: 0s", true),
        ] {
            assert_eq!(config(more).validate().is_ok(), fine, "{more}");
        }
    }

    #[test]
    fn it_is_complete_but_for_the_endpoint_and_the_ledgers() {
        for (more, bounded) in [
            ("start_ledger: 5", false),
            ("start_ledger: 5, end_ledger: 9", true),
        ] {
            let source = SourceConfig::TokenTransfers(Box::new(config(more)));
            let format = source.default_format().expect("built in");
            assert!(source.validate(&format).is_ok());
            assert!(source.build(&format, &SourceContext::default()).is_ok());
            assert!(source.can_replay());
            assert_eq!(source.is_bounded(), bounded);
            assert!(
                source
                    .validate(&FormatConfig::Json(crate::formats::JsonConfig::default()))
                    .is_err()
            );
        }
        let schema = |more| {
            let format = config(more).format().expect("built in");
            format
                .declared_schema()
                .expect("it is known")
                .expect("types")
        };
        assert!(
            schema("start_ledger: 5")
                .index_of("amount_decimal")
                .is_err()
        );
        let more = schema("start_ledger: 5, decimal_amount: true");
        more.index_of("amount_decimal").expect("asked for");
        // The end may be changed between runs, the beginning may not.
        let print = |more| config(more).fingerprint();
        assert_eq!(
            print("start_ledger: 5"),
            print("start_ledger: 5, end_ledger: 9")
        );
        assert_ne!(print("start_ledger: 5"), print("start_ledger: 6"));
    }
}

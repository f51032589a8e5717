//! Sources: where events come from. Each variant of [`SourceConfig`] has its file.
//!
//! Adding a source: its file with a config struct, a variant here, and the matches of this file.
//! Nothing here reads the environment: what a source needs from it comes in a [`SourceContext`].

pub(crate) mod buffers;
pub mod file;
pub mod generator;
pub mod grpc;
pub mod http;
mod logged;
mod peek;
pub(crate) mod records;
pub mod replay;
pub mod stdin;
pub(crate) mod tag;
#[cfg(test)]
pub(crate) mod testing;
pub mod token_transfers;
pub(crate) mod wal;

use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use calve_engine::{Error, Result, Source, stores::Stores};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::{
    file::FileConfig,
    generator::GeneratorConfig,
    grpc::GrpcConfig,
    http::{Checks, HttpConfig},
    peek::{Peeked, peek},
    replay::ReplayConfig,
    stdin::StdinConfig,
    token_transfers::TokenTransfersConfig,
    wal::WalConfig,
};
use crate::{
    formats::{FormatConfig, JsonConfig, ProtobufConfig},
    one_of::{self, OneOf, or_default},
};

/// Where events come from.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = bare_names)]
pub enum SourceConfig {
    /// Files, local or in an object store.
    File(FileConfig),
    /// Standard input.
    Stdin(StdinConfig),
    /// Made-up events, the same for the same seed.
    Generator(GeneratorConfig),
    /// Events and watermarks of a file, by the clock that the file says.
    Replay(ReplayConfig),
    /// A server-streaming method of a gRPC server.
    Grpc(Box<GrpcConfig>),
    /// Token transfers of the Stellar network.
    TokenTransfers(Box<TokenTransfersConfig>),
    /// Events that are posted to calve.
    Http(Box<HttpConfig>),
}

/// What sources need from their surroundings.
#[derive(Clone, Debug, Default)]
pub struct SourceContext {
    /// The folder that relative paths are relative to; empty: the working directory.
    pub base: PathBuf,
    /// Opens URLs.
    pub stores: Stores,
    /// The folder of a write-ahead log, for sources that keep one and are not told where.
    pub wal: Option<PathBuf>,
    /// The pipeline's memory in bytes, of which a source takes a part.
    pub memory_bytes: Option<u64>,
    /// Decoders for sources that check events before they acknowledge them.
    pub checks: Checks,
}

impl SourceConfig {
    /// Its name in the pipeline file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Stdin(_) => "stdin",
            Self::Generator(_) => "generator",
            Self::Replay(_) => "replay",
            Self::Grpc(_) => "grpc",
            Self::TokenTransfers(_) => "token_transfers",
            Self::Http(_) => "http",
        }
    }

    /// Makes the source; nothing is opened yet.
    ///
    /// # Errors
    /// `Config` when the source cannot give this format.
    pub fn build(&self, format: &FormatConfig, context: &SourceContext) -> Result<Box<dyn Source>> {
        self.validate(format)?;
        Ok(match self {
            Self::File(config) => Box::new(file::FileSource::new(config, format, context)?),
            Self::Stdin(config) => {
                let source = stdin::StdinSource::new(config, format);
                match &config.wal {
                    Some(wal) => Box::new(logged::LoggedStdin::new(source, config, wal, context)?),
                    None => Box::new(source),
                }
            }
            Self::Generator(config) => Box::new(generator::GeneratorSource::new(config)?),
            Self::Replay(config) => Box::new(replay::ReplaySource::new(config, context)?),
            Self::Grpc(config) => {
                let described = match format {
                    FormatConfig::Protobuf(format) => format.pool.clone(),
                    _ => None,
                };
                let pool = match described {
                    Some(pool) => pool,
                    None => config.descriptors().load(&context.base)?,
                };
                Box::new(grpc::GrpcSource::new(config, &pool, "grpc", &context.base)?)
            }
            Self::TokenTransfers(config) => Box::new(config.source(&context.base)?),
            Self::Http(config) => Box::new(http::HttpSource::new(config, format, context)?),
        })
    }

    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// `Config`.
    pub fn validate(&self, format: &FormatConfig) -> Result<()> {
        if let (Self::File(_) | Self::Stdin(_) | Self::Http(_), FormatConfig::Protobuf(config)) =
            (self, format)
        {
            // Nobody else knows what the messages are.
            config.descriptor()?;
        }
        match self {
            Self::File(config) => config.validate(format),
            Self::Stdin(_) if !format.is_bytes() => Err(Error::config(format!(
                "stdin cannot be read as {}",
                format.name()
            ))
            .hint("pipe JSON or CSV, or read the file with the file source")),
            Self::Stdin(config) => config.validate(format),
            Self::Generator(config) => {
                let made = match format {
                    FormatConfig::Json(_) => true,
                    FormatConfig::Debezium(_) => config.is_debezium(),
                    _ => false,
                };
                if !made {
                    return Err(Error::config(format!(
                        "the generator does not make {}",
                        format.name()
                    ))
                    .hint("use `format: json`; `changes: { envelope: debezium }` makes debezium"));
                }
                config.validate()
            }
            Self::Replay(config) => {
                if !matches!(format, FormatConfig::Json(_) | FormatConfig::Debezium(_)) {
                    return Err(Error::config(format!(
                        "the events of a replay are JSON: format={}",
                        format.name()
                    ))
                    .hint("use `format: json`"));
                }
                config.validate()
            }
            Self::Grpc(_) | Self::TokenTransfers(_)
                if !matches!(format, FormatConfig::Protobuf(_)) =>
            {
                Err(Error::config(format!(
                    "the messages of a gRPC server are protobuf: source={} format={}",
                    self.name(),
                    format.name()
                ))
                .hint("use `format: protobuf`, or leave `format` out"))
            }
            Self::Grpc(config) => config.validate(),
            Self::TokenTransfers(config) => config.validate(),
            Self::Http(config) => config.validate(format),
        }
    }

    /// What its events look like, where the pipeline file does not say it.
    ///
    /// # Errors
    /// `Internal` when what is built in is wrong.
    pub fn default_format(&self) -> Result<FormatConfig> {
        Ok(match self {
            Self::Grpc(_) => FormatConfig::Protobuf(ProtobufConfig::default()),
            Self::TokenTransfers(config) => config.format()?,
            _ => FormatConfig::Json(JsonConfig::default()),
        })
    }

    /// Completes the format by what the source knows of its messages: a gRPC method's descriptors, be
    /// they in files or at the server. Called before a schema is asked for.
    ///
    /// # Errors
    /// `Config` for what is wrong in the descriptors, `Unavailable` when a server does not answer.
    pub async fn describe(&self, format: &mut FormatConfig, context: &SourceContext) -> Result<()> {
        let FormatConfig::Protobuf(format) = format else {
            return Ok(());
        };
        let (pool, message) = match self {
            Self::Grpc(config) => grpc::describe(config, &context.base).await?,
            Self::TokenTransfers(_) => TokenTransfersConfig::describe()?,
            _ => return Ok(()),
        };
        match &format.message {
            Some(named) if named != message.full_name() => {
                return Err(Error::config(format!(
                    "the method gives other messages than the format names: format={named} method={}",
                    message.full_name()
                ))
                .hint("leave `message` out"));
            }
            Some(_) => {}
            None => format.message = Some(message.full_name().to_owned()),
        }
        format.pool = Some(pool);
        Ok(())
    }

    /// Whether only a server knows what its messages are.
    pub fn asks_the_server(&self) -> bool {
        matches!(self, Self::Grpc(config) if config.reflection)
    }

    /// The folder of its write-ahead log, where the pipeline file names one.
    pub fn wal_path(&self) -> Option<&Path> {
        match self {
            Self::Http(config) => config.wal.path.as_deref(),
            Self::Stdin(config) => config.wal.as_ref()?.path.as_deref(),
            _ => None,
        }
    }

    /// Whether it promises to keep what it is given: then nobody may look at its events but the pipeline.
    pub fn acknowledges(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Stdin(config) => config.wal.is_some(),
            _ => false,
        }
    }

    /// What must not change while a pipeline has checkpoints.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::File(config) => config.fingerprint(),
            Self::Stdin(_) => "stdin".to_owned(),
            Self::Generator(config) => config.fingerprint(),
            Self::Replay(config) => config.fingerprint(),
            Self::Grpc(config) => config.fingerprint(),
            Self::TokenTransfers(config) => config.fingerprint(),
            Self::Http(_) => "http".to_owned(),
        }
    }

    /// Whether it ends by itself.
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::File(config) => !config.follow,
            Self::Stdin(_) | Self::Replay(_) => true,
            Self::Generator(config) => config.count.is_some(),
            Self::Grpc(config) => config.is_bounded(),
            Self::TokenTransfers(config) => config.end_ledger != 0,
            Self::Http(_) => false,
        }
    }

    /// Whether it can be read again from an offset, after a crash.
    pub fn can_replay(&self) -> bool {
        match self {
            Self::File(_)
            | Self::Generator(_)
            | Self::Replay(_)
            | Self::TokenTransfers(_)
            | Self::Http(_) => true,
            Self::Grpc(config) => !config.lossy,
            Self::Stdin(config) => config.wal.is_some(),
        }
    }

    /// The schema of its events, where it is known without reading any.
    ///
    /// # Errors
    /// `Config` when the configuration contradicts itself.
    pub fn known_schema(&self) -> Result<Option<SchemaRef>> {
        match self {
            Self::File(_)
            | Self::Stdin(_)
            | Self::Replay(_)
            | Self::Grpc(_)
            | Self::TokenTransfers(_)
            | Self::Http(_) => Ok(None),
            Self::Generator(config) if config.is_debezium() => Ok(None),
            Self::Generator(config) => config.schema().map(Some),
        }
    }

    /// Checks that what it names can be reached: that files are there, a store answers.
    ///
    /// # Errors
    /// `Config` when nothing is there, `Unavailable` when a server does not answer.
    pub async fn check_connect(&self, context: &SourceContext) -> Result<()> {
        match self {
            Self::File(config) => config.check_connect(context).await,
            Self::Stdin(_) | Self::Generator(_) => Ok(()),
            Self::Replay(config) => config.check(context),
            Self::Grpc(config) => grpc::check_connect(config, &context.base).await,
            Self::TokenTransfers(config) => {
                grpc::check_connect(&config.grpc(), &context.base).await
            }
            Self::Http(config) => http::check(config, context),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceTable {
    #[serde(default)]
    file: Option<FileConfig>,
    #[serde(default, deserialize_with = "or_default")]
    stdin: Option<StdinConfig>,
    #[serde(default, deserialize_with = "or_default")]
    generator: Option<GeneratorConfig>,
    #[serde(default)]
    replay: Option<ReplayConfig>,
    #[serde(default)]
    grpc: Option<GrpcConfig>,
    #[serde(default)]
    token_transfers: Option<TokenTransfersConfig>,
    #[serde(default, deserialize_with = "or_default")]
    http: Option<HttpConfig>,
}

impl OneOf for SourceConfig {
    type Table = SourceTable;
    const NAMES: &'static [&'static str] = &[
        "file",
        "stdin",
        "generator",
        "replay",
        "grpc",
        "token_transfers",
        "http",
    ];

    fn named(name: &str) -> Option<Self> {
        match name {
            "stdin" => Some(Self::Stdin(StdinConfig::default())),
            "generator" => Some(Self::Generator(GeneratorConfig::default())),
            "http" => Some(Self::Http(Box::default())),
            _ => None,
        }
    }

    fn given(table: SourceTable) -> Vec<Self> {
        let all = [
            table.file.map(Self::File),
            table.stdin.map(Self::Stdin),
            table.generator.map(Self::Generator),
            table.replay.map(Self::Replay),
            table.grpc.map(Box::new).map(Self::Grpc),
            table
                .token_transfers
                .map(Box::new)
                .map(Self::TokenTransfers),
            table.http.map(Box::new).map(Self::Http),
        ];
        all.into_iter().flatten().collect()
    }
}

impl<'de> Deserialize<'de> for SourceConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of::deserialize(deserializer)
    }
}

fn bare_names(schema: &mut schemars::Schema) {
    one_of::allow_names(schema, &["stdin", "generator", "http"]);
}

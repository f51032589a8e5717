//! Formats: what events look like, their schema, and the decoders that turn them into Arrow.
//!
//! Adding a format: its file, a variant here, and [`FormatConfig::decoder`]. Start with [`types`]
//! for the names of column types, [`infer`] for schemas that nobody declared.

pub mod columns;
pub mod csv;
pub mod debezium;
pub mod evolve;
pub mod infer;
pub mod json;
mod offsets;
pub mod protobuf;
mod rescue;
pub mod rows;
pub mod types;

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use calve_engine::{Decoder, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use self::evolve::Watch;
pub use self::{
    columns::{Columns, schema_from_json, schema_to_json, schema_to_yaml},
    debezium::DebeziumConfig,
    evolve::Evolve,
    offsets::OffsetsDecoder,
    protobuf::ProtobufConfig,
};
use crate::one_of::{self, OneOf, or_default};

/// What the events of a source look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = bare_names)]
pub enum FormatConfig {
    /// One JSON object a line.
    Json(JsonConfig),
    /// Changes of a table as Debezium writes them, as JSON.
    Debezium(DebeziumConfig),
    /// Protobuf messages of one type.
    Protobuf(ProtobufConfig),
    /// Comma-separated values, or separated by something else.
    Csv(CsvConfig),
    /// Apache Parquet files.
    Parquet(ParquetConfig),
    /// Arrow IPC, file or stream format.
    Arrow(ArrowConfig),
}

/// One JSON object a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonConfig {
    /// The columns to read; without it they are inferred from the first events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

/// Comma-separated values. An empty field is null. A field in quotes may hold line ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CsvConfig {
    /// The columns to read; without it they are inferred from the header and the first events.
    /// With a header they are found by name; without one they are the fields in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// The first line of each file names its columns.
    pub header: bool,
    /// What separates fields; one ASCII character.
    pub delimiter: char,
    /// What encloses fields that hold delimiters or line ends; doubled inside. One ASCII character.
    pub quote: char,
    /// What makes the next character literal inside quotes; one ASCII character. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escape: Option<char>,
}

impl Default for CsvConfig {
    fn default() -> Self {
        Self {
            columns: None,
            header: true,
            delimiter: ',',
            quote: '"',
            escape: None,
        }
    }
}

/// Apache Parquet files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetConfig {
    /// The columns to read, cast where their type differs; without it those of the first file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

/// Arrow IPC, file or stream format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ArrowConfig {
    /// The columns to read, cast where their type differs; without it those of the first file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

impl FormatConfig {
    /// Its name in the pipeline file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::Debezium(_) => "debezium",
            Self::Protobuf(_) => "protobuf",
            Self::Csv(_) => "csv",
            Self::Parquet(_) => "parquet",
            Self::Arrow(_) => "arrow",
        }
    }

    /// Whether its events are records in a stream of bytes: lines, or messages behind their lengths.
    pub fn is_bytes(&self) -> bool {
        match self {
            Self::Json(_) | Self::Debezium(_) | Self::Csv(_) | Self::Protobuf(_) => true,
            Self::Parquet(_) | Self::Arrow(_) => false,
        }
    }

    fn columns(&self) -> Option<&Columns> {
        match self {
            Self::Json(c) => c.columns.as_ref(),
            Self::Debezium(c) => c.columns.as_ref(),
            Self::Protobuf(_) => None,
            Self::Csv(c) => c.columns.as_ref(),
            Self::Parquet(c) => c.columns.as_ref(),
            Self::Arrow(c) => c.columns.as_ref(),
        }
    }

    /// The schema of the rows when `columns` or a descriptor declares it; none when it is to be
    /// inferred, or asked for by the source.
    pub fn declared_schema(&self) -> Option<Result<SchemaRef>> {
        if let Self::Debezium(config) = self {
            return config.declared_schema();
        }
        if let Self::Protobuf(config) = self {
            return config.is_described().then(|| config.schema());
        }
        Some(self.columns()?.schema())
    }

    /// Asks for metadata that a reader of the rows needs: see [`DebeziumConfig::with_metadata`].
    pub fn with_metadata(&mut self, paths: &[String]) {
        if let Self::Debezium(config) = self {
            config.with_metadata(paths);
        }
    }

    /// Checks that the metadata among `order_by` has an order, by the schema of the rows where that is known:
    /// see [`DebeziumConfig::check_order`].
    ///
    /// # Errors
    /// `Config`.
    pub fn check_order(&self, order_by: &[String], rows: Option<&Schema>) -> Result<()> {
        match self {
            Self::Debezium(config) => config.check_order(order_by, rows),
            _ => Ok(()),
        }
    }

    /// Checks what can be checked without I/O, but for the files of descriptors.
    ///
    /// # Errors
    /// `Config`.
    pub fn validate(&self) -> Result<()> {
        if let Self::Protobuf(config) = self {
            config.validate()?;
        }
        if let Self::Csv(csv) = self {
            csv.validate()?;
        }
        if let Self::Debezium(config) = self {
            config.validate()?;
        }
        match self.declared_schema() {
            Some(schema) => self.decoder(schema?).map(|_| ()),
            None => Ok(()),
        }
    }

    /// What must not change while a pipeline has checkpoints, apart from the schema.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Csv(c) => format!(
                "csv header={} delimiter={:?} quote={:?} escape={:?}",
                c.header, c.delimiter, c.quote, c.escape
            ),
            Self::Debezium(config) => config.fingerprint(),
            Self::Protobuf(config) => config.fingerprint(),
            other => other.name().to_owned(),
        }
    }

    /// A decoder for one batcher.
    ///
    /// # Errors
    /// `Config` when the format cannot hold a type of the schema.
    pub fn decoder(&self, schema: SchemaRef) -> Result<Box<dyn Decoder>> {
        self.decoder_with(schema, None, None)
    }

    /// The same, which looks whether events have more than the schema; not where columns are declared,
    /// since what is not named there is not wanted. `rescued` names the column for what does not fit.
    ///
    /// # Errors
    /// As [`FormatConfig::decoder`]; `Config` where the format cannot rescue.
    pub fn decoder_with(
        &self,
        schema: SchemaRef,
        evolve: Option<Evolve>,
        rescued: Option<&str>,
    ) -> Result<Box<dyn Decoder>> {
        let watch = evolve
            .filter(|_| self.columns().is_none())
            .map(|evolve| Watch::new(self.clone(), &schema, evolve));
        if let Some(column) = rescued {
            if !matches!(self, Self::Json(_)) {
                return Err(Error::config(format!(
                    "what does not fit cannot be rescued: format={}",
                    self.name()
                ))
                .hint("leave `schema.rescued` out: it is for `format: json`"));
            }
            let of = Arc::clone(&schema);
            let watch = watch
                .unwrap_or_else(|| Watch::new(self.clone(), &of, Evolve::STRICT))
                .rescuing();
            let inner = |schema| Ok(json::JsonDecoder::new(schema)?.watched(watch));
            return Ok(Box::new(rescue::RescuingDecoder::new(
                schema, column, inner,
            )?));
        }
        Ok(match self {
            Self::Json(_) => {
                let decoder = json::JsonDecoder::new(schema)?;
                Box::new(with(decoder, watch, json::JsonDecoder::watched))
            }
            Self::Debezium(config) => {
                let decoder = debezium::DebeziumDecoder::new(config, schema)?;
                // A strict one leaves out what it does not know, and says so.
                let watch = watch.filter(|_| evolve != Some(Evolve::STRICT));
                Box::new(with(decoder, watch, debezium::DebeziumDecoder::watched))
            }
            // Descriptors say what there is.
            Self::Protobuf(config) => Box::new(protobuf::ProtobufDecoder::new(config, &schema)?),
            Self::Csv(config) => {
                let decoder = csv::CsvDecoder::new(config, schema)?;
                Box::new(with(decoder, watch, csv::CsvDecoder::watched))
            }
            Self::Parquet(_) | Self::Arrow(_) => {
                let decoder = rows::RowsDecoder::new(schema);
                Box::new(with(decoder, watch, rows::RowsDecoder::watched))
            }
        })
    }
}

fn with<D>(decoder: D, watch: Option<Watch>, add: fn(D, Watch) -> D) -> D {
    match watch {
        Some(watch) => add(decoder, watch),
        None => decoder,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FormatTable {
    #[serde(default, deserialize_with = "or_default")]
    json: Option<JsonConfig>,
    #[serde(default, deserialize_with = "or_default")]
    debezium: Option<DebeziumConfig>,
    #[serde(default, deserialize_with = "or_default")]
    protobuf: Option<ProtobufConfig>,
    #[serde(default, deserialize_with = "or_default")]
    csv: Option<CsvConfig>,
    #[serde(default, deserialize_with = "or_default")]
    parquet: Option<ParquetConfig>,
    #[serde(default, deserialize_with = "or_default")]
    arrow: Option<ArrowConfig>,
}

impl OneOf for FormatConfig {
    type Table = FormatTable;
    const NAMES: &'static [&'static str] =
        &["json", "csv", "parquet", "arrow", "debezium", "protobuf"];

    fn named(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json(JsonConfig::default())),
            "debezium" => Some(Self::Debezium(DebeziumConfig::default())),
            "protobuf" => Some(Self::Protobuf(ProtobufConfig::default())),
            "csv" => Some(Self::Csv(CsvConfig::default())),
            "parquet" => Some(Self::Parquet(ParquetConfig::default())),
            "arrow" => Some(Self::Arrow(ArrowConfig::default())),
            _ => None,
        }
    }

    fn given(table: FormatTable) -> Vec<Self> {
        let all = [
            table.json.map(Self::Json),
            table.debezium.map(Self::Debezium),
            table.protobuf.map(Self::Protobuf),
            table.csv.map(Self::Csv),
            table.parquet.map(Self::Parquet),
            table.arrow.map(Self::Arrow),
        ];
        all.into_iter().flatten().collect()
    }
}

impl<'de> Deserialize<'de> for FormatConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of::deserialize(deserializer)
    }
}

/// How many bytes at the beginning of `text`, which is at `offset` of its source partition, are a
/// UTF-8 byte-order mark: three at offset 0, if at all.
pub(crate) fn mark_bytes(text: &[u8], offset: u64) -> usize {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    if offset == 0 && text.starts_with(MARK) {
        MARK.len()
    } else {
        0
    }
}

fn bare_names(schema: &mut schemars::Schema) {
    one_of::allow_names(schema, FormatConfig::NAMES);
}

#[cfg(test)]
mod tests;

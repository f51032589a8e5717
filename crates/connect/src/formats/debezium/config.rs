//! The settings of the format, and the schema of its rows.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use calve_engine::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::envelope::KEYS;
use crate::formats::{
    columns::Columns,
    json::wire::{How, Wire},
};

/// The column of the operation: `c` (create), `u` (update), `d` (delete), `r` (read, by a snapshot)
/// or `t` (truncate).
pub const OP: &str = "_op";

/// Changes of a table as Debezium writes them, one JSON object a line, with or without their schema.
/// Each becomes a row: the columns of the table, `_op`, and what `metadata` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DebeziumConfig {
    /// The columns of the table, and behind `_op` metadata with its types; without it they are inferred from the first changes, or from the
    /// schema that they carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// What else of a change becomes a column, by its path: `source.lsn`, `ts_ms`, `source.pos`, …
    /// The column has the path as its name.
    pub metadata: Vec<String>,
    /// The changes are rows, as the transform ExtractNewRecordState leaves them, with `__op` or
    /// `__deleted` among their fields.
    pub unwrapped: bool,
    /// What integers in columns of times mean, where changes carry no schema.
    pub time: TimeEncoding,
    /// What strings in columns of bytes are, where changes carry no schema.
    pub binary: BinaryEncoding,
    /// What strings in columns of decimals are, where changes carry no schema.
    pub decimal: DecimalEncoding,
}

/// The connector's `time.precision.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeEncoding {
    /// They count the unit of the column's type. Text in ISO 8601 is read too.
    #[default]
    Adaptive,
    /// They are milliseconds, whatever the column's type.
    Connect,
    /// Text in ISO 8601, as with `isostring`; integers are read as with `adaptive`.
    Isostring,
}

/// The connector's `binary.handling.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BinaryEncoding {
    /// Base64; also that of `bytes`.
    #[default]
    Base64,
    /// Base64 in the alphabet that is safe in URLs.
    #[serde(rename = "base64url", alias = "base64-url-safe")]
    Base64Url,
    /// Hexadecimal digits.
    Hex,
}

/// The connector's `decimal.handling.mode`. JSON numbers are read in each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecimalEncoding {
    /// Base64 of the unscaled number.
    #[default]
    Precise,
    /// Digits.
    String,
    /// JSON numbers.
    Double,
}

impl DebeziumConfig {
    /// Asks for metadata that a reader of the rows needs, such as the columns that order them. What
    /// is no path of metadata, or a column of the table by declaration, is passed over. `metadata` names
    /// all metadata then, also what is declared behind [`OP`].
    pub fn with_metadata(&mut self, paths: &[String]) {
        *self = self.complete();
        for path in paths {
            let first = path.split('.').next().unwrap_or_default();
            let known = if path.len() == first.len() {
                matches!(first, "ts_ms" | "ts_us" | "ts_ns")
            } else {
                matches!(first, "source" | "transaction")
            };
            // No column of a table has a dot in its name; `ts_ms` may be one.
            let is_column = !path.contains('.') && self.table_columns().any(|name| name == path);
            if known && !is_column && !self.metadata.contains(path) {
                self.metadata.push(path.clone());
            }
        }
    }

    /// Names of the declared columns of the table: those before [`OP`].
    fn table_columns(&self) -> impl Iterator<Item = &str> {
        let declared = self.columns.iter().flat_map(|columns| &columns.0);
        let names = declared.map(|(name, _)| name.as_str());
        names.take_while(|name| *name != OP)
    }

    /// The settings with all metadata: what is declared behind [`OP`], as inference prints it, is
    /// asked for too.
    pub(super) fn complete(&self) -> Self {
        let mut all = self.clone();
        let declared = self.columns.iter().flat_map(|columns| &columns.0);
        for (name, _) in declared.skip_while(|(name, _)| name != OP).skip(1) {
            if !all.metadata.contains(name) {
                all.metadata.push(name.clone());
            }
        }
        all
    }

    /// Checks what can be checked without the schema.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn validate(&self) -> Result<()> {
        for (n, path) in self.metadata.iter().enumerate() {
            let wrong = |what: &str| {
                Err(Error::config(format!("metadata {what}: path={path}"))
                    .hint("name fields of the change, such as source.lsn, source.pos, ts_ms"))
            };
            if path.split('.').any(str::is_empty) {
                return wrong("has an empty name");
            }
            let first = path.split('.').next().unwrap_or_default();
            if KEYS.contains(&first) || ["source", OP].contains(&path.as_str()) {
                return wrong("cannot be a column");
            }
            if self.metadata[..n].contains(path) {
                return wrong("is there twice");
            }
            let inside = |other: &String| other.starts_with(&format!("{path}."));
            if self.metadata.iter().any(inside) {
                return wrong("is asked for whole and in part");
            }
        }
        Ok(())
    }

    /// Checks that changes can be ordered by what is asked of the metadata: text is compared letter by letter,
    /// so that "999" lies above "1000", and newer changes would be dropped. Without `rows` by the types that
    /// are known.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn check_order(&self, order_by: &[String], rows: Option<&Schema>) -> Result<()> {
        let all = self.complete();
        let is_text = |path: &String| {
            let of = match rows {
                Some(rows) => rows.field_with_name(path).ok()?.data_type().clone(),
                None => known_type(path)?,
            };
            let text = [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View];
            Some(text.contains(&of))
        };
        let wrong = order_by.iter().find(|path| {
            let rises = RISING_TEXTS.contains(&path.as_str());
            all.metadata.contains(path) && !rises && is_text(path) == Some(true)
        });
        let Some(path) = wrong else { return Ok(()) };
        let hint = match path.as_str() {
            "source.sequence" => {
                "order by source.lsn: of the changes of one row it rises as they were committed"
            }
            "source.gtid" => "order by [source.file, source.pos, source.row]",
            "source.scn" | "source.commit_scn" | "source.start_scn" => {
                "it is text in the schema that was declared, or stored by an earlier version: declare it as \
                 decimal(38, 0), or start over with `calve checkpoint reset FILE`"
            }
            _ => {
                "order by a number, such as source.lsn, source.pos, source.scn or ts_ms, or declare its \
                 type behind `_op` under `columns`, where it is one"
            }
        };
        Err(Error::config(format!(
            "changes cannot be ordered by metadata that is text: changes.order_by={path}"
        ))
        .hint(hint))
    }

    /// The schema of the rows, when the columns are declared. A declared column that is named as a
    /// path of metadata gives that its type.
    pub(crate) fn declared_schema(&self) -> Option<Result<SchemaRef>> {
        let declared = self.columns.as_ref()?;
        let all = self.complete();
        Some(all.validate().and_then(|()| {
            let declared = declared.schema()?;
            let fields = declared.fields();
            if let Some(field) = fields.iter().find(|field| !field.is_nullable()) {
                return Err(Error::config(format!(
                    "a column of changes cannot be `not null`: column={}",
                    field.name()
                ))
                .hint("a delete may hold nothing but its key: leave `not null` out"));
            }
            Ok(all.schema_of(fields.iter().map(|field| field.as_ref().clone()), |_| None))
        }))
    }

    /// The schema of the rows: the table's columns, the operation, metadata of the types that are
    /// among the columns, known, or inferred.
    pub(super) fn schema_of(
        &self,
        columns: impl Iterator<Item = Field>,
        inferred: impl Fn(&str) -> Option<DataType>,
    ) -> SchemaRef {
        let (named, mut fields): (Vec<Field>, Vec<Field>) =
            columns.partition(|field| self.is_extra(field.name()));
        let op = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        fields.push(Field::new(OP, op, true));
        fields.extend(self.metadata.iter().map(|path| {
            let declared = named.iter().find(|field| field.name() == path);
            let of = match declared {
                Some(field) => field.data_type().clone(),
                None => known_type(path)
                    .or_else(|| inferred(path))
                    .unwrap_or(DataType::Utf8),
            };
            Field::new(path, of, true)
        }));
        Arc::new(Schema::new(fields))
    }

    /// Whether a column of the rows is none of the table.
    pub(in crate::formats) fn is_extra(&self, name: &str) -> bool {
        name == OP || self.metadata.iter().any(|path| path == name)
    }

    /// What must not change while a pipeline has checkpoints, apart from the schema.
    pub(crate) fn fingerprint(&self) -> String {
        format!(
            "debezium unwrapped={} time={:?} binary={:?} decimal={:?}",
            self.unwrapped, self.time, self.binary, self.decimal
        )
        .to_lowercase()
    }

    /// How values of a type are written where no schema says it.
    pub(super) fn wire(&self, of: &DataType) -> Wire {
        let inside = match of {
            DataType::Struct(fields) => fields.iter().map(|f| self.wire(f.data_type())).collect(),
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                vec![self.wire(item.data_type())]
            }
            DataType::Map(entries, _) => match entries.data_type() {
                DataType::Struct(pair) => pair.iter().map(|f| self.wire(f.data_type())).collect(),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let how = match of {
            DataType::Timestamp(..) | DataType::Time32(_) | DataType::Time64(_)
                if self.time == TimeEncoding::Connect =>
            {
                How::Unit(TimeUnit::Millisecond)
            }
            DataType::Date32 | DataType::Time32(_) | DataType::Time64(_)
                if self.time == TimeEncoding::Isostring =>
            {
                How::Iso
            }
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => self.octets(),
            DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..)
                if self.decimal == DecimalEncoding::Precise =>
            {
                How::Unscaled(None)
            }
            _ => How::Plain,
        };
        Wire { how, inside }
    }

    /// How bytes are written that the connector has made strings of.
    pub(super) fn octets(&self) -> How {
        match self.binary {
            BinaryEncoding::Base64 => How::Base64,
            BinaryEncoding::Base64Url => How::Base64Url,
            BinaryEncoding::Hex => How::Plain,
        }
    }
}

/// The type of a number of Oracle's log, which the connector writes as text since it may have more digits
/// than 64 bits.
const LOG_NUMBER: DataType = DataType::Decimal128(38, 0);

/// Metadata that is text and rises as text: names of files and numbers of logs of one width each.
const RISING_TEXTS: [&str; 3] = ["source.file", "source.commit_lsn", "source.change_lsn"];

/// The type of metadata that connectors agree on.
fn known_type(path: &str) -> Option<DataType> {
    const LOG_NUMBERS: [&str; 3] = ["source.scn", "source.commit_scn", "source.start_scn"];
    const NUMBERS: [&str; 19] = [
        "ts_ms",
        "ts_us",
        "ts_ns",
        "source.ts_ms",
        "source.ts_us",
        "source.ts_ns",
        "source.lsn",
        "source.xmin",
        "source.txId",
        "source.pos",
        "source.row",
        "source.server_id",
        "source.thread",
        "source.ord",
        "source.event_serial_no",
        "source.redo_thread",
        "source.ssn",
        "transaction.total_order",
        "transaction.data_collection_order",
    ];
    const TEXTS: [&str; 13] = [
        "source.version",
        "source.connector",
        "source.name",
        "source.db",
        "source.schema",
        "source.table",
        "source.collection",
        "source.snapshot",
        "source.sequence",
        "source.file",
        "source.gtid",
        "source.commit_lsn",
        "source.change_lsn",
    ];
    if LOG_NUMBERS.contains(&path) {
        return Some(LOG_NUMBER);
    }
    if NUMBERS.contains(&path) {
        return Some(DataType::Int64);
    }
    (TEXTS.contains(&path) || path == "transaction.id").then_some(DataType::Utf8)
}

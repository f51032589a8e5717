//! The schema of events that nobody declared, from the first of them.
//!
//! JSON: columns in the order of first appearance; whole numbers are bigint (uint64 beyond it,
//! without negative ones), numbers with a fraction double, the rest boolean, varchar, list, struct.
//! Only nulls: varchar. An empty object: map<varchar, varchar>. Values of different kinds in one
//! column: varchar, and those that are not strings go to the rejects, unless `columns` says better.
//! Every column is nullable. The same events always give the same schema.
//!
//! CSV: the names of the header (`column_1`, … without one), the types by arrow-csv's inference.

use std::{fmt, sync::Arc};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use calve_engine::{Error, Payload, RawBatch, Result};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess};

use super::{FormatConfig, debezium, evolve::known, mark_bytes, types};

/// Events that are looked at.
pub const SAMPLE_EVENTS: usize = 20_480;

/// The schema of the first events of a source.
///
/// # Errors
/// `Config` when there is nothing to infer from, or a CSV header cannot be read; `Schema` when a
/// column's type cannot be stored.
pub fn infer(format: &FormatConfig, first: &[RawBatch]) -> Result<SchemaRef> {
    let schema = match format {
        FormatConfig::Json(_) => infer_json(first)?,
        FormatConfig::Debezium(config) => debezium::infer(config, first)?.as_ref().clone(),
        FormatConfig::Csv(config) => {
            let text = first.iter().find_map(|raw| match &raw.payload {
                Payload::Bytes(text) if raw.range.from == 0 && !text.is_empty() => Some(text),
                _ => None,
            });
            let text = text.ok_or_else(nothing)?;
            csv_types(config.infer(text, SAMPLE_EVENTS)?)
        }
        // Messages do not say what they are.
        FormatConfig::Protobuf(config) => return config.schema(),
        FormatConfig::Parquet(_) | FormatConfig::Arrow(_) => infer_rows(first)?,
    };
    if schema.fields().is_empty() {
        return Err(nothing());
    }
    // What is inferred is stored: it must survive that.
    super::Columns::of(&schema)?.schema()
}

/// The fields of one batch whose types are known; none: it has no events.
///
/// # Errors
/// As [`infer`], but for a batch without events.
pub(super) fn known_fields(format: &FormatConfig, raw: &RawBatch) -> Result<Option<Fields>> {
    let first = std::slice::from_ref(raw);
    let fields = match format {
        FormatConfig::Json(_) => match kind_of_json(first, usize::MAX)?.and_then(Kind::known) {
            Some(Kind::Struct(fields)) => fields.into_iter().map(into_field).collect(),
            _ => return Ok(None),
        },
        FormatConfig::Debezium(config) => debezium::known_fields(config, first)?,
        FormatConfig::Protobuf(_) => return Ok(None),
        FormatConfig::Csv(config) => match &raw.payload {
            Payload::Bytes(text) if raw.range.from == 0 && config.header => {
                csv_types(config.infer(text, SAMPLE_EVENTS)?).fields
            }
            _ => return Ok(None),
        },
        FormatConfig::Parquet(_) | FormatConfig::Arrow(_) => infer_rows(first)?.fields,
    };
    Ok(Some(
        fields
            .iter()
            .filter(|field| known(field))
            .cloned()
            .collect(),
    ))
}

/// The columns that identify a row, by the keys of the first events of a source; none: they carry no
/// keys.
///
/// # Errors
/// `Config` when keys differ in their columns.
pub fn key_columns(format: &FormatConfig, first: &[RawBatch]) -> Result<Option<Vec<String>>> {
    match format {
        FormatConfig::Debezium(_) => debezium::key_columns(first),
        FormatConfig::Json(_)
        | FormatConfig::Protobuf(_)
        | FormatConfig::Csv(_)
        | FormatConfig::Parquet(_)
        | FormatConfig::Arrow(_) => Ok(None),
    }
}

fn nothing() -> Error {
    Error::config("there are no events to infer the columns from")
        .hint("declare them: `columns: {name: type, …}` under the format")
}

fn csv_types(schema: Schema) -> Schema {
    let fields = schema.fields().iter().enumerate().map(|(i, field)| {
        let data_type = match field.data_type() {
            DataType::Null => DataType::Utf8,
            other => other.clone(),
        };
        let name = if field.name().is_empty() {
            format!("column_{}", i + 1)
        } else {
            field.name().clone()
        };
        Field::new(name, data_type, true)
    });
    Schema::new(fields.collect::<Vec<_>>())
}

fn infer_rows(first: &[RawBatch]) -> Result<Schema> {
    let mut fields: Vec<Field> = Vec::new();
    for raw in first {
        let Payload::Rows(rows) = &raw.payload else {
            return Err(Error::internal("a source of rows gave text"));
        };
        for field in rows.schema().fields() {
            if !fields.iter().any(|known| known.name() == field.name()) {
                fields.push(Field::new(
                    field.name(),
                    field.data_type().clone(),
                    field.is_nullable(),
                ));
            }
        }
    }
    let seen: Vec<_> = first
        .iter()
        .filter_map(|raw| match &raw.payload {
            Payload::Rows(rows) => Some(rows.schema()),
            Payload::Bytes(_) | Payload::Messages(_) => None,
        })
        .collect();
    let everywhere = |name: &str| {
        seen.iter()
            .all(|schema| schema.field_with_name(name).is_ok_and(|f| !f.is_nullable()))
    };
    let fields = fields.into_iter().map(|field| {
        let nullable = !everywhere(field.name());
        field.with_nullable(nullable)
    });
    Ok(Schema::new(fields.collect::<Vec<_>>()))
}

fn infer_json(first: &[RawBatch]) -> Result<Schema> {
    match kind_of_json(first, SAMPLE_EVENTS)? {
        Some(Kind::Struct(fields)) => Ok(Schema::new(
            fields.into_iter().map(into_field).collect::<Vec<_>>(),
        )),
        _ => Err(nothing()),
    }
}

/// What is known of the first `most` events; none: there are none.
fn kind_of_json(first: &[RawBatch], most: usize) -> Result<Option<Kind>> {
    let mut event = Kind::Unknown;
    let mut events = 0;
    'batches: for raw in first {
        let Payload::Bytes(text) = &raw.payload else {
            return Err(Error::internal("a source of text gave rows"));
        };
        for line in text[mark_bytes(text, raw.range.from)..].split(|b| *b == b'\n') {
            let line = line.trim_ascii();
            // What is not an object will be rejected; it says nothing about the rest.
            if !line.starts_with(b"{") {
                continue;
            }
            let Some(kind) = std::str::from_utf8(line).ok().and_then(Kind::of) else {
                continue;
            };
            event = event.merge(kind);
            events += 1;
            if events == most {
                break 'batches;
            }
        }
    }
    Ok((events > 0).then_some(event))
}

fn into_field((name, kind): (String, Kind)) -> Field {
    Field::new(name, kind.data_type(), true)
}

/// What is known of a value after some events.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Unknown,
    Bool,
    Int {
        negative: bool,
        big: bool,
    },
    Float,
    Text,
    List(Box<Kind>),
    Struct(Vec<(String, Kind)>),
    /// Different kinds.
    Mixed,
}

impl Kind {
    /// Of one value; none where it is not JSON.
    pub(super) fn of(text: &str) -> Option<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let kind = KindSeed.deserialize(&mut json).ok()?;
        json.end().is_ok().then_some(kind)
    }

    /// Of two values.
    pub(super) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, kind) | (kind, Self::Unknown) => kind,
            (
                Self::Int {
                    negative: a,
                    big: b,
                },
                Self::Int {
                    negative: c,
                    big: d,
                },
            ) => Self::Int {
                negative: a || c,
                big: b || d,
            },
            (Self::Float | Self::Int { .. }, Self::Float) | (Self::Float, Self::Int { .. }) => {
                Self::Float
            }
            (Self::List(a), Self::List(b)) => Self::List(Box::new(a.merge(*b))),
            (Self::Struct(mut fields), Self::Struct(more)) => {
                for (at, (name, kind)) in more.into_iter().enumerate() {
                    // Events mostly have their keys in one order: look there first.
                    let found = match fields.get(at) {
                        Some((same, _)) if *same == name => Some(at),
                        _ => fields.iter().position(|(same, _)| *same == name),
                    };
                    match found {
                        Some(i) => {
                            let before = std::mem::replace(&mut fields[i].1, Self::Unknown);
                            fields[i].1 = before.merge(kind);
                        }
                        None => fields.push((name, kind)),
                    }
                }
                Self::Struct(fields)
            }
            (a, b) if a == b => a,
            _ => Self::Mixed,
        }
    }

    /// Without that of which nothing but nulls, empty lists and empty objects has come.
    pub(super) fn known(self) -> Option<Self> {
        match self {
            Self::Unknown => None,
            Self::List(item) => item.known().map(|item| Self::List(Box::new(item))),
            Self::Struct(fields) => {
                let known = |(name, kind): (String, Self)| Some((name, kind.known()?));
                let fields: Vec<_> = fields.into_iter().filter_map(known).collect();
                (!fields.is_empty()).then_some(Self::Struct(fields))
            }
            other => Some(other),
        }
    }

    /// The type of a column of such values.
    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int { big: false, .. } => DataType::Int64,
            Self::Int {
                negative: false,
                big: true,
            } => DataType::UInt64,
            Self::Int {
                negative: true,
                big: true,
            }
            | Self::Float => DataType::Float64,
            Self::Unknown | Self::Text | Self::Mixed => DataType::Utf8,
            Self::List(item) => {
                DataType::List(Arc::new(Field::new("item", item.data_type(), true)))
            }
            Self::Struct(fields) if fields.is_empty() => {
                types::map_of(DataType::Utf8, Field::new("value", DataType::Utf8, true))
            }
            Self::Struct(fields) => {
                DataType::Struct(fields.into_iter().map(into_field).collect::<Fields>())
            }
        }
    }
}

struct KindSeed;

impl<'de> DeserializeSeed<'de> for KindSeed {
    type Value = Kind;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for KindSeed {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Bool)
    }

    fn visit_i64<E>(self, n: i64) -> Result<Kind, E> {
        Ok(Kind::Int {
            negative: n < 0,
            big: false,
        })
    }

    fn visit_u64<E>(self, n: u64) -> Result<Kind, E> {
        Ok(Kind::Int {
            negative: false,
            big: i64::try_from(n).is_err(),
        })
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Float)
    }

    fn visit_str<E>(self, _: &str) -> Result<Kind, E> {
        Ok(Kind::Text)
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Unknown)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
        let mut kind = Kind::Unknown;
        while let Some(item) = items.next_element_seed(KindSeed)? {
            kind = kind.merge(item);
        }
        Ok(Kind::List(Box::new(kind)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut fields: Vec<(String, Kind)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let kind = map.next_value_seed(KindSeed)?;
            match fields.iter_mut().find(|(known, _)| *known == name) {
                Some((_, before)) => {
                    let known = std::mem::replace(before, Kind::Unknown);
                    *before = known.merge(kind);
                }
                None => fields.push((name, kind)),
            }
        }
        Ok(Kind::Struct(fields))
    }
}

#[cfg(test)]
#[path = "infer_tests.rs"]
mod tests;

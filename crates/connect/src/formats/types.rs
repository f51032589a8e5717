//! Names of column types: Arrow's and SQL's, as in `columns: {ts: bigint, tags: list<varchar>}`.
//!
//! Invariant: [`parse`] of what [`name`] printed gives the same type, so that an inferred schema can
//! be shown, pasted into a pipeline file, and stored with the checkpoint.

use std::{fmt::Write as _, sync::Arc};

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use calve_engine::{Error, Result};

mod parser;

const UTC: &str = "UTC";

/// Names without parameters; the first name of a type is the one that is printed.
const SIMPLE: &[(&str, DataType)] = &[
    ("boolean", DataType::Boolean),
    ("bool", DataType::Boolean),
    ("tinyint", DataType::Int8),
    ("int8", DataType::Int8),
    ("smallint", DataType::Int16),
    ("int16", DataType::Int16),
    ("int", DataType::Int32),
    ("integer", DataType::Int32),
    ("int32", DataType::Int32),
    ("bigint", DataType::Int64),
    ("long", DataType::Int64),
    ("int64", DataType::Int64),
    ("uint8", DataType::UInt8),
    ("uint16", DataType::UInt16),
    ("uint32", DataType::UInt32),
    ("uint64", DataType::UInt64),
    ("float16", DataType::Float16),
    ("float", DataType::Float32),
    ("real", DataType::Float32),
    ("float32", DataType::Float32),
    ("double", DataType::Float64),
    ("double precision", DataType::Float64),
    ("float64", DataType::Float64),
    ("varchar", DataType::Utf8),
    ("text", DataType::Utf8),
    ("string", DataType::Utf8),
    ("utf8", DataType::Utf8),
    ("large_string", DataType::LargeUtf8),
    ("large_utf8", DataType::LargeUtf8),
    ("binary", DataType::Binary),
    ("bytea", DataType::Binary),
    ("varbinary", DataType::Binary),
    ("blob", DataType::Binary),
    ("large_binary", DataType::LargeBinary),
    ("date", DataType::Date32),
    ("date32", DataType::Date32),
    ("date64", DataType::Date64),
];

/// Names that take parameters or need more than one word, for suggestions.
const OTHER: &[&str] = &[
    "decimal",
    "numeric",
    "time",
    "timestamp",
    "timestamptz",
    "dictionary",
    "dict",
    "list",
    "array",
    "map",
    "struct",
    "fixed_size_binary",
    "fixed_size_list",
    "large_list",
];

/// Type and nullability of a column, from its declaration.
///
/// # Errors
/// `Config`, with the column and the nearest type name.
pub fn parse(column: &str, text: &str) -> Result<Field> {
    parser::parse(column, text).map_err(|problem| {
        let error = Error::config(format!(
            "column {column}: {} in type `{text}`",
            problem.message
        ));
        match problem.hint {
            Some(hint) => error.hint(hint),
            None => error.hint(
                "types are for example bigint, double, varchar, timestamp(ms), timestamptz, \
                 decimal(10, 2), list<varchar>, map<varchar, int>, struct<a: int, b: varchar>",
            ),
        }
    })
}

/// The declaration of a column: its type, and `not null` where it is not nullable.
pub fn declaration(field: &Field) -> Option<String> {
    let mut text = name(field.data_type())?;
    if !field.is_nullable() {
        text.push_str(" not null");
    }
    Some(text)
}

/// The name of a type; none for types that calve does not take (unions, run-end encodings, …).
pub fn name(data_type: &DataType) -> Option<String> {
    if let Some((simple, _)) = SIMPLE.iter().find(|(_, simple)| simple == data_type) {
        return Some((*simple).to_owned());
    }
    Some(match data_type {
        DataType::Utf8View => "varchar".to_owned(),
        DataType::BinaryView => "binary".to_owned(),
        DataType::Decimal32(p, s) => format!("decimal32({p}, {s})"),
        DataType::Decimal64(p, s) => format!("decimal64({p}, {s})"),
        DataType::Decimal128(p, s) => format!("decimal({p}, {s})"),
        DataType::Decimal256(p, s) => format!("decimal256({p}, {s})"),
        DataType::Time32(TimeUnit::Second) => "time(s)".to_owned(),
        DataType::Time32(_) => "time(ms)".to_owned(),
        DataType::Time64(TimeUnit::Nanosecond) => "time(ns)".to_owned(),
        DataType::Time64(_) => "time".to_owned(),
        DataType::Timestamp(unit, None) => format!("timestamp({})", unit_name(*unit)),
        DataType::Timestamp(unit, Some(zone)) if &**zone == UTC => {
            format!("timestamptz({})", unit_name(*unit))
        }
        DataType::Timestamp(unit, Some(zone)) => {
            format!("timestamptz({}, {zone})", unit_name(*unit))
        }
        DataType::FixedSizeBinary(size) => format!("fixed_size_binary({size})"),
        DataType::Dictionary(key, value) if **key == DataType::Int32 => {
            format!("dictionary({})", name(value)?)
        }
        DataType::Dictionary(key, value) => format!("dictionary({}, {})", name(key)?, name(value)?),
        DataType::List(item) | DataType::ListView(item) => format!("list<{}>", declaration(item)?),
        DataType::LargeList(item) => format!("large_list<{}>", declaration(item)?),
        DataType::FixedSizeList(item, size) => {
            format!("fixed_size_list<{}, {size}>", declaration(item)?)
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => {
                format!(
                    "map<{}, {}>",
                    name(pair[0].data_type())?,
                    declaration(&pair[1])?
                )
            }
            _ => return None,
        },
        DataType::Struct(fields) => {
            let mut text = "struct<".to_owned();
            for (i, field) in fields.iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                let _ = write!(
                    text,
                    "{comma}{}: {}",
                    quoted(field.name()),
                    declaration(field)?
                );
            }
            text + ">"
        }
        _ => return None,
    })
}

/// A map type as calve makes them: entries of key and value.
pub(crate) fn map_of(key: DataType, value: Field) -> DataType {
    let pair = Fields::from(vec![
        Field::new("key", key, false),
        value.with_name("value"),
    ]);
    DataType::Map(
        Arc::new(Field::new("entries", DataType::Struct(pair), false)),
        false,
    )
}

fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

fn quoted(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
#[path = "types_tests.rs"]
mod tests;

//! The columns of changes that nobody declared: by the schema that they carry, else by the values of
//! both images.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use calve_engine::{Error, Payload, RawBatch, Result};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{config::DebeziumConfig, connect::Connect, message, mongo, unwrapped};
use crate::formats::{
    Evolve,
    evolve::merged_type,
    infer::{Kind, SAMPLE_EVENTS},
    mark_bytes,
};

pub(super) type Object<'a> = HashMap<String, &'a RawValue>;

/// What is known after some changes.
#[derive(Default)]
struct Sample {
    /// Columns by the schemas of changes, in the order of their appearance.
    columns: Vec<Field>,
    /// Columns by values.
    row: Option<Kind>,
    metadata: HashMap<String, Kind>,
    /// The schema that was seen last, which mostly is that of the next change.
    schema: String,
}

/// The schema of the rows of the first changes of a source.
///
/// # Errors
/// `Config` when there is nothing to infer from.
pub(in crate::formats) fn infer(config: &DebeziumConfig, first: &[RawBatch]) -> Result<SchemaRef> {
    config.validate()?;
    let sample = sample(config, first, SAMPLE_EVENTS)?;
    let columns = columns(config, sample.columns, sample.row);
    if columns.is_empty() {
        return Err(
            Error::config("there are no changes to infer the columns from")
                .hint("declare them: `columns: {name: type, …}` under the format"),
        );
    }
    let metadata = sample.metadata;
    Ok(config.schema_of(columns.into_iter(), |path| {
        match metadata.get(path)?.clone().data_type() {
            of @ (DataType::Int64 | DataType::Float64 | DataType::Boolean) => Some(of),
            _ => None,
        }
    }))
}

/// The columns of some changes whose types are known.
///
/// # Errors
/// `Internal` when they are no text.
pub(in crate::formats) fn known_fields(
    config: &DebeziumConfig,
    raw: &[RawBatch],
) -> Result<Fields> {
    let sample = sample(config, raw, usize::MAX)?;
    let row = sample.row.and_then(Kind::known);
    Ok(columns(config, sample.columns, row).into())
}

fn sample(config: &DebeziumConfig, first: &[RawBatch], most: usize) -> Result<Sample> {
    let mut sample = Sample::default();
    let mut events = 0;
    'batches: for raw in first {
        let Payload::Bytes(text) = &raw.payload else {
            return Err(Error::internal("a source of text gave rows"));
        };
        for line in lines(text, raw.range.from) {
            // What is no change will be rejected; it says nothing about the rest.
            events += usize::from(sample.add(config, line).is_some());
            if events == most {
                break 'batches;
            }
        }
    }
    Ok(sample)
}

/// The columns, by schemas first.
fn columns(config: &DebeziumConfig, mut columns: Vec<Field>, row: Option<Kind>) -> Vec<Field> {
    if let Some(Kind::Struct(fields)) = row {
        for (name, kind) in fields {
            if !columns.iter().any(|known| *known.name() == name) {
                columns.push(Field::new(name, kind.data_type(), true));
            }
        }
    }
    if config.unwrapped {
        columns.retain(|field| !unwrapped::is_extra(config, field.name()));
    }
    for path in &config.metadata {
        if columns.iter().any(|column| column.name() == path) {
            tracing::warn!("a column of the table is hidden by metadata: column={path}");
            columns.retain(|column| column.name() != path);
        }
    }
    columns
}

/// The lines of a raw batch that begins at an offset, those that are text.
pub(super) fn lines(text: &[u8], from: u64) -> impl Iterator<Item = &str> {
    let lines = text[mark_bytes(text, from)..].split(|b| *b == b'\n');
    lines.filter_map(|line| std::str::from_utf8(line).ok())
}

impl Sample {
    /// Learns from one line; none where it is no change.
    fn add(&mut self, config: &DebeziumConfig, line: &str) -> Option<()> {
        let event: Object = serde_json::from_str(line).ok()?;
        if let Some(value) = message::value_of(&event, line) {
            return self.add(config, value);
        }
        let (text, event) = match (event.get("payload"), event.contains_key("op")) {
            (Some(payload), false) if event.contains_key("schema") || !config.unwrapped => {
                if let Some(schema) = event.get("schema") {
                    self.schema(config, schema.get());
                }
                (payload.get(), serde_json::from_str(payload.get()).ok()?)
            }
            _ => (line, event),
        };
        for path in &config.metadata {
            let kind = if config.unwrapped {
                let names = unwrapped::names(path);
                let mut names = names.iter();
                names.find_map(|name| Kind::of(event.get(name.as_str())?.get()))
            } else {
                at_path(&event, path)
            };
            merge(
                self.metadata.entry(path.clone()).or_insert(Kind::Unknown),
                kind,
            );
        }
        if config.unwrapped {
            return self.image(text);
        }
        event.get("op")?;
        for image in ["before", "after"] {
            if let Some(image) = event.get(image) {
                self.image(image.get());
            }
        }
        Some(())
    }

    fn image(&mut self, text: &str) -> Option<()> {
        if text.starts_with('"') {
            let document =
                String::deserialize(&mut serde_json::Deserializer::from_str(text)).ok()?;
            let mut plain = String::new();
            mongo::simplify(&document, &mut plain).ok()?;
            return self.image(&plain);
        }
        let kind = Kind::of(text)?;
        matches!(kind, Kind::Struct(_)).then(|| {
            merge(self.row.get_or_insert(Kind::Unknown), Some(kind));
        })
    }

    fn schema(&mut self, config: &DebeziumConfig, text: &str) {
        if self.schema == text {
            return;
        }
        text.clone_into(&mut self.schema);
        let row = Connect::row(text.as_bytes(), config.unwrapped);
        for column in row.iter().flat_map(Connect::columns) {
            let mut known = self.columns.iter_mut();
            let Some(known) = known.find(|known| known.name() == column.name()) else {
                self.columns.push(column);
                continue;
            };
            let (has, seen) = (known.data_type(), column.data_type());
            if let Some(wider) = merged_type(has, seen, Evolve::default()) {
                known.set_data_type(wider);
            }
        }
    }
}

fn merge(known: &mut Kind, kind: Option<Kind>) {
    if let Some(kind) = kind {
        *known = std::mem::replace(known, Kind::Unknown).merge(kind);
    }
}

fn at_path(event: &Object, path: &str) -> Option<Kind> {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let value = event.get(first)?.get();
    match rest {
        "" => Kind::of(value),
        rest => at_path(&serde_json::from_str(value).ok()?, rest),
    }
}

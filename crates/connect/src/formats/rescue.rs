//! The column `_rescued`: what of an event does not fit its columns, as JSON, in place of a reject. Fields
//! that the schema does not know, and values that do not fit their column, which is null then.
//!
//! Most batches need none of it and pass through. One that does is read line by line: what does not fit
//! is taken out of the line as it was written, and the rest is decoded again.

use std::{fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, StringBuilder, new_null_array},
    datatypes::{DataType, Field, Fields, Schema, SchemaRef},
};
use calve_engine::{Decoded, Decoder, Error, Payload, RawBatch, Reject, Result};
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use super::{
    json::{JsonDecoder, text::skip_space},
    mark_bytes,
};

/// Reads JSON with a column for what does not fit.
pub(super) struct RescuingDecoder {
    inner: JsonDecoder,
    schema: SchemaRef,
    /// Place of the column.
    at: usize,
    /// The other columns.
    fields: Fields,
}

/// An object's fields as they are written, in their order.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl Pairs<'_> {
    fn of(text: &str) -> Option<Pairs<'_>> {
        serde_json::from_str(text).ok()
    }

    /// The object without some fields.
    fn without(&self, gone: &[&str]) -> String {
        let kept = self
            .0
            .iter()
            .filter(|(name, _)| !gone.contains(&name.as_str()));
        object(kept.map(|(name, value)| (name.as_str(), value.get().to_owned())))
    }
}

fn object<'a>(fields: impl Iterator<Item = (&'a str, String)>) -> String {
    let fields = fields.map(|(name, value)| format!("{}:{value}", serde_json::Value::from(name)));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

impl RescuingDecoder {
    /// A decoder to rows of a schema that has this column of text.
    ///
    /// # Errors
    /// `Config` when it has not.
    pub(super) fn new(
        schema: SchemaRef,
        column: &str,
        inner: impl FnOnce(SchemaRef) -> Result<JsonDecoder>,
    ) -> Result<Self> {
        let (at, _) = schema
            .column_with_name(column)
            .filter(|(_, field)| *field.data_type() == DataType::Utf8)
            .ok_or_else(|| {
                Error::config(format!(
                    "the schema has no column for what is rescued: column={column}"
                ))
                .hint("leave it out of `columns`, or declare it as varchar")
            })?;
        let others = schema.fields().iter().enumerate().filter(|(n, _)| *n != at);
        let fields: Fields = others.map(|(_, field)| Arc::clone(field)).collect();
        Ok(Self {
            inner: inner(Arc::new(Schema::new(fields.clone())))?,
            schema,
            at,
            fields,
        })
    }

    /// The rows with the column.
    fn with(&self, rows: &RecordBatch, rescued: ArrayRef) -> Result<RecordBatch> {
        let mut columns = rows.columns().to_vec();
        columns.insert(self.at, rescued);
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| Error::internal("rescued values do not fit their rows").because(e))
    }

    /// A line in a form that fits, and what was taken out of it; none: it stays as it is.
    fn rescue(&mut self, line: &str) -> Option<(String, String)> {
        let pairs = Pairs::of(line)?;
        let mut misfits: Vec<String> = Vec::new();
        loop {
            let gone: Vec<&str> = misfits.iter().map(String::as_str).collect();
            match self.inner.misfit(&pairs.without(&gone)) {
                Ok(()) => break,
                Err(Some(name)) if !misfits.contains(&name) => misfits.push(name),
                Err(_) => return None,
            }
        }
        let unknown = unknown(&pairs, &self.fields, &misfits);
        if misfits.is_empty() && unknown.is_empty() {
            return None;
        }
        let gone: Vec<&str> = misfits.iter().map(String::as_str).collect();
        let rescued = object(unknown.iter().map(|(name, value)| (*name, value.clone())));
        Some((pairs.without(&gone), rescued))
    }

    /// Decodes line by line.
    fn careful(&mut self, raw: &RawBatch, lines: &[u8]) -> Result<Decoded> {
        let mut fitted = Vec::with_capacity(lines.len());
        // Where each line that is decoded began, what it was, and what was taken out of it.
        let mut origins: Vec<(u64, u64, &[u8], Option<String>)> = Vec::new();
        let mut at = mark_bytes(lines, raw.range.from);
        for line in lines[at..].split_inclusive(|byte| *byte == b'\n') {
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let offset = raw.range.from + at as u64;
            at += line.len();
            if skip_space(text, 0) == text.len() {
                continue;
            }
            let start = fitted.len() as u64;
            let saved = std::str::from_utf8(text)
                .ok()
                .and_then(|text| self.rescue(text));
            let (rest, rescued) = saved.unzip();
            fitted.extend_from_slice(rest.as_ref().map_or(text, String::as_bytes));
            origins.push((start, offset, text, rescued));
            fitted.push(b'\n');
        }
        // A mark at offset 0 was skipped above.
        let decoded = self.inner.decode_lines(&fitted, 1)?;
        let mut rejects = decoded.rejects.into_iter().peekable();
        let mut put_back = Vec::new();
        let mut column = StringBuilder::new();
        for (start, offset, text, rescued) in origins {
            match rejects.next_if(|reject| reject.offset == start + 1) {
                Some(reject) => put_back.push(Reject {
                    offset,
                    raw: raw_line(text),
                    error: reject.error,
                }),
                None => column.append_option(rescued),
            }
        }
        Ok(Decoded {
            rows: self.with(&decoded.rows, Arc::new(column.finish()))?,
            rejects: put_back,
        })
    }
}

fn raw_line(text: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.strip_suffix(b"\r").unwrap_or(text))
}

/// What of the fields does not fit, or is not known, at any depth; a list with something unknown inside
/// comes whole.
fn unknown<'a>(
    pairs: &'a Pairs<'_>,
    fields: &Fields,
    misfits: &[String],
) -> Vec<(&'a str, String)> {
    let mut found = Vec::new();
    for (name, value) in &pairs.0 {
        let text = value.get();
        if misfits.contains(name) {
            found.push((name.as_str(), text.to_owned()));
            continue;
        }
        match fields.find(name) {
            None if text == "null" => {}
            None => found.push((name.as_str(), text.to_owned())),
            Some((_, field)) => {
                if let Some(inside) = unknown_inside(text, field) {
                    found.push((name.as_str(), inside));
                }
            }
        }
    }
    found
}

fn unknown_inside(text: &str, field: &Field) -> Option<String> {
    match field.data_type() {
        DataType::Struct(fields) => {
            let pairs = Pairs::of(text)?;
            let found = unknown(&pairs, fields, &[]);
            (!found.is_empty()).then(|| object(found.into_iter()))
        }
        DataType::List(item) | DataType::LargeList(item) => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            let mut items = items.iter();
            let any = items.any(|one| unknown_inside(one.get(), item).is_some());
            any.then(|| text.to_owned())
        }
        _ => None,
    }
}

impl Decoder for RescuingDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        let Payload::Bytes(lines) = &raw.payload else {
            return Err(Error::internal("the json decoder was given no text"));
        };
        let decoded = self.inner.decode_lines(lines, raw.range.from)?;
        // Noted only where unknown fields do not become columns.
        if decoded.rejects.is_empty() && !self.inner.saw_unknown() {
            let nulls = new_null_array(&DataType::Utf8, decoded.rows.num_rows());
            let rows = self.with(&decoded.rows, nulls)?;
            return Ok(Decoded { rows, ..decoded });
        }
        self.careful(raw, lines)
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        self.inner.locate(raw, decoded, row)
    }

    fn offsets(&self, raw: &RawBatch, decoded: &Decoded) -> Vec<u64> {
        self.inner.offsets(raw, decoded)
    }

    fn evolved(&mut self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        self.inner.evolved(raw)
    }
}

#[cfg(test)]
#[path = "rescue_tests.rs"]
mod tests;

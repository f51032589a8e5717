//! CSV to Arrow by arrow-csv. A bad row is a reject and disturbs no other.
//!
//! The whole batch is tried at once; where that fails it is halved until the rows to blame are
//! found. A file's columns are learned from its header, which the source hands on with each batch
//! (see [`FileTag`]), so that batches from the middle of a file decode alone.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    compute::{CastOptions, cast_with_options, concat_batches},
    csv::reader::{Format, ReaderBuilder},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use bytes::Bytes;
use calve_engine::{Decoded, Decoder, Error, Payload, RawBatch, Reject, Result};

use super::{CsvConfig, evolve::Watch, json::text_of, mark_bytes};
use crate::sources::tag::FileTag;

impl CsvConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        let marks = [
            ("delimiter", Some(self.delimiter)),
            ("quote", Some(self.quote)),
            ("escape", self.escape),
        ];
        for (name, mark) in marks {
            if mark.is_some_and(|c| !c.is_ascii() || c == '\n' || c == '\r') {
                return Err(Error::config(format!(
                    "csv {name} is not one ASCII character"
                )));
            }
        }
        if self.delimiter == self.quote {
            return Err(Error::config(
                "csv delimiter and quote are the same character",
            ));
        }
        Ok(())
    }

    fn format(&self) -> Format {
        let format = Format::default()
            .with_delimiter(self.delimiter as u8)
            .with_quote(self.quote as u8);
        match self.escape {
            Some(escape) => format.with_escape(escape as u8),
            None => format,
        }
    }

    /// The names in a header line.
    ///
    /// # Errors
    /// `Config` when it cannot be read, or names a column twice.
    pub(crate) fn header_names(&self, line: &[u8]) -> Result<Vec<String>> {
        let line = &line[mark_bytes(line, 0)..];
        let (schema, _) = self
            .format()
            .with_header(true)
            .infer_schema(line, Some(0))
            .map_err(|e| Error::config("csv header cannot be read").because(e))?;
        let names: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                return Err(Error::config(format!("csv header names a column twice: column={name}"))
                    .hint("give the columns different names, or set `header: false` and declare `columns`"));
            }
        }
        Ok(names)
    }

    /// Schema of the file's fields by the first `rows` rows of `text` (which begins with the header,
    /// where there is one).
    pub(crate) fn infer(&self, text: &[u8], rows: usize) -> Result<Schema> {
        let text = &text[mark_bytes(text, 0)..];
        let (schema, _) = self
            .format()
            .with_header(self.header)
            .infer_schema(text, Some(rows))
            .map_err(|e| Error::config("csv cannot be read to infer its columns").because(e))?;
        Ok(schema)
    }

    /// Cuts text into records.
    pub(crate) fn records<'a>(&self, text: &'a [u8]) -> Records<'a> {
        Records {
            text,
            at: 0,
            delimiter: self.delimiter as u8,
            quote: self.quote as u8,
            escape: self.escape.map(|c| c as u8),
            open: false,
        }
    }

    /// End of the last whole record in `text`, which begins with a record; 0 when none is whole.
    pub(crate) fn last_record_end(&self, text: &[u8]) -> usize {
        let Some(newline) = memchr::memrchr(b'\n', text) else {
            return 0;
        };
        if memchr::memchr(self.quote as u8, &text[..newline]).is_none() {
            return newline + 1;
        }
        let mut records = self.records(text);
        let mut end = 0;
        while records.next().is_some() {
            if records.open || !text[..records.at].ends_with(b"\n") {
                break;
            }
            end = records.at;
        }
        end
    }
}

/// The records of a text: start and text without the line end; blank lines are left out. A quote
/// opens only at the beginning of a field, and line ends are LF, CR LF or CR, as in csv-core.
pub(crate) struct Records<'a> {
    text: &'a [u8],
    at: usize,
    delimiter: u8,
    quote: u8,
    escape: Option<u8>,
    /// The last record was not ended by a line end.
    open: bool,
}

impl<'a> Iterator for Records<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<(usize, &'a [u8])> {
        while matches!(self.text.get(self.at), Some(b'\n' | b'\r')) {
            self.at += 1;
        }
        let start = self.at;
        if start >= self.text.len() {
            return None;
        }
        let (mut field_start, mut quoted, mut at) = (true, false, start);
        self.open = true;
        let mut end = self.text.len();
        while let Some(&byte) = self.text.get(at) {
            at += 1;
            if quoted {
                if Some(byte) == self.escape {
                    at += 1;
                } else if byte == self.quote {
                    if self.text.get(at) == Some(&self.quote) {
                        at += 1;
                    } else {
                        quoted = false;
                    }
                }
            } else if byte == b'\n' || byte == b'\r' {
                end = at - 1;
                if byte == b'\r' && self.text.get(at) == Some(&b'\n') {
                    at += 1;
                }
                self.open = false;
                break;
            } else if field_start && byte == self.quote {
                quoted = true;
                field_start = false;
            } else {
                field_start = byte == self.delimiter;
            }
        }
        self.at = at.min(self.text.len());
        Some((start, &self.text[start..end]))
    }
}

/// How the fields of a file become columns.
struct Layout {
    /// One field for each field of the file, in the types that arrow-csv reads.
    file: SchemaRef,
    /// For each column the file's field; none: the file lacks it.
    columns: Vec<Option<usize>>,
}

/// Turns CSV into rows of a schema.
pub struct CsvDecoder {
    config: CsvConfig,
    schema: SchemaRef,
    watch: Option<Watch>,
    layouts: HashMap<Option<Arc<[String]>>, Arc<Layout>>,
}

impl CsvDecoder {
    /// A decoder for rows of a schema. Fields that it does not name are skipped; columns that a
    /// file's header does not name are null.
    ///
    /// # Errors
    /// `Config` for nested columns.
    pub fn new(config: &CsvConfig, schema: SchemaRef) -> Result<Self> {
        config.validate()?;
        for field in schema.fields() {
            if field.data_type().is_nested()
                || matches!(
                    field.data_type(),
                    DataType::Duration(_) | DataType::Interval(_)
                )
            {
                return Err(Error::config(format!(
                    "column {}: csv cannot hold type {}",
                    field.name(),
                    field.data_type()
                ))
                .hint("declare it as varchar"));
            }
        }
        Ok(Self {
            config: config.clone(),
            schema,
            watch: None,
            layouts: HashMap::new(),
        })
    }

    /// Looks at headers with columns that the schema lacks.
    pub(super) fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    fn layout(&mut self, header: Option<Arc<[String]>>) -> Arc<Layout> {
        let schema = &self.schema;
        let entry = self.layouts.entry(header);
        let names = entry.key().clone();
        Arc::clone(entry.or_insert_with(|| {
            let physical =
                |field: &Field| Field::new(field.name(), physical(field.data_type()), true);
            let (fields, columns): (Vec<Field>, _) = match names {
                None => {
                    let fields = schema.fields().iter().map(|f| physical(f)).collect();
                    (fields, (0..schema.fields().len()).map(Some).collect())
                }
                Some(names) => {
                    let field = |name: &String| match schema.column_with_name(name) {
                        Some((_, field)) => physical(field),
                        None => Field::new(name, DataType::Utf8, true),
                    };
                    let find = |f: &Arc<Field>| names.iter().position(|name| name == f.name());
                    (
                        names.iter().map(field).collect(),
                        schema.fields().iter().map(find).collect(),
                    )
                }
            };
            Arc::new(Layout {
                file: Arc::new(Schema::new(fields)),
                columns,
            })
        }))
    }

    /// The header that belongs to a batch, and where its first row begins.
    fn header(&self, raw: &RawBatch, text: &[u8]) -> Result<(Option<Arc<[String]>>, usize)> {
        if !self.config.header {
            return Ok((None, mark_bytes(text, raw.range.from)));
        }
        let tag = raw.tag.as_deref().map(FileTag::parse).unwrap_or_default();
        if let Some(names) = tag.header {
            return Ok((Some(names.into()), tag.header_bytes as usize));
        }
        if raw.range.from != 0 {
            return Ok((None, 0));
        }
        match self.config.records(text).next() {
            Some((start, line)) => {
                let names = self.config.header_names(line)?;
                Ok((Some(names.into()), start + line.len()))
            }
            None => Ok((None, 0)),
        }
    }

    /// The records that became rows, in order, with their offsets.
    fn records_of_rows<'a>(
        &self,
        raw: &'a RawBatch,
        rejects: &'a [Reject],
    ) -> impl Iterator<Item = (u64, &'a [u8])> {
        let text = text_of(raw);
        let start = self.header(raw, text).map_or(0, |(_, start)| start);
        let mut rejected = rejects.iter().map(|reject| reject.offset).peekable();
        let records = self.config.records(&text[start..]);
        records
            .map(move |(at, record)| (raw.range.from + (start + at) as u64, record))
            .filter(move |(offset, _)| rejected.next_if_eq(offset).is_none())
    }

    /// Rows of whole records, or why not. Without the detail when it holds a row's values.
    fn rows(&self, layout: &Layout, text: &[u8]) -> Result<RecordBatch, String> {
        let most = memchr::memchr2_iter(b'\n', b'\r', text).count() + 1;
        let projection: Vec<usize> = layout.columns.iter().filter_map(|c| *c).collect();
        let mut decoder = ReaderBuilder::new(Arc::clone(&layout.file))
            .with_format(self.config.format())
            .with_batch_size(most + 1)
            .with_projection(projection)
            .build_decoder();
        let describe = |error: &ArrowError| self.describe(layout, error);
        let mut rest = text;
        while !rest.is_empty() {
            let read = decoder.decode(rest).map_err(|e| describe(&e))?;
            if read == 0 {
                break;
            }
            rest = &rest[read..];
        }
        decoder.decode(&[]).map_err(|e| describe(&e))?;
        let rows = decoder.flush().map_err(|e| describe(&e))?;
        let count = rows.as_ref().map_or(0, RecordBatch::num_rows);
        let mut read = rows.iter().flat_map(RecordBatch::columns);
        let strict = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (field, source) in self.schema.fields().iter().zip(&layout.columns) {
            let column = match source {
                Some(_) if count > 0 => {
                    Arc::clone(read.next().expect("one column for each projected field"))
                }
                _ => new_null_array(field.data_type(), count),
            };
            let column = if column.data_type() == field.data_type() {
                column
            } else {
                cast_with_options(&column, field.data_type(), &strict).map_err(|_| misfit(field))?
            };
            if !field.is_nullable() && column.null_count() > 0 {
                return Err(format!("a value is missing: column={}", field.name()));
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|_| "does not fit the schema".to_owned())
    }

    /// arrow-csv's messages hold the row: say what without it.
    fn describe(&self, layout: &Layout, error: &ArrowError) -> String {
        let message = error.to_string();
        if message.contains("incorrect number of fields") {
            return format!(
                "wrong number of fields: expected={}",
                layout.file.fields().len()
            );
        }
        if message.contains("UTF-8") || message.contains("utf-8") {
            return "invalid UTF-8".to_owned();
        }
        let number = message.split("column ").nth(1).map(|rest| {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..end].parse::<usize>()
        });
        match number {
            Some(Ok(i)) if i < layout.file.fields().len() => {
                let name = layout.file.field(i).name();
                match self.schema.column_with_name(name) {
                    Some((_, field)) => misfit(field),
                    None => "not readable as csv".to_owned(),
                }
            }
            _ => "a value does not fit its column".to_owned(),
        }
    }

    /// Halves records until the bad ones stand alone.
    fn divide(
        &self,
        layout: &Layout,
        text: &Bytes,
        records: &[(usize, usize)],
        base: u64,
        found: &mut (Vec<RecordBatch>, Vec<Reject>),
    ) {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return;
        };
        let all = &text[first.0..last.1];
        match self.rows(layout, all) {
            // A record that makes another number of rows would shift all that follow.
            Ok(rows) if rows.num_rows() == records.len() => found.0.push(rows),
            result if records.len() == 1 => {
                let error = result
                    .err()
                    .unwrap_or_else(|| "not readable as one csv record".to_owned());
                let raw = text.slice(first.0..last.1);
                found.1.push(Reject {
                    offset: base + first.0 as u64,
                    raw,
                    error,
                });
            }
            _ => {
                let (left, right) = records.split_at(records.len() / 2);
                self.divide(layout, text, left, base, found);
                self.divide(layout, text, right, base, found);
            }
        }
    }
}

/// The type that arrow-csv reads for a column's type.
fn physical(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_)
        | DataType::Float16 => DataType::Utf8,
        DataType::Dictionary(_, value) if **value != DataType::Utf8 => physical(value),
        other => other.clone(),
    }
}

fn misfit(field: &Field) -> String {
    let name =
        super::types::name(field.data_type()).unwrap_or_else(|| field.data_type().to_string());
    format!("a value does not fit: column={} type={name}", field.name())
}

impl Decoder for CsvDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        let Payload::Bytes(text) = &raw.payload else {
            return Err(Error::internal("csv decoder was given rows"));
        };
        let (header, start) = self.header(raw, text)?;
        let layout = self.layout(header);
        if let Ok(rows) = self.rows(&layout, &text[start..]) {
            return Ok(Decoded {
                rows,
                rejects: Vec::new(),
            });
        }
        let records: Vec<(usize, usize)> = self
            .config
            .records(&text[start..])
            .map(|(at, record)| (start + at, start + at + record.len()))
            .collect();
        let mut found = (Vec::new(), Vec::new());
        self.divide(&layout, text, &records, raw.range.from, &mut found);
        let rows = concat_batches(&self.schema, &found.0)
            .map_err(|e| Error::internal("decoded rows do not fit together").because(e))?;
        Ok(Decoded {
            rows,
            rejects: found.1,
        })
    }

    fn evolved(&mut self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        let (Some(watch), Payload::Bytes(text)) = (&self.watch, &raw.payload) else {
            return Ok(None);
        };
        if let (Some(names), _) = self.header(raw, text)?
            && raw.range.from == 0
            && names.iter().any(|name| self.schema.index_of(name).is_err())
        {
            watch.note();
        }
        watch.evolved(raw)
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        let found = self.records_of_rows(raw, &decoded.rejects).nth(row);
        let (offset, record) = found.unwrap_or((raw.range.to, &[]));
        Reject {
            offset,
            raw: Bytes::copy_from_slice(record),
            error: String::new(),
        }
    }

    fn offsets(&self, raw: &RawBatch, decoded: &Decoded) -> Vec<u64> {
        let records = self.records_of_rows(raw, &decoded.rejects);
        records.map(|(offset, _)| offset).collect()
    }
}

#[cfg(test)]
#[path = "csv_tests.rs"]
mod tests;

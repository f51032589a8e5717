//! Changes of tables, as Debezium writes them in JSON: each becomes a row with the table's columns,
//! the operation, and what was asked of the metadata.
//!
//! A change may carry its schema, which says how values are written; a schema that was seen before is
//! compared and not read. Changes are read one by one straight into columns (`envelope`); where
//! another schema means other columns (a `Plan`), the rows so far become a chunk of their own.
//!
//! Invariant: as of the JSON decoder; and a change that is no row (a tombstone, a message) leaves
//! neither a row nor a reject. Start with [`DebeziumDecoder::decode_lines`].

mod assembly;
mod config;
mod connect;
mod deleted;
mod envelope;
mod infer;
mod message;
mod mongo;
mod plans;
mod toast;
mod unwrapped;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    datatypes::{Field, Fields, SchemaRef},
    error::ArrowError,
};
use bytes::Bytes;
use calve_engine::{Decoded, Decoder, Error, Payload, RawBatch, Reject, Result};
use calve_model::{OffsetRange, SourcePartition};

pub use self::config::{BinaryEncoding, DebeziumConfig, DecimalEncoding, OP, TimeEncoding};
use self::{
    assembly::Assembly,
    envelope::{Change, Envelope},
    plans::Plan,
};
pub(super) use self::{
    infer::{infer, known_fields},
    message::key_columns,
};
use super::{
    evolve::Watch,
    json::{
        damaged, reject,
        text::{Failure, byte, colon, is_null, line_end, skip_space, skip_value},
        text_of,
    },
    mark_bytes,
};

/// Turns changes into rows. Remembers the schemas and the order of the keys that it saw.
pub struct DebeziumDecoder {
    config: DebeziumConfig,
    schema: SchemaRef,
    /// The columns of the table.
    columns: Fields,
    /// Columns of metadata; their names are the paths.
    metadata: Vec<Field>,
    envelope: Envelope,
    /// Ways of reading rows; the first is that of changes without schema.
    plans: Vec<Plan>,
    /// The plan of the rows that are being read.
    plan: usize,
    /// Schemas that were seen, and their plans.
    schemas: Vec<(Box<[u8]>, usize)>,
    /// The schema that was seen last.
    last_schema: usize,
    /// Columns of schemas that the rows lack.
    dropped: HashSet<String>,
    /// Finished rows of the raw batch, and how many they are.
    chunks: Vec<RecordBatch>,
    finished: usize,
    /// Where the line of each row begins in the raw batch.
    starts: Vec<u32>,
    /// Each line that may hold a value that was not sent is looked at.
    careful: bool,
    /// The raw batch whose rows `starts` is about.
    decoded: Option<(SourcePartition, OffsetRange)>,
    assembly: Assembly,
    watch: Option<Watch>,
}

impl DebeziumDecoder {
    /// A decoder to rows of this schema: columns of the table, [`OP`], and the metadata of `config`.
    ///
    /// # Errors
    /// `Config` for a type that cannot be read, or where the schema lacks what the settings ask for.
    pub fn new(config: &DebeziumConfig, schema: SchemaRef) -> Result<Self> {
        let config = config.complete();
        config.validate()?;
        for name in std::iter::once(OP).chain(config.metadata.iter().map(String::as_str)) {
            if schema.column_with_name(name).is_none() {
                return Err(Error::config(format!(
                    "the stored schema lacks a column of the format: column={name}"
                ))
                .hint("put `metadata` back, or start over with `calve checkpoint reset FILE`"));
            }
        }
        let fields = schema.fields().iter();
        let columns: Fields = fields
            .filter(|field| !config.is_extra(field.name()))
            .cloned()
            .collect();
        let metadata: Vec<Field> = config
            .metadata
            .iter()
            .map(|path| schema.field_with_name(path).cloned())
            .collect::<Result<_, _>>()
            .map_err(|e| Error::internal("a column of metadata is gone").because(e))?;
        let mut decoder = Self {
            assembly: Assembly::new(&config, Arc::clone(&schema)),
            config,
            schema,
            envelope: Envelope::new(&metadata)?,
            columns,
            metadata,
            plans: Vec::new(),
            plan: 0,
            schemas: Vec::new(),
            last_schema: 0,
            dropped: HashSet::new(),
            chunks: Vec::new(),
            finished: 0,
            starts: Vec::new(),
            careful: false,
            decoded: None,
            watch: None,
        };
        let plain = decoder.plan_of(None)?;
        decoder.plans.push(plain);
        Ok(decoder)
    }

    /// Looks at unknown columns, too.
    pub(super) fn watched(mut self, watch: Watch) -> Self {
        for plan in &mut self.plans {
            plan.rows.when_unknown(&watch.unknown());
        }
        self.watch = Some(watch);
        self
    }

    /// Decodes whole lines (the last may lack its line feed), as
    /// [`JsonDecoder::decode_lines`](super::json::JsonDecoder::decode_lines) does.
    ///
    /// # Errors
    /// `Internal` for nearly 2 GiB at once. A bad change is a reject.
    pub fn decode_lines(&mut self, lines: &[u8], base_offset: u64) -> Result<Decoded> {
        self.decoded = None;
        if lines.len() >= super::json::MOST_BYTES {
            return Err(Error::internal(format!(
                "raw batch is too large: bytes={}",
                lines.len()
            )));
        }
        let decoded = self.decode_once(lines, base_offset)?;
        if !toast::suspected(decoded.rows.columns()) {
            return Ok(decoded);
        }
        self.careful = true;
        let decoded = self.decode_once(lines, base_offset);
        self.careful = false;
        decoded
    }

    fn decode_once(&mut self, lines: &[u8], base_offset: u64) -> Result<Decoded> {
        self.chunks.clear();
        self.starts.clear();
        self.finished = 0;
        self.undo();
        let mark = mark_bytes(lines, base_offset);
        let mut rejects = Vec::new();
        let (rest, base) = (&lines[mark..], base_offset + mark as u64);
        let broken = |e| Error::internal("decoded columns do not make a batch").because(e);
        match simdutf8::basic::from_utf8(rest) {
            Ok(text) => self.append(text, base, base_offset, &mut rejects),
            Err(_) => damaged(rest, base, &mut rejects, |text, base, rejects| {
                self.append(text, base, base_offset, rejects);
            }),
        }
        self.finish().map_err(broken)?;
        let rows = match self.chunks.as_slice() {
            [] => RecordBatch::new_empty(Arc::clone(&self.schema)),
            [one] => one.clone(),
            several => concat_batches(&self.schema, several).map_err(broken)?,
        };
        self.chunks.clear();
        Ok(Decoded { rows, rejects })
    }

    /// Appends the changes of valid text, of which byte 0 has offset `base`, in the raw batch that
    /// begins at `from`.
    fn append(&mut self, text: &str, base: u64, from: u64, rejects: &mut Vec<Reject>) {
        let bytes = text.as_bytes();
        let shift = (base - from) as u32;
        let mut at = 0;
        while at < bytes.len() {
            let done = self.append_line(text, at).and_then(|(row, end)| {
                if row && self.careful && toast::suspected_line(&bytes[at..end]) {
                    self.last_was_sent()?;
                }
                Ok((row, end))
            });
            match done {
                Ok((row, end)) => {
                    if row {
                        self.starts.push(shift + at as u32);
                    }
                    at = end + 1;
                }
                Err(failure) => {
                    self.undo();
                    let end = line_end(bytes, at);
                    rejects.push(reject(bytes, at..end, base, failure.message()));
                    at = end + 1;
                }
            }
        }
    }

    /// Fails where a value of the last row was not sent, and takes the row back.
    #[cold]
    fn last_was_sent(&mut self) -> Result<(), Failure> {
        let broken = |_| Failure::new("the row cannot be finished");
        self.finish().map_err(broken)?;
        let Some(chunk) = self.chunks.last_mut() else {
            return Ok(());
        };
        let last = chunk.num_rows() - 1;
        let Some(column) = toast::column(chunk, last) else {
            return Ok(());
        };
        *chunk = chunk.slice(0, last);
        self.finished -= 1;
        Err(Failure::new(format!(
            "column={column}: a large value that did not change was not sent: give the table \
             REPLICA IDENTITY FULL, or leave the column out"
        )))
    }

    /// Takes back what was appended for a line that failed.
    fn undo(&mut self) {
        let settled = self.starts.len() - self.finished;
        self.envelope.truncate(settled);
        self.plans[self.plan].rows.truncate(settled);
    }

    /// Appends the change of the line that begins at `at`, if it holds one; answers whether it made a
    /// row, and where the line ends.
    #[inline]
    fn append_line(&mut self, text: &str, at: usize) -> Result<(bool, usize), Failure> {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) == b'\n' {
            return Ok((false, at));
        }
        let (row, end) = match message::pair(bytes, at) {
            Some(pair) => {
                self.envelope.key = Some(pair.key);
                let read = self.value(text, pair.value);
                self.envelope.key = None;
                (read?.0, pair.end)
            }
            None => self.value(text, at)?,
        };
        let end = skip_space(bytes, end);
        if byte(bytes, end) != b'\n' {
            return Err(Failure::new("something follows the object"));
        }
        Ok((row, end))
    }

    /// Appends the change at `at`, behind its schema or without.
    #[inline]
    fn value(&mut self, text: &str, at: usize) -> Result<(bool, usize), Failure> {
        let bytes = text.as_bytes();
        let Some((schema, payload)) = wrapped(bytes, at, self.schemas.get(self.last_schema)) else {
            return self.event(text, at);
        };
        let (row, end) = self.inside(text, payload, schema)?;
        let end = skip_space(bytes, end);
        if byte(bytes, end) != b'}' {
            return Err(Failure::new("something follows the payload"));
        }
        Ok((row, end + 1))
    }

    /// Appends the change at `at`, with an envelope of its own or without schema.
    fn event(&mut self, text: &str, at: usize) -> Result<(bool, usize), Failure> {
        let bytes = text.as_bytes();
        if is_null(bytes, at) {
            return Ok((false, at + 4));
        }
        self.choose(0)?;
        let (change, end) = self.change(text, at)?;
        let (payload, schema) = match change {
            Change::Row => return Ok((true, end)),
            Change::None => return Ok((false, end)),
            Change::Inside { payload, schema } => (payload, schema),
        };
        self.undo();
        let schema = match schema {
            Some(from) => from..skip_value(bytes, from)?,
            None => 0..0,
        };
        let (row, _) = self.inside(text, payload, schema)?;
        Ok((row, end))
    }

    /// Appends the change at `payload`, whose schema is `schema` (empty: it has none).
    fn inside(
        &mut self,
        text: &str,
        payload: usize,
        schema: std::ops::Range<usize>,
    ) -> Result<(bool, usize), Failure> {
        let bytes = text.as_bytes();
        if is_null(bytes, payload) {
            return Ok((false, payload + 4));
        }
        let plan = self.plan_for(&bytes[schema])?;
        self.choose(plan)?;
        match self.change(text, payload)? {
            (Change::Row, end) => Ok((true, end)),
            (Change::None, end) => Ok((false, end)),
            (Change::Inside { .. }, _) => Err(Failure::new("not a change: it has no `op`")),
        }
    }

    #[inline]
    fn change(&mut self, text: &str, at: usize) -> Result<(Change, usize), Failure> {
        let rows = &mut self.plans[self.plan].rows;
        if self.config.unwrapped {
            return Ok((Change::Row, rows.read(text, at)?));
        }
        self.envelope.read(rows, text, at)
    }

    /// Rows are read by this plan from now on.
    #[inline]
    fn choose(&mut self, plan: usize) -> Result<(), Failure> {
        if plan != self.plan {
            self.finish()
                .map_err(|_| Failure::new("rows before the change cannot be finished"))?;
            self.plan = plan;
        }
        Ok(())
    }

    /// Where the line of each row begins in a raw batch.
    fn starts_of(&self, raw: &RawBatch) -> Cow<'_, [u32]> {
        let last = self.decoded.as_ref();
        if last.is_some_and(|(of, range)| *of == raw.partition && *range == raw.range) {
            return Cow::Borrowed(&self.starts);
        }
        // Which lines are rows is known only by reading them.
        let again = Self::new(&self.config, Arc::clone(&self.schema));
        let starts = again.and_then(|mut again| {
            again.decode_lines(text_of(raw), raw.range.from)?;
            Ok(again.starts)
        });
        Cow::Owned(starts.unwrap_or_default())
    }

    /// Makes a chunk of the rows so far.
    fn finish(&mut self) -> Result<(), ArrowError> {
        let rows = &mut self.plans[self.plan].rows;
        let count = rows.len();
        if count == 0 {
            return Ok(());
        }
        let mut columns = rows.finish()?;
        let (ops, metadata) = if self.config.unwrapped {
            let extras = columns.split_off(self.columns.len());
            unwrapped::finish(&self.metadata, &extras)
        } else {
            let ops = std::mem::take(&mut self.envelope.ops);
            (ops, self.envelope.finish(&self.metadata)?)
        };
        let batch = self.assembly.rows(columns, &ops, &metadata)?;
        self.chunks.push(batch);
        self.finished += count;
        Ok(())
    }
}

/// Schema (empty where it is null) and payload of `{"schema": …, "payload": …}` at `at`; none where
/// it is something else, or written otherwise.
#[inline]
fn wrapped(
    bytes: &[u8],
    at: usize,
    known: Option<&(Box<[u8]>, usize)>,
) -> Option<(std::ops::Range<usize>, usize)> {
    let key = |at: usize, key: &[u8]| {
        let end = at + key.len();
        (bytes.get(at..end)? == key).then(|| colon(bytes, end).ok())?
    };
    if byte(bytes, at) != b'{' {
        return None;
    }
    let schema = key(skip_space(bytes, at + 1), b"\"schema\"")?;
    let end = match known {
        Some((known, _)) if bytes[schema..].starts_with(known) => schema + known.len(),
        _ => skip_value(bytes, schema).ok()?,
    };
    let comma = skip_space(bytes, end);
    if byte(bytes, comma) != b',' {
        return None;
    }
    let payload = key(skip_space(bytes, comma + 1), b"\"payload\"")?;
    let end = if is_null(bytes, schema) { schema } else { end };
    Some((schema..end, payload))
}

impl Decoder for DebeziumDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        match &raw.payload {
            Payload::Bytes(lines) => {
                let decoded = self.decode_lines(lines, raw.range.from)?;
                self.decoded = Some((raw.partition.clone(), raw.range));
                Ok(decoded)
            }
            Payload::Rows(_) | Payload::Messages(_) => {
                Err(Error::internal("the debezium decoder was given no text"))
            }
        }
    }

    fn locate(&self, raw: &RawBatch, _: &Decoded, row: usize) -> Reject {
        let lines = text_of(raw);
        match self.starts_of(raw).get(row) {
            Some(start) => {
                let line = *start as usize..line_end(lines, *start as usize);
                reject(lines, line, raw.range.from, String::new())
            }
            None => Reject {
                offset: raw.range.from,
                raw: Bytes::new(),
                error: format!("row is not in the batch: row={row}"),
            },
        }
    }

    fn offsets(&self, raw: &RawBatch, _: &Decoded) -> Vec<u64> {
        let starts = self.starts_of(raw);
        let offsets = starts.iter();
        offsets
            .map(|start| raw.range.from + u64::from(*start))
            .collect()
    }

    fn evolved(&mut self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        match &self.watch {
            Some(watch) => watch.evolved(raw),
            None => Ok(None),
        }
    }
}

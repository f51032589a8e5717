//! JSON to Arrow: one event a line, any schema, appended straight into columns.
//!
//! What is accepted, and as which value, is what arrow-json accepts, event by event. On purpose
//! different, so that a value that does not fit is a reject and never something else in silence:
//! - a line is one JSON object: stray commas, leading zeros, `1.`, two objects on a line, are rejects
//!   (arrow-json lets them pass); control characters inside strings pass, as there;
//! - a number with a fraction does not fit an integer (arrow-json cuts the fraction off; `1.0` and
//!   `1e3` fit), and one written as a float is not rounded to the nearest float on the way;
//! - timestamps and integers beyond 64 bits are rejects (arrow-json saturates timestamps); a null for
//!   a required map value is a reject; values of unknown fields nest at most 512 deep;
//! - surrogate pairs beyond U+1FFFF and decimals of many digits come out right;
//! - dictionaries of strings are supported.
//!
//! Invariant: whatever an event holds, the columns have either one row more after it, or none; a
//! value never reaches beyond its line. Start with [`JsonDecoder::decode_lines`], then `object` and `keys`.

pub(in crate::formats) mod column;
mod decimal;
mod dictionary;
mod encoded;
mod fixed;
pub(in crate::formats) mod keys;
mod nested;
pub(in crate::formats) mod object;
mod packed;
mod scalar;
mod strings;
pub(in crate::formats) mod text;
pub(in crate::formats) mod wire;

#[cfg(test)]
mod tests;

use std::ops::Range;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use bytes::Bytes;
use calve_engine::{Decoded, Decoder, Error, Payload, RawBatch, Reject, Result};
use memchr::memrchr;

use self::{
    object::Object,
    text::{Failure, byte, line_end, skip_space},
    wire::Wire,
};
use super::{evolve::Watch, mark_bytes};

/// Of a raw batch: with what dictionaries keep, the strings of a column stay below 2 GiB.
pub(super) const MOST_BYTES: usize = i32::MAX as usize - dictionary::KEPT_BYTES;

/// Turns lines of JSON into rows of a schema. Remembers the order of the keys that it saw.
pub struct JsonDecoder {
    schema: SchemaRef,
    rows: Object,
    watch: Option<Watch>,
}

impl JsonDecoder {
    /// A decoder for events of a schema; unknown fields of events are skipped, missing ones null.
    ///
    /// # Errors
    /// `Config` for a type that cannot be read from JSON, for dictionary keys below 32 bits, for an
    /// unknown time zone.
    pub fn new(schema: SchemaRef) -> Result<Self> {
        let rows = Object::new(schema.fields(), &Wire::default())?;
        Ok(Self {
            schema,
            rows,
            watch: None,
        })
    }

    /// Looks at unknown fields, too.
    pub(super) fn watched(mut self, watch: Watch) -> Self {
        self.rows.when_unknown(&watch.unknown());
        self.watch = Some(watch);
        self
    }

    /// Whether an event of the last batch had a field that is not known.
    pub(super) fn saw_unknown(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::noted)
    }

    /// Whether a line fits, and if it does not, which of its fields is to blame.
    pub(super) fn misfit(&mut self, line: &str) -> Result<(), Option<String>> {
        self.rows.truncate(0);
        let read = self.append_lines(line, 0);
        self.rows.truncate(0);
        read.map(drop)
            .map_err(|(_, failure)| failure.field().map(str::to_owned))
    }

    /// Decodes whole lines (the last may lack its line feed); blank ones are skipped, and so is a
    /// byte-order mark at offset 0. Byte `i` of `lines` has offset `base_offset + i`.
    ///
    /// # Errors
    /// `Internal` for nearly 2 GiB at once. A bad event is a reject.
    pub fn decode_lines(&mut self, lines: &[u8], base_offset: u64) -> Result<Decoded> {
        if lines.len() >= MOST_BYTES {
            return Err(Error::internal(format!(
                "raw batch is too large: bytes={}",
                lines.len()
            )));
        }
        self.rows.truncate(0);
        let mark = mark_bytes(lines, base_offset);
        let (lines, base_offset) = (&lines[mark..], base_offset + mark as u64);
        let mut rejects = Vec::new();
        match simdutf8::basic::from_utf8(lines) {
            Ok(text) => self.append(text, base_offset, &mut rejects),
            Err(_) => damaged(lines, base_offset, &mut rejects, |text, base, rejects| {
                self.append(text, base, rejects);
            }),
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.len()));
        let rows = self
            .rows
            .finish()
            .and_then(|columns| {
                RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            })
            .map_err(|e| Error::internal("decoded columns do not make a batch").because(e))?;
        Ok(Decoded { rows, rejects })
    }

    /// Appends the events of valid text, of which byte 0 has offset `base`.
    fn append(&mut self, text: &str, base: u64, rejects: &mut Vec<Reject>) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            match self.append_lines(text, at) {
                Ok(end) => at = end + 1,
                Err((line, failure)) => {
                    self.rows.truncate(self.rows.len());
                    let end = line_end(bytes, line);
                    rejects.push(reject(bytes, line..end, base, failure.message()));
                    at = end + 1;
                }
            }
        }
    }

    /// Appends the event of the line that begins at `line`, if it holds one, and those of the lines behind
    /// it as long as they are plain; answers the end of the last one, or which line failed, and why.
    #[inline]
    fn append_lines(&mut self, text: &str, line: usize) -> Result<usize, (usize, Failure)> {
        let bytes = text.as_bytes();
        let mut at = line;
        if byte(bytes, at) != b'{' {
            at = skip_space(bytes, at);
            if byte(bytes, at) == b'\n' {
                return Ok(at);
            }
        }
        let read = self.rows.read_lines(text, at);
        let began = self.rows.began();
        let line = if began == at { line } else { began };
        let mut end = read.map_err(|failure| (line, failure))?;
        if byte(bytes, end) != b'\n' {
            end = skip_space(bytes, end);
            if byte(bytes, end) != b'\n' {
                self.rows.truncate(self.rows.len() - 1);
                return Err((line, Failure::new("something follows the object")));
            }
        }
        Ok(end)
    }
}

/// Reads lines of which some are not UTF-8: `append` takes each stretch of valid lines with the offset
/// of its byte 0, in order; the others are rejects.
#[cold]
pub(super) fn damaged(
    lines: &[u8],
    base: u64,
    rejects: &mut Vec<Reject>,
    mut append: impl FnMut(&str, u64, &mut Vec<Reject>),
) {
    let mut from = 0;
    while from < lines.len() {
        let rest = &lines[from..];
        let (text, damage) = match simdutf8::compat::from_utf8(rest) {
            Ok(text) => (text, None),
            Err(error) => {
                let (valid, _) = rest.split_at(error.valid_up_to());
                let start = memrchr(b'\n', valid).map_or(0, |n| n + 1);
                let text = std::str::from_utf8(&valid[..start]).unwrap_or_default();
                (text, Some((start, line_end(rest, valid.len()))))
            }
        };
        append(text, base + from as u64, rejects);
        let Some((start, end)) = damage else { return };
        let message = "the line is not utf-8".to_owned();
        rejects.push(reject(rest, start..end, base + from as u64, message));
        from += end + 1;
    }
}

/// The lines of JSON that became rows, in order, without their line feeds: neither blank nor rejected.
/// Byte 0 has offset `base`.
fn lines_of_rows(
    lines: &[u8],
    base: u64,
    rejects: &[Reject],
) -> impl Iterator<Item = Range<usize>> {
    let mut rejected = rejects.iter().map(|reject| reject.offset).peekable();
    let mut at = mark_bytes(lines, base);
    std::iter::from_fn(move || {
        while at < lines.len() {
            let line = at..line_end(lines, at);
            at = line.end + 1;
            let blank = skip_space(lines, line.start) >= line.end;
            let bad = rejected.next_if_eq(&(base + line.start as u64)).is_some();
            if !blank && !bad {
                return Some(line);
            }
        }
        None
    })
}

/// The text of a batch; empty where it is none.
pub(super) fn text_of(raw: &RawBatch) -> &[u8] {
    match &raw.payload {
        Payload::Bytes(lines) => lines,
        Payload::Rows(_) | Payload::Messages(_) => &[],
    }
}

/// The reject of one line, whose line feed is excluded; `base` is the offset of byte 0.
pub(super) fn reject(bytes: &[u8], line: Range<usize>, base: u64, error: String) -> Reject {
    let offset = base + line.start as u64;
    let raw = &bytes[line];
    let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
    Reject {
        offset,
        raw: Bytes::copy_from_slice(raw),
        error,
    }
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        match &raw.payload {
            Payload::Bytes(lines) => self.decode_lines(lines, raw.range.from),
            Payload::Rows(_) | Payload::Messages(_) => {
                Err(Error::internal("the json decoder was given no text"))
            }
        }
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        let (lines, base) = (text_of(raw), raw.range.from);
        match lines_of_rows(lines, base, &decoded.rejects).nth(row) {
            Some(line) => reject(lines, line, base, String::new()),
            None => Reject {
                offset: base,
                raw: Bytes::new(),
                error: format!("row is not in the batch: row={row}"),
            },
        }
    }

    fn offsets(&self, raw: &RawBatch, decoded: &Decoded) -> Vec<u64> {
        let base = raw.range.from;
        let lines = lines_of_rows(text_of(raw), base, &decoded.rejects);
        lines.map(|line| base + line.start as u64).collect()
    }

    fn evolved(&mut self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        match &self.watch {
            Some(watch) => watch.evolved(raw),
            None => Ok(None),
        }
    }
}

//! From a body to what is appended: records as the format's decoder takes them, each event checked.
//!
//! A body is checked in pieces, of which nothing stays but what the answer says: a small event may take
//! hundreds of times its bytes as a row, or as a reject.

use arrow::{
    array::{BooleanArray, BooleanBufferBuilder},
    compute::filter_record_batch,
};
use bytes::Bytes;
use calve_engine::{Error, ErrorKind, Payload};
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    arrow_body,
    check::{Check, Checks},
    config::OnBadEvent,
    refusal::{BadEvent, MOST_NAMED, Refusal},
};
use crate::{
    formats::{FormatConfig, protobuf::Framing},
    sources::wal::Content,
};

/// What is checked at once: bytes, if a record is not larger, or rows of Arrow.
const PIECE_BYTES: usize = 256 << 10;
const PIECE_ROWS: usize = 16 << 10;

/// What a body is made of, by its Content-Type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON objects, one a line.
    Lines,
    /// JSON objects in any layout, or one array of them.
    Values,
    /// Messages behind their lengths.
    Messages,
    /// One message.
    Message,
    Arrow,
}

impl Kind {
    /// What the header says.
    ///
    /// # Errors
    /// 415 for what the format is not.
    pub(super) fn parse(content_type: &str, format: &FormatConfig) -> Result<Self, Refusal> {
        let mut parts = content_type.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let known = match format {
            FormatConfig::Json(_) | FormatConfig::Debezium(_) => {
                match essence.as_str() {
                    "application/x-ndjson"
                    | "application/ndjson"
                    | "application/jsonl"
                    | "application/x-jsonlines" => return Ok(Self::Lines),
                    "application/json" => return Ok(Self::Values),
                    _ => {}
                }
                "application/x-ndjson, application/json"
            }
            FormatConfig::Protobuf(_) => {
                let names = [
                    "application/x-protobuf",
                    "application/protobuf",
                    "application/vnd.google.protobuf",
                ];
                if names.contains(&essence.as_str()) {
                    let delimited = parts.any(|p| {
                        p.eq_ignore_ascii_case("encoding=delimited")
                            || p.eq_ignore_ascii_case("delimited=true")
                    });
                    return Ok(if delimited {
                        Self::Messages
                    } else {
                        Self::Message
                    });
                }
                "application/x-protobuf, application/x-protobuf; encoding=delimited"
            }
            _ => {
                if essence == "application/vnd.apache.arrow.stream" {
                    return Ok(Self::Arrow);
                }
                "application/vnd.apache.arrow.stream"
            }
        };
        Err(Refusal::unsupported(format!(
            "Content-Type is not taken: `{essence}`; known here: {known}"
        )))
    }
}

/// How events are taken.
#[derive(Clone, Debug)]
pub(super) struct Taking {
    pub(super) framing: Framing,
    pub(super) max_depth: u32,
    pub(super) on_bad_event: OnBadEvent,
}

/// Events that can be appended.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) content: Content,
    pub(super) payload: Bytes,
    pub(super) units: u32,
    pub(super) events: u32,
    /// Events that are not in the payload, and the first of them.
    pub(super) refused: u32,
    pub(super) bad: Vec<BadEvent>,
}

/// Makes records of a body and checks them. Work, not waiting.
///
/// # Errors
/// 400 with the events that are bad.
pub(super) fn take(
    kind: Kind,
    body: Bytes,
    taking: &Taking,
    checks: &Checks,
) -> Result<Taken, Refusal> {
    if kind == Kind::Arrow {
        return take_arrow(body, taking, checks);
    }
    let text = match kind {
        Kind::Lines | Kind::Values => {
            if let Some(line) = too_deep(&body, taking.max_depth, kind == Kind::Lines) {
                return Err(Refusal::bad_events(
                    vec![BadEvent {
                        line,
                        reason: format!("nested too deep: max_depth={}", taking.max_depth),
                    }],
                    1,
                ));
            }
            if kind == Kind::Lines {
                lines(body)
            } else {
                let text = values(&body)?;
                drop(body);
                text
            }
        }
        Kind::Message => taking.framing.frame_of(&body).into(),
        Kind::Messages | Kind::Arrow => body,
    };
    if u32::try_from(text.len()).is_err() {
        return Err(too_large());
    }
    let records = match kind {
        Kind::Message | Kind::Messages => Records::Frames(taking.framing),
        _ => Records::Lines,
    };
    let mut check = checks.begin()?;
    let mut tally = Tally::new(taking);
    // The text without bad events, from the first of them on, and how much of the text it is made of.
    let mut kept: Option<Vec<u8>> = None;
    let mut copied = 0;
    let mut counted = (0, 1);
    let mut at = 0;
    loop {
        let end = at + records.piece(&text[at..]);
        let piece = text.slice(at..end);
        let before = tally.events;
        let checked = check.piece(at as u64, Payload::Bytes(piece.clone()));
        let checked = checked.map_err(unreadable)?;
        tally.events += checked.events;
        let starts = match records {
            Records::Frames(framing) if !checked.rejects.is_empty() => framing.starts(&piece),
            _ => Vec::new(),
        };
        for reject in checked.rejects {
            let from = reject.offset as usize;
            let next = starts.partition_point(|start| at + start <= from);
            tally.refuse(reject.error, || match records {
                Records::Frames(_) => before + next,
                Records::Lines => {
                    counted.1 += memchr::memchr_iter(b'\n', &text[counted.0..from]).count();
                    counted.0 = from;
                    counted.1
                }
            });
            if tally.keeps {
                let kept = kept.get_or_insert_with(|| Vec::with_capacity(text.len()));
                kept.extend_from_slice(&text[copied..from]);
                copied = match records {
                    Records::Frames(_) => starts.get(next).map_or(end, |start| at + start),
                    Records::Lines => {
                        let line = memchr::memchr(b'\n', &text[from..end]);
                        line.map_or(end, |line| from + line + 1)
                    }
                };
            }
        }
        at = end;
        if at >= text.len() {
            break;
        }
    }
    let answer = tally.end(check)?;
    let payload = match kept {
        Some(mut kept) if answer.refused > 0 => {
            kept.extend_from_slice(&text[copied..]);
            kept.into()
        }
        _ => text,
    };
    let units = payload.len();
    answer.taken(Content::Bytes, payload, units)
}

fn take_arrow(body: Bytes, taking: &Taking, checks: &Checks) -> Result<Taken, Refusal> {
    let rows = arrow_body::read(&body).map_err(Refusal::bad_request)?;
    let mut check = checks.begin()?;
    let mut tally = Tally::new(taking);
    let mut keep = BooleanBufferBuilder::new(rows.num_rows());
    keep.append_n(rows.num_rows(), true);
    let mut at = 0;
    loop {
        let count = PIECE_ROWS.min(rows.num_rows() - at);
        let checked = check.piece(at as u64, Payload::Rows(rows.slice(at, count)));
        let checked = checked.map_err(unreadable)?;
        tally.events += checked.events;
        for reject in checked.rejects {
            let row = reject.offset as usize;
            tally.refuse(reject.error, || row + 1);
            keep.set_bit(row, false);
        }
        at += count;
        if at >= rows.num_rows() {
            break;
        }
    }
    let answer = tally.end(check)?;
    if answer.refused == 0 {
        return answer.taken(Content::Arrow, body, rows.num_rows());
    }
    let kept = filter_record_batch(&rows, &BooleanArray::new(keep.finish(), None));
    let written = kept.and_then(|kept| Ok((arrow_body::write(&kept)?, kept.num_rows())));
    let (payload, kept) =
        written.map_err(|error| Error::internal("rows cannot be written").because(error))?;
    answer.taken(Content::Arrow, payload.into(), kept)
}

/// How the events of a text lie behind each other.
#[derive(Clone, Copy)]
enum Records {
    Lines,
    Frames(Framing),
}

impl Records {
    /// Bytes of the whole records that are checked next; the last piece has whatever is left.
    fn piece(self, text: &[u8]) -> usize {
        let mut most = PIECE_BYTES;
        while most < text.len() {
            let end = match self {
                Self::Lines => memchr::memrchr(b'\n', &text[..most]).map_or(0, |line| line + 1),
                Self::Frames(framing) => framing.last_end(&text[..most]),
            };
            if end > 0 {
                return end;
            }
            most *= 2;
        }
        text.len()
    }
}

/// What the pieces of a body came to.
struct Tally {
    /// Whether what is good is taken without the rest.
    keeps: bool,
    events: usize,
    refused: usize,
    bad: Vec<BadEvent>,
}

impl Tally {
    fn new(taking: &Taking) -> Self {
        Self {
            keeps: taking.on_bad_event == OnBadEvent::AcceptRest,
            events: 0,
            refused: 0,
            bad: Vec::new(),
        }
    }

    /// An event is bad; the first ones are named.
    fn refuse(&mut self, reason: String, line: impl FnOnce() -> usize) {
        self.refused += 1;
        if self.bad.len() < MOST_NAMED {
            let line = line();
            self.bad.push(BadEvent { line, reason });
        }
    }

    /// All pieces are checked.
    ///
    /// # Errors
    /// 400 where the request is refused for what is bad in it.
    fn end(mut self, check: Check) -> Result<Self, Refusal> {
        if check.end() {
            self.refused = 0;
            self.bad = Vec::new();
        }
        if self.refused > 0 && (!self.keeps || self.refused == self.events) {
            return Err(Refusal::bad_events(self.bad, self.refused));
        }
        Ok(self)
    }

    fn taken(self, content: Content, payload: Bytes, units: usize) -> Result<Taken, Refusal> {
        let counted = |count: usize| u32::try_from(count).map_err(|_| too_large());
        Ok(Taken {
            content,
            payload,
            units: counted(units)?,
            events: counted(self.events - self.refused)?,
            refused: counted(self.refused)?,
            bad: self.bad,
        })
    }
}

fn too_large() -> Refusal {
    Refusal::too_large("the body is too large")
}

/// What makes all events unreadable.
fn unreadable(error: Error) -> Refusal {
    if error.kind() == ErrorKind::Internal {
        return error.into();
    }
    Refusal::bad_request(error.to_string())
}

/// Lines without a byte-order mark, the last one with its end.
fn lines(body: Bytes) -> Bytes {
    let body = if body.starts_with(b"\xef\xbb\xbf") {
        body.slice(3..)
    } else {
        body
    };
    if body.is_empty() || body.ends_with(b"\n") {
        return body;
    }
    let mut lines = Vec::with_capacity(body.len() + 1);
    lines.extend_from_slice(&body);
    lines.push(b'\n');
    lines.into()
}

/// JSON values, each in a line of its own: those of an array, or one behind the other.
fn values(body: &[u8]) -> Result<Bytes, Refusal> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let wrong = |at: usize, error: serde_json::Error| {
        let bad = vec![BadEvent {
            line: at + 1,
            reason: format!("the body is no JSON: {error}"),
        }];
        Refusal::bad_events(bad, 1)
    };
    let mut out = Vec::with_capacity(body.len() + 1);
    let mut push = |value: &RawValue| {
        let from = out.len();
        out.extend_from_slice(value.get().trim().as_bytes());
        // Outside of strings, since inside it would be no JSON.
        for byte in &mut out[from..] {
            if matches!(*byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        out.push(b'\n');
    };
    if body.trim_ascii_start().starts_with(b"[") {
        let mut values = serde_json::Deserializer::from_slice(body);
        let read = values.deserialize_seq(Each(push));
        read.and_then(|()| values.end())
            .map_err(|error| wrong(0, error))?;
    } else {
        let values = serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>();
        for (at, value) in values.enumerate() {
            push(value.map_err(|error| wrong(at, error))?);
        }
    }
    Ok(out.into())
}

/// Gives the elements of an array away, one by one.
struct Each<F>(F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<(), A::Error> {
        while let Some(value) = values.next_element()? {
            (self.0)(value);
        }
        Ok(())
    }
}

/// The line in which JSON is nested deeper than `most`, from 1. Where each line stands by itself, what is
/// wrong in one does not reach into the next.
fn too_deep(text: &[u8], most: u32, by_line: bool) -> Option<usize> {
    let mut depth = 0_u32;
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'{' | b'[' => {
                depth += 1;
                if depth > most {
                    return Some(memchr::memchr_iter(b'\n', &text[..at]).count() + 1);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'\n' if by_line => depth = 0,
            b'"' => {
                at += 1;
                // No line end is within a string.
                loop {
                    let rest = &text[at.min(text.len())..];
                    at += memchr::memchr3(b'"', b'\\', b'\n', rest)?;
                    match text[at] {
                        b'\\' if text.get(at + 1) == Some(&b'\n') => at += 1,
                        b'\\' => at += 2,
                        b'"' => break,
                        _ => {
                            at -= 1;
                            break;
                        }
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;

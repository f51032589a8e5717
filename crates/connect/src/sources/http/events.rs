//! From a body to what is appended: records as the format's decoder takes them, each event checked.

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use bytes::Bytes;
use calve_engine::{ErrorKind, Payload, Reject};
use serde_json::value::RawValue;

use super::{
    arrow_body,
    check::{self, Checked, Checks},
    config::OnBadEvent,
    refusal::{BadEvent, MOST_NAMED, Refusal},
    wal::Content,
};
use crate::formats::{FormatConfig, protobuf::Framing};

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
                values(&body)?
            }
        }
        Kind::Message => taking.framing.frame_of(&body).into(),
        Kind::Messages | Kind::Arrow => body,
    };
    if u32::try_from(text.len()).is_err() {
        return Err(Refusal::too_large("the body is too large"));
    }
    let checked = match checks.check(Payload::Bytes(text.clone())) {
        Ok(Some(checked)) => checked,
        Ok(None) => check::check_lines(&text),
        Err(error) if error.kind() == ErrorKind::Internal => return Err(error.into()),
        Err(error) => return Err(Refusal::bad_request(error.to_string())),
    };
    let Checked { events, rejects } = checked;
    let starts = match kind {
        Kind::Message | Kind::Messages if !rejects.is_empty() => taking.framing.starts(&text),
        _ => Vec::new(),
    };
    let mut seen = (0, 1);
    let bad = named(&rejects, |reject| {
        let from = reject.offset as usize;
        if !starts.is_empty() {
            return starts.partition_point(|start| *start < from) + 1;
        }
        seen.1 += memchr::memchr_iter(b'\n', &text[seen.0..from]).count();
        seen.0 = from;
        seen.1
    });
    refuse_if(&rejects, events, &bad, taking)?;
    let payload = if rejects.is_empty() {
        text
    } else {
        let mut kept = Vec::with_capacity(text.len());
        let mut at = 0;
        for reject in &rejects {
            let from = reject.offset as usize;
            kept.extend_from_slice(&text[at..from]);
            let end = if starts.is_empty() {
                memchr::memchr(b'\n', &text[from..]).map(|end| from + end + 1)
            } else {
                let next = starts.partition_point(|start| *start <= from);
                starts.get(next).copied()
            };
            at = end.unwrap_or(text.len());
        }
        kept.extend_from_slice(&text[at..]);
        kept.into()
    };
    Ok(Taken {
        content: Content::Bytes,
        units: payload.len() as u32,
        payload,
        events: (events - rejects.len()) as u32,
        refused: rejects.len() as u32,
        bad,
    })
}

fn take_arrow(body: Bytes, taking: &Taking, checks: &Checks) -> Result<Taken, Refusal> {
    let rows = arrow_body::read(&body).map_err(Refusal::bad_request)?;
    let internal = || calve_engine::Error::internal("arrow cannot be checked without a schema");
    let checked = match checks.check(Payload::Rows(rows.clone())) {
        Ok(Some(checked)) => checked,
        Ok(None) => return Err(internal().into()),
        Err(error) if error.kind() == ErrorKind::Internal => return Err(error.into()),
        Err(error) => return Err(Refusal::bad_request(error.to_string())),
    };
    let Checked { events, rejects } = checked;
    let bad = named(&rejects, |reject| reject.offset as usize + 1);
    refuse_if(&rejects, events, &bad, taking)?;
    let (payload, kept) = if rejects.is_empty() {
        (body, rows.num_rows())
    } else {
        let kept = without(&rows, &rejects)
            .and_then(|kept| Ok((arrow_body::write(&kept)?, kept.num_rows())));
        let (written, kept) = kept.map_err(|error| {
            calve_engine::Error::internal("rows cannot be written").because(error)
        })?;
        (written.into(), kept)
    };
    Ok(Taken {
        content: Content::Arrow,
        payload,
        units: kept as u32,
        events: kept as u32,
        refused: rejects.len() as u32,
        bad,
    })
}

fn without(
    rows: &RecordBatch,
    rejects: &[Reject],
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut keep = vec![true; rows.num_rows()];
    for reject in rejects {
        keep[reject.offset as usize] = false;
    }
    filter_record_batch(rows, &BooleanArray::from(keep))
}

fn named(rejects: &[Reject], mut line: impl FnMut(&Reject) -> usize) -> Vec<BadEvent> {
    let bad = |reject: &Reject| BadEvent {
        line: line(reject),
        reason: reject.error.clone(),
    };
    rejects.iter().take(MOST_NAMED).map(bad).collect()
}

fn refuse_if(
    rejects: &[Reject],
    events: usize,
    bad: &[BadEvent],
    taking: &Taking,
) -> Result<(), Refusal> {
    let none_good = rejects.len() == events;
    let all_or_nothing = taking.on_bad_event == OnBadEvent::RejectRequest;
    if !rejects.is_empty() && (all_or_nothing || none_good) {
        return Err(Refusal::bad_events(bad.to_vec(), rejects.len()));
    }
    Ok(())
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
        let values: Vec<&RawValue> =
            serde_json::from_slice(body).map_err(|error| wrong(0, error))?;
        values.into_iter().for_each(&mut push);
    } else {
        let values = serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>();
        for (at, value) in values.enumerate() {
            push(value.map_err(|error| wrong(at, error))?);
        }
    }
    Ok(out.into())
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

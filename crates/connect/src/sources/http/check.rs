//! Whether events can be decoded, by the pipeline's own decoders, before they are acknowledged.

use std::sync::Arc;

use bytes::Bytes;
use calve_engine::{BatcherFactory, Decoder, Payload, RawBatch, Reject, Result};
use calve_model::{OffsetRange, SourcePartition};
use parking_lot::{Mutex, RwLock};

use super::PARTITION;

/// The decoders of a pipeline, for a source that checks what it takes. There are none until the schema
/// is known: then only the form of events is checked. Cheap to clone; clones share the decoders.
#[derive(Clone, Default)]
pub struct Checks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    factory: RwLock<Option<Arc<dyn BatcherFactory>>>,
    idle: Mutex<Vec<Box<dyn Decoder>>>,
}

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checks")
    }
}

/// What a check found.
pub(super) struct Checked {
    /// Events, good and bad.
    pub(super) events: usize,
    /// The bad ones, with offsets from 0.
    pub(super) rejects: Vec<Reject>,
}

impl Checks {
    /// The schema is known: events are checked by the decoders of this factory from now on.
    pub fn set(&self, factory: Arc<dyn BatcherFactory>) {
        *self.inner.factory.write() = Some(factory);
    }

    /// Decodes events and forgets them; none while there is no schema.
    ///
    /// # Errors
    /// What makes all of them unreadable.
    pub(super) fn check(&self, payload: Payload) -> Result<Option<Checked>> {
        let Some(factory) = self.inner.factory.read().clone() else {
            return Ok(None);
        };
        let idle = self.inner.idle.lock().pop();
        let mut decoder = match idle {
            Some(decoder) => decoder,
            None => factory.decoder()?,
        };
        let units = match &payload {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Rows(rows) => rows.num_rows(),
            Payload::Messages(messages) => messages.len(),
        };
        let raw = RawBatch {
            partition: SourcePartition::new(PARTITION),
            range: OffsetRange {
                from: 0,
                to: units as u64,
            },
            payload,
            last: false,
            tag: None,
            arrival: None,
        };
        let decoded = decoder.decode(&raw)?;
        // What the schema will evolve for is no fault of the event.
        let evolves = decoder.evolved(&raw)?.is_some();
        self.inner.idle.lock().push(decoder);
        let events = decoded.rows.num_rows() + decoded.rejects.len();
        let rejects = if evolves { Vec::new() } else { decoded.rejects };
        Ok(Some(Checked { events, rejects }))
    }
}

/// The same while there is no schema: whether each line is a JSON object.
pub(super) fn check_lines(lines: &[u8]) -> Checked {
    let mut checked = Checked {
        events: 0,
        rejects: Vec::new(),
    };
    let mut at = 0;
    while at < lines.len() {
        let end = memchr::memchr(b'\n', &lines[at..]).map_or(lines.len(), |n| at + n);
        let line = lines[at..end].trim_ascii();
        if !line.is_empty() {
            checked.events += 1;
            let object = line[0] == b'{'
                && simdutf8::basic::from_utf8(line).is_ok()
                && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok();
            if !object {
                checked.rejects.push(Reject {
                    offset: at as u64,
                    raw: Bytes::copy_from_slice(line),
                    error: "the line is no JSON object".to_owned(),
                });
            }
        }
        at = end + 1;
    }
    checked
}

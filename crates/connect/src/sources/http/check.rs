//! Whether events can be decoded, by the pipeline's own decoders, before they are acknowledged. Who checks
//! gives them piece by piece: what a piece becomes may take many times its own memory.

use std::sync::Arc;

use bytes::Bytes;
use calve_engine::{BatcherFactory, Decoder, Error, Payload, RawBatch, Reject, Result};
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

/// What a check found in a piece.
pub(super) struct Checked {
    /// Events, good and bad.
    pub(super) events: usize,
    /// The bad ones, with the offsets that the piece gives them.
    pub(super) rejects: Vec<Reject>,
}

impl Checks {
    /// The schema is known: events are checked by the decoders of this factory from now on.
    pub fn set(&self, factory: Arc<dyn BatcherFactory>) {
        *self.inner.factory.write() = Some(factory);
    }

    /// For the events of one request.
    ///
    /// # Errors
    /// `Internal` when there can be no decoder.
    pub(super) fn begin(&self) -> Result<Check> {
        let Some(factory) = self.inner.factory.read().clone() else {
            return Ok(Check {
                decoder: None,
                evolves: false,
            });
        };
        let idle = self.inner.idle.lock().pop();
        let decoder = match idle {
            Some(decoder) => decoder,
            None => factory.decoder()?,
        };
        Ok(Check {
            decoder: Some((decoder, Arc::clone(&self.inner))),
            evolves: false,
        })
    }
}

/// Checks the events of one request, piece by piece.
pub(super) struct Check {
    /// None: the schema is not known.
    decoder: Option<(Box<dyn Decoder>, Arc<Inner>)>,
    evolves: bool,
}

impl Check {
    /// Decodes events and forgets them. The offset of the first one is `from`.
    ///
    /// # Errors
    /// What makes all of them unreadable.
    pub(super) fn piece(&mut self, from: u64, payload: Payload) -> Result<Checked> {
        let Some((decoder, _)) = &mut self.decoder else {
            return match &payload {
                Payload::Bytes(lines) => Ok(check_lines(from, lines)),
                _ => Err(Error::internal("rows cannot be checked without a schema")),
            };
        };
        let units = match &payload {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Rows(rows) => rows.num_rows(),
            Payload::Messages(messages) => messages.len(),
        };
        let raw = RawBatch {
            partition: SourcePartition::new(PARTITION),
            range: OffsetRange {
                from,
                to: from + units as u64,
            },
            payload,
            last: false,
            tag: None,
            arrival: None,
        };
        let decoded = decoder.decode(&raw)?;
        self.evolves |= decoder.evolved(&raw)?.is_some();
        Ok(Checked {
            events: decoded.rows.num_rows() + decoded.rejects.len(),
            rejects: decoded.rejects,
        })
    }

    /// Whether the schema will evolve for these events: then what was wrong with them is no fault of theirs.
    pub(super) fn end(self) -> bool {
        if let Some((decoder, inner)) = self.decoder {
            inner.idle.lock().push(decoder);
        }
        self.evolves
    }
}

/// The same while there is no schema: whether each line is a JSON object.
fn check_lines(from: u64, lines: &[u8]) -> Checked {
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
                    offset: from + at as u64,
                    raw: Bytes::new(),
                    error: "the line is no JSON object".to_owned(),
                });
            }
        }
        at = end + 1;
    }
    checked
}

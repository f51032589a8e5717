//! What flows from left to right: raw batches, decoded rows, rejects. Rows travel together with the
//! offset range that they came from.

use arrow::array::RecordBatch;
use bytes::Bytes;
use calve_model::{Micros, OffsetRange, SourcePartition};

/// The column of rows that holds the offset of the event behind each, where a pipeline asks for it (see
/// [`Decoder::offsets`](crate::seams::Decoder::offsets)).
pub const OFFSET: &str = "_offset";

/// A piece of one source partition as it was read, with the range that it covers.
#[derive(Clone, Debug)]
pub struct RawBatch {
    /// Where it came from.
    pub partition: SourcePartition,
    /// What it covers; ranges of one source partition follow each other without gap.
    pub range: OffsetRange,
    /// The events.
    pub payload: Payload,
    /// The source partition ends behind this batch.
    pub last: bool,
    /// See [`calve_model::Position::tag`]; replaces the stored one when present.
    pub tag: Option<String>,
    /// Processing time of the batch in microseconds since 1970, where the source has a clock of its
    /// own (a replay); none: the machine's.
    pub arrival: Option<Micros>,
}

/// Events, before the decoder.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Whole records (lines, or messages behind their lengths); byte `i` has offset `range.from + i`.
    /// The last line may lack its newline only when the source partition ends there.
    Bytes(Bytes),
    /// Rows that the source read as Arrow already; row `i` has offset `range.from + i`.
    Rows(RecordBatch),
    /// Whole binary messages, each with its own place.
    Messages(Messages),
}

impl Payload {
    /// How many events it holds, about: lines are counted, records of several lines are not seen.
    pub fn events(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.split(|byte| *byte == b'\n').count() - 1,
            Self::Rows(rows) => rows.num_rows(),
            Self::Messages(messages) => messages.len(),
        }
    }
}

/// Binary messages, one behind the other, without framing. The three lists are equally long.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    /// All of them.
    pub bytes: Bytes,
    /// Where each ends in `bytes`; it begins where the one before it ends.
    pub ends: Vec<u32>,
    /// The offset of each, within the batch's range and never falling. Messages that only stand
    /// together (those of one ledger) share an offset.
    pub offsets: Vec<u64>,
    /// The place of each among those of its offset, from 0.
    pub ordinals: Vec<u32>,
}

impl Messages {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Message `at`.
    ///
    /// # Panics
    /// When there is no such message.
    pub fn get(&self, at: usize) -> &[u8] {
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[from as usize..self.ends[at] as usize]
    }
}

impl RawBatch {
    /// Bytes that it holds in memory.
    pub fn bytes(&self) -> usize {
        match &self.payload {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Rows(rows) => rows.get_array_memory_size(),
            Payload::Messages(messages) => messages.bytes.len() + 16 * messages.len(),
        }
    }
}

/// An event that could not be decoded or did not fit the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Offset of the event's first byte (or its row) in the source partition.
    pub offset: u64,
    /// The event as it came, without the line end.
    pub raw: Bytes,
    /// Why; lower case, names the field, never a value.
    pub error: String,
}

/// What a decoder made of a raw batch: `rows + rejects` is every event of it.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// In the order of the source partition.
    pub rows: RecordBatch,
    /// In the order of the source partition.
    pub rejects: Vec<Reject>,
}

/// Lowest and highest event time of a batch, both inclusive; none when the batch has none.
pub type EventTimeBounds = Option<(Micros, Micros)>;

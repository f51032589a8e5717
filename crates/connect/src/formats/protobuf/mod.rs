//! Protobuf messages to Arrow by descriptor, without generated code.
//!
//! A plan says which fields become which columns (`plan`), and compiles the descriptor into tables of
//! fields (`table`). A message is read in one pass over its bytes into a row of cells, one word for
//! each field that a column asks for (`read`); columns are filled from blocks of such rows (`fill`).
//! Nothing is allocated for a message, and what nobody asks for is walked over and not looked at.
//!
//! Invariant: a message becomes a row or a reject, and of a reject nothing remains in the columns.
//! Start with [`ProtobufDecoder`], then `read`.

mod config;
mod convert;
mod draft;
mod fill;
mod frames;
mod json;
mod labels;
mod leaves;
mod nested;
mod numbers;
mod paths;
mod plan;
mod read;
mod table;
mod text;
mod token_transfers;
mod wire;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use bytes::Bytes;
use calve_engine::{Decoded, Decoder, Error, Payload, RawBatch, Reject, Result, batch::Messages};
use calve_model::{OffsetRange, SourcePartition};

pub use self::config::{ColumnConfig, Encoding, Enums, Mapping, Otherwise, ProtobufConfig};
pub use self::frames::Framing;
pub use self::token_transfers::{
    GET_TOKEN_TRANSFERS, TOKEN_TRANSFER, decimal_amount, token_transfer_types, token_transfers,
};
use self::{
    fill::View,
    plan::Plan,
    read::{Places, Reader},
};
use crate::formats::json::text::Failure;

/// Rows that are read before columns are filled from them: their cells stay in the cache.
const BLOCK: usize = 64;

/// So many cells are kept for the next block; more of them were for one huge list.
const LARGEST_CELLS: usize = 1 << 20;

/// Places are 31 bits wide; columns may hold twice as much as the messages (digits of bytes).
pub(crate) const MAX_BYTES: usize = 1 << 29;

/// Turns messages into rows.
pub struct ProtobufDecoder {
    config: ProtobufConfig,
    plan: Plan,
    /// Bytes that are no part of the batch, see [`Reader::spill`].
    spill: Vec<u8>,
    /// The message behind each row of the last batch.
    kept: Vec<u32>,
    decoded: Option<(SourcePartition, OffsetRange)>,
}

/// What became of a batch that was read as a whole.
enum Outcome {
    Done(RecordBatch),
    /// Something did not convert: which message it was must be found out.
    Unfit,
}

impl ProtobufDecoder {
    /// A decoder for messages as the configuration describes them.
    ///
    /// # Errors
    /// `Config` for what cannot be read or does not fit together, `Schema` when the schema is not that
    /// of the configuration.
    pub fn new(config: &ProtobufConfig, schema: &SchemaRef) -> Result<Self> {
        let plan = Plan::new(&config.descriptor()?, config)?;
        if plan.schema.fields() != schema.fields() {
            return Err(Error::schema(
                "the columns are not those that the descriptor and the mapping give",
            )
            .hint(
                "the .proto file changed: `calve run --drain` with the old one, then start anew",
            ));
        }
        Ok(Self {
            config: config.clone(),
            plan,
            spill: Vec::new(),
            kept: Vec::new(),
            decoded: None,
        })
    }

    /// Decodes messages.
    ///
    /// # Errors
    /// `Internal` for 512 MiB or more at once. A bad message is a reject.
    pub fn decode_messages(&mut self, messages: &Messages) -> Result<Decoded> {
        if messages.bytes.len() >= MAX_BYTES {
            return Err(Error::internal(format!(
                "raw batch is too large: bytes={}",
                messages.bytes.len()
            )));
        }
        let mut bad = BTreeMap::new();
        let rows = match self.read(messages, &mut bad)? {
            Outcome::Done(rows) => rows,
            Outcome::Unfit => {
                self.find(messages, &mut bad);
                match self.read(messages, &mut bad)? {
                    Outcome::Done(rows) => rows,
                    Outcome::Unfit => {
                        return Err(Error::internal("messages neither convert nor can be told"));
                    }
                }
            }
        };
        let reject = |(message, failure): (u32, Failure)| Reject {
            offset: messages.offsets[message as usize],
            raw: Bytes::copy_from_slice(messages.get(message as usize)),
            error: failure.message(),
        };
        let rejects = bad.into_iter().map(reject).collect();
        Ok(Decoded { rows, rejects })
    }

    /// Reads all messages but those that are known to be bad; adds those that are malformed to them.
    fn read(&mut self, messages: &Messages, bad: &mut BTreeMap<u32, Failure>) -> Result<Outcome> {
        self.kept.clear();
        self.spill.clone_from(&self.plan.tables.constants);
        let mut failures = Vec::new();
        let mut filled = 0;
        let mut from = 0;
        for (at, end) in messages.ends.iter().enumerate() {
            let (start, end) = (from, *end as usize);
            from = end;
            if !bad.is_empty() && bad.contains_key(&(at as u32)) {
                continue;
            }
            match self.message(messages, start, end, false) {
                Ok(()) => self.kept.push(at as u32),
                Err(failure) => {
                    bad.insert(at as u32, failure);
                }
            }
            if self.kept.len() - filled == BLOCK {
                self.fill(messages, filled, &mut failures);
                filled = self.kept.len();
            }
        }
        self.fill(messages, filled, &mut failures);
        match self.finish() {
            Ok(rows) if failures.is_empty() => Ok(Outcome::Done(rows)),
            // Text that is not UTF-8 is found when the columns are finished.
            Ok(_) | Err(ArrowError::InvalidArgumentError(_)) => Ok(Outcome::Unfit),
            Err(error) => {
                Err(Error::internal("decoded columns do not make a batch").because(error))
            }
        }
    }

    /// Reads one message into a row of the first scope.
    #[inline]
    fn message(
        &mut self,
        messages: &Messages,
        from: usize,
        to: usize,
        careful: bool,
    ) -> Result<(), Failure> {
        let tables = &self.plan.tables;
        let mut reader = Reader::new(&messages.bytes, tables, &mut self.spill, careful);
        reader.message(from, to, &mut self.plan.scopes)
    }

    /// Fills the columns from the rows that were read, and drops these.
    fn fill(&mut self, messages: &Messages, from: usize, failures: &mut Vec<Failure>) {
        let mut view = View {
            scopes: &self.plan.scopes,
            places: Places {
                bytes: &messages.bytes,
                spill: &self.spill,
            },
            messages,
            kept: &self.kept[from..],
            failures,
        };
        for column in &mut self.plan.columns {
            column.append(&mut view);
        }
        for scope in &mut self.plan.scopes {
            scope.cells.clear();
            scope.cells.shrink_to(LARGEST_CELLS);
            scope.rows = 0;
        }
        self.spill.truncate(self.plan.tables.constants.len());
        self.spill.shrink_to(8 * LARGEST_CELLS);
    }

    fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let columns = &mut self.plan.columns;
        let columns: Vec<_> = columns.iter_mut().map(|c| c.fill.finish()).collect();
        let columns = columns.into_iter().collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(Arc::clone(&self.plan.schema), columns)
    }

    /// Finds the messages that are read but do not convert: each is a block of its own.
    #[cold]
    fn find(&mut self, messages: &Messages, bad: &mut BTreeMap<u32, Failure>) {
        self.kept.clear();
        let mut from = 0;
        for (at, end) in messages.ends.iter().enumerate() {
            let (start, end) = (from, *end as usize);
            from = end;
            if bad.contains_key(&(at as u32)) {
                continue;
            }
            let mut failures = Vec::new();
            match self.message(messages, start, end, true) {
                Ok(()) => {
                    self.kept.push(at as u32);
                    self.fill(messages, self.kept.len() - 1, &mut failures);
                }
                Err(failure) => failures.push(failure),
            }
            if let Some(failure) = failures.into_iter().next() {
                bad.insert(at as u32, failure);
            }
        }
        // Only the failures were wanted.
        let _ = self.finish();
    }
}

impl Decoder for ProtobufDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        self.decoded = None;
        let decoded = match &raw.payload {
            Payload::Messages(messages) => self.decode_messages(messages)?,
            Payload::Bytes(bytes) => {
                let framing = self.config.framing;
                let framed = framing.messages(bytes, raw.range.from);
                let (messages, cut) = framed.map_err(|error| error.context(&raw.partition))?;
                let mut decoded = self.decode_messages(&messages)?;
                decoded.rejects.extend(cut);
                decoded
            }
            Payload::Rows(_) => {
                return Err(Error::internal("the protobuf decoder was given rows"));
            }
        };
        self.decoded = Some((raw.partition.clone(), raw.range));
        Ok(decoded)
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        let found = self.messages_of(raw).and_then(|messages| {
            let kept = self.kept_of(raw, &messages, decoded);
            let at = *kept.get(row)? as usize;
            Some(Reject {
                offset: messages.offsets[at],
                raw: Bytes::copy_from_slice(messages.get(at)),
                error: String::new(),
            })
        });
        found.unwrap_or_else(|| Reject {
            offset: raw.range.from,
            raw: Bytes::new(),
            error: format!("row is not in the batch: row={row}"),
        })
    }

    fn offsets(&self, raw: &RawBatch, decoded: &Decoded) -> Vec<u64> {
        let Some(messages) = self.messages_of(raw) else {
            return Vec::new();
        };
        let kept = self.kept_of(raw, &messages, decoded);
        let offsets = kept.iter();
        offsets.map(|at| messages.offsets[*at as usize]).collect()
    }
}

impl ProtobufDecoder {
    /// The messages of a raw batch; none where it holds none.
    fn messages_of<'a>(&self, raw: &'a RawBatch) -> Option<Cow<'a, Messages>> {
        match &raw.payload {
            Payload::Messages(messages) => Some(Cow::Borrowed(messages)),
            Payload::Bytes(bytes) => {
                let framed = self.config.framing.messages(bytes, raw.range.from);
                framed.ok().map(|(messages, _)| Cow::Owned(messages))
            }
            Payload::Rows(_) => None,
        }
    }

    /// The message behind each row.
    fn kept_of(&self, raw: &RawBatch, messages: &Messages, decoded: &Decoded) -> Cow<'_, [u32]> {
        let last = self.decoded.as_ref();
        if last.is_some_and(|(of, range)| *of == raw.partition && *range == raw.range) {
            return Cow::Borrowed(&self.kept);
        }
        if decoded.rejects.is_empty() {
            return (0..messages.len() as u32).collect();
        }
        // Which messages are rows is known only by reading them.
        let again = Self::new(&self.config, &self.plan.schema);
        let kept = again.and_then(|mut again| {
            again.decode_messages(messages)?;
            Ok(again.kept)
        });
        Cow::Owned(kept.unwrap_or_default())
    }
}

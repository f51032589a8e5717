//! What columns are filled from: rows of cells, a block of messages at a time.
//!
//! A [`Fill`] appends the values of a block in a loop of its own, so that what the value is need not
//! be asked for each row. A value that does not convert is a [`View::failed`], and the caller drops
//! the message.

use arrow::{
    array::ArrayRef,
    buffer::{BooleanBuffer, NullBuffer},
    error::ArrowError,
};
use calve_engine::batch::Messages;
use prost_reflect::{EnumDescriptor, MessageDescriptor};

use super::{
    read::Places,
    table::{ABSENT, NOWHERE, Scope},
};
use crate::formats::json::text::Failure;

/// A block of rows.
pub(super) struct View<'a> {
    pub(super) scopes: &'a [Scope],
    pub(super) places: Places<'a>,
    pub(super) messages: &'a Messages,
    /// The message behind each row of the first scope.
    pub(super) kept: &'a [u32],
    /// What did not convert.
    pub(super) failures: &'a mut Vec<Failure>,
}

impl View<'_> {
    #[cold]
    pub(super) fn failed(&mut self, path: &str, what: impl Into<std::borrow::Cow<'static, str>>) {
        self.failures.push(Failure::new(what).within(path));
    }
}

/// Builds a column. Whatever happens, a block appends as many values as it has rows.
pub(super) trait Fill: Send {
    /// Appends the values of all rows of its scope.
    fn append(&mut self, view: &mut View<'_>);

    /// Nulls so far.
    fn nulls(&self) -> usize;

    /// The column; the next one begins empty.
    ///
    /// # Errors
    /// When text is not UTF-8.
    fn finish(&mut self) -> Result<ArrayRef, ArrowError>;
}

/// Which values are there.
#[derive(Debug, Default)]
pub(super) struct Validity {
    len: usize,
    nulls: usize,
    /// One bit a value, the lowest first; without those that are in `last`.
    words: Vec<u64>,
    last: u64,
}

impl Validity {
    #[inline]
    pub(super) fn push(&mut self, valid: bool) {
        self.last |= u64::from(valid) << (self.len % 64);
        self.len += 1;
        self.nulls += usize::from(!valid);
        if self.len.is_multiple_of(64) {
            self.words.push(self.last);
            self.last = 0;
        }
    }

    pub(super) fn nulls(&self) -> usize {
        self.nulls
    }

    pub(super) fn finish(&mut self) -> Option<NullBuffer> {
        let Self {
            len,
            nulls,
            mut words,
            last,
        } = std::mem::take(self);
        words.push(last);
        // Bits of words are those of bytes, the lowest first, where bytes of words are.
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        (nulls > 0).then(|| {
            let bits = BooleanBuffer::new(bytes.collect::<Vec<u8>>().into(), 0, len);
            NullBuffer::new(bits)
        })
    }
}

/// What a field's cell holds.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    I32,
    U32,
    I64,
    U64,
    Bool,
    F32,
    F64,
    Text,
    Bytes,
    Enum(EnumDescriptor),
    /// A google.protobuf.Timestamp, of which the cell holds the seconds.
    Timestamp {
        nanos: u16,
    },
    /// A google.protobuf.Duration, likewise.
    Duration {
        nanos: u16,
    },
    /// A message, kept as its bytes.
    Raw(MessageDescriptor),
    /// A message that has no fields: whether it is there.
    Present,
}

/// A field that a column is filled from.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// Its path, for messages.
    pub(super) path: String,
    pub(super) cell: u16,
    /// The cell that says whether it is there; [`NOWHERE`]: its own does.
    pub(super) flag: u16,
    pub(super) kind: Kind,
}

impl Leaf {
    /// Whether a row has no value of it.
    #[inline]
    pub(super) fn absent(&self, row: &[u64]) -> bool {
        if self.flag == NOWHERE {
            row[usize::from(self.cell)] == ABSENT
        } else {
            row[usize::from(self.flag)] == 0
        }
    }

    /// Its value in a row, which must have one.
    pub(super) fn value<'a>(&self, row: &[u64], places: Places<'a>) -> Scalar<'a> {
        let cell = row[usize::from(self.cell)];
        match &self.kind {
            Kind::I32 | Kind::Enum(_) => Scalar::Int(i128::from(cell as u32 as i32)),
            Kind::U32 => Scalar::Int(i128::from(cell as u32)),
            Kind::I64 => Scalar::Int(i128::from(cell as i64)),
            Kind::U64 => Scalar::Int(i128::from(cell)),
            Kind::Bool | Kind::Present => Scalar::Bool(cell != 0),
            Kind::F32 => Scalar::Float(f64::from(f32::from_bits(cell as u32))),
            Kind::F64 => Scalar::Float(f64::from_bits(cell)),
            Kind::Text | Kind::Bytes | Kind::Raw(_) => Scalar::Bytes(places.get(cell)),
            Kind::Timestamp { nanos } | Kind::Duration { nanos } => {
                Scalar::Moment(cell as i64, row[usize::from(*nanos)] as u32 as i32)
            }
        }
    }
}

/// The first of several fields that a row has a value of.
#[inline]
pub(super) fn first<'a>(leaves: &'a [Leaf], row: &[u64]) -> Option<&'a Leaf> {
    leaves.iter().find(|leaf| !leaf.absent(row))
}

/// A value, whatever its field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    Int(i128),
    Float(f64),
    Bool(bool),
    Bytes(&'a [u8]),
    /// Seconds and nanoseconds.
    Moment(i64, i32),
}

/// Takes what a column holds, and leaves room for as much: the next batch is about as large.
pub(super) fn renew<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = values.len() + values.len() / 8;
    std::mem::replace(values, Vec::with_capacity(room))
}

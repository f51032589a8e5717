//! The columns that events are appended to: the trait, nulls, and which column serves which type.
//!
//! Contract of [`Column`]: an append that fails leaves the column with its old values and perhaps
//! something behind them; the caller then truncates it to the length that it had.

use arrow::{
    array::{ArrayRef, BooleanBufferBuilder},
    buffer::NullBuffer,
    datatypes::{DataType, Field},
    error::ArrowError,
};
use calve_engine::{Error, Result};

use super::{
    dictionary::Dictionary,
    encoded,
    fixed::{Fixed, other_fixed},
    nested::{FixedList, List, Map, Struct},
    scalar::{Boolean, Null},
    strings::{Octets, Strings, hexadecimal},
    text::{Failure, Step, byte, found, word},
    wire::{How, Wire},
};
use crate::formats::evolve::Unknown;

/// Values of one field, in the order of the rows.
pub(in crate::formats) trait Column: Send {
    /// How many there are.
    fn len(&self) -> usize;
    /// Appends the value at `at` (white space before it is fine); answers where it ends.
    fn append(&mut self, text: &str, at: usize) -> Step;
    /// Appends a null, whatever the field allows: its parent is null, or the caller has asked.
    fn append_null(&mut self);
    /// Keeps the first `len` values, and nothing that a failed append left behind them.
    fn truncate(&mut self, len: usize);
    /// Gives the values away and starts over.
    fn finish(&mut self) -> Result<ArrayRef, ArrowError>;
    /// What becomes of fields of objects inside that are not known.
    fn when_unknown(&mut self, unknown: &Unknown) {
        let _ = unknown;
    }
}

/// A column; the frequent ones without a call through a table of functions. With a tag of its own,
/// which is cheaper to read than one that hides in a field.
#[repr(u8)]
pub(in crate::formats) enum Slot {
    Int(Fixed<i64>),
    Float(Fixed<f64>),
    Text(Strings),
    Repeated(Dictionary),
    Other(Box<dyn Column>),
}

impl Slot {
    /// Appends the value at `at` as that of `row`, when its type is frequent, the value plain, and the
    /// row has none yet; answers where it ends.
    #[inline]
    pub(in crate::formats) fn plain(
        &mut self,
        bytes: &[u8],
        at: usize,
        row: usize,
    ) -> Option<usize> {
        match self {
            Self::Int(column) => column.plain(bytes, at, row),
            Self::Float(column) => column.plain(bytes, at, row),
            Self::Text(column) => column.plain(bytes, at, row),
            Self::Repeated(column) => column.plain(bytes, at, row),
            Self::Other(_) => None,
        }
    }

    /// Appends the value at `at`.
    #[inline]
    pub(in crate::formats) fn append(&mut self, text: &str, at: usize) -> Step {
        match self {
            Self::Int(column) => column.append(text, at),
            Self::Float(column) => column.append(text, at),
            Self::Text(column) => column.append(text, at),
            Self::Repeated(column) => column.append(text, at),
            Self::Other(column) => column.append(text, at),
        }
    }

    pub(in crate::formats) fn any(&mut self) -> &mut dyn Column {
        match self {
            Self::Int(column) => column,
            Self::Float(column) => column,
            Self::Text(column) => column,
            Self::Repeated(column) => column,
            Self::Other(column) => column.as_mut(),
        }
    }

    /// The column of a field whose values are written as `wire` says.
    ///
    /// # Errors
    /// `Config` for a type that cannot be read from JSON.
    pub(in crate::formats) fn new(field: &Field, wire: &Wire) -> Result<Self> {
        let nullable = field.is_nullable();
        let data_type = field.data_type();
        if wire.how != How::Plain
            && let Some(column) = encoded::column(field, wire.how)?
        {
            return Ok(Self::Other(column));
        }
        let other: Box<dyn Column> = match data_type {
            DataType::Int64 => return Ok(Self::Int(Fixed::integers(data_type, nullable))),
            DataType::Float64 => return Ok(Self::Float(Fixed::floats(data_type, nullable))),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                return Ok(Self::Text(Strings::new(data_type.clone(), nullable)));
            }
            DataType::Null if !nullable => {
                return Err(Error::config(format!(
                    "a column of type null must be nullable: field={}",
                    field.name()
                )));
            }
            DataType::Null => Box::new(Null::default()),
            DataType::Boolean => Box::new(Boolean::new(nullable)),
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => {
                let (decode, expected) = (hexadecimal, "a string of hexadecimal digits");
                Box::new(Octets::new(data_type.clone(), nullable, decode, expected))
            }
            DataType::Dictionary(key, value) => {
                return Ok(Self::Repeated(Dictionary::new(field, key, value)?));
            }
            DataType::Struct(fields) => Box::new(Struct::new(fields, wire, nullable)?),
            DataType::List(item) => Box::new(List::new(item, wire, false, nullable)?),
            DataType::LargeList(item) => Box::new(List::new(item, wire, true, nullable)?),
            DataType::FixedSizeList(item, size) => {
                Box::new(FixedList::new(item, wire, *size, nullable)?)
            }
            DataType::Map(entries, false) => Box::new(Map::new(entries, wire, nullable)?),
            _ => other_fixed(data_type, nullable)?.ok_or_else(|| unsupported(field))?,
        };
        Ok(Self::Other(other))
    }
}

/// The error for a field whose type cannot be read from JSON.
pub(in crate::formats) fn unsupported(field: &Field) -> Error {
    Error::config(format!(
        "type is not supported by the json format: field={} type={}",
        field.name(),
        field.data_type()
    ))
}

/// Which rows are null: their numbers, rising. Costs nothing while there are none.
#[derive(Debug, Default)]
pub(in crate::formats) struct Nulls(Vec<u32>);

impl Nulls {
    pub(in crate::formats) fn push(&mut self, row: usize) {
        self.0.push(row as u32);
    }

    pub(in crate::formats) fn truncate(&mut self, len: usize) {
        while self.0.last().is_some_and(|&row| row as usize >= len) {
            self.0.pop();
        }
    }

    /// The validity of `len` rows; starts over.
    pub(in crate::formats) fn finish(&mut self, len: usize) -> Option<NullBuffer> {
        if self.0.is_empty() {
            return None;
        }
        let mut bits = BooleanBufferBuilder::new(len);
        bits.append_n(len, true);
        for row in self.0.drain(..) {
            bits.set_bit(row as usize, false);
        }
        Some(NullBuffer::new(bits.finish()))
    }
}

/// Appends null, where it stands at `at` and the field allows it, or says what is wrong with the
/// value; answers where it ends.
pub(in crate::formats) fn append_null(
    column: &mut dyn Column,
    bytes: &[u8],
    at: usize,
    nullable: bool,
    expected: &str,
) -> Step {
    let end = null_or_fail(bytes, at, nullable, &expected)?;
    column.append_null();
    Ok(end)
}

/// Walks over `null` where the field allows it, or says what is wrong with the value at `at`.
pub(in crate::formats) fn null_or_fail(
    bytes: &[u8],
    at: usize,
    nullable: bool,
    expected: &dyn std::fmt::Display,
) -> Step {
    let first = byte(bytes, at);
    if first == b'n' {
        let end = word(bytes, at, b"null")?;
        return if nullable {
            Ok(end)
        } else {
            Err(Failure::new("null in a required field"))
        };
    }
    Err(Failure::new(format!(
        "expected {expected}, got {}",
        found(first)
    )))
}

//! Columns of strings, and of bytes (in JSON hexadecimal, or base64).

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, BinaryArray, BinaryViewBuilder, FixedSizeBinaryArray, LargeBinaryArray,
        LargeStringArray, StringArray, StringViewBuilder,
    },
    buffer::{OffsetBuffer, ScalarBuffer},
    datatypes::DataType,
    error::ArrowError,
};

use super::{
    column::{Column, append_null},
    packed::{Packed, large},
    text::{Failure, Step, byte, is_null, skip_space, string},
};

/// Strings, in any of Arrow's three layouts.
pub(in crate::formats) struct Strings {
    packed: Packed,
    nullable: bool,
    data_type: DataType,
}

impl Strings {
    pub(super) fn new(data_type: DataType, nullable: bool) -> Self {
        Self {
            packed: Packed::new(),
            nullable,
            data_type,
        }
    }

    /// Appends the value at `at` as that of `row`, when it is a short plain string or null; answers
    /// where it ends.
    #[inline]
    pub(super) fn plain(&mut self, bytes: &[u8], at: usize, row: usize) -> Option<usize> {
        if self.packed.len() != row {
            return None;
        }
        if byte(bytes, at) == b'"' {
            return self.packed.copy_short(bytes, at + 1);
        }
        if self.nullable && is_null(bytes, at) {
            self.append_null();
            return Some(at + 4);
        }
        None
    }
}

impl Column for Strings {
    #[inline]
    fn len(&self) -> usize {
        self.packed.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) == b'"' {
            return self.packed.copy(bytes, at + 1);
        }
        let nullable = self.nullable;
        append_null(self, bytes, at, nullable, "a string")
    }

    #[inline]
    fn append_null(&mut self) {
        self.packed.push_null();
    }

    fn truncate(&mut self, len: usize) {
        self.packed.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let (ends, bytes, nulls) = self.packed.finish();
        Ok(match &self.data_type {
            DataType::LargeUtf8 => Arc::new(LargeStringArray::try_new(large(&ends), bytes, nulls)?),
            DataType::Utf8View => {
                let array = StringArray::try_new(OffsetBuffer::new(ends.into()), bytes, nulls)?;
                let mut views = StringViewBuilder::with_capacity(array.len());
                array.iter().for_each(|value| views.append_option(value));
                Arc::new(views.finish())
            }
            _ => Arc::new(StringArray::try_new(
                OffsetBuffer::new(ends.into()),
                bytes,
                nulls,
            )?),
        })
    }
}

/// Bytes, written in JSON as strings of some alphabet.
pub(super) struct Octets {
    packed: Packed,
    nullable: bool,
    data_type: DataType,
    decode: fn(&str) -> Option<Vec<u8>>,
    /// What the values are.
    expected: &'static str,
}

impl Octets {
    pub(super) fn new(
        data_type: DataType,
        nullable: bool,
        decode: fn(&str) -> Option<Vec<u8>>,
        expected: &'static str,
    ) -> Self {
        Self {
            packed: Packed::new(),
            nullable,
            data_type,
            decode,
            expected,
        }
    }
}

impl Column for Octets {
    #[inline]
    fn len(&self) -> usize {
        self.packed.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) != b'"' {
            let (nullable, expected) = (self.nullable, self.expected);
            return append_null(self, bytes, at, nullable, expected);
        }
        let (content, end) = string(text, at)?;
        let value = (self.decode)(&content)
            .ok_or_else(|| Failure::new(format!("the value is not {}", self.expected)))?;
        if let DataType::FixedSizeBinary(size) = self.data_type
            && value.len() != size as usize
        {
            return Err(Failure::new(format!(
                "expected {size} bytes, got {}",
                value.len()
            )));
        }
        self.packed.push(&value);
        Ok(end)
    }

    fn append_null(&mut self) {
        match self.data_type {
            DataType::FixedSizeBinary(size) => self.packed.push_null_of(size as usize),
            _ => self.packed.push_null(),
        }
    }

    fn truncate(&mut self, len: usize) {
        self.packed.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let (ends, bytes, nulls) = self.packed.finish();
        Ok(match &self.data_type {
            DataType::FixedSizeBinary(size) => {
                Arc::new(FixedSizeBinaryArray::try_new(*size, bytes, nulls)?)
            }
            DataType::LargeBinary => {
                Arc::new(LargeBinaryArray::try_new(large(&ends), bytes, nulls)?)
            }
            DataType::BinaryView => {
                let ends = OffsetBuffer::new(ScalarBuffer::from(ends));
                let array = BinaryArray::try_new(ends, bytes, nulls)?;
                let mut views = BinaryViewBuilder::with_capacity(array.len());
                array.iter().for_each(|value| views.append_option(value));
                Arc::new(views.finish())
            }
            _ => Arc::new(BinaryArray::try_new(
                OffsetBuffer::new(ends.into()),
                bytes,
                nulls,
            )?),
        })
    }
}

/// The bytes of hexadecimal digits. A digit that is left over at the end counts as a byte, as in
/// arrow-json.
pub(super) fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| pair.iter().try_fold(0, |sum, &b| Some(sum << 4 | hex(b)?)))
        .collect()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

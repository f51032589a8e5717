//! Columns of dictionaries of strings.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, DictionaryArray, Int32Array, StringArray},
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field, Int32Type},
    error::ArrowError,
};
use calve_engine::{
    Error, Result,
    short::{Mixer, Numbering},
};
use wide::u8x16;

use super::{
    column::{Column, Nulls, append_null, unsupported},
    packed::Packed,
    text::{BLOCK, Step, block, byte, is_null, quotes, skip_space},
};

/// Larger dictionaries do not outlast a batch.
pub(super) const KEPT_BYTES: usize = 1 << 20;

/// Strings that repeat: each distinct one once, and a number for each row.
pub(in crate::formats) struct Dictionary {
    data_type: DataType,
    value_type: DataType,
    nullable: bool,
    ids: Vec<i32>,
    nulls: Nulls,
    distinct: Distinct,
}

impl Dictionary {
    /// # Errors
    /// `Config` for keys below 32 bits, which a batch could exceed, and for values that are no
    /// strings.
    pub(super) fn new(field: &Field, key: &DataType, value: &DataType) -> Result<Self> {
        let fits = matches!(
            key,
            DataType::Int32 | DataType::Int64 | DataType::UInt32 | DataType::UInt64
        );
        if !fits && key.is_integer() {
            return Err(Error::config(format!(
                "dictionary keys must have at least 32 bits: field={} key={key}",
                field.name()
            ))
            .hint("a batch may hold more distinct values than smaller keys can number"));
        }
        if !fits
            || !matches!(
                value,
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
            )
        {
            return Err(unsupported(field));
        }
        Ok(Self {
            data_type: field.data_type().clone(),
            value_type: value.clone(),
            nullable: field.is_nullable(),
            ids: Vec::new(),
            nulls: Nulls::default(),
            distinct: Distinct::new(),
        })
    }

    /// Appends the value at `at` as that of `row`, when it is a short plain string that was there before,
    /// or null; answers where it ends.
    #[inline]
    pub(super) fn plain(&mut self, bytes: &[u8], at: usize, row: usize) -> Option<usize> {
        if self.ids.len() != row {
            return None;
        }
        if byte(bytes, at) == b'"' {
            let block = block(bytes, at + 1)?;
            let block = u8x16::new(*block);
            // A quote that is not the string's end, or none, makes a key that no string has: those with a
            // backslash or a line feed are not found by their bytes.
            let plain = (quotes(block) | 1 << (BLOCK - 1)).trailing_zeros() as usize;
            let quoted = block & UPTO[plain % BLOCK];
            let id = self
                .distinct
                .numbers
                .find(u128::from_le_bytes(quoted.to_array()))?;
            self.ids.push(id as i32);
            return Some(at + plain + 2);
        }
        if self.nullable && is_null(bytes, at) {
            self.append_null();
            return Some(at + 4);
        }
        None
    }
}

impl Column for Dictionary {
    #[inline]
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) == b'"' {
            let end = self.distinct.strings.copy(bytes, at + 1)?;
            self.ids.push(self.distinct.settle() as i32);
            return Ok(end);
        }
        let nullable = self.nullable;
        append_null(self, bytes, at, nullable, "a string")
    }

    fn append_null(&mut self) {
        self.nulls.push(self.ids.len());
        self.ids.push(0);
    }

    // A distinct string of a row that was taken back stays; no row refers to it then.
    fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.nulls.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let len = self.ids.len();
        let nulls = self.nulls.finish(len);
        let next = Vec::with_capacity(len + len / 8);
        let ids = std::mem::replace(&mut self.ids, next);
        if self.distinct.numbers.is_empty() && len > 0 {
            self.distinct.strings.push(b""); // what the numbers of nulls point to
            self.distinct.settle();
        }
        let values = self.distinct.array(&self.value_type)?;
        if !self.distinct.pays(len) {
            self.distinct = Distinct::new();
        }
        let ids = Int32Array::try_new(ids.into(), nulls)?;
        let array = DictionaryArray::<Int32Type>::try_new(ids, values)?;
        if *array.data_type() == self.data_type {
            return Ok(Arc::new(array));
        }
        cast(&array, &self.data_type)
    }
}

/// Distinct strings, in the order of their first occurrence. They outlast a batch that has them often,
/// so that the next one finds them, and whoever reads both finds the same array (where numbers have 32
/// bits with a sign).
struct Distinct {
    mix: Mixer,
    strings: Packed,
    /// Of short strings their bytes and the quote behind them, which tells how many they are; of others a
    /// hash, and [`LONG`].
    numbers: Numbering<u128>,
    /// All strings; none when one came since.
    array: Option<ArrayRef>,
    /// Strings of earlier batches.
    before: usize,
}

/// Slots of the first table: many, so that few strings seldom meet in it.
const FIRST_BITS: u32 = 10;
/// No key of a short string has this last byte.
const LONG: u128 = 1 << 120;
/// By length of a short string: the bytes of its block up to the quote behind it.
const UPTO: [u8x16; BLOCK] = {
    let mut upto = [u8x16::new([0; BLOCK]); BLOCK];
    let mut length = 0;
    while length < BLOCK {
        let mut bytes = [0; BLOCK];
        let mut at = 0;
        while at <= length {
            bytes[at] = 0xff;
            at += 1;
        }
        upto[length] = u8x16::new(bytes);
        length += 1;
    }
    upto
};

impl Distinct {
    fn new() -> Self {
        Self {
            mix: Mixer::new(),
            strings: Packed::new(),
            numbers: Numbering::new(FIRST_BITS),
            array: None,
            before: 0,
        }
    }

    /// Whether the next batch should find the strings, after one of `rows` rows.
    fn pays(&mut self, rows: usize) -> bool {
        let new = self.numbers.len() - self.before;
        self.before = self.numbers.len();
        new * 2 <= rows && self.before <= rows && self.strings.bytes() <= KEPT_BYTES
    }

    /// The number of the string that was just copied, which is cut off again if it was there before.
    fn settle(&mut self) -> u32 {
        let last = self.numbers.len();
        let value = self.strings.get(last);
        // What a text can hold only escaped must not be found where it is not.
        let escaped = |byte: &u8| matches!(byte, b'\\' | b'\n');
        let long = value.len() >= BLOCK || value.iter().any(escaped);
        let key = if long {
            u128::from(self.mix.bytes(value)) | LONG
        } else {
            let mut quoted = [0; BLOCK];
            quoted[..value.len()].copy_from_slice(value);
            quoted[value.len()] = b'"';
            u128::from_le_bytes(quoted)
        };
        let same = |id: u32| !long || self.strings.get(id as usize) == value;
        if let Some(known) = self.numbers.find_same(key, same) {
            self.strings.truncate(last);
            return known;
        }
        self.array = None;
        self.numbers.insert(key)
    }

    fn array(&mut self, value_type: &DataType) -> Result<ArrayRef, ArrowError> {
        if let Some(array) = &self.array {
            return Ok(Arc::clone(array));
        }
        let (ends, bytes) = self.strings.copied();
        let strings = StringArray::try_new(OffsetBuffer::new(ends.into()), bytes, None)?;
        let array = match value_type {
            DataType::Utf8 => Arc::new(strings),
            other => cast(&strings, other)?,
        };
        self.array = Some(Arc::clone(&array));
        Ok(array)
    }
}

//! Columns of strings, of dictionaries of strings, and of bytes (hexadecimal in JSON).
//!
//! A string is copied 16 bytes at a time into a buffer that always has room for one block more, and
//! its end is looked for in the same blocks; what was copied beyond the end is overwritten by the
//! next string or cut off. Every string is a part of validated text, so the buffer is valid too.

use std::{
    hash::{BuildHasher, BuildHasherDefault},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayData, ArrayRef, BinaryArray, BinaryViewBuilder, FixedSizeBinaryArray,
        Int32Array, LargeBinaryArray, LargeStringArray, StringArray, StringViewBuilder, make_array,
    },
    buffer::{Buffer, OffsetBuffer, ScalarBuffer},
    compute::cast,
    datatypes::{DataType, Field},
    error::ArrowError,
};
use calve_engine::{Error, Result};
use rustc_hash::FxHasher;
use wide::u8x16;

use super::{
    column::{Column, Nulls, null_or_fail, unsupported},
    text::{
        BLOCK, Failure, Step, block, byte, escape, is_null, last_block, skip_space, special,
        string, unended,
    },
};

/// Byte strings one behind the other.
struct Packed {
    /// The strings up to `used`; then room.
    bytes: Vec<u8>,
    used: usize,
    /// Where each string ends, after a zero.
    ends: Vec<i32>,
    /// Bytes and rows of the last batch: the first guess for the next.
    guess: (usize, usize),
}

impl Packed {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            used: 0,
            ends: vec![0],
            guess: (0, 0),
        }
    }

    fn len(&self) -> usize {
        self.ends.len() - 1
    }

    fn get(&self, row: usize) -> &[u8] {
        &self.bytes[self.ends[row] as usize..self.ends[row + 1] as usize]
    }

    /// Ends the string that begins at `used`. A raw batch is below 2 GiB, and so is what it holds.
    #[inline]
    fn end(&mut self, used: usize) {
        self.used = used;
        self.ends.push(used as i32);
    }

    #[cold]
    fn grow(&mut self, needed: usize) {
        let room = needed.max(self.bytes.len() * 2).max(self.guess.0 + 64);
        self.bytes.resize(room, 0);
    }

    /// Copies the string whose content begins at `at`, and pushes it, when one block holds it and it
    /// is plain: no loop, and most strings are. Answers where it ends.
    #[inline]
    fn copy_short(&mut self, bytes: &[u8], at: usize) -> Option<usize> {
        let block = block(bytes, at)?;
        let used = self.used as u32 as usize; // as in `block`
        let room = self.bytes.get_mut(used..used + BLOCK)?;
        // Where there is no hit the last byte stands in, which then is no quote.
        let plain = (special(u8x16::new(*block)) | 1 << (BLOCK - 1)).trailing_zeros() as usize;
        if block[plain] != b'"' {
            return None;
        }
        room.copy_from_slice(block);
        self.end(used + plain);
        Some(at + plain + 1)
    }

    fn copy(&mut self, bytes: &[u8], at: usize) -> Step {
        match self.copy_short(bytes, at) {
            Some(end) => Ok(end),
            None => self.copy_any(bytes, at),
        }
    }

    /// The same, for strings of any length with anything in them.
    #[inline(never)]
    fn copy_any(&mut self, bytes: &[u8], mut at: usize) -> Step {
        let mut used = self.used;
        loop {
            if self.bytes.len() < used + BLOCK {
                self.grow(used + BLOCK);
            }
            let block = block(bytes, at)
                .copied()
                .unwrap_or_else(|| last_block(bytes, at));
            self.bytes[used..used + BLOCK].copy_from_slice(&block);
            let hits = special(u8x16::new(block));
            if hits == 0 {
                at += BLOCK;
                used += BLOCK;
                continue;
            }
            let plain = hits.trailing_zeros() as usize;
            at += plain;
            used += plain;
            if byte(bytes, at) == b'"' {
                self.end(used);
                return Ok(at + 1);
            }
            (at, used) = self.unescape(bytes, at, used)?;
        }
    }

    /// Decodes the escape sequence at `at` to `used`.
    fn unescape(
        &mut self,
        bytes: &[u8],
        at: usize,
        used: usize,
    ) -> Result<(usize, usize), Failure> {
        if byte(bytes, at) != b'\\' {
            return Err(unended());
        }
        let (one, at) = escape(bytes, at)?;
        // The block that was just copied left room for 16 bytes behind the old `used`.
        if self.bytes.len() < used + BLOCK {
            self.grow(used + BLOCK);
        }
        Ok((at, used + one.encode_utf8(&mut self.bytes[used..]).len()))
    }

    fn push(&mut self, value: &[u8]) {
        let used = self.used + value.len();
        if self.bytes.len() < used {
            self.grow(used);
        }
        self.bytes[self.used..used].copy_from_slice(value);
        self.end(used);
    }

    fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.ends.truncate(len + 1);
            self.used = self.ends[len] as usize;
        }
    }

    /// Bytes and offsets; starts over.
    fn finish(&mut self) -> (Buffer, Vec<i32>) {
        self.guess = (
            self.used + self.used / 8,
            self.ends.len() + self.ends.len() / 8,
        );
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.truncate(self.used);
        self.used = 0;
        let mut next = Vec::with_capacity(self.guess.1);
        next.push(0);
        (
            Buffer::from_vec(bytes),
            std::mem::replace(&mut self.ends, next),
        )
    }
}

fn large(ends: &[i32]) -> OffsetBuffer<i64> {
    OffsetBuffer::new(ends.iter().map(|&end| i64::from(end)).collect())
}

/// Strings, in any of Arrow's three layouts.
pub(super) struct Strings {
    packed: Packed,
    nulls: Nulls,
    nullable: bool,
    data_type: DataType,
}

impl Strings {
    pub(super) fn new(data_type: DataType, nullable: bool) -> Self {
        Self {
            packed: Packed::new(),
            nulls: Nulls::default(),
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
        let end = null_or_fail(bytes, at, self.nullable, &"a string")?;
        self.append_null();
        Ok(end)
    }

    #[inline]
    fn append_null(&mut self) {
        self.nulls.push(self.packed.len());
        self.packed.end(self.packed.used);
    }

    fn truncate(&mut self, len: usize) {
        self.packed.truncate(len);
        self.nulls.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish(self.packed.len());
        let (bytes, ends) = self.packed.finish();
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

/// Strings that repeat: each distinct one once per batch, and a number for each row.
pub(super) struct Dictionary {
    data_type: DataType,
    nullable: bool,
    keys: Vec<i32>,
    nulls: Nulls,
    distinct: Packed,
    /// Open addressing: number of a distinct string plus one, or zero.
    table: Vec<u32>,
}

impl Dictionary {
    /// # Errors
    /// `Config` for keys below 32 bits, which a batch could exceed, and for values that are no
    /// strings.
    pub(super) fn new(
        field: &Field,
        key: &DataType,
        value: &DataType,
        nullable: bool,
    ) -> Result<Self> {
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
        let data_type = field.data_type().clone();
        let (keys, nulls, distinct) = (Vec::new(), Nulls::default(), Packed::new());
        Ok(Self {
            data_type,
            nullable,
            keys,
            nulls,
            distinct,
            table: vec![0; 64],
        })
    }

    /// The number of the last distinct string, which is dropped again if it was there before.
    #[inline]
    fn settle(&mut self) -> i32 {
        let last = self.distinct.len() - 1;
        let value = self.distinct.get(last);
        let mask = self.table.len() - 1;
        let mut slot = hash(value) as usize & mask;
        while self.table[slot] != 0 {
            let known = self.table[slot] as usize - 1;
            if self.distinct.get(known) == value {
                self.distinct.truncate(last);
                return known as i32;
            }
            slot = (slot + 1) & mask;
        }
        self.table[slot] = last as u32 + 1;
        if (last + 1) * 2 > self.table.len() {
            self.rebuild(self.table.len() * 4);
        }
        last as i32
    }

    #[cold]
    fn rebuild(&mut self, slots: usize) {
        self.table.clear();
        self.table.resize(slots, 0);
        for number in 0..self.distinct.len() {
            let mut slot = hash(self.distinct.get(number)) as usize & (slots - 1);
            while self.table[slot] != 0 {
                slot = (slot + 1) & (slots - 1);
            }
            self.table[slot] = number as u32 + 1;
        }
    }
}

fn hash(value: &[u8]) -> u64 {
    BuildHasherDefault::<FxHasher>::default().hash_one(value)
}

impl Column for Dictionary {
    #[inline]
    fn len(&self) -> usize {
        self.keys.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) == b'"' {
            let end = self.distinct.copy(bytes, at + 1)?;
            let key = self.settle();
            self.keys.push(key);
            return Ok(end);
        }
        let end = null_or_fail(bytes, at, self.nullable, &"a string")?;
        self.append_null();
        Ok(end)
    }

    fn append_null(&mut self) {
        self.nulls.push(self.keys.len());
        self.keys.push(0);
    }

    // A distinct string of a row that was taken back stays; no row refers to it then.
    fn truncate(&mut self, len: usize) {
        self.keys.truncate(len);
        self.nulls.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let DataType::Dictionary(key, value) = &self.data_type else {
            return Err(ArrowError::SchemaError(
                "a dictionary column without its type".into(),
            ));
        };
        if self.distinct.len() == 0 && !self.keys.is_empty() {
            self.distinct.push(b""); // what the keys of nulls point to
        }
        let len = self.keys.len();
        let nulls = self.nulls.finish(len);
        let next = Vec::with_capacity(len);
        let keys = Int32Array::new(std::mem::replace(&mut self.keys, next).into(), None);
        let keys = cast(&keys, key)?;
        self.table.clear();
        self.table.resize(64, 0);
        let (bytes, ends) = self.distinct.finish();
        let values = StringArray::try_new(OffsetBuffer::new(ends.into()), bytes, None)?;
        let data = ArrayData::builder(self.data_type.clone())
            .len(len)
            .add_buffer(keys.to_data().buffers()[0].clone())
            .nulls(nulls)
            .add_child_data(cast(&values, value)?.to_data())
            .build()?;
        Ok(make_array(data))
    }
}

/// Bytes, written in JSON as hexadecimal strings.
pub(super) struct Hex {
    packed: Packed,
    nulls: Nulls,
    nullable: bool,
    data_type: DataType,
}

impl Hex {
    pub(super) fn new(data_type: DataType, nullable: bool) -> Self {
        Self {
            packed: Packed::new(),
            nulls: Nulls::default(),
            nullable,
            data_type,
        }
    }
}

impl Column for Hex {
    #[inline]
    fn len(&self) -> usize {
        self.packed.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) != b'"' {
            let end = null_or_fail(bytes, at, self.nullable, &"a string of hexadecimal digits")?;
            self.append_null();
            return Ok(end);
        }
        let (content, end) = string(text, at)?;
        // A digit that is left over at the end counts as a byte, as in arrow-json.
        let value: Option<Vec<u8>> = content
            .as_bytes()
            .chunks(2)
            .map(|pair| pair.iter().try_fold(0, |sum, &b| Some(sum << 4 | hex(b)?)))
            .collect();
        let value = value.ok_or_else(|| Failure::new("the string is not hexadecimal"))?;
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
        self.nulls.push(self.packed.len());
        match self.data_type {
            DataType::FixedSizeBinary(size) => self.packed.push(&vec![0; size as usize]),
            _ => self.packed.push(b""),
        }
    }

    fn truncate(&mut self, len: usize) {
        self.packed.truncate(len);
        self.nulls.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish(self.packed.len());
        let (bytes, ends) = self.packed.finish();
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

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

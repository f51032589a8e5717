//! Columns of dictionaries of strings.

use std::hash::{BuildHasher, BuildHasherDefault};

use arrow::{
    array::{Array, ArrayData, ArrayRef, Int32Array, StringArray, make_array},
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field},
    error::ArrowError,
};
use calve_engine::{Error, Result};
use rustc_hash::FxHasher;

use super::{
    column::{Column, Nulls, append_null, unsupported},
    packed::Packed,
    text::{Step, byte, skip_space},
};

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
        let nullable = self.nullable;
        append_null(self, bytes, at, nullable, "a string")
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
        let (ends, bytes, _) = self.distinct.finish();
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

//! Keys of windows: the bytes of the key columns, equal where the values are equal.

use std::fmt;

use arrow::{
    array::{ArrayRef, RecordBatch},
    row::{RowConverter, SortField},
};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smallvec::SmallVec;

use super::arrow_failed;
use crate::{checkpoint::hex, error::Result};

/// The bytes of a key; empty where all rows share their windows.
///
/// Short ones, which nearly all are, lie in place: a batch of ten thousand sessions allocates nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(SmallVec<[u8; 16]>);

impl Key {
    /// The key with these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let digit = |at: u8| (at as char).to_digit(16).map(|d| d as u8);
        let pairs = text.as_bytes().chunks(2);
        let bytes = pairs.map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        });
        let bytes: Option<SmallVec<_>> = bytes.collect();
        bytes
            .map(Self)
            .ok_or_else(|| de::Error::custom("a key that is not hexadecimal"))
    }
}

/// The distinct keys of a batch, and which row has which.
pub(super) struct Keys {
    /// In the order in which they come first.
    pub(super) distinct: Vec<Key>,
    /// For each row; empty where there is only one key.
    pub(super) ids: Vec<u32>,
}

impl Keys {
    /// Of the columns `columns`; without columns, one empty key.
    pub(super) fn of(rows: &RecordBatch, columns: &[usize]) -> Result<Self> {
        if columns.is_empty() {
            return Ok(Self {
                distinct: vec![Key::default()],
                ids: Vec::new(),
            });
        }
        let arrays: Vec<ArrayRef> = columns.iter().map(|c| rows.column(*c).clone()).collect();
        let fields = arrays
            .iter()
            .map(|array| SortField::new(array.data_type().clone()))
            .collect();
        let converter = RowConverter::new(fields).map_err(arrow_failed)?;
        let bytes = converter.convert_columns(&arrays).map_err(arrow_failed)?;
        let mut seen: FxHashMap<&[u8], u32> = FxHashMap::default();
        let mut distinct = Vec::new();
        let mut ids = Vec::with_capacity(rows.num_rows());
        for row in &bytes {
            let data = row.data();
            let id = *seen.entry(data).or_insert_with(|| {
                distinct.push(Key::new(data));
                distinct.len() as u32 - 1
            });
            ids.push(id);
        }
        Ok(Self { distinct, ids })
    }

    pub(super) fn id(&self, row: usize) -> u32 {
        self.ids.get(row).copied().unwrap_or(0)
    }
}

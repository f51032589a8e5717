//! Arrays that are dictionaries already: each of their values is looked up once, however many arrays
//! share it.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    buffer::NullBuffer,
    compute::cast,
    datatypes::{DataType, Int32Type},
};
use parquet::errors::ParquetError;

use super::{each, strings, values::Texts};

/// So many dictionaries are remembered: batchers have each their own.
const MOST: usize = 4;
/// Of a dictionary with more values for each row, values are looked up by row.
const SPARSE: usize = 4;
/// No number yet for a value of a dictionary array.
const UNKNOWN: u32 = u32::MAX;

/// What is known of the dictionaries that came last, the last one first.
#[derive(Debug, Default)]
pub(super) struct Coded(Vec<Known>);

/// A dictionary, and by its values their numbers in the column chunk, and their bytes.
#[derive(Debug)]
struct Known {
    values: ArrayRef,
    numbers: Vec<(u32, u32)>,
}

impl Coded {
    /// Appends the numbers of the rows of a dictionary of strings; returns the bytes of the strings.
    pub(super) fn append(
        &mut self,
        texts: &mut Texts,
        ids: &mut Vec<u32>,
        rows: &dyn Array,
        nulls: Option<&NullBuffer>,
    ) -> Result<usize, ParquetError> {
        let dictionary = rows.as_any_dictionary();
        let values = dictionary.values();
        if values.is_empty() {
            return Ok(0);
        }
        if values.len() > rows.len() * SPARSE {
            let plain = cast(rows, &DataType::LargeUtf8)?;
            return Ok(strings(texts, ids, plain.as_string::<i64>(), nulls));
        }
        let known = self.known(values);
        let mut bytes = 0;
        let mut add = |key: usize| {
            let (id, length) = &mut known[key];
            if *id == UNKNOWN {
                let value = value(values, key);
                (*id, *length) = (texts.id(value, 0..value.len()), value.len() as u32);
            }
            bytes += *length as usize;
            ids.push(*id);
        };
        if let Some(keys) = dictionary.keys().as_primitive_opt::<Int32Type>() {
            each(rows.len(), nulls, |row| add(keys.values()[row] as usize));
        } else {
            let keys = dictionary.normalized_keys();
            each(rows.len(), nulls, |row| add(keys[row]));
        }
        Ok(bytes)
    }

    /// What is known of a dictionary, which comes first from now on.
    fn known(&mut self, values: &ArrayRef) -> &mut [(u32, u32)] {
        let same =
            |known: &Known| std::ptr::addr_eq(Arc::as_ptr(&known.values), Arc::as_ptr(values));
        match self.0.iter().position(same) {
            Some(0) => {}
            Some(at) => self.0[..=at].rotate_right(1),
            None => {
                self.0.truncate(MOST - 1);
                let values = Arc::clone(values);
                let numbers = vec![(UNKNOWN, 0); values.len()];
                self.0.insert(0, Known { values, numbers });
            }
        }
        &mut self.0[0].numbers
    }

    /// Memory held, in bytes: of a dictionary itself where nobody else holds it any more.
    pub(super) fn memory(&self) -> usize {
        let held = |known: &Known| {
            let alone = Arc::strong_count(&known.values) == 1;
            let values = if alone {
                known.values.get_array_memory_size()
            } else {
                0
            };
            values + known.numbers.capacity() * 8
        };
        self.0.iter().map(held).sum()
    }
}

/// A value of a dictionary of strings.
fn value(values: &ArrayRef, key: usize) -> &[u8] {
    match values.data_type() {
        DataType::LargeUtf8 => values.as_string::<i64>().value(key).as_bytes(),
        _ => values.as_string::<i32>().value(key).as_bytes(),
    }
}

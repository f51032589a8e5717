//! Rows brought into another order, column by column.
//!
//! Strings are not moved: what stands for them says which string each row has (an Arrow dictionary whose
//! values are the column as it was), and whoever encodes them reads them where they lie.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, DictionaryArray, GenericStringArray,
        OffsetSizeTrait, PrimitiveArray, RecordBatch, RecordBatchOptions, UInt32Array,
        downcast_primitive_array,
    },
    buffer::{BooleanBuffer, NullBuffer, OffsetBuffer},
    compute::{cast, concat, take},
    datatypes::{DataType, Field, Schema, UInt32Type},
    error::ArrowError,
};
use calve_engine::error::Result;

use super::arrow_failed;

/// Strings are copied in blocks of this size: one copy of a known length costs less than one of
/// just the bytes.
const BLOCK: usize = 16;
/// Groups of fewer rows are not repeated.
const SMALL: usize = 64;
/// So many lengths are compared before the first that differs counts.
const CHUNK: usize = 64;

/// What rows that will lie together have in common.
pub(super) struct Alike<'a> {
    /// Columns that have one value within each group.
    pub(super) keys: &'a [ArrayRef],
    /// By group: a row of it, and where its rows will be.
    pub(super) firsts: &'a [u32],
    pub(super) ranges: &'a [Range<usize>],
}

/// The rows of a batch in another order; `order` has each row number once.
pub(super) fn reorder(
    rows: &RecordBatch,
    order: Vec<u32>,
    alike: &Alike<'_>,
) -> Result<RecordBatch> {
    let order = UInt32Array::from(order);
    // Its numbers are checked once.
    let mut checked: Option<DictionaryArray<UInt32Type>> = None;
    let mut select = |column: &ArrayRef| {
        let selected = match &checked {
            Some(selected) => selected.with_values(Arc::clone(column)),
            None => DictionaryArray::try_new(order.clone(), Arc::clone(column))?,
        };
        checked.get_or_insert_with(|| selected.clone());
        Ok(Arc::new(selected) as ArrayRef)
    };
    let mut moved = |column: &ArrayRef| match (alike.repeated(column)?, column.data_type()) {
        (Some(repeated), _) => Ok(repeated),
        (None, DataType::Utf8 | DataType::LargeUtf8) => select(column),
        _ => take(column.as_ref(), &order, None),
    };
    let columns = rows.columns().iter().map(&mut moved);
    let columns: Vec<_> = columns.collect::<Result<_, _>>().map_err(arrow_failed)?;
    let fields = rows.schema_ref().fields().iter().zip(&columns);
    let fields = fields.map(|(field, column)| {
        let of = column.data_type();
        if of == field.data_type() {
            return Arc::clone(field);
        }
        Arc::new(Field::clone(field).with_data_type(of.clone()))
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let options = RecordBatchOptions::new().with_row_count(Some(order.len()));
    RecordBatch::try_new_with_options(schema, columns, &options).map_err(arrow_failed)
}

impl Alike<'_> {
    /// A key column in the new order: one value for each group, repeated. None: it is no key, its type
    /// is not worth it, or the groups are small.
    fn repeated(&self, column: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
        let same = |key: &ArrayRef| std::ptr::addr_eq(Arc::as_ptr(key), Arc::as_ptr(column));
        if self.firsts.len() * SMALL > column.len() || !self.keys.iter().any(same) {
            return Ok(None);
        }
        let any = column.as_ref();
        Ok(match any.data_type() {
            // Of values that are equal the bits may differ.
            of if of.is_floating() || any.null_count() > 0 => None,
            DataType::Utf8 => Some(self.strings(column.as_string::<i32>())?),
            DataType::LargeUtf8 => Some(self.strings(column.as_string::<i64>())?),
            _ => downcast_primitive_array! {
                any => Some(Arc::new(self.primitives(any))),
                _ => None,
            },
        })
    }

    fn groups(&self) -> impl Iterator<Item = (usize, usize)> {
        let groups = self.firsts.iter().zip(self.ranges);
        groups.map(|(first, range)| (*first as usize, range.len()))
    }

    fn primitives<T: ArrowPrimitiveType>(&self, array: &PrimitiveArray<T>) -> PrimitiveArray<T> {
        let mut values = Vec::with_capacity(array.len());
        for (first, rows) in self.groups() {
            values.resize(values.len() + rows, array.value(first));
        }
        PrimitiveArray::new(values.into(), None).with_data_type(array.data_type().clone())
    }

    fn strings<O: OffsetSizeTrait>(
        &self,
        array: &GenericStringArray<O>,
    ) -> Result<ArrayRef, ArrowError> {
        let groups = self.groups();
        let repeated =
            |(first, rows)| GenericStringArray::<O>::new_repeated(array.value(first), rows);
        let groups: Vec<_> = groups.map(repeated).collect();
        concat(
            &groups
                .iter()
                .map(|group| group as &dyn Array)
                .collect::<Vec<_>>(),
        )
    }
}

/// The column with its strings moved to where they belong, if [`reorder`] left them where they were.
pub(super) fn settled(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let Some((selected, order)) = selection(column) else {
        return match column.data_type() {
            // Not of ours, but taken for it where no row is null: of one column all pieces have one type.
            DataType::Dictionary(key, value) if **key == DataType::UInt32 => cast(column, value),
            _ => Ok(Arc::clone(column)),
        };
    };
    match selected.data_type() {
        DataType::LargeUtf8 => strings(selected.as_string::<i64>(), order),
        _ => strings(selected.as_string::<i32>(), order),
    }
}

/// Strings, and which of them each row has; none: the column is not what [`reorder`] makes of strings.
pub(super) fn selection(column: &dyn Array) -> Option<(&ArrayRef, &[u32])> {
    let selected = column
        .as_any()
        .downcast_ref::<DictionaryArray<UInt32Type>>()?;
    let (keys, values) = (selected.keys(), selected.values());
    let strings = matches!(values.data_type(), DataType::Utf8 | DataType::LargeUtf8);
    (strings && keys.null_count() == 0).then(|| (values, keys.values().as_ref()))
}

fn strings<O: OffsetSizeTrait>(
    array: &GenericStringArray<O>,
    order: &[u32],
) -> Result<ArrayRef, ArrowError> {
    let (values, offsets) = (array.value_data(), array.value_offsets());
    let (first, last) = (offsets[0].as_usize(), offsets[array.len()].as_usize());
    let (bytes, ends) = match width_of(offsets) {
        Some(width) => {
            let bytes = alike(&values[first..last], width, order);
            (
                bytes,
                OffsetBuffer::from_repeated_length(width, order.len()),
            )
        }
        None => unlike(values, offsets, order),
    };
    let nulls = array.nulls().map(|nulls| {
        let valid = |at: usize| nulls.is_valid(order[at] as usize);
        NullBuffer::new(BooleanBuffer::collect_bool(order.len(), valid))
    });
    let strings = GenericStringArray::<O>::try_new(ends, bytes.into(), nulls)?;
    Ok(Arc::new(strings))
}

/// The length that all strings have; none: they have several.
fn width_of<O: OffsetSizeTrait>(offsets: &[O]) -> Option<usize> {
    let width = *offsets.get(1)? - offsets[0];
    // Counted, so that several are compared at once.
    let others = |(starts, ends): (&[O], &[O])| {
        let pairs = starts.iter().zip(ends);
        pairs
            .filter(|(start, end)| **end - **start != width)
            .count()
    };
    let (starts, ends) = (offsets.chunks(CHUNK), offsets[1..].chunks(CHUNK));
    let same = starts.zip(ends).all(|chunk| others(chunk) == 0);
    same.then(|| width.as_usize())
}

/// Strings of one length.
fn alike(values: &[u8], width: usize, order: &[u32]) -> Vec<u8> {
    if width == 1 {
        return order.iter().map(|row| values[*row as usize]).collect();
    }
    let mut bytes = vec![0u8; order.len() * width + BLOCK];
    let mut at = 0;
    for row in order {
        let start = *row as usize * width;
        copy(values, start, width, &mut bytes, at);
        at += width;
    }
    bytes.truncate(at);
    bytes
}

/// Strings of several lengths, and their ends.
fn unlike<O: OffsetSizeTrait>(
    values: &[u8],
    offsets: &[O],
    order: &[u32],
) -> (Vec<u8>, OffsetBuffer<O>) {
    let (starts, stops) = (&offsets[..offsets.len() - 1], &offsets[1..]);
    let length = |row: &u32| (stops[*row as usize] - starts[*row as usize]).as_usize();
    let total: usize = order.iter().map(length).sum();
    // The block of the last may reach beyond.
    let mut bytes = vec![0u8; total + BLOCK];
    let mut ends = vec![O::usize_as(0); order.len() + 1];
    let mut at = 0;
    for (row, end) in order.iter().zip(&mut ends[1..]) {
        let (start, stop) = (starts[*row as usize], stops[*row as usize]);
        let (start, length) = (start.as_usize(), (stop - start).as_usize());
        copy(values, start, length, &mut bytes, at);
        at += length;
        *end = O::usize_as(at);
    }
    bytes.truncate(total);
    (bytes, OffsetBuffer::new(ends.into()))
}

#[inline]
fn copy(values: &[u8], start: usize, length: usize, bytes: &mut [u8], at: usize) {
    let from = values.get(start..start + BLOCK);
    let to = bytes.get_mut(at..at + BLOCK);
    match (from, to) {
        (Some(from), Some(to)) if length <= BLOCK => to.copy_from_slice(from),
        _ => bytes[at..at + length].copy_from_slice(&values[start..start + length]),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{LargeStringArray, StringArray};
    use proptest::prelude::*;

    use super::*;

    /// Texts of several lengths, or of one.
    fn texts() -> impl Strategy<Value = Vec<Option<String>>> {
        let unlike = prop::collection::vec(prop::option::weighted(0.8, ".{0,40}"), 1..80);
        let widths = prop::sample::select(vec![0_usize, 1, 2, 15, 16, 17, 40]);
        let alike = (widths, 1_usize..200).prop_flat_map(|(width, rows)| {
            let text = prop::collection::vec(prop::char::range('a', 'z'), width);
            prop::collection::vec(text.prop_map(|text| Some(text.into_iter().collect())), rows)
        });
        prop_oneof![unlike, alike]
    }

    #[test]
    fn a_dictionary_of_another_maker_settles_to_one_type() {
        for keys in [vec![Some(1), Some(0)], vec![Some(1), None]] {
            let values = Arc::new(StringArray::from(vec!["a", "b"]));
            let column = DictionaryArray::new(UInt32Array::from(keys.clone()), values);
            let settled = settled(&(Arc::new(column) as ArrayRef)).expect("settled");
            let texts = keys
                .iter()
                .map(|key| key.map(|key| ["a", "b"][key as usize]));
            assert_eq!(settled.as_string::<i32>(), &texts.collect::<StringArray>());
        }
    }

    #[test]
    fn a_null_may_have_bytes() {
        let text = StringArray::from(vec!["ab", "cd", "ef", "gh"]);
        let nulls = NullBuffer::from(vec![true, false, true, false]);
        let text = StringArray::new(text.offsets().clone(), text.values().clone(), Some(nulls));
        let order = UInt32Array::from(vec![3, 1, 2, 0]);
        let ours = strings(&text, order.values()).expect("moved");
        assert_eq!(&ours, &take(&text, &order, None).expect("taken"));
    }

    proptest! {
        #[test]
        fn rows_are_those_that_arrow_takes(
            texts in texts(),
            skip in 0usize..8,
            seed: u64,
        ) {
            let skip = skip.min(texts.len() - 1);
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from(texts.clone())),
                Arc::new(LargeStringArray::from(texts.clone())),
                Arc::new(UInt32Array::from_iter_values(0..texts.len() as u32)),
            ];
            let fields: Vec<_> = columns
                .iter()
                .enumerate()
                .map(|(at, column)| Field::new(format!("c{at}"), column.data_type().clone(), true))
                .collect();
            let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch");
            let rows = rows.slice(skip, texts.len() - skip);
            let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
            order.sort_by_key(|row| u64::from(*row).wrapping_mul(seed | 1).rotate_left(17));
            let alike = Alike { keys: &[], firsts: &[], ranges: &[] };
            let ours = reorder(&rows, order.clone(), &alike).expect("reordered");
            let order = UInt32Array::from(order);
            for (ours, column) in ours.columns().iter().zip(rows.columns()) {
                let theirs = take(column.as_ref(), &order, None).expect("taken");
                prop_assert_eq!(&settled(ours).expect("settled"), &theirs);
                // A few of them.
                let few = skip.min(order.len() / 2);
                let (ours, theirs) = (ours.slice(few, order.len() - few), theirs.slice(few, order.len() - few));
                prop_assert_eq!(&settled(&ours).expect("settled"), &theirs);
            }
        }
    }
}

//! The splitter against a naive one: row by row, by the value as it prints.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
        Float32Array, Float64Array, Int8Array, Int64Array, LargeStringArray, NullArray,
        StringArray, StringViewArray, TimestampMicrosecondArray, UInt64Array,
    },
    datatypes::{Field, Int64Type, Schema, SchemaRef},
    util::display::{ArrayFormatter, FormatOptions},
};
use calve_engine::error::ErrorKind;
use calve_engine::opaque::Opaque;
use calve_model::Epoch;
use proptest::prelude::*;

use super::*;
use crate::write::{DescribedFile, FinishedFile, KeyValue};

/// Partitions by its first columns; the last column is the row number.
#[derive(Debug)]
struct FirstColumns {
    schema: SchemaRef,
    keys: usize,
}

impl Placement for FirstColumns {
    fn file_schema(&self) -> SchemaRef {
        self.schema.clone()
    }
    fn place(&self, rows: RecordBatch) -> Result<Placed> {
        Ok(Placed {
            keys: rows.columns()[..self.keys].to_vec(),
            rows,
        })
    }
    fn path(&self, _: &TablePartition, unique: &str) -> String {
        unique.to_owned()
    }
    fn describe(&self, _: &FinishedFile<'_>) -> Result<Opaque> {
        Ok(Opaque::default())
    }
    fn content(&self, _: Epoch, _: Vec<DescribedFile>) -> Result<Opaque> {
        Ok(Opaque::default())
    }
}

fn batch(mut keys: Vec<ArrayRef>) -> RecordBatch {
    let rows = keys[0].len();
    keys.push(Arc::new((0..rows as i64).collect::<Int64Array>()));
    let fields: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(i, key)| Field::new(format!("c{i}"), key.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), keys).expect("a batch")
}

fn splitter(rows: &RecordBatch, keys: usize) -> FanoutSplitter {
    FanoutSplitter::new(Arc::new(FirstColumns {
        schema: rows.schema(),
        keys,
    }))
}

/// Row numbers by what the key columns print, in order.
fn naive(rows: &RecordBatch, keys: usize) -> BTreeMap<Vec<String>, Vec<i64>> {
    let options = FormatOptions::new().with_null("<null>");
    let formatters: Vec<_> = rows.columns()[..keys]
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).expect("a formatter"))
        .collect();
    let mut groups: BTreeMap<Vec<String>, Vec<i64>> = BTreeMap::new();
    for row in 0..rows.num_rows() {
        let key = formatters
            .iter()
            .map(|f| f.value(row).to_string())
            .collect();
        groups.entry(key).or_default().push(row as i64);
    }
    groups
}

fn check(rows: RecordBatch, keys: usize) {
    let expected = naive(&rows, keys);
    let mut splitter = splitter(&rows, keys);
    let total = rows.num_rows();
    let split = splitter.split_rows(rows.clone()).expect("a split");
    let again = splitter.split_rows(rows).expect("a split");
    assert_eq!(split.groups.len(), expected.len(), "as many groups");
    let mut seen = 0;
    for ((partition, range), (same, _)) in split.groups.iter().zip(&again.groups) {
        assert!(
            Arc::ptr_eq(partition, same),
            "a table partition is one object"
        );
        let part = split.rows.slice(range.start, range.len());
        let numbers = part.columns().last().expect("row numbers").clone();
        let numbers: Vec<i64> = arrow::array::AsArray::as_primitive::<Int64Type>(&numbers)
            .values()
            .to_vec();
        let groups = naive(&part, keys);
        assert_eq!(groups.len(), 1, "one key in a group");
        let key = groups.keys().next().expect("a key");
        assert_eq!(numbers, expected[key], "the rows of a key, in order");
        assert_eq!(
            **partition,
            TablePartition::of(&part.columns()[..keys], 0).expect("a key"),
            "the key is that of its rows"
        );
        seen += range.len();
    }
    assert_eq!(seen, total, "every row once");
}

/// A key column of some type, from small numbers (none: null).
fn column(kind: u8, of: &[Option<i64>]) -> ArrayRef {
    let text =
        |v: &Option<i64>| v.map(|v| format!("{v}{}", "x".repeat((v.unsigned_abs() % 20) as usize)));
    match kind {
        0 => Arc::new(of.iter().copied().collect::<Int64Array>()),
        1 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| v.wrapping_mul(i64::MAX / 7)))
                .collect::<Int64Array>(),
        ),
        2 => Arc::new(of.iter().map(|v| v.map(|v| v as i8)).collect::<Int8Array>()),
        3 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| v as u64))
                .collect::<UInt64Array>(),
        ),
        4 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| v % 2 == 0))
                .collect::<BooleanArray>(),
        ),
        5 => Arc::new(of.iter().map(text).collect::<StringArray>()),
        6 => Arc::new(of.iter().map(text).collect::<LargeStringArray>()),
        7 => Arc::new(of.iter().map(text).collect::<StringViewArray>()),
        8 => Arc::new(
            of.iter()
                .map(|v| text(v).map(String::into_bytes))
                .collect::<BinaryArray>(),
        ),
        9 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| if v == 3 { f64::NAN } else { v as f64 / 3.0 }))
                .collect::<Float64Array>(),
        ),
        10 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| if v == 3 { f32::NAN } else { v as f32 }))
                .collect::<Float32Array>(),
        ),
        11 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| v as i32))
                .collect::<Date32Array>(),
        ),
        12 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| v * 3_600_000_000))
                .collect::<TimestampMicrosecondArray>(),
        ),
        13 => Arc::new(
            of.iter()
                .map(|v| v.map(|v| i128::from(v) << 70))
                .collect::<Decimal128Array>(),
        ),
        14 => {
            let strings: Vec<Option<String>> = of.iter().map(text).collect();
            let strings: Vec<Option<&str>> = strings.iter().map(Option::as_deref).collect();
            Arc::new(
                strings
                    .into_iter()
                    .collect::<DictionaryArray<arrow::datatypes::Int32Type>>(),
            )
        }
        _ => Arc::new(NullArray::new(of.len())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn splits_as_the_naive_one(
        kinds in proptest::collection::vec(0u8..16, 1..4),
        values in proptest::collection::vec(proptest::option::weighted(0.9, -6i64..12), 0..400),
        wide in any::<bool>(),
    ) {
        let keys: Vec<ArrayRef> = kinds
            .iter()
            .enumerate()
            .map(|(at, kind)| {
                let spread = if wide { 977 * at as i64 + 1 } else { 1 };
                let values: Vec<_> =
                    values.iter().enumerate().map(|(row, v)| v.map(|v| {
                        if at == 0 { v } else { (v + row as i64 / 50) % 13 * spread }
                    })).collect();
                column(*kind, &values)
            })
            .collect();
        let count = keys.len();
        check(batch(keys), count);
    }
}

#[test]
fn a_key_of_few_values_is_repeated() {
    for kind in 0..16 {
        for null in [None, Some(3)] {
            let values = (0..3000i64).map(|v| Some(v * v % 11 - 4).filter(|v| Some(*v) != null));
            let values: Vec<_> = values.collect();
            // A slice, so that offsets into buffers matter.
            let key = column(kind, &values).slice(17, 2900);
            check(batch(vec![key.clone()]), 1);
            check(batch(vec![column(5, &values[40..2940]), key]), 2);
        }
    }
}

#[test]
fn many_groups_grow_the_table() {
    let values: Vec<Option<i64>> = (0..20_000i64).map(|v| Some(v * 7919 % 10_007)).collect();
    for kind in [1, 5, 13] {
        check(batch(vec![column(kind, &values)]), 1);
    }
    check(batch(vec![column(5, &values), column(1, &values)]), 2);
}

#[test]
fn a_dictionary_may_repeat_values_and_hold_nulls() {
    let values: ArrayRef = Arc::new(StringArray::from(vec![
        Some("a"),
        None,
        Some("a"),
        Some("b"),
    ]));
    let keys =
        arrow::array::Int32Array::from(vec![Some(0), Some(1), None, Some(2), Some(3), Some(2)]);
    let dictionary = DictionaryArray::try_new(keys, values).expect("a dictionary");
    let rows = batch(vec![Arc::new(dictionary)]);
    let split = splitter(&rows, 1).split_rows(rows).expect("a split");
    let sizes: Vec<_> = split
        .groups
        .iter()
        .map(|(key, range)| (key.0[0].clone(), range.len()))
        .collect();
    let text = |text: &str| KeyValue::Text(text.into());
    assert_eq!(sizes, [(text("a"), 3), (KeyValue::Null, 2), (text("b"), 1)]);
    check(batch(vec![column(14, &[])]), 1);
    check(batch(vec![column(14, &[None; 5])]), 1);
}

#[test]
fn rows_that_lie_together_are_not_copied() {
    let values: Vec<Option<i64>> = (0..100).map(|v| Some(v / 40)).collect();
    for rows in [
        batch(vec![column(0, &values)]),
        batch(vec![column(0, &[Some(7); 50])]),
    ] {
        let split = splitter(&rows, 1)
            .split_rows(rows.clone())
            .expect("a split");
        assert_eq!(
            split.rows.column(1).to_data().buffers()[0].as_ptr(),
            rows.column(1).to_data().buffers()[0].as_ptr()
        );
    }
}

#[test]
fn negative_zero_and_nan() {
    let odd_nan = f64::from_bits(f64::NAN.to_bits() | 1 | (1 << 63));
    let rows = batch(vec![Arc::new(Float64Array::from(vec![
        0.0,
        -0.0,
        f64::NAN,
        odd_nan,
    ]))]);
    let split = splitter(&rows, 1).split_rows(rows).expect("a split");
    assert_eq!(split.groups.len(), 3, "0, -0 and NaN");
}

#[test]
fn a_nested_key_is_refused() {
    let list =
        arrow::array::ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1)])]);
    let rows = batch(vec![Arc::new(list)]);
    let error = splitter(&rows, 1)
        .split_rows(rows)
        .expect_err("no nested keys");
    assert_eq!(error.kind(), ErrorKind::Config);
}

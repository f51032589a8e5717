//! Each row is in its windows, rows of a window side by side and in their order.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{AsArray, Int64Array, StringArray},
    datatypes::Int64Type,
};
use calve_model::windows::Strategy;
use proptest::prelude::*;

use super::*;
use crate::{
    event_time::{EventTime, Unit},
    windows::LateRows,
};

fn rows(times: &[i64], keys: &[&str]) -> RecordBatch {
    let numbers: Int64Array = (0..times.len() as i64).map(Some).collect();
    let fields = vec![
        Field::new("at", DataType::Int64, true),
        Field::new("key", DataType::Utf8, true),
        Field::new("n", DataType::Int64, false),
    ];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(times.to_vec())),
        Arc::new(StringArray::from(keys.to_vec())),
        Arc::new(numbers),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
}

fn windowed(windowing: Windowing, keyed: bool) -> Windowed {
    let schema = rows(&[], &[]).schema();
    Windowed {
        strategy: Strategy {
            windowing,
            ..Strategy::default()
        },
        time: Some(EventTime::of(&schema, "at", Some(Unit::Micros)).expect("a column")),
        key: if keyed { vec![1] } else { Vec::new() },
        rows: None,
        aggregate: None,
        key_in_states: Vec::new(),
        late: LateRows::Side,
        pane_columns: false,
        memory_bytes: 1 << 20,
    }
}

/// Key, window and row numbers of each group.
fn groups(assigned: &Assigned) -> Vec<(Key, Window, Vec<i64>)> {
    let numbers = assigned.content.column(2).as_primitive::<Int64Type>();
    let mut at = 0;
    let groups = assigned.groups.iter().map(|group| {
        assert_eq!(group.at.start, at, "groups lie one behind the other");
        at = group.at.end;
        let rows = numbers.values()[group.at.clone()].to_vec();
        assert_eq!(group.elements, rows.len() as u64);
        (group.key.clone(), group.window, rows)
    });
    let groups = groups.collect();
    assert_eq!(at, assigned.content.num_rows());
    groups
}

fn window(start: i64, end: i64) -> Window {
    Window { start, end }
}

#[test]
fn rows_of_one_window_are_not_copied() {
    let batch = rows(&[10, 19, 11], &["a", "b", "a"]);
    let plan = windowed(
        Windowing::Fixed {
            size: 10,
            offset: 0,
        },
        false,
    );
    let assigned = plan.assign(batch.clone()).expect("assigned");
    assert_eq!(
        groups(&assigned),
        [(Key::default(), window(10, 20), vec![0, 1, 2])]
    );
    let (before, after) = (
        batch.column(0).to_data(),
        assigned.content.column(0).to_data(),
    );
    assert_eq!(before.buffers()[0].as_ptr(), after.buffers()[0].as_ptr());
}

#[test]
fn a_row_is_in_each_of_its_sliding_windows() {
    let plan = windowed(
        Windowing::Sliding {
            size: 20,
            period: 10,
            offset: 0,
        },
        false,
    );
    let assigned = plan.assign(rows(&[5, 15], &["a", "a"])).expect("assigned");
    let mut found = groups(&assigned);
    found.sort();
    let key = Key::default;
    assert_eq!(
        found,
        [
            (key(), window(-10, 10), vec![0]),
            (key(), window(0, 20), vec![0, 1]),
            (key(), window(10, 30), vec![1]),
        ]
    );
}

#[test]
fn sessions_are_of_one_key_and_touching_ones_stay_apart() {
    let plan = windowed(Windowing::Session { gap: 10 }, true);
    let batch = rows(&[30, 0, 9, 19, 5], &["a", "a", "a", "a", "b"]);
    let found = groups(&plan.assign(batch).expect("assigned"));
    let of: Vec<_> = found
        .iter()
        .map(|(_, w, rows)| (*w, rows.clone()))
        .collect();
    assert_eq!(
        of,
        [
            (window(0, 19), vec![1, 2]),
            (window(19, 29), vec![3]),
            (window(30, 40), vec![0]),
            (window(5, 15), vec![4]),
        ]
    );
    assert_eq!(found[0].0, found[1].0);
    assert_ne!(found[0].0, found[3].0);
}

#[test]
fn a_row_without_event_time_is_one_to_reject() {
    let plan = windowed(
        Windowing::Fixed {
            size: 10,
            offset: 0,
        },
        false,
    );
    let batch = rows(&[1], &["a"]);
    let mut columns = batch.columns().to_vec();
    columns[0] = Arc::new(Int64Array::from(vec![None]));
    let batch = RecordBatch::try_new(batch.schema(), columns).expect("a batch");
    let error = plan.assign(batch).expect_err("no event time");
    assert_eq!(error.kind(), crate::error::ErrorKind::Data);
    assert!(error.to_string().contains("column=at"), "{error}");
}

proptest! {
    #[test]
    fn each_row_is_where_it_belongs(
        events in prop::collection::vec((-100i64..100, 0usize..3), 0..80),
        size in 1i64..40, gap in 1i64..30, keyed: bool,
    ) {
        let names = ["x", "y", "z"];
        let times: Vec<i64> = events.iter().map(|e| e.0).collect();
        let keys: Vec<&str> = events.iter().map(|e| names[e.1]).collect();
        let batch = rows(&times, &keys);

        let plan = windowed(Windowing::Fixed { size, offset: 3 }, keyed);
        let found = groups(&plan.assign(batch.clone()).expect("assigned"));
        let mut expected: BTreeMap<(usize, i64), Vec<i64>> = BTreeMap::new();
        for (n, (at, key)) in events.iter().enumerate() {
            let key = if keyed { *key } else { 0 };
            let start = (at - 3).div_euclid(size) * size + 3;
            expected.entry((key, start)).or_default().push(n as i64);
        }
        let mut got: Vec<Vec<i64>> = found.iter().map(|(_, _, rows)| rows.clone()).collect();
        let mut want: Vec<Vec<i64>> = expected.into_values().collect();
        got.sort();
        want.sort();
        prop_assert_eq!(got, want);
        for (_, window, rows) in &found {
            let inside = |n: &i64| (window.start..window.end).contains(&times[*n as usize]);
            prop_assert!(rows.iter().all(inside));
        }

        let plan = windowed(Windowing::Session { gap }, true);
        let found = groups(&plan.assign(batch).expect("assigned"));
        let all: usize = found.iter().map(|(_, _, rows)| rows.len()).sum();
        prop_assert_eq!(all, events.len());
        for (key, window, rows) in &found {
            let mut at: Vec<i64> = rows.iter().map(|n| times[*n as usize]).collect();
            at.sort_unstable();
            prop_assert_eq!(*window, Window { start: at[0], end: at[at.len() - 1] + gap });
            prop_assert!(at.windows(2).all(|pair| pair[1] - pair[0] < gap));
            prop_assert!(rows.is_sorted(), "the order of arrival stays");
            let same = |other: &&(Key, Window, Vec<i64>)| other.0 == *key && other.1 != *window;
            for other in found.iter().filter(same) {
                prop_assert!(other.1.end <= window.start || window.end <= other.1.start);
            }
        }
    }
}

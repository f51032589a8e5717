//! Figures of many observers against one query over all rows; what is refused; what is stopped.

use std::{sync::Arc, thread};

use arrow::{
    array::{AsArray, DictionaryArray, Float64Array, Int64Array, StringArray},
    compute::concat_batches,
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema},
};
use calve_engine::ErrorKind;
use datafusion::datasource::MemTable;
use proptest::prelude::*;

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("bucket", DataType::Utf8, true),
        Field::new("user_id", DataType::Int64, true),
        Field::new("amount", DataType::Float64, true),
    ]))
}

fn batch(rows: &[(Option<u8>, i64, Option<i32>)]) -> RecordBatch {
    let bucket: StringArray = rows.iter().map(|r| r.0.map(|b| format!("b{b}"))).collect();
    let user: Int64Array = rows.iter().map(|r| Some(r.1)).collect();
    // Halves add up exactly, in whatever order.
    let amount: Float64Array = rows
        .iter()
        .map(|r| r.2.map(|a| f64::from(a) / 2.0))
        .collect();
    let columns = vec![
        Arc::new(bucket) as _,
        Arc::new(user) as _,
        Arc::new(amount) as _,
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn monitors(queries: &[&str]) -> Monitors {
    let queries: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(i, sql)| (format!("m{i}"), (*sql).to_owned()))
        .collect();
    Monitors::plan(&queries, &schema()).unwrap()
}

const QUERIES: [&str; 12] = [
    "SELECT bucket, count(*) AS n, avg(amount) AS a FROM events GROUP BY bucket ORDER BY n DESC, bucket",
    "SELECT count(*) AS n, sum(amount) AS s, min(amount) AS lo, max(user_id) AS hi FROM events",
    "SELECT bucket, sum(amount) AS s FROM events WHERE amount > 3 GROUP BY bucket HAVING count(*) > 1 ORDER BY s, bucket LIMIT 3",
    "SELECT count(DISTINCT user_id) AS n FROM events",
    "SELECT bucket, count(DISTINCT user_id) AS n, count(*) AS c FROM events GROUP BY bucket ORDER BY bucket",
    "SELECT DISTINCT bucket FROM events ORDER BY bucket",
    "SELECT user_id % 3 AS k, count(*) FILTER (WHERE amount > 5) AS n FROM events GROUP BY user_id % 3 ORDER BY k",
    "SELECT bucket, user_id, count(*) AS n FROM events GROUP BY ROLLUP(bucket, user_id) ORDER BY bucket, user_id, n",
    "SELECT max(n) AS most FROM (SELECT bucket, count(*) AS n FROM events GROUP BY bucket) AS t",
    "SELECT bucket, rank() OVER (ORDER BY count(*) DESC, bucket) AS r FROM events GROUP BY bucket ORDER BY r, bucket",
    "SELECT approx_distinct(user_id) AS n, stddev(amount) > 0 AS spread FROM events",
    "SELECT count(*) AS n FROM events WHERE false",
];

/// The same query over a table of all rows.
fn whole(sql: &str, rows: Vec<RecordBatch>) -> RecordBatch {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let table = Arc::new(MemTable::try_new(schema(), vec![rows]).unwrap());
    runtime.block_on(async {
        let tables = vec![("events".to_owned(), table as _)];
        let result = crate::query(sql, tables, &crate::QueryOptions::default())
            .await
            .unwrap();
        let schema = result.schema();
        concat_batches(&schema, &result.collect().await.unwrap()).unwrap()
    })
}

fn assert_figures(monitors: &Monitors, rows: &[RecordBatch]) {
    for (figure, sql) in monitors.result().iter().zip(QUERIES) {
        assert_eq!(figure.note, None, "{sql}");
        let expected = whole(sql, rows.to_vec());
        assert_eq!(figure.rows.columns(), expected.columns(), "{sql}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn figures_equal_a_query_over_all_rows(
        batches in prop::collection::vec(
            prop::collection::vec((prop::option::of(0u8..5), 0i64..20, prop::option::of(0i32..20)), 0..40),
            0..8,
        )
    ) {
        let batches: Vec<_> = batches.iter().map(|rows| batch(rows)).collect();
        let monitors = monitors(&QUERIES);
        let mut observers: Vec<_> = (0..3).map(|_| monitors.observer()).collect();
        for (i, rows) in batches.iter().enumerate() {
            observers[i % 3].observe(rows);
            if i % 2 == 1 {
                assert_figures(&monitors, &batches[..=i]);
            }
        }
        drop(observers);
        assert_figures(&monitors, &batches);
    }
}

fn many(seed: i64, rows: i64) -> RecordBatch {
    let rows: Vec<_> = (0..rows)
        .map(|i| {
            (
                Some((i % 7) as u8),
                (i * 31 + seed) % 5_000,
                Some((i % 13) as i32),
            )
        })
        .collect();
    batch(&rows)
}

#[test]
fn observers_on_threads_merge_states_as_they_grow() {
    let monitors = monitors(&QUERIES);
    let batches: Vec<_> = (0..40).map(|seed| many(seed, 10_000)).collect();
    thread::scope(|scope| {
        for share in batches.chunks(10) {
            let mut observer = monitors.observer();
            scope.spawn(move || share.iter().for_each(|rows| observer.observe(rows)));
        }
        for _ in 0..5 {
            for figure in monitors.result() {
                assert_eq!(figure.note, None, "while observers run");
            }
        }
    });
    assert_figures(&monitors, &batches);
}

#[test]
fn states_stay_small() {
    let monitors = monitors(&["SELECT bucket, count(*) AS n FROM events GROUP BY bucket"]);
    let mut observer = monitors.observer();
    let rows = many(0, 40_000);
    for _ in 0..2_000 {
        observer.observe(&rows.slice(0, 40_000));
        let parts = monitors.0.parts.lock();
        let states = parts[0].lock().states(0);
        assert!(states.iter().map(RecordBatch::num_rows).sum::<usize>() <= 5_000);
    }
    let figure = &monitors.result()[0];
    let n = figure.rows.column(1).as_primitive::<Int64Type>();
    assert_eq!(arrow::compute::sum(n), Some(80_000_000));
}

#[test]
fn too_many_groups_stop_a_monitor_and_no_other() {
    let queries = [
        "SELECT user_id, count(*) AS n FROM events GROUP BY user_id",
        "SELECT count(*) AS n FROM events",
    ];
    let monitors = monitors(&queries);
    let mut observer = monitors.observer();
    for start in 0..6i64 {
        let rows: Vec<_> = (0..40_000)
            .map(|i| (None, start * 40_000 + i, None))
            .collect();
        observer.observe(&batch(&rows));
    }
    let figures = monitors.result();
    assert!(
        figures[0]
            .note
            .as_deref()
            .unwrap()
            .contains("too many groups")
    );
    assert_eq!(figures[0].rows.num_rows(), 0);
    assert_eq!(figures[1].note, None);
    let n = figures[1].rows.column(0).as_primitive::<Int64Type>();
    assert_eq!(n.value(0), 240_000);
}

#[test]
fn states_that_hold_the_rows_are_stopped_by_their_size() {
    let monitors = monitors(&["SELECT array_agg(user_id) AS all_of_them FROM events"]);
    let mut observer = monitors.observer();
    for seed in 0..400 {
        observer.observe(&many(seed, 40_000));
    }
    let note = monitors.result()[0].note.clone();
    assert!(note.unwrap().contains("too much memory"));
}

#[test]
fn an_overflow_stops_the_monitor() {
    let monitors = monitors(&["SELECT sum(CAST(bucket AS INT)) AS s FROM events"]);
    monitors.observer().observe(&many(0, 40_000));
    let figure = &monitors.result()[0];
    let note = figure.note.as_deref().unwrap();
    assert!(
        note.contains("does not convert") && !note.contains("b1"),
        "{note}"
    );
}

#[test]
fn what_does_not_aggregate_is_refused() {
    let refused = [
        ("SELECT * FROM events", "must aggregate"),
        (
            "SELECT bucket FROM events ORDER BY amount LIMIT 3",
            "must aggregate",
        ),
        (
            "SELECT rank() OVER (ORDER BY amount) FROM events",
            "must aggregate",
        ),
        (
            "SELECT count(*) FROM (SELECT * FROM events LIMIT 10) AS t",
            "LIMIT",
        ),
        (
            "SELECT count(*) FROM events UNION ALL SELECT count(*) FROM events",
            "exactly once",
        ),
        (
            "SELECT count(*) FROM events a JOIN events b ON a.user_id = b.user_id",
            "exactly once",
        ),
        ("SELECT 1", "exactly once"),
        ("SELECT max(now()) FROM events", "another result"),
        ("SELECT count(*) FROM other", "unknown table"),
        (
            "SELECT bucket, count(*) FROM events GROUP BY bukket",
            "unknown column",
        ),
        ("DROP TABLE events", "only SELECT"),
    ];
    for (sql, why) in refused {
        let error = Monitors::plan(&[("live".into(), sql.into())], &schema()).expect_err(sql);
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains(why), "{sql}: {error}");
        assert!(error.message().starts_with("monitor=live: "), "{error}");
    }
}

#[test]
fn a_failed_batch_is_not_observed_and_its_halves_once() {
    let input = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, true)]));
    let sql = "SELECT CAST(s AS BIGINT) AS n FROM events";
    let planned = crate::SqlTransform::plan(sql, Arc::clone(&input), &[]).unwrap();
    let queries = [(
        "m".to_owned(),
        "SELECT count(*) AS c, sum(n) AS s FROM events".to_owned(),
    )];
    let monitors = Monitors::plan(&queries, &planned.schema()).unwrap();
    let mut transform = MonitoredTransform::new(Some(planned.instance().unwrap()), &monitors);
    let rows = StringArray::from(vec!["1", "2", "x", "4"]);
    let rows = RecordBatch::try_new(input, vec![Arc::new(rows)]).unwrap();
    assert_eq!(
        transform.apply(rows.clone()).unwrap_err().kind(),
        ErrorKind::Data
    );
    transform.apply(rows.slice(0, 2)).unwrap();
    transform.apply(rows.slice(2, 2)).unwrap_err();
    transform.apply(rows.slice(2, 1)).unwrap_err();
    transform.apply(rows.slice(3, 1)).unwrap();
    let figure = &monitors.result()[0];
    let value = |i: usize| figure.rows.column(i).as_primitive::<Int64Type>().value(0);
    assert_eq!((value(0), value(1)), (3, 7));
}

#[test]
fn dictionaries_are_plain_texts_to_a_monitor() {
    let texts: DictionaryArray<Int32Type> =
        ["2024-05-06", "no day", "2024-05-07"].into_iter().collect();
    let rows = RecordBatch::try_from_iter([("d", Arc::new(texts) as _)]).unwrap();
    let sql = "SELECT max(to_date(d)) AS last, count(*) AS n FROM events GROUP BY d > '2024-05-06'";
    let monitors = Monitors::plan(&[("m".to_owned(), sql.to_owned())], &rows.schema()).unwrap();
    let mut transform = MonitoredTransform::new(None, &monitors);
    for row in [0, 2] {
        transform.apply(rows.slice(row, 1)).unwrap();
    }
    let figure = monitors.result().remove(0);
    assert_eq!((figure.note, figure.rows.num_rows()), (None, 2));
}

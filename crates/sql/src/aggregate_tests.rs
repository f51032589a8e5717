//! Partial, merge and finish against one query over all rows; states that travel; sessions.

use std::thread;

use arrow::{
    array::{
        BooleanArray, Decimal128Array, DictionaryArray, Float64Array, Int64Array, ListArray,
        StringArray, TimestampMicrosecondArray,
    },
    datatypes::{Float64Type, Int32Type, Int64Type, UInt64Type},
    ipc::{reader::StreamReader, writer::StreamWriter},
    util::display::{ArrayFormatter, FormatOptions},
};
use calve_engine::ErrorKind;
use datafusion::datasource::MemTable;
use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000;

fn schema() -> SchemaRef {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let tags = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
    Arc::new(Schema::new(vec![
        Field::new("bucket", DataType::Utf8, true),
        Field::new("region", dictionary, true),
        Field::new("user_id", DataType::Int64, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("price", DataType::Decimal128(10, 2), true),
        Field::new("good", DataType::Boolean, true),
        Field::new("tags", tags, true),
    ]))
}

#[derive(Clone, Debug)]
struct Row {
    window: i64,
    bucket: Option<u8>,
    region: Option<u8>,
    user: i64,
    amount: Option<i32>,
    tags: Option<Vec<i64>>,
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (
        0i64..6,
        prop::option::of(0u8..4),
        prop::option::of(0u8..3),
        0i64..20,
        prop::option::of(-20i32..20),
        prop::option::of(prop::collection::vec(0i64..9, 0..3)),
    );
    let row = row.prop_map(|(window, bucket, region, user, amount, tags)| Row {
        window,
        bucket,
        region,
        user,
        amount,
        tags,
    });
    prop::collection::vec(row, 0..60)
}

/// Rows with their window.
fn batch_of(rows: &[Row]) -> RecordBatch {
    let bucket: StringArray = rows
        .iter()
        .map(|r| r.bucket.map(|b| format!("b{b}")))
        .collect();
    let names = ["eu", "us", "asia"];
    let region: DictionaryArray<Int32Type> = rows
        .iter()
        .map(|r| r.region.map(|i| names[usize::from(i)]))
        .collect();
    // Halves add up exactly, in whatever order.
    let amount = rows.iter().map(|r| r.amount.map(|a| f64::from(a) / 2.0));
    let price = rows.iter().map(|r| r.amount.map(|a| i128::from(a) * 5));
    let price: Decimal128Array = price.collect();
    let good = rows.iter().map(|r| r.amount.map(|a| a % 3 == 0));
    let tags = rows
        .iter()
        .map(|r| r.tags.as_ref().map(|tags| tags.iter().copied().map(Some)));
    let window = |shift: i64| {
        let starts = rows.iter().map(|r| (r.window + shift) * 10 * SECOND);
        Arc::new(TimestampMicrosecondArray::from_iter_values(starts))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(bucket),
        Arc::new(region),
        Arc::new(rows.iter().map(|r| Some(r.user)).collect::<Int64Array>()),
        Arc::new(amount.collect::<Float64Array>()),
        Arc::new(price.with_precision_and_scale(10, 2).unwrap()),
        Arc::new(good.collect::<BooleanArray>()),
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(tags)),
        window(0),
        window(1),
    ];
    RecordBatch::try_new(with_window(), columns).unwrap()
}

fn with_window() -> SchemaRef {
    let mut fields = schema().fields().to_vec();
    for name in WINDOW {
        let kind = DataType::Timestamp(TimeUnit::Microsecond, None);
        fields.push(Arc::new(Field::new(name, kind, false)));
    }
    Arc::new(Schema::new(fields))
}

fn planned(sql: &str) -> WindowedAggregate {
    WindowedAggregate::plan(sql, schema()).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// The rows of a result as text, in order.
fn text(rows: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("null");
    let columns: Vec<_> = rows
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).unwrap())
        .collect();
    (0..rows.num_rows())
        .map(|row| {
            let values: Vec<_> = columns.iter().map(|c| c.value(row).to_string()).collect();
            values.join("|")
        })
        .collect()
}

/// Checks that two results have the same rows in any order, and numbers but for rounding.
fn assert_same(made: &RecordBatch, expected: &RecordBatch, sql: &str) {
    let split = |rows: &RecordBatch| {
        let schema = rows.schema();
        let is_float = |at: &usize| schema.field(*at).data_type().is_floating();
        let (floats, others): (Vec<_>, Vec<_>) = (0..rows.num_columns()).partition(is_float);
        let numbers = rows.project(&floats).unwrap();
        let number = |row: usize| {
            let columns = numbers.columns().iter();
            let values = columns.map(AsArray::as_primitive::<Float64Type>);
            values
                .map(|v| v.is_valid(row).then(|| v.value(row)))
                .collect::<Vec<_>>()
        };
        let keys = text(&rows.project(&others).unwrap()).into_iter();
        let mut rows: Vec<_> = keys.enumerate().map(|(i, key)| (key, number(i))).collect();
        rows.sort_by(|a, b| a.partial_cmp(b).unwrap_or(a.0.cmp(&b.0)));
        rows
    };
    let near = |a: &Option<f64>, b: &Option<f64>| match (a, b) {
        (Some(a), Some(b)) => (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 * (1.0 + a.abs()),
        (a, b) => a == b,
    };
    let (made, expected) = (split(made), split(expected));
    let same = made.len() == expected.len()
        && made
            .iter()
            .zip(&expected)
            .all(|(a, b)| a.0 == b.0 && a.1.iter().zip(&b.1).all(|(a, b)| near(a, b)));
    assert!(same, "{sql}: {made:#?} instead of {expected:#?}");
}

/// The same query over a table of all rows.
fn whole(sql: &str, rows: &RecordBatch) -> RecordBatch {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let table = MemTable::try_new(with_window(), vec![vec![rows.clone()]]).unwrap();
    runtime.block_on(async {
        let tables = vec![("events".to_owned(), Arc::new(table) as _)];
        let result = crate::query(sql, tables, &crate::QueryOptions::default())
            .await
            .unwrap();
        let schema = result.schema();
        concat_batches(&schema, &result.collect().await.unwrap()).unwrap()
    })
}

/// Through the bytes of a run.
fn stored(state: &RecordBatch) -> RecordBatch {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, state.schema_ref()).unwrap();
    writer.write(state).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let mut reader = StreamReader::try_new(bytes.as_slice(), None).unwrap();
    reader.next().unwrap().unwrap()
}

/// States of batches, merged as the pairs (from, how many) say.
fn merged(
    plan: &WindowedAggregate,
    batches: &[RecordBatch],
    tree: &[(usize, usize)],
) -> Vec<RecordBatch> {
    let states = batches.iter().map(|rows| plan.partial(rows).unwrap());
    let mut states: Vec<RecordBatch> = states.map(|state| stored(&state)).collect();
    for (from, count) in tree {
        if states.is_empty() {
            break;
        }
        let from = from % states.len();
        let end = (from + count).min(states.len());
        let one = plan.merge(&states[from..end]).unwrap();
        assert_eq!(one.schema(), plan.state_schema());
        states.splice(from..end, [stored(&one)]);
    }
    states
}

const QUERIES: [&str; 30] = [
    "SELECT window_start, window_end, bucket, count(*) AS n, avg(amount) AS a FROM events GROUP BY window_start, window_end, bucket",
    "SELECT window_start, count(*) AS n, sum(amount) AS s, min(amount) AS lo, max(user_id) AS hi FROM events GROUP BY window_start, window_end",
    "SELECT region, window_end, count(amount) AS n, sum(price) AS s, avg(price) AS a FROM events GROUP BY region, window_end, window_start",
    "SELECT bucket, window_start, sum(amount) AS s FROM events WHERE amount > 3 GROUP BY window_start, window_end, bucket HAVING count(*) > 1",
    "SELECT window_start, count(DISTINCT user_id) AS n FROM events GROUP BY window_start, window_end",
    "SELECT window_start, region, count(DISTINCT user_id) AS n, count(DISTINCT bucket) AS b, sum(user_id) AS s FROM events GROUP BY window_start, window_end, region",
    "SELECT user_id % 3 AS k, window_start, count(*) FILTER (WHERE amount > 5) AS n, sum(amount) FILTER (WHERE good) AS s FROM events GROUP BY user_id % 3, window_start, window_end",
    "SELECT window_start, approx_distinct(user_id) AS n, stddev(amount) AS sd, var_pop(amount) AS v FROM events GROUP BY window_start, window_end",
    "SELECT window_start, bool_and(good) AS every_one, bool_or(good) AS any_one, bit_xor(user_id) AS x FROM events GROUP BY window_start, window_end",
    "SELECT window_start, bucket, array_agg(user_id ORDER BY user_id) AS users FROM events GROUP BY window_start, window_end, bucket",
    "SELECT window_start, array_agg(DISTINCT user_id ORDER BY user_id) AS users FROM events GROUP BY window_start, window_end",
    "SELECT window_start, first_value(amount ORDER BY user_id, amount) AS f, last_value(amount ORDER BY user_id, amount) AS l FROM events GROUP BY window_start, window_end",
    "SELECT window_start, median(amount) AS m FROM events GROUP BY window_start, window_end",
    "SELECT window_start, CASE WHEN sum(amount) > 10 THEN 'much' ELSE 'little' END AS size FROM events GROUP BY window_start, window_end",
    "SELECT date_trunc('minute', window_start) AS minute, window_end - window_start AS length, count(*) AS n FROM events GROUP BY window_start, window_end HAVING window_start > '1970-01-01T00:00:10'",
    "SELECT window_start, window_end, tag, count(*) AS n FROM (SELECT window_start, window_end, unnest(tags) AS tag FROM events) GROUP BY window_start, window_end, tag",
    "SELECT s, e, upper(b) AS b, n * 2 AS n FROM (SELECT ws AS s, we AS e, b, count(*) AS n FROM (SELECT window_start AS ws, window_end AS we, bucket AS b FROM events WHERE user_id > 3) GROUP BY ws, we, b) WHERE n > 1",
    "SELECT window_start, max(bucket) AS last_bucket, min(region) AS r FROM events GROUP BY window_start, window_end",
    "SELECT window_start, bucket, region FROM events GROUP BY window_start, window_end, bucket, region",
    "SELECT e.window_start, lower(e.region) AS r, count(1) AS n FROM events e GROUP BY e.window_start, e.window_end, lower(e.region)",
    "SELECT window_start, string_agg(bucket, ',' ORDER BY bucket) AS buckets FROM events GROUP BY window_start, window_end",
    "SELECT window_start, 'x' AS constant, count(*) AS n FROM events GROUP BY window_start, window_end, 'x'",
    "SELECT window_start, corr(amount, user_id) AS c, regr_slope(amount, user_id) AS r, covar_pop(amount, user_id) AS v FROM events GROUP BY window_start, window_end",
    "SELECT window_start, nth_value(user_id, 2 ORDER BY user_id) AS second, percentile_cont(0.25) WITHIN GROUP (ORDER BY amount) AS p FROM events GROUP BY window_start, window_end",
    "SELECT window_start, sum(DISTINCT user_id) AS s, avg(DISTINCT user_id) AS a, sum(DISTINCT price) AS p, count(DISTINCT user_id) FILTER (WHERE good) AS n FROM events GROUP BY window_start, window_end",
    "SELECT window_start, first_value(amount ORDER BY user_id DESC, amount) AS f, array_agg(user_id ORDER BY amount DESC, user_id) AS u, array_agg(amount ORDER BY user_id, amount) AS a FROM events GROUP BY window_start, window_end",
    "SELECT window_start, region, last_value(bucket ORDER BY user_id, bucket) FILTER (WHERE user_id > 4) AS l, string_agg(DISTINCT bucket, '+' ORDER BY bucket) AS b FROM events GROUP BY window_start, window_end, region",
    "SELECT window_start, min(good) AS g, max(price) AS p, min(window_size) AS m FROM (SELECT *, user_id % 2 AS window_size FROM events) GROUP BY window_start, window_end",
    "SELECT window_start, unnest(u) AS u FROM (SELECT window_start, array_agg(user_id) AS u FROM events GROUP BY window_start, window_end)",
    "SELECT window_start, good, tags, count(*) AS n FROM events GROUP BY window_start, window_end, good, tags",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn however_rows_are_cut_and_states_are_merged_the_result_is_that_of_all_rows(
        batches in prop::collection::vec(rows(), 0..8),
        tree in prop::collection::vec((0usize..8, 1usize..5), 0..8),
    ) {
        let all: Vec<Row> = batches.concat();
        let batches: Vec<_> = batches.iter().map(|rows| batch_of(rows)).collect();
        for sql in QUERIES {
            let plan = planned(sql);
            let states = merged(&plan, &batches, &tree);
            let made = plan.finish(&states).unwrap();
            assert_eq!(made.schema(), plan.schema(), "{sql}");
            let expected = whole(sql, &batch_of(&all));
            assert_same(&made, &expected, sql);
            assert_eq!(text(&made), text(&plan.finish(&states).unwrap()), "the same again: {sql}");
        }
    }
}

fn row(window: i64, user: i64) -> Row {
    Row {
        window,
        bucket: Some((user % 4) as u8),
        region: Some((user % 3) as u8),
        user,
        amount: Some((user % 17) as i32),
        tags: None,
    }
}

#[test]
fn approximate_figures_are_within_their_error() {
    let sql = "SELECT window_start, approx_distinct(user_id) AS n, approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY user_id) AS p, approx_median(user_id) AS m FROM events GROUP BY window_start, window_end";
    let plan = planned(sql);
    let batches: Vec<_> = (0..40)
        .map(|i| {
            let users = (0..1_000).map(|j| row(j % 2, (i * 1_000 + j) * 7_919 % 40_000));
            batch_of(&users.collect::<Vec<_>>())
        })
        .collect();
    let states = merged(&plan, &batches, &[(3, 9), (0, 5), (7, 2), (1, 12)]);
    let made = plan.finish(&states).unwrap();
    assert_eq!(made.num_rows(), 2);
    let n = made.column(1).as_primitive::<UInt64Type>();
    let near = |value: f64, exact: f64| (value - exact).abs() < exact * 0.03;
    for row in 0..2 {
        assert!(near(n.value(row) as f64, 20_000.0), "{}", n.value(row));
        let p = made.column(2).as_primitive::<Int64Type>().value(row);
        assert!(near(p as f64, 36_000.0), "{p}");
        let m = made.column(3).as_primitive::<Int64Type>().value(row);
        assert!(near(m as f64, 20_000.0), "{m}");
    }
}

#[test]
fn rows_leave_by_window_and_groups_as_they_came() {
    let sql = "SELECT window_start, user_id, count(*) AS n FROM events GROUP BY user_id, window_end, window_start";
    let plan = planned(sql);
    let batches = [
        batch_of(&[row(2, 9), row(0, 7), row(2, 1)]),
        batch_of(&[row(1, 3), row(0, 2), row(2, 9)]),
    ];
    let states = merged(&plan, &batches, &[]);
    assert_eq!(states[0].num_rows(), 3);
    assert_eq!(
        text(&plan.finish(&states).unwrap()),
        [
            "1970-01-01T00:00:00|7|1",
            "1970-01-01T00:00:00|2|1",
            "1970-01-01T00:00:10|3|1",
            "1970-01-01T00:00:20|9|2",
            "1970-01-01T00:00:20|1|1",
        ]
    );
}

/// The state with another window in each row.
fn in_window(plan: &WindowedAggregate, state: &RecordBatch, window: (i64, i64)) -> RecordBatch {
    let (start, end) = plan.window_columns();
    let mut columns = state.columns().to_vec();
    let all = |at: i64| -> ArrayRef {
        let values = vec![at * 10 * SECOND; state.num_rows()];
        Arc::new(TimestampMicrosecondArray::from(values))
    };
    columns[start] = all(window.0);
    columns[end] = all(window.1);
    RecordBatch::try_new(state.schema(), columns).unwrap()
}

#[test]
fn sessions_that_merge_become_one_group() {
    let sql = "SELECT user_id, window_start, window_end - window_start AS length, count(*) AS n, count(DISTINCT bucket) AS b
        FROM events GROUP BY window_start, window_end, user_id
        HAVING window_end - window_start > INTERVAL '15 seconds'";
    let plan = planned(sql);
    let rows = [row(0, 5), row(1, 5), row(1, 5), row(0, 6)];
    let state = plan.partial(&batch_of(&rows)).unwrap();
    assert_eq!(state.num_rows(), 3);
    assert_eq!(
        plan.finish(std::slice::from_ref(&state))
            .unwrap()
            .num_rows(),
        0,
        "HAVING sees short windows"
    );
    let key = plan.key_columns(&["user_id".to_owned()]).unwrap()[0];
    let keys = state.column(key).as_primitive::<Int64Type>();
    let fives: BooleanArray = keys.iter().map(|key| Some(key == Some(5))).collect();
    let fives = arrow::compute::filter_record_batch(&state, &fives).unwrap();
    let session = in_window(&plan, &fives, (0, 2));
    let one = plan
        .merge(&[session.slice(0, 1), session.slice(1, 1)])
        .unwrap();
    assert_eq!(one.num_rows(), 1);
    let expected = ["5|1970-01-01T00:00:00|PT20S|3|1"];
    for states in [vec![one], vec![session]] {
        let made = plan.finish(&states).unwrap();
        assert_eq!(text(&made), expected);
    }
}

#[test]
fn nothing_makes_nothing() {
    for sql in QUERIES {
        let plan = planned(sql);
        let state = plan.partial(&batch_of(&[])).unwrap();
        assert_eq!((state.schema(), state.num_rows()), (plan.state_schema(), 0));
        assert_eq!(plan.merge(&[]).unwrap().num_rows(), 0);
        assert_eq!(plan.merge(&[state.clone(), state]).unwrap().num_rows(), 0);
        let made = plan.finish(&[]).unwrap();
        assert_eq!((made.schema(), made.num_rows()), (plan.schema(), 0));
    }
}

#[test]
fn one_plan_serves_many_threads() {
    for sql in [QUERIES[5], QUERIES[9], QUERIES[15]] {
        let plan = planned(sql);
        let rows: Vec<Row> = (0..2_000).map(|i| row(i % 3, i * 31 % 50)).collect();
        let batches: Vec<_> = rows.chunks(50).map(batch_of).collect();
        let states: Vec<RecordBatch> = thread::scope(|scope| {
            let runs = batches.chunks(10).map(|share| {
                let plan = &plan;
                scope.spawn(move || {
                    let states = share.iter().map(|rows| plan.partial(rows).unwrap());
                    plan.merge(&states.collect::<Vec<_>>()).unwrap()
                })
            });
            let runs: Vec<_> = runs.collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let expected = whole(sql, &batch_of(&rows));
        assert_same(&plan.finish(&states).unwrap(), &expected, sql);
    }
}

#[test]
fn states_are_of_one_schema_and_a_query_has_one_fingerprint() {
    let plan = planned(QUERIES[5]);
    let again = planned(QUERIES[5]);
    assert_eq!(plan.fingerprint(), again.fingerprint());
    assert_eq!(plan.state_schema(), again.state_schema());
    assert_ne!(plan.fingerprint(), planned(QUERIES[4]).fingerprint());
    let types: Vec<_> = plan
        .state_schema()
        .fields()
        .iter()
        .map(|f| f.data_type().clone())
        .collect();
    assert_eq!(
        types[2],
        DataType::Utf8,
        "a dictionary is a plain text in a state"
    );
    assert!(
        matches!(types[3], DataType::List(_)),
        "count(DISTINCT …) keeps a list"
    );
    let other = planned(QUERIES[0])
        .partial(&batch_of(&[row(0, 1)]))
        .unwrap();
    let error = plan.finish(&[other]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn a_value_that_does_not_convert_is_the_events_fault() {
    let plan = planned(
        "SELECT window_start, sum(CAST(bucket AS INT)) AS s FROM events GROUP BY window_start, window_end",
    );
    let error = plan.partial(&batch_of(&[row(0, 1)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(!error.to_string().contains("b1"), "{error}");
}

#[test]
fn a_figure_that_fails_is_the_sqls_fault() {
    let plan = planned(
        "SELECT window_start, sum(user_id) / count(amount) AS s FROM events GROUP BY window_start, window_end",
    );
    let none = Row {
        amount: None,
        ..row(0, 1)
    };
    let state = plan.partial(&batch_of(&[none])).unwrap();
    let error = plan.finish(&[state]).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Config,
        "no event can be rejected for it"
    );
    assert!(error.message().contains("division by zero"), "{error}");
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("nullif"))
    );
}

#[test]
fn many_small_states_and_large_ones_merge_in_order() {
    let plan = planned(
        "SELECT window_start, user_id, sum(amount) AS s FROM events GROUP BY window_start, window_end, user_id",
    );
    let mut all = Vec::new();
    let mut states = Vec::new();
    for i in 0..3_000i64 {
        let size = if i % 500 == 3 { 1_500 } else { 1 + i % 3 };
        let rows: Vec<Row> = (0..size)
            .map(|j| row(i % 4, (i * 7 + j * 13) % 2_000))
            .collect();
        states.push(plan.partial(&batch_of(&rows)).unwrap());
        all.extend(rows);
    }
    let made = plan.finish(&states).unwrap();
    assert_same(&made, &whole(&plan.sql, &batch_of(&all)), &plan.sql);
    let total = made.column(2).as_primitive::<Float64Type>();
    assert!(arrow::compute::sum(total).is_some_and(|s| s > 0.0));
}

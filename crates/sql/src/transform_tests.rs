//! Direct evaluation against execution, order, kinds of run-time errors.

use arrow::{
    array::{
        Array, AsArray, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray,
        StringArray, StructArray,
        types::{Int32Type, TimestampMicrosecondType},
    },
    compute::take_record_batch,
    datatypes::{DataType, Field, TimeUnit},
};
use calve_engine::ErrorKind;
use proptest::prelude::*;

use super::*;
use crate::steps::Value;

const SALES: &str =
    "SELECT to_timestamp_seconds(ts) AS ts, user_id, region, round(amount, 2) AS amount, sku,
       CASE WHEN amount > 80 THEN 'high' WHEN amount > 30 THEN 'medium' ELSE 'low' END AS bucket
FROM events";

fn schema() -> SchemaRef {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let items = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Int64, true),
        Field::new("user_id", DataType::Int64, true),
        Field::new("region", dictionary, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("sku", DataType::Utf8, true),
        Field::new("items", items, true),
    ]))
}

type Row = (
    Option<i64>,
    i64,
    Option<u8>,
    Option<f64>,
    String,
    Option<Vec<i64>>,
);

fn batch_of(rows: &[Row]) -> RecordBatch {
    let regions = ["eu", "us", "asia"];
    let region: DictionaryArray<Int32Type> = rows
        .iter()
        .map(|r| r.2.map(|i| regions[usize::from(i) % 3]))
        .collect();
    let items = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>(
        rows.iter()
            .map(|r| r.5.as_ref().map(|items| items.iter().copied().map(Some))),
    );
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| r.0).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| Some(r.1)).collect::<Int64Array>()),
        Arc::new(region),
        Arc::new(rows.iter().map(|r| r.3).collect::<Float64Array>()),
        Arc::new(
            rows.iter()
                .map(|r| Some(r.4.as_str()))
                .collect::<StringArray>(),
        ),
        Arc::new(items),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (
        prop::option::of(-4_000_000_000i64..4_000_000_000),
        -5i64..5,
        prop::option::of(0u8..3),
        prop::option::of(-10.0f64..110.0),
        "[a-z0-9é]{0,4}",
        prop::option::of(prop::collection::vec(0i64..9, 0..4)),
    );
    prop::collection::vec(row, 0..200)
}

fn numbered_rows(count: i64) -> RecordBatch {
    let rows: Vec<Row> = (0..count)
        .map(|i| {
            let items = (0..i % 4).collect();
            (
                Some(i),
                i,
                Some((i % 4) as u8),
                Some(i as f64),
                format!("s{}", i % 7),
                Some(items),
            )
        })
        .collect();
    batch_of(&rows)
}

fn regions() -> Lookup {
    let schema = Arc::new(Schema::new(vec![
        Field::new("code", DataType::Utf8, true),
        Field::new("factor", DataType::Int32, true),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["us", "eu", "mars", "eu"])),
        Arc::new(Int32Array::from(vec![10, 20, 30, 40])),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    Lookup::from_batches("regions", schema, vec![batch]).unwrap()
}

fn planned(sql: &str) -> Planned {
    SqlTransform::plan(sql, schema(), &[regions()]).unwrap()
}

fn apply(sql: &str, rows: RecordBatch) -> RecordBatch {
    planned(sql).instance().unwrap().apply(rows).unwrap()
}

fn error(sql: &str) -> Error {
    SqlTransform::plan(sql, schema(), &[regions()]).expect_err(sql)
}

const DIRECT: [&str; 13] = [
    "SELECT CASE WHEN amount > 80 THEN 'größer' WHEN NOT (user_id < 0 OR region = 'eu') THEN '' END AS a FROM events",
    "SELECT CASE WHEN amount IS NULL THEN NULL WHEN ts = user_id THEN 'exactly 16 bytes' ELSE 'x' END AS a FROM events",
    "SELECT CASE WHEN true THEN 'a' ELSE 'b' END AS a, CASE WHEN sku < 'k' THEN 'more than sixteen bytes' ELSE 'b' END AS b FROM events",
    "SELECT CASE WHEN user_id = 0 THEN 'zero' WHEN 10 / user_id > 3 THEN 'big' ELSE 'small' END AS a FROM events",
    "SELECT 1 AS one FROM events",
    SALES,
    "SELECT * FROM events",
    "SELECT region, upper(sku) AS sku FROM events WHERE amount > 50 AND region <> 'us'",
    "SELECT 1 AS one FROM events WHERE user_id % 2 = 0",
    "SELECT a * 2 AS b, a * 2 + 1 AS c FROM (SELECT amount / 3 AS a, ts FROM events WHERE ts > 0) AS t WHERE a < 20",
    "SELECT user_id FROM events WHERE region IN (SELECT code FROM regions)",
    "SELECT user_id, (SELECT max(factor) FROM regions) AS f FROM events WHERE EXISTS (SELECT 1 FROM regions)",
    "WITH big AS (SELECT * FROM events WHERE amount IS NOT NULL) SELECT coalesce(sku, '-') AS s FROM big",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn direct_evaluation_equals_execution(rows in rows()) {
        let batch = batch_of(&rows);
        for sql in DIRECT {
            let direct = plan(sql, &schema(), &[regions()], true).unwrap();
            let executed = plan(sql, &schema(), &[regions()], false).unwrap();
            prop_assert!(direct.is_direct(), "not direct: {sql}");
            prop_assert!(!executed.is_direct());
            prop_assert_eq!(direct.schema(), executed.schema());
            let mut instance = executed.instance().unwrap();
            let a = direct.instance().unwrap().apply(batch.clone()).unwrap();
            prop_assert_eq!(&a, &instance.apply(batch.clone()).unwrap());
            prop_assert_eq!(&a, &instance.apply(batch.clone()).unwrap(), "the second run differs");
            prop_assert_eq!(a.schema(), direct.schema());
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_cut(rows in rows(), cut in 0usize..200) {
        let batch = batch_of(&rows);
        let cut = cut.min(batch.num_rows());
        let executed = [
            "SELECT user_id, unnest(items) AS item, sku FROM events",
            "SELECT e.user_id, r.factor FROM events e JOIN regions r ON e.region = r.code",
            "SELECT e.user_id, r.factor FROM events e LEFT JOIN regions r ON e.region = r.code AND r.factor > 15",
        ];
        for sql in DIRECT.into_iter().chain(executed) {
            let mut instance = planned(sql).instance().unwrap();
            let whole = instance.apply(batch.clone()).unwrap();
            let first = instance.apply(batch.slice(0, cut)).unwrap();
            let second = instance.apply(batch.slice(cut, batch.num_rows() - cut)).unwrap();
            let parts = concat_batches(&whole.schema(), [&first, &second]).unwrap();
            prop_assert_eq!(whole, parts, "{}", sql);
        }
    }
}

#[test]
fn sales_are_evaluated_directly_into_plain_types() {
    let planned = planned(SALES);
    assert!(planned.is_direct());
    let kinds: Vec<_> = planned
        .schema()
        .fields()
        .iter()
        .map(|f| f.data_type().clone())
        .collect();
    let utf8 = DataType::Utf8;
    let ts = DataType::Timestamp(TimeUnit::Microsecond, None);
    let expected = [
        ts,
        DataType::Int64,
        utf8.clone(),
        DataType::Float64,
        utf8.clone(),
        utf8,
    ];
    assert_eq!(kinds, expected);
    let batch = batch_of(&[(Some(2), 7, Some(0), Some(80.126), "x".into(), None)]);
    let made = planned.instance().unwrap().apply(batch).unwrap();
    assert_eq!(
        made.column(0)
            .as_primitive::<TimestampMicrosecondType>()
            .value(0),
        2_000_000
    );
    assert_eq!(made.column(5).as_string::<i32>().value(0), "high");
    assert_eq!(planned.fingerprint(), SALES);
}

#[test]
fn a_case_of_texts_is_chosen_from() {
    let is_choice = |sql: &str| {
        let planned = planned(sql);
        let Run::Steps(steps) = &planned.0.run else {
            panic!("not direct: {sql}");
        };
        steps.iter().any(|step| match step {
            Step::Project { exprs, .. } => exprs.iter().any(|e| matches!(e, Value::Choice(_))),
            Step::Read(_) | Step::Filter { .. } => false,
        })
    };
    assert!(is_choice(SALES) && is_choice(DIRECT[0]) && is_choice(DIRECT[1]));
    assert!(!is_choice(DIRECT[2]), "a text of more than a block");
    assert!(!is_choice(DIRECT[3]), "a condition that may fail");
}

#[test]
fn a_dictionary_is_a_plain_text_to_every_function() {
    let texts: DictionaryArray<Int32Type> =
        ["2024-05-06", "no day", "2024-05-07"].into_iter().collect();
    let rows = RecordBatch::try_from_iter([("d", Arc::new(texts) as ArrayRef)]).unwrap();
    let functions = [
        "to_timestamp(d)",
        "to_date(d)",
        "CAST(d AS date)",
        "to_unixtime(d)",
    ];
    for function in functions {
        for tail in [
            "",
            " WHERE d LIKE '2%'",
            " JOIN regions ON code <> d AND factor = 10",
        ] {
            let sql = format!("SELECT {function} AS day FROM events{tail}");
            let planned = SqlTransform::plan(&sql, rows.schema(), &[regions()]).expect(&sql);
            let mut instance = planned.instance().unwrap();
            // The value in between is in the dictionary still, but no row of these has it.
            for row in [0, 2] {
                let made = instance.apply(rows.slice(row, 1)).expect(&sql);
                assert_eq!(
                    (made.num_rows(), made.column(0).null_count()),
                    (1, 0),
                    "{sql}"
                );
            }
            let nested = sql.replace("(d)", "(s.d)").replace("(d AS", "(s.d AS");
            if tail.is_empty() {
                let kind = rows.schema().field(0).clone();
                let inside = StructArray::from(vec![(Arc::new(kind), Arc::clone(rows.column(0)))]);
                let nested_rows =
                    RecordBatch::try_from_iter([("s", Arc::new(inside) as ArrayRef)]).unwrap();
                let planned =
                    SqlTransform::plan(&nested, nested_rows.schema(), &[]).expect(&nested);
                let made = planned
                    .instance()
                    .unwrap()
                    .apply(nested_rows.slice(2, 1))
                    .expect(&nested);
                assert_eq!(made.column(0).null_count(), 0, "{nested}");
                let error = instance.apply(rows.slice(1, 1)).expect_err(&sql);
                assert_eq!(error.kind(), ErrorKind::Data, "{sql}");
            }
        }
    }
}

/// The order in which the events' numbers come out must never fall.
fn assert_order(sql: &str) -> RecordBatch {
    let rows = numbered_rows(50_000);
    let planned = planned(sql);
    assert!(!planned.is_direct(), "{sql}");
    let mut instance = planned.instance().unwrap();
    let made = instance.apply(rows.clone()).unwrap();
    let ids = made.column(0).as_primitive::<arrow::datatypes::Int64Type>();
    assert!(
        ids.values().windows(2).all(|w| w[0] <= w[1]),
        "out of order: {sql}"
    );
    assert_eq!(
        made,
        instance.apply(rows).unwrap(),
        "the second run differs: {sql}"
    );
    made
}

#[test]
fn order_is_kept_by_joins_and_unnest() {
    // Of four events two are of `eu`, which stands twice in the table, one of `us`, one of `asia`,
    // which does not stand there.
    let inner = assert_order("SELECT user_id, factor FROM events JOIN regions ON region = code");
    assert_eq!(inner.num_rows(), 2 * 25_000 + 12_500);
    let left =
        "SELECT user_id, factor, code FROM events e LEFT JOIN regions r ON e.region = r.code";
    assert_eq!(assert_order(left).num_rows(), 75_000);
    let right = "SELECT user_id, factor FROM regions r RIGHT JOIN events e ON e.region = r.code";
    assert_eq!(assert_order(right).num_rows(), 75_000);
    let unnest = assert_order("SELECT user_id, unnest(items) AS item FROM events");
    assert_eq!(unnest.num_rows(), 50_000 / 4 * 6);
    assert_order("SELECT user_id, factor FROM events JOIN regions ON amount > factor * 1000");
    assert_order("SELECT user_id, factor FROM events LEFT JOIN regions ON amount > factor * 1000");
    assert_order("SELECT user_id, code FROM events CROSS JOIN regions");
    assert_order(
        "SELECT user_id, code FROM events JOIN (SELECT * FROM regions ORDER BY factor LIMIT 2) AS r ON amount > factor",
    );
    assert_order(
        "SELECT user_id, factor FROM events JOIN (SELECT * FROM regions ORDER BY factor DESC LIMIT 2) AS r ON region = code",
    );
    assert_order(
        "SELECT u, i FROM (SELECT user_id AS u, unnest(items) AS i FROM events) AS t JOIN regions ON i < factor",
    );
    assert_order(
        "SELECT user_id, (SELECT max(factor) FROM regions r WHERE r.code = e.region) AS f FROM events e",
    );
    let anti = "SELECT user_id FROM events e WHERE NOT EXISTS (SELECT 1 FROM regions r WHERE r.code = e.region)";
    assert_eq!(assert_order(anti).num_rows(), 12_500);
    let grouped = "SELECT user_id, n FROM events JOIN (SELECT code, count(*) AS n FROM regions GROUP BY code) AS g ON code = region";
    assert_eq!(assert_order(grouped).num_rows(), 37_500);
}

#[test]
fn not_in_follows_sql_for_nulls() {
    let made = apply(
        "SELECT user_id FROM events WHERE region NOT IN (SELECT code FROM regions)",
        numbered_rows(8),
    );
    let ids = made.column(0).as_primitive::<arrow::datatypes::Int64Type>();
    assert_eq!(ids.values().to_vec(), [2, 6], "asia only");
}

#[test]
fn a_value_that_does_not_fit_is_the_events_fault() {
    let failing = [
        ("SELECT CAST(sku AS INT) AS n FROM events", "column=n"),
        ("SELECT 10 / user_id AS q FROM events", "division by zero"),
        (
            "SELECT ts FROM events WHERE 10 / user_id > 1",
            "division by zero",
        ),
        (
            "SELECT to_timestamp_seconds(ts * 9000000000) AS t FROM events",
            "column=t",
        ),
        (
            "SELECT user_id, CAST(sku AS INT) + unnest(items) AS n FROM events",
            "does not convert",
        ),
    ];
    for (sql, why) in failing {
        let batch = batch_of(&[
            (
                Some(4_000_000_000),
                0,
                None,
                None,
                "secret".into(),
                Some(vec![1]),
            ),
            (Some(1), 2, None, None, "12".into(), Some(vec![1])),
        ]);
        let mut instance = planned(sql).instance().unwrap();
        let error = instance.apply(batch.clone()).expect_err(sql);
        assert_eq!(error.kind(), ErrorKind::Data, "{sql}: {error}");
        assert!(error.to_string().contains(why), "{sql}: {error}");
        assert!(!error.to_string().contains("secret"), "{sql}: {error}");
        assert_eq!(instance.apply(batch.slice(1, 1)).expect(sql).num_rows(), 1);
    }
    let constant = error("SELECT CAST('x' AS INT) AS n FROM events");
    assert_eq!(constant.kind(), ErrorKind::Config);
}

#[test]
fn a_plan_that_needs_no_event_makes_no_rows() {
    let made = apply("SELECT ts, sku FROM events WHERE false", numbered_rows(10));
    assert_eq!((made.num_rows(), made.num_columns()), (0, 2));
}

#[test]
fn nested_values_become_plain_too() {
    let made = apply(
        "SELECT named_struct('r', region, 't', to_timestamp(ts)) AS s, make_array(region) AS l FROM events",
        numbered_rows(3),
    );
    let inner = made
        .column(0)
        .as_any()
        .downcast_ref::<StructArray>()
        .unwrap();
    assert_eq!(inner.column(0).data_type(), &DataType::Utf8);
    assert_eq!(
        inner.column(1).data_type(),
        &DataType::Timestamp(TimeUnit::Microsecond, None)
    );
    assert_eq!(
        inner
            .column(1)
            .as_primitive::<TimestampMicrosecondType>()
            .value(2),
        2_000_000
    );
}

#[test]
fn a_batch_of_another_schema_is_a_bug() {
    let batch = numbered_rows(3).project(&[1, 0]).unwrap();
    let batch = take_record_batch(&batch, &Int32Array::from(vec![0])).unwrap();
    let error = planned(SALES).instance().unwrap().apply(batch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[test]
fn instances_run_side_by_side() {
    let planned = planned("SELECT user_id, factor FROM events JOIN regions ON region = code");
    let expected = planned
        .instance()
        .unwrap()
        .apply(numbered_rows(5_000))
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut instance = planned.instance().unwrap();
            let expected = &expected;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&instance.apply(numbered_rows(5_000)).unwrap(), expected);
                }
            });
        }
    });
}

#[path = "transform_refusal_tests.rs"]
mod refusals;

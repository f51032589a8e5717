//! What SQL costs per batch: the sales transform by batch size, a join with a lookup table, monitors
//! over the transformed rows, and the phases of an aggregate of windows.

use std::{hint::black_box, sync::Arc};

use arrow::{
    array::{
        ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use calve_engine::Aggregate;
use calve_sql::{Lookup, Monitors, SqlTransform, WindowedAggregate, aggregate::WINDOW};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SALES: &str =
    "SELECT to_timestamp_seconds(ts) AS ts, user_id, region, round(amount, 2) AS amount, sku,
       CASE WHEN amount > 80 THEN 'high' WHEN amount > 30 THEN 'medium' ELSE 'low' END AS bucket
FROM events";

/// The columns of the sales transform, one by one: where its time goes.
const COLUMNS: [(&str, &str); 4] = [
    (
        "timestamp",
        "SELECT to_timestamp_seconds(ts) AS ts FROM events",
    ),
    ("round", "SELECT round(amount, 2) AS amount FROM events"),
    (
        "case",
        "SELECT CASE WHEN amount > 80 THEN 'high' WHEN amount > 30 THEN 'medium' ELSE 'low' END AS b FROM events",
    ),
    ("filter", "SELECT * FROM events WHERE amount > 50"),
];

const MONITOR: &str = "SELECT bucket, count(*) AS n, avg(amount) AS avg_amount FROM events GROUP BY bucket ORDER BY n DESC";

const REGIONS: [&str; 5] = ["north", "south", "east", "west", "central"];

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Int64, true),
        Field::new("user_id", DataType::Int64, true),
        Field::new("region", DataType::Utf8, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("sku", DataType::Utf8, true),
    ]))
}

fn sales(rows: usize) -> RecordBatch {
    // A fixed sequence: every run measures the same values.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let random: Vec<u64> = (0..rows).map(|_| next()).collect();
    let ints =
        |f: fn(u64) -> i64| Arc::new(random.iter().map(|r| Some(f(*r))).collect::<Int64Array>());
    let columns: Vec<ArrayRef> = vec![
        ints(|r| 1_700_000_000 + (r % 86_400) as i64),
        ints(|r| (r % 100_000) as i64),
        Arc::new(
            random
                .iter()
                .map(|r| Some(REGIONS[(r % 5) as usize]))
                .collect::<StringArray>(),
        ),
        Arc::new(
            random
                .iter()
                .map(|r| Some((r % 10_000_000) as f64 / 1e5))
                .collect::<Float64Array>(),
        ),
        Arc::new(
            random
                .iter()
                .map(|r| Some(format!("sku-{}", r % 1_000)))
                .collect::<StringArray>(),
        ),
    ];
    RecordBatch::try_new(schema(), columns).expect("the columns fit the schema")
}

fn regions() -> Lookup {
    let schema = Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("factor", DataType::Float64, true),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(REGIONS.to_vec())),
        Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0, 4.0, 5.0])),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns fit");
    Lookup::from_batches("regions", schema, vec![batch]).expect("the rows fit the schema")
}

fn transforms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transform");
    let mut run = |name: &str, sql: &str, rows: usize| {
        let planned = SqlTransform::plan(sql, schema(), &[regions()]).expect("the SQL is right");
        let mut instance = planned.instance().expect("an instance is made");
        let batch = sales(rows);
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new(name, rows), |bencher| {
            bencher.iter(|| black_box(instance.apply(batch.clone()).expect("the rows fit")));
        });
    };
    for rows in [1, 1_000, 14_000, 50_000] {
        run("sales", SALES, rows);
    }
    for (name, sql) in COLUMNS {
        run(name, sql, 50_000);
    }
    let join = "SELECT user_id, amount * factor AS weighted FROM events LEFT JOIN regions ON region = name";
    run("lookup join", join, 50_000);
    group.finish();
}

fn monitors(criterion: &mut Criterion) {
    let planned = SqlTransform::plan(SALES, schema(), &[]).expect("the SQL is right");
    let rows = planned
        .instance()
        .and_then(|mut i| i.apply(sales(14_000)))
        .expect("the rows fit");
    let queries = [("buckets".to_owned(), MONITOR.to_owned())];
    let monitors = Monitors::plan(&queries, &planned.schema()).expect("the SQL is right");
    let mut observer = monitors.observer();
    let mut group = criterion.benchmark_group("monitor");
    group.throughput(Throughput::Elements(rows.num_rows() as u64));
    group.bench_function("observe", |bencher| {
        bencher.iter(|| observer.observe(&rows));
    });
    group.finish();
    criterion.bench_function("monitor result", |bencher| {
        bencher.iter(|| black_box(monitors.result()));
    });
}

/// The rows with their window: windows of an hour, of which a batch holds `windows`, in order.
fn in_windows(rows: &RecordBatch, windows: usize) -> RecordBatch {
    const HOUR: i64 = 3_600_000_000;
    let mut fields = rows.schema().fields().to_vec();
    let mut columns = rows.columns().to_vec();
    for (name, shift) in WINDOW.into_iter().zip([0, HOUR]) {
        let kind = DataType::Timestamp(TimeUnit::Microsecond, None);
        fields.push(Arc::new(Field::new(name, kind, false)));
        let starts = (0..rows.num_rows()).map(|row| {
            let window = row * windows / rows.num_rows();
            window as i64 * HOUR + shift
        });
        columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(
            starts,
        )));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("the columns fit")
}

fn aggregates(criterion: &mut Criterion) {
    let plan = |key: &str, figures: &str| {
        let sql = format!(
            "SELECT window_start, window_end, {key}, {figures} FROM events GROUP BY window_start, window_end, {key}"
        );
        WindowedAggregate::plan(&sql, schema()).expect("the SQL is right")
    };
    let figures = "count(*) AS n, sum(amount) AS s, avg(amount) AS a";
    let regions = plan("region", figures);
    let users = plan("user_id", figures);
    let approximate = plan(
        "region",
        "approx_distinct(user_id) AS d, approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY amount) AS p",
    );
    let mut group = criterion.benchmark_group("aggregate");
    for (name, plan, rows, windows) in [
        ("partial by region", &regions, 1, 1),
        ("partial by region", &regions, 10_000, 1),
        ("partial by region, 2 windows", &regions, 10_000, 2),
        ("partial by user", &users, 10_000, 1),
        ("partial, approximate", &approximate, 10_000, 1),
    ] {
        let batch = in_windows(&sales(rows), windows);
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new(name, rows), |bencher| {
            bencher.iter(|| black_box(plan.partial(&batch).expect("the rows fit")));
        });
    }
    // 100,000 states of one row each, of 10,000 windows.
    let one = regions
        .partial(&in_windows(&sales(100_000), 10_000))
        .expect("the rows fit");
    let states: Vec<_> = (0..100_000)
        .map(|row| one.slice(row % one.num_rows(), 1))
        .collect();
    group.throughput(Throughput::Elements(states.len() as u64));
    group.bench_function("merge 100,000 states of a row", |bencher| {
        bencher.iter(|| black_box(regions.merge(&states).expect("the states fit")));
    });
    let large = vec![one.clone(); 2];
    let rows = large.iter().map(RecordBatch::num_rows).sum::<usize>();
    group.throughput(Throughput::Elements(rows as u64));
    group.bench_function("merge two large states", |bencher| {
        bencher.iter(|| black_box(regions.merge(&large).expect("the states fit")));
    });
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("finish 10,000 windows", |bencher| {
        bencher.iter(|| {
            black_box(
                regions
                    .finish(std::slice::from_ref(&one))
                    .expect("they fit"),
            )
        });
    });
    let small = regions
        .partial(&in_windows(&sales(1_000), 1))
        .expect("the rows fit");
    group.throughput(Throughput::Elements(1));
    group.bench_function("finish a window of 5 groups", |bencher| {
        bencher.iter(|| {
            black_box(
                regions
                    .finish(std::slice::from_ref(&small))
                    .expect("they fit"),
            )
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = transforms, monitors, aggregates
}
criterion_main!(benches);

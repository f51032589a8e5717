//! Splitting and encoding, on one thread: `cargo bench -p calve -p calve-lake --bench write`.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{
        ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    },
    compute::cast,
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use calve_lake::{
    parquet::{ParquetConfig, ParquetLayout, ParquetTable},
    write::{Compression, FanoutSplitter, WriteOptions},
};
use calve_model::Epoch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use parquet::{
    arrow::ArrowWriter,
    file::properties::{EnabledStatistics, WriterProperties},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A cheap generator of numbers that look random.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn sizes(rows: usize) -> RecordBatch {
    let mut seed = 7;
    let letters = ["A", "B", "C", "D", "E", "F", "G", "H"];
    let words = ["small", "medium", "large"];
    let pick = |of: &[&'static str], seed: &mut u64| of[random(seed) as usize % of.len()];
    let name: StringArray = (0..rows).map(|_| Some(pick(&letters, &mut seed))).collect();
    let size: StringArray = (0..rows).map(|_| Some(pick(&words, &mut seed))).collect();
    let count: Int64Array = (0..rows).map(|_| (random(&mut seed) % 10) as i64).collect();
    let schema = Schema::new(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("size", DataType::Utf8, true),
        Field::new("count", DataType::Int64, true),
    ]);
    let columns: Vec<ArrayRef> = vec![Arc::new(name), Arc::new(size), Arc::new(count)];
    RecordBatch::try_new(Arc::new(schema), columns).expect("a batch")
}

fn sales(from: usize, rows: usize) -> RecordBatch {
    let mut seed = 88_172_645 + from as u64;
    let regions = ["us-east", "us-west", "eu-west", "eu-north", "ap-south"];
    let ts = (from..from + rows).map(|row| 1_700_000_000_000_000 + (row as i64 / 100) * 1_000_000);
    let ts: TimestampMicrosecondArray = ts.map(Some).collect();
    let user: Int64Array = (0..rows)
        .map(|_| (random(&mut seed) % 100_000 + 1) as i64)
        .collect();
    let region: StringArray = (0..rows)
        .map(|_| Some(regions[random(&mut seed) as usize % 5]))
        .collect();
    let amount: Float64Array = (0..rows)
        .map(|_| (random(&mut seed) % 10_000) as f64 / 100.0)
        .collect();
    let sku: StringArray = (0..rows)
        .map(|_| Some(format!("SKU-{:04}", random(&mut seed) % 1000)))
        .collect();
    let schema = Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("user_id", DataType::Int64, true),
        Field::new("region", DataType::Utf8, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("sku", DataType::Utf8, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ts),
        Arc::new(user),
        Arc::new(region),
        Arc::new(amount),
        Arc::new(sku),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("a batch")
}

/// The same rows, with dictionaries for strings: as repeated strings are read from JSON.
fn coded(rows: &RecordBatch) -> RecordBatch {
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let columns = rows
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Utf8 => cast(column, &dictionary).expect("a dictionary"),
            _ => Arc::clone(column),
        });
    let named = rows.schema();
    let columns = named.fields().iter().map(|field| field.name()).zip(columns);
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
        .expect("a batch")
}

fn config(path: String, layout: Option<&str>) -> ParquetConfig {
    ParquetConfig {
        path,
        layout: layout.map(str::to_owned),
        time_column: Some("ts".into()),
        type_column: None,
        keep_columns: true,
    }
}

fn split(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    let layouts = [
        ("sizes by count into 10", sizes(10_000), "count={count}"),
        (
            "sizes by count into 10, dictionaries",
            coded(&sizes(10_000)),
            "count={count}",
        ),
        (
            "sales by region and hour",
            sales(0, 10_000),
            "region={region}/{ts:%Y-%m-%d-%H}",
        ),
    ];
    for (name, rows, layout) in layouts {
        let config = config(String::new(), Some(layout));
        let placement = ParquetLayout::new(&config, rows.schema(), "main").expect("a layout");
        let mut splitter = FanoutSplitter::new(Arc::new(placement));
        group.throughput(Throughput::Elements(rows.num_rows() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                splitter
                    .split_rows(black_box(rows.clone()))
                    .expect("a split")
            });
        });
    }
    group.finish();
}

const ROWS: usize = 2_000_000;

/// One whole write of the rows by ours: time, and bytes on disk.
fn ours(
    batches: &[RecordBatch],
    layout: Option<&str>,
    codec: &str,
    threads: usize,
) -> (Duration, u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool");
    let compression: Compression = codec.parse().expect("a codec");
    let options = WriteOptions {
        compression,
        ..WriteOptions::default()
    };
    let config = config(dir.path().display().to_string(), layout);
    let schema = batches[0].schema();
    let (mut writer, _) =
        ParquetTable::open(&config, &options, schema, "bench", "main", Arc::new(pool))
            .expect("open");
    let mut splitter = writer.splitter();
    let start = Instant::now();
    let prepared = runtime.block_on(async {
        for batch in batches {
            let split = splitter.split(batch.clone()).expect("a split");
            writer.append(split).await.expect("append");
        }
        writer.seal(Epoch(1)).finish().await.expect("finish")
    });
    (start.elapsed(), prepared.bytes)
}

/// The same with the Parquet crate's own writer and the settings that `PyArrow` has by default
/// (a dictionary for every column, statistics of column chunks), into memory.
fn default(batches: &[RecordBatch], codec: &str) -> (Duration, u64) {
    let compression: Compression = codec.parse().expect("a codec");
    let properties = WriterProperties::builder()
        .set_compression(compression.codec())
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .build();
    let start = Instant::now();
    let schema = batches[0].schema();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).expect("a writer");
    for batch in batches {
        writer.write(batch).expect("write");
    }
    let bytes = writer.into_inner().expect("close").len();
    (start.elapsed(), bytes as u64)
}

fn encode(c: &mut Criterion) {
    let batches: Vec<_> = (0..ROWS / 20_000)
        .map(|n| sales(n * 20_000, 20_000))
        .collect();
    let mut group = c.benchmark_group("encode");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(ROWS as u64));
    let by_hour = Some("region={region}/{ts:%Y-%m-%d-%H}-{seq}.parquet");
    for codec in ["snappy", "zstd(1)"] {
        type Run<'a> = Box<dyn Fn() -> (Duration, u64) + 'a>;
        let runs: [(&str, Run); 4] = [
            (
                "settings of pyarrow, 1 thread",
                Box::new(|| default(&batches, codec)),
            ),
            (
                "ours, one file, 1 thread",
                Box::new(|| ours(&batches, None, codec, 1)),
            ),
            (
                "ours, one file, 2 threads",
                Box::new(|| ours(&batches, None, codec, 2)),
            ),
            (
                "ours, region and hour, 1 thread",
                Box::new(|| ours(&batches, by_hour, codec, 1)),
            ),
        ];
        for (name, run) in runs {
            let bytes = run().1;
            group.bench_function(format!("{name}, {codec}, {} KiB", bytes >> 10), |b| {
                b.iter_custom(|n| (0..n).map(|_| run().0).sum());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, split, encode);
criterion_main!(benches);

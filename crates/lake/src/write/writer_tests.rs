//! The writer end to end on a local disk, with a placement by the first column.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use calve_engine::{
    error::{ErrorKind, Result},
    opaque::Opaque,
    seams::{Prepared, TableWriter},
};
use calve_model::Epoch;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder, file::metadata::RowGroupMetaData,
};
use serde_json::Value;

use super::*;

#[derive(Debug)]
struct ByFirst(SchemaRef);

impl Placement for ByFirst {
    fn file_schema(&self) -> SchemaRef {
        self.0.clone()
    }
    fn place(&self, rows: RecordBatch) -> Result<Placed> {
        Ok(Placed {
            keys: vec![rows.column(0).clone()],
            rows,
        })
    }
    fn path(&self, partition: &TablePartition, unique: &str) -> String {
        match &partition.0[0] {
            KeyValue::Int(key) => format!("key={key}/{unique}.parquet"),
            _ => format!("key=none/{unique}.parquet"),
        }
    }
    fn describe(&self, file: &FinishedFile<'_>) -> Result<Opaque> {
        Opaque::of(&file.metadata.num_row_groups())
    }
    fn content(&self, _: Epoch, files: Vec<DescribedFile>) -> Result<Opaque> {
        let all = files
            .iter()
            .map(|f| (&f.path, f.sequence, f.rows, f.bytes, &f.described));
        Opaque::of(&all.collect::<Vec<_>>())
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, true),
        Field::new("number", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
    ]))
}

/// Rows `from..to`, of which row `n` has key `n * step % keys`.
fn rows(from: i64, to: i64, keys: i64) -> RecordBatch {
    let key: Int64Array = (from..to).map(|n| n.wrapping_mul(7919) % keys).collect();
    let text: StringArray = (from..to)
        .map(|n| (n % 11 != 0).then(|| format!("{:x}", n * 0x9e37_79b9)))
        .collect();
    let number: Int64Array = (from..to).collect();
    RecordBatch::try_new(
        schema(),
        vec![Arc::new(key), Arc::new(number), Arc::new(text)],
    )
    .expect("a batch")
}

fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
    Arc::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool"),
    )
}

fn open(root: &Path, options: &WriteOptions, threads: usize) -> FanoutWriter {
    let placement = Arc::new(ByFirst(schema()));
    FanoutWriter::open(root.to_owned(), "main", placement, options, pool(threads)).expect("open")
}

async fn append(writer: &mut FanoutWriter, rows: RecordBatch) {
    let split = writer.splitter().split(rows).expect("a split");
    writer.append(split).await.expect("append");
}

async fn finish(writer: &mut FanoutWriter) -> Prepared {
    writer.seal(Epoch(1)).finish().await.expect("finish")
}

/// Path, sequence, rows, row groups of each file of a table partition.
fn files(prepared: &Prepared) -> Vec<(String, u64, u64, u64)> {
    let number = |value: &Value| value.as_u64().expect("a number");
    if prepared.content.is_null() {
        return Vec::new();
    }
    let files: Vec<Value> = prepared.content.parse().expect("files");
    files
        .iter()
        .map(|f| {
            (
                f[0].as_str().expect("a path").to_owned(),
                number(&f[1]),
                number(&f[2]),
                number(&f[4]),
            )
        })
        .collect()
}

/// Numbers by key, in the order of the files of the key.
fn read(root: &Path, prepared: &Prepared) -> BTreeMap<Option<i64>, Vec<i64>> {
    let mut all: BTreeMap<Option<i64>, Vec<i64>> = BTreeMap::new();
    for (path, ..) in files(prepared) {
        let file = File::open(root.join(path)).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet");
        for batch in reader.build().expect("a reader") {
            let batch = batch.expect("a batch");
            let numbers = batch.column(1).as_primitive::<Int64Type>();
            for (row, key) in batch
                .column(0)
                .as_primitive::<Int64Type>()
                .iter()
                .enumerate()
            {
                let n = numbers.value(row);
                let text = batch.column(2).as_string::<i32>();
                let text = (!arrow::array::Array::is_null(text, row)).then(|| text.value(row));
                let expected = (n % 11 != 0).then(|| format!("{:x}", n * 0x9e37_79b9));
                assert_eq!(text, expected.as_deref(), "what was written is read");
                all.entry(key).or_default().push(n);
            }
        }
    }
    all
}

fn expected(to: i64, keys: i64) -> BTreeMap<Option<i64>, Vec<i64>> {
    let mut all: BTreeMap<Option<i64>, Vec<i64>> = BTreeMap::new();
    for n in 0..to {
        all.entry(Some(n.wrapping_mul(7919) % keys))
            .or_default()
            .push(n);
    }
    all
}

fn all_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_the_same_whatever_the_number_of_threads() {
    type Shape = Vec<(u64, u64, u64)>;
    let mut first: Option<(Shape, Vec<Vec<u8>>)> = None;
    for threads in 1..=4 {
        let dir = tempfile::tempdir().expect("a folder");
        let options = WriteOptions {
            target_file_size: 600 << 10,
            row_group_rows: 60_000,
            memory_bytes: 1 << 30,
            ..WriteOptions::default()
        };
        let mut writer = open(dir.path(), &options, threads);
        for n in 0..50 {
            append(&mut writer, rows(n * 10_000, (n + 1) * 10_000, 3)).await;
        }
        let prepared = finish(&mut writer).await;
        assert_eq!(prepared.rows, 500_000);
        assert_eq!(read(dir.path(), &prepared), expected(500_000, 3));
        let bytes: Vec<Vec<u8>> = files(&prepared)
            .iter()
            .map(|(path, ..)| std::fs::read(dir.path().join(path)).expect("a file"))
            .collect();
        assert_eq!(
            bytes.iter().map(|b| b.len() as u64).sum::<u64>(),
            prepared.bytes
        );
        let shape: Vec<_> = files(&prepared).iter().map(|f| (f.1, f.2, f.3)).collect();
        assert!(
            shape.len() > 3 && shape.iter().any(|f| f.2 > 1),
            "rolled, in row groups: {shape:?}"
        );
        match &first {
            None => first = Some((shape, bytes)),
            Some((a, b)) => assert!(*a == shape && *b == bytes, "threads={threads}: {shape:?}"),
        }
        assert_eq!(writer.buffered_bytes(), 0, "everything is released");
        assert_eq!(writer.open_files(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_table_partitions_stay_within_the_budget() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = WriteOptions {
        memory_bytes: 32 << 20,
        open_files: 64,
        ..WriteOptions::default()
    };
    let mut writer = open(dir.path(), &options, 2);
    let mut highest = 0;
    for n in 0..90 {
        append(&mut writer, rows(n * 20_000, (n + 1) * 20_000, 20_000)).await;
        highest = highest.max(writer.buffered_bytes());
        assert!(
            writer.buffered_bytes() <= 32 << 20,
            "held={}",
            writer.buffered_bytes()
        );
    }
    assert!(highest > 16 << 20, "the budget is used: highest={highest}");
    let prepared = finish(&mut writer).await;
    assert_eq!(prepared.rows, 1_800_000);
    assert_eq!(read(dir.path(), &prepared), expected(1_800_000, 20_000));
    assert_eq!(writer.buffered_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rare_table_partition_does_not_pin_the_batches_of_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = WriteOptions {
        memory_bytes: 16 << 20,
        ..WriteOptions::default()
    };
    let mut writer = open(dir.path(), &options, 2);
    for n in 0..150 {
        let batch = rows(n * 20_000, (n + 1) * 20_000, 1);
        let keys: Int64Array = (0..20_000).map(|row| Some(i64::from(row == 7))).collect();
        let columns = vec![
            Arc::new(keys) as _,
            batch.column(1).clone(),
            batch.column(2).clone(),
        ];
        append(
            &mut writer,
            RecordBatch::try_new(schema(), columns).expect("a batch"),
        )
        .await;
        assert!(
            writer.buffered_bytes() <= 16 << 20,
            "held={}",
            writer.buffered_bytes()
        );
    }
    let prepared = finish(&mut writer).await;
    let read = read(dir.path(), &prepared);
    assert_eq!(
        read[&Some(1)],
        (0..150).map(|n| n * 20_000 + 7).collect::<Vec<_>>()
    );
    assert_eq!(read[&Some(0)].len(), 150 * 19_999);
    assert!(read[&Some(0)].is_sorted(), "in order");
    let rare = files(&prepared)
        .iter()
        .filter(|f| f.0.contains("key=1/"))
        .count();
    assert_eq!(rare, 1, "the rare one was not flushed again and again");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_files_are_limited() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = WriteOptions {
        open_files: 8,
        ..WriteOptions::default()
    };
    let mut writer = open(dir.path(), &options, 2);
    let mut highest = 0;
    for n in 0..40 {
        // One key after the other, each large enough for a file.
        let batch = rows(n * 70_000, (n + 1) * 70_000, 1);
        let keys: Int64Array = std::iter::repeat_n(Some(n), 70_000).collect();
        let columns = vec![
            Arc::new(keys) as _,
            batch.column(1).clone(),
            batch.column(2).clone(),
        ];
        append(
            &mut writer,
            RecordBatch::try_new(schema(), columns).expect("a batch"),
        )
        .await;
        highest = highest.max(writer.open_files());
    }
    let prepared = finish(&mut writer).await;
    assert_eq!(prepared.rows, 40 * 70_000);
    assert!((4..=16).contains(&highest), "highest={highest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_do_not_mix() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut writer = open(dir.path(), &WriteOptions::default(), 2);
    append(&mut writer, rows(0, 100_000, 5)).await;
    let one = writer.seal(Epoch(1));
    append(&mut writer, rows(100_000, 150_000, 5)).await;
    let two = writer.seal(Epoch(2));
    let empty = writer.seal(Epoch(3)).finish().await.expect("finish");
    assert_eq!(empty, Prepared::default());
    let two = two.finish().await.expect("finish");
    let one = one.finish().await.expect("finish");
    assert_eq!((one.rows, two.rows), (100_000, 50_000));
    assert_eq!(read(dir.path(), &one), expected(100_000, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_finished_is_removed() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = WriteOptions {
        row_group_rows: 1000,
        ..WriteOptions::default()
    };
    let mut writer = open(dir.path(), &options, 1);
    append(&mut writer, rows(0, 400_000, 2)).await;
    while writer.written_bytes() == 0 {
        tokio::task::yield_now().await;
    }
    let sealed = writer.seal(Epoch(1));
    assert!(!all_files(dir.path()).is_empty());
    drop((sealed, writer));
    for _ in 0..1000 {
        if all_files(dir.path()).is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("files stay: {:?}", all_files(dir.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_is_an_error_with_the_path() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut writer = open(dir.path(), &WriteOptions::default(), 1);
    // A file where the folder of key 0 should be.
    std::fs::write(dir.path().join("key=0"), b"").expect("a file");
    append(&mut writer, rows(0, 10_000, 2)).await;
    let error = writer.seal(Epoch(1)).finish().await.expect_err("no folder");
    assert!(error.message().contains("key=0/main-"), "{error}");
    assert!(matches!(
        error.kind(),
        ErrorKind::Unavailable | ErrorKind::Config
    ));
    assert_eq!(
        all_files(dir.path()).len(),
        1,
        "what was written is removed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_says_who_wrote_it_and_how() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = WriteOptions {
        bloom_filters: vec!["text".into()],
        schema_version: 7,
        ..WriteOptions::default()
    };
    let mut writer = open(dir.path(), &options, 1);
    append(&mut writer, rows(0, 50_000, 1)).await;
    let prepared = finish(&mut writer).await;
    let file = File::open(dir.path().join(&files(&prepared)[0].0)).expect("a file");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet");
    let metadata = reader.metadata();
    assert!(
        metadata
            .file_metadata()
            .created_by()
            .expect("created by")
            .starts_with("calve version")
    );
    let pairs = metadata
        .file_metadata()
        .key_value_metadata()
        .expect("pairs");
    let version = pairs
        .iter()
        .find(|pair| pair.key == "calve.schema_version")
        .expect("version");
    assert_eq!(version.value.as_deref(), Some("7"));
    let group = metadata.row_group(0);
    assert!(group.column(2).bloom_filter_offset().is_some());
    assert!(
        group.column(1).column_index_offset().is_some(),
        "a rising column has page statistics"
    );
    assert!(group.column(2).column_index_offset().is_none());
    let statistics = group.column(1).statistics().expect("statistics");
    assert_eq!(
        statistics.max_bytes_opt(),
        Some(49_999i64.to_le_bytes().as_slice())
    );
    let bad = WriteOptions {
        bloom_filters: vec!["nope".into()],
        ..WriteOptions::default()
    };
    let placement = Arc::new(ByFirst(schema()));
    let error = FanoutWriter::open(dir.path().to_owned(), "main", placement, &bad, pool(1));
    assert!(error.is_err_and(|e| e.kind() == ErrorKind::Config));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dictionary_that_grows_too_large_ends_its_row_group() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("text", DataType::Utf8, false),
    ]));
    // The sample that the plan is made from says eight words; then every row has another.
    let text = |row: i64| match row {
        0..40_000 => format!("word {}", row % 8),
        _ => format!("{:032x}", u128::from(row as u64) * 0x9e37_79b9_7f4a_7c15),
    };
    let batch = |from: i64, to: i64| {
        let texts: StringArray = (from..to).map(text).map(Some).collect();
        let keys: Int64Array = (from..to).map(|_| Some(1)).collect();
        RecordBatch::try_new(schema.clone(), vec![Arc::new(keys), Arc::new(texts)]).expect("rows")
    };
    let mut ends: Vec<Vec<i64>> = Vec::new();
    for (threads, step) in [(1, 10_000), (2, 7_000), (4, 1_000)] {
        let dir = tempfile::tempdir().expect("a folder");
        let placement = Arc::new(ByFirst(schema.clone()));
        let (root, options) = (dir.path().to_owned(), WriteOptions::default());
        let opened = FanoutWriter::open(root, "main", placement, &options, pool(threads));
        let mut writer = opened.expect("open");
        for from in (0..200_000).step_by(step) {
            append(&mut writer, batch(from, 200_000.min(from + step as i64))).await;
        }
        let prepared = finish(&mut writer).await;
        let [(path, _, rows, groups)] = &files(&prepared)[..] else {
            panic!("one file");
        };
        assert_eq!((*rows, *groups), (200_000, 2));
        let file = File::open(dir.path().join(path)).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet");
        let first = reader.metadata().row_group(0).column(1);
        assert!(first.dictionary_page_offset().is_some());
        let groups = reader.metadata().row_groups().iter();
        ends.push(groups.map(RowGroupMetaData::num_rows).collect());
        let mut row = 0;
        for batch in reader.build().expect("a reader") {
            for value in batch.expect("a batch").column(1).as_string::<i32>() {
                assert_eq!(value, Some(text(row).as_str()));
                row += 1;
            }
        }
        assert_eq!(row, 200_000);
    }
    assert!(
        ends.iter().all(|rows| *rows == ends[0]),
        "the same row ends it, whatever threads and batches: {ends:?}"
    );
}

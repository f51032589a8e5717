//! Data files in each codec and level that a user may name, as the Parquet crate reads them back.

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray},
    compute::concat_batches,
    datatypes::{DataType, Int64Type, Schema, SchemaRef},
};
use calve_engine::{error::Result, opaque::Opaque, seams::TableWriter};
use calve_model::Epoch;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    basic::{BrotliLevel, Compression as Codec, GzipLevel, ZstdLevel},
};

use super::*;

/// All rows in one file.
#[derive(Debug)]
struct OneFile(SchemaRef);

impl Placement for OneFile {
    fn file_schema(&self) -> SchemaRef {
        self.0.clone()
    }
    fn place(&self, rows: RecordBatch) -> Result<Placed> {
        Ok(Placed {
            keys: Vec::new(),
            rows,
        })
    }
    fn path(&self, _: &TablePartition, unique: &str) -> String {
        format!("{unique}.parquet")
    }
    fn describe(&self, _: &FinishedFile<'_>) -> Result<Opaque> {
        Opaque::of(&())
    }
    fn content(&self, _: Epoch, files: Vec<DescribedFile>) -> Result<Opaque> {
        Opaque::of(&files.iter().map(|file| &file.path).collect::<Vec<_>>())
    }
}

/// Columns of all ways: numbers that rise, texts of few values (a dictionary of ours) and of many (the
/// Parquet crate's pages), nulls, and a list.
fn rows() -> RecordBatch {
    let count = 20_000_i64;
    let number: Int64Array = (0..count).collect();
    let few: StringArray = (0..count)
        .map(|n| (n % 7 != 0).then(|| format!("region {}", n % 30)))
        .collect();
    let many: StringArray = (0..count as u64)
        .map(|n| Some(format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
        .collect();
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>(
        (0..count).map(|n| (n % 5 != 0).then(|| (0..n % 4).map(Some).collect::<Vec<_>>())),
    );
    let columns: [(&str, ArrayRef); 4] = [
        ("number", Arc::new(number)),
        ("few", Arc::new(few)),
        ("many", Arc::new(many)),
        ("list", Arc::new(list)),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, of)| (name, of, true)))
        .expect("a batch")
}

/// Writes the rows in this codec; answers with the path of the file.
async fn write(root: &Path, compression: Compression, rows: &RecordBatch) -> std::path::PathBuf {
    let options = WriteOptions {
        compression,
        ..WriteOptions::default()
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    let placement = Arc::new(OneFile(rows.schema()));
    let pool = Arc::new(pool.expect("a pool"));
    let writer = FanoutWriter::open(root.to_owned(), "main", placement, &options, pool);
    let mut writer = writer.expect("open");
    let split = writer.splitter().split(rows.clone()).expect("a split");
    writer.append(split).await.expect("append");
    let prepared = writer.seal(Epoch(1)).finish().await.expect("finish");
    let files: Vec<String> = prepared.content.parse().expect("files");
    assert_eq!(files.len(), 1, "{files:?}");
    root.join(&files[0])
}

/// Without what the file says of the fields beside their types.
fn plain(schema: &Schema) -> Vec<(String, DataType)> {
    let fields = schema.fields().iter();
    fields
        .map(|field| (field.name().clone(), field.data_type().clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_have_the_codec_that_is_asked_for_and_the_rows() {
    let gzip = |level| Codec::GZIP(GzipLevel::try_new(level).expect("a level"));
    let zstd = |level| Codec::ZSTD(ZstdLevel::try_new(level).expect("a level"));
    let brotli = |level| Codec::BROTLI(BrotliLevel::try_new(level).expect("a level"));
    let mut asked = vec![
        ("none".to_owned(), Codec::UNCOMPRESSED),
        ("snappy".to_owned(), Codec::SNAPPY),
        ("lz4".to_owned(), Codec::LZ4_RAW),
        ("gzip".to_owned(), gzip(6)),
        ("zstd".to_owned(), zstd(1)),
        ("brotli".to_owned(), brotli(1)),
    ];
    asked.extend((0..=9).map(|level| (format!("gzip({level})"), gzip(level))));
    asked.extend((1..=22).map(|level| (format!("zstd({level})"), zstd(level))));
    asked.extend((0..=11).map(|level| (format!("brotli({level})"), brotli(level))));
    let rows = rows();
    let mut sizes = std::collections::HashMap::new();
    for (text, codec) in asked {
        let dir = tempfile::tempdir().expect("a folder");
        let path = write(dir.path(), text.parse().expect(&text), &rows).await;
        sizes.insert(text.clone(), path.metadata().expect("a file").len());
        let file = File::open(path).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
        for group in reader.metadata().row_groups() {
            for column in group.columns() {
                // A file names the codec; the level is the writer's own affair.
                let (is, wanted) = (column.compression(), codec);
                let same = std::mem::discriminant(&is) == std::mem::discriminant(&wanted);
                assert!(same, "{text}: column={} {is}", column.column_path());
            }
        }
        let read: Vec<RecordBatch> = reader
            .build()
            .expect("a reader")
            .map(|batch| batch.unwrap_or_else(|e| panic!("{text}: {e}")))
            .collect();
        let read = concat_batches(&read[0].schema(), &read).expect("one batch");
        assert_eq!(plain(&read.schema()), plain(&rows.schema()), "{text}");
        assert!(read.columns() == rows.columns(), "{text}: other rows");
    }
    // The levels come through: what they make differs. More work need not make less of such texts.
    for (one, other) in [
        ("gzip(1)", "gzip(9)"),
        ("zstd(1)", "zstd(19)"),
        ("brotli(0)", "brotli(11)"),
    ] {
        assert_ne!(sizes[one], sizes[other], "{one} {other}: {sizes:?}");
    }
    for codec in ["snappy", "lz4", "gzip(1)", "zstd(1)", "brotli(0)"] {
        assert!(sizes[codec] < sizes["none"], "{codec}: {sizes:?}");
    }
    for (default, same) in [
        ("gzip", "gzip(6)"),
        ("zstd", "zstd(1)"),
        ("brotli", "brotli(1)"),
    ] {
        assert_eq!(sizes[default], sizes[same], "{default}: {sizes:?}");
    }
}

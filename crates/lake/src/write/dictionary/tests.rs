//! What we write against what the Parquet crate writes of the same rows.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, Date32Array, DictionaryArray, Float32Array, Float64Array, Int32Array, Int64Array,
        LargeStringArray, RecordBatch, StringArray, Time32MillisecondArray, Time64NanosecondArray,
        TimestampMicrosecondArray, UInt32Array,
    },
    compute::{cast, concat_batches, take},
    datatypes::{DataType, Field, Int32Type, Schema, SchemaRef},
};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowSchemaConverter, ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::{
        metadata::{PageIndexPolicy, ParquetMetaData},
        properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr},
        writer::SerializedFileWriter,
    },
};
use proptest::prelude::*;

use super::*;

fn properties(codec: Compression) -> WriterPropertiesPtr {
    Arc::new(
        WriterProperties::builder()
            .set_compression(codec)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_created_by("test".to_owned())
            .build(),
    )
}

fn theirs(batches: &[RecordBatch], codec: Compression) -> Bytes {
    let properties = properties(codec).as_ref().clone();
    let mut writer =
        ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties)).expect("a writer");
    for batch in batches {
        writer.write(batch).expect("written");
    }
    writer.into_inner().expect("closed").into()
}

fn ours(batches: &[RecordBatch], codec: Compression) -> Bytes {
    written(&batches[0].schema(), batches, codec)
}

fn written(fields: &SchemaRef, batches: &[RecordBatch], codec: Compression) -> Bytes {
    let schema = ArrowSchemaConverter::new()
        .convert(fields)
        .expect("a schema");
    let mut file =
        SerializedFileWriter::new(Vec::new(), schema.root_schema_ptr(), properties(codec))
            .expect("a writer");
    let mut group = file.next_row_group().expect("a group");
    for index in 0..batches[0].num_columns() {
        let column = schema.column(index);
        let data_type = fields.field(index).data_type();
        assert!(supported(data_type, &column, codec), "{data_type}");
        let mut writer = DictionaryColumn::new(column, codec);
        for batch in batches {
            writer.write(batch.column(index)).expect("written");
        }
        let estimated = writer.estimated_bytes();
        let chunk = writer.close().expect("closed");
        if codec == Compression::UNCOMPRESSED {
            let real = chunk.bytes.len();
            assert!(
                real <= estimated + estimated / 2 + 200,
                "{estimated} {real}"
            );
        }
        group
            .append_column(&chunk.bytes, chunk.closed)
            .expect("appended");
    }
    group.close().expect("closed");
    file.into_inner().expect("closed").into()
}

fn read(file: &Bytes, schema: &SchemaRef) -> (RecordBatch, Arc<ParquetMetaData>) {
    let options = parquet::arrow::arrow_reader::ArrowReaderOptions::new()
        .with_page_index_policy(PageIndexPolicy::Required);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options)
        .expect("readable");
    let metadata = reader.metadata().clone();
    let batches: Vec<_> = reader
        .with_batch_size(7001)
        .build()
        .expect("a reader")
        .collect::<Result<_, _>>()
        .expect("read");
    let rows = concat_batches(&batches[0].schema(), &batches).expect("one batch");
    (plain(&rows, schema), metadata)
}

/// The rows without dictionaries, of which there may be several for the same values.
fn plain(rows: &RecordBatch, schema: &SchemaRef) -> RecordBatch {
    let columns = rows.columns().iter().zip(schema.fields());
    let columns: Vec<_> = columns
        .map(|(column, field)| {
            let of = match field.data_type() {
                DataType::Dictionary(_, value) => value,
                other => other,
            };
            (field.name(), cast(column, of).expect("a cast"), true)
        })
        .collect();
    RecordBatch::try_from_iter_with_nullable(columns).expect("a batch")
}

/// The same rows, as a split leaves them: strings lie in another order, and each row says which is its own.
fn selected(batch: &RecordBatch) -> RecordBatch {
    let rows = batch.num_rows() as u32;
    let keys: UInt32Array = (0..rows).map(|row| rows - 1 - row).collect();
    let columns = batch
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 => {
                let lie = take(column, &keys, None).expect("taken");
                Arc::new(DictionaryArray::new(keys.clone(), lie)) as ArrayRef
            }
            _ => Arc::clone(column),
        });
    let schema = batch.schema();
    let columns = schema.fields().iter().map(|f| f.name()).zip(columns);
    RecordBatch::try_from_iter(columns).expect("a batch")
}

fn compare(batches: &[RecordBatch], codec: Compression) {
    let schema = batches[0].schema();
    let (theirs, ours) = (theirs(batches, codec), ours(batches, codec));
    let left: Vec<_> = batches.iter().map(selected).collect();
    assert!(
        ours == written(&schema, &left, codec),
        "rows that a split left where they were"
    );
    let (their_rows, their_metadata) = read(&theirs, &schema);
    let (our_rows, our_metadata) = read(&ours, &schema);
    let written = concat_batches(&schema, batches).expect("one batch");
    assert_eq!(our_rows, plain(&written, &schema));
    assert_eq!(our_rows, their_rows);
    for index in 0..schema.fields().len() {
        let name = schema.field(index).name();
        let (a, b) = (
            our_metadata.row_group(0).column(index),
            their_metadata.row_group(0).column(index),
        );
        assert_eq!(a.statistics(), b.statistics(), "{name}");
        let ends = |of: &ColumnChunkMetaData| {
            let of = of.statistics()?;
            Some((of.min_bytes_opt()?.to_vec(), of.max_bytes_opt()?.to_vec()))
        };
        assert_eq!(ends(a), ends(b), "{name}: zeros have signs");
        assert_eq!(a.num_values(), b.num_values(), "{name}");
        assert_eq!(a.compression(), b.compression(), "{name}");
        assert_eq!(a.encodings_mask(), b.encodings_mask(), "{name}");
        assert_eq!(a.page_encoding_stats(), b.page_encoding_stats(), "{name}");
        assert_eq!(
            a.unencoded_byte_array_data_bytes(),
            b.unencoded_byte_array_data_bytes(),
            "{name}"
        );
        assert_eq!(
            a.definition_level_histogram(),
            b.definition_level_histogram(),
            "{name}"
        );
        assert!(
            a.uncompressed_size() <= b.uncompressed_size() * 5 / 4 + 64,
            "{name}: {} {}",
            a.uncompressed_size(),
            b.uncompressed_size()
        );
        let index = &our_metadata.offset_index().expect("an index")[0][index];
        for (at, page) in index.page_locations.iter().enumerate() {
            assert_eq!(page.first_row_index as usize, at * PAGE_ROWS, "{name}");
        }
        let text = index.unencoded_byte_array_data_bytes.as_ref();
        let text = text.map(|pages| pages.iter().sum());
        assert_eq!(text, a.unencoded_byte_array_data_bytes(), "{name}");
    }
}

/// Rows whose values come from `pool`, by the numbers in `picks`; none is null.
fn batch(picks: &[Option<usize>], pool: &[String], nullable: bool) -> RecordBatch {
    let picks: Vec<Option<usize>> = picks
        .iter()
        .map(|pick| if nullable { *pick } else { pick.or(Some(0)) })
        .collect();
    let number =
        |pick: usize| [0, i64::MIN, i64::MAX, -1, 7][pick % 5].wrapping_add(pick as i64 / 5);
    let float = |pick: usize| {
        let special = [0.0, -0.0, f64::NAN, f64::INFINITY, -1.5, f64::MIN_POSITIVE];
        special.get(pick).copied().unwrap_or(pick as f64 / 3.0)
    };
    let texts = || {
        picks
            .iter()
            .map(|pick| pick.map(|at| pool[at % pool.len()].as_str()))
    };
    let coded: DictionaryArray<Int32Type> = texts().collect();
    // Among the values of a dictionary may be a null, too.
    let values: StringArray = (0..pool.len())
        .map(|at| (at % 7 != 0 || !nullable).then(|| pool[at].as_str()))
        .collect();
    let keys: Int32Array = picks
        .iter()
        .map(|p| p.map(|p| (p % pool.len()) as i32))
        .collect();
    let shared = DictionaryArray::new(keys, Arc::new(values));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", Arc::new(texts().collect::<StringArray>())),
        ("large", Arc::new(texts().collect::<LargeStringArray>())),
        ("coded", Arc::new(coded)),
        ("shared", Arc::new(shared)),
        (
            "long",
            Arc::new(picks.iter().map(|p| p.map(number)).collect::<Int64Array>()),
        ),
        (
            "int",
            Arc::new(
                picks
                    .iter()
                    .map(|p| p.map(|p| number(p) as i32))
                    .collect::<Int32Array>(),
            ),
        ),
        (
            "date",
            Arc::new(
                picks
                    .iter()
                    .map(|p| p.map(|p| p as i32 - 3))
                    .collect::<Date32Array>(),
            ),
        ),
        (
            "hour",
            Arc::new(
                picks
                    .iter()
                    .map(|p| p.map(|p| p as i32))
                    .collect::<Time32MillisecondArray>(),
            ),
        ),
        (
            "nanos",
            Arc::new(
                picks
                    .iter()
                    .map(|p| p.map(|p| p as i64))
                    .collect::<Time64NanosecondArray>(),
            ),
        ),
        (
            "time",
            Arc::new(
                picks
                    .iter()
                    .map(|p| p.map(number))
                    .collect::<TimestampMicrosecondArray>(),
            ),
        ),
        (
            "double",
            Arc::new(picks.iter().map(|p| p.map(float)).collect::<Float64Array>()),
        ),
        (
            "float",
            Arc::new(
                picks
                    .iter()
                    .map(|p| p.map(|p| float(p) as f32))
                    .collect::<Float32Array>(),
            ),
        ),
    ];
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), nullable))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
}

fn pool() -> Vec<String> {
    let mut pool: Vec<String> = [
        "",
        "a",
        "a\0",
        "eu-west",
        "fifteen bytes..",
        "sixteen bytes...",
    ]
    .map(str::to_owned)
    .into();
    pool.extend([64, 65, 300].map(|length| "ü".repeat(length / 2) + &"z".repeat(length % 2)));
    pool.push("\u{10ffff}".repeat(20));
    pool.extend((0..400).map(|n| format!("SKU-{n:05}")));
    pool
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pages_and_metadata_are_those_of_the_crate(
        batches in proptest::collection::vec(
            proptest::collection::vec((proptest::option::weighted(0.9, 0usize..500), 1usize..30), 0..100),
            1..5,
        ),
        distinct in 1usize..500,
        nullable: bool,
        codec in 0usize..4,
    ) {
        let zstd = Compression::ZSTD(ZstdLevel::default());
        let codec = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::LZ4_RAW, zstd][codec];
        let batches: Vec<RecordBatch> = batches
            .iter()
            .map(|runs| {
                let rows = runs.iter().flat_map(|(pick, times)| std::iter::repeat_n(pick.map(|p| p % distinct), *times));
                batch(&rows.collect::<Vec<_>>(), &pool(), nullable)
            })
            .collect();
        prop_assume!(batches.iter().any(|batch| batch.num_rows() > 0));
        compare(&batches, codec);
    }
}

#[test]
fn pages_have_twenty_thousand_rows() {
    let picks: Vec<Option<usize>> = (0..70_001)
        .map(|row| (row % 97 != 0).then_some(row * row % 311))
        .collect();
    let rows = batch(&picks, &pool(), true);
    // Slices, so that offsets into buffers matter.
    compare(
        &[rows.slice(3, 25_000), rows.slice(25_003, 44_000)],
        Compression::SNAPPY,
    );
    compare(&[batch(&picks, &pool(), false)], Compression::SNAPPY);
}

#[test]
fn one_string_again_and_again_or_nearly() {
    let pool: Vec<String> = [
        "",
        "eu-west",
        "eu-east",
        "aa",
        "aaaa",
        "a",
        "sixteen bytes...",
    ]
    .map(str::to_owned)
    .into();
    for pick in 0..pool.len() {
        let same = vec![Some(pick); 1000];
        let mut batches = vec![batch(&same, &pool, false)];
        compare(&batches, Compression::SNAPPY);
        compare(
            &[batch(&same, &pool, true).slice(7, 600)],
            Compression::SNAPPY,
        );
        for other in 0..pool.len() {
            for at in [1, 5, 9, 998, 999] {
                let mut nearly = same.clone();
                nearly[at] = Some(other);
                batches.truncate(1);
                batches.push(batch(&nearly, &pool, false));
                batches.push(batch(&nearly, &pool, false).slice(at, 1000 - at));
                compare(&batches, Compression::UNCOMPRESSED);
            }
        }
    }
}

#[test]
fn a_column_of_nulls_alone_has_no_values() {
    compare(&[batch(&[None; 1000], &pool(), true)], Compression::SNAPPY);
}

#[test]
fn other_types_and_nulls_where_none_may_be_are_refused() {
    let rows = batch(&[Some(1), None], &pool(), true);
    let schema = Schema::new(vec![Field::new("text", DataType::Utf8, false)]);
    let column = ArrowSchemaConverter::new()
        .convert(&schema)
        .expect("a schema")
        .column(0);
    let mut writer = DictionaryColumn::new(column, Compression::SNAPPY);
    assert!(writer.write(rows.column(0)).is_err(), "a null");
    assert!(writer.write(rows.column(4)).is_err(), "a number");
}

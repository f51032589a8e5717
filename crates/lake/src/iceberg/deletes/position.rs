//! Position delete files: Parquet with the columns `file_path` and `pos`, sorted by both.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, DictionaryArray, Int32Array, Int64Array, RecordBatch, StringArray,
    },
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use bytes::Bytes;
use calve_engine::error::{Error, Result};
use iceberg::{
    io::FileIO,
    metadata_columns::{RESERVED_FIELD_ID_DELETE_FILE_PATH, RESERVED_FIELD_ID_DELETE_FILE_POS},
    spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum},
};
use parquet::{
    arrow::{
        ArrowWriter, PARQUET_FIELD_ID_META_KEY, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        arrow_writer::ArrowWriterOptions,
    },
    basic::{Compression, Encoding},
    file::{metadata::ParquetMetaData, properties::WriterProperties},
    schema::types::{BasicTypeInfo, ColumnPath},
};
use roaring::RoaringTreemap;

use super::{super::live::LiveFile, unreadable};

/// Rows that are encoded at once.
const BATCH_ROWS: usize = 8192;

fn schema() -> SchemaRef {
    let field = |name: &str, of: DataType, id: i32| {
        let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, of, false).with_metadata(id)
    };
    let path = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        field("file_path", path, RESERVED_FIELD_ID_DELETE_FILE_PATH),
        field("pos", DataType::Int64, RESERVED_FIELD_ID_DELETE_FILE_POS),
    ]))
}

/// The bytes of a delete file at `location` for rows of one data file, and its description. There
/// must be a row.
///
/// # Errors
/// `Internal` when it cannot be encoded.
pub(crate) fn write(
    location: &str,
    of: &LiveFile,
    rows: &RoaringTreemap,
) -> Result<(Vec<u8>, DataFile)> {
    let internal = |e: parquet::errors::ParquetError| {
        Error::internal("cannot encode a delete file").because(e)
    };
    let (Some(first), Some(last)) = (rows.min(), rows.max()) else {
        return Err(Error::internal("a delete file without rows"));
    };
    let pos = ColumnPath::from("pos");
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(parquet::basic::ZstdLevel::default()))
        .set_column_dictionary_enabled(pos.clone(), false)
        .set_column_encoding(pos, Encoding::DELTA_BINARY_PACKED)
        .build();
    let options = ArrowWriterOptions::new()
        .with_properties(properties)
        .with_skip_arrow_metadata(true);
    let schema = schema();
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new_with_options(&mut bytes, schema.clone(), options).map_err(internal)?;
    let names: ArrayRef = Arc::new(StringArray::from(vec![&*of.path]));
    let mut iter = rows.iter();
    loop {
        let positions: Vec<i64> = iter.by_ref().take(BATCH_ROWS).map(|p| p as i64).collect();
        if positions.is_empty() {
            break;
        }
        let keys = Int32Array::from(vec![0; positions.len()]);
        let paths = DictionaryArray::try_new(keys, names.clone());
        let batch = paths.and_then(|paths| {
            let positions = Int64Array::from(positions);
            RecordBatch::try_new(schema.clone(), vec![Arc::new(paths), Arc::new(positions)])
        });
        let batch = batch.map_err(|e| Error::internal("cannot encode a delete file").because(e))?;
        writer.write(&batch).map_err(internal)?;
    }
    let metadata = writer.close().map_err(internal)?;
    let file = describe(
        location,
        of,
        rows.len(),
        bytes.len() as u64,
        &metadata,
        (first, last),
    )?;
    Ok((bytes, file))
}

fn describe(
    location: &str,
    of: &LiveFile,
    rows: u64,
    bytes: u64,
    metadata: &ParquetMetaData,
    (first, last): (u64, u64),
) -> Result<DataFile> {
    const IDS: [i32; 2] = [
        RESERVED_FIELD_ID_DELETE_FILE_PATH,
        RESERVED_FIELD_ID_DELETE_FILE_POS,
    ];
    let mut sizes = HashMap::new();
    for group in metadata.row_groups() {
        for (id, chunk) in IDS.iter().zip(group.columns()) {
            *sizes.entry(*id).or_insert(0) += chunk.compressed_size().unsigned_abs();
        }
    }
    let bounds = |pos: u64| {
        HashMap::from([
            (IDS[0], Datum::string(of.path.as_ref())),
            (IDS[1], Datum::long(pos as i64)),
        ])
    };
    DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(location.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(of.partition.as_ref().clone())
        .partition_spec_id(of.spec)
        .record_count(rows)
        .file_size_in_bytes(bytes)
        .column_sizes(sizes)
        .value_counts(IDS.map(|id| (id, rows)).into())
        .null_value_counts(IDS.map(|id| (id, 0)).into())
        .lower_bounds(bounds(first))
        .upper_bounds(bounds(last))
        .referenced_data_file(Some(of.path.to_string()))
        .build()
        .map_err(|e| Error::internal("a delete file's description is not whole").because(e))
}

/// The rows of the data file at `data_file` that a delete file names; it may name those of others too.
///
/// # Errors
/// `Corrupt` when it is missing or not a delete file.
pub(crate) async fn read(
    file_io: &FileIO,
    location: &str,
    data_file: &str,
) -> Result<RoaringTreemap> {
    let mut rows = RoaringTreemap::new();
    read_each(file_io, location, |path, pos| {
        if path == data_file {
            rows.insert(pos);
        }
    })
    .await?;
    Ok(rows)
}

/// Shows everything that a delete file names: the data file, and the row.
///
/// # Errors
/// See [`read`].
pub(crate) async fn read_each(
    file_io: &FileIO,
    location: &str,
    see: impl FnMut(&str, u64),
) -> Result<()> {
    let bytes = file_io
        .new_input(location)
        .map_err(unreadable(location))?
        .read()
        .await
        .map_err(unreadable(location))?;
    positions(bytes, see).map_err(|e| e.context(format!("file={location}")))
}

fn positions(bytes: Bytes, mut see: impl FnMut(&str, u64)) -> Result<()> {
    let failed = || Error::corrupt("not a file of position deletes");
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load(&bytes, options).map_err(|e| failed().because(e))?;
    let descriptor = metadata.metadata().file_metadata().schema_descr();
    let column = |id: i32, name: &str| {
        let leaves = descriptor.columns();
        let with = |test: &dyn Fn(&BasicTypeInfo) -> bool| {
            leaves
                .iter()
                .position(|c| test(c.self_type().get_basic_info()))
        };
        with(&|info| info.has_id() && info.id() == id)
            .or_else(|| with(&|info| info.name() == name))
            .ok_or_else(failed)
    };
    let path = column(RESERVED_FIELD_ID_DELETE_FILE_PATH, "file_path")?;
    let pos = column(RESERVED_FIELD_ID_DELETE_FILE_POS, "pos")?;
    let path_first = path < pos;
    let mask = ProjectionMask::leaves(descriptor, [path, pos]);
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata)
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|e| failed().because(e))?;
    for batch in reader {
        let batch = batch.map_err(|e| failed().because(e))?;
        let [first, second] = batch.columns() else {
            return Err(failed());
        };
        let (path, pos) = if path_first {
            (first, second)
        } else {
            (second, first)
        };
        let path = cast(path, &DataType::Utf8).map_err(|e| failed().because(e))?;
        let pos = cast(pos, &DataType::Int64).map_err(|e| failed().because(e))?;
        let (path, pos) = (path.as_string::<i32>(), pos.as_primitive::<Int64Type>());
        if path.null_count() > 0 || pos.null_count() > 0 {
            return Err(failed());
        }
        for (row, pos) in pos.values().iter().enumerate() {
            let pos = u64::try_from(*pos).map_err(|e| failed().because(e))?;
            see(path.value(row), pos);
        }
    }
    Ok(())
}

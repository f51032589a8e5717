//! Deletes by values: a file of the values that some columns have in deleted rows. It is about all data
//! files of its table partition (of the whole table, where its spec has no fields) that were committed
//! before it.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, new_null_array},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
    row::{RowConverter, Rows, SortField},
};
use calve_engine::error::{Error, Result};
use futures::TryStreamExt;
use iceberg::{
    arrow::ArrowFileReader,
    io::{FileIO, FileMetadata},
    spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat},
};
use parquet::arrow::{
    ArrowWriter, PARQUET_FIELD_ID_META_KEY, ParquetRecordBatchStreamBuilder, ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
};
use roaring::RoaringTreemap;
use rustc_hash::FxHashSet;

use super::{
    super::{
        access,
        live::{DeleteFile, DeleteKind, LiveFile},
    },
    unreadable,
};

/// Rows that are read at once.
const BATCH_ROWS: usize = 1 << 14;

/// The bytes of a delete file at `location` for these values, and its description. The fields carry
/// their ids; the file is of the spec and table partition of a data file.
///
/// # Errors
/// `Internal` when it cannot be encoded.
pub(crate) fn write(
    location: &str,
    like: &LiveFile,
    values: &RecordBatch,
) -> Result<(Vec<u8>, DataFile)> {
    let internal = |e: parquet::errors::ParquetError| {
        Error::internal("cannot encode a delete file").because(e)
    };
    let fields = values.schema_ref().fields();
    let ids: Option<Vec<i32>> = fields.iter().map(|field| id(field)).collect();
    let ids = ids.ok_or_else(|| Error::internal("a column of a delete file has no id"))?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, values.schema(), None).map_err(internal)?;
    writer.write(values).map_err(internal)?;
    writer.close().map_err(internal)?;
    let rows = values.num_rows() as u64;
    let nulls = ids.iter().zip(values.columns());
    let file = DataFileBuilder::default()
        .content(DataContentType::EqualityDeletes)
        .file_path(location.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(like.partition.as_ref().clone())
        .partition_spec_id(like.spec)
        .record_count(rows)
        .file_size_in_bytes(bytes.len() as u64)
        .value_counts(ids.iter().map(|id| (*id, rows)).collect())
        .null_value_counts(nulls.map(|(id, c)| (*id, c.null_count() as u64)).collect())
        .equality_ids(Some(ids))
        .build()
        .map_err(|e| Error::internal("a delete file's description is not whole").because(e))?;
    Ok((bytes, file))
}

fn id(field: &Field) -> Option<i32> {
    field
        .metadata()
        .get(PARQUET_FIELD_ID_META_KEY)?
        .parse()
        .ok()
}

/// The type in which values are compared: a column may have been widened since.
fn widest(of: &DataType) -> DataType {
    match of {
        DataType::Dictionary(_, value) => widest(value),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => DataType::Int64,
        DataType::Float32 => DataType::Float64,
        DataType::Decimal128(_, scale) => DataType::Decimal128(38, *scale),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        other => other.clone(),
    }
}

/// The values of delete files about the same columns.
struct Values {
    ids: Vec<i32>,
    types: Vec<DataType>,
    converter: RowConverter,
    gone: FxHashSet<Box<[u8]>>,
}

impl Values {
    fn new(ids: &[i32], like: &Schema) -> Result<Self> {
        let of = |wanted: &i32| {
            let mut fields = like.fields().iter();
            let field = fields.find(|field| id(field) == Some(*wanted));
            let of = field.map(|field| widest(field.data_type()));
            of.filter(|of| !of.is_nested()).ok_or_else(|| {
                Error::config(format!(
                    "deletes by values of a nested or missing column are not applied: id={wanted}"
                ))
                .hint("compact the table with the engine that wrote them")
            })
        };
        let types: Vec<DataType> = ids.iter().map(of).collect::<Result<_>>()?;
        let fields = types.iter().map(|of| SortField::new(of.clone())).collect();
        let converter = RowConverter::new(fields)
            .map_err(|e| Error::corrupt("values of deletes cannot be compared").because(e))?;
        Ok(Self {
            ids: ids.to_vec(),
            types,
            converter,
            gone: FxHashSet::default(),
        })
    }

    /// The values of the columns in some rows; a column that a file lacks is null.
    fn encode(&self, rows: &RecordBatch) -> Result<Rows> {
        let fields = rows.schema_ref().fields();
        let column = |(wanted, of): (&i32, &DataType)| -> Result<ArrayRef> {
            let at = fields.iter().position(|field| id(field) == Some(*wanted));
            let Some(at) = at else {
                return Ok(new_null_array(of, rows.num_rows()));
            };
            let column = rows.column(at);
            let values = cast(column, of).ok();
            values
                .filter(|values| values.null_count() == column.null_count())
                .ok_or_else(|| {
                    Error::corrupt(format!(
                        "deletes by values have another type than the data: id={wanted} type={} data={}",
                        of,
                        column.data_type()
                    ))
                })
        };
        let columns: Vec<ArrayRef> = self
            .ids
            .iter()
            .zip(&self.types)
            .map(column)
            .collect::<Result<_>>()?;
        self.converter
            .convert_columns(&columns)
            .map_err(|e| Error::corrupt("values of deletes cannot be compared").because(e))
    }
}

/// The rows of a data file that deletes by values remove, those among `deletes`, which apply to it.
///
/// # Errors
/// `Corrupt` when a file is missing or cannot be read; `Config` for what is not applied.
pub(crate) async fn deleted_rows(
    file_io: &FileIO,
    file: &LiveFile,
    deletes: &[Arc<DeleteFile>],
) -> Result<RoaringTreemap> {
    let mut all: Vec<Values> = Vec::new();
    for delete in deletes {
        if delete.kind != DeleteKind::Equality {
            continue;
        }
        let (schema, batches) = read(file_io, delete).await?;
        let known = all.iter().position(|values| values.ids == *delete.equality);
        let at = if let Some(at) = known {
            at
        } else {
            all.push(Values::new(&delete.equality, &schema)?);
            all.len() - 1
        };
        let values = &mut all[at];
        for batch in batches {
            let rows = values.encode(&batch)?;
            values.gone.extend(rows.iter().map(|row| row.data().into()));
        }
    }
    let mut gone = RoaringTreemap::new();
    let wanted: FxHashSet<i32> = all.iter().flat_map(|values| &values.ids).copied().collect();
    let mut batches = columns(file_io, file, &wanted).await?;
    let mut first = 0_u64;
    while let Some(batch) = batches
        .try_next()
        .await
        .map_err(|e| access::unreadable(unreadable_data(&file.path), e))?
    {
        for values in &all {
            let rows = values.encode(&batch)?;
            let hit = |(_, row): &(u64, arrow::row::Row<'_>)| values.gone.contains(row.data());
            gone.extend((first..).zip(&rows).filter(hit).map(|(at, _)| at));
        }
        first += batch.num_rows() as u64;
    }
    Ok(gone)
}

/// What a delete file holds.
///
/// # Errors
/// `Corrupt` when it is missing or not Parquet.
pub(crate) async fn read(
    file_io: &FileIO,
    delete: &DeleteFile,
) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let location = &*delete.path;
    let input = file_io.new_input(location).map_err(unreadable(location))?;
    let bytes = input.read().await.map_err(unreadable(location))?;
    let failed = |e: parquet::errors::ParquetError| {
        Error::corrupt(format!("not a file of deletes by values: file={location}")).because(e)
    };
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let reader =
        ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options).map_err(failed)?;
    let schema = reader.schema().clone();
    let reader = reader.with_batch_size(BATCH_ROWS).build().map_err(failed)?;
    let batches = reader.collect::<std::result::Result<Vec<_>, _>>();
    let batches = batches.map_err(|e| failed(e.into()))?;
    Ok((schema, batches))
}

/// Columns of a data file, those of the ids that it has.
async fn columns(
    file_io: &FileIO,
    file: &LiveFile,
    wanted: &FxHashSet<i32>,
) -> Result<impl futures::Stream<Item = parquet::errors::Result<RecordBatch>> + Unpin + use<>> {
    let failed = |e: iceberg::Error| access::unreadable(unreadable_data(&file.path), e);
    let broken =
        |e: parquet::errors::ParquetError| access::unreadable(unreadable_data(&file.path), e);
    let input = file_io.new_input(&file.path).map_err(failed)?;
    let size = FileMetadata { size: file.bytes };
    let mut reader = ArrowFileReader::new(size, input.reader().await.map_err(failed)?);
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load_async(&mut reader, options)
        .await
        .map_err(broken)?;
    let fields = metadata.schema().fields();
    let places: HashMap<usize, i32> = fields
        .iter()
        .enumerate()
        .filter_map(|(at, field)| Some((at, id(field).filter(|id| wanted.contains(id))?)))
        .collect();
    let mask = ProjectionMask::roots(metadata.parquet_schema(), places.into_keys());
    let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata);
    builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(broken)
}

fn unreadable_data(path: &str) -> Error {
    Error::corrupt(format!("cannot read a data file: file={path}"))
        .hint("the table refers to this file; restore it, or roll the table back")
}

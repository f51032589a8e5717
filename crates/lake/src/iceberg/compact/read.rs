//! Reads the rows of a data file as the table has them now: columns by field id, without the rows that
//! are deleted, and with format version 3 with the ids that the rows have.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch},
    compute::filter_record_batch,
    datatypes::{Field, Int64Type, SchemaRef},
};
use calve_engine::error::{Error, Result};
use futures::{Stream, StreamExt, stream::BoxStream};
use iceberg::{
    arrow::schema_to_arrow_schema,
    metadata_columns::{
        RESERVED_COL_NAME_LAST_UPDATED_SEQUENCE_NUMBER, RESERVED_COL_NAME_ROW_ID,
        RESERVED_FIELD_ID_LAST_UPDATED_SEQUENCE_NUMBER, RESERVED_FIELD_ID_ROW_ID,
    },
    spec::{DataFileFormat, NestedField, PrimitiveType, Schema, TableMetadata, Type},
};
use parquet::arrow::{
    PARQUET_FIELD_ID_META_KEY, ParquetRecordBatchStreamBuilder, ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection},
};
use roaring::RoaringTreemap;

use super::{
    super::{
        access::{self, FileAccess},
        deletes::deleted_rows,
        live::{DeleteFile, LiveFile},
    },
    adapt::adapt,
};

/// Rows that are read at once.
const BATCH_ROWS: usize = 8192;

/// The table's columns, and with `lineage` behind them the row's id and the sequence number of its
/// last change: those of rows that move must be written out.
pub(super) fn target_schema(metadata: &TableMetadata, lineage: bool) -> Result<Arc<Schema>> {
    let schema = metadata.current_schema();
    if let Some(field) = schema
        .as_struct()
        .fields()
        .iter()
        .find(|field| field.initial_default.is_some())
    {
        return Err(Error::config(format!(
            "a column has a default for files that lack it, which calve does not fill in: column={}",
            field.name
        ))
        .hint("compact the table with another engine"));
    }
    if !lineage {
        return Ok(schema.clone());
    }
    let long = |id: i32, name: &str| {
        Arc::new(NestedField::optional(
            id,
            name,
            Type::Primitive(PrimitiveType::Long),
        ))
    };
    let fields = schema.as_struct().fields().iter().cloned().chain([
        long(RESERVED_FIELD_ID_ROW_ID, RESERVED_COL_NAME_ROW_ID),
        long(
            RESERVED_FIELD_ID_LAST_UPDATED_SEQUENCE_NUMBER,
            RESERVED_COL_NAME_LAST_UPDATED_SEQUENCE_NUMBER,
        ),
    ]);
    Schema::builder()
        .with_schema_id(schema.schema_id())
        .with_fields(fields)
        .build()
        .map(Arc::new)
        .map_err(|e| Error::schema("the table's columns do not go with row ids").because(e))
}

/// Reads data files into one schema.
pub(in crate::iceberg) struct Reader {
    access: FileAccess,
    schema: SchemaRef,
    lineage: bool,
}

impl Reader {
    pub(in crate::iceberg) fn new(
        access: FileAccess,
        schema: &Schema,
        lineage: bool,
    ) -> Result<Self> {
        let schema = schema_to_arrow_schema(schema)
            .map_err(|e| Error::schema("the table has a type that cannot be written").because(e))?;
        Ok(Self {
            access,
            schema: Arc::new(schema),
            lineage,
        })
    }

    /// Schema of the rows.
    pub(super) fn arrow_schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The rows that are not deleted, in the file's order.
    ///
    /// # Errors
    /// `Corrupt` when the file or one of the deletes cannot be read; `Config` for files that are not
    /// Parquet or have no field ids.
    pub(super) async fn rows(
        &self,
        file: &Arc<LiveFile>,
        deletes: &[Arc<DeleteFile>],
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let deleted = deleted_rows(self.access.io(), file, deletes).await?;
        self.rows_without(file, deleted).await
    }

    /// The rows that are not among `deleted`, in the file's order.
    ///
    /// # Errors
    /// As [`Reader::rows`].
    pub(in crate::iceberg) async fn rows_without(
        &self,
        file: &Arc<LiveFile>,
        deleted: RoaringTreemap,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let batches = self.batches(file, None).await?;
        let mut next = 0_u64;
        let (schema, lineage, file) = (self.schema.clone(), self.lineage, file.clone());
        Ok(batches
            .map(move |batch| {
                let batch = batch.map_err(|e| unreadable(&file.path).because(e))?;
                let first = next;
                next += batch.num_rows() as u64;
                let mut rows =
                    adapt(&batch, &schema).map_err(|e| e.context(format!("file={}", file.path)))?;
                if lineage {
                    rows = with_lineage(rows, &file, first)?;
                }
                without(rows, &deleted, first)
            })
            .boxed())
    }

    /// Only these rows, whether they are deleted or not, in the file's order and without ids.
    ///
    /// # Errors
    /// As [`Reader::rows`].
    pub(super) async fn only(
        &self,
        file: &Arc<LiveFile>,
        wanted: &RoaringTreemap,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let wanted = wanted.iter().map(|row| row as usize..row as usize + 1);
        let wanted = RowSelection::from_consecutive_ranges(wanted, file.rows as usize);
        let batches = self.batches(file, Some(wanted)).await?;
        let (schema, file) = (self.schema.clone(), file.clone());
        Ok(batches
            .map(move |batch| {
                let batch = batch.map_err(|e| unreadable(&file.path).because(e))?;
                adapt(&batch, &schema).map_err(|e| e.context(format!("file={}", file.path)))
            })
            .boxed())
    }

    /// All rows, or those that are `wanted`.
    async fn batches(
        &self,
        file: &LiveFile,
        wanted: Option<RowSelection>,
    ) -> Result<impl Stream<Item = parquet::errors::Result<RecordBatch>> + Send + 'static> {
        if file.format != DataFileFormat::Parquet {
            return Err(Error::config(format!(
                "only Parquet files are compacted: file={} format={}",
                file.path, file.format
            ))
            .hint("compact the table with the engine that wrote it"));
        }
        let failed = |e: iceberg::Error| access::unreadable(unreadable(&file.path), e);
        let reader = self.access.parquet(&file.path, file.bytes).await;
        let mut reader = reader.map_err(failed)?;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load_async(&mut reader, options)
            .await
            .map_err(|e| access::unreadable(unreadable(&file.path), e))?;
        // Columns without an id are read too: a file that has any is refused.
        let ours = |field: &Field| {
            let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY);
            let mut ours = self.schema.fields().iter();
            id.is_none() || ours.any(|ours| ours.metadata().get(PARQUET_FIELD_ID_META_KEY) == id)
        };
        let fields = metadata.schema().fields().iter().enumerate();
        let places = fields.filter(|(_, field)| ours(field)).map(|(at, _)| at);
        let mask = ProjectionMask::roots(metadata.parquet_schema(), places.collect::<Vec<_>>());
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS);
        let builder = match wanted {
            Some(wanted) => builder.with_row_selection(wanted),
            None => builder,
        };
        builder
            .build()
            .map_err(|e| unreadable(&file.path).because(e))
    }
}

fn unreadable(path: &str) -> Error {
    Error::corrupt(format!("cannot read a data file: file={path}"))
        .hint("the table refers to this file; restore it, or roll the table back")
}

/// Leaves out rows that are deleted; the first row of `rows` is row `first` of the file.
fn without(rows: RecordBatch, deleted: &RoaringTreemap, first: u64) -> Result<RecordBatch> {
    let count = rows.num_rows() as u64;
    if deleted.range_cardinality(first..first + count) == 0 {
        return Ok(rows);
    }
    let keep: BooleanArray = (first..first + count)
        .map(|row| Some(!deleted.contains(row)))
        .collect();
    filter_record_batch(&rows, &keep)
        .map_err(|e| Error::internal("cannot leave rows out").because(e))
}

/// Fills in the last two columns, where the file does not say them: a row's id by its position, the
/// sequence number of its last change by the file's.
fn with_lineage(rows: RecordBatch, file: &LiveFile, first: u64) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    let by_position = |row: usize| Some(file.first_row_id? + (first + row as u64) as i64);
    let at = columns.len() - 2;
    columns[at] = filled(&columns[at], by_position);
    columns[at + 1] = filled(&columns[at + 1], |_| Some(file.sequence));
    RecordBatch::try_new(rows.schema(), columns)
        .map_err(|e| Error::internal("cannot give rows their ids").because(e))
}

fn filled(column: &ArrayRef, value: impl Fn(usize) -> Option<i64>) -> ArrayRef {
    let column = column.as_primitive::<Int64Type>();
    let filled: Int64Array = (0..column.len())
        .map(|row| {
            if column.is_valid(row) {
                Some(column.value(row))
            } else {
                value(row)
            }
        })
        .collect();
    Arc::new(filled)
}

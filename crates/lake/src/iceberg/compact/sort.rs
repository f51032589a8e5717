//! Sorts rows by the table's sort order.

use arrow::{
    array::RecordBatch,
    compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch},
};
use calve_engine::error::{Error, Result};
use iceberg::{
    spec::{NullOrder, SortDirection, TableMetadata},
    transform::{BoxedTransformFunction, create_transform_function},
};

use super::super::config::TableName;

/// The sort order, ready to be applied.
pub(super) struct Sort {
    /// Place of the column, its transform, and its direction.
    terms: Vec<(usize, BoxedTransformFunction, SortOptions)>,
}

impl Sort {
    /// # Errors
    /// `Config` when the table has none, or one by a nested column.
    pub(super) fn new(metadata: &TableMetadata, table: &TableName) -> Result<Self> {
        let order = metadata.default_sort_order();
        if order.fields.is_empty() {
            return Err(
                Error::config(format!("the table has no sort order: table={table}"))
                    .hint("leave `--sort` out, or give the table one"),
            );
        }
        let columns = metadata.current_schema().as_struct().fields();
        let terms = order
            .fields
            .iter()
            .map(|field| {
                let at = columns.iter().position(|c| c.id == field.source_id);
                let at = at.ok_or_else(|| {
                    Error::config(format!(
                        "the table is sorted by a column within another: table={table} field_id={}",
                        field.source_id
                    ))
                    .hint("leave `--sort` out")
                })?;
                let function = create_transform_function(&field.transform).map_err(|e| {
                    Error::config("the sort order has no such transform").because(e)
                })?;
                let options = SortOptions {
                    descending: field.direction == SortDirection::Descending,
                    nulls_first: field.null_order == NullOrder::First,
                };
                Ok((at, function, options))
            })
            .collect::<Result<_>>()?;
        Ok(Self { terms })
    }

    /// All rows, sorted; rows that are equal keep their order. None: there are none.
    pub(super) fn apply(&self, batches: &[RecordBatch]) -> Result<Option<RecordBatch>> {
        let failed = |e: arrow::error::ArrowError| Error::internal("cannot sort rows").because(e);
        let Some(first) = batches.first() else {
            return Ok(None);
        };
        let rows = concat_batches(&first.schema(), batches).map_err(failed)?;
        let mut keys = self
            .terms
            .iter()
            .map(|(at, function, options)| {
                let values = function
                    .transform(rows.column(*at).clone())
                    .map_err(|e| Error::internal("cannot sort rows").because(e))?;
                Ok(SortColumn {
                    values,
                    options: Some(*options),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        // What makes the order total, and so stable.
        let number = u32::try_from(rows.num_rows())
            .map_err(|e| Error::config("a file has too many rows to sort").because(e))?;
        keys.push(SortColumn {
            values: std::sync::Arc::new(arrow::array::UInt32Array::from_iter_values(0..number)),
            options: None,
        });
        let order = lexsort_to_indices(&keys, None).map_err(failed)?;
        take_record_batch(&rows, &order).map(Some).map_err(failed)
    }
}

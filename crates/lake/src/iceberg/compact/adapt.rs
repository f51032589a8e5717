//! Brings the columns of a file into another schema of the table: by field id, also within structs,
//! lists and maps. What the file lacks is null; what was widened since is cast.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, RecordBatchOptions,
        StructArray, new_null_array,
    },
    datatypes::{DataType, Field, FieldRef, Fields, SchemaRef},
    error::ArrowError,
};
use calve_engine::error::{Error, Result};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::super::schema::convert_values;

fn id(field: &Field) -> Option<&str> {
    let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY);
    id.map(String::as_str)
}

/// Whether all fields within a type can be found by id: without, they would be taken for absent.
fn has_ids(of: &DataType) -> bool {
    let fields = |fields: &Fields| {
        let mut fields = fields.iter();
        fields.all(|field| id(field).is_some() && has_ids(field.data_type()))
    };
    match of {
        DataType::Struct(inner) => fields(inner),
        DataType::List(element) => has_ids(element.data_type()),
        DataType::Map(entries, _) => has_ids(entries.data_type()),
        _ => true,
    }
}

/// Rows of a file as rows of `target`, whose fields have ids.
///
/// # Errors
/// `Config` when the file has no field ids; `Corrupt` when it does not fit.
pub(super) fn adapt(rows: &RecordBatch, target: &SchemaRef) -> Result<RecordBatch> {
    let fields = rows.schema_ref().fields();
    if !fields
        .iter()
        .all(|field| id(field).is_some() && has_ids(field.data_type()))
    {
        return Err(Error::config("a data file has columns without field ids")
            .hint("compact the table with an engine that maps columns by name"));
    }
    let columns = children(fields, rows.columns(), target.fields(), rows.num_rows());
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    columns
        .and_then(|columns| RecordBatch::try_new_with_options(target.clone(), columns, &options))
        .map_err(|e| Error::corrupt("a data file does not fit the table's schema").because(e))
}

fn children(
    has: &Fields,
    columns: &[ArrayRef],
    wanted: &Fields,
    rows: usize,
) -> Result<Vec<ArrayRef>, ArrowError> {
    wanted
        .iter()
        .map(|want| {
            let at = has.iter().position(|field| id(field) == id(want));
            match at {
                Some(at) => values(&columns[at], want),
                None => Ok(new_null_array(want.data_type(), rows)),
            }
        })
        .collect()
}

fn values(column: &ArrayRef, want: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let nulls = column.nulls().cloned();
    Ok(match (column.data_type(), want.data_type()) {
        (has, to) if has == to => column.clone(),
        (DataType::Struct(has), DataType::Struct(to)) => {
            let column = column.as_struct();
            if to.is_empty() {
                return Ok(Arc::new(StructArray::new_empty_fields(column.len(), nulls)));
            }
            let inner = children(has, column.columns(), to, column.len())?;
            Arc::new(StructArray::try_new(to.clone(), inner, nulls)?)
        }
        (DataType::List(_), DataType::List(element)) => {
            let column = column.as_list::<i32>();
            let inner = values(column.values(), element)?;
            let offsets = column.offsets().clone();
            Arc::new(ListArray::try_new(element.clone(), offsets, inner, nulls)?)
        }
        (DataType::Map(..), DataType::Map(entries, sorted)) => {
            let column = column.as_map();
            let whole: ArrayRef = Arc::new(column.entries().clone());
            let inner = values(&whole, entries)?.as_struct().clone();
            let offsets = column.offsets().clone();
            Arc::new(MapArray::try_new(
                entries.clone(),
                offsets,
                inner,
                nulls,
                *sorted,
            )?)
        }
        (_, to) => convert_values(column, to)?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::{
        array::{Int32Array, Int64Array, StringArray},
        buffer::OffsetBuffer,
        datatypes::Schema,
    };

    use super::*;

    fn field(id: i32, name: &str, of: DataType) -> Field {
        let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, of, true).with_metadata(id)
    }

    #[test]
    fn columns_are_found_by_id_at_every_depth() {
        let inner: Fields = vec![
            field(5, "x", DataType::Int32),
            field(6, "dropped", DataType::Utf8),
        ]
        .into();
        let element = Arc::new(field(4, "element", DataType::Struct(inner.clone())));
        let schema = Arc::new(Schema::new(vec![
            field(1, "old name", DataType::Int32),
            field(3, "list", DataType::List(element.clone())),
        ]));
        let structs = StructArray::new(
            inner,
            vec![
                Arc::new(Int32Array::from(vec![Some(7), None, Some(9)])),
                Arc::new(StringArray::from(vec!["a", "b", "c"])),
            ],
            None,
        );
        let lists = ListArray::new(
            element,
            OffsetBuffer::from_lengths([2, 1]),
            Arc::new(structs),
            None,
        );
        let rows = RecordBatch::try_new(
            schema,
            vec![Arc::new(Int32Array::from(vec![1, 2])), Arc::new(lists)],
        )
        .expect("a batch");

        let inner: Fields = vec![
            field(9, "new", DataType::Utf8),
            field(5, "renamed", DataType::Int64),
        ]
        .into();
        let element = Arc::new(field(4, "element", DataType::Struct(inner)));
        let target = Arc::new(Schema::new(vec![
            field(2, "added", DataType::Utf8),
            field(3, "list", DataType::List(element)),
            field(1, "name", DataType::Int64),
        ]));
        let adapted = adapt(&rows, &target).expect("it fits");
        assert_eq!(adapted.column(0).null_count(), 2);
        assert_eq!(
            adapted.column(2).as_ref(),
            &Int64Array::from(vec![1, 2]) as &dyn Array
        );
        let lists = adapted.column(1).as_list::<i32>();
        let structs = lists.values().as_struct();
        assert_eq!(structs.column(0).null_count(), 3);
        assert_eq!(
            structs.column(1).as_ref(),
            &Int64Array::from(vec![Some(7), None, Some(9)]) as &dyn Array
        );

        let plain = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
        let rows = RecordBatch::try_new(plain, vec![Arc::new(Int32Array::from(vec![1]))]);
        let error = adapt(&rows.expect("a batch"), &target).expect_err("no ids");
        assert_eq!(error.kind(), calve_engine::ErrorKind::Config);
    }
}

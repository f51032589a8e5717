//! Rows of one schema as rows of another one: columns by their names, also within structs, lists and
//! maps; what the target has more is null, what it has not is left out. For rows that were written
//! before the schema evolved.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, GenericListArray, MapArray, OffsetSizeTrait, RecordBatch,
        RecordBatchOptions, StructArray, new_null_array,
    },
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, FieldRef, Fields, SchemaRef},
    error::ArrowError,
};

/// The rows in columns of `schema`.
///
/// # Errors
/// When a value does not fit its column, or a null comes into a required one.
pub fn rows(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = fields(
        rows.schema().fields(),
        rows.columns(),
        schema.fields(),
        rows.num_rows(),
    )?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// A column as one of type `to`. Values that do not fit are an error, never null.
///
/// # Errors
/// See [`rows`].
pub fn column(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if column.data_type() == to {
        return Ok(Arc::clone(column));
    }
    match (column.data_type(), to) {
        (DataType::Struct(_), DataType::Struct(to)) => {
            let from = column.as_struct();
            let columns = fields(from.fields(), from.columns(), to, from.len())?;
            let made = StructArray::try_new_with_length(
                to.clone(),
                columns,
                from.nulls().cloned(),
                from.len(),
            )?;
            Ok(Arc::new(made))
        }
        (DataType::List(_), DataType::List(item)) => list::<i32>(column, item),
        (DataType::LargeList(_), DataType::LargeList(item)) => list::<i64>(column, item),
        (DataType::Map(_, _), DataType::Map(entries, sorted)) => {
            let from = column.as_map();
            let DataType::Struct(of) = entries.data_type() else {
                return Err(ArrowError::CastError("a map without entries".to_owned()));
            };
            // The names of key and value differ from writer to writer; their places do not.
            let pairs = from.entries().columns().iter().zip(of);
            let columns = pairs.map(|(has, field)| self::column(has, field.data_type()));
            let made = StructArray::try_new(of.clone(), columns.collect::<Result<_, _>>()?, None)?;
            Ok(Arc::new(MapArray::try_new(
                Arc::clone(entries),
                from.offsets().clone(),
                made,
                from.nulls().cloned(),
                *sorted,
            )?))
        }
        (_, to) => {
            let strict = CastOptions {
                safe: false,
                ..CastOptions::default()
            };
            cast_with_options(column, to, &strict)
        }
    }
}

fn list<O: OffsetSizeTrait>(column: &ArrayRef, item: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let from = column.as_list::<O>();
    Ok(Arc::new(GenericListArray::<O>::try_new(
        Arc::clone(item),
        from.offsets().clone(),
        self::column(from.values(), item.data_type())?,
        from.nulls().cloned(),
    )?))
}

fn fields(
    has: &Fields,
    columns: &[ArrayRef],
    wanted: &Fields,
    len: usize,
) -> Result<Vec<ArrayRef>, ArrowError> {
    let one = |field: &FieldRef| match has.find(field.name()) {
        Some((at, _)) => column(&columns[at], field.data_type()),
        None => Ok(new_null_array(field.data_type(), len)),
    };
    wanted.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::{
        array::{Int32Array, Int64Array, ListArray, StringArray},
        datatypes::{Field, Schema},
    };

    fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
        let fields = fields.iter().map(|(n, t)| Field::new(*n, t.clone(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    #[test]
    fn columns_are_found_by_name_at_any_depth() {
        let place = |fields: &[(&str, DataType)]| DataType::Struct(schema(fields).fields().clone());
        let old = place(&[("zip", DataType::Int32), ("gone", DataType::Utf8)]);
        let new = place(&[("town", DataType::Utf8), ("zip", DataType::Int64)]);
        let item = |of: &DataType| Arc::new(Field::new("item", of.clone(), true));
        let inner: ArrayRef = Arc::new(
            StructArray::try_new(
                schema(&[("zip", DataType::Int32), ("gone", DataType::Utf8)])
                    .fields()
                    .clone(),
                vec![
                    Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])),
                    Arc::new(StringArray::from(vec!["a", "b", "c"])),
                ],
                Some(vec![true, true, false].into()),
            )
            .expect("a struct"),
        );
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([2, 1]);
        let lists = ListArray::try_new(item(&old), offsets, inner, None).expect("lists");
        let batch = RecordBatch::try_new(
            schema(&[("at", DataType::List(item(&old))), ("n", DataType::Int32)]),
            vec![Arc::new(lists), Arc::new(Int32Array::from(vec![7, 8]))],
        )
        .expect("rows");

        let wanted = schema(&[
            ("n", DataType::Int64),
            ("more", DataType::Boolean),
            ("at", DataType::List(item(&new))),
        ]);
        let got = rows(&batch, &wanted).expect("they fit");
        assert_eq!(got.schema(), wanted);
        assert_eq!(got.column(0).as_ref(), &Int64Array::from(vec![7, 8]));
        assert_eq!(got.column(1).null_count(), 2);
        let at = got.column(2).as_list::<i32>();
        assert_eq!((at.value_length(0), at.value_length(1)), (2, 1));
        let places = at.values().as_struct();
        assert_eq!(places.column(0).null_count(), 3);
        let zips = Int64Array::from(vec![Some(1), None, Some(3)]);
        assert_eq!(places.column(1).as_ref(), &zips);
        assert!(places.is_null(2), "a null stays one");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let batch = RecordBatch::try_new(
            schema(&[("n", DataType::Int64)]),
            vec![Arc::new(Int64Array::from(vec![1, i64::MAX]))],
        )
        .expect("rows");
        rows(&batch, &schema(&[("n", DataType::Int32)])).expect_err("it is too large");
    }
}

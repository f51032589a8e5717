//! The pipeline's columns as the table's: types, the check against an existing table, and the
//! mapping of rows to the table's column order with field ids.
//!
//! A column becomes an optional column of the table, whatever the query says of nulls: a later
//! change of the query may bring them. Strings and bytes keep their Arrow form (dictionary, large)
//! on the way to Parquet, where all forms are the same.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit},
};
use calve_engine::{
    conform,
    error::{Error, ErrorKind, Result},
};
use iceberg::{
    arrow::schema_to_arrow_schema,
    spec::{
        ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, StructType, Type,
    },
};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

/// The table schema for the pipeline's columns, with provisional field ids.
///
/// # Errors
/// `Schema` for a type that Iceberg does not have.
pub(super) fn table_schema(rows: &ArrowSchema) -> Result<Schema> {
    let mut ids = 0;
    let fields = rows
        .fields()
        .iter()
        .map(|field| convert_field(field, &mut ids, field.name()))
        .collect::<Result<Vec<_>>>()?;
    Schema::builder()
        .with_fields(fields)
        .build()
        .map_err(|e| Error::schema("the columns do not make a table").because(e))
}

fn convert_field(field: &Field, ids: &mut i32, path: &str) -> Result<NestedFieldRef> {
    *ids += 1;
    let id = *ids;
    let field_type = convert(field.data_type(), ids, path)?;
    Ok(Arc::new(NestedField::optional(
        id,
        field.name(),
        field_type,
    )))
}

fn convert(data_type: &DataType, ids: &mut i32, path: &str) -> Result<Type> {
    use PrimitiveType as P;
    let unsupported = |hint: &str| {
        Err(Error::schema(format!(
            "the table cannot have this type: column={path} type={data_type}"
        ))
        .hint(hint))
    };
    let primitive = match data_type {
        DataType::Boolean => P::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            P::Int
        }
        DataType::Int64 | DataType::UInt32 => P::Long,
        DataType::UInt64 => {
            return unsupported(
                "in transform.sql, CAST it to BIGINT, or to DECIMAL(20, 0) for the full range",
            );
        }
        DataType::Float16 | DataType::Float32 => P::Float,
        DataType::Float64 => P::Double,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
            if *scale >= 0 =>
        {
            P::Decimal {
                precision: u32::from(*precision),
                scale: scale.unsigned_abs().into(),
            }
        }
        DataType::Date32 | DataType::Date64 => P::Date,
        DataType::Time32(_) | DataType::Time64(_) => P::Time,
        // Microseconds also with format version 3: few readers can filter or partition nanoseconds.
        DataType::Timestamp(_, None) => P::Timestamp,
        DataType::Timestamp(_, Some(_)) => P::Timestamptz,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => P::String,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => P::Binary,
        DataType::FixedSizeBinary(width) => P::Fixed(u64::from(width.unsigned_abs())),
        DataType::Dictionary(_, value) => return convert(value, ids, path),
        DataType::RunEndEncoded(_, value) => return convert(value.data_type(), ids, path),
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::ListView(element)
        | DataType::LargeListView(element)
        | DataType::FixedSizeList(element, _) => {
            *ids += 1;
            let id = *ids;
            let element = convert(element.data_type(), ids, &format!("{path}.element"))?;
            return Ok(Type::List(ListType::new(
                NestedField::list_element(id, element, false).into(),
            )));
        }
        DataType::Struct(fields) => {
            let fields = fields
                .iter()
                .map(|f| convert_field(f, ids, &format!("{path}.{}", f.name())))
                .collect::<Result<Vec<_>>>()?;
            return Ok(Type::Struct(StructType::new(fields)));
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else {
                return unsupported("a map needs keys and values");
            };
            let [key, value] = &fields[..] else {
                return unsupported("a map needs keys and values");
            };
            *ids += 2;
            let (key_id, value_id) = (*ids - 1, *ids);
            let key = convert(key.data_type(), ids, &format!("{path}.key"))?;
            let value = convert(value.data_type(), ids, &format!("{path}.value"))?;
            return Ok(Type::Map(MapType::new(
                NestedField::map_key_element(key_id, key).into(),
                NestedField::map_value_element(value_id, value, false).into(),
            )));
        }
        DataType::Null => {
            return unsupported("every value is null: declare the column's type, or CAST it");
        }
        _ => return unsupported("in transform.sql, CAST it to a type that Iceberg has"),
    };
    Ok(Type::Primitive(primitive))
}

/// How a type is shown in a difference: without field ids.
pub(super) fn show(of: &Type) -> String {
    match of {
        Type::Primitive(primitive) => primitive.to_string(),
        Type::List(list) => format!("list<{}>", show(&list.element_field.field_type)),
        Type::Map(map) => {
            format!(
                "map<{}, {}>",
                show(&map.key_field.field_type),
                show(&map.value_field.field_type)
            )
        }
        Type::Struct(fields) => {
            let mut shown = String::from("struct<");
            for (i, field) in fields.fields().iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                let _ = write!(shown, "{comma}{}: {}", field.name, show(&field.field_type));
            }
            shown + ">"
        }
    }
}

/// Whether values of `from` fit a column of `to` without loss.
pub(super) fn fits(from: &Type, to: &Type) -> bool {
    use PrimitiveType as P;
    match (from, to) {
        (Type::Primitive(P::Int), Type::Primitive(P::Long))
        | (Type::Primitive(P::Float), Type::Primitive(P::Double))
        | (Type::Primitive(P::Timestamp), Type::Primitive(P::TimestampNs))
        | (Type::Primitive(P::Timestamptz), Type::Primitive(P::TimestamptzNs)) => true,
        (
            Type::Primitive(P::Decimal {
                precision: from,
                scale: a,
            }),
            Type::Primitive(P::Decimal {
                precision: to,
                scale: b,
            }),
        ) => a == b && from <= to,
        _ => show(from) == show(to),
    }
}

/// Brings rows into the table's column order and types.
#[derive(Debug)]
pub(super) struct Columns {
    schema: SchemaRef,
    /// For each column of the table: its place among the pipeline's, and whether it is cast; none: the
    /// pipeline lacks it.
    from: Vec<Option<(usize, bool)>>,
}

impl Columns {
    /// The mapping of rows that fit the table; columns that they lack are null.
    pub(super) fn new(table: &Schema, rows: &ArrowSchema) -> Result<Self> {
        let wanted = schema_to_arrow_schema(table)
            .map_err(|e| Error::schema("the table has a type that cannot be written").because(e))?;
        let mut fields = Vec::new();
        let mut from = Vec::new();
        for field in wanted.fields() {
            let at = rows.index_of(field.name()).ok();
            if at.is_none() && !field.is_nullable() {
                return Err(Error::schema(format!(
                    "the rows lack a column that the table requires: column={}",
                    field.name()
                )));
            }
            let has = at.map_or(field.data_type(), |at| rows.field(at).data_type());
            let keep = same_in_parquet(has, field.data_type());
            let id = &field.metadata()[PARQUET_FIELD_ID_META_KEY];
            let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.clone())]);
            let data_type = if keep {
                has.clone()
            } else {
                field.data_type().clone()
            };
            from.push(at.map(|at| (at, *has != data_type)));
            fields.push(
                Field::new(field.name(), data_type, field.is_nullable()).with_metadata(metadata),
            );
        }
        Ok(Self {
            schema: Arc::new(ArrowSchema::new(fields)),
            from,
        })
    }

    /// Schema of the mapped rows, with field ids.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Maps a batch.
    ///
    /// # Errors
    /// `Data` when a value does not fit the column.
    pub(super) fn map(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let mut columns = Vec::with_capacity(self.from.len());
        for (from, field) in self.from.iter().zip(self.schema.fields()) {
            let Some((at, cast)) = from else {
                columns.push(new_null_array(field.data_type(), rows.num_rows()));
                continue;
            };
            let column = rows.columns().get(*at).ok_or_else(|| {
                Error::schema(format!("a column is missing: column={}", field.name()))
            })?;
            let column = if *cast || column.data_type() != field.data_type() {
                convert_values(column, field.data_type()).map_err(|e| {
                    Error::data(format!("a value does not fit: column={}", field.name())).because(e)
                })?
            } else {
                column.clone()
            };
            if !field.is_nullable() && column.null_count() > 0 {
                return Err(Error::data(format!("null in column={}", field.name())));
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|e| Error::new(ErrorKind::Internal, "rows do not make a batch").because(e))
    }
}

/// Casts to the type of a column; times are rounded down.
pub(super) fn convert_values(
    column: &ArrayRef,
    to: &DataType,
) -> std::result::Result<ArrayRef, arrow::error::ArrowError> {
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    if let (
        DataType::Timestamp(TimeUnit::Nanosecond, _),
        DataType::Timestamp(TimeUnit::Microsecond, _),
    ) = (column.data_type(), to)
    {
        // A cast rounds towards 1970; a time of the day before must not move into the day after.
        use arrow::{
            array::AsArray,
            datatypes::{TimestampMicrosecondType, TimestampNanosecondType},
        };
        let micros = column
            .as_primitive::<TimestampNanosecondType>()
            .unary::<_, TimestampMicrosecondType>(|nanos| nanos.div_euclid(1000));
        return Ok(Arc::new(micros.with_data_type(to.clone())));
    }
    if to.is_nested() && column.data_type().is_nested() {
        return conform::column(column, to);
    }
    cast_with_options(column, to, &strict)
}

/// Views are not kept: the file would tell readers of them, and PyArrow cannot filter or sort views.
fn same_in_parquet(has: &DataType, wanted: &DataType) -> bool {
    let text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8);
    let bytes = |t: &DataType| matches!(t, DataType::Binary | DataType::LargeBinary);
    match has {
        DataType::Dictionary(_, value) => text(value) && text(wanted),
        _ => (text(has) && text(wanted)) || (bytes(has) && bytes(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::{
        array::{
            Array, AsArray, Int32Array, StringArray, TimestampNanosecondArray, TimestampSecondArray,
        },
        datatypes::{Int64Type, TimestampMicrosecondType},
    };

    fn arrow(fields: &[(&str, DataType, bool)]) -> ArrowSchema {
        ArrowSchema::new(
            fields
                .iter()
                .map(|(n, t, null)| Field::new(*n, t.clone(), *null))
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn rows_take_the_order_and_types_of_the_table() {
        let rows = arrow(&[
            ("ts", DataType::Timestamp(TimeUnit::Nanosecond, None), true),
            ("n", DataType::Int32, true),
            ("s", DataType::Utf8, true),
            (
                "at",
                DataType::Timestamp(TimeUnit::Second, Some("Europe/Berlin".into())),
                true,
            ),
        ]);
        let table = Schema::builder()
            .with_fields([
                NestedField::optional(7, "n", Type::Primitive(PrimitiveType::Long)).into(),
                NestedField::optional(3, "at", Type::Primitive(PrimitiveType::Timestamptz)).into(),
                NestedField::optional(2, "ts", Type::Primitive(PrimitiveType::Timestamp)).into(),
                NestedField::required(9, "s", Type::Primitive(PrimitiveType::String)).into(),
            ])
            .build()
            .expect("a schema");
        let columns = Columns::new(&table, &rows).expect("it fits");
        let ids: Vec<&str> = columns
            .schema()
            .fields()
            .iter()
            .map(|f| f.metadata()[PARQUET_FIELD_ID_META_KEY].as_str())
            .collect();
        assert_eq!(ids, ["7", "3", "2", "9"]);
        let batch = |s: StringArray| {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(TimestampNanosecondArray::from(vec![Some(-1), None])),
                Arc::new(Int32Array::from(vec![1, 2])),
                Arc::new(s),
                Arc::new(TimestampSecondArray::from(vec![1, 2]).with_timezone("Europe/Berlin")),
            ];
            RecordBatch::try_new(Arc::new(rows.clone()), columns).expect("a batch")
        };
        let mapped = columns
            .map(&batch(StringArray::from(vec!["a", "b"])))
            .expect("it maps");
        assert_eq!(
            mapped.column(0).as_primitive::<Int64Type>().values(),
            &[1, 2]
        );
        assert_eq!(
            mapped
                .column(1)
                .as_primitive::<TimestampMicrosecondType>()
                .values(),
            &[1_000_000, 2_000_000]
        );
        let ts = mapped.column(2).as_primitive::<TimestampMicrosecondType>();
        assert_eq!(
            (ts.value(0), ts.is_null(1)),
            (-1, true),
            "rounded down, not towards 1970"
        );
        let error = columns
            .map(&batch(StringArray::from(vec![Some("a"), None])))
            .expect_err("null");
        assert_eq!(error.kind(), ErrorKind::Data);
    }

    #[test]
    fn strings_keep_their_form_but_for_views() {
        let dictionary = DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into());
        let of_views = DataType::Dictionary(DataType::Int32.into(), DataType::Utf8View.into());
        for (has, kept) in [
            (dictionary.clone(), dictionary),
            (of_views, DataType::Utf8),
            (DataType::LargeUtf8, DataType::LargeUtf8),
            (DataType::Utf8View, DataType::Utf8),
            (DataType::Binary, DataType::Binary),
            (DataType::BinaryView, DataType::LargeBinary),
        ] {
            let rows = arrow(&[("c", has, true)]);
            let table = table_schema(&rows).expect("a schema");
            let columns = Columns::new(&table, &rows).expect("it fits");
            assert_eq!(*columns.schema().field(0).data_type(), kept);
        }
    }

    #[test]
    fn unsigned_and_null_columns_are_refused_with_a_way_out() {
        for data_type in [DataType::UInt64, DataType::Null] {
            let nested = DataType::Struct(vec![Field::new("x", data_type, true)].into());
            let error = table_schema(&arrow(&[("a", nested, true)])).expect_err("no such type");
            assert_eq!(error.kind(), ErrorKind::Schema);
            assert!(error.message().contains("column=a.x"), "{error}");
            assert!(error.hint_text().is_some());
        }
    }
}

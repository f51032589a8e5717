//! The columns of a result: of types that every reader of Parquet and Iceberg knows, each with a name
//! of its own.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions},
    compute::{self, can_cast_types},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use calve_engine::Result;
use datafusion::{
    common::{Column, DataFusionError},
    logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, cast},
};

use crate::{caret, session::Tables};

/// Checks that a result's columns have names of their own, and types.
///
/// # Errors
/// `Config`, with the place.
pub(crate) fn unique_names(sql: &str, plan: &LogicalPlan) -> Result<()> {
    let mut names = HashSet::new();
    for field in plan.schema().fields() {
        if !names.insert(field.name()) {
            return Err(caret::duplicate(sql, field.name()));
        }
        if field.data_type().is_null() {
            return Err(caret::refuse(
                sql,
                &format!(
                    "a column of the result has no type: column={}",
                    field.name()
                ),
                &[field.name(), "NULL"],
            )
            .hint("say which type it has, as in `CAST(NULL AS VARCHAR)`"));
        }
    }
    Ok(())
}

/// Casts columns of types that are for calve's inside only, and drops the tables' names.
///
/// # Errors
/// `Config`, where DataFusion cannot.
pub(crate) fn plain_columns(sql: &str, plan: LogicalPlan, tables: &Tables) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let build = || {
        let mut changed = false;
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (qualifier, field) in schema.iter() {
            let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            let target = plain(field.data_type());
            if target == column.get_type(&schema)? {
                columns.push(column);
            } else {
                changed = true;
                columns.push(cast(column, target).alias(field.name()));
            }
        }
        if !changed {
            return Ok(plan);
        }
        LogicalPlanBuilder::from(plan).project(columns)?.build()
    };
    build().map_err(|error: DataFusionError| caret::planning(sql, &tables.names(), &error))
}

/// The columns as SQL sees them: without dictionaries. Some functions do not take them, and others compute
/// what no row refers to, of which one value that does not fit would fail every row.
pub(crate) fn unpacked(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<_> = schema.fields().iter().map(unpacked_field).collect();
    let same = |(a, b): (&FieldRef, &FieldRef)| Arc::ptr_eq(a, b);
    if fields.iter().zip(schema.fields()).all(same) {
        return Arc::clone(schema);
    }
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn unpacked_field(field: &FieldRef) -> FieldRef {
    match unpacked_type(field.data_type()) {
        Some(kind) if can_cast_types(field.data_type(), &kind) => {
            Arc::new(Field::clone(field).with_data_type(kind))
        }
        _ => Arc::clone(field),
    }
}

/// The type without dictionaries, down into nested types; none: it has none.
fn unpacked_type(kind: &DataType) -> Option<DataType> {
    let item = |item: &FieldRef| {
        let unpacked = unpacked_field(item);
        (!Arc::ptr_eq(&unpacked, item)).then_some(unpacked)
    };
    Some(match kind {
        DataType::Dictionary(_, value) => value.as_ref().clone(),
        DataType::List(of) => DataType::List(item(of)?),
        DataType::LargeList(of) => DataType::LargeList(item(of)?),
        DataType::FixedSizeList(of, length) => DataType::FixedSizeList(item(of)?, *length),
        DataType::Map(of, sorted) => DataType::Map(item(of)?, *sorted),
        DataType::Struct(fields) if fields.iter().any(|field| item(field).is_some()) => {
            DataType::Struct(fields.iter().map(unpacked_field).collect())
        }
        _ => return None,
    })
}

/// The rows with the columns of [`unpacked`].
pub(crate) fn unpack(
    rows: RecordBatch,
    schema: &SchemaRef,
) -> std::result::Result<RecordBatch, ArrowError> {
    let packed = |column: &ArrayRef| unpacked_type(column.data_type()).is_some();
    if !rows.columns().iter().any(packed) {
        return Ok(rows);
    }
    let columns = rows.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| compute::cast(column, field.data_type()));
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let columns = columns.collect::<std::result::Result<_, _>>()?;
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// The type that stands for `kind` in a result, down into nested types.
pub(crate) fn plain(kind: &DataType) -> DataType {
    match kind {
        DataType::Dictionary(_, value) => plain(value),
        DataType::RunEndEncoded(_, value) => plain(value.data_type()),
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Time64(_) | DataType::Time32(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::List(item) | DataType::ListView(item) => DataType::List(field(item)),
        DataType::LargeList(item) | DataType::LargeListView(item) => {
            DataType::LargeList(field(item))
        }
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

fn field(field: &FieldRef) -> FieldRef {
    let kind = plain(field.data_type());
    if kind == *field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::clone(field).with_data_type(kind))
}

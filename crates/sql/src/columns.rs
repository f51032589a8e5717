//! The columns of a result: of types that every reader of Parquet and Iceberg knows, each with a name
//! of its own.

use std::{collections::HashSet, sync::Arc};

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
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

//! Grouping without a plan around it: the group columns are numbered, and each accumulator gets the
//! numbers with its arguments, as in DataFusion's own operator. To execute that operator costs tens
//! of microseconds a call; here a call costs little more than the work.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    compute::{cast, concat_batches},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::DataFusionError,
    logical_expr::{EmitTo, GroupsAccumulator},
    physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr, aggregate::AggregateFunctionExpr},
    physical_plan::aggregates::{
        AggregateExec, AggregateMode, aggregate_expressions, group_values::new_group_values,
        order::GroupOrdering,
    },
};

/// States in smaller batches are put together before they are merged: a batch costs microseconds.
const SMALL_ROWS: usize = 1_024;

/// Rows of the batches that small ones become.
const JOINED_ROWS: usize = 8_192;

/// The groups and accumulators of one aggregation.
#[derive(Debug)]
pub(super) struct Groups {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    key_schema: SchemaRef,
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
    /// Of rows.
    arguments: Vec<Vec<Arc<dyn PhysicalExpr>>>,
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    state_schema: SchemaRef,
}

/// What the batches hold that are grouped, and what comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Rows to states.
    Partial,
    /// States to states.
    Merge,
    /// States to results.
    Finish,
}

impl Groups {
    /// Takes apart what DataFusion planned.
    pub(super) fn of(planned: &AggregateExec) -> Result<Self, DataFusionError> {
        let group = planned.group_expr();
        let input = planned.input().schema();
        let key_schema = group.group_schema(&input)?;
        let keys = group.input_exprs();
        let aggregates = planned.aggr_expr().to_vec();
        let arguments = aggregate_expressions(&aggregates, &AggregateMode::Partial, keys.len())?;
        let mut fields: Vec<Field> = Vec::new();
        for field in key_schema.fields() {
            fields.push(Field::new(field.name(), field.data_type().clone(), true));
        }
        // DataFusion's own names hold expressions, and change from version to version.
        for (i, aggregate) in aggregates.iter().enumerate() {
            for (j, field) in aggregate.state_fields()?.iter().enumerate() {
                let name = format!("state_{i}_{j}");
                fields.push(Field::new(name, field.data_type().clone(), true));
            }
        }
        Ok(Self {
            keys,
            key_schema,
            aggregates,
            arguments,
            filters: planned.filter_expr().to_vec(),
            state_schema: Arc::new(Schema::new(fields)),
        })
    }

    pub(super) fn state_schema(&self) -> SchemaRef {
        Arc::clone(&self.state_schema)
    }

    /// Number of group columns.
    pub(super) fn width(&self) -> usize {
        self.keys.len()
    }

    /// States of rows.
    pub(super) fn partial(&self, rows: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let columns = self.run(Phase::Partial, std::slice::from_ref(rows))?;
        made(&self.state_schema, columns)
    }

    /// States of states.
    pub(super) fn merge(&self, states: &[RecordBatch]) -> Result<RecordBatch, DataFusionError> {
        let columns = self.run(Phase::Merge, &self.joined(states)?)?;
        made(&self.state_schema, columns)
    }

    /// Group columns and results of states, as rows of `schema`.
    pub(super) fn finish(
        &self,
        states: &[RecordBatch],
        schema: &SchemaRef,
    ) -> Result<RecordBatch, DataFusionError> {
        let columns = self.run(Phase::Finish, &self.joined(states)?)?;
        made(schema, columns)
    }

    fn run(
        &self,
        phase: Phase,
        batches: &[RecordBatch],
    ) -> Result<Option<Vec<ArrayRef>>, DataFusionError> {
        let mut groups = new_group_values(Arc::clone(&self.key_schema), &GroupOrdering::None)?;
        let mut accumulators = self
            .aggregates
            .iter()
            .map(accumulator)
            .collect::<Result<Vec<_>, _>>()?;
        let mut numbers = Vec::new();
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            if phase == Phase::Partial {
                groups.intern(&evaluate(&self.keys, batch)?, &mut numbers)?;
                let arguments = self.arguments.iter().zip(&self.filters);
                for (accumulator, (arguments, filter)) in accumulators.iter_mut().zip(arguments) {
                    let values = evaluate(arguments, batch)?;
                    let filter = match filter {
                        Some(filter) => Some(filter.evaluate(batch)?.into_array(batch.num_rows())?),
                        None => None,
                    };
                    let filter = filter.as_ref().map(AsArray::as_boolean);
                    accumulator.update_batch(&values, &numbers, filter, groups.len())?;
                }
            } else {
                let (keys, mut states) = batch.columns().split_at(self.keys.len());
                groups.intern(keys, &mut numbers)?;
                for (accumulator, aggregate) in accumulators.iter_mut().zip(&self.aggregates) {
                    let (own, others) = states.split_at(aggregate.state_fields()?.len());
                    accumulator.merge_batch(own, &numbers, None, groups.len())?;
                    states = others;
                }
            }
        }
        if groups.is_empty() {
            return Ok(None);
        }
        let mut columns = groups.emit(EmitTo::All)?;
        for accumulator in &mut accumulators {
            if phase == Phase::Finish {
                columns.push(accumulator.evaluate(EmitTo::All)?);
            } else {
                columns.extend(accumulator.state(EmitTo::All)?);
            }
        }
        Ok(Some(columns))
    }

    /// The same states, small batches put together.
    fn joined(&self, states: &[RecordBatch]) -> Result<Vec<RecordBatch>, DataFusionError> {
        let mut joined = Vec::new();
        let mut small: Vec<&RecordBatch> = Vec::new();
        let mut rows = 0;
        let flush = |small: &mut Vec<&RecordBatch>, joined: &mut Vec<RecordBatch>| {
            match small.as_slice() {
                [] => {}
                [one] => joined.push((*one).clone()),
                several => {
                    joined.push(concat_batches(&self.state_schema, several.iter().copied())?);
                }
            }
            small.clear();
            Ok::<_, DataFusionError>(())
        };
        for batch in states {
            if rows + batch.num_rows() > JOINED_ROWS || batch.num_rows() >= SMALL_ROWS {
                flush(&mut small, &mut joined)?;
                rows = 0;
            }
            if batch.num_rows() >= SMALL_ROWS {
                joined.push(batch.clone());
            } else if batch.num_rows() > 0 {
                rows += batch.num_rows();
                small.push(batch);
            }
        }
        flush(&mut small, &mut joined)?;
        Ok(joined)
    }
}

fn accumulator(
    aggregate: &Arc<AggregateFunctionExpr>,
) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
    if aggregate.groups_accumulator_supported() {
        return aggregate.create_groups_accumulator();
    }
    let aggregate = Arc::clone(aggregate);
    let one = move || aggregate.create_accumulator();
    Ok(Box::new(GroupsAccumulatorAdapter::new(one)))
}

fn evaluate(
    exprs: &[Arc<dyn PhysicalExpr>],
    batch: &RecordBatch,
) -> Result<Vec<ArrayRef>, DataFusionError> {
    let values = exprs.iter();
    values
        .map(|expr| expr.evaluate(batch)?.into_array(batch.num_rows()))
        .collect()
}

/// Columns as rows of `schema`, cast where an accumulator yields a type that is not quite its own.
fn made(
    schema: &SchemaRef,
    columns: Option<Vec<ArrayRef>>,
) -> Result<RecordBatch, DataFusionError> {
    let Some(columns) = columns else {
        return Ok(RecordBatch::new_empty(Arc::clone(schema)));
    };
    let typed = columns.into_iter().zip(schema.fields());
    let columns = typed
        .map(|(column, field)| as_type(column, field.data_type()))
        .collect::<Result<_, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// The column, cast where it is of another type.
pub(super) fn as_type(column: ArrayRef, kind: &DataType) -> Result<ArrayRef, DataFusionError> {
    if column.data_type() == kind {
        return Ok(column);
    }
    Ok(cast(&column, kind)?)
}

//! Rows leave a transform in the order of the events that they come from.
//!
//! Most operators keep the order of their input. A hash join keeps that of the side it probes, so
//! events are put on that side. Where an operator does not keep it, the events are numbered, and the
//! number is carried through the plan. An outer join then keeps the order that it was told of; joins
//! without an equality do not, and DataFusion sorts their result by the number.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    common::{
        Column, DataFusionError, JoinType, Result,
        tree_node::{Transformed, TreeNode},
    },
    datasource::provider_as_source,
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Projection},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode},
        union::UnionExec,
        unnest::UnnestExec,
    },
};

use crate::{
    leaf::{EventsTable, reads_leaf},
    session,
};

/// Name of the number's column.
const NUMBER: &str = "__calve_row";

/// The schema with the number behind the other columns.
pub(crate) fn with_number(schema: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(NUMBER, DataType::UInt64, false)));
    Arc::new(Schema::new(fields))
}

/// The plan with lookup tables on the build side of each hash join, where the hash table is made
/// once and kept from batch to batch.
pub(crate) fn probe_events(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = Arc::clone(plan).transform_up(|node| {
        let Some(join) = node.as_any().downcast_ref::<HashJoinExec>() else {
            return Ok(Transformed::no(node));
        };
        if join.null_aware {
            return Ok(Transformed::no(node));
        }
        if reads_leaf(join.left()) && !reads_leaf(join.right()) {
            return Ok(Transformed::yes(
                join.swap_inputs(PartitionMode::CollectLeft)?,
            ));
        }
        let mode = PartitionMode::CollectLeft;
        Ok(Transformed::yes(
            join.builder().with_partition_mode(mode).build_exec()?,
        ))
    })?;
    Ok(plan.data)
}

/// Whether the rows keep the order of the leaf's rows on all the way to the root.
pub(crate) fn keeps(plan: &Arc<dyn ExecutionPlan>) -> bool {
    // These two keep it, but do not say so: one puts its inputs one after the other, the other
    // puts a row's items in its place.
    let known = plan.as_any().is::<UnionExec>() || plan.as_any().is::<UnnestExec>();
    // This one says so, but puts rows without a match last, unless its input has a declared order.
    if let Some(join) = plan.as_any().downcast_ref::<HashJoinExec>()
        && *join.join_type() == JoinType::Right
        && join.right().output_ordering().is_none()
    {
        return false;
    }
    let says = plan.maintains_input_order();
    plan.children().into_iter().enumerate().all(|(i, child)| {
        !reads_leaf(child) || ((known || says.get(i) == Some(&true)) && keeps(child))
    })
}

/// Whether the plan runs a lookup table's side again for each batch; such a side must be reset.
pub(crate) fn repeats(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let any = plan.as_any();
    any.is::<CrossJoinExec>()
        || any.is::<NestedLoopJoinExec>()
        || plan.children().into_iter().any(repeats)
}

/// The plan with numbered events, sorted by their number.
pub(crate) fn numbered(plan: LogicalPlan, input: &SchemaRef, events: &str) -> Result<LogicalPlan> {
    let columns: Vec<Expr> = plan
        .schema()
        .columns()
        .into_iter()
        .map(Expr::Column)
        .collect();
    let last = input.fields().len();
    let source = provider_as_source(Arc::new(EventsTable::rising(&with_number(input), last)));
    let plan = plan.transform_up(|node| match node {
        LogicalPlan::TableScan(scan) if session::is_events(&scan.source) => {
            let scan = LogicalPlanBuilder::scan(scan.table_name, Arc::clone(&source), None)?;
            Ok(Transformed::yes(scan.build()?))
        }
        LogicalPlan::Projection(projection) => {
            let Some(number) = number_of(&projection.input) else {
                return Ok(Transformed::no(LogicalPlan::Projection(projection)));
            };
            let mut exprs = projection.expr;
            exprs.push(number);
            let made = Projection::try_new(exprs, projection.input)?;
            Ok(Transformed::yes(LogicalPlan::Projection(made)))
        }
        other => Ok(Transformed::yes(other.recompute_schema()?)),
    })?;
    let number = number_of(&plan.data).ok_or_else(|| {
        DataFusionError::NotImplemented(format!("keeping the order of `{events}` in this query"))
    })?;
    LogicalPlanBuilder::from(plan.data)
        .sort(vec![number.sort(true, false)])?
        .project(columns)?
        .build()
}

fn number_of(plan: &LogicalPlan) -> Option<Expr> {
    let (qualifier, field) = plan.schema().iter().find(|(_, f)| f.name() == NUMBER)?;
    Some(Expr::Column(Column::new(qualifier.cloned(), field.name())))
}

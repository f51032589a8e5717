//! Where a query is cut in two: at its lowest aggregation. What is below turns rows into partial
//! states; states are merged, and what is above makes the result out of them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::{
    common::DataFusionError,
    logical_expr::LogicalPlan,
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode},
        execution_plan::reset_plan_states,
    },
};

use crate::{check, leaf, session};

/// A place to cut at.
#[derive(Debug)]
pub(crate) struct Cut {
    /// The lowest complete aggregation.
    complete: Arc<dyn ExecutionPlan>,
    /// The aggregation, or its first phase, which knows the events' columns.
    first: Arc<dyn ExecutionPlan>,
}

impl Cut {
    /// The lowest aggregation; none when the plan turned out to need no row (`WHERE false`).
    pub(crate) fn lowest(whole: &Arc<dyn ExecutionPlan>) -> Result<Option<Self>, DataFusionError> {
        let Some(complete) = lowest(whole) else {
            return Ok(None);
        };
        let aggregate =
            as_aggregate(&complete).ok_or_else(|| internal("no aggregation to cut at"))?;
        // A final phase of its own stands above the partial one that knows the events' columns.
        let first = match aggregate.mode() {
            AggregateMode::Single | AggregateMode::SinglePartitioned => Arc::clone(&complete),
            AggregateMode::Final
            | AggregateMode::FinalPartitioned
            | AggregateMode::Partial
            | AggregateMode::PartialReduce => partial_below(aggregate.input())
                .ok_or_else(|| internal("no partial aggregation"))?,
        };
        Ok(Some(Self { complete, first }))
    }

    /// The aggregation as it reads the events.
    pub(crate) fn first(&self) -> &AggregateExec {
        as_aggregate(&self.first).expect("it was found as an aggregation")
    }

    /// The aggregation with its result.
    pub(crate) fn complete(&self) -> &Arc<dyn ExecutionPlan> {
        &self.complete
    }

    /// One phase of the aggregation, over `input`.
    pub(crate) fn phase(
        &self,
        mode: AggregateMode,
        input: Arc<dyn ExecutionPlan>,
    ) -> Result<AggregateExec, DataFusionError> {
        let first = self.first();
        let groups = match mode {
            AggregateMode::Partial => first.group_expr().clone(),
            _ => first.group_expr().as_final(),
        };
        AggregateExec::try_new(
            mode,
            groups,
            first.aggr_expr().to_vec(),
            first.filter_expr().to_vec(),
            input,
            first.input_schema(),
        )
    }

    /// The whole plan with `below` in the place of the complete aggregation.
    pub(crate) fn rest(
        &self,
        whole: &Arc<dyn ExecutionPlan>,
        below: &Arc<dyn ExecutionPlan>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        replace(whole, &self.complete, below)
    }
}

/// Runs a plan over some batches, and forgets what it remembers of earlier runs.
pub(crate) fn run(
    plan: &Arc<dyn ExecutionPlan>,
    batches: &[RecordBatch],
) -> Result<Vec<RecordBatch>, DataFusionError> {
    let plan = reset_plan_states(Arc::clone(plan))?;
    session::collect(&leaf::over(&plan, batches)?)
}

/// What the lowest aggregation on the way to `events` aggregates.
pub(crate) fn aggregated(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    let inputs = plan.inputs();
    let below = inputs
        .iter()
        .copied()
        .find(|input| check::scans(input) > 0)?;
    aggregated(below).or_else(|| {
        matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_)).then_some(below)
    })
}

fn internal(what: &str) -> DataFusionError {
    DataFusionError::Internal(what.to_owned())
}

fn as_aggregate(plan: &Arc<dyn ExecutionPlan>) -> Option<&AggregateExec> {
    plan.as_any().downcast_ref()
}

/// The lowest complete aggregation: in one phase, or the last of its phases.
fn lowest(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let below = plan.children().into_iter().find_map(lowest);
    below.or_else(|| {
        let mode = as_aggregate(plan)?.mode();
        let complete = !matches!(mode, AggregateMode::Partial | AggregateMode::PartialReduce);
        complete.then(|| Arc::clone(plan))
    })
}

fn partial_below(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    as_aggregate(plan)
        .filter(|aggregate| *aggregate.mode() == AggregateMode::Partial)
        .map(|_| Arc::clone(plan))
        .or_else(|| plan.children().into_iter().find_map(partial_below))
}

/// The plan with `new` in the place of the node `old`.
pub(crate) fn replace(
    plan: &Arc<dyn ExecutionPlan>,
    old: &Arc<dyn ExecutionPlan>,
    new: &Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    if Arc::ptr_eq(plan, old) {
        return Ok(Arc::clone(new));
    }
    let children = plan.children();
    if children.is_empty() {
        return Ok(Arc::clone(plan));
    }
    let children = children
        .into_iter()
        .map(|child| replace(child, old, new))
        .collect::<Result<_, _>>()?;
    Arc::clone(plan).with_new_children(children)
}

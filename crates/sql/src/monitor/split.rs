//! One monitor query, cut at its lowest aggregation into what runs on each batcher's rows, what
//! merges partial states, and what makes the figure out of them.

use std::sync::{Arc, OnceLock};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use calve_engine::{Error, Result};
use datafusion::{
    common::DataFusionError,
    logical_expr::LogicalPlan,
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode},
        execution_plan::reset_plan_states,
    },
};

use crate::{
    caret, check,
    leaf::{self, BatchExec},
    session::{self, Tables},
    transform::EVENTS,
};

/// A planned monitor query.
#[derive(Debug)]
pub(crate) struct Monitor {
    name: String,
    /// None when the plan turned out to need no row (`WHERE false`).
    phases: Option<Phases>,
    /// From states to the figure; its leaf yields states.
    rest: Arc<dyn ExecutionPlan>,
    stopped: OnceLock<String>,
}

#[derive(Debug)]
struct Phases {
    /// From events to states.
    partial: Arc<dyn ExecutionPlan>,
    /// From states to fewer states.
    reduce: Arc<dyn ExecutionPlan>,
}

impl Monitor {
    pub(crate) fn plan(name: &str, sql: &str, schema: &SchemaRef) -> Result<Self> {
        let tables = Tables::events(EVENTS, Arc::clone(schema));
        let logical = session::logical(sql, &tables)?;
        check::repeatable(sql, &logical)?;
        if check::scans(&logical) != 1 {
            let message = "a monitor reads the table `events` exactly once";
            return Err(caret::refuse(sql, message, &["UNION", "JOIN"]).hint(
                "write `SELECT … FROM events GROUP BY …`; make two monitors of two queries",
            ));
        }
        let input = aggregated(&logical).ok_or_else(|| {
            Error::config("a monitor must aggregate: it would have to keep all events").hint(
                "use count(*), sum, min, max, avg, approx_distinct and so on, with or without GROUP BY",
            )
        })?;
        check::stateless(sql, input)?;
        let whole = session::physical(sql, &logical, &tables)?;
        let (phases, rest) = split(&whole).map_err(|error| caret::planning(sql, &[], &error))?;
        Ok(Self {
            name: name.to_owned(),
            phases,
            rest,
            stopped: OnceLock::new(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn rest(&self) -> &Arc<dyn ExecutionPlan> {
        &self.rest
    }

    /// Why it was stopped.
    pub(crate) fn note(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }

    /// Stops it for good; the first reason stands.
    pub(crate) fn stop(&self, why: &str) {
        if self.stopped.set(format!("stopped: {why}")).is_ok() {
            tracing::warn!(monitor = self.name, why, "a monitor was stopped");
        }
    }

    /// Partial states of some rows.
    pub(crate) fn partial(
        &self,
        rows: &[RecordBatch],
    ) -> Result<Vec<RecordBatch>, DataFusionError> {
        self.phases
            .as_ref()
            .map_or(Ok(Vec::new()), |phases| run(&phases.partial, rows))
    }

    /// The same states in fewer rows: one for each group.
    pub(crate) fn reduce(
        &self,
        states: &[RecordBatch],
    ) -> Result<Vec<RecordBatch>, DataFusionError> {
        self.phases
            .as_ref()
            .map_or(Ok(Vec::new()), |phases| run(&phases.reduce, states))
    }
}

fn run(
    plan: &Arc<dyn ExecutionPlan>,
    batches: &[RecordBatch],
) -> Result<Vec<RecordBatch>, DataFusionError> {
    let plan = reset_plan_states(Arc::clone(plan))?;
    session::collect(&leaf::over(&plan, batches)?)
}

/// What the lowest aggregation on the way to `events` aggregates.
fn aggregated(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    let inputs = plan.inputs();
    let below = inputs
        .iter()
        .copied()
        .find(|input| check::scans(input) > 0)?;
    aggregated(below).or_else(|| {
        matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_)).then_some(below)
    })
}

type Cut = (Option<Phases>, Arc<dyn ExecutionPlan>);

fn split(whole: &Arc<dyn ExecutionPlan>) -> Result<Cut, DataFusionError> {
    let Some(lowest) = lowest(whole) else {
        return Ok((None, Arc::clone(whole)));
    };
    let aggregate = as_aggregate(&lowest).ok_or_else(|| internal("no aggregation to cut at"))?;
    // A final phase of its own stands above the partial one that knows the events' columns.
    let first = match aggregate.mode() {
        AggregateMode::Single | AggregateMode::SinglePartitioned => aggregate,
        AggregateMode::Final
        | AggregateMode::FinalPartitioned
        | AggregateMode::Partial
        | AggregateMode::PartialReduce => {
            partial_below(aggregate.input()).ok_or_else(|| internal("no partial aggregation"))?
        }
    };
    let phase = |mode, input, group_by| {
        AggregateExec::try_new(
            mode,
            group_by,
            first.aggr_expr().to_vec(),
            first.filter_expr().to_vec(),
            input,
            first.input_schema(),
        )
    };
    let groups = first.group_expr().clone();
    let partial = phase(
        AggregateMode::Partial,
        Arc::clone(first.input()),
        groups.clone(),
    )?;
    let states = Arc::new(BatchExec::new(&partial.schema(), None)?);
    let reduce = phase(
        AggregateMode::PartialReduce,
        Arc::clone(&states) as _,
        groups.as_final(),
    )?;
    let last = phase(AggregateMode::Final, states, groups.as_final())?;
    let rest = replace(whole, &lowest, Arc::new(last))?;
    let phases = Phases {
        partial: Arc::new(partial),
        reduce: Arc::new(reduce),
    };
    Ok((Some(phases), rest))
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

fn partial_below(plan: &Arc<dyn ExecutionPlan>) -> Option<&AggregateExec> {
    as_aggregate(plan)
        .filter(|aggregate| *aggregate.mode() == AggregateMode::Partial)
        .or_else(|| plan.children().into_iter().find_map(partial_below))
}

fn replace(
    plan: &Arc<dyn ExecutionPlan>,
    old: &Arc<dyn ExecutionPlan>,
    new: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    if Arc::ptr_eq(plan, old) {
        return Ok(new);
    }
    let children = plan.children();
    if children.is_empty() {
        return Ok(Arc::clone(plan));
    }
    let children = children
        .into_iter()
        .map(|child| replace(child, old, Arc::clone(&new)))
        .collect::<Result<_, _>>()?;
    Arc::clone(plan).with_new_children(children)
}

//! One monitor query, cut at its lowest aggregation into what runs on each batcher's rows, what
//! merges partial states, and what makes the figure out of them.

use std::sync::{Arc, OnceLock};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use calve_engine::{Error, Result};
use datafusion::{
    common::DataFusionError,
    physical_plan::{ExecutionPlan, aggregates::AggregateMode},
};

use crate::{
    caret, check,
    cut::{self, Cut},
    leaf::BatchExec,
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
        let tables = Tables::events(EVENTS, schema);
        let logical = session::logical(sql, &tables)?;
        check::repeatable(sql, &logical)?;
        if check::scans(&logical) != 1 {
            let message = "a monitor reads the table `events` exactly once";
            return Err(caret::refuse(sql, message, &["UNION", "JOIN"]).hint(
                "write `SELECT … FROM events GROUP BY …`; make two monitors of two queries",
            ));
        }
        let input = cut::aggregated(&logical).ok_or_else(|| {
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
            .map_or(Ok(Vec::new()), |phases| cut::run(&phases.partial, rows))
    }

    /// The same states in fewer rows: one for each group.
    pub(crate) fn reduce(
        &self,
        states: &[RecordBatch],
    ) -> Result<Vec<RecordBatch>, DataFusionError> {
        self.phases
            .as_ref()
            .map_or(Ok(Vec::new()), |phases| cut::run(&phases.reduce, states))
    }
}

fn split(whole: &Arc<dyn ExecutionPlan>) -> Result<Split, DataFusionError> {
    let Some(cut) = Cut::lowest(whole)? else {
        return Ok((None, Arc::clone(whole)));
    };
    let partial = cut.phase(AggregateMode::Partial, Arc::clone(cut.first().input()))?;
    let states = Arc::new(BatchExec::new(&partial.schema(), None)?);
    let reduce = cut.phase(AggregateMode::PartialReduce, Arc::clone(&states) as _)?;
    let last = cut.phase(AggregateMode::Final, states)?;
    let phases = Phases {
        partial: Arc::new(partial),
        reduce: Arc::new(reduce),
    };
    Ok((Some(phases), cut.rest(whole, &(Arc::new(last) as _))?))
}

type Split = (Option<Phases>, Arc<dyn ExecutionPlan>);

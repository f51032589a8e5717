//! `monitor:` queries: live figures over all rows seen so far, without keeping the rows.
//!
//! A query is planned as a whole and cut at its lowest aggregation. Each batcher's [`Observer`] runs
//! what is below on its rows and keeps partial states, which it merges when there are many. A result
//! merges the states of all observers and runs the rest of the query: HAVING, ORDER BY, expressions.
//! A monitor never fails the pipeline: one that grows too big or fails stops, with a note.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use calve_engine::{Error, Result, Transform, conform};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use parking_lot::Mutex;

use crate::{caret, leaf, session};

mod observer;
mod split;

pub use observer::Observer;
use observer::Part;
use split::Monitor;

/// Groups that one monitor may have.
pub const MAX_GROUPS: usize = 100_000;

/// Bytes of partial states that one observer of one monitor may hold.
pub const MAX_STATE_BYTES: usize = 64 << 20;

/// The monitor queries of a pipeline; a cheap handle, for use from any thread.
#[derive(Clone, Debug)]
pub struct Monitors(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    monitors: Vec<Monitor>,
    /// Of the rows that they were planned for.
    schema: SchemaRef,
    parts: Mutex<Vec<Arc<Mutex<Part>>>>,
}

/// What a monitor shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The monitor's name.
    pub name: String,
    /// The result; empty when the monitor was stopped.
    pub rows: RecordBatch,
    /// Why it was stopped.
    pub note: Option<String>,
}

impl Monitors {
    /// Plans queries (name and SQL) over the table `events`, with rows of `schema`.
    ///
    /// # Errors
    /// `Config`, with the monitor's name and a caret below the place, when the SQL is wrong, or does
    /// not aggregate `events`.
    pub fn plan(queries: &[(String, String)], schema: &SchemaRef) -> Result<Self> {
        let monitors = queries
            .iter()
            .map(|(name, sql)| {
                Monitor::plan(name, sql, schema)
                    .map_err(|error| error.context(format!("monitor={name}")))
            })
            .collect::<Result<_>>()?;
        Ok(Self(Arc::new(Shared {
            monitors,
            schema: Arc::clone(schema),
            parts: Mutex::default(),
        })))
    }

    /// No query was given.
    pub fn is_empty(&self) -> bool {
        self.0.monitors.is_empty()
    }

    /// An observer for one more batcher. What it saw counts also after it is dropped.
    pub fn observer(&self) -> Observer {
        let part = Arc::new(Mutex::new(Part::new(self.0.monitors.len())));
        self.0.parts.lock().push(Arc::clone(&part));
        Observer::new(Arc::clone(&self.0), part)
    }

    /// The figures over everything observed until now, in the order of the queries. Blocks for as
    /// long as the merge takes (milliseconds), and observers that are about to merge meanwhile.
    pub fn result(&self) -> Vec<Figure> {
        let parts: Vec<_> = self.0.parts.lock().clone();
        for part in &parts {
            part.lock().flush(&self.0.monitors);
        }
        let monitors = self.0.monitors.iter().enumerate();
        monitors
            .map(|(index, monitor)| {
                let states: Vec<RecordBatch> = parts
                    .iter()
                    .flat_map(|part| part.lock().states(index))
                    .collect();
                monitor.figure(&states)
            })
            .collect()
    }
}

impl Monitor {
    fn figure(&self, states: &[RecordBatch]) -> Figure {
        let run = || {
            // Some operators remember: a sort with a limit keeps the bound that it had reached.
            let plan = reset_plan_states(Arc::clone(self.rest()))?;
            let batches = session::collect(&leaf::over(&plan, states)?)?;
            Ok(arrow::compute::concat_batches(&plan.schema(), &batches)?)
        };
        let result = if self.note().is_some() {
            None
        } else {
            run()
                .map_err(|error| self.stop(caret::running(&error, None).message()))
                .ok()
        };
        Figure {
            name: self.name().to_owned(),
            rows: result.unwrap_or_else(|| RecordBatch::new_empty(self.rest().schema())),
            note: self.note().map(str::to_owned),
        }
    }
}

/// A transform whose result is observed by monitors.
///
/// Rows are observed when they were transformed, once: of a batch that fails nothing is observed,
/// and of its halves what then succeeds.
pub struct MonitoredTransform {
    inner: Option<Box<dyn Transform>>,
    observer: Observer,
    schema: SchemaRef,
}

impl MonitoredTransform {
    /// Observes what `inner` makes, or the rows as they come.
    pub fn new(inner: Option<Box<dyn Transform>>, monitors: &Monitors) -> Self {
        Self {
            inner,
            observer: monitors.observer(),
            schema: Arc::clone(&monitors.0.schema),
        }
    }
}

impl Transform for MonitoredTransform {
    fn apply(&mut self, rows: RecordBatch) -> Result<RecordBatch, Error> {
        let rows = match &mut self.inner {
            Some(inner) => inner.apply(rows)?,
            None => rows,
        };
        if rows.schema_ref().fields() == self.schema.fields() {
            self.observer.observe(&rows);
        } else if let Ok(rows) = conform::rows(&rows, &self.schema) {
            // The schema has evolved since the monitors were planned.
            self.observer.observe(&rows);
        }
        Ok(rows)
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;

//! `transform.sql`: planned once for a schema, run for each batch.
//!
//! A plan that only projects and filters (by far the most) is taken apart, and its expressions are
//! evaluated on the batch directly; any other plan is executed by DataFusion. Both keep the order of
//! the events, and both give the same rows.
//!
//! The result's columns are of types that every reader knows: dictionaries and views become plain
//! values, and timestamps count microseconds (the only unit that Iceberg v2 has; finer digits are
//! cut off).

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, UInt64Array},
    compute::concat_batches,
    datatypes::{Schema, SchemaRef},
};
use calve_engine::{Error, Result, Transform};
use datafusion::{
    common::DataFusionError,
    physical_plan::{ExecutionPlan, execution_plan::reset_plan_states},
};

use crate::{
    caret, check, columns, fold, leaf,
    lookup::Lookup,
    session::{self, Tables},
    steps::{self, Step, batch},
};

mod order;

/// Name of the table that stands for the events.
pub const EVENTS: &str = "events";

/// Batches after which an executed plan is reset: what ran keeps its metrics, a few hundred bytes a
/// batch. A reset also hashes the lookup tables again.
const RESET_BATCHES: u32 = 4_096;

/// Plans `transform.sql`.
#[derive(Debug)]
pub struct SqlTransform;

impl SqlTransform {
    /// Plans `sql` over the table [`EVENTS`] with rows of `input`, and over the lookup tables.
    ///
    /// # Errors
    /// `Config`, with the line of the SQL and a caret below the place, when the SQL is wrong, when
    /// its result would depend on how events are cut into batches (aggregates, DISTINCT, ORDER BY,
    /// LIMIT, window functions, joins of events with events) or on when it runs (`now()`,
    /// `random()`), or when two columns of the result have one name.
    pub fn plan(sql: &str, input: SchemaRef, lookups: &[Lookup]) -> Result<Planned> {
        plan(sql, &input, lookups, true)
    }
}

fn tables(input: &SchemaRef, lookups: &[Lookup]) -> Result<Tables> {
    let mut tables = Tables::events(EVENTS, input);
    for lookup in lookups {
        if !tables.insert(lookup.name(), lookup.table()) {
            return Err(Error::config(format!(
                "a lookup table's name is taken: table={}",
                lookup.name()
            ))
            .hint(
                "`events` stands for the pipeline's events; give each lookup table its own name",
            ));
        }
    }
    Ok(tables)
}

pub(crate) fn plan(
    sql: &str,
    input: &SchemaRef,
    lookups: &[Lookup],
    allow_fast: bool,
) -> Result<Planned> {
    let tables = tables(input, lookups)?;
    let logical = session::logical(sql, &tables)?;
    check::stateless(sql, &logical)?;
    columns::unique_names(sql, &logical)?;
    let logical = fold::subqueries(sql, logical)?;
    let logical = columns::plain_columns(sql, logical, &tables)?;
    let physical = session::physical(sql, &logical, &tables)?;
    let schema = Arc::new(Schema::new(physical.schema().fields().clone()));
    let fast = if allow_fast {
        steps::steps(&physical)
    } else {
        None
    };
    let (run, numbered) = if let Some(steps) = fast {
        (Run::Steps(steps), false)
    } else {
        let probing = order::probe_events(&physical).map_err(|e| caret::planning(sql, &[], &e))?;
        if order::keeps(&probing) {
            (Run::Plan(probing), false)
        } else {
            let logical = order::numbered(logical, input, EVENTS)
                .map_err(|error| caret::planning(sql, &tables.names(), &error))?;
            let physical = session::physical(sql, &logical, &tables)?;
            let probing =
                order::probe_events(&physical).map_err(|e| caret::planning(sql, &[], &e))?;
            (Run::Plan(probing), true)
        }
    };
    Ok(Planned(Arc::new(Inner {
        sql: sql.trim().to_owned(),
        input: Arc::clone(input),
        schema,
        run,
        numbered,
    })))
}

/// A planned transform; a cheap handle, for use from any thread.
#[derive(Clone, Debug)]
pub struct Planned(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sql: String,
    input: SchemaRef,
    schema: SchemaRef,
    run: Run,
    /// The plan reads a row number behind the columns of the input.
    numbered: bool,
}

#[derive(Debug)]
enum Run {
    Steps(Vec<Step>),
    Plan(Arc<dyn ExecutionPlan>),
}

impl Planned {
    /// Schema of the rows that it makes.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0.schema)
    }

    /// A transform for one batcher.
    ///
    /// # Errors
    /// `Internal` only.
    pub fn instance(&self) -> Result<Box<dyn Transform>> {
        Ok(match &self.0.run {
            Run::Steps(_) => Box::new(Steps(Arc::clone(&self.0))),
            Run::Plan(plan) => Box::new(Executed {
                reset_after: if order::repeats(plan) {
                    1
                } else {
                    RESET_BATCHES
                },
                plan: reset(plan)?,
                planned: Arc::clone(&self.0),
                runs: 0,
            }),
        })
    }

    /// What a checkpoint's fingerprint of the SQL is made of.
    pub fn fingerprint(&self) -> &str {
        &self.0.sql
    }

    /// Whether the expressions are evaluated directly, without executing a plan.
    pub fn is_direct(&self) -> bool {
        matches!(self.0.run, Run::Steps(_))
    }
}

impl Inner {
    fn accepts(&self, rows: &RecordBatch) -> Result<()> {
        let schema = rows.schema_ref();
        let same = Arc::ptr_eq(schema, &self.input)
            || schema.fields().iter().map(|f| f.data_type()).eq(self
                .input
                .fields()
                .iter()
                .map(|f| f.data_type()));
        if same {
            return Ok(());
        }
        Err(Error::internal(
            "a batch has not the schema that the SQL was planned for",
        ))
    }

    fn rows(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        batch(&self.schema, columns, rows).map_err(|error| {
            Error::internal("the SQL's result has not the planned schema").because(error)
        })
    }
}

/// Evaluates the steps on each batch.
struct Steps(Arc<Inner>);

impl Transform for Steps {
    fn apply(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        self.0.accepts(&rows)?;
        let Run::Steps(steps) = &self.0.run else {
            return Err(Error::internal("a transform without steps"));
        };
        let mut rows = rows;
        for step in steps {
            rows = step.run(rows)?;
        }
        let count = rows.num_rows();
        self.0.rows(rows.columns().to_vec(), count)
    }
}

/// Executes the plan over each batch.
struct Executed {
    planned: Arc<Inner>,
    plan: Arc<dyn ExecutionPlan>,
    runs: u32,
    /// Batches after which the plan is reset.
    reset_after: u32,
}

impl Transform for Executed {
    fn apply(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        self.planned.accepts(&rows)?;
        if rows.num_rows() == 0 {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.planned.schema)));
        }
        if self.runs == self.reset_after {
            self.plan = reset(&self.plan)?;
            self.runs = 0;
        }
        self.runs += 1;
        let rows = if self.planned.numbered {
            number(&rows)?
        } else {
            rows
        };
        let run = || {
            let plan = leaf::over(&self.plan, &[rows])?;
            let made = session::collect(&plan)?;
            Ok(concat_batches(&plan.schema(), &made)?)
        };
        let made = run().map_err(|error: DataFusionError| caret::running(&error, None))?;
        let count = made.num_rows();
        self.planned.rows(made.columns().to_vec(), count)
    }
}

fn reset(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    reset_plan_states(Arc::clone(plan)).map_err(|error| caret::running(&error, None))
}

/// The rows with their number behind the other columns.
fn number(rows: &RecordBatch) -> Result<RecordBatch> {
    let numbers = UInt64Array::from_iter_values(0..rows.num_rows() as u64);
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(numbers));
    batch(
        &order::with_number(rows.schema_ref()),
        columns,
        rows.num_rows(),
    )
    .map_err(|error| Error::internal("rows cannot be numbered").because(error))
}

#[cfg(test)]
#[path = "transform_tests.rs"]
mod tests;

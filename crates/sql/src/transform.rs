//! `transform.sql`: planned once for a schema, run for each batch.
//!
//! A plan that only projects and filters (by far the most) is taken apart, and its expressions are
//! evaluated on the batch directly; any other plan is executed by DataFusion. Both keep the order of
//! the events, and both give the same rows.
//!
//! The result's columns are of types that every reader knows: dictionaries and views become plain
//! values, and timestamps count microseconds (the only unit that Iceberg v2 has; finer digits are
//! cut off).

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt64Array},
    compute::{concat_batches, filter_record_batch},
    datatypes::{Schema, SchemaRef},
};
use calve_engine::{Error, Result, Transform};
use datafusion::{
    common::{Column, DataFusionError},
    logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, cast},
    physical_expr::PhysicalExpr,
    physical_plan::{
        ExecutionPlan, execution_plan::reset_plan_states, filter::FilterExec,
        projection::ProjectionExec,
    },
};

use choice::Choice;

use crate::{
    caret, check, fold,
    leaf::{self, BatchExec},
    lookup::Lookup,
    session::{self, Tables},
};

mod choice;
mod order;
mod plain;

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
    let mut tables = Tables::events(EVENTS, Arc::clone(input));
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
    unique_names(sql, &logical)?;
    let logical = fold::subqueries(sql, logical)?;
    let logical = plain_columns(sql, logical, &tables)?;
    let physical = session::physical(sql, &logical, &tables)?;
    let schema = Arc::new(Schema::new(physical.schema().fields().clone()));
    let fast = if allow_fast { steps(&physical) } else { None };
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

fn unique_names(sql: &str, plan: &LogicalPlan) -> Result<()> {
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
fn plain_columns(sql: &str, plan: LogicalPlan, tables: &Tables) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let build = || {
        let mut changed = false;
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (qualifier, field) in schema.iter() {
            let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            let target = plain::plain(field.data_type());
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

fn batch(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// A step of a plan that only projects and filters.
#[derive(Debug)]
enum Step {
    Columns(Vec<usize>),
    Filter {
        predicate: Arc<dyn PhysicalExpr>,
        projection: Option<Vec<usize>>,
    },
    Project {
        exprs: Vec<Value>,
        schema: SchemaRef,
    },
}

/// A column of a projection.
#[derive(Debug)]
enum Value {
    Expr(Arc<dyn PhysicalExpr>),
    Choice(Choice),
}

impl Value {
    fn new(expr: &Arc<dyn PhysicalExpr>) -> Self {
        Choice::of(expr).map_or_else(|| Self::Expr(Arc::clone(expr)), Self::Choice)
    }

    fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef, DataFusionError> {
        match self {
            Self::Expr(expr) => expr.evaluate(rows)?.into_array(rows.num_rows()),
            Self::Choice(choice) => choice.evaluate(rows),
        }
    }
}

/// The steps of a plan, first to last; none when it does more than project and filter.
fn steps(plan: &Arc<dyn ExecutionPlan>) -> Option<Vec<Step>> {
    let any = plan.as_any();
    if let Some(leaf) = any.downcast_ref::<BatchExec>() {
        return Some(match leaf.projection() {
            Some(columns) => vec![Step::Columns(columns.to_vec())],
            None => Vec::new(),
        });
    }
    let (input, step) = if let Some(project) = any.downcast_ref::<ProjectionExec>() {
        let exprs = project.expr().iter().map(|e| Value::new(&e.expr)).collect();
        let schema = project.schema();
        (project.input(), Step::Project { exprs, schema })
    } else {
        let filter = any.downcast_ref::<FilterExec>()?;
        if filter.fetch().is_some() {
            return None;
        }
        let predicate = Arc::clone(filter.predicate());
        let projection = filter.projection().as_ref().map(|p| p.to_vec());
        (
            filter.input(),
            Step::Filter {
                predicate,
                projection,
            },
        )
    };
    let mut steps = steps(input)?;
    steps.push(step);
    Some(steps)
}

impl Step {
    fn run(&self, rows: RecordBatch) -> Result<RecordBatch> {
        let failed = |error: DataFusionError| caret::running(&error, None);
        match self {
            Self::Columns(columns) => rows.project(columns).map_err(|e| failed(e.into())),
            Self::Filter {
                predicate,
                projection,
            } => {
                let keep = predicate
                    .evaluate(&rows)
                    .and_then(|value| value.into_array(rows.num_rows()))
                    .map_err(|error| caret::running(&error, Some("the condition")))?;
                let keep = keep
                    .as_boolean_opt()
                    .ok_or_else(|| Error::internal("a condition is not boolean"))?;
                let rows = match projection {
                    Some(columns) => rows.project(columns).map_err(|e| failed(e.into()))?,
                    None => rows,
                };
                if keep.null_count() == 0 && !keep.has_false() {
                    return Ok(rows);
                }
                filter_record_batch(&rows, keep).map_err(|e| failed(e.into()))
            }
            Self::Project { exprs, schema } => {
                let mut columns = Vec::with_capacity(exprs.len());
                for (expr, field) in exprs.iter().zip(schema.fields()) {
                    let column = expr
                        .evaluate(&rows)
                        .map_err(|error| caret::running(&error, Some(field.name())))?;
                    columns.push(column);
                }
                batch(schema, columns, rows.num_rows()).map_err(|e| failed(e.into()))
            }
        }
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

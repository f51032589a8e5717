//! `aggregate.sql`: figures of windows, in two phases.
//!
//! A query is checked and cut at its aggregation, before DataFusion optimises it: a condition of
//! HAVING must not move below the cut, since a window may still change there. Each half is planned on
//! its own. The lower half turns rows into partial states, batch by batch; states merge; the upper
//! half makes the rows of a pane out of each group. Nothing is remembered between calls, and all run
//! on the thread that calls.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
};
use calve_engine::{Aggregate, Error, ErrorKind, Result};
use datafusion::{
    common::{
        Column, DataFusionError,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::provider_as_source,
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder},
    physical_plan::ExecutionPlan,
};

use check::Origin;
use groups::Groups;

use crate::{
    caret, columns, cut,
    cut::Cut,
    leaf::{BatchExec, EventsTable, leaf_of},
    session::{self, Tables},
    steps::{self, Step, batch},
    transform::EVENTS,
};

mod check;
mod groups;

/// Names of the columns that hold a row's window: its start, which belongs to it, and its end, which
/// does not.
pub const WINDOW: [&str; 2] = ["window_start", "window_end"];

/// Name of the table that stands for the groups, in the upper half.
const GROUPS: &str = "__calve_groups";

/// A planned aggregate of windows; see [`Aggregate`].
#[derive(Debug)]
pub struct WindowedAggregate {
    sql: String,
    /// The columns of the rows that are read, and as which type.
    read: Vec<(usize, DataType)>,
    read_schema: SchemaRef,
    /// From rows to what is grouped.
    below: Half,
    groups: Groups,
    /// Of groups and their figures.
    group_schema: SchemaRef,
    /// From groups to the rows of a pane: the rest of the lower half's plan, then the upper half.
    above: [Half; 2],
    schema: SchemaRef,
    windows: (usize, usize),
    /// For each group column the name of the events' column that it is, if it is one.
    keys: Vec<Option<String>>,
}

impl WindowedAggregate {
    /// Plans `sql` over the table [`EVENTS`]. `rows` are the transform's columns, without the
    /// window's.
    ///
    /// # Errors
    /// `Config`, with the line of the SQL and a caret below the place, when the SQL is wrong, when it
    /// does not group by `window_start` and `window_end`, or when it needs more than one group to
    /// make a row.
    pub fn plan(sql: &str, rows: SchemaRef) -> Result<Self> {
        let events = events(&rows)?;
        let windows = [events.fields().len() - 2, events.fields().len() - 1];
        let tables = Tables::events(EVENTS, &events);
        let logical = session::logical(sql, &tables)?;
        check::windowed(sql, &logical, windows)?;
        columns::unique_names(sql, &logical)?;
        let logical = columns::plain_columns(sql, logical, &tables)?;
        let logical = session::typed(sql, logical, &tables)?;
        let aggregate = check::aggregation(sql, &logical)?;
        let origins = check::origins(aggregate, windows);
        let failed = |error: DataFusionError| caret::planning(sql, &[], &error);

        let lower = LogicalPlan::Aggregate(aggregate.clone());
        let lower = session::aggregation(sql, &lower, &tables)?;
        let Some(cut) = Cut::lowest(&lower).map_err(failed)? else {
            return Err(caret::refuse(
                sql,
                "the SQL needs no event: no row can ever come",
                &["WHERE"],
            )
            .hint("the condition is never true"));
        };
        let groups = Groups::of(cut.first()).map_err(failed)?;
        if groups.width() != origins.len() {
            return Err(
                caret::refuse(sql, "an expression is grouped by twice", &["GROUP BY"])
                    .hint("name each expression once"),
            );
        }
        let at = |window| origins.iter().position(|o| *o == Origin::Column(window));
        let (Some(start), Some(end)) = (at(windows[0]), at(windows[1])) else {
            return Err(Error::internal(
                "the window's columns are not among the groups",
            ));
        };
        let keys = origins.iter().map(|origin| match origin {
            Origin::Column(at) => Some(events.field(*at).name().clone()),
            Origin::Computed { .. } => None,
        });

        let (read, read_schema, below) = reading(&cut, &events).map_err(failed)?;
        let group_schema = cut.complete().schema();
        let leaf = BatchExec::new(&group_schema, None).map_err(failed)?;
        let rest = cut.rest(&lower, &(Arc::new(leaf) as _)).map_err(failed)?;
        let upper = upper(&logical, &rest.schema()).map_err(failed)?;
        let upper = session::physical(sql, &upper, &tables)?;
        let schema = Arc::new(Schema::new(upper.schema().fields().clone()));
        Ok(Self {
            sql: sql.trim().to_owned(),
            read,
            read_schema,
            below,
            groups,
            group_schema,
            above: [Half::of(rest), Half::of(upper)],
            schema,
            windows: (start, end),
            keys: keys.collect(),
        })
    }

    /// Checks that states are of this query: they may come from a store.
    fn accepts(&self, states: &[RecordBatch]) -> Result<()> {
        let schema = self.state_schema();
        let types = || schema.fields().iter().map(|field| field.data_type());
        let other = states.iter().any(|state| {
            let fields = state.schema_ref().fields();
            !fields.iter().map(|field| field.data_type()).eq(types())
        });
        if other {
            return Err(Error::corrupt("a partial state is of another query")
                .hint("`aggregate.sql` must not change while windows are open"));
        }
        Ok(())
    }

    /// The columns that are read, with the types that they were planned with.
    fn read(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let unknown = || Error::internal("a batch has not the schema that the SQL was planned for");
        let columns = self.read.iter().map(|(at, kind)| {
            let column = rows.columns().get(*at).ok_or_else(unknown)?;
            if columns::plain(column.data_type()) != *kind {
                return Err(unknown());
            }
            groups::as_type(Arc::clone(column), kind).map_err(|e| caret::running(&e, None))
        });
        let columns: Vec<ArrayRef> = columns.collect::<Result<_>>()?;
        batch(&self.read_schema, columns, rows.num_rows())
            .map_err(|error| Error::internal("a batch cannot be read").because(error))
    }
}

impl Aggregate for WindowedAggregate {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn state_schema(&self) -> SchemaRef {
        self.groups.state_schema()
    }

    fn window_columns(&self) -> (usize, usize) {
        self.windows
    }

    fn partial(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        if rows.num_rows() == 0 {
            return Ok(RecordBatch::new_empty(self.state_schema()));
        }
        let rows = self.below.run(self.read(rows)?)?;
        self.groups
            .partial(&rows)
            .map_err(|error| caret::running(&error, None))
    }

    fn merge(&self, states: &[RecordBatch]) -> Result<RecordBatch> {
        self.accepts(states)?;
        self.groups
            .merge(states)
            .map_err(|error| of_a_group(caret::running(&error, None)))
    }

    fn finish(&self, states: &[RecordBatch]) -> Result<RecordBatch> {
        self.accepts(states)?;
        let groups = self
            .groups
            .finish(states, &self.group_schema)
            .and_then(|groups| in_order(groups, self.windows))
            .map_err(|error| of_a_group(caret::running(&error, None)))?;
        let [rest, upper] = &self.above;
        let rows = rest
            .run(groups)
            .and_then(|rows| upper.run(rows))
            .map_err(of_a_group)?;
        batch(&self.schema, rows.columns().to_vec(), rows.num_rows()).map_err(|error| {
            Error::internal("the SQL's result has not the planned schema").because(error)
        })
    }

    fn key_columns(&self, key: &[String]) -> Result<Vec<usize>> {
        let columns = key.iter().map(|name| {
            let at = self.keys.iter().position(|k| k.as_ref() == Some(name));
            at.ok_or_else(|| {
                let message = format!("the SQL does not group by a session's key: column={name}");
                caret::refuse(&self.sql, &message, &["GROUP BY"]).hint(format!(
                    "sessions of different keys would be mixed: write `GROUP BY window_start, \
                     window_end, {name}`, with the column as it is, or take it out of the key"
                ))
            })
        });
        columns.collect()
    }

    fn fingerprint(&self) -> String {
        let mut text = self.sql.clone();
        for field in self.state_schema().fields() {
            text.push('\n');
            text.push_str(&format!("{}: {}", field.name(), field.data_type()));
        }
        text
    }
}

/// What fails on a group is not an event's fault: there is none to reject.
fn of_a_group(error: Error) -> Error {
    if error.kind() != ErrorKind::Data {
        return error;
    }
    Error::config(format!("a figure of a window fails: {}", error.message())).hint(
        "guard the expression, as in `sum(a) / nullif(count(b), 0)` or `try_cast(max(a) AS INT)`",
    )
}

/// The table of the SQL: rows with plain types, and their window.
fn events(rows: &SchemaRef) -> Result<SchemaRef> {
    let mut fields = Vec::with_capacity(rows.fields().len() + 2);
    for field in rows.fields() {
        if WINDOW.contains(&field.name().as_str()) {
            let message = format!(
                "the events have a column with the name of a window's: column={}",
                field.name()
            );
            return Err(Error::config(message).hint("rename it in `transform.sql`"));
        }
        let kind = columns::plain(field.data_type());
        fields.push(Field::new(field.name(), kind, field.is_nullable()));
    }
    for name in WINDOW {
        let kind = DataType::Timestamp(TimeUnit::Microsecond, None);
        fields.push(Field::new(name, kind, false));
    }
    Ok(Arc::new(Schema::new(fields)))
}

type Reading = (Vec<(usize, DataType)>, SchemaRef, Half);

/// What is read of the rows, and the plan from there to what is grouped.
fn reading(cut: &Cut, events: &SchemaRef) -> Result<Reading, DataFusionError> {
    let input = cut.first().input();
    let leaf = leaf_of(input).ok_or_else(|| {
        DataFusionError::Internal("an aggregation that does not read events".to_owned())
    })?;
    let columns: Vec<usize> = match leaf_projection(&leaf) {
        Some(columns) => columns,
        None => (0..events.fields().len()).collect(),
    };
    let schema = Arc::new(events.project(&columns)?);
    let whole = Arc::new(BatchExec::new(&schema, None)?) as _;
    let below = Half::of(cut::replace(input, &leaf, &whole)?);
    let read = columns.into_iter();
    let read = read.map(|at| (at, events.field(at).data_type().clone()));
    Ok((read.collect(), schema, below))
}

fn leaf_projection(leaf: &Arc<dyn ExecutionPlan>) -> Option<Vec<usize>> {
    let leaf = leaf.as_any().downcast_ref::<BatchExec>()?;
    leaf.projection().map(<[usize]>::to_vec)
}

/// The query with a table of groups in the place of its aggregation.
fn upper(plan: &LogicalPlan, groups: &SchemaRef) -> Result<LogicalPlan, DataFusionError> {
    let plan = plan.clone().transform_down(|node| {
        let LogicalPlan::Aggregate(aggregate) = &node else {
            return Ok(Transformed::no(node));
        };
        // Names of its own: those of the groups may be there twice, under different tables.
        let fields = groups.fields().iter().enumerate();
        let fields = fields.map(|(i, field)| {
            Field::new(
                format!("c{i}"),
                field.data_type().clone(),
                field.is_nullable(),
            )
        });
        let table = EventsTable::new(&Arc::new(Schema::new(fields.collect::<Vec<_>>())));
        let source = provider_as_source(Arc::new(table));
        let scan = LogicalPlanBuilder::scan(GROUPS, source, None)?;
        let columns = aggregate.schema.iter().enumerate();
        let columns = columns.map(|(i, (qualifier, field))| {
            Expr::Column(Column::new(Some(GROUPS), format!("c{i}")))
                .alias_qualified(qualifier.cloned(), field.name())
        });
        let made = scan.project(columns.collect::<Vec<_>>())?.build()?;
        Ok(Transformed::new(made, true, TreeNodeRecursion::Jump))
    })?;
    Ok(plan.data)
}

/// The groups by the start and then the end of their window; those of one window as they are.
fn in_order(
    groups: RecordBatch,
    (start, end): (usize, usize),
) -> Result<RecordBatch, DataFusionError> {
    let micros = |at: usize| {
        let column = groups.column(at);
        column
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or_else(|| DataFusionError::Internal("a window is not a timestamp".to_owned()))
    };
    let (starts, ends) = (micros(start)?.values(), micros(end)?.values());
    let window = |row: usize| (starts[row], ends[row]);
    let rows = groups.num_rows();
    if (1..rows).all(|row| window(row - 1) <= window(row)) {
        return Ok(groups);
    }
    let mut order: Vec<u32> = (0..u32::try_from(rows).map_err(|error| {
        DataFusionError::ResourcesExhausted(format!("more than 2^32 groups: {error}"))
    })?)
        .collect();
    order.sort_by_key(|row| window(*row as usize));
    Ok(take_record_batch(&groups, &UInt32Array::from(order))?)
}

/// A part of a plan that maps rows to rows.
#[derive(Debug)]
enum Half {
    Steps(Vec<Step>),
    Plan(Arc<dyn ExecutionPlan>),
}

impl Half {
    fn of(plan: Arc<dyn ExecutionPlan>) -> Self {
        match steps::steps(&plan) {
            Some(steps) => Self::Steps(steps),
            None => Self::Plan(plan),
        }
    }

    fn run(&self, rows: RecordBatch) -> Result<RecordBatch> {
        match self {
            Self::Steps(steps) => steps.iter().try_fold(rows, |rows, step| step.run(rows)),
            Self::Plan(plan) => cut::run(plan, &[rows])
                .and_then(|made| Ok(concat_batches(&plan.schema(), &made)?))
                .map_err(|error| caret::running(&error, None)),
        }
    }
}

#[cfg(test)]
#[path = "aggregate_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "aggregate_refusal_tests.rs"]
mod refusal_tests;

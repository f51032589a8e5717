//! What SQL is an aggregate of windows, and where its columns come from.
//!
//! Rows are grouped by window and keys, batch by batch; states of one group are merged later, and
//! those of sessions after their windows have become one. So nothing below the aggregation may look
//! at the window, nothing above it may look at more than one group, and no figure may depend on where
//! batches begin and end.

use calve_engine::{Error, Result};
use datafusion::{
    common::{
        Column,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Aggregate, Expr, ExprSchemable, LogicalPlan, expr::AggregateFunction},
};

use super::WINDOW;
use crate::{caret, check};

const SHAPE: &str = "write `SELECT window_start, window_end, key, count(*) AS n FROM events GROUP BY window_start, window_end, key`";

/// Functions whose result depends on the order of rows, unless they are told which.
const ORDERED: [&str; 4] = ["first_value", "last_value", "nth_value", "string_agg"];

/// Functions that add values up; DISTINCT values are kept in no order.
const SUMS: [&str; 2] = ["sum", "avg"];

/// Where a column comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is this column of the events.
    Column(usize),
    /// It is computed from columns of the events; whether from the window too.
    Computed { windows: bool },
}

/// Checks that a query, as it was written, is an aggregate of windows. `windows` is where the window
/// columns are in the events.
///
/// # Errors
/// `Config`, with the place and what to do instead.
pub(super) fn windowed(sql: &str, plan: &LogicalPlan, windows: [usize; 2]) -> Result<()> {
    if check::scans(plan) > 1 {
        let message = "an aggregate reads the table `events` exactly once";
        return Err(caret::refuse(sql, message, &["UNION", "INTERSECT", "EXCEPT", "JOIN", "( SELECT"])
            .hint("it cannot join or unite events with events: what a window's rows have in common has to be an aggregate, as in `max(price)`"));
    }
    if check::scans(plan) == 0 {
        return Err(Error::config("the SQL does not read the table `events`").hint(SHAPE));
    }
    check::repeatable(sql, plan)?;
    no_subqueries(sql, plan)?;
    let aggregate = aggregation(sql, plan)?;
    let trace = Trace { sql, windows };
    trace.below(&aggregate.input)?;
    trace.groups(aggregate)?;
    trace.figures(aggregate)
}

/// Where the columns that the query groups by come from.
pub(super) fn origins(aggregate: &Aggregate, windows: [usize; 2]) -> Vec<Origin> {
    let trace = Trace { sql: "", windows };
    let exprs = aggregate.group_expr.iter();
    exprs
        .map(|expr| trace.expr(expr, &aggregate.input))
        .collect()
}

fn no_subqueries(sql: &str, plan: &LogicalPlan) -> Result<()> {
    let mut found = false;
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                found |= matches!(
                    expr,
                    Expr::ScalarSubquery(_)
                        | Expr::InSubquery(_)
                        | Expr::Exists(_)
                        | Expr::SetComparison(_)
                );
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(|error| caret::planning(sql, &[], &error))?;
    if found {
        return Err(refused(sql, "a subquery in an expression", &["( SELECT"]));
    }
    Ok(())
}

fn refused(sql: &str, what: &str, phrases: &[&str]) -> Error {
    let message = format!("{what} cannot be in an aggregate of windows");
    caret::refuse(sql, &message, phrases)
}

/// The aggregation of a query: goes down through what maps the rows of a pane one by one.
///
/// # Errors
/// `Config`, where there is something else.
pub(super) fn aggregation<'a>(sql: &str, plan: &'a LogicalPlan) -> Result<&'a Aggregate> {
    let pane = "rows leave when a window's trigger fires, and each pane is only a part of the result: \
                order and limit what you read from the table";
    match plan {
        LogicalPlan::Projection(node) => aggregation(sql, &node.input),
        LogicalPlan::Filter(node) => aggregation(sql, &node.input),
        LogicalPlan::SubqueryAlias(node) => aggregation(sql, &node.input),
        LogicalPlan::Unnest(node) => aggregation(sql, &node.input),
        LogicalPlan::Aggregate(aggregate) => Ok(aggregate),
        LogicalPlan::Sort(_) => Err(refused(sql, "ORDER BY", &["ORDER BY"]).hint(pane)),
        LogicalPlan::Limit(_) => {
            Err(refused(sql, "LIMIT", &["LIMIT", "OFFSET", "FETCH", "TOP"]).hint(pane))
        }
        LogicalPlan::Distinct(_) => Err(refused(sql, "DISTINCT", &["DISTINCT"])
            .hint("group by the columns instead, beside window_start and window_end")),
        LogicalPlan::Window(_) => Err(window_function(sql)),
        LogicalPlan::TableScan(_) => Err(not_grouped(sql)),
        other => Err(other_operation(sql, other)),
    }
}

fn window_function(sql: &str) -> Error {
    refused(sql, "a window function", &["OVER"]).hint(
        "the window is that of `window:`; figures over several of them are made of the table, when \
         it is read",
    )
}

fn not_grouped(sql: &str) -> Error {
    let message = "the SQL does not group by window_start and window_end";
    caret::refuse(sql, message, &["GROUP BY", "FROM events", "SELECT"]).hint(SHAPE)
}

fn other_operation(sql: &str, plan: &LogicalPlan) -> Error {
    let (what, phrases): (_, &[&str]) = match plan {
        LogicalPlan::Join(_) => ("a join", &["JOIN", "INTERSECT", "EXCEPT"]),
        LogicalPlan::Union(_) => ("UNION", &["UNION"]),
        LogicalPlan::RecursiveQuery(_) => ("a recursive query", &["RECURSIVE"]),
        _ => ("this operation", &[]),
    };
    refused(sql, what, phrases)
        .hint("join and reshape events in `transform.sql`, which runs before the windows")
}

/// Follows columns down to the events.
struct Trace<'a> {
    sql: &'a str,
    windows: [usize; 2],
}

impl Trace<'_> {
    /// Refuses what is not a plain computation on each event, and what looks at the window.
    fn below(&self, plan: &LogicalPlan) -> Result<()> {
        let sql = self.sql;
        match plan {
            LogicalPlan::TableScan(_) => Ok(()),
            LogicalPlan::Projection(node) => self.below(&node.input),
            LogicalPlan::SubqueryAlias(node) => self.below(&node.input),
            LogicalPlan::Unnest(node) => self.below(&node.input),
            LogicalPlan::Filter(node) => {
                if self.expr(&node.predicate, &node.input).windows(self) {
                    return Err(self.looks_at_window("WHERE", &node.predicate));
                }
                self.below(&node.input)
            }
            LogicalPlan::Aggregate(_) => Err(refused(
                sql,
                "an aggregate over aggregates",
                &["( SELECT", "GROUP BY"],
            )
            .hint(
                "aggregate once here, and the rest when the table is read; or count(DISTINCT …)",
            )),
            LogicalPlan::Distinct(_) => Err(refused(sql, "DISTINCT", &["DISTINCT"])
                .hint("count(DISTINCT …) counts different values")),
            LogicalPlan::Window(_) => Err(window_function(sql)),
            LogicalPlan::Sort(_) => Err(refused(sql, "ORDER BY", &["ORDER BY"])
                .hint("tell the function its order, as in `first_value(price ORDER BY ts)`")),
            LogicalPlan::Limit(_) => Err(refused(
                sql,
                "LIMIT",
                &["LIMIT", "OFFSET", "FETCH", "TOP"],
            )
            .hint("events come in batches that are cut anywhere; write a condition instead")),
            other => Err(other_operation(sql, other)),
        }
    }

    fn groups(&self, aggregate: &Aggregate) -> Result<()> {
        let mut found = [false; 2];
        for expr in &aggregate.group_expr {
            if matches!(expr, Expr::GroupingSet(_)) {
                return Err(refused(
                    self.sql,
                    "GROUPING SETS",
                    &["GROUPING SETS", "ROLLUP", "CUBE"],
                )
                .hint("each row of the table belongs to one window and one group; make a pipeline of each grouping"));
            }
            match self.expr(expr, &aggregate.input) {
                Origin::Column(at) => {
                    for (found, window) in found.iter_mut().zip(self.windows) {
                        *found |= at == window;
                    }
                }
                Origin::Computed { windows: true } => {
                    return Err(self.looks_at_window("GROUP BY", expr));
                }
                Origin::Computed { windows: false } => {}
            }
        }
        match found {
            [true, true] => Ok(()),
            [false, false] => Err(not_grouped(self.sql)),
            [start, _] => {
                let missing = WINDOW[usize::from(start)];
                let message = format!("the SQL does not group by {missing}");
                Err(caret::refuse(self.sql, &message, &["GROUP BY", "SELECT"]).hint(SHAPE))
            }
        }
    }

    fn figures(&self, aggregate: &Aggregate) -> Result<()> {
        for expr in &aggregate.aggr_expr {
            let mut expr = expr;
            while let Expr::Alias(alias) = expr {
                expr = &alias.expr;
            }
            let Expr::AggregateFunction(function) = expr else {
                return Err(Error::internal(
                    "an aggregation without an aggregate function",
                ));
            };
            if self.expr(expr, &aggregate.input).windows(self) {
                return Err(self.looks_at_window("an aggregate function", expr));
            }
            self.repeats(function, &aggregate.input)?;
        }
        Ok(())
    }

    /// Refuses a figure that may differ when the same states are merged once more.
    fn repeats(&self, function: &AggregateFunction, input: &LogicalPlan) -> Result<()> {
        let name = function.func.name();
        let names: Vec<&str> = std::iter::once(name)
            .chain(function.func.aliases().iter().map(String::as_str))
            .collect();
        let params = &function.params;
        let distinct = if params.distinct { "DISTINCT " } else { "" };
        let ordered = ORDERED.contains(&name) || (name == "array_agg" && params.distinct);
        if ordered && params.order_by.is_empty() {
            let message = format!(
                "the result depends on the order in which states are merged: function={name}"
            );
            return Err(caret::refuse(self.sql, &message, &names).hint(format!(
                "say which order, as in `{name}({distinct}… ORDER BY …)`"
            )));
        }
        let floating = |arg: &Expr| {
            arg.get_type(input.schema())
                .is_ok_and(|kind| kind.is_floating())
        };
        if params.distinct && SUMS.contains(&name) && params.args.iter().any(floating) {
            let message = format!(
                "the last digits depend on the order in which values are added: function={name}"
            );
            return Err(caret::refuse(self.sql, &message, &names)
                .hint("of DISTINCT values only whole and decimal numbers can be added, as in `sum(DISTINCT CAST(x AS DECIMAL(18, 3)))`"));
        }
        Ok(())
    }

    fn looks_at_window(&self, place: &str, expr: &Expr) -> Error {
        let column = Self::window_in(expr);
        let message = format!("{place} computes with the window: column={column}");
        caret::refuse(self.sql, &message, &[column]).hint(
            "a session's window changes when sessions merge, so only the SELECT list and HAVING, \
             above the aggregation, may compute with it; group by window_start and window_end as they \
             are",
        )
    }

    /// The window column that an expression names, as far as it names it.
    fn window_in(expr: &Expr) -> &'static str {
        let columns = expr.column_refs();
        let named = WINDOW
            .into_iter()
            .find(|name| columns.iter().any(|column| column.name == *name));
        named.unwrap_or(WINDOW[0])
    }

    fn expr(&self, expr: &Expr, input: &LogicalPlan) -> Origin {
        match expr {
            Expr::Alias(alias) => self.expr(&alias.expr, input),
            Expr::Column(column) => self.named(column, input),
            computed => {
                let columns = computed.column_refs();
                let mut columns = columns.into_iter();
                Origin::Computed {
                    windows: columns.any(|column| self.named(column, input).windows(self)),
                }
            }
        }
    }

    fn named(&self, column: &Column, input: &LogicalPlan) -> Origin {
        let at = input.schema().maybe_index_of_column(column);
        at.map_or(Origin::Computed { windows: true }, |at| self.at(at, input))
    }

    /// Column `at` of a plan. What is not known counts as computed from the window.
    fn at(&self, at: usize, plan: &LogicalPlan) -> Origin {
        match plan {
            LogicalPlan::TableScan(scan) => Origin::Column(match &scan.projection {
                Some(columns) => columns[at],
                None => at,
            }),
            LogicalPlan::Projection(node) => self.expr(&node.expr[at], &node.input),
            LogicalPlan::Filter(node) => self.at(at, &node.input),
            LogicalPlan::SubqueryAlias(node) => self.at(at, &node.input),
            LogicalPlan::Unnest(node) => {
                let from = node.dependency_indices[at];
                let origin = self.at(from, &node.input);
                let unnested = node.list_type_columns.iter().any(|(i, _)| *i == from)
                    || node.struct_type_columns.contains(&from);
                if unnested {
                    let windows = origin.windows(self);
                    return Origin::Computed { windows };
                }
                origin
            }
            _ => Origin::Computed { windows: true },
        }
    }
}

impl Origin {
    fn windows(self, trace: &Trace<'_>) -> bool {
        match self {
            Self::Column(at) => trace.windows.contains(&at),
            Self::Computed { windows } => windows,
        }
    }
}

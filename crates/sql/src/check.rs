//! What a transform's SQL may not do. A transform sees one batch after the other, and batches are
//! cut anywhere; so each row of the result must come from one event alone (and from lookup tables),
//! and must be the same when the event is replayed.

use calve_engine::{Error, Result};
use datafusion::{
    common::{
        JoinType,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, LogicalPlan, Volatility},
};

use crate::{caret, session};

/// Checks that the plan maps each event on its own.
///
/// # Errors
/// `Config`, with the place and what to do instead.
pub(crate) fn stateless(sql: &str, plan: &LogicalPlan) -> Result<()> {
    repeatable(sql, plan)?;
    if reads_events(sql, plan)? {
        return Ok(());
    }
    Err(Error::config("the SQL does not read the table `events`")
        .hint("write `SELECT … FROM events`"))
}

/// Checks that the plan only computes, and computes the same whenever it runs.
pub(crate) fn repeatable(sql: &str, plan: &LogicalPlan) -> Result<()> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        if matches!(
            node,
            LogicalPlan::Ddl(_)
                | LogicalPlan::Dml(_)
                | LogicalPlan::Copy(_)
                | LogicalPlan::Statement(_)
                | LogicalPlan::Explain(_)
                | LogicalPlan::Analyze(_)
                | LogicalPlan::DescribeTable(_)
        ) {
            refused = Some(session::not_a_query(sql));
            return Ok(TreeNodeRecursion::Stop);
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(function) = expr
                    && function.func.signature().volatility != Volatility::Immutable
                {
                    refused = Some(unrepeatable(
                        sql,
                        function.func.name(),
                        function.func.aliases(),
                    ));
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(|error| caret::planning(sql, &[], &error))?;
    refused.map_or(Ok(()), Err)
}

fn unrepeatable(sql: &str, name: &str, aliases: &[String]) -> Error {
    let mut names = vec![name];
    names.extend(aliases.iter().map(String::as_str));
    let message = format!("this function gives another result each time: function={name}");
    caret::refuse(sql, &message, &names).hint(
        "after a restart events are read again, and must give the same rows: take the time or the \
         identity from a column of the event",
    )
}

/// Number of times the plan reads `events`, subqueries included.
pub(crate) fn scans(plan: &LogicalPlan) -> usize {
    let mut count = 0;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            count += usize::from(session::is_events(&scan.source));
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .expect("the closure does not fail");
    count
}

/// Whether the rows of a plan come from events, each from one; refuses what would mix events.
fn reads_events(sql: &str, plan: &LogicalPlan) -> Result<bool> {
    subqueries_do_not(sql, plan)?;
    let mut from_events = Vec::new();
    for input in plan.inputs() {
        from_events.push(reads_events(sql, input)?);
    }
    let any = from_events.contains(&true);
    match plan {
        LogicalPlan::TableScan(scan) => Ok(session::is_events(&scan.source)),
        _ if !any => Ok(false),
        LogicalPlan::Join(join) => joined(sql, join.join_type, &from_events),
        LogicalPlan::Union(_) if from_events.contains(&false) => Err(caret::refuse(
            sql,
            "a UNION of events with other tables would repeat the other rows in each batch",
            &["UNION"],
        )
        .hint("read from `events` on both sides")),
        LogicalPlan::Aggregate(_) => Err(per_batch(
            sql,
            "aggregates and GROUP BY",
            &["GROUP BY", "HAVING", "count", "sum", "avg", "min", "max"],
        )),
        LogicalPlan::Distinct(_) => Err(per_batch(
            sql,
            "DISTINCT",
            &["DISTINCT", "UNION", "INTERSECT", "EXCEPT"],
        )),
        LogicalPlan::Window(_) => Err(per_batch(sql, "window functions", &["OVER"])),
        LogicalPlan::Sort(_) => Err(per_batch(sql, "ORDER BY", &["ORDER BY"])),
        LogicalPlan::Limit(_) => Err(per_batch(
            sql,
            "LIMIT",
            &["LIMIT", "OFFSET", "FETCH", "TOP"],
        )),
        LogicalPlan::RecursiveQuery(_) => Err(per_batch(sql, "recursive queries", &["RECURSIVE"])),
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::Unnest(_)
        | LogicalPlan::Subquery(_) => Ok(true),
        other => Err(Error::config(format!(
            "a transform cannot do this: operation={}",
            other
                .display()
                .to_string()
                .split_whitespace()
                .next()
                .unwrap_or_default()
        ))),
    }
}

fn per_batch(sql: &str, what: &str, phrases: &[&str]) -> Error {
    let message = format!("{what} would work on one batch at a time, not on all events");
    caret::refuse(sql, &message, phrases).hint(
        "`transform.sql` maps each event on its own; windowed aggregates come with `aggregate.sql`, \
         live figures with `monitor`; over lookup tables it is allowed in a subquery",
    )
}

fn joined(sql: &str, kind: JoinType, from_events: &[bool]) -> Result<bool> {
    let [left, right] = from_events else {
        return Err(Error::internal("a join has not two inputs"));
    };
    if *left && *right {
        return Err(per_batch(
            sql,
            "a join of events with events",
            &["JOIN", "INTERSECT", "EXCEPT"],
        ));
    }
    let keeps = match kind {
        JoinType::Inner => true,
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => *left,
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => *right,
        JoinType::Full => false,
    };
    if keeps {
        return Ok(true);
    }
    Err(caret::refuse(
        sql,
        "this join would repeat the lookup table's rows in each batch",
        &["FULL", "RIGHT", "LEFT", "JOIN"],
    )
    .hint("write `FROM events LEFT JOIN lookup ON …` or `FROM events JOIN lookup ON …`"))
}

/// Subqueries in expressions may read lookup tables only.
fn subqueries_do_not(sql: &str, plan: &LogicalPlan) -> Result<()> {
    let mut mixes = false;
    plan.apply_expressions(|expr| {
        expr.apply(|expr| {
            let inner = match expr {
                Expr::ScalarSubquery(subquery) => Some(subquery),
                Expr::InSubquery(within) => Some(&within.subquery),
                Expr::Exists(exists) => Some(&exists.subquery),
                Expr::SetComparison(comparison) => Some(&comparison.subquery),
                _ => None,
            };
            mixes |= inner.is_some_and(|s| scans(&s.subquery) > 0);
            Ok(TreeNodeRecursion::Continue)
        })
    })
    .map_err(|error| caret::planning(sql, &[], &error))?;
    if mixes {
        return Err(per_batch(
            sql,
            "a subquery over events",
            &["( SELECT", "SELECT"],
        ));
    }
    Ok(())
}

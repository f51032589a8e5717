//! Subqueries over lookup tables that do not depend on the event are constants: they are computed
//! once, when the SQL is planned, and then the plan often needs no join at all.

use arrow::array::{Array, RecordBatch};
use calve_engine::Result;
use datafusion::{
    common::{
        DataFusionError, ScalarValue, exec_err,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{Expr, LogicalPlan, Subquery, expr_rewriter::NamePreserver, lit},
};

use crate::{caret, session};

/// `IN` lists up to this length become constants; longer ones stay joins.
const IN_VALUES: usize = 4_096;

/// Replaces what is constant.
///
/// # Errors
/// `Config` when a subquery fails, or has several rows where one is needed.
pub(crate) fn subqueries(sql: &str, plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up(|node| {
        let names = NamePreserver::new(&node);
        let node = node.map_expressions(|expr| {
            let name = names.save(&expr);
            let expr = expr.transform_up(constant)?;
            Ok(expr.update_data(|expr| name.restore(expr)))
        })?;
        if !node.transformed {
            return Ok(node);
        }
        node.map_data(LogicalPlan::recompute_schema)
    })
    .map(|plan| plan.data)
    .map_err(|error| caret::planning(sql, &[], &error))
}

fn constant(expr: Expr) -> Result<Transformed<Expr>, DataFusionError> {
    match expr {
        Expr::ScalarSubquery(subquery) if subquery.outer_ref_columns.is_empty() => {
            Ok(Transformed::yes(lit(scalar(&subquery)?)))
        }
        Expr::Exists(exists) if exists.subquery.outer_ref_columns.is_empty() => {
            let rows: usize = run(&exists.subquery)?
                .iter()
                .map(RecordBatch::num_rows)
                .sum();
            Ok(Transformed::yes(lit((rows > 0) != exists.negated)))
        }
        Expr::InSubquery(within) if within.subquery.outer_ref_columns.is_empty() => {
            let batches = run(&within.subquery)?;
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if rows > IN_VALUES {
                return Ok(Transformed::no(Expr::InSubquery(within)));
            }
            let mut list = Vec::with_capacity(rows);
            for batch in &batches {
                for row in 0..batch.num_rows() {
                    list.push(lit(ScalarValue::try_from_array(batch.column(0), row)?));
                }
            }
            if list.is_empty() {
                return Ok(Transformed::yes(lit(within.negated)));
            }
            Ok(Transformed::yes(within.expr.in_list(list, within.negated)))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn run(subquery: &Subquery) -> Result<Vec<RecordBatch>, DataFusionError> {
    let plan = session::block_on(session::state().create_physical_plan(&subquery.subquery))?;
    session::collect(&plan)
}

fn scalar(subquery: &Subquery) -> Result<ScalarValue, DataFusionError> {
    let batches = run(subquery)?;
    let mut rows = batches.iter().filter(|batch| batch.num_rows() > 0);
    let value = match rows.next() {
        None => ScalarValue::try_from(subquery.subquery.schema().field(0).data_type())?,
        Some(batch) if batch.num_rows() == 1 && batch.column(0).len() == 1 => {
            ScalarValue::try_from_array(batch.column(0), 0)?
        }
        Some(_) => return exec_err!("a subquery that stands for one value has several rows"),
    };
    if rows.next().is_some() {
        return exec_err!("a subquery that stands for one value has several rows");
    }
    Ok(value)
}

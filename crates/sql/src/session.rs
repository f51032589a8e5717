//! One DataFusion session for the process, built when it is first needed (tens of milliseconds), and
//! the way from SQL text to plans over named tables. It knows no catalog, no file and no variable:
//! a name that was not given to it does not exist.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, OnceLock},
    thread,
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use calve_engine::{Error, Result};
use datafusion::{
    catalog::TableProvider,
    common::{TableReference, config::ConfigOptions, plan_datafusion_err},
    datasource::{DefaultTableSource, provider_as_source},
    error::DataFusionError,
    execution::{SessionState, SessionStateBuilder, TaskContext},
    logical_expr::{
        AggregateUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF,
        planner::{ContextProvider, ExprPlanner, TypePlanner},
    },
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
    prelude::SessionConfig,
    sql::{
        parser::{DFParserBuilder, Statement},
        planner::{ParserOptions, SqlToRel},
        sqlparser::ast::Statement as SqlStatement,
    },
};
use futures::TryStreamExt;

use crate::{caret, leaf::EventsTable};

/// Rows in the batches that operators make between leaf and root.
const BATCH_ROWS: usize = 16_384;

/// The settings that every use of SQL shares: one thread, rows in order, plain strings, places in
/// errors.
pub(crate) fn config() -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(1)
        .with_batch_size(BATCH_ROWS)
        .with_information_schema(false)
        .with_round_robin_repartition(false)
        .with_collect_statistics(false);
    let options = config.options_mut();
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_aggregation = false;
    // Partial states must be grouped states, whatever the number of groups.
    options
        .execution
        .skip_partial_aggregation_probe_ratio_threshold = 2.0;
    config
}

/// The session.
pub(crate) fn state() -> &'static SessionState {
    static STATE: OnceLock<SessionState> = OnceLock::new();
    STATE.get_or_init(|| {
        SessionStateBuilder::new_with_default_features()
            .with_config(config())
            .build()
    })
}

/// The session without the rules that make another aggregation of an aggregation: one that is cut in
/// two keeps its groups and functions as they are written.
fn literal() -> &'static SessionState {
    static STATE: OnceLock<SessionState> = OnceLock::new();
    const REWRITES: [&str; 2] = [
        "single_distinct_aggregation_to_group_by",
        "eliminate_group_by_constant",
    ];
    STATE.get_or_init(|| {
        let rules = state().optimizers().iter();
        let rules = rules.filter(|rule| !REWRITES.contains(&rule.name()));
        let rules = rules.cloned().collect();
        SessionStateBuilder::new_from_existing(state().clone())
            .with_optimizer_rules(rules)
            .build()
    })
}

/// What plans of the session run in.
pub(crate) fn task() -> Arc<TaskContext> {
    static TASK: OnceLock<Arc<TaskContext>> = OnceLock::new();
    Arc::clone(TASK.get_or_init(|| state().task_ctx()))
}

/// Runs a future to its end, on this thread where that may be done, else on one of its own.
pub(crate) fn block_on<F>(future: F) -> F::Output
where
    F: Future + Send,
    F::Output: Send,
{
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime without drivers needs nothing from the system");
    }
    if tokio::runtime::Handle::try_current().is_err() {
        return RUNTIME.with(|runtime| runtime.block_on(future));
    }
    thread::scope(|scope| {
        let run = scope.spawn(|| RUNTIME.with(|runtime| runtime.block_on(future)));
        run.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The tables that one SQL text may name.
pub(crate) struct Tables(BTreeMap<String, Arc<dyn TableSource>>);

impl Tables {
    /// The table `events`, of this schema.
    pub(crate) fn events(name: &str, schema: &SchemaRef) -> Self {
        let source = provider_as_source(Arc::new(EventsTable::new(schema)));
        Self(BTreeMap::from([(name.to_owned(), source)]))
    }

    /// One more table; false where the name is taken.
    pub(crate) fn insert(&mut self, name: &str, table: Arc<dyn TableProvider>) -> bool {
        let source = provider_as_source(table);
        self.0.insert(name.to_owned(), source).is_none()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

/// Whether a scan's source is the table `events`.
pub(crate) fn is_events(source: &Arc<dyn TableSource>) -> bool {
    source
        .as_any()
        .downcast_ref::<DefaultTableSource>()
        .is_some_and(|s| s.table_provider.as_any().is::<EventsTable>())
}

impl ContextProvider for Tables {
    fn get_table_source(
        &self,
        name: TableReference,
    ) -> datafusion::common::Result<Arc<dyn TableSource>> {
        let found = match &name {
            TableReference::Bare { table } => self.0.get(table.as_ref()),
            TableReference::Partial { .. } | TableReference::Full { .. } => None,
        };
        found
            .cloned()
            .ok_or_else(|| plan_datafusion_err!("table '{name}' not found"))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        state().expr_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        None
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        state().scalar_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        state().aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        state().window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        state().config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        state().scalar_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        state().aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        state().window_functions().keys().cloned().collect()
    }
}

/// The one statement of a text.
///
/// # Errors
/// `Config` when it does not parse, or when it is none or several.
pub(crate) fn parse(sql: &str) -> Result<Statement> {
    let statements = DFParserBuilder::new(sql)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| caret::planning(sql, &[], &error))?;
    let mut statements = statements.into_iter();
    match (statements.next(), statements.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Error::config("the SQL is empty")),
        (Some(_), Some(_)) => Err(Error::config("more than one SQL statement")
            .hint("write one SELECT, without `;` in between")),
    }
}

/// Plans a query over `tables`; nothing is optimised yet.
///
/// # Errors
/// `Config`, with the line and a caret below the place, where the SQL is wrong or no query.
pub(crate) fn logical(sql: &str, tables: &Tables) -> Result<LogicalPlan> {
    let statement = parse(sql)?;
    let Statement::Statement(query) = &statement else {
        return Err(not_a_query(sql));
    };
    if !matches!(query.as_ref(), SqlStatement::Query(_)) {
        return Err(not_a_query(sql));
    }
    let options = ParserOptions::new()
        .with_collect_spans(true)
        .with_map_string_types_to_utf8view(false);
    SqlToRel::new_with_options(tables, options)
        .statement_to_plan(statement)
        .map_err(|error| caret::planning(sql, &tables.names(), &error))
}

pub(crate) fn not_a_query(sql: &str) -> Error {
    let word = sql.split_whitespace().next().unwrap_or_default();
    caret::refuse(
        sql,
        &format!(
            "only SELECT is allowed here: statement={}",
            word.to_uppercase()
        ),
        &[word],
    )
    .hint("the SQL of a pipeline reads and computes; it does not create, write, set or explain")
}

/// Optimises a plan and makes it executable.
///
/// # Errors
/// `Config`, as [`logical`].
pub(crate) fn physical(
    sql: &str,
    plan: &LogicalPlan,
    tables: &Tables,
) -> Result<Arc<dyn ExecutionPlan>> {
    block_on(state().create_physical_plan(plan))
        .map_err(|error| caret::planning(sql, &tables.names(), &error))
}

/// As [`physical`], of an aggregation that is to be cut in two.
///
/// # Errors
/// `Config`, as [`logical`].
pub(crate) fn aggregation(
    sql: &str,
    plan: &LogicalPlan,
    tables: &Tables,
) -> Result<Arc<dyn ExecutionPlan>> {
    block_on(literal().create_physical_plan(plan))
        .map_err(|error| caret::planning(sql, &tables.names(), &error))
}

/// The plan with the types of all expressions settled, as a physical plan has them.
///
/// # Errors
/// `Config`, as [`logical`].
pub(crate) fn typed(sql: &str, plan: LogicalPlan, tables: &Tables) -> Result<LogicalPlan> {
    let state = state();
    state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})
        .map_err(|error| caret::planning(sql, &tables.names(), &error))
}

/// Runs a plan: its partitions one after the other, in order.
pub(crate) fn collect(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<RecordBatch>, DataFusionError> {
    let run = async {
        let mut batches = Vec::new();
        for partition in 0..plan.output_partitioning().partition_count() {
            let stream = plan.execute(partition, task())?;
            batches.extend(stream.try_collect::<Vec<_>>().await?);
        }
        Ok(batches)
    };
    block_on(run)
}

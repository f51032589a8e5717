//! `calve query`: any query over tables that the caller gives, read-only, within a memory limit. It
//! cannot create, write, set, or name a file.

use std::{collections::HashSet, num::NonZeroUsize, sync::Arc, thread};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use calve_engine::{Error, ErrorKind, Result};
use datafusion::{
    catalog::{MemorySchemaProvider, SchemaProvider, TableProvider},
    common::DataFusionError,
    execution::{SessionStateBuilder, runtime_env::RuntimeEnvBuilder},
    physical_plan::{SendableRecordBatchStream, execute_stream},
    prelude::{SQLOptions, SessionContext},
};
use futures::{Stream, StreamExt, TryStreamExt};

use crate::{caret, session};

/// The catalog that holds the tables, and the schema of tables named without one.
const CATALOG: &str = "calve";
const SCHEMA: &str = "main";

/// How to run a query.
#[derive(Clone, Debug)]
pub struct QueryOptions {
    /// Bytes that sorting, grouping and joining may hold before they spill or fail.
    pub memory_bytes: usize,
    /// Threads that a query uses.
    pub threads: NonZeroUsize,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// A query's result on its way.
pub struct QueryResult {
    schema: SchemaRef,
    stream: SendableRecordBatchStream,
}

impl QueryResult {
    /// The result's columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The rows as they come.
    pub fn into_stream(self) -> impl Stream<Item = Result<RecordBatch>> + Send + Unpin {
        self.stream
            .map(|batch| batch.map_err(|error| failed(&error)))
    }

    /// All rows.
    ///
    /// # Errors
    /// As the stream's.
    pub async fn collect(self) -> Result<Vec<RecordBatch>> {
        self.into_stream().try_collect().await
    }
}

/// Starts a query over `tables`, named `schema.table` or `table`. Call within a tokio runtime.
///
/// # Errors
/// `Config` when the SQL is wrong (with a caret below the place) or would do anything else than read.
pub async fn query(
    sql: &str,
    tables: Vec<(String, Arc<dyn TableProvider>)>,
    options: &QueryOptions,
) -> Result<QueryResult> {
    // One statement, before anything else is looked at.
    session::parse(sql)?;
    let mut names: Vec<String> = tables.iter().map(|(name, _)| name.clone()).collect();
    let context = context(tables, options)?;
    let plan = context
        .state()
        .create_logical_plan(sql)
        .await
        .map_err(|error| {
            names.extend(
                names
                    .clone()
                    .iter()
                    .filter_map(|n| n.rsplit('.').next().map(str::to_owned)),
            );
            caret::planning(sql, &names, &error)
        })?;
    let allowed = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    if allowed.verify_plan(&plan).is_err() {
        let word = sql.split_whitespace().next().unwrap_or_default();
        return Err(caret::refuse(
            sql,
            &format!("a query may only read: statement={}", word.to_uppercase()),
            &[word],
        )
        .hint("`calve query` runs SELECT, SHOW, DESCRIBE and EXPLAIN; the tables are written by pipelines"));
    }
    let planned = context.state().create_physical_plan(&plan).await;
    let physical = planned.map_err(|error| caret::planning(sql, &names, &error))?;
    let schema = physical.schema();
    let stream = execute_stream(physical, context.task_ctx()).map_err(|error| failed(&error))?;
    Ok(QueryResult { schema, stream })
}

fn context(
    tables: Vec<(String, Arc<dyn TableProvider>)>,
    options: &QueryOptions,
) -> Result<SessionContext> {
    let config = session::config()
        .with_target_partitions(options.threads.get())
        .with_round_robin_repartition(true)
        .with_batch_size(8_192)
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(true)
        .with_default_catalog_and_schema(CATALOG, SCHEMA);
    let refused =
        |error: DataFusionError| Error::internal("a query's session cannot be made").because(error);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_limit(options.memory_bytes, 1.0)
        .build_arc()
        .map_err(refused)?;
    let state = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .build();
    let context = SessionContext::new_with_state(state);
    let catalog = context
        .catalog(CATALOG)
        .ok_or_else(|| Error::internal("a query's session has no catalog"))?;
    let mut taken = HashSet::new();
    for (name, table) in tables {
        let (schema, table_name) = name.rsplit_once('.').unwrap_or((SCHEMA, name.as_str()));
        if !taken.insert((schema.to_owned(), table_name.to_owned())) {
            return Err(Error::config(format!(
                "two tables have one name: table={name}"
            )));
        }
        let provider = if let Some(provider) = catalog.schema(schema) {
            provider
        } else {
            let provider: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
            catalog
                .register_schema(schema, Arc::clone(&provider))
                .map_err(refused)?;
            provider
        };
        provider
            .register_table(table_name.to_owned(), table)
            .map_err(refused)?;
    }
    Ok(context)
}

/// What went wrong while a query ran. Unlike a pipeline's, its errors may speak of values: whoever
/// asks may read the table.
fn failed(error: &DataFusionError) -> Error {
    let root = error.find_root();
    let text = root.message();
    let text = text.lines().next().unwrap_or_default();
    match root {
        DataFusionError::ResourcesExhausted(_) => Error::config(format!(
            "the query needs more memory than it may use: {text}"
        ))
        .hint("select fewer columns or rows, or raise the limit"),
        DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) => {
            Error::unavailable(format!("the query failed: {text}"))
        }
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => {
            Error::new(ErrorKind::Data, format!("the query failed: {text}"))
        }
        _ => Error::internal(format!("the query failed: {text}")),
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;

//! From the sections `window` and `aggregate` to what the engine runs.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use calve_engine::{
    Aggregate, Error, Result,
    event_time::EventTime,
    windows::{LateRows, Windowed},
};
use calve_sql::WindowedAggregate;
use serde_json::json;

use crate::{
    config::{PipelineFile, SinkConfig, beside},
    shares::Shares,
};

/// The windows of a pipeline, planned for the rows that its transform makes; none where it has none.
///
/// # Errors
/// `Config` when the rows lack a column that windows need, or the aggregate's SQL is wrong.
pub(crate) fn plan(file: &PipelineFile, rows: &SchemaRef) -> Result<Option<Windowed>> {
    let Some(window) = &file.window else {
        return Ok(None);
    };
    let strategy = window.strategy()?;
    let key = columns(rows, &window.key).map_err(|error| error.context("window.key"))?;
    let aggregate: Option<Arc<dyn Aggregate>> = match &file.aggregate {
        Some(config) => {
            let planned = WindowedAggregate::plan(&config.sql, Arc::clone(rows))
                .map_err(|error| error.context("aggregate.sql"))?;
            Some(Arc::new(planned))
        }
        None => None,
    };
    let key_in_states = match &aggregate {
        Some(aggregate) => aggregate
            .key_columns(&window.key)
            .map_err(|error| error.context("window.key"))?,
        None => Vec::new(),
    };
    Ok(Some(Windowed {
        time: time(file, rows)?,
        strategy,
        key,
        rows: aggregate.is_none().then(|| Arc::clone(rows)),
        aggregate,
        key_in_states,
        late: window.late(),
        pane_columns: window.pane_columns,
        memory_bytes: Shares::of(file).windows as usize,
    }))
}

fn time(file: &PipelineFile, rows: &SchemaRef) -> Result<Option<EventTime>> {
    let named = file.window.as_ref().and_then(|w| w.column.as_deref());
    let of_events = file.event_time.as_ref();
    let Some(column) = named.or_else(|| of_events.map(|time| time.column.as_str())) else {
        return Ok(None);
    };
    let unit = of_events.and_then(|time| time.unit).map(Into::into);
    EventTime::of(rows, column, unit).map(Some).map_err(|error| {
        if rows.index_of(column).is_ok() {
            return error.context("window.column");
        }
        let names: Vec<&str> = rows.fields().iter().map(|f| f.name().as_str()).collect();
        Error::config(format!(
            "windows need the event time of the rows, and the transform leaves it out: column={column}"
        ))
        .hint(format!(
            "select it in transform.sql, or name another with `window.column`; the columns are {}",
            names.join(", ")
        ))
    })
}

fn columns(rows: &SchemaRef, names: &[String]) -> Result<Vec<usize>> {
    let found = names.iter().map(|name| {
        rows.index_of(name).map_err(|_| {
            let has: Vec<&str> = rows.fields().iter().map(|f| f.name().as_str()).collect();
            Error::config(format!("no such column of the rows: column={name}"))
                .hint(format!("the columns are {}", has.join(", ")))
        })
    });
    found.collect()
}

/// What of the windows must not change while some are open: triggers and lateness may.
pub(crate) fn fingerprint(file: &PipelineFile, windowed: Option<&Windowed>) -> String {
    let (Some(window), Some(windowed)) = (&file.window, windowed) else {
        return String::new();
    };
    let parts = json!({
        "windows": windowed.strategy.windowing,
        "key": window.key,
        "column": window.column,
        "accumulation": windowed.strategy.accumulation,
        "late": format!("{:?}", windowed.late),
        "pane_columns": windowed.pane_columns,
        "aggregate": windowed.aggregate.as_ref().map(|aggregate| aggregate.fingerprint()),
    });
    parts.to_string()
}

/// The table of late rows, where they have one of their own: the sink's, with `_late` behind its name.
pub(crate) fn late_sink(file: &PipelineFile) -> Option<SinkConfig> {
    let window = file.window.as_ref()?;
    // Nothing is ever late for the window of all time.
    if window.late() != LateRows::Side || window.global.is_some() {
        return None;
    }
    // The partitions of an aggregate's table are made of columns that the rows need not have.
    let own = file.aggregate.is_some();
    Some(match &file.sink {
        SinkConfig::Iceberg(config) => {
            let mut config = config.clone();
            config.table.push_str("_late");
            config.changes = None;
            if own {
                config.partition_by.clear();
                config.sort_by.clear();
            }
            SinkConfig::Iceberg(config)
        }
        SinkConfig::Parquet(config) => {
            let mut config = config.clone();
            let name = config.path.trim_end_matches('/').rsplit('/').next();
            config.path = beside(&config.path, &format!("{}_late", name.unwrap_or("table")));
            if own {
                config.layout = None;
            }
            SinkConfig::Parquet(config)
        }
    })
}

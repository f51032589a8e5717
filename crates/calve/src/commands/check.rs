//! `calve check FILE`: validates everything that can be without writing.
//!
//! Columns, SQL, monitors and layout are planned when the schema of the events is known; where it is
//! inferred at the start, `--connect` reads the first events and infers it now.

use std::{path::PathBuf, time::Duration};

use arrow::datatypes::{Schema, SchemaRef};
use calve_connect::{formats, sources};
use calve_engine::{Result, event_time::EventTime, stores::is_remote};
use calve_lake::{
    changes::{self, ChangesConfig, Deletes, Mode},
    iceberg,
    parquet::ParquetLayout,
};
use calve_model::Offsets;
use calve_sql::{Lookup, Monitors, SqlTransform};
use clap::Args;

use crate::{
    config::{self, PipelineFile, SinkConfig},
    out,
    pipeline::{self, SHARD, hidden},
    schema::{is_log_by_offset, why_no_order, with_evolution, with_offsets, with_rescued},
    shares::Shares,
    windows,
};

/// How long to wait for the first events.
const PATIENCE: Duration = Duration::from_secs(10);

/// Validates a pipeline file and writes nothing.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// The pipeline file
    file: PathBuf,
    /// Also reach the source and the catalog, and read the first events where columns are inferred
    #[arg(long)]
    connect: bool,
}

/// Runs the command.
///
/// # Errors
/// `Config` or `Schema` for what is wrong; with `connect` also those of the source and the catalog.
pub(crate) async fn run(args: CheckArgs) -> Result<()> {
    let mut file = config::load(&args.file)?;
    let context = pipeline::context(&file);
    if args.connect || !file.source.asks_the_server() {
        let source = file.source.clone();
        let described = source.describe(&mut file.format, &context).await;
        described.map_err(|error| error.context("source"))?;
    }
    let mut events = known_schema(&file)?;
    let declared = events.is_some();
    if args.connect {
        file.source
            .check_connect(&context)
            .await
            .map_err(|error| error.context("source"))?;
        // What standard input gives can be read only once, and what is acknowledged must be written.
        let source = &file.source;
        if events.is_none() && source.can_replay() && !source.acknowledges() {
            let source = file.source.build(&file.format, &context)?;
            let beginning = Offsets::default();
            let first = sources::peek(source, &beginning);
            // A source that is followed may have nothing yet.
            if let Ok(first) = tokio::time::timeout(PATIENCE, first).await {
                events = Some(formats::infer::infer(&file.format, &first?.0)?);
            }
        }
    }
    let rescued = file.schema.rescued.as_deref();
    let events = events
        .map(|events| with_rescued(events, rescued))
        .transpose()?;
    let planned = events
        .as_ref()
        .map(|events| plan(&file, events))
        .transpose()?;
    let table = match (&planned, &events) {
        (Some(planned), Some(events)) => {
            if let Some(sink) = windows::late_sink(&file) {
                table(&file, &sink, &planned.rows, &[], args.connect)
                    .await
                    .map_err(|error| error.context("the table of late rows"))?;
            }
            table(
                &file,
                &file.sink,
                &planned.table,
                &hidden(&file, events),
                args.connect,
            )
            .await?
        }
        _ => "",
    };
    let known = planned.as_ref().zip(events.as_ref());
    let unordered = known.and_then(|(planned, events)| why_no_order(&file, events, &planned.rows));
    if let Some(why) = unordered {
        out::note(why);
    }

    line("pipeline", &file.name);
    line("source", file.source.name());
    let of_events = match (&events, declared) {
        (Some(events), true) => columns(events),
        (Some(events), false) => format!("inferred now: {}", columns(events)),
        (None, _) if file.source.asks_the_server() => {
            "described by the server when the pipeline starts".to_owned()
        }
        (None, _) => "inferred from the first events when the pipeline starts".to_owned(),
    };
    line("format", &format!("{}: {of_events}", file.format.name()));
    if let Some(time) = &file.event_time {
        line(
            "event time",
            &format!("{}, at most {} late", time.column, time.max_delay),
        );
    }
    match (&planned, &file.transform) {
        (Some(planned), Some(_)) => line("rows", &columns(&planned.rows)),
        (None, Some(_)) => line(
            "sql",
            "planned when the pipeline starts; --connect plans it now",
        ),
        (_, None) => {}
    }
    if let Some(window) = &file.window {
        line("windows", &window.strategy()?.describe());
        if let Some(sink) = windows::late_sink(&file) {
            line("late rows", sink.table());
        }
    }
    if let Some(planned) = &planned
        && planned.table != planned.rows
    {
        line("panes", &columns(&planned.table));
    }
    if !file.monitor.0.is_empty() {
        let names: Vec<&str> = file
            .monitor
            .0
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        line("monitors", &names.join(", "));
    }
    line("sink", &sink(&file, table));
    if let Some(changes) = file.sink.changes() {
        let own = |planned: &Planned| planned.rows.index_of(changes::LOG_ORDER).is_ok();
        let other = unordered.is_some() || planned.as_ref().is_some_and(own);
        let by_offset = is_log_by_offset(&file) && !other;
        line("changes", &changes_of(changes, by_offset));
    }
    line(
        "checkpoints",
        &calve_lake::checkpoints::shown(&file.checkpoint_location()),
    );
    if let Some(rejects) = file.rejects_path() {
        line("rejects", rejects);
    }
    let verdict = match (planned.is_some(), args.connect) {
        (true, _) => "ok",
        (false, false) => "ok as far as can be said without reading events; --connect reads some",
        (false, true) => "ok as far as can be said: there are no events to look at now",
    };
    out::line(verdict);
    Ok(())
}

/// Schema of the events, where it is known without reading any.
///
/// # Errors
/// `Config`.
pub(crate) fn known_schema(file: &PipelineFile) -> Result<Option<SchemaRef>> {
    match file.format.declared_schema() {
        Some(schema) => schema.map(Some),
        None => file.source.known_schema(),
    }
}

/// Schemas that follow from that of the events.
pub(crate) struct Planned {
    /// The rows that the transform makes.
    pub(crate) rows: SchemaRef,
    /// The rows that go to the table: those, or what panes make of them.
    pub(crate) table: SchemaRef,
}

/// Plans everything that depends on the schema of the events.
///
/// # Errors
/// `Config`.
pub(crate) fn plan(file: &PipelineFile, events: &SchemaRef) -> Result<Planned> {
    file.format
        .decoder(SchemaRef::clone(events))
        .map_err(|error| error.context("format"))?;
    if let Some(time) = &file.event_time {
        EventTime::of(events, &time.column, time.unit.map(Into::into))?;
    }
    let decoded = with_offsets(file, events);
    let rows = match &file.transform {
        None => decoded,
        Some(transform) => {
            let (tables, most) = (transform.tables.iter(), Shares::of(file).lookup);
            let lookups = tables.map(|(name, table)| Lookup::read(name, table, most));
            let lookups: Vec<Lookup> = lookups.collect::<Result<_>>()?;
            SqlTransform::plan(&transform.sql, decoded, &lookups)
                .map_err(|error| error.context("transform.sql"))?
                .schema()
        }
    };
    file.check_rows(&rows)?;
    Monitors::plan(&file.monitor.0, &rows)?;
    let table = windows::plan(file, &rows)?.map_or_else(
        || SchemaRef::clone(&rows),
        |windowed| windowed.schema(&rows),
    );
    Ok(Planned { rows, table })
}

/// Checks the layout of a Parquet table; and an Iceberg table that rows go to, with `connect` the one
/// that is there. Creates nothing. Says whether it is there.
async fn table(
    file: &PipelineFile,
    sink: &SinkConfig,
    plain: &SchemaRef,
    hidden: &[String],
    connect: bool,
) -> Result<&'static str> {
    let config = match sink {
        SinkConfig::Iceberg(config) => with_evolution(config, file),
        SinkConfig::Parquet(config) => {
            let layout = ParquetLayout::new(config, SchemaRef::clone(plain), SHARD);
            let named = match layout {
                Ok(layout) if is_remote(&config.path) => layout.named_at_once(),
                layout => layout,
            };
            return named
                .map(|_| "")
                .map_err(|error| error.context("sink.parquet"));
        }
    };
    let changed = config
        .changes
        .as_ref()
        .map(|c| changes::table_schema(c, hidden, plain));
    let rows = changed
        .transpose()
        .map_err(|error| error.context("sink.iceberg"))?;
    let there = iceberg::check(&config, rows.as_ref().unwrap_or(plain), connect).await;
    Ok(
        match there.map_err(|error| error.context("sink.iceberg"))? {
            true => ", exists",
            false if connect => ", to be created",
            false => "",
        },
    )
}

/// What becomes of changes, in words.
fn changes_of(changes: &ChangesConfig, by_offset: bool) -> String {
    let order = match changes.order_by.as_slice() {
        [] if by_offset => "in the order of their offsets".to_owned(),
        [] => "as they come".to_owned(),
        columns => format!("in the order of {}", columns.join(", ")),
    };
    let how = match (changes.mode, changes.deletes) {
        (Mode::Append, _) => "every change is a row",
        (Mode::SoftDelete, _) => "the last of each key counts; deleted rows are flagged",
        (Mode::Merge, Deletes::Position) => "the last of each key counts; deletes by position",
        (Mode::Merge, Deletes::Vector) => "the last of each key counts; deletion vectors",
        (Mode::Merge, Deletes::Equality) => "the last of each key counts; deletes by key",
        (Mode::Merge, Deletes::CopyOnWrite) => "the last of each key counts; copy on write",
    };
    let key = match changes.key.as_slice() {
        [] => "the key that they carry".to_owned(),
        columns => columns.join(", "),
    };
    format!("by {key}, {order}: {how}")
}

fn sink(file: &PipelineFile, existing: &str) -> String {
    match &file.sink {
        SinkConfig::Iceberg(config) => {
            let by = match config.partition_by.as_slice() {
                [] => String::new(),
                terms => format!(", by {}", terms.join(", ")),
            };
            format!("iceberg table {}{by}{existing}", config.table)
        }
        SinkConfig::Parquet(config) => {
            let layout = config.layout.as_deref().unwrap_or("one folder");
            format!("parquet files in {}, layout {layout}", config.path)
        }
    }
}

fn columns(schema: &Schema) -> String {
    let types = |field: &arrow::datatypes::FieldRef| {
        let declared = formats::types::declaration(field);
        format!(
            "{} {}",
            field.name(),
            declared.unwrap_or_else(|| field.data_type().to_string())
        )
    };
    schema
        .fields()
        .iter()
        .map(types)
        .collect::<Vec<_>>()
        .join(", ")
}

fn line(what: &str, text: &str) {
    out::line(format!("{what:<12} {text}"));
}

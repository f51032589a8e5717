//! Puts a pipeline together from its file: source, decoder, transform, monitors, table, outputs.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use arrow::datatypes::{Schema, SchemaRef};
use calve_connect::{
    formats::{self, Evolve, FormatConfig, OffsetsDecoder},
    sources::{self, SourceContext},
};
use calve_engine::{
    BatcherFactory, Decoder, Error, Output, RawBatch, Result, Source, Transform,
    batch::OFFSET,
    checkpoint::{Checkpoints, Meta},
    event_time::EventTime,
    metrics::Metrics,
    rejects::{RejectsOutput, RejectsPlace, RejectsWriter},
    seams::TableWriter,
    shard::{BatchRows, LATE, REJECTS, Shard, ShardOptions, TABLE},
    stores::{Stores, is_remote},
};
use calve_lake::{changes, checkpoints::open_store, parquet::ParquetTable, write::WriteOptions};
use calve_model::Offsets;
use calve_sql::{Lookup, MonitoredTransform, Monitors, Planned, SqlTransform};

use crate::{
    config::{AutoOr, PipelineFile, SinkConfig},
    out,
    schema::{
        SchemaVersion, Stored, evolve, has_offsets, why_no_order, with_evolution, with_offsets,
        with_rescued,
    },
    shares::Shares,
    upkeep, windows,
};

/// The only shard of a pipeline in one process.
pub(crate) const SHARD: &str = "main";

/// What comes before the table: source, decoder, transform.
pub(crate) struct Front {
    pub(crate) source: Box<dyn Source>,
    pub(crate) factory: Arc<dyn BatcherFactory>,
    pub(crate) monitors: Monitors,
    /// Schema of the decoded events, without the column of their offsets.
    events: SchemaRef,
    /// Schema of the table's rows.
    rows: SchemaRef,
    /// The schema as it was inferred at the first start; none: it is declared.
    inferred: Option<serde_json::Value>,
    /// The key of the changes, when the first events told it.
    key: Option<Vec<String>>,
    sql: Option<String>,
}

impl Front {
    /// From the beginning of the source, without checkpoints; writes nothing.
    pub(crate) async fn open(file: &PipelineFile) -> Result<Self> {
        // Nothing is written, so no key is needed.
        let nothing = Some(Vec::new());
        let stored = Stored::default();
        Self::resume(file, stored, nothing, &Offsets::default(), None).await
    }

    /// As it was at an earlier start: with the schema that was inferred then, and what became of it, and
    /// the key. `monitors` go on from an earlier front of this process.
    async fn resume(
        file: &PipelineFile,
        stored: Stored<'_>,
        mut key: Option<Vec<String>>,
        from: &Offsets,
        monitors: Option<Monitors>,
    ) -> Result<Self> {
        let context = context(file);
        let checks = context.checks.clone();
        let mut format = file.format.clone();
        file.source.describe(&mut format, &context).await?;
        let mut source = file.source.build(&format, &context)?;
        let mut inferred = stored.inferred.cloned();
        let mut first = None;
        let events = if let Some(declared) = format.declared_schema() {
            declared?
        } else if let Some(known) = file.source.known_schema()? {
            known
        } else if let Some(evolved) = stored.evolved {
            evolved
        } else if let Some(inferred) = stored.inferred {
            formats::schema_from_json(inferred)?
        } else {
            let (seen, peeked) = sources::peek(source, from).await?;
            let schema = formats::infer::infer(&format, &seen)?;
            out::note(format!(
                "inferred schema, kept with the checkpoints:\n{}",
                formats::schema_to_yaml(&schema, 2)
            ));
            inferred = Some(formats::schema_to_json(&schema)?);
            source = Box::new(peeked.or_anew(anew(file, &format, &context)));
            first = Some(seen);
            schema
        };
        let events = with_rescued(events, file.schema.rescued.as_deref())?;
        if key.is_none() && file.lacks_key() {
            let seen = if let Some(seen) = first {
                seen
            } else {
                let (seen, peeked) = sources::peek(source, from).await?;
                source = Box::new(peeked.or_anew(anew(file, &format, &context)));
                seen
            };
            key = Some(key_of(file, &seen)?);
        }
        let decoded = with_offsets(file, &events);
        let planned = plan(file, &decoded)?;
        let rows = planned
            .as_ref()
            .map_or_else(|| Arc::clone(&decoded), Planned::schema);
        file.check_rows(&rows)?;
        let monitors = match monitors {
            Some(monitors) => monitors,
            None => Monitors::plan(&file.monitor.0, &rows)?,
        };
        let factory = Arc::new(Factory {
            format,
            evolve: evolve(file),
            rescued: file.schema.rescued.clone(),
            offsets: has_offsets(file, &events),
            events: Arc::clone(&events),
            rows: Arc::clone(&rows),
            planned,
            monitors: monitors.clone(),
        });
        checks.set(Arc::clone(&factory) as Arc<dyn BatcherFactory>);
        Ok(Self {
            source,
            factory,
            monitors,
            events,
            rows,
            inferred,
            key,
            sql: file.transform.as_ref().map(|t| t.sql.trim().to_owned()),
        })
    }
}

/// Makes the source once more, of the same surroundings.
fn anew(
    file: &PipelineFile,
    format: &FormatConfig,
    context: &SourceContext,
) -> impl FnOnce() -> Result<Box<dyn Source>> + Send + 'static {
    let (source, format, context) = (file.source.clone(), format.clone(), context.clone());
    move || source.build(&format, &context)
}

/// The key that the first changes carry.
fn key_of(file: &PipelineFile, first: &[RawBatch]) -> Result<Vec<String>> {
    let key = formats::infer::key_columns(&file.format, first)?.ok_or_else(|| {
        Error::config("changes.key is not given, and the changes carry no key").hint(
            "name the columns that identify a row, for example `key: [id]`; a key is read from \
             lines such as {\"key\": {\"id\": 1}, \"value\": …}",
        )
    })?;
    out::note(format!(
        "key of the changes, as they carry it, kept with the checkpoints: {}",
        key.join(", ")
    ));
    Ok(key)
}

/// What sources need from their surroundings.
pub(crate) fn context(file: &PipelineFile) -> SourceContext {
    SourceContext {
        base: PathBuf::new(),
        stores: stores(file),
        wal: file.wal_folder(),
        memory_bytes: Some(file.limits.memory_bytes()),
        ..SourceContext::default()
    }
}

/// The object stores of a pipeline file.
pub(crate) fn stores(file: &PipelineFile) -> Stores {
    Stores::new(environment(), file.stores.named())
}

/// The environment's variables that are text.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)))
}

fn plan(file: &PipelineFile, events: &SchemaRef) -> Result<Option<Planned>> {
    let Some(transform) = &file.transform else {
        return Ok(None);
    };
    let most = Shares::of(file).lookup;
    let lookups: Vec<Lookup> = transform
        .tables
        .iter()
        .map(|(name, config)| Lookup::read(name, config, most))
        .collect::<Result<_>>()?;
    SqlTransform::plan(&transform.sql, Arc::clone(events), &lookups)
        .map(Some)
        .map_err(|error| error.context("transform.sql"))
}

struct Factory {
    format: FormatConfig,
    evolve: Option<Evolve>,
    rescued: Option<String>,
    /// Rows have the column of their offsets.
    offsets: bool,
    events: SchemaRef,
    rows: SchemaRef,
    planned: Option<Planned>,
    monitors: Monitors,
}

impl BatcherFactory for Factory {
    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        let decoder = self.format.decoder_with(
            Arc::clone(&self.events),
            self.evolve,
            self.rescued.as_deref(),
        )?;
        if !self.offsets {
            return Ok(decoder);
        }
        Ok(Box::new(OffsetsDecoder::new(decoder, &self.events)))
    }

    fn transform(&self) -> Result<Box<dyn Transform>> {
        let inner = self.planned.as_ref().map(Planned::instance).transpose()?;
        Ok(Box::new(MonitoredTransform::new(inner, &self.monitors)))
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.rows)
    }
}

/// What a run leaves to the next one in this process, when its schema has to evolve.
pub(crate) struct Before {
    pub(crate) metrics: Metrics,
    pub(crate) monitors: Monitors,
    /// The schema that the next event needs.
    pub(crate) schema: SchemaRef,
}

/// A pipeline, ready to run.
pub(crate) struct Pipeline {
    pub(crate) shard: Shard,
    pub(crate) metrics: Metrics,
    pub(crate) monitors: Monitors,
}

/// Opens everything that a run needs: reads the checkpoints, infers the schema where none is
/// declared, plans the SQL, creates the table when it is missing. With `drain` it will read nothing.
/// `before` is a run of this process that has ended since its schema evolved.
pub(crate) async fn open(
    file: &PipelineFile,
    drain: bool,
    before: Option<Before>,
) -> Result<Pipeline> {
    let stores = stores(file);
    let store = open_store(&file.checkpoint_location(), &stores).await?;
    let checkpoints = Checkpoints::new(store, &file.name, SHARD);
    let loaded = checkpoints.load().await?;
    let from = loaded
        .newest()
        .map(|r| r.offsets.clone())
        .unwrap_or_default();
    if loaded.newest().is_none() {
        if drain {
            return Err(Error::config(
                "there is nothing to drain: the pipeline has no checkpoints",
            )
            .hint("run it without `--drain`"));
        }
        // Before anything is made: nothing should be left of a start with a wrong path.
        file.source.check_connect(&context(file)).await?;
    }
    let mut stored = Stored::of(&loaded);
    let (metrics, monitors) = match before {
        Some(before) => {
            stored.evolved = Some(before.schema);
            (before.metrics, Some(before.monitors))
        }
        None => (
            Metrics::of_table(&file.name, SHARD, file.sink.table()),
            None,
        ),
    };
    let known = loaded.meta.as_ref().and_then(|m| m.inferred_key.clone());
    let front = Front::resume(file, stored, known, &from, monitors).await?;
    let with_key = file.with_key(front.key.as_deref());
    let file = &with_key;
    if let Some(why) = why_no_order(file, &front.events, &front.rows) {
        out::note(why);
    }
    let schema = SchemaVersion::of(&front.events, &loaded)?;
    let event_time = match &file.event_time {
        Some(config) => Some(EventTime::of(
            &front.events,
            &config.column,
            config.unit.map(Into::into),
        )?),
        None => None,
    };
    // Stored before any table is created, so that a restart decides the same.
    let meta = Meta {
        inferred_key: front.key.clone(),
        ..Meta::single(&file.name, front.inferred.clone())
    };
    let fixed = checkpoints.fix_meta(&meta).await?;
    let differs = fixed.inferred_schema != meta.inferred_schema && meta.inferred_schema.is_some();
    if differs || (fixed.inferred_key.is_some() && fixed.inferred_key != meta.inferred_key) {
        return Err(
            Error::conflict("another process started this pipeline at the same moment")
                .hint("start it again: it takes the schema that is stored now"),
        );
    }

    let windowed = windows::plan(file, &front.rows)?;
    let rows = windowed
        .as_ref()
        .map_or_else(|| Arc::clone(&front.rows), |w| w.schema(&front.rows));
    let pool = Arc::new(pool(file)?);
    let shares = Shares::of(file);
    metrics.set_memory_limit(shares.budget);
    let options = WriteOptions {
        target_file_size: file.commit.target_file_size.0,
        compression: file.commit.compression,
        memory_bytes: shares.files as usize,
        schema_version: schema.number,
        ..WriteOptions::default()
    };
    let opening = Opening {
        file,
        hidden: hidden(file, &front.events),
        stores: &stores,
        options: &options,
        shares: &shares,
        checkpoints: &checkpoints,
        pool: &pool,
    };
    let (table, output) = opening.table(&file.sink, rows).await?;
    let mut outputs = BTreeMap::from([(TABLE.to_owned(), output)]);
    let late = match windows::late_sink(file) {
        Some(sink) => {
            let (table, output) = opening.table(&sink, Arc::clone(&front.rows)).await?;
            outputs.insert(LATE.to_owned(), output);
            Some(table)
        }
        None => None,
    };
    let rejects_place = RejectsPlace::open(&file.rejects_location(), &stores)?;
    let rejects_output: Arc<dyn Output> = Arc::new(RejectsOutput::new(rejects_place.clone()));
    outputs.insert(REJECTS.to_owned(), rejects_output);
    let mut fingerprints = fingerprints(file, &front);
    fingerprints.insert("schema".to_owned(), schema.fingerprint()?);
    if let Some(changes) = file.sink.changes() {
        fingerprints.insert("changes".to_owned(), changes.fingerprint());
    }
    fingerprints.insert(
        "window".to_owned(),
        windows::fingerprint(file, windowed.as_ref()),
    );
    let rejects = RejectsWriter::new(rejects_place, checkpoints.pipeline(), checkpoints.shard());
    let shard = Shard {
        rejects,
        checkpoints,
        source: front.source,
        factory: front.factory,
        event_time,
        windowed,
        table,
        late,
        outputs,
        pool,
        metrics: metrics.clone(),
        harmless: schema.harmless(file.schema.evolve),
        fingerprints,
        options: ShardOptions {
            drain,
            ..shard_options(file, &shares)
        },
    };
    Ok(Pipeline {
        shard,
        metrics,
        monitors: front.monitors,
    })
}

/// What opening a table needs beside its section of the file.
struct Opening<'a> {
    file: &'a PipelineFile,
    /// Columns of the rows that are none of the table.
    hidden: Vec<String>,
    stores: &'a Stores,
    options: &'a WriteOptions,
    shares: &'a Shares,
    checkpoints: &'a Checkpoints,
    pool: &'a Arc<rayon::ThreadPool>,
}

impl Opening<'_> {
    async fn table(
        &self,
        sink: &SinkConfig,
        rows: SchemaRef,
    ) -> Result<(Box<dyn TableWriter>, Arc<dyn Output>)> {
        let (file, options, pool) = (self.file, self.options, Arc::clone(self.pool));
        match sink {
            SinkConfig::Iceberg(config) => {
                let names = (file.name.as_str(), SHARD);
                let changes = config.changes.as_deref().map(|config| changes::Opening {
                    config,
                    hidden: &self.hidden,
                    null_keys: file.window.is_some(),
                    checkpoints: self.checkpoints,
                    memory_bytes: self.shares.changes as usize,
                    index_bytes: self.shares.index as usize,
                    target_file_size: file.commit.target_file_size.0,
                    upkeep: upkeep::of_changes(file),
                });
                let config = with_evolution(config, file);
                calve_lake::iceberg::open(&config, options, rows, names, pool, changes.as_ref())
                    .await
            }
            SinkConfig::Parquet(config) => {
                let mut config = config.clone();
                if config.time_column.is_none() {
                    config.time_column = file.event_time.as_ref().map(|e| e.column.clone());
                }
                if is_remote(&config.path) {
                    let folder = self.stores.open(&config.path)?;
                    let name = (file.name.as_str(), SHARD);
                    ParquetTable::open_remote(&config, folder, options, rows, name, pool).await
                } else {
                    ParquetTable::open(&config, options, rows, &file.name, SHARD, pool)
                }
            }
        }
    }
}

/// Columns of the rows beside those of the table: metadata of the format, and offsets.
pub(crate) fn hidden(file: &PipelineFile, events: &Schema) -> Vec<String> {
    let mut hidden = match &file.format {
        FormatConfig::Debezium(config) => config.metadata.clone(),
        _ => Vec::new(),
    };
    if has_offsets(file, events) {
        hidden.push(OFFSET.to_owned());
    }
    hidden
}

fn shard_options(file: &PipelineFile, shares: &Shares) -> ShardOptions {
    let event_time = file.event_time.as_ref();
    ShardOptions {
        commit_every: file.commit.interval(),
        batch_rows: match file.limits.batch_rows {
            AutoOr::Auto => BatchRows::Auto,
            AutoOr::Fixed(rows) => BatchRows::Fixed(rows),
        },
        memory_bytes: shares.levels(),
        min_interval: file.commit.min_interval.0,
        commit_rows: file.commit.rows,
        max_delay: event_time.map_or(0, |e| e.max_delay.0.as_micros() as i64),
        idle_timeout: event_time.map_or(std::time::Duration::from_mins(1), |e| e.idle_timeout.0),
        in_flight_bytes: shares.in_flight as usize,
        drain: false,
        retry_for: std::time::Duration::from_mins(1),
        settle_after: upkeep::settle_after(file),
    }
}

fn fingerprints(file: &PipelineFile, front: &Front) -> BTreeMap<String, String> {
    let mut prints = BTreeMap::from([
        ("source".to_owned(), file.source.fingerprint()),
        ("format".to_owned(), file.format.fingerprint()),
    ]);
    let sql = front.sql.clone().unwrap_or_default();
    prints.insert("sql".to_owned(), sql);
    prints
}

fn pool(file: &PipelineFile) -> Result<rayon::ThreadPool> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    rayon::ThreadPoolBuilder::new()
        .num_threads(file.limits.batchers.unwrap_or(cores))
        .thread_name(|n| format!("calve-batcher-{n}"))
        .build()
        .map_err(|e| Error::internal("cannot start the batchers").because(e))
}

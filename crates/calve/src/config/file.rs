//! The sections of the pipeline file. `docs/pipeline-file.md` describes the same for people, and
//! `calve schema` prints what is derived from here for editors.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use calve_connect::{
    formats::{Evolve, FormatConfig, JsonConfig},
    sources::SourceConfig,
    units::{ByteSize, Span, TimeUnit},
};
use calve_engine::{Result, Secret, shard::CommitEvery, stores::is_remote};
use calve_lake::{
    changes::{ChangesConfig, Mode},
    iceberg::IcebergConfig,
    parquet::ParquetConfig,
    write::Compression,
};
use calve_sql::lookup::LookupConfigs;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    auto::AutoOr,
    monitor::MonitorConfig,
    stores::StoresConfig,
    window::{AggregateConfig, WindowConfig},
};
use crate::shares;

/// Folder of the checkpoints, where the file does not say it.
const CHECKPOINTS: &str = ".calve-checkpoints";
/// And of write-ahead logs, each in a folder named after its pipeline.
const WAL: &str = ".calve-wal";
/// Folder of the rejects, where the file does not say it.
const REJECTS: &str = ".calve-rejects";

/// A pipeline: where events come from, what becomes of them, and into which table they go.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PipelineFile {
    /// The pipeline's id: it names checkpoints and metrics. Lower-case letters, digits, `-` and `_`.
    /// Two pipelines with one checkpoint store, or one table, may not share it.
    #[schemars(regex(pattern = "^[a-z0-9][a-z0-9_-]{0,62}$"))]
    pub(crate) name: String,
    /// Where events come from.
    pub(crate) source: SourceConfig,
    /// What events look like. Default: `json`, with columns inferred from the first events; of sources
    /// that know their messages those.
    #[serde(default = "json")]
    pub(crate) format: FormatConfig,
    /// How the columns of events and table may change.
    #[serde(default)]
    pub(crate) schema: SchemaConfig,
    /// When events happened. Without it there is no watermark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) event_time: Option<EventTimeConfig>,
    /// SQL over the events. Without it rows go to the table as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) transform: Option<TransformConfig>,
    /// Windows: which rows become visible together, and when. Without it rows become visible with the
    /// next commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<WindowConfig>,
    /// SQL over the rows of each window, in the place of the rows themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) aggregate: Option<AggregateConfig>,
    /// Live figures over everything seen so far.
    #[serde(default)]
    pub(crate) monitor: MonitorConfig,
    /// The table.
    pub(crate) sink: SinkConfig,
    /// When and how files are written and made visible. May be changed at any time.
    #[serde(default)]
    pub(crate) commit: CommitConfig,
    /// How an Iceberg table is looked after while the pipeline runs. May be changed at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upkeep: Option<UpkeepConfig>,
    /// What calve may use. May be changed at any time.
    #[serde(default)]
    pub(crate) limits: LimitsConfig,
    /// Where events go that could not be decoded or did not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rejects: Option<RejectsConfig>,
    /// The HTTP server: health, metrics, status. Without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serve: Option<ServeConfig>,
    /// Where checkpoints are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<CheckpointConfig>,
    /// Options of object stores by the beginning of their URLs, such as `s3://bucket`: endpoint,
    /// credentials, and what else the store takes. They come before those of the environment.
    #[serde(default)]
    pub(crate) stores: StoresConfig,
}

fn json() -> FormatConfig {
    FormatConfig::Json(JsonConfig::default())
}

/// How the columns of events and table may change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SchemaConfig {
    /// `add`: new columns are added; `widen`: types become wider, as Iceberg allows (int to bigint, float
    /// to double, decimals of more digits); `strict`: neither. Default: `[add, widen]`.
    pub(crate) evolve: Evolve,
    /// Columns of an Iceberg table that get another name, old to new. A dot leads into a struct.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) rename: BTreeMap<String, String>,
    /// A column of events for what does not fit its column or is not known, as JSON, in place of a
    /// reject; usually `_rescued`. For JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rescued: Option<String>,
}

/// When events happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventTimeConfig {
    /// The column of the source's events that holds event time.
    pub(crate) column: String,
    /// Unit of a column of numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<TimeUnit>,
    /// How late an event may come: a source partition's watermark is the highest event time seen
    /// in it less this.
    #[serde(default = "no_delay")]
    pub(crate) max_delay: Span,
    /// A source partition that was polled and found empty for so long stops holding the watermark.
    #[serde(default = "a_minute")]
    pub(crate) idle_timeout: Span,
}

fn no_delay() -> Span {
    Span(Duration::ZERO)
}

fn a_minute() -> Span {
    Span(Duration::from_mins(1))
}

/// SQL over the events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransformConfig {
    /// One SELECT over the table `events`. Each row of its result comes from one event and the
    /// lookup tables alone: no GROUP BY, DISTINCT, ORDER BY, LIMIT, `now()` or `random()`.
    pub(crate) sql: String,
    /// Lookup tables by name: small files that are read once, at the start.
    #[serde(default)]
    pub(crate) tables: LookupConfigs,
}

/// The table. Exactly one of these.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
pub(crate) enum SinkConfig {
    /// An Apache Iceberg table.
    Iceberg(IcebergConfig),
    /// A folder of partitioned Parquet files.
    Parquet(ParquetConfig),
}

impl SinkConfig {
    fn changes_mut(&mut self) -> Option<&mut ChangesConfig> {
        match self {
            Self::Iceberg(config) => config.changes.as_deref_mut(),
            Self::Parquet(_) => None,
        }
    }

    /// How rows change the table, where they are changes.
    pub(crate) fn changes(&self) -> Option<&ChangesConfig> {
        match self {
            Self::Iceberg(config) => config.changes.as_deref(),
            Self::Parquet(_) => None,
        }
    }

    /// The table is in a REST catalog.
    fn is_rest(&self) -> bool {
        matches!(self, Self::Iceberg(config) if config.catalog.rest.is_some())
    }

    /// The table's files are in an object store.
    pub(crate) fn is_remote(&self) -> bool {
        match self {
            Self::Iceberg(config) => {
                let warehouse = config.catalog.warehouse.as_deref();
                self.is_rest() || warehouse.is_some_and(is_remote)
            }
            Self::Parquet(config) => is_remote(&config.path),
        }
    }

    /// The table's name, or its folder.
    pub(crate) fn table(&self) -> &str {
        match self {
            Self::Iceberg(config) => &config.table,
            Self::Parquet(config) => &config.path,
        }
    }
}

impl<'de> Deserialize<'de> for SinkConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A derived enum would need YAML's tags.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            #[serde(default)]
            iceberg: Option<IcebergConfig>,
            #[serde(default)]
            parquet: Option<ParquetConfig>,
        }
        let table = Table::deserialize(deserializer)?;
        match (table.iceberg, table.parquet) {
            (Some(iceberg), None) => Ok(Self::Iceberg(iceberg)),
            (None, Some(parquet)) => Ok(Self::Parquet(parquet)),
            _ => Err(de::Error::custom(
                "exactly one is needed of iceberg, parquet",
            )),
        }
    }
}

/// When and how files are written and made visible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CommitConfig {
    /// An epoch ends after this long; `auto`: as seldom as `freshness` allows. Default: 30s, and
    /// `auto` with `freshness`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<AutoOr<Span>>,
    /// With `every: auto`: rows are to be visible so long after their events were read. Default: 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) freshness: Option<Span>,
    /// An epoch does not end sooner than this after the last.
    pub(crate) min_interval: Span,
    /// An epoch ends when it has so many rows, or a few more: whole batches. Default: rows do not end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rows: Option<u64>,
    /// A data file is closed when it has about so many bytes.
    pub(crate) target_file_size: ByteSize,
    /// Codec of data files.
    pub(crate) compression: Compression,
}

/// How often an epoch ends, where nothing is said.
const EVERY: Duration = Duration::from_secs(30);
/// How late rows may be visible, where sizes are found and nothing is said.
const FRESHNESS: Duration = Duration::from_secs(10);

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            every: None,
            freshness: None,
            min_interval: Span(Duration::from_secs(1)),
            rows: None,
            target_file_size: ByteSize(128 << 20),
            compression: Compression::default(),
        }
    }
}

impl CommitConfig {
    /// How often an epoch ends.
    pub(crate) fn interval(&self) -> CommitEvery {
        match (self.every, self.freshness) {
            (Some(AutoOr::Fixed(every)), _) => CommitEvery::Fixed(every.0),
            (None, None) => CommitEvery::Fixed(EVERY),
            (_, freshness) => CommitEvery::Fresh(freshness.map_or(FRESHNESS, |f| f.0)),
        }
    }

    /// The longest that an epoch lasts, as long as commits are not slower than that.
    pub(crate) fn longest(&self) -> Span {
        let (CommitEvery::Fixed(every) | CommitEvery::Fresh(every)) = self.interval();
        Span(every)
    }

    /// The interval in words.
    pub(crate) fn words(&self) -> String {
        match self.interval() {
            CommitEvery::Fixed(every) => format!("{} (commit.every)", Span(every)),
            CommitEvery::Fresh(freshness) => format!(
                "as late as rows are still visible {} (commit.freshness) after they were read, counted",
                Span(freshness)
            ),
        }
    }
}

/// How an Iceberg table is looked after while the pipeline runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct UpkeepConfig {
    /// What the pipeline does between its commits.
    pub(crate) compact: Compact,
    /// With `auto`: fewer small files of a table partition are not merged. At least 2.
    pub(crate) min_files: usize,
    /// With `auto`: a file is written again when so large a share of its rows is deleted, above 0 to 1.
    pub(crate) deleted_share: f64,
    /// Small files become few, and files lose the rows that were deleted from them, after so long each
    /// time, as `calve table compact` does it, beside the commits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compact_every: Option<Span>,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        Self {
            compact: Compact::Auto,
            min_files: 4,
            deleted_share: 0.2,
            compact_every: None,
        }
    }
}

/// Whether a pipeline merges files between its commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compact {
    /// A table of changes is merged a little after each commit; others are not.
    Auto,
    /// Never.
    Off,
}

/// What calve may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Memory for what is read, open windows, open files and indexes; `auto`: a quarter of what the
    /// machine has, or the cgroup.
    pub(crate) memory: AutoOr<ByteSize>,
    /// Threads that decode, transform and encode. Default: one per core. The result does not
    /// depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batchers: Option<usize>,
    /// Events of a batch, about; `auto`: as many as cost least.
    pub(crate) batch_rows: AutoOr<u64>,
}

impl LimitsConfig {
    /// The memory budget, bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        match self.memory {
            AutoOr::Auto => shares::default_budget(),
            AutoOr::Fixed(size) => size.0,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            memory: AutoOr::Auto,
            batchers: None,
            batch_rows: AutoOr::Auto,
        }
    }
}

/// Where events go that could not be decoded or did not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RejectsConfig {
    /// A folder or a URL, where they are written as NDJSON. Outside of the table.
    pub(crate) path: String,
}

/// The HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServeConfig {
    /// Address and port. Port 0: any that is free.
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    /// One more address, on which there are only `/metrics` and `/health`: for those who ask for metrics
    /// at a port of their own.
    #[schemars(with = "Option<String>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Requests must carry it as a bearer token. Needed on every address but loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Secret>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8088)),
            metrics_listen: None,
            token: None,
        }
    }
}

/// Where checkpoints are kept. At most one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CheckpointConfig {
    /// A folder or a URL. Outside of the table. Default: `.calve-checkpoints` in the warehouse of
    /// an Iceberg table, or beside the folder of a Parquet table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    /// URL of a SQL database: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sql: Option<Secret>,
}

impl PipelineFile {
    /// Whether the changes need a key that the file does not name.
    pub(crate) fn lacks_key(&self) -> bool {
        let changes = self.sink.changes();
        changes.is_some_and(|changes| changes.key.is_empty() && changes.mode != Mode::Append)
    }

    /// With the key of the changes, where the file does not name one.
    pub(crate) fn with_key(&self, key: Option<&[String]>) -> Self {
        let mut file = self.clone();
        if let (true, Some(key), Some(changes)) = (self.lacks_key(), key, file.sink.changes_mut()) {
            changes.key = key.to_vec();
        }
        file
    }

    /// Where rejects go, if the file says it.
    pub(crate) fn rejects_path(&self) -> Option<&str> {
        self.rejects.as_ref().map(|rejects| rejects.path.as_str())
    }

    /// Where rejects go, a local path or a URL: as the file says, or beside the checkpoints' default
    /// place; beside the checkpoints where the table is in a REST catalog.
    pub(crate) fn rejects_location(&self) -> String {
        match self.rejects_path() {
            Some(path) => path.to_owned(),
            None => match self.checkpoint.as_ref().and_then(|c| c.path.as_deref()) {
                // Where tables of a REST catalog are is not known before.
                Some(checkpoints) if self.sink.is_rest() => beside(checkpoints, REJECTS),
                _ => self.beside_the_table(REJECTS),
            },
        }
    }

    /// Where checkpoints are: a local path or a URL; that of a database may hold a password, so it is
    /// shown by [`calve_lake::checkpoints::shown`] only.
    ///
    /// By default `<warehouse>/.calve-checkpoints`, where no namespace can be (their names have no
    /// leading dot), or `.calve-checkpoints` in the folder that holds a Parquet table's folder. So
    /// they are never inside a table's location, and move with the tables that they belong to.
    pub(crate) fn checkpoint_location(&self) -> String {
        if let Some(checkpoint) = &self.checkpoint {
            let sql = checkpoint.sql.as_ref().map(|url| url.expose().to_owned());
            if let Some(location) = sql.or_else(|| checkpoint.path.clone()) {
                return location;
            }
        }
        self.beside_the_table(CHECKPOINTS)
    }

    /// Where a write-ahead log is by default: beside the checkpoints; none where those are not in a local
    /// folder.
    pub(crate) fn wal_folder(&self) -> Option<PathBuf> {
        let checkpoints = self.checkpoint_location();
        let sql = calve_lake::checkpoints::is_sql(&checkpoints);
        if sql || is_remote(&checkpoints) {
            return None;
        }
        let checkpoints = checkpoints.strip_prefix("file://").unwrap_or(&checkpoints);
        let checkpoints = Path::new(checkpoints.trim_end_matches('/'));
        Some(checkpoints.with_file_name(WAL).join(&self.name))
    }

    fn beside_the_table(&self, name: &str) -> String {
        match &self.sink {
            SinkConfig::Iceberg(config) => {
                let warehouse = config.catalog.warehouse.as_deref().unwrap_or(".");
                format!("{}/{name}", warehouse.trim_end_matches('/'))
            }
            SinkConfig::Parquet(config) => beside(&config.path, name),
        }
    }

    /// Fills in what one section takes from another by default.
    ///
    /// # Errors
    /// Those of [`SourceConfig::default_format`].
    pub(super) fn resolve(&mut self) -> Result<()> {
        if self.format == json() {
            self.format = self.source.default_format()?;
        }
        // What orders changes is asked for from the format.
        if let (FormatConfig::Debezium(format), Some(changes)) =
            (&mut self.format, self.sink.changes())
        {
            format.with_metadata(&changes.order_by);
        }
        let (SinkConfig::Parquet(parquet), Some(time)) = (&mut self.sink, &self.event_time) else {
            return Ok(());
        };
        parquet
            .time_column
            .get_or_insert_with(|| time.column.clone());
        Ok(())
    }
}

/// The place `name` beside a folder or a URL.
pub(crate) fn beside(path: &str, name: &str) -> String {
    if is_remote(path) {
        let folder = path.trim_end_matches('/');
        let up = folder.rsplit_once('/').map_or(folder, |(up, _)| up);
        return format!("{up}/{name}");
    }
    let path = path.strip_prefix("file://").unwrap_or(path);
    Path::new(path)
        .with_file_name(name)
        .to_string_lossy()
        .into_owned()
}

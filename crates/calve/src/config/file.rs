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
    units::{Span, TimeUnit},
};
use calve_engine::{Result, Secret, stores::is_remote};
use calve_lake::{
    changes::{ChangesConfig, Mode},
    iceberg::IcebergConfig,
    parquet::ParquetConfig,
};
use calve_sql::lookup::LookupConfigs;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    commit::{CommitConfig, UpkeepConfig},
    limits::LimitsConfig,
    monitor::MonitorConfig,
    stores::StoresConfig,
    window::{AggregateConfig, WindowConfig},
};

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

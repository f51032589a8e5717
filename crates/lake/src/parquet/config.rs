//! The `sink.parquet` section of a pipeline file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Writes partitioned Parquet files into a folder or an object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParquetConfig {
    /// Folder of the table, created when missing; or the URL of a place below a bucket.
    pub path: String,
    /// Where rows go: a preset (`date`, `date_hour`, `date_hour_type`) or a template such as
    /// `region={region}/events-{ts:%Y-%m-%d-%H}-{seq}.parquet`. `{column}` is a column's value,
    /// `{column:%Y-%m-%d}` formats a timestamp or date in UTC, `{seq}` makes the name unique (it
    /// holds the epoch; it is put at the end when missing), `{epoch}` and `{shard}` are what they
    /// say. Default: one folder, no table partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// Timestamp column of the presets. Default: the column of `event_time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_column: Option<String>,
    /// Type column of `date_hour_type`. Default: `event_type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_column: Option<String>,
    /// Keep columns in the files that the path holds as `column=value` too. Without it they are
    /// left out, as DuckDB, Spark and Polars expect: they take them from the path. As with every
    /// Hive layout, an empty string then reads as NULL, and text of more than 200 bytes is cut.
    #[serde(default)]
    pub keep_columns: bool,
}

//! What can be checked in a pipeline file without reading anything else.

use std::path::{Component, Path, PathBuf};

use arrow::datatypes::Schema;
use calve_connect::{formats::FormatConfig, units::ByteSize};
use calve_engine::{
    Error, Result,
    stores::{is_remote, options::Kind, shown},
};
use calve_lake::iceberg::TableName;

use super::{
    auto::AutoOr,
    file::{PipelineFile, SinkConfig},
};
use crate::shares;

/// Characters of a name, which becomes a part of file names.
const LONGEST_NAME: usize = 63;

impl PipelineFile {
    fn schema(&self) -> Result<()> {
        if let Some(column) = &self.schema.rescued {
            if !matches!(self.format, FormatConfig::Json(_)) {
                return Err(Error::config(format!(
                    "schema.rescued is for JSON: format={}",
                    self.format.name()
                ))
                .hint("leave `schema.rescued` out"));
            }
            if column.trim().is_empty() {
                return Err(Error::config("schema.rescued is empty")
                    .hint("name a column, such as _rescued"));
            }
        }
        if matches!(self.sink, SinkConfig::Parquet(_)) && !self.schema.rename.is_empty() {
            return Err(Error::config("schema.rename is for Iceberg tables")
                .hint("rename columns in transform.sql: files that are there stay as they are"));
        }
        for (old, new) in &self.schema.rename {
            let above = |path: &str| path.rsplit_once('.').map(|(above, _)| above.to_owned());
            if new.contains('.') && above(new) != above(old) {
                return Err(Error::config(format!(
                    "schema.rename moves a field to another place: from={old} to={new}"
                ))
                .hint("give it another name where it is"));
            }
        }
        Ok(())
    }

    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// `Config`, with the path of the key.
    pub(crate) fn validate(&self) -> Result<()> {
        name(&self.name)?;
        self.format
            .validate()
            .map_err(|error| error.context("format"))?;
        self.source
            .validate(&self.format)
            .map_err(|error| error.context("source"))?;
        self.event_time()?;
        if self
            .transform
            .as_ref()
            .is_some_and(|transform| transform.sql.trim().is_empty())
        {
            return Err(Error::config("transform.sql is empty")
                .hint("leave `transform` out to write the events as they are"));
        }
        self.windows()?;
        self.changes()?;
        self.schema()?;
        if let Some(upkeep) = &self.upkeep {
            if matches!(self.sink, SinkConfig::Parquet(_)) {
                return Err(
                    Error::config("upkeep is for Iceberg tables").hint("leave `upkeep` out")
                );
            }
            if upkeep.compact_every.is_some_and(|every| every.0.is_zero()) {
                return Err(Error::config("upkeep.compact_every is zero")
                    .hint("write for example 1h, or leave it out"));
            }
            if upkeep.min_files < 2 {
                return Err(Error::config(format!(
                    "upkeep.min_files is below 2: min_files={}",
                    upkeep.min_files
                ))
                .hint("leave it out, or write `compact: off`"));
            }
            if upkeep.settle_after.0.is_zero() {
                return Err(Error::config("upkeep.settle_after is zero")
                    .hint("write for example 1m, or `settle: 0` to settle nothing"));
            }
            if !(upkeep.deleted_share > 0.0 && upkeep.deleted_share <= 1.0) {
                return Err(Error::config(format!(
                    "upkeep.deleted_share is no share: deleted_share={}",
                    upkeep.deleted_share
                ))
                .hint("write a number above 0, up to 1, such as 0.2"));
            }
        }
        self.commit()?;
        self.limits()?;
        self.stores.validate()?;
        if let Some(serve) = &self.serve {
            let token = serve.token.as_ref().map(|token| token.expose().trim());
            if token.is_some_and(str::is_empty) {
                return Err(Error::config("serve.token is empty"));
            }
            for (key, listen) in [
                ("listen", Some(serve.listen)),
                ("metrics_listen", serve.metrics_listen),
            ] {
                let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) else {
                    continue;
                };
                if token.is_none() {
                    return Err(Error::config(format!(
                        "serve.{key} is not loopback, and there is no token: {key}={listen}"
                    ))
                    .hint("set `serve.token: ${TOKEN}`, or listen on 127.0.0.1"));
                }
            }
        }
        let table = self.sink()?;
        let outside = |what: &str, path: &str| match &table {
            Some(table) if place(path).starts_with(table) => Err(Error::config(format!(
                "{what} is inside the table's folder: path={path}"
            ))
            .hint(format!("choose a folder outside of {}", table.display()))),
            _ => Ok(()),
        };
        if let Some(rejects) = self.rejects_path() {
            if rejects.trim().is_empty() {
                return Err(Error::config("rejects.path is empty"));
            }
            outside("rejects.path", rejects)?;
        }
        if let Some(wal) = self.source.wal_path().and_then(Path::to_str) {
            outside("wal.path", wal)?;
        }
        let checkpoints = self.checkpoint_location();
        if let Some(checkpoint) = &self.checkpoint
            && let Some(sql) = &checkpoint.sql
        {
            if checkpoint.path.is_some() {
                return Err(Error::config("checkpoint has both path and sql").hint("keep one"));
            }
            if !calve_lake::checkpoints::is_sql(sql.expose()) {
                return Err(
                    Error::config("checkpoint.sql is not a URL of a SQL database")
                        .hint("write `sqlite:PATH` or `postgres://USER:${PASSWORD}@HOST/DATABASE`"),
                );
            }
            return calve_lake::checkpoints::SqlRecords::check(sql.expose());
        }
        if checkpoints.trim().is_empty() {
            return Err(Error::config("checkpoint.path is empty"));
        }
        outside("checkpoint.path", &checkpoints)
    }

    fn event_time(&self) -> Result<()> {
        let Some(time) = &self.event_time else {
            return Ok(());
        };
        if time.idle_timeout.0.is_zero() {
            return Err(Error::config("event_time.idle_timeout is zero"));
        }
        let schema = match self.format.declared_schema() {
            Some(schema) => Some(schema?),
            None => self.source.known_schema()?,
        };
        if let Some(schema) = schema {
            let unit = time.unit.map(Into::into);
            calve_engine::event_time::EventTime::of(&schema, &time.column, unit)?;
        }
        Ok(())
    }

    fn windows(&self) -> Result<()> {
        let column = self.event_time.as_ref().map(|time| time.column.as_str());
        match (&self.window, &self.aggregate) {
            (Some(window), aggregate) => {
                let changes = self.sink.changes().is_some();
                window.validate(column, aggregate.is_some(), changes)?;
            }
            (None, None) => {}
            (None, Some(_)) => {
                return Err(Error::config("aggregate needs window: it makes a result of each window")
                    .hint("for example `window: { fixed: 1m }`; for figures over everything there is `monitor`"));
            }
        }
        if let Some(aggregate) = &self.aggregate
            && aggregate.sql.trim().is_empty()
        {
            return Err(Error::config("aggregate.sql is empty"));
        }
        Ok(())
    }

    fn commit(&self) -> Result<()> {
        let commit = &self.commit;
        if commit.longest().0.is_zero() {
            return Err(Error::config("commit.every or commit.freshness is zero")
                .hint("write for example 30s"));
        }
        if let (Some(AutoOr::Fixed(_)), Some(_)) = (commit.every, commit.freshness) {
            return Err(
                Error::config("commit.freshness is given, and commit.every is fixed")
                    .hint("write `every: auto`, or leave one of them out"),
            );
        }
        if commit.rows == Some(0) {
            return Err(Error::config("commit.rows is zero")
                .hint("write for example 1000000, or leave it out"));
        }
        if commit.min_interval > commit.longest() {
            return Err(Error::config(format!(
                "commit.min_interval is longer than commit.every or commit.freshness: min_interval={} every={}",
                commit.min_interval,
                commit.longest()
            ))
            .hint("lower `commit.min_interval`"));
        }
        if commit.target_file_size.0 == 0 {
            return Err(Error::config("commit.target_file_size is zero"));
        }
        Ok(())
    }

    fn limits(&self) -> Result<()> {
        if let AutoOr::Fixed(memory) = self.limits.memory
            && memory.0 < shares::LEAST
        {
            return Err(Error::config(format!(
                "limits.memory is too small: memory={memory} least={}",
                ByteSize(shares::LEAST)
            )));
        }
        if matches!(self.limits.batchers, Some(0 | 1025..)) {
            return Err(Error::config("limits.batchers is not between 1 and 1024")
                .hint("leave it out for one per core"));
        }
        if matches!(self.limits.batch_rows, AutoOr::Fixed(0 | 100_000_001..)) {
            return Err(
                Error::config("limits.batch_rows is not between 1 and 100000000")
                    .hint("leave it out, or write `auto`: it is found then"),
            );
        }
        Ok(())
    }

    /// Checks the sink; answers the place of the table, where it is known.
    fn sink(&self) -> Result<Option<PathBuf>> {
        match &self.sink {
            SinkConfig::Iceberg(config) => {
                let name = TableName::parse(&config.table)
                    .map_err(|error| error.context("sink.iceberg.table"))?;
                config.catalog.validate()?;
                if !matches!(config.format_version, 2 | 3) {
                    return Err(Error::config(format!(
                        "sink.iceberg.format_version is neither 2 nor 3: format_version={}",
                        config.format_version
                    )));
                }
                if config.catalog.rest.is_some() {
                    if self.checkpoint.is_none() {
                        return Err(Error::config(
                            "a key is missing: path=checkpoint: a REST catalog does not say where \
                             else than in its tables anything may be kept",
                        )
                        .hint(
                            "write for example `checkpoint: { path: s3://bucket/checkpoints }`",
                        ));
                    }
                    return Ok(None);
                }
                let warehouse = config.catalog.warehouse.as_deref().unwrap_or(".");
                if is_remote(warehouse) {
                    writable("sink.iceberg.catalog.warehouse", warehouse)?;
                }
                Ok(Some(place(warehouse).join(name.namespace).join(name.name)))
            }
            SinkConfig::Parquet(config) => {
                let path = &config.path;
                if path.is_empty() {
                    return Err(Error::config("sink.parquet.path is empty"));
                }
                if is_remote(path) {
                    remote_table(path)?;
                }
                Ok(Some(place(path)))
            }
        }
    }
}

impl PipelineFile {
    fn changes(&self) -> Result<()> {
        let (Some(changes), SinkConfig::Iceberg(table)) = (self.sink.changes(), &self.sink) else {
            return Ok(());
        };
        let path = |error: Error| error.context("sink.iceberg");
        changes.validate(table.format_version).map_err(path)?;
        if self.lacks_key() && !matches!(self.format, FormatConfig::Debezium(_)) {
            let error = Error::config("changes.key names no column")
                .hint("name the columns that identify a row, for example `key: [id]`");
            return Err(path(error));
        }
        if self.window.is_some() && !changes.order_by.is_empty() {
            return Err(Error::config(
                "sink.iceberg.changes.order_by is not for panes: the last one of a window counts",
            )
            .hint("leave `order_by` out"));
        }
        // What is declared, or made by SQL, is looked at when the rows are known.
        if self.transform.is_none() && self.format.declared_schema().is_none() {
            let order = self.format.check_order(&changes.order_by, None);
            order.map_err(path)?;
        }
        Ok(())
    }

    /// Checks what can be said of changes once the schema of the rows is known.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn check_rows(&self, rows: &Schema) -> Result<()> {
        let Some(changes) = self.sink.changes() else {
            return Ok(());
        };
        let order = self.format.check_order(&changes.order_by, Some(rows));
        order.map_err(|error| error.context("sink.iceberg"))
    }
}

/// A pipeline's name is a folder, and a part of file names and table properties.
fn name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(plain)
        && name.len() <= LONGEST_NAME;
    if fits {
        return Ok(());
    }
    let mut better: String = name
        .to_lowercase()
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .take(LONGEST_NAME)
        .collect();
    better = better.trim_matches(['-', '_']).to_owned();
    let rule = "up to 63 of a-z, 0-9, `-` and `_`, a letter or digit first";
    Err(
        Error::config(format!("not a name for a pipeline: path=name name={name}")).hint(
            if better.is_empty() {
                rule.to_owned()
            } else {
                format!("{rule}; for example `{better}`")
            },
        ),
    )
}

/// Checks the URL of a Parquet table.
fn remote_table(path: &str) -> Result<()> {
    let what = shown(path);
    writable("sink.parquet.path", path)?;
    // What belongs to the table, and is not in it, lies beside it.
    let below = path.split_once("://").map_or("", |(_, rest)| rest);
    if !below.trim_end_matches('/').contains('/') {
        return Err(
            Error::config(format!("sink.parquet.path is a whole bucket: path={what}"))
                .hint("name a folder in it, for example s3://bucket/orders"),
        );
    }
    Ok(())
}

/// That a URL names a store that can be written to.
fn writable(key: &str, path: &str) -> Result<()> {
    let what = shown(path);
    match Kind::of_prefix(path) {
        Some(Kind::S3 | Kind::Gcs | Kind::Azure) => Ok(()),
        Some(Kind::Http) => Err(Error::config(format!(
            "{key} is on a server that cannot be written to: path={what}"
        ))
        .hint("write to s3://, gs:// or az://, or to a local folder")),
        Some(Kind::Other) | None => Err(Error::config(format!(
            "{key} is not a URL that is known: path={what}"
        ))
        .hint("s3://, gs:// and az:// are known")),
    }
}

/// A place that can be compared: a local path as of [`local`], or a URL without a `/` at its end.
fn place(path: &str) -> PathBuf {
    local(path).unwrap_or_else(|| PathBuf::from(path.trim_end_matches('/')))
}

/// A local path, absolute and without `.` and `..`; links are not followed. None for other URLs.
fn local(path: &str) -> Option<PathBuf> {
    let path = path.strip_prefix("file://").unwrap_or(path);
    if path.contains("://") {
        return None;
    }
    let mut clean = PathBuf::new();
    for part in std::path::absolute(Path::new(path)).ok()?.components() {
        if part == Component::ParentDir {
            clean.pop();
        } else {
            clean.push(part);
        }
    }
    Some(clean)
}

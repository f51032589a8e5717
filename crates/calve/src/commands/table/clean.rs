//! `calve table clean`: gathers what is alive first (`live.rs`), and refuses when it cannot know.

use std::path::{Path, PathBuf};

use calve_connect::units::Span;
use calve_engine::{
    Error, Result, clock,
    rejects::{RejectsOutput, RejectsPlace},
    stores::{Stores, is_remote},
};
use calve_lake::{iceberg, parquet};

use super::{super::query::CatalogArgs, live, size};
use crate::{
    config::{self, PipelineFile},
    out,
    pipeline::{self, SHARD},
};

/// Files that a running pipeline may be writing are younger than this.
const YOUNG: std::time::Duration = std::time::Duration::from_hours(1);

/// Arguments of `calve table clean`.
#[derive(Debug, clap::Args)]
pub(super) struct CleanArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// Only files that were last changed this long ago or earlier; below an hour only with `--stopped`
    #[arg(long, value_name = "DURATION", default_value = "1d")]
    older_than: Span,
    /// No pipeline or compaction that writes to this table is running, and none is started meanwhile
    #[arg(long)]
    stopped: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    checkpoint: live::CheckpointArgs,
    /// The table: namespace.name, or the folder or URL of a plain Parquet table. For a URL, `--file`
    /// names the pipeline file with its `stores`
    table: String,
}

/// Removes what nothing refers to, or says what it would remove.
///
/// # Errors
/// `Config` for what is no table, or files so young that they may be in use; those of the stores.
pub(super) async fn clean(args: CleanArgs) -> Result<()> {
    if args.older_than.0 < YOUNG && !args.stopped && !args.dry_run {
        return Err(Error::config(format!(
            "a running pipeline may be writing files this young, and nothing refers to them yet: older_than={}",
            args.older_than
        ))
        .hint(
            "clean files older than an hour; or stop every pipeline that writes to this table, then add \
             `--stopped`",
        ));
    }
    let file = args.catalog.file().map(config::load).transpose()?;
    let stores = match &file {
        Some(file) => pipeline::stores(file),
        None => Stores::new(pipeline::environment(), Vec::new()),
    };
    let (names, bytes) = if is_remote(&args.table) {
        clean_remote(&args, file.as_ref(), stores).await?
    } else if let Some(folder) = parquet_folder(&args)? {
        let given = live::Given::new(&args.checkpoint.checkpoint, live::beside(&folder), stores);
        let live = live::parquet(&given, &folder).await?;
        let path = folder.display().to_string();
        let cleaned = parquet::clean(&path, args.older_than.0, &live, args.dry_run).await?;
        (cleaned.files, cleaned.bytes)
    } else {
        let catalog = args.catalog.config()?;
        let details = iceberg::show(&catalog, &args.table).await?;
        let given = args.checkpoint.given(&args.catalog, &catalog, &details)?;
        let live = live::iceberg(&given, &details).await?;
        let cleaned = Box::pin(iceberg::clean(
            &catalog,
            &args.table,
            args.older_than.0,
            &live,
            args.dry_run,
        ))
        .await?;
        (cleaned.names, cleaned.bytes)
    };
    for name in &names {
        out::line(name);
    }
    let verb = if args.dry_run {
        "would remove"
    } else {
        "removed"
    };
    out::note(format!("{verb} files={} size={}", names.len(), size(bytes)));
    Ok(())
}

/// Cleans a plain Parquet table in an object store, and the staged rejects of the pipeline whose file
/// was named.
async fn clean_remote(
    args: &CleanArgs,
    file: Option<&PipelineFile>,
    stores: Stores,
) -> Result<(Vec<String>, u64)> {
    let folder = stores.open(&args.table)?;
    let table = parquet::ObjectOutput::of(folder.clone());
    if folder.head("_calve/id").await?.is_none() {
        return Err(Error::config(format!(
            "not a Parquet table of calve's: path={}",
            folder.shown()
        ))
        .hint("name the `path` of a pipeline's `sink.parquet`"));
    }
    let default = file.map_or_else(
        || config::beside(&args.table, live::FOLDER),
        PipelineFile::checkpoint_location,
    );
    let given = live::Given::new(&args.checkpoint.checkpoint, vec![default], stores.clone());
    let before_ms = clock::now_ms().saturating_sub(args.older_than.0.as_millis() as i64);
    let (live, staged) = live::remote(&given, &table).await?;
    let cleaned = table.clean(args.older_than.0, &live, args.dry_run).await?;
    let (mut names, mut bytes) = (cleaned.files, cleaned.bytes);
    if let Some(file) = file {
        let place = RejectsPlace::open(&file.rejects_location(), &stores)?;
        let output = RejectsOutput::new(place);
        let shard = (file.name.as_str(), SHARD);
        for one in output
            .clean(shard, before_ms, &staged, args.dry_run)
            .await?
        {
            bytes += one.bytes;
            names.push(one.name);
        }
    }
    Ok((names, bytes))
}

/// The folder of a plain Parquet table, if that is what was named.
fn parquet_folder(args: &CleanArgs) -> Result<Option<PathBuf>> {
    let path = Path::new(args.table.strip_prefix("file://").unwrap_or(&args.table));
    if path.join("_calve").is_dir() {
        return Ok(Some(path.to_owned()));
    }
    if args.table.contains('/') || path.is_dir() {
        return Err(Error::config(format!(
            "not a Parquet table of calve's: path={}",
            path.display()
        ))
        .hint(
            "name the `path` of a pipeline's `sink.parquet`, or an Iceberg table as namespace.name",
        ));
    }
    Ok(None)
}

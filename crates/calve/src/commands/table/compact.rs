//! `calve table compact`: many small files become few, and deleted rows are left out.

use std::sync::Arc;

use calve_connect::units::ByteSize;
use calve_engine::{Error, Result};
use calve_lake::iceberg::{self, CompactOptions};

use super::{super::query::CatalogArgs, size};
use crate::out;

/// Arguments of `calve table compact`.
#[derive(Debug, clap::Args)]
pub(super) struct CompactArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// New files have about this size; those that reach three quarters of it are left alone
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    target_file_size: ByteSize,
    /// Leaves a table partition alone that has fewer small files
    #[arg(long, value_name = "N", default_value_t = 5)]
    min_files: usize,
    /// Rewrites every file from which rows are deleted; else those that lost a third of their rows
    #[arg(long)]
    all: bool,
    /// Sorts the rows of each new file by the table's sort order, in memory
    #[arg(long)]
    sort: bool,
    /// Rows on their way into files take about this much memory; the process takes two to three times as much
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    memory: ByteSize,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// The table: namespace.name
    table: String,
}

/// Compacts, or says what it would compact.
///
/// # Errors
/// `Config` for what is no table, or one that cannot be compacted; `Conflict` when others commit all
/// the time.
pub(super) async fn compact(args: CompactArgs) -> Result<()> {
    if args.target_file_size.0 == 0 {
        return Err(Error::config("the target size of files is zero")
            .hint("leave `--target-file-size` out, or write 128MiB"));
    }
    let options = CompactOptions {
        target_file_size: args.target_file_size.0,
        min_files: args.min_files,
        all_deletes: args.all,
        sort: args.sort,
        memory_bytes: usize::try_from(args.memory.0).unwrap_or(usize::MAX),
        dry_run: args.dry_run,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .thread_name(|n| format!("calve-encode-{n}"))
        .build()
        .map_err(|e| Error::internal("cannot start the threads that encode").because(e))?;
    let catalog = args.catalog.config()?;
    let done = Box::pin(iceberg::compact(
        &catalog,
        &args.table,
        &options,
        Arc::new(pool),
    ))
    .await?;
    let before = format!(
        "files={} size={}",
        done.files_before,
        size(done.bytes_before)
    );
    if args.dry_run {
        out::note(format!("would rewrite groups={} {before}", done.groups));
        return Ok(());
    }
    for snapshot in &done.snapshots {
        out::line(snapshot);
    }
    out::note(format!(
        "rewrote groups={} {before} into files={} size={}, left out deleted rows={}, removed delete files={}",
        done.groups,
        done.files_after,
        size(done.bytes_after),
        done.rows_deleted,
        done.deletes_removed
    ));
    if done.groups_left > 0 {
        out::note(format!(
            "left alone groups={}, which others changed each time before they were committed; \
             a pipeline of changes merges its files itself: `upkeep: {{ compact: auto }}`",
            done.groups_left
        ));
    }
    Ok(())
}

//! Upkeep of the table while a pipeline runs: small files become few, and deleted rows are left out. What
//! a table of changes needs is planned here, and done by the table's output between its commits. In other
//! tables it is a writer of its own, which costs the pipeline a retry when both commit at once.

use std::{sync::Arc, time::Duration};

use calve_engine::{Error, Result};
use calve_lake::{
    changes::{ChangesConfig, Mode, Settle, Upkeep},
    iceberg::{self, CompactOptions, Tiers},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Compact, PipelineFile, SinkConfig},
    shares::Shares,
};

/// Fewer small files of a table partition are left alone.
const MIN_FILES: usize = 5;
/// However often the user wants it.
const SHORTEST: Duration = Duration::from_millis(100);

/// When the files of a table of changes are merged.
pub(crate) fn of_changes(file: &PipelineFile) -> Upkeep {
    let upkeep = file.upkeep.clone().unwrap_or_default();
    let target_file_size = file.commit.target_file_size.0;
    let tiers = Tiers {
        target_file_size,
        min_files: upkeep.min_files,
        deleted_share: upkeep.deleted_share,
    };
    let settle = Settle {
        target_file_size,
        bytes: upkeep.settle.0,
    };
    let auto = upkeep.compact == Compact::Auto;
    Upkeep {
        tiers: auto.then_some(tiers),
        every: upkeep.compact_every.map(|every| (every.0, options(file))),
        settle: (auto && settle.bytes > 0).then_some(settle),
    }
}

/// How long nothing was committed when there is time: where commits are seldom, that says little.
pub(crate) fn settle_after(file: &PipelineFile) -> Duration {
    let wanted = file.upkeep.clone().unwrap_or_default().settle_after.0;
    wanted.max(2 * file.commit.longest().0)
}

/// As `calve table compact` without options.
fn options(file: &PipelineFile) -> CompactOptions {
    CompactOptions {
        target_file_size: file.commit.target_file_size.0,
        min_files: MIN_FILES,
        all_deletes: false,
        sort: false,
        memory_bytes: Shares::of(file).compaction as usize,
        dry_run: false,
    }
}

/// Compacts a table that is only appended to, again and again until `ended`; what fails is tried again at
/// the next time.
///
/// # Errors
/// `Internal` when the thread that encodes cannot be started.
pub(crate) fn start(file: &PipelineFile, ended: CancellationToken) -> Result<()> {
    let (Some(upkeep), SinkConfig::Iceberg(table)) = (&file.upkeep, &file.sink) else {
        return Ok(());
    };
    let Some(every) = upkeep.compact_every else {
        return Ok(());
    };
    let merges = |changes: &ChangesConfig| changes.mode != Mode::Append;
    if table.changes.as_deref().is_some_and(merges) {
        return Ok(());
    }
    let (catalog, name) = (table.catalog.clone(), table.table.clone());
    let options = options(file);
    // One thread: the pipeline comes first.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .thread_name(|_| "calve-upkeep-encode".to_owned())
        .build()
        .map_err(|e| Error::internal("cannot start the thread of the upkeep").because(e))?;
    let (pool, every) = (Arc::new(pool), every.0);
    // A compaction decodes and filters, which is nothing for the threads of the I/O.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal("cannot make the runtime of the upkeep").because(e))?;
    let work = async move {
        loop {
            tokio::time::sleep(every.max(SHORTEST)).await;
            match iceberg::compact(&catalog, &name, &options, pool.clone()).await {
                Ok(done) if done.snapshots.is_empty() => {}
                Ok(done) => tracing::info!(
                    table = name,
                    files_before = done.files_before,
                    files_after = done.files_after,
                    rows_deleted = done.rows_deleted,
                    "compacted"
                ),
                Err(error) => tracing::warn!(%error, table = name, "cannot compact now"),
            }
        }
    };
    std::thread::Builder::new()
        .name("calve-upkeep".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = work => {}
                }
            });
        })
        .map_err(|e| Error::internal("cannot start the thread of the upkeep").because(e))?;
    Ok(())
}

//! `calve table delete`: rows that a filter means go.

use std::sync::Arc;

use calve_connect::units::ByteSize;
use calve_engine::{Error, Result};
use calve_lake::iceberg::{self, CompactOptions};

use super::super::query::CatalogArgs;
use crate::out;

/// Arguments of `calve table delete`.
#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// Which rows: "region = 'eu' AND (amount > 5 OR sku IS NULL)"
    #[arg(long, value_name = "FILTER")]
    r#where: String,
    /// New files have about this size
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    target_file_size: ByteSize,
    /// Rows on their way into files take about this much memory; the process takes two to three times as much
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    memory: ByteSize,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// The table: namespace.name
    table: String,
}

/// Deletes rows, or says how many it would.
///
/// # Errors
/// `Config` for what is no table, or a filter that does not fit it; `Conflict` when others commit all
/// the time.
pub(super) async fn delete(args: DeleteArgs) -> Result<()> {
    let options = CompactOptions {
        target_file_size: args.target_file_size.0.max(1),
        min_files: 1,
        all_deletes: true,
        sort: false,
        memory_bytes: usize::try_from(args.memory.0).unwrap_or(usize::MAX),
        dry_run: args.dry_run,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .thread_name(|n| format!("calve-encode-{n}"))
        .build()
        .map_err(|e| Error::internal("cannot start the threads that encode").because(e))?;
    let catalog = args.catalog.config()?;
    let (table, filter) = (&args.table, &args.r#where);
    let deleted = iceberg::delete_where(&catalog, table, filter, &options, Arc::new(pool));
    let done = Box::pin(deleted).await?;
    if let Some(snapshot) = &done.snapshot {
        out::line(snapshot);
    }
    let what = if args.dry_run {
        "would delete"
    } else {
        "deleted"
    };
    out::note(format!(
        "{what} rows={}, removed files={}, wrote again files={}",
        done.rows, done.files_removed, done.files_rewritten
    ));
    Ok(())
}

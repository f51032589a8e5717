//! `calve table expire`: forgets old snapshots, and removes what only they referred to.

use calve_connect::units::Span;
use calve_engine::Result;
use calve_lake::iceberg::{self, ExpireOptions};

use super::{super::query::CatalogArgs, live, size};
use crate::out;

/// Arguments of `calve table expire`.
#[derive(Debug, clap::Args)]
pub(super) struct ExpireArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// Only snapshots that are older than this
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    older_than: Span,
    /// Keeps so many of the newest, however old they are
    #[arg(long, value_name = "N", default_value_t = 10)]
    keep: usize,
    /// Only say what would be forgotten and removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    checkpoint: live::CheckpointArgs,
    /// The table: namespace.name
    table: String,
}

/// Forgets snapshots, or says which.
///
/// # Errors
/// `Config` for what is no table, or pipelines whose checkpoints are not found.
pub(super) async fn expire(args: ExpireArgs) -> Result<()> {
    let catalog = args.catalog.config()?;
    let details = iceberg::show(&catalog, &args.table).await?;
    let given = args.checkpoint.given(&args.catalog, &catalog, &details)?;
    let live = live::iceberg(&given, &details).await?;
    let options = ExpireOptions {
        older_than: args.older_than.0,
        keep: args.keep,
        dry_run: args.dry_run,
    };
    let expired = Box::pin(iceberg::expire(&catalog, &args.table, &options, &live)).await?;
    for name in &expired.removed.names {
        out::line(name);
    }
    let (forgot, removed) = if args.dry_run {
        ("would forget", "would remove")
    } else {
        ("forgot", "removed")
    };
    out::note(format!(
        "{forgot} snapshots={}, {removed} files={} size={}",
        expired.snapshots.len(),
        expired.removed.files,
        size(expired.removed.bytes)
    ));
    Ok(())
}

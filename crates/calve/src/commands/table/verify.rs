//! `calve table verify`: checks a table, and prints what is wrong.

use calve_engine::{Error, Result};
use calve_lake::iceberg;

use super::{super::query::CatalogArgs, json, live};
use crate::out;

/// Arguments of `calve table verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    #[command(flatten)]
    checkpoint: live::CheckpointArgs,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// The table: namespace.name
    table: String,
}

/// Prints one line for each finding.
///
/// # Errors
/// `Corrupt` when there is a finding; `Config` for what is no table, or pipelines whose checkpoints are
/// not found.
pub(super) async fn verify(args: VerifyArgs) -> Result<()> {
    let catalog = args.catalog.config()?;
    let details = iceberg::show(&catalog, &args.table).await?;
    let given = args.checkpoint.given(&args.catalog, &catalog, &details)?;
    let records = live::parts(&given, &details).await?;
    let found = Box::pin(iceberg::verify(&catalog, &args.table, &records)).await?;
    for finding in &found {
        out::line(if args.json {
            json(finding)?
        } else {
            format!("{}: {}", finding.kind, finding.what)
        });
    }
    if found.is_empty() {
        out::note(format!(
            "nothing is wrong: table={} snapshots={} records={}",
            details.info.name,
            details.info.snapshots,
            records.len()
        ));
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the table is not as it should be: table={} findings={}",
        details.info.name,
        found.len()
    )))
}

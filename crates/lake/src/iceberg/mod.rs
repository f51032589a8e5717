//! Apache Iceberg tables: catalog, creation and check, placement of rows, commits, upkeep.
//!
//! The crate `iceberg` gives types, manifests and scans; the commit is our own, because an epoch
//! must become visible once and the outcome of each try must be known (see `commit.rs`). Data files
//! come from the shared writer in [`crate::write`].
//!
//! Invariant: whatever a table's row leads to is durable before the row says so, and is removed only
//! when it is proven that nothing refers to it. Start with [`open`], then `commit.rs`.

pub(crate) mod access;
mod bounds;
pub(crate) mod catalog;
mod clean;
pub(crate) mod commit;
pub(crate) mod compact;
mod config;
mod create;
pub(crate) mod deletes;
mod drafts;
pub(crate) mod edit;
pub(crate) mod epochs;
pub(crate) mod evolve;
mod expire;
pub(crate) mod files;
pub(crate) mod handle;
pub(crate) mod held;
pub(crate) mod live;
mod manifests;
mod overwrite;
mod place;
pub(crate) mod publish;
mod readdress;
mod schema;
pub(crate) mod snapshot;
mod storage;
mod summary;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod unite;
mod verify;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use calve_engine::{
    error::Result,
    seams::{Output, TableWriter},
};

use catalog::Catalog;
pub use clean::{Cleaned, clean, content_files};
pub use commit::IcebergOutput;
pub use compact::{CompactOptions, Compacted, Tiers, compact};
pub use config::{CatalogConfig, IcebergConfig, RestConfig, SigV4Config, TableName};
pub use evolve::Evolution;
pub use expire::{ExpireOptions, Expired, expire};
pub use overwrite::{Deleted, delete_where};
pub use tables::{
    ColumnInfo, ShardInfo, SnapshotInfo, TableDetails, TableInfo, Totals, forget, load_table, ls,
    pipelines, show, show_if_there,
};

pub use verify::{Finding, RecordPart, verify};

use handle::TableHandle;

use crate::{
    changes,
    write::{Placement, WriteOptions},
};

/// Opens a table for a shard of a pipeline: creates it when missing, or checks that it fits.
///
/// `rows` is the schema of the rows after the transform, which are `changes` where there is such a
/// section; `pool` encodes. Call it within a Tokio runtime that outlives what is returned.
///
/// # Errors
/// `Config` for wrong settings, `Schema` when the table does not fit the rows.
pub async fn open(
    config: &IcebergConfig,
    options: &WriteOptions,
    rows: SchemaRef,
    (pipeline, shard): (&str, &str),
    pool: Arc<rayon::ThreadPool>,
    changes: Option<&changes::Opening<'_>>,
) -> Result<(Box<dyn TableWriter>, Arc<dyn Output>)> {
    let schema = match changes {
        Some(changes) => changes::table_schema(changes.config, changes.hidden, &rows)?,
        None => rows.clone(),
    };
    let table = TableName::parse(&config.table)?;
    let catalog = Catalog::create(&config.catalog).await?;
    let (metadata, evolved) = create::create_or_check(&catalog, config, &table, &schema).await?;
    tracing::debug!(%table, pipeline, shard, uuid = %metadata.uuid(), "opened the table");
    let placement = match evolved.clone() {
        Some(evolved) => place::IcebergPlacement::evolved(&metadata, evolved, &schema)?,
        None => place::IcebergPlacement::new(&metadata, &schema)?,
    };
    let root = placement.root().to_owned();
    let placement: Arc<dyn Placement> = Arc::new(placement);
    let mut options = options.clone();
    options
        .bloom_filters
        .extend(bloom_filters(metadata.properties()));
    let files = placement.file_schema();
    let access = catalog.access(&table);
    let writer = access.writer(&root, shard, placement, &options, pool.clone())?;
    let output = IcebergOutput::new(catalog.clone(), table.clone(), metadata.uuid());
    let opened: (Box<dyn TableWriter>, Arc<dyn Output>) = (Box::new(writer), Arc::new(output));
    let Some(changes) = changes else {
        return Ok(opened);
    };
    let beside = || {
        catalog
            .local_warehouse()
            .map(|folder| folder.join(".calve-index"))
    };
    let folder = changes.config.index.path.clone().or_else(beside);
    let index = folder
        .unwrap_or_else(|| ".calve-index".into())
        .join(pipeline)
        .join(metadata.uuid().to_string());
    let handle = TableHandle::new(catalog, table, metadata.uuid());
    changes.open(&rows, (&files, evolved), handle, opened, index, pool)
}

/// Checks what [`open`] would, and creates nothing: that the table which the configuration names could
/// be created for rows of `schema`; and with `existing`, where it is there already, that it fits.
/// Answers whether it was found.
///
/// # Errors
/// `Config` for wrong settings, `Schema` when the table does not fit the rows.
pub async fn check(config: &IcebergConfig, schema: &SchemaRef, existing: bool) -> Result<bool> {
    let table = TableName::parse(&config.table)?;
    let planned = create::plan(config, &table, schema, "file:///".to_owned())?;
    let mut found = None;
    if existing && let Some(catalog) = Catalog::find(&config.catalog).await? {
        let access = catalog.access(&table);
        if let Some(loaded) = catalog.load(&table, None).await? {
            // Its store can be reached, too.
            access.size(&loaded.location).await?;
            found = Some(loaded.metadata);
        }
    }
    let evolved = match &found {
        Some(metadata) => create::check(metadata, config, &table, schema)?,
        None => None,
    };
    let metadata = found.as_deref().unwrap_or(&planned);
    match evolved {
        Some(evolved) => place::IcebergPlacement::evolved(metadata, evolved, schema)?,
        None => place::IcebergPlacement::new(metadata, schema)?,
    };
    Ok(found.is_some())
}

/// Columns for which the table asks for bloom filters.
fn bloom_filters(
    properties: &std::collections::HashMap<String, String>,
) -> impl Iterator<Item = String> {
    properties
        .iter()
        .filter(|(_, value)| *value == "true")
        .filter_map(|(name, _)| {
            name.strip_prefix("write.parquet.bloom-filter-enabled.column.")
                .map(str::to_owned)
        })
}

#[cfg(test)]
mod bloom_tests {
    use super::*;

    #[test]
    fn a_property_asks_for_bloom_filters() {
        let named = |column: &str, value: &str| {
            let name = format!("write.parquet.bloom-filter-enabled.column.{column}");
            (name, value.to_owned())
        };
        let properties = [named("id", "true"), named("region", "false")];
        let columns: Vec<_> = bloom_filters(&properties.into()).collect();
        assert_eq!(columns, ["id"]);
    }
}

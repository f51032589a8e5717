//! Looks at the tables of a catalog: for `calve table ls|show`, `calve query`, and to let go of a
//! pipeline.

use calve_engine::error::{Error, Result};
use calve_model::Offsets;
use iceberg::{
    Runtime, TableIdent,
    spec::{FormatVersion, ManifestContentType, Operation, SnapshotRef, TableMetadata},
    table::Table,
};
use serde::Serialize;

use super::{
    access::FileAccess,
    catalog::{Catalog, Loaded},
    config::{CatalogConfig, TableName},
    create::partition_terms,
    edit::Edit,
    handle::{TableHandle, Tries},
    held::{self, Held, ancestors, of_shard, parse_property, parse_truncated, summary},
    live::LiveFiles,
    manifests, schema,
};

/// A table in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableInfo {
    /// `namespace.name`.
    pub name: String,
    /// Its folder.
    pub location: String,
    /// Version of the table format.
    pub format_version: u8,
    /// The partition spec, as the pipeline file would say it.
    pub partition_by: Vec<String>,
    /// Number of snapshots that are kept.
    pub snapshots: usize,
    /// When the current snapshot was made, milliseconds since 1970.
    pub updated_ms: Option<i64>,
    /// What is in it.
    pub totals: Totals,
}

/// What a table holds at its current snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Rows of the data files; rows that delete files remove are counted.
    pub rows: Option<u64>,
    /// Data files.
    pub files: Option<u64>,
    /// Size of all files, where the snapshot tells it.
    pub bytes: Option<u64>,
}

/// Everything about a table.
#[derive(Clone, Debug, Serialize)]
pub struct TableDetails {
    /// As in a list.
    pub info: TableInfo,
    /// Identity of the table.
    pub uuid: String,
    /// Location of the newest metadata file.
    pub metadata_location: String,
    /// Columns in their order.
    pub columns: Vec<ColumnInfo>,
    /// The sort order that the table declares.
    pub sort_by: Vec<String>,
    /// Table properties, by name, without calve's own.
    pub properties: Vec<(String, String)>,
    /// What pipelines have committed.
    pub shards: Vec<ShardInfo>,
    /// The history, newest first.
    pub snapshots: Vec<SnapshotInfo>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnInfo {
    /// Field id.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// Iceberg's type.
    #[serde(rename = "type")]
    pub data_type: String,
    /// It has no nulls.
    pub required: bool,
}

/// What the table holds of one shard of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardInfo {
    /// The pipeline's id.
    pub pipeline: String,
    /// The shard.
    pub shard: String,
    /// The last epoch.
    pub epoch: u64,
    /// Digest of that epoch's record.
    pub digest: String,
    /// Digest of the offsets at its end.
    pub offsets_digest: String,
    /// Watermark of the shard's last snapshot, microseconds of event time.
    pub watermark: Option<i64>,
    /// Every window that ends at or before this event time is closed, in microseconds.
    pub windows_complete: Option<i64>,
    /// Offsets of the shard's last snapshot, where the history still has it.
    pub offsets: Option<Offsets>,
    /// Path of the record in the checkpoint store.
    pub record: Option<String>,
    /// The shard's last snapshot.
    pub snapshot: Option<i64>,
    /// Why the property and the history disagree, if they do.
    pub trouble: Option<String>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: i64,
    /// When it was made, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// append, overwrite, replace or delete.
    pub operation: String,
    /// Rows that it added.
    pub added_rows: Option<u64>,
    /// Data files that it added.
    pub added_files: Option<u64>,
    /// Pipeline, shard and epoch, when calve made it.
    pub epoch: Option<(String, String, u64)>,
}

/// The tables of a catalog, by name.
///
/// # Errors
/// `Config` when there is no catalog; `Corrupt` when a table cannot be read.
pub async fn ls(config: &CatalogConfig) -> Result<Vec<TableInfo>> {
    let catalog = Catalog::open(config).await?;
    let mut tables = Vec::new();
    for name in catalog.tables().await? {
        // One that was dropped meanwhile is none any more.
        if let Some(loaded) = catalog.load(&name, None).await? {
            tables.push(info(&catalog, &name, &loaded.metadata).await?);
        }
    }
    Ok(tables)
}

/// Everything about one table, named `namespace.name`.
///
/// # Errors
/// `Config` when there is no such table.
pub async fn show(config: &CatalogConfig, table: &str) -> Result<TableDetails> {
    let catalog = Catalog::open(config).await?;
    let (name, loaded) = find(&catalog, table).await?;
    details(&catalog, &name, loaded).await
}

/// The same; none where there is no such table, or no catalog yet.
///
/// # Errors
/// `Unavailable` when the catalog does not answer; `Corrupt` when the table cannot be read.
pub async fn show_if_there(config: &CatalogConfig, table: &str) -> Result<Option<TableDetails>> {
    let name = TableName::parse(table)?;
    let Some(catalog) = Catalog::find(config).await? else {
        return Ok(None);
    };
    match catalog.load(&name, None).await? {
        Some(loaded) => details(&catalog, &name, loaded).await.map(Some),
        None => Ok(None),
    }
}

async fn details(catalog: &Catalog, name: &TableName, loaded: Loaded) -> Result<TableDetails> {
    let Loaded { location, metadata } = loaded;
    let schema = metadata.current_schema();
    let columns = schema
        .as_struct()
        .fields()
        .iter()
        .map(|field| ColumnInfo {
            id: field.id,
            name: field.name.clone(),
            data_type: schema::show(&field.field_type),
            required: field.required,
        })
        .collect();
    let sort_by = metadata
        .default_sort_order()
        .fields
        .iter()
        .map(|field| {
            let column = schema
                .name_by_field_id(field.source_id)
                .unwrap_or("?")
                .to_owned();
            let term = super::config::Term {
                transform: field.transform,
                column,
            };
            format!("{term} {} nulls {}", field.direction, field.null_order)
        })
        .collect();
    let mut properties: Vec<_> = metadata
        .properties()
        .iter()
        .filter(|(name, _)| parse_property(name).is_none() && parse_truncated(name).is_none())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    properties.sort();
    Ok(TableDetails {
        info: info(catalog, name, &metadata).await?,
        uuid: metadata.uuid().to_string(),
        columns,
        sort_by,
        properties,
        shards: shards(&metadata),
        snapshots: ancestors(&metadata).map(snapshot_info).collect(),
        metadata_location: location,
    })
}

/// A table to scan. Call it within a Tokio runtime.
///
/// # Errors
/// `Config` when there is no such table.
pub async fn load_table(config: &CatalogConfig, table: &str) -> Result<Table> {
    let catalog = Catalog::open(config).await?;
    let (name, Loaded { location, metadata }) = find(&catalog, table).await?;
    if metadata.format_version() == FormatVersion::V3 {
        refuse_vectors(&catalog, table).await?;
    }
    let failed =
        |e: iceberg::Error| Error::internal(format!("cannot open table={table}")).because(e);
    let levels = name.namespace.split('.').chain([name.name.as_str()]);
    Table::builder()
        .file_io(catalog.access(&name).io().clone())
        .identifier(TableIdent::from_strs(levels).map_err(failed)?)
        .metadata_location(location)
        .metadata(metadata)
        .runtime(Runtime::try_current().map_err(failed)?)
        .build()
        .map_err(failed)
}

/// The scan of the crate `iceberg` takes vectors for Parquet files.
async fn refuse_vectors(catalog: &Catalog, table: &str) -> Result<()> {
    let handle = TableHandle::open(catalog.clone(), table).await?;
    let mut live = LiveFiles::default();
    handle
        .live(&handle.load_existing().await?, &mut live)
        .await?;
    if live.deletes().any(|delete| delete.is_vector()) {
        return Err(Error::config(format!(
            "the table has deletion vectors, which cannot be scanned here yet: table={table}"
        ))
        .hint(
            "read it with DuckDB, PyIceberg or Spark; or `calve table compact --all --min-files 1`, \
             which applies them",
        ));
    }
    Ok(())
}

/// Pipelines that the table holds epochs of; their records refer to files that are alive.
///
/// # Errors
/// `Config` when there is no such table.
pub async fn pipelines(config: &CatalogConfig, table: &str) -> Result<Vec<String>> {
    let catalog = Catalog::open(config).await?;
    let (_, found) = find(&catalog, table).await?;
    let mut names: Vec<String> = shards(&found.metadata)
        .into_iter()
        .map(|shard| shard.pipeline)
        .collect();
    names.dedup();
    Ok(names)
}

/// Removes a pipeline's properties from a table, for `calve checkpoint reset`: the table forgets
/// how far the pipeline was, and keeps its rows. Answers how many shards were forgotten.
///
/// # Errors
/// `Conflict` when others commit all the time.
pub async fn forget(config: &CatalogConfig, table: &str, pipeline: &str) -> Result<usize> {
    let handle = TableHandle::open(Catalog::open(config).await?, table).await?;
    let mut tries = Tries::new(&handle);
    loop {
        let known = tries.load().await?;
        let mut edit = Edit::new(Operation::Append);
        let of = |parsed: fn(&str) -> Option<(String, String)>| {
            let names = known.metadata.properties().keys();
            let of_it = names.filter(move |key| parsed(key).is_some_and(|(p, _)| p == pipeline));
            of_it.cloned().collect::<Vec<_>>()
        };
        edit.remove_properties = of(parse_property);
        let gone = edit.remove_properties.len();
        edit.remove_properties.extend(of(parse_truncated));
        if gone == 0 || tries.commit(&known, edit).await?.is_some() {
            return Ok(gone);
        }
    }
}

/// A table by its name.
pub(super) async fn find(catalog: &Catalog, table: &str) -> Result<(TableName, Loaded)> {
    let name = TableName::parse(table)?;
    if let Some(loaded) = catalog.load(&name, None).await? {
        return Ok((name, loaded));
    }
    let tables = catalog.tables().await?;
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    Err(
        Error::config(format!("no such table: table={table}")).hint(if names.is_empty() {
            "the catalog has no tables".to_owned()
        } else {
            format!("the catalog has: {}", names.join(", "))
        }),
    )
}

async fn info(catalog: &Catalog, name: &TableName, metadata: &TableMetadata) -> Result<TableInfo> {
    Ok(TableInfo {
        name: name.to_string(),
        location: metadata.location().to_owned(),
        format_version: metadata.format_version() as u8,
        partition_by: partition_terms(metadata),
        snapshots: metadata.snapshots().len(),
        updated_ms: metadata.current_snapshot().map(|s| s.timestamp_ms()),
        totals: totals(&catalog.access(name), metadata).await?,
    })
}

async fn totals(access: &FileAccess, metadata: &TableMetadata) -> Result<Totals> {
    let Some(current) = metadata.current_snapshot() else {
        return Ok(Totals {
            rows: Some(0),
            files: Some(0),
            bytes: Some(0),
        });
    };
    let told = |key: &str| summary(current, key).and_then(|text| text.parse::<u64>().ok());
    let mut totals = Totals {
        rows: told("total-records"),
        files: told("total-data-files"),
        bytes: told("total-files-size"),
    };
    if totals.rows.is_none() || totals.files.is_none() {
        let list = manifests::manifests(access, metadata).await?;
        let data = || {
            list.iter()
                .filter(|m| m.content == ManifestContentType::Data)
        };
        totals.rows = data()
            .map(|m| Some(m.added_rows_count? + m.existing_rows_count?))
            .sum();
        totals.files = data()
            .map(|m| Some(u64::from(m.added_files_count?) + u64::from(m.existing_files_count?)))
            .sum();
    }
    Ok(totals)
}

fn shards(metadata: &TableMetadata) -> Vec<ShardInfo> {
    let mut shards: Vec<ShardInfo> = metadata
        .properties()
        .iter()
        .filter_map(|(name, value)| {
            let (pipeline, shard) = parse_property(name)?;
            let held = Held::parse(value)?;
            // Where the history was cut in between, the shard's last snapshot stands alone.
            let alone = || {
                let snapshot = metadata.snapshot_by_id(held.snapshot?)?;
                of_shard(snapshot, &pipeline, &shard).then_some(snapshot)
            };
            let last = ancestors(metadata)
                .find(|s| of_shard(s, &pipeline, &shard))
                .or_else(alone);
            let told = |key: &str| last.and_then(|s| summary(s, key));
            let trouble = Held::of(metadata, &pipeline, &shard).err();
            Some(ShardInfo {
                epoch: held.epoch.0,
                digest: held.digest,
                offsets_digest: held.offsets,
                snapshot: held.snapshot,
                watermark: told(held::WATERMARK).and_then(|text| text.parse().ok()),
                windows_complete: told(held::WINDOWS_COMPLETE).and_then(|text| text.parse().ok()),
                offsets: told(held::OFFSETS).and_then(|text| serde_json::from_str(text).ok()),
                record: told(held::RECORD).map(str::to_owned),
                trouble: trouble.map(|error| error.message().to_owned()),
                pipeline,
                shard,
            })
        })
        .collect();
    shards.sort_by(|a, b| (&a.pipeline, &a.shard).cmp(&(&b.pipeline, &b.shard)));
    shards
}

fn snapshot_info(snapshot: &SnapshotRef) -> SnapshotInfo {
    let number = |key: &str| summary(snapshot, key).and_then(|text| text.parse().ok());
    let text = |key: &str| summary(snapshot, key).map(str::to_owned);
    SnapshotInfo {
        id: snapshot.snapshot_id(),
        timestamp_ms: snapshot.timestamp_ms(),
        operation: snapshot.summary().operation.as_str().to_owned(),
        added_rows: number("added-records"),
        added_files: number("added-data-files"),
        epoch: text(held::PIPELINE)
            .zip(text(held::SHARD))
            .zip(number(held::EPOCH))
            .map(|((pipeline, shard), epoch)| (pipeline, shard, epoch)),
    }
}

//! Removes files that nothing refers to. In doubt nothing is removed: whatever cannot be read ends
//! the cleaning before it began.
//!
//! A file goes only if no snapshot, no metadata and no statistics refer to it, no checkpoint record
//! does, it is old, it lies in the table's own `data` or `metadata` folder and in no other table's,
//! and it is of a kind that tables are made of. The folder is listed before the references are read,
//! so what is committed meanwhile counts as referred to. Empty folders stay: a writer may be about to
//! create a file in one.

use std::{collections::HashSet, hash::BuildHasher, time::Duration};

use calve_engine::{
    clock::now_ms,
    error::{Error, Result},
    opaque::Opaque,
};
use iceberg::spec::{Manifest, ManifestFile, TableMetadata};
use serde::Serialize;

use crate::changes::content::ChangesContent;

use super::{
    access::{FileAccess, Listed, canonical, unreadable},
    catalog::Catalog,
    config::CatalogConfig,
    files::Content,
    manifests::manifests_of,
    tables::find,
};

/// What a cleaning removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    /// Number of files.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// Their paths, in order.
    pub names: Vec<String>,
}

/// Locations of the data files that an output's part of a checkpoint record refers to.
///
/// # Errors
/// `Corrupt` when it is not an Iceberg table's part.
pub fn content_files(content: &Opaque) -> Result<Vec<String>> {
    let contents = contents(content)?;
    Ok(contents.iter().flat_map(Content::locations).collect())
}

/// The data files of an output's part of a checkpoint record, as they were prepared together.
///
/// # Errors
/// As [`content_files`].
pub(super) fn contents(content: &Opaque) -> Result<Vec<Content>> {
    if ChangesContent::is(content) {
        return ChangesContent::from_json(content)?.files();
    }
    Ok(vec![Content::from_json(content)?])
}

/// Removes what nothing refers to and is older than `older_than`. `live_files` is what checkpoint
/// records of every pipeline in [`super::pipelines`] refer to (see [`content_files`]).
///
/// # Errors
/// `Config` when there is no such table; `Corrupt` when the references cannot be read.
pub async fn clean<S: BuildHasher + Sync>(
    config: &CatalogConfig,
    table: &str,
    older_than: Duration,
    live_files: &HashSet<String, S>,
    dry_run: bool,
) -> Result<Cleaned> {
    let catalog = Catalog::open(config).await?;
    let (name, before) = find(&catalog, table).await?;
    check_owner(&before.metadata, table)?;
    let root = root_of(&before.metadata);
    let access = catalog.access(&name);
    let mut others = Vec::new();
    for other in catalog.tables().await? {
        if other != name
            && let Some(other) = catalog.load(&other, None).await?
        {
            others.push(root_of(&other.metadata));
        }
    }
    let before_ms = now_ms().saturating_sub(older_than.as_millis() as i64);
    let mut found = Vec::new();
    let mut cleaned = Cleaned::default();
    for folder in ["data", "metadata"] {
        let folder = format!("{root}/{folder}");
        found.extend(access.list(&folder, &others).await?);
        let uploads = access.open_uploads(&folder, before_ms).await?;
        for upload in uploads {
            if !dry_run {
                access.abort(&folder, &upload).await?;
            }
            let name = format!("{} (upload {})", upload.path, upload.id);
            cleaned.names.push(name);
        }
    }
    let ours = |listed: &Listed| is_ours(&listed.location, catalog.writes_metadata());
    // A clock that has gone back makes a file young; one without an age stays.
    let is_old = |listed: &Listed| listed.modified_ms.is_some_and(|at| at <= before_ms);
    found.retain(|listed| ours(listed) && is_old(listed));
    // Read again: this must not be older than the list.
    let (_, now) = find(&catalog, table).await?;
    if root_of(&now.metadata) != root {
        return Err(Error::conflict(format!(
            "the table has moved meanwhile: table={table}"
        )));
    }
    let mut live = references(&access, &now.metadata, &now.location).await?;
    live.extend(live_files.iter().map(|file| canonical(file)));
    found.retain(|listed| !live.contains(&listed.location));
    found.sort();
    for Listed {
        location, bytes, ..
    } in found
    {
        if !dry_run {
            access.remove(&location).await?;
        }
        cleaned.files += 1;
        cleaned.bytes += bytes;
        cleaned.names.push(location);
    }
    Ok(cleaned)
}

/// A table's place.
pub(super) fn root_of(metadata: &TableMetadata) -> String {
    canonical(metadata.location().trim_end_matches('/'))
}

/// That the table owns its files. `gc.enabled: false` says that another one may refer to them.
pub(super) fn check_owner(metadata: &TableMetadata, table: &str) -> Result<()> {
    let property = metadata.properties().get("gc.enabled");
    if property.is_some_and(|value| value.eq_ignore_ascii_case("false")) {
        return Err(Error::config(format!(
            "the table's properties forbid to remove files: table={table} gc.enabled=false"
        ))
        .hint("another table may share its files; see what the property was set for"));
    }
    Ok(())
}

/// Whether a file is of a kind that tables are made of; metadata that the catalog writes is its own.
fn is_ours(location: &str, metadata_is_the_catalogs: bool) -> bool {
    if location.ends_with(".metadata.json") {
        return !metadata_is_the_catalogs;
    }
    [".parquet", ".avro", ".orc", ".puffin", ".stats", ".tmp"]
        .iter()
        .any(|end| location.ends_with(end))
}

/// Every file that the table refers to, canonical.
pub(super) async fn references(
    access: &FileAccess,
    metadata: &TableMetadata,
    location: &str,
) -> Result<HashSet<String>> {
    let mut live = HashSet::new();
    let mut add = |location: &str| live.insert(canonical(location));
    add(location);
    for entry in metadata.metadata_log() {
        add(&entry.metadata_file);
    }
    for file in metadata.statistics_iter() {
        add(&file.statistics_path);
    }
    for file in metadata.partition_statistics_iter() {
        add(&file.statistics_path);
    }
    for snapshot in metadata.snapshots() {
        add(snapshot.manifest_list());
        for manifest in manifests_of(access, metadata, snapshot.manifest_list()).await? {
            if !add(&manifest.manifest_path) {
                continue;
            }
            let entries = entries_of(access, &manifest).await?;
            for entry in entries.entries().iter().filter(|entry| entry.is_alive()) {
                add(entry.file_path());
            }
        }
    }
    Ok(live)
}

/// A manifest's entries, as its file has them.
pub(super) async fn entries_of(access: &FileAccess, manifest: &ManifestFile) -> Result<Manifest> {
    manifest.load_manifest(access.io()).await.map_err(|e| {
        let wrong = Error::corrupt(format!(
            "cannot read a manifest: file={}",
            manifest.manifest_path
        ));
        unreadable(wrong, e)
    })
}

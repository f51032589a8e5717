//! Removes files that nothing refers to. In doubt nothing is removed: whatever cannot be read ends
//! the cleaning before it began.
//!
//! A file goes only if no snapshot, no metadata and no statistics refer to it, no checkpoint record
//! does, it is old, it lies in the table's own `data` or `metadata` folder and in no other table's,
//! and it is of a kind that tables are made of. The folder is listed before the references are read,
//! so what is committed meanwhile counts as referred to. Empty folders stay: a writer may be about to
//! create a file in one.

use std::{
    collections::HashSet,
    fs,
    hash::BuildHasher,
    path::{Path, PathBuf},
    time::Duration,
};

use calve_engine::error::{Error, Result};
use iceberg::spec::TableMetadata;
use serde::Serialize;

use crate::changes::content::ChangesContent;

use super::{
    catalog::{Catalog, local_path},
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
pub fn content_files(content: &serde_json::Value) -> Result<Vec<String>> {
    if ChangesContent::is(content) {
        return ChangesContent::from_json(content)?.locations();
    }
    Ok(Content::from_json(content)?.locations().collect())
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
    let (name, _, metadata) = find(&catalog, table).await?;
    check_owner(&metadata, table)?;
    let root = local_path(metadata.location())?.to_owned();
    let mut others = Vec::new();
    for (other, location) in catalog.tables().await? {
        if other != name {
            let metadata = catalog.read(&location).await?;
            // A table elsewhere than on a local disk cannot lie within this one.
            others.extend(local_path(metadata.location()).ok().map(Path::to_owned));
        }
    }
    let mut found = Vec::new();
    for folder in ["data", "metadata"] {
        list(&root.join(folder), &others, older_than, &mut found)?;
    }
    // Read again: this must not be older than the list.
    let (_, location, metadata) = find(&catalog, table).await?;
    if local_path(metadata.location())? != root {
        return Err(Error::conflict(format!(
            "the table has moved meanwhile: table={table}"
        )));
    }
    let mut live = references(&catalog, &metadata, &location).await?;
    for file in live_files {
        live.insert(local_path(file)?.to_owned());
    }
    found.retain(|(path, _)| !live.contains(path));
    found.sort();
    let mut cleaned = Cleaned::default();
    for (path, bytes) in found {
        if !dry_run {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => {
                    return Err(Error::io(
                        format!("cannot remove file={}", path.display()),
                        e,
                    ));
                }
            }
        }
        cleaned.files += 1;
        cleaned.bytes += bytes;
        cleaned.names.push(path.display().to_string());
    }
    Ok(cleaned)
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

/// Old files of a table's kinds below a folder, with their sizes.
fn list(
    folder: &Path,
    others: &[PathBuf],
    older_than: Duration,
    found: &mut Vec<(PathBuf, u64)>,
) -> Result<()> {
    let failed = |e| Error::io(format!("cannot list folder={}", folder.display()), e);
    if others.iter().any(|other| other == folder) {
        return Ok(());
    }
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let path = entry.path();
        if kind.is_dir() {
            list(&path, others, older_than, found)?;
        } else if kind.is_file() && is_ours(&path) {
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            // A clock that has gone back makes a file young.
            let age = metadata.modified().ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age >= older_than) {
                found.push((path, metadata.len()));
            }
        }
    }
    Ok(())
}

fn is_ours(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    [
        ".parquet",
        ".avro",
        ".orc",
        ".puffin",
        ".stats",
        ".metadata.json",
        ".tmp",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}

/// Every path that the table refers to.
pub(super) async fn references(
    catalog: &Catalog,
    metadata: &TableMetadata,
    location: &str,
) -> Result<HashSet<PathBuf>> {
    let mut live = HashSet::new();
    let mut add =
        |location: &str| -> Result<bool> { Ok(live.insert(local_path(location)?.to_owned())) };
    add(location)?;
    for entry in metadata.metadata_log() {
        add(&entry.metadata_file)?;
    }
    for file in metadata.statistics_iter() {
        add(&file.statistics_path)?;
    }
    for file in metadata.partition_statistics_iter() {
        add(&file.statistics_path)?;
    }
    for snapshot in metadata.snapshots() {
        add(snapshot.manifest_list())?;
        for manifest in manifests_of(catalog, metadata, snapshot.manifest_list()).await? {
            if !add(&manifest.manifest_path)? {
                continue;
            }
            let entries = manifest
                .load_manifest(catalog.file_io())
                .await
                .map_err(|e| {
                    Error::corrupt(format!(
                        "cannot read a manifest: file={}",
                        manifest.manifest_path
                    ))
                    .because(e)
                })?;
            for entry in entries.entries().iter().filter(|entry| entry.is_alive()) {
                add(entry.file_path())?;
            }
        }
    }
    Ok(live)
}

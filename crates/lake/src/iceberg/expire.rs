//! Forgets old snapshots, and removes the files that only those referred to.
//!
//! A snapshot stays while it is young, among the newest, the head of a tag or branch, an ancestor of a
//! branch, or the one that holds a shard's last offsets. Files go after the commit that forgets, and
//! only if they lie in the table's own folders and neither the table as it is then nor a checkpoint
//! record refers to them; whatever cannot be read keeps all files.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    hash::BuildHasher,
    path::PathBuf,
    time::Duration,
};

use calve_engine::{
    clock::now_ms,
    error::{Error, Result},
    fault,
};
use iceberg::spec::{Operation, SnapshotRef, TableMetadata};
use serde::Serialize;

use super::{
    catalog::{Catalog, local_path},
    clean::{Cleaned, check_owner, references},
    config::CatalogConfig,
    edit::Edit,
    handle::{TableHandle, Tries},
    held::{Held, ancestors, of_shard, parse_property},
    manifests::manifests_of,
    tables::find,
};

/// Which snapshots [`expire`] keeps.
#[derive(Clone, Copy, Debug)]
pub struct ExpireOptions {
    /// Those that are younger.
    pub older_than: Duration,
    /// So many of the newest, however old.
    pub keep: usize,
    /// Only say what would be forgotten and removed.
    pub dry_run: bool,
}

/// What was forgotten and removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Expired {
    /// Ids of snapshots, oldest first.
    pub snapshots: Vec<i64>,
    /// Files that only they referred to.
    pub removed: Cleaned,
}

/// Forgets old snapshots. `live_files` is what checkpoint records of every pipeline of the table
/// refer to (see [`super::content_files`]).
///
/// # Errors
/// `Config` when there is no such table; `Conflict` when others commit all the time; `Corrupt` when
/// what refers to files cannot be read: then no file was removed.
pub async fn expire<S: BuildHasher + Sync>(
    config: &CatalogConfig,
    table: &str,
    options: &ExpireOptions,
    live_files: &HashSet<String, S>,
) -> Result<Expired> {
    let handle = TableHandle::open(Catalog::open(config).await?, table).await?;
    check_owner(&handle.load_existing().await?.metadata, table)?;
    let now = now_ms();
    let mut expired: Vec<SnapshotRef>;
    let mut before = handle.load_existing().await?.metadata;
    if options.dry_run {
        expired = expirable(&before, options, now)?;
    } else {
        let mut tries = Tries::new(&handle);
        loop {
            let known = tries.load().await?;
            before = known.metadata.clone();
            expired = expirable(&before, options, now)?;
            let mut edit = Edit::new(Operation::Delete);
            edit.remove_snapshots = expired.iter().map(|s| s.snapshot_id()).collect();
            if expired.is_empty() || tries.commit(&known, edit).await?.is_some() {
                break;
            }
        }
    }
    let mut answer = Expired {
        snapshots: expired.iter().map(|s| s.snapshot_id()).collect(),
        removed: Cleaned::default(),
    };
    if expired.is_empty() {
        return Ok(answer);
    }
    fault::point("iceberg.expire.before_remove")?;
    let candidates = files_of(&handle.catalog, &before, &expired).await?;
    let (_, location, after) = find(&handle.catalog, table).await?;
    let after = if options.dry_run {
        without(after, &location, &answer.snapshots)?
    } else {
        after
    };
    let mut live = references(&handle.catalog, &after, &location).await?;
    for file in live_files {
        live.insert(local_path(file)?.to_owned());
    }
    let root = local_path(after.location())?.to_owned();
    let ours = [root.join("data"), root.join("metadata")];
    for path in candidates {
        if live.contains(&path) || !ours.iter().any(|folder| path.starts_with(folder)) {
            continue;
        }
        let Ok(found) = path.metadata() else { continue };
        if !options.dry_run {
            fault::point("iceberg.expire.each")?;
            fs::remove_file(&path).map_err(|e| {
                Error::io(format!("cannot remove file={}", path.display()), e)
                    .hint("`calve table clean` removes it, and others that nothing refers to")
            })?;
        }
        answer.removed.files += 1;
        answer.removed.bytes += found.len();
        answer.removed.names.push(path.display().to_string());
    }
    Ok(answer)
}

/// The snapshots that may go, oldest first.
fn expirable(
    metadata: &TableMetadata,
    options: &ExpireOptions,
    now_ms: i64,
) -> Result<Vec<SnapshotRef>> {
    let mut keep: HashSet<i64> = ancestors(metadata)
        .take(options.keep.max(1))
        .map(|s| s.snapshot_id())
        .collect();
    keep.extend(of_refs(metadata)?);
    for (name, value) in metadata.properties() {
        let Some((pipeline, shard)) = parse_property(name) else {
            continue;
        };
        let last = ancestors(metadata).find(|s| of_shard(s, &pipeline, &shard));
        keep.extend(last.map(|s| s.snapshot_id()));
        keep.extend(Held::parse(value).and_then(|held| held.snapshot));
    }
    let limit = now_ms.saturating_sub(options.older_than.as_millis() as i64);
    let mut gone: Vec<SnapshotRef> = metadata
        .snapshots()
        .filter(|s| s.timestamp_ms() <= limit && !keep.contains(&s.snapshot_id()))
        .cloned()
        .collect();
    gone.sort_by_key(|s| (s.sequence_number(), s.snapshot_id()));
    Ok(gone)
}

/// Snapshots that tags name, and the history of branches other than the main one.
fn of_refs(metadata: &TableMetadata) -> Result<Vec<i64>> {
    // The crate hands out references by name only; their form in JSON is the specification's.
    let json = serde_json::to_value(metadata)
        .map_err(|e| Error::internal("cannot read the table's references").because(e))?;
    let mut ids = Vec::new();
    let refs = json.get("refs").and_then(serde_json::Value::as_object);
    for (name, reference) in refs.into_iter().flatten() {
        let Some(id) = reference
            .get("snapshot-id")
            .and_then(serde_json::Value::as_i64)
        else {
            return Err(Error::corrupt(format!(
                "a reference of the table names no snapshot: ref={name}"
            )));
        };
        ids.push(id);
        let branch = reference.get("type").is_some_and(|kind| kind == "branch");
        if branch && name != iceberg::spec::MAIN_BRANCH {
            let mut at = metadata.snapshot_by_id(id);
            while let Some(snapshot) = at {
                ids.push(snapshot.snapshot_id());
                at = snapshot
                    .parent_snapshot_id()
                    .and_then(|id| metadata.snapshot_by_id(id));
            }
        }
    }
    Ok(ids)
}

/// Every file that these snapshots refer to.
async fn files_of(
    catalog: &Catalog,
    metadata: &TableMetadata,
    snapshots: &[SnapshotRef],
) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let mut add =
        |location: &str| -> Result<bool> { Ok(files.insert(local_path(location)?.to_owned())) };
    for snapshot in snapshots {
        let id = snapshot.snapshot_id();
        if let Some(file) = metadata.statistics_for_snapshot(id) {
            add(&file.statistics_path)?;
        }
        if let Some(file) = metadata.partition_statistics_for_snapshot(id) {
            add(&file.statistics_path)?;
        }
        add(snapshot.manifest_list())?;
        for manifest in manifests_of(catalog, metadata, snapshot.manifest_list()).await? {
            if !add(&manifest.manifest_path)? {
                continue;
            }
            let read = manifest.load_manifest(catalog.file_io()).await;
            let read = read.map_err(|e| {
                Error::corrupt(format!(
                    "cannot read a manifest: file={}",
                    manifest.manifest_path
                ))
                .because(e)
            })?;
            for entry in read.entries() {
                add(entry.file_path())?;
            }
        }
    }
    Ok(files)
}

/// The table as it would be.
fn without(metadata: TableMetadata, location: &str, snapshots: &[i64]) -> Result<TableMetadata> {
    let mut builder = metadata.into_builder(Some(location.to_owned()));
    for id in snapshots {
        builder = builder
            .remove_statistics(*id)
            .remove_partition_statistics(*id);
    }
    let built = builder.remove_snapshots(snapshots).build();
    built
        .map(|built| built.metadata)
        .map_err(|e| Error::internal("cannot leave snapshots out").because(e))
}

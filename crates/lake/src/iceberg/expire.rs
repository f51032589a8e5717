//! Forgets old snapshots, and removes the files that only those referred to.
//!
//! A snapshot stays while it is young, among the newest, the head of a tag or branch, an ancestor of a
//! branch, or the one that holds a shard's last offsets. Files go after the commit that forgets, and
//! only if they lie in the table's own folders and neither the table as it is then nor a checkpoint
//! record refers to them; whatever cannot be read keeps all files.

use std::{
    collections::{BTreeSet, HashSet},
    hash::BuildHasher,
    sync::Arc,
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
    access::{FileAccess, canonical, lies_in},
    catalog::{Catalog, Loaded},
    clean::{Cleaned, check_owner, entries_of, references, root_of},
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
    let mut before = handle.load_existing().await?.metadata.clone();
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
    let access = &handle.access;
    let candidates = files_of(access, &before, &expired).await?;
    let (_, Loaded { location, metadata }) = find(&handle.catalog, table).await?;
    let after = if options.dry_run {
        let metadata = metadata.as_ref().clone();
        Arc::new(without(metadata, &location, &answer.snapshots)?)
    } else {
        metadata
    };
    let mut live = references(access, &after, &location).await?;
    live.extend(live_files.iter().map(|file| canonical(file)));
    let root = root_of(&after);
    let ours = [format!("{root}/data"), format!("{root}/metadata")];
    for file in candidates {
        if live.contains(&file) || !ours.iter().any(|folder| lies_in(&file, folder)) {
            continue;
        }
        let Some(bytes) = access.size(&file).await? else {
            continue;
        };
        if !options.dry_run {
            fault::point("iceberg.expire.each")?;
            access.remove(&file).await.map_err(|e| {
                e.hint("`calve table clean` removes it, and others that nothing refers to")
            })?;
        }
        answer.removed.files += 1;
        answer.removed.bytes += bytes;
        answer.removed.names.push(file);
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

/// Every file that these snapshots refer to, canonical.
async fn files_of(
    access: &FileAccess,
    metadata: &TableMetadata,
    snapshots: &[SnapshotRef],
) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    let mut add = |location: &str| files.insert(canonical(location));
    for snapshot in snapshots {
        let id = snapshot.snapshot_id();
        if let Some(file) = metadata.statistics_for_snapshot(id) {
            add(&file.statistics_path);
        }
        if let Some(file) = metadata.partition_statistics_for_snapshot(id) {
            add(&file.statistics_path);
        }
        add(snapshot.manifest_list());
        for manifest in manifests_of(access, metadata, snapshot.manifest_list()).await? {
            if add(&manifest.manifest_path) {
                for entry in entries_of(access, &manifest).await?.entries() {
                    add(entry.file_path());
                }
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

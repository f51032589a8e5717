//! Manifests: read once and kept, written in memory, and merged when they are many and small.
//!
//! A manifest never changes, so what was parsed is kept under its path, within a bound. An entry that
//! is handed out here has what it inherits (snapshot, sequence numbers, and with format version 3 the
//! first row id) filled in.

mod merge;
mod write;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use calve_engine::error::{Error, Result};
use iceberg::spec::{
    DataFile, DataFileBuilder, ManifestContentType, ManifestEntry, ManifestFile, ManifestList,
    ManifestMetadata, TableMetadata,
};
use parking_lot::Mutex;

pub(super) use merge::{Limits, group_to_merge};
pub(super) use write::{Draft, list};

use super::access::{FileAccess, unreadable};

/// What the parsed manifests that are kept may weigh, in bytes (estimated).
const CACHE_BYTES: usize = 32 << 20;

/// A manifest, parsed, with what its entries inherit.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) metadata: ManifestMetadata,
    pub(crate) entries: Vec<Arc<ManifestEntry>>,
}

impl Parsed {
    /// Entries that are not marked as deleted.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<ManifestEntry>> {
        self.entries.iter().filter(|entry| entry.is_alive())
    }

    /// Fills in the row ids that entries inherit from the manifest, as the list has it; the crate does
    /// so for the rest.
    pub(super) fn with_row_ids(self, manifest: &ManifestFile) -> Result<Self> {
        let mut next = match (manifest.content, manifest.first_row_id) {
            (ManifestContentType::Data, Some(first)) => first as i64,
            _ => return Ok(self),
        };
        let spec = self.metadata.partition_spec.spec_id();
        let inherit = |entry: Arc<ManifestEntry>| {
            if !entry.is_alive() || entry.data_file().first_row_id().is_some() {
                return Ok(entry);
            }
            let file = with_first_row_id(entry.data_file(), spec, next)?;
            next += entry.record_count() as i64;
            Ok(Arc::new(ManifestEntry {
                data_file: file,
                ..entry.as_ref().clone()
            }))
        };
        Ok(Self {
            entries: self
                .entries
                .into_iter()
                .map(inherit)
                .collect::<Result<_>>()?,
            metadata: self.metadata,
        })
    }

    fn weight(&self) -> usize {
        let of = |file: &DataFile| {
            let columns = file.column_sizes().len()
                + file.value_counts().len()
                + file.null_value_counts().len()
                + 4 * (file.lower_bounds().len() + file.upper_bounds().len());
            700 + file.file_path().len() + columns * 24
        };
        let entries = self.entries.iter().map(|entry| of(entry.data_file()));
        2000 + entries.sum::<usize>()
    }
}

/// Parsed manifests by path; what was used least recently goes first.
#[derive(Debug, Default)]
pub(crate) struct ManifestCache {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    manifests: HashMap<String, Entry>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    parsed: Arc<Parsed>,
    /// What the rows inherited their ids from: a table that became format version 3 gets it later.
    first_row_id: Option<u64>,
    weight: usize,
    used: u64,
}

impl ManifestCache {
    /// The manifest, from the cache or from its file.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read: a snapshot refers to it.
    pub(crate) async fn load(
        &self,
        access: &FileAccess,
        manifest: &ManifestFile,
    ) -> Result<Arc<Parsed>> {
        if let Some(parsed) = self.get(manifest) {
            return Ok(parsed);
        }
        let read = manifest.load_manifest(access.io()).await.map_err(|e| {
            let wrong = Error::corrupt(format!(
                "cannot read a manifest: file={}",
                manifest.manifest_path
            ))
            .hint("a snapshot refers to this file; restore it, or roll the table back");
            unreadable(wrong, e)
        })?;
        let (entries, metadata) = read.into_parts();
        let parsed = Arc::new(Parsed { metadata, entries }.with_row_ids(manifest)?);
        self.put(manifest, &parsed);
        Ok(parsed)
    }

    fn get(&self, manifest: &ManifestFile) -> Option<Arc<Parsed>> {
        let mut kept = self.kept.lock();
        kept.clock += 1;
        let clock = kept.clock;
        let entry = kept.manifests.get_mut(&manifest.manifest_path)?;
        entry.used = clock;
        (entry.first_row_id == manifest.first_row_id).then(|| entry.parsed.clone())
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, manifests: &[ManifestFile]) {
        let keep: HashSet<&str> = manifests.iter().map(|m| &*m.manifest_path).collect();
        let mut kept = self.kept.lock();
        kept.manifests
            .retain(|path, _| keep.contains(path.as_str()));
        kept.bytes = kept.manifests.values().map(|entry| entry.weight).sum();
    }

    /// Keeps a manifest that was just written.
    pub(super) fn put(&self, manifest: &ManifestFile, parsed: &Arc<Parsed>) {
        let weight = parsed.weight();
        if weight > CACHE_BYTES / 2 {
            return;
        }
        let mut kept = self.kept.lock();
        kept.clock += 1;
        let entry = Entry {
            parsed: parsed.clone(),
            first_row_id: manifest.first_row_id,
            weight,
            used: kept.clock,
        };
        let before = kept.manifests.insert(manifest.manifest_path.clone(), entry);
        kept.bytes += weight;
        kept.bytes -= before.map_or(0, |entry| entry.weight);
        if kept.bytes <= CACHE_BYTES {
            return;
        }
        let mut ages: Vec<(u64, String)> = kept
            .manifests
            .iter()
            .map(|(path, entry)| (entry.used, path.clone()))
            .collect();
        ages.sort_unstable();
        // A quarter at once, so that this is not done for each manifest.
        for (_, path) in ages {
            if kept.bytes <= CACHE_BYTES * 3 / 4 {
                break;
            }
            if let Some(entry) = kept.manifests.remove(&path) {
                kept.bytes -= entry.weight;
            }
        }
    }
}

/// The same data file with its first row id.
fn with_first_row_id(file: &DataFile, spec: i32, first: i64) -> Result<DataFile> {
    let mut builder = DataFileBuilder::default();
    builder
        .content(file.content_type())
        .file_path(file.file_path().to_owned())
        .file_format(file.file_format())
        .partition(file.partition().clone())
        .partition_spec_id(spec)
        .record_count(file.record_count())
        .file_size_in_bytes(file.file_size_in_bytes())
        .column_sizes(file.column_sizes().clone())
        .value_counts(file.value_counts().clone())
        .null_value_counts(file.null_value_counts().clone())
        .nan_value_counts(file.nan_value_counts().clone())
        .lower_bounds(file.lower_bounds().clone())
        .upper_bounds(file.upper_bounds().clone())
        .key_metadata(file.key_metadata().map(<[u8]>::to_vec))
        .split_offsets(file.split_offsets().map(<[i64]>::to_vec))
        .equality_ids(file.equality_ids())
        .first_row_id(Some(first))
        .referenced_data_file(file.referenced_data_file())
        .content_offset(file.content_offset())
        .content_size_in_bytes(file.content_size_in_bytes());
    if let Some(order) = file.sort_order_id() {
        builder.sort_order_id(order);
    }
    builder
        .build()
        .map_err(|e| Error::internal("a data file's description is not whole").because(e))
}

/// The manifests of the current snapshot.
pub(super) async fn manifests(
    access: &FileAccess,
    metadata: &TableMetadata,
) -> Result<Vec<ManifestFile>> {
    let Some(snapshot) = metadata.current_snapshot() else {
        return Ok(Vec::new());
    };
    manifests_of(access, metadata, snapshot.manifest_list()).await
}

/// The manifests in a list.
///
/// # Errors
/// `Corrupt` when it cannot be read.
pub(super) async fn manifests_of(
    access: &FileAccess,
    metadata: &TableMetadata,
    list: &str,
) -> Result<Vec<ManifestFile>> {
    let failed = |e: iceberg::Error| {
        let wrong = Error::corrupt(format!(
            "cannot read the table's list of manifests: file={list}"
        ))
        .hint("a snapshot refers to this file; restore it, or roll the table back");
        unreadable(wrong, e)
    };
    let bytes = access
        .io()
        .new_input(list)
        .map_err(failed)?
        .read()
        .await
        .map_err(failed)?;
    let list =
        ManifestList::parse_with_version(&bytes, metadata.format_version()).map_err(failed)?;
    Ok(list.entries().to_vec())
}

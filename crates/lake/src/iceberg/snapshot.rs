//! Builds one snapshot of an edit over the crate's types: manifests, their list, and the table's next
//! metadata. Bytes only; nothing is written here.
//!
//! Manifests are carried over as they are, unless one holds a file that the edit removes, or small
//! ones are merged. What is written again keeps each entry's snapshot, sequence numbers and row ids;
//! entries that are marked as deleted are not carried on. Start with [`build`].

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use calve_engine::error::{Error, Result};
use iceberg::{
    TableUpdate,
    spec::{
        FormatVersion, MAIN_BRANCH, ManifestContentType, ManifestFile, Snapshot, TableMetadata,
        TableMetadataBuilder,
    },
};
use uuid::Uuid;

use super::{
    access::FileAccess,
    drafts::Drafts,
    edit::{AddedFile, Edit, RemovedFile},
    manifests::{self, Draft, Limits, ManifestCache, Parsed},
    summary::Counts,
};

/// What a commit writes, and what the next one need not read again.
pub(crate) struct Built {
    /// The table's next state, not yet written.
    pub(crate) metadata: TableMetadata,
    /// The same as changes, for a catalog that wants those.
    pub(crate) changes: Vec<TableUpdate>,
    /// Location and bytes of each file to be written: manifests, list.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// The new snapshot and its manifests; none: no files, no snapshot.
    pub(crate) snapshot: Option<(i64, Arc<Vec<ManifestFile>>)>,
    /// What reading the new manifests would give.
    pub(super) parsed: Vec<(ManifestFile, Arc<Parsed>)>,
    /// Metadata files that the log has dropped.
    pub(crate) expired: Vec<String>,
    /// Folder of the metadata, and the new metadata file in it; none: the catalog writes one.
    pub(crate) folder: String,
    pub(crate) location: Option<String>,
}

/// The state in which a commit finds the table.
pub(crate) struct Base<'a> {
    pub(crate) access: &'a FileAccess,
    pub(crate) metadata: &'a TableMetadata,
    pub(crate) location: &'a str,
    /// Manifests of the current snapshot.
    pub(crate) manifests: &'a [ManifestFile],
    pub(crate) cache: &'a ManifestCache,
}

/// Builds what makes the edit visible, against a state of the table. New files go to the metadata
/// folder, the first of `place`, whose second is the new metadata file; `now_ms` stamps the snapshot.
///
/// # Errors
/// `Conflict` when a file that the edit removes is not live any more. `Corrupt` when files do not fit
/// the table, or a manifest cannot be read.
pub(crate) async fn build(
    base: &Base<'_>,
    edit: Edit,
    place: (String, Option<String>),
    now_ms: i64,
) -> Result<Built> {
    let (folder, location) = place;
    let internal = |e: iceberg::Error| Error::internal("cannot build a snapshot").because(e);
    let mut builder = base
        .metadata
        .clone()
        .into_builder(Some(base.location.to_owned()));
    let Edit {
        operation,
        mut added,
        removed,
        schema,
        mut properties,
        remove_properties,
        summary,
        epoch,
        remove_snapshots,
        always_snapshot,
    } = edit;
    // Files are described by the schema that comes with them.
    let evolved;
    let base = match schema {
        Some(schema) => {
            builder = builder
                .add_current_schema(schema.clone())
                .map_err(internal)?;
            let assumed = schema.schema_id();
            let early = base.metadata.clone().into_builder(None);
            let early = early
                .add_current_schema(schema)
                .and_then(TableMetadataBuilder::build);
            evolved = early.map_err(internal)?.metadata;
            // The table may have had the same schema before, under another id.
            for file in added.iter_mut().filter(|file| file.schema == assumed) {
                file.schema = evolved.current_schema_id();
            }
            &Base {
                metadata: &evolved,
                ..*base
            }
        }
        None => base,
    };
    let metadata = base.metadata;
    let sequence = metadata.next_sequence_number();
    let mut work = Work {
        base,
        id: new_snapshot_id(metadata),
        sequence,
        uuid: Uuid::new_v4(),
        folder: &folder,
        limits: Limits::of(metadata.properties()),
        counts: Counts::default(),
        files: Vec::new(),
        manifests: Vec::new(),
        parsed: Vec::new(),
    };
    let mut snapshot = None;
    let mut parsed = Vec::new();
    if always_snapshot || !added.is_empty() || !removed.is_empty() {
        work.manifests(added, &removed).await?;
        let next_row_id = match metadata.format_version() {
            FormatVersion::V3 => Some(assign_row_ids(&mut work.manifests, metadata.next_row_id())?),
            _ => None,
        };
        // The new manifests are the last ones, in the order of what was parsed.
        let first = work.manifests.len() - work.parsed.len();
        for (new, manifest) in std::mem::take(&mut work.parsed)
            .into_iter()
            .zip(&work.manifests[first..])
        {
            let new = Arc::new(new.with_row_ids(manifest)?);
            parsed.push((manifest.clone(), new));
        }
        let list = format!("{folder}/snap-{}-1-{}.avro", work.id, work.uuid);
        let bytes = manifests::list(metadata, work.id, &work.manifests).await?;
        work.files.push((list.clone(), bytes));
        let last_ms = metadata
            .current_snapshot()
            .map_or(i64::MIN, |s| s.timestamp_ms());
        let summary = work.counts.summary(metadata, operation, summary);
        let new = Snapshot::builder()
            .with_snapshot_id(work.id)
            .with_parent_snapshot_id(metadata.current_snapshot_id())
            .with_sequence_number(sequence)
            .with_timestamp_ms(now_ms.max(last_ms).max(metadata.last_updated_ms()))
            .with_manifest_list(list)
            .with_summary(summary)
            .with_schema_id(metadata.current_schema_id());
        let new = match next_row_id {
            Some(next) => {
                let first = metadata.next_row_id();
                new.with_row_range(first, next.saturating_sub(first))
                    .build()
            }
            None => new.build(),
        };
        builder = builder
            .set_branch_snapshot(new, MAIN_BRANCH)
            .map_err(internal)?;
        snapshot = Some((work.id, Arc::new(std::mem::take(&mut work.manifests))));
    }
    if let Some(mark) = epoch {
        let made = snapshot.as_ref().map(|(id, _)| (*id, sequence));
        properties.extend([mark.property(made)]);
    }
    if !properties.is_empty() {
        builder = builder.set_properties(properties).map_err(internal)?;
    }
    if !remove_properties.is_empty() {
        builder = builder
            .remove_properties(&remove_properties)
            .map_err(internal)?;
    }
    if !remove_snapshots.is_empty() {
        for id in &remove_snapshots {
            builder = builder
                .remove_statistics(*id)
                .remove_partition_statistics(*id);
        }
        builder = builder.remove_snapshots(&remove_snapshots);
    }
    let built = builder.build().map_err(internal)?;
    let files = work.files;
    Ok(Built {
        metadata: built.metadata,
        changes: built.changes,
        files,
        snapshot,
        parsed,
        expired: built
            .expired_metadata_logs
            .into_iter()
            .map(|log| log.metadata_file)
            .collect(),
        folder,
        location,
    })
}

/// A snapshot in the making.
struct Work<'a> {
    base: &'a Base<'a>,
    id: i64,
    sequence: i64,
    uuid: Uuid,
    folder: &'a str,
    limits: Limits,
    counts: Counts,
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<ManifestFile>,
    parsed: Vec<Parsed>,
}

impl Work<'_> {
    /// The manifests of the new snapshot: what is carried over, what is written again, what is new.
    async fn manifests(&mut self, added: Vec<AddedFile>, removed: &[RemovedFile]) -> Result<()> {
        let live = |m: &&ManifestFile| m.has_added_files() || m.has_existing_files();
        let carried: Vec<&ManifestFile> = self.base.manifests.iter().filter(live).collect();
        let touched = self.find(&carried, removed).await?;
        let mut drafts = Drafts::new(self.base.metadata, self.limits);

        for (at, gone) in &touched {
            let parsed = self.load(carried[*at]).await?;
            let bytes = carried[*at].manifest_length.unsigned_abs();
            drafts.open(&parsed, bytes);
            for (n, entry) in parsed.entries.iter().enumerate() {
                if gone.contains(&n) {
                    self.counts
                        .remove(entry.data_file(), parsed.metadata.partition_spec.spec_id());
                    drafts.remove(entry, self.id);
                } else if entry.is_alive() {
                    drafts.keep(entry);
                }
            }
        }
        let rest: Vec<&ManifestFile> = carried
            .iter()
            .enumerate()
            .filter(|(at, _)| !touched.contains_key(at))
            .map(|(_, manifest)| *manifest)
            .collect();
        let merged = manifests::group_to_merge(&rest, self.limits);
        let mut alone: HashSet<usize> = (0..rest.len()).collect();
        for at in merged {
            let parsed = self.load(rest[at]).await?;
            drafts.open(&parsed, rest[at].manifest_length.unsigned_abs());
            for entry in parsed.live() {
                drafts.keep(entry);
            }
            alone.remove(&at);
        }
        self.manifests = rest
            .iter()
            .enumerate()
            .filter(|(at, _)| alone.contains(at))
            .map(|(_, manifest)| (*manifest).clone())
            .collect();

        for added in added {
            self.counts.add(&added.file, added.spec);
            drafts.add(added, self.id)?;
        }
        for draft in drafts.done {
            self.write(draft).await?;
        }
        Ok(())
    }

    async fn load(&self, manifest: &ManifestFile) -> Result<Arc<Parsed>> {
        self.base.cache.load(self.base.access, manifest).await
    }

    /// Which manifests hold the files that are to go, and where in them.
    async fn find(
        &self,
        carried: &[&ManifestFile],
        removed: &[RemovedFile],
    ) -> Result<BTreeMap<usize, HashSet<usize>>> {
        let mut wanted: HashSet<(u8, Arc<str>, Option<Arc<str>>)> = removed
            .iter()
            .map(|r| (r.content as u8, r.path.clone(), r.referenced.clone()))
            .collect();
        let mut found = BTreeMap::new();
        let hinted: HashSet<&str> = removed.iter().map(|r| &*r.manifest).collect();
        let (first, then): (Vec<usize>, Vec<usize>) =
            (0..carried.len()).partition(|at| hinted.contains(&*carried[*at].manifest_path));
        for at in first.into_iter().chain(then) {
            let content = carried[at].content as u8;
            if !wanted.iter().any(|(of, ..)| *of == content) {
                continue;
            }
            let parsed = self.load(carried[at]).await?;
            for (n, entry) in parsed.entries.iter().enumerate() {
                let file = entry.data_file();
                let vector = file.content_offset().and(file.referenced_data_file());
                let key = (content, entry.file_path().into(), vector.map(Into::into));
                if entry.is_alive() && wanted.remove(&key) {
                    found.entry(at).or_insert_with(HashSet::new).insert(n);
                }
            }
        }
        match wanted.into_iter().next() {
            None => Ok(found),
            Some((_, path, _)) => Err(Error::conflict(format!(
                "a file that was to be replaced is not in the table any more: file={path}"
            ))),
        }
    }

    async fn write(&mut self, draft: Draft) -> Result<()> {
        let path = format!("{}/{}-m{}.avro", self.folder, self.uuid, self.files.len());
        let (mut manifest, bytes, parsed) = draft.write(self.id, self.sequence, &path).await?;
        let data = manifest.content == ManifestContentType::Data;
        if data && self.base.metadata.format_version() == FormatVersion::V3 {
            // Where every row has its id already, none is to be given again.
            let ids: Option<Vec<i64>> = parsed
                .live()
                .map(|entry| entry.data_file().first_row_id())
                .collect();
            manifest.first_row_id = ids.and_then(|ids| ids.into_iter().min()).map(|n| n as u64);
        }
        self.files.push((path, bytes));
        self.parsed.push(parsed);
        self.manifests.push(manifest);
        Ok(())
    }
}

/// Gives row ids to the data manifests that have none. Answers the table's next row id.
fn assign_row_ids(manifests: &mut [ManifestFile], next: u64) -> Result<u64> {
    let mut next = next;
    for manifest in manifests {
        if manifest.content == ManifestContentType::Data && manifest.first_row_id.is_none() {
            let rows = manifest.existing_rows_count.zip(manifest.added_rows_count);
            let (existing, added) = rows.ok_or_else(|| {
                Error::corrupt(format!(
                    "a manifest does not say how many rows it has: file={}",
                    manifest.manifest_path
                ))
            })?;
            manifest.first_row_id = Some(next);
            next += existing + added;
        }
    }
    Ok(next)
}

fn new_snapshot_id(metadata: &TableMetadata) -> i64 {
    loop {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let id = ((high ^ low) >> 1) as i64;
        if id != 0 && metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}

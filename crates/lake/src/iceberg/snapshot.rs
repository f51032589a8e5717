//! Builds one snapshot over the crate's types: a manifest with the new files, the list of all
//! manifests, and the table's next metadata. Bytes only; nothing is written here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use calve_engine::{
    error::{Error, Result},
    seams::Commit,
};
use iceberg::{
    io::FileIO,
    spec::{
        DataFile, FormatVersion, MAIN_BRANCH, ManifestContentType, ManifestFile, ManifestList,
        ManifestListWriter, ManifestWriterBuilder, Operation, Snapshot, Summary, TableMetadata,
    },
};
use uuid::Uuid;

use super::{
    catalog::Catalog,
    files::Content,
    held::{self, Held, summary},
};

/// What a commit writes, and what the next one need not read again.
pub(super) struct Built {
    /// The table's next state, not yet written.
    pub(super) metadata: TableMetadata,
    /// Location and bytes of each file to be written: manifest, list.
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// The new snapshot and its manifests; none: no files, no snapshot.
    pub(super) snapshot: Option<(i64, Arc<Vec<ManifestFile>>)>,
    /// Metadata files that the log has dropped.
    pub(super) expired: Vec<String>,
}

/// The state in which a commit finds the table.
pub(super) struct Base<'a> {
    pub(super) metadata: &'a TableMetadata,
    pub(super) location: &'a str,
    /// Manifests of the current snapshot.
    pub(super) manifests: &'a [ManifestFile],
    pub(super) held: Option<&'a Held>,
}

/// The manifests of the current snapshot.
pub(super) async fn manifests(
    catalog: &Catalog,
    metadata: &TableMetadata,
) -> Result<Vec<ManifestFile>> {
    let Some(snapshot) = metadata.current_snapshot() else {
        return Ok(Vec::new());
    };
    manifests_of(catalog, metadata, snapshot.manifest_list()).await
}

/// The manifests in a list.
pub(super) async fn manifests_of(
    catalog: &Catalog,
    metadata: &TableMetadata,
    list: &str,
) -> Result<Vec<ManifestFile>> {
    let failed = |e| {
        Error::corrupt(format!(
            "cannot read the table's list of manifests: file={list}"
        ))
        .because(e)
        .hint("a snapshot refers to this file; restore it, or roll the table back")
    };
    let bytes = catalog
        .file_io()
        .new_input(list)
        .map_err(failed)?
        .read()
        .await
        .map_err(failed)?;
    let list =
        ManifestList::parse_with_version(&bytes, metadata.format_version()).map_err(failed)?;
    Ok(list.entries().to_vec())
}

/// Builds what makes the files visible, with the shard's property.
///
/// # Errors
/// `Corrupt` when the files do not fit the table.
pub(super) async fn build(
    base: Base<'_>,
    commit: &Commit,
    content: &Content,
    folder: &str,
    now_ms: i64,
) -> Result<Built> {
    let metadata = base.metadata;
    let internal = |e: iceberg::Error| Error::internal("cannot build a snapshot").because(e);
    let mut builder = metadata
        .clone()
        .into_builder(Some(base.location.to_owned()));
    let mut files = Vec::new();
    let mut snapshot = None;
    if !content.files.is_empty() {
        let data_files = content.data_files(metadata)?;
        let id = new_snapshot_id(metadata);
        let last_ms = metadata
            .current_snapshot()
            .map_or(i64::MIN, |s| s.timestamp_ms());
        let timestamp_ms = now_ms.max(last_ms).max(metadata.last_updated_ms());
        let uuid = Uuid::new_v4();
        let counts = Counts::of(&data_files);
        let manifest_path = format!("{folder}/{uuid}-m0.avro");
        let (manifest, bytes) = manifest(metadata, id, content, data_files, &manifest_path).await?;
        files.push((manifest_path, bytes));
        let mut all: Vec<ManifestFile> = base
            .manifests
            .iter()
            .filter(|m| {
                m.content == ManifestContentType::Deletes
                    || m.has_added_files()
                    || m.has_existing_files()
            })
            .cloned()
            .collect();
        all.push(manifest);
        let list_path = format!("{folder}/snap-{id}-1-{uuid}.avro");
        let (bytes, next_row_id) = list(metadata, id, &all).await?;
        files.push((list_path.clone(), bytes));
        let new = Snapshot::builder()
            .with_snapshot_id(id)
            .with_parent_snapshot_id(metadata.current_snapshot_id())
            .with_sequence_number(metadata.next_sequence_number())
            .with_timestamp_ms(timestamp_ms)
            .with_manifest_list(list_path)
            .with_summary(describe(metadata, commit, &counts)?)
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
        snapshot = Some((id, Arc::new(all)));
    }
    // A commit without files makes no snapshot: the last one stays the shard's.
    let (last, sequence) = match (&snapshot, base.held) {
        (Some((id, _)), _) => (Some(*id), Some(metadata.next_sequence_number())),
        (None, Some(held)) => (held.snapshot, held.sequence),
        (None, None) => (None, None),
    };
    let held = Held {
        epoch: commit.epoch,
        digest: commit.digest.clone(),
        offsets: commit.offsets_to.clone(),
        snapshot: last,
        sequence,
    };
    let property = (
        held::property(&commit.pipeline, &commit.shard),
        held.to_value(),
    );
    let built = builder
        .set_properties(HashMap::from([property]))
        .map_err(internal)?;
    let built = built.build().map_err(internal)?;
    Ok(Built {
        metadata: built.metadata,
        files,
        snapshot,
        expired: built
            .expired_metadata_logs
            .into_iter()
            .map(|log| log.metadata_file)
            .collect(),
    })
}

async fn manifest(
    metadata: &TableMetadata,
    snapshot: i64,
    content: &Content,
    files: Vec<DataFile>,
    path: &str,
) -> Result<(ManifestFile, Vec<u8>)> {
    let internal = |e: iceberg::Error| Error::internal("cannot build a manifest").because(e);
    let lost = || Error::corrupt("the table has lost the schema or spec of prepared files");
    let schema = metadata
        .schema_by_id(content.schema)
        .ok_or_else(lost)?
        .clone();
    let spec = metadata
        .partition_spec_by_id(content.spec)
        .ok_or_else(lost)?;
    let memory = FileIO::new_with_memory();
    let output = memory.new_output("memory:///manifest").map_err(internal)?;
    let builder = ManifestWriterBuilder::new(output, Some(snapshot), schema, spec.as_ref().clone());
    let mut writer = match metadata.format_version() {
        FormatVersion::V3 => builder.build_v3_data(),
        _ => builder.build_v2_data(),
    };
    for file in files {
        // -1: the sequence number is inherited from the snapshot.
        writer.add_file(file, -1).map_err(internal)?;
    }
    let mut manifest = writer.write_manifest_file().await.map_err(internal)?;
    let bytes = read_back(&memory, "memory:///manifest").await?;
    path.clone_into(&mut manifest.manifest_path);
    manifest.sequence_number = metadata.next_sequence_number();
    manifest.min_sequence_number = metadata.next_sequence_number();
    Ok((manifest, bytes))
}

async fn list(
    metadata: &TableMetadata,
    snapshot: i64,
    manifests: &[ManifestFile],
) -> Result<(Vec<u8>, Option<u64>)> {
    let internal =
        |e: iceberg::Error| Error::internal("cannot build a list of manifests").because(e);
    let memory = FileIO::new_with_memory();
    let output = memory.new_output("memory:///list").map_err(internal)?;
    let output = output.writer().await.map_err(internal)?;
    let parent = metadata.current_snapshot_id();
    let sequence = metadata.next_sequence_number();
    let mut writer = match metadata.format_version() {
        FormatVersion::V3 => ManifestListWriter::v3(
            output,
            snapshot,
            parent,
            sequence,
            Some(metadata.next_row_id()),
        ),
        _ => ManifestListWriter::v2(output, snapshot, parent, sequence),
    };
    writer
        .add_manifests(manifests.iter().cloned())
        .map_err(internal)?;
    let next_row_id = writer.next_row_id();
    writer.close().await.map_err(internal)?;
    Ok((read_back(&memory, "memory:///list").await?, next_row_id))
}

async fn read_back(memory: &FileIO, path: &str) -> Result<Vec<u8>> {
    let internal = |e: iceberg::Error| Error::internal("cannot read what was built").because(e);
    let bytes = memory
        .new_input(path)
        .map_err(internal)?
        .read()
        .await
        .map_err(internal)?;
    Ok(bytes.to_vec())
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

/// What the new files add.
struct Counts {
    files: u64,
    rows: u64,
    bytes: u64,
    partitions: usize,
}

impl Counts {
    fn of(files: &[DataFile]) -> Self {
        let partitions: HashSet<_> = files.iter().map(DataFile::partition).collect();
        Self {
            files: files.len() as u64,
            rows: files.iter().map(DataFile::record_count).sum(),
            bytes: files.iter().map(DataFile::file_size_in_bytes).sum(),
            partitions: partitions.len(),
        }
    }
}

fn describe(metadata: &TableMetadata, commit: &Commit, counts: &Counts) -> Result<Summary> {
    let offsets = serde_json::to_string(&commit.offsets)
        .map_err(|e| Error::internal("cannot write the offsets").because(e))?;
    let mut entries = HashMap::from([
        ("added-data-files".to_owned(), counts.files.to_string()),
        ("added-records".to_owned(), counts.rows.to_string()),
        ("added-files-size".to_owned(), counts.bytes.to_string()),
        (
            "changed-partition-count".to_owned(),
            counts.partitions.to_string(),
        ),
        (held::PIPELINE.to_owned(), commit.pipeline.to_string()),
        (held::SHARD.to_owned(), commit.shard.to_string()),
        (held::EPOCH.to_owned(), commit.epoch.to_string()),
        (held::DIGEST.to_owned(), commit.digest.clone()),
        (held::OFFSETS.to_owned(), offsets),
        (held::RECORD.to_owned(), commit.record.clone()),
    ]);
    if let Some(watermark) = commit.watermark {
        entries.insert(held::WATERMARK.to_owned(), watermark.to_string());
    }
    if let Some(complete) = commit.complete {
        entries.insert(held::WINDOWS_COMPLETE.to_owned(), complete.to_string());
    }
    let added = [
        ("total-data-files", counts.files),
        ("total-records", counts.rows),
        ("total-files-size", counts.bytes),
        ("total-delete-files", 0),
        ("total-position-deletes", 0),
        ("total-equality-deletes", 0),
    ];
    for (name, added) in added {
        // A total that the parent does not tell cannot be carried on.
        let before = match metadata.current_snapshot() {
            None => Some(0),
            Some(parent) => summary(parent, name).and_then(|text| text.parse::<u64>().ok()),
        };
        entries.extend(before.map(|before| (name.to_owned(), (before + added).to_string())));
    }
    Ok(Summary {
        operation: Operation::Append,
        additional_properties: entries,
    })
}

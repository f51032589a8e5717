//! Writes manifests and their list, in memory.

use std::sync::Arc;

use calve_engine::error::{Error, Result};
use iceberg::{
    io::FileIO,
    spec::{
        FormatVersion, ManifestContentType, ManifestEntry, ManifestFile, ManifestListWriter,
        ManifestMetadata, ManifestStatus, ManifestWriterBuilder, TableMetadata,
    },
};

use super::Parsed;

/// A manifest that is to be written for a new snapshot.
pub(in crate::iceberg) struct Draft {
    pub(in crate::iceberg) metadata: ManifestMetadata,
    pub(in crate::iceberg) entries: Vec<Arc<ManifestEntry>>,
}

impl Draft {
    /// The manifest, its bytes, and what reading it would give but for row ids. Added entries get the
    /// snapshot's id, and its sequence number unless they name one.
    pub(in crate::iceberg) async fn write(
        self,
        snapshot: i64,
        sequence: i64,
        path: &str,
    ) -> Result<(ManifestFile, Vec<u8>, Parsed)> {
        let internal = |e: iceberg::Error| Error::internal("cannot build a manifest").because(e);
        let Self { metadata, entries } = self;
        let memory = FileIO::new_with_memory();
        let output = memory.new_output("memory:///manifest").map_err(internal)?;
        let builder = ManifestWriterBuilder::new(
            output,
            Some(snapshot),
            metadata.schema.clone(),
            metadata.partition_spec.clone(),
        );
        let mut writer = match (metadata.format_version, metadata.content) {
            (FormatVersion::V3, ManifestContentType::Data) => builder.build_v3_data(),
            (FormatVersion::V3, ManifestContentType::Deletes) => builder.build_v3_deletes(),
            (_, ManifestContentType::Data) => builder.build_v2_data(),
            (_, ManifestContentType::Deletes) => builder.build_v2_deletes(),
        };
        let mut lowest = sequence;
        for entry in &entries {
            let file = entry.data_file().clone();
            let wrong = || {
                Error::corrupt(format!(
                    "a manifest's entry has no sequence number or snapshot: file={}",
                    entry.file_path()
                ))
            };
            if entry.is_alive() {
                lowest = lowest.min(entry.sequence_number().unwrap_or(sequence));
            }
            // Some old writers leave the file's own sequence number out; the data's is the nearest.
            let of_file = entry.file_sequence_number.or(entry.sequence_number());
            match entry.status() {
                // -1: the sequence number is inherited from the snapshot.
                ManifestStatus::Added => {
                    let keep = entry.sequence_number().filter(|n| *n != sequence);
                    writer.add_file(file, keep.unwrap_or(-1))
                }
                ManifestStatus::Existing => writer.add_existing_file(
                    file,
                    entry.snapshot_id().ok_or_else(wrong)?,
                    entry.sequence_number().ok_or_else(wrong)?,
                    of_file,
                ),
                ManifestStatus::Deleted => writer.add_delete_file(
                    file,
                    entry.sequence_number().ok_or_else(wrong)?,
                    of_file,
                ),
            }
            .map_err(internal)?;
        }
        let mut manifest = writer.write_manifest_file().await.map_err(internal)?;
        let bytes = read_back(&memory, "memory:///manifest").await?;
        path.clone_into(&mut manifest.manifest_path);
        manifest.sequence_number = sequence;
        manifest.min_sequence_number = lowest;
        Ok((manifest, bytes, Parsed { metadata, entries }))
    }
}

/// The list of a snapshot's manifests. Row ids must be assigned already.
pub(in crate::iceberg) async fn list(
    metadata: &TableMetadata,
    snapshot: i64,
    manifests: &[ManifestFile],
) -> Result<Vec<u8>> {
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
    writer.close().await.map_err(internal)?;
    read_back(&memory, "memory:///list").await
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

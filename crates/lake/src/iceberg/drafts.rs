//! Entries on their way to the new manifests of a snapshot. Entries of one manifest have one content,
//! spec and schema.

use std::{collections::HashMap, sync::Arc};

use calve_engine::error::{Error, Result};
use iceberg::spec::{
    DataContentType, ManifestContentType, ManifestEntry, ManifestMetadata, ManifestStatus,
    TableMetadata,
};

use super::{
    edit::AddedFile,
    manifests::{Draft, Limits, Parsed},
};

/// Content, spec and schema.
type Group = (u8, i32, i32);

/// Entries in one new manifest, so that none becomes far larger than the target.
const MOST_ENTRIES: usize = 5_000;

/// Entries on their way to new manifests.
pub(super) struct Drafts<'a> {
    metadata: &'a TableMetadata,
    limits: Limits,
    /// Rewritten entries, by group: the draft that still takes some, and its estimated size.
    open: HashMap<Group, (usize, u64)>,
    /// New data files, by group: their row ids come from their manifest, so they stay apart.
    fresh: HashMap<Group, usize>,
    current: (Group, u64),
    pub(super) done: Vec<Draft>,
}

impl<'a> Drafts<'a> {
    pub(super) fn new(metadata: &'a TableMetadata, limits: Limits) -> Self {
        Self {
            metadata,
            limits,
            open: HashMap::new(),
            fresh: HashMap::new(),
            current: ((0, 0, 0), 0),
            done: Vec::new(),
        }
    }

    /// The entries of this manifest follow.
    pub(super) fn open(&mut self, parsed: &Parsed, bytes: u64) {
        let of = &parsed.metadata;
        let group = (
            of.content as u8,
            of.partition_spec.spec_id(),
            of.schema.schema_id(),
        );
        self.current = (group, bytes / parsed.entries.len().max(1) as u64);
        self.open.entry(group).or_insert_with(|| {
            self.done.push(Draft {
                metadata: ManifestMetadata {
                    format_version: self.metadata.format_version(),
                    schema_id: of.schema.schema_id(),
                    ..of.clone()
                },
                entries: Vec::new(),
            });
            (self.done.len() - 1, 0)
        });
    }

    /// An entry that goes on to live.
    pub(super) fn keep(&mut self, entry: &ManifestEntry) {
        self.push(ManifestEntry {
            status: ManifestStatus::Existing,
            ..entry.clone()
        });
    }

    /// An entry that the snapshot removes.
    pub(super) fn remove(&mut self, entry: &ManifestEntry, snapshot: i64) {
        self.push(ManifestEntry {
            status: ManifestStatus::Deleted,
            snapshot_id: Some(snapshot),
            ..entry.clone()
        });
    }

    fn push(&mut self, entry: ManifestEntry) {
        let (group, bytes) = self.current;
        let Some((at, size)) = self.open.get_mut(&group) else {
            return;
        };
        *size += bytes;
        if *size > self.limits.target_bytes && !self.done[*at].entries.is_empty() {
            let metadata = self.done[*at].metadata.clone();
            self.done.push(Draft {
                metadata,
                entries: Vec::new(),
            });
            (*at, *size) = (self.done.len() - 1, bytes);
        }
        self.done[*at].entries.push(Arc::new(entry));
    }

    /// A file that the snapshot adds.
    pub(super) fn add(&mut self, added: AddedFile, snapshot: i64) -> Result<()> {
        let content = match added.file.content_type() {
            DataContentType::Data => ManifestContentType::Data,
            DataContentType::PositionDeletes | DataContentType::EqualityDeletes => {
                ManifestContentType::Deletes
            }
        };
        let group = (content as u8, added.spec, added.schema);
        let sequence = added
            .sequence
            .unwrap_or_else(|| self.metadata.next_sequence_number());
        let (spec, schema) = (added.spec, added.schema);
        let entry = ManifestEntry {
            status: ManifestStatus::Added,
            snapshot_id: Some(snapshot),
            sequence_number: Some(sequence),
            file_sequence_number: Some(self.metadata.next_sequence_number()),
            data_file: added.file,
        };
        if content == ManifestContentType::Deletes && self.open.contains_key(&group) {
            self.current = (group, 600);
            self.push(entry);
            return Ok(());
        }
        let full = |at: &usize| self.done[*at].entries.len() >= MOST_ENTRIES;
        let at = if let Some(at) = self.fresh.get(&group).filter(|at| !full(at)) {
            *at
        } else {
            self.done.push(Draft {
                metadata: self.describe(content, spec, schema)?,
                entries: Vec::new(),
            });
            self.fresh.insert(group, self.done.len() - 1);
            self.done.len() - 1
        };
        self.done[at].entries.push(Arc::new(entry));
        Ok(())
    }

    fn describe(
        &self,
        content: ManifestContentType,
        spec: i32,
        schema: i32,
    ) -> Result<ManifestMetadata> {
        let lost = || Error::corrupt("the table has lost the schema or spec of prepared files");
        let spec = self.metadata.partition_spec_by_id(spec);
        let schema = match self.metadata.schema_by_id(schema) {
            Some(schema) => schema,
            // Another engine may have removed that of an old file, which loses rows now.
            None if content == ManifestContentType::Deletes => self.metadata.current_schema(),
            None => return Err(lost()),
        };
        Ok(ManifestMetadata {
            schema: schema.clone(),
            schema_id: schema.schema_id(),
            partition_spec: spec.ok_or_else(lost)?.as_ref().clone(),
            format_version: self.metadata.format_version(),
            content,
        })
    }
}

//! The counts in a snapshot's summary, as Iceberg names them.

use std::collections::{HashMap, HashSet};

use iceberg::spec::{DataContentType, DataFile, Operation, Struct, Summary, TableMetadata};

use super::held;

/// What a commit adds or removes.
#[derive(Debug, Default)]
struct Side {
    data_files: i64,
    records: i64,
    delete_files: i64,
    position_delete_files: i64,
    vectors: i64,
    equality_delete_files: i64,
    position_deletes: i64,
    equality_deletes: i64,
    bytes: i64,
}

impl Side {
    fn count(&mut self, file: &DataFile) {
        let rows = file.record_count() as i64;
        // Several vectors share one Puffin file: each counts for its own part.
        self.bytes += match file.content_size_in_bytes() {
            Some(bytes) if file.content_type() == DataContentType::PositionDeletes => bytes,
            _ => file.file_size_in_bytes() as i64,
        };
        match file.content_type() {
            DataContentType::Data => {
                self.data_files += 1;
                self.records += rows;
            }
            DataContentType::PositionDeletes => {
                self.delete_files += 1;
                self.position_deletes += rows;
                if file.content_offset().is_some() {
                    self.vectors += 1;
                } else {
                    self.position_delete_files += 1;
                }
            }
            DataContentType::EqualityDeletes => {
                self.delete_files += 1;
                self.equality_delete_files += 1;
                self.equality_deletes += rows;
            }
        }
    }
}

/// Counts the files of a commit.
#[derive(Debug, Default)]
pub(super) struct Counts {
    added: Side,
    removed: Side,
    partitions: HashSet<(i32, Struct)>,
}

impl Counts {
    /// A file that the commit adds.
    pub(super) fn add(&mut self, file: &DataFile, spec: i32) {
        self.added.count(file);
        self.partitions.insert((spec, file.partition().clone()));
    }

    /// A file that it removes.
    pub(super) fn remove(&mut self, file: &DataFile, spec: i32) {
        self.removed.count(file);
        self.partitions.insert((spec, file.partition().clone()));
    }

    /// The summary of the snapshot that follows the table's current one.
    pub(super) fn summary(
        &self,
        metadata: &TableMetadata,
        operation: Operation,
        more: HashMap<String, String>,
    ) -> Summary {
        let (added, removed) = (&self.added, &self.removed);
        let mut entries = more;
        let changes = [
            ("added-data-files", added.data_files),
            ("deleted-data-files", removed.data_files),
            ("added-records", added.records),
            ("deleted-records", removed.records),
            ("added-delete-files", added.delete_files),
            ("removed-delete-files", removed.delete_files),
            ("added-position-delete-files", added.position_delete_files),
            (
                "removed-position-delete-files",
                removed.position_delete_files,
            ),
            ("added-equality-delete-files", added.equality_delete_files),
            ("added-equality-deletes", added.equality_deletes),
            ("added-dvs", added.vectors),
            ("removed-dvs", removed.vectors),
            (
                "removed-equality-delete-files",
                removed.equality_delete_files,
            ),
            ("added-position-deletes", added.position_deletes),
            ("removed-position-deletes", removed.position_deletes),
            ("removed-equality-deletes", removed.equality_deletes),
            ("added-files-size", added.bytes),
            ("removed-files-size", removed.bytes),
        ];
        for (name, count) in changes {
            if count > 0 {
                entries.insert(name.to_owned(), count.to_string());
            }
        }
        entries.insert(
            "changed-partition-count".to_owned(),
            self.partitions.len().to_string(),
        );
        let totals = [
            ("total-data-files", added.data_files - removed.data_files),
            ("total-records", added.records - removed.records),
            ("total-files-size", added.bytes - removed.bytes),
            (
                "total-delete-files",
                added.delete_files - removed.delete_files,
            ),
            (
                "total-position-deletes",
                added.position_deletes - removed.position_deletes,
            ),
            (
                "total-equality-deletes",
                added.equality_deletes - removed.equality_deletes,
            ),
        ];
        for (name, change) in totals {
            // A total that the parent does not tell, or tells wrongly, cannot be carried on.
            let before = match metadata.current_snapshot() {
                None => Some(0),
                Some(parent) => {
                    held::summary(parent, name).and_then(|text| text.parse::<i64>().ok())
                }
            };
            let now = before.map(|before| before + change).filter(|n| *n >= 0);
            entries.extend(now.map(|now| (name.to_owned(), now.to_string())));
        }
        Summary {
            operation,
            additional_properties: entries,
        }
    }
}

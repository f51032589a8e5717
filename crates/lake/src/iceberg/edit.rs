//! What one commit changes in a table: files that come and go, properties, and what its summary says.
//! An edit is a value; [`super::snapshot::build`] makes a snapshot of it, against one state of the
//! table.

use std::{collections::HashMap, sync::Arc};

use iceberg::spec::{DataFile, ManifestContentType, Operation, Schema};

use super::{
    epochs::EpochMark,
    live::{DeleteFile, LiveFile},
};

/// A change of a table, to be committed as a whole. Without files it makes no snapshot, unless asked to.
#[derive(Debug)]
pub(crate) struct Edit {
    /// What the snapshot says that it does.
    pub(crate) operation: Operation,
    pub(crate) added: Vec<AddedFile>,
    /// Files that must be live still: one that is not makes the edit a conflict.
    pub(crate) removed: Vec<RemovedFile>,
    /// The schema that the table gets.
    pub(crate) schema: Option<Schema>,
    /// Table properties to set, and to remove.
    pub(crate) properties: HashMap<String, String>,
    pub(crate) remove_properties: Vec<String>,
    /// Entries of the summary besides the counts.
    pub(crate) summary: HashMap<String, String>,
    /// The epoch that is committed, if it is a shard's commit.
    pub(crate) epoch: Option<EpochMark>,
    /// Snapshots to forget; never the current one.
    pub(crate) remove_snapshots: Vec<i64>,
    /// It makes a snapshot even without files.
    pub(crate) always_snapshot: bool,
}

impl Edit {
    /// An edit that changes nothing yet.
    pub(crate) fn new(operation: Operation) -> Self {
        Self {
            operation,
            added: Vec::new(),
            removed: Vec::new(),
            schema: None,
            properties: HashMap::new(),
            remove_properties: Vec::new(),
            summary: HashMap::new(),
            epoch: None,
            remove_snapshots: Vec::new(),
            always_snapshot: false,
        }
    }
}

/// A file that a commit adds: data, position deletes or a deletion vector.
#[derive(Clone, Debug)]
pub(crate) struct AddedFile {
    pub(crate) file: DataFile,
    /// Partition spec of the file; of the data file, for deletes.
    pub(crate) spec: i32,
    /// A schema that the spec fits: that with which the file was written; of the data file, for deletes.
    pub(crate) schema: i32,
    /// The data sequence number to keep, for rows that are written again; none: the snapshot's.
    pub(crate) sequence: Option<i64>,
}

/// A live file that a commit removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemovedFile {
    pub(super) content: ManifestContentType,
    pub(super) path: Arc<str>,
    /// The data file of a deletion vector: several vectors share one Puffin file.
    pub(super) referenced: Option<Arc<str>>,
    /// Where it was seen; others are searched when it is not there.
    pub(super) manifest: Arc<str>,
}

impl RemovedFile {
    /// A data file.
    pub(crate) fn data(file: &LiveFile) -> Self {
        Self {
            content: ManifestContentType::Data,
            path: file.path.clone(),
            referenced: None,
            manifest: file.manifest.clone(),
        }
    }

    /// A delete file or a deletion vector.
    pub(crate) fn delete(file: &DeleteFile) -> Self {
        Self {
            content: ManifestContentType::Deletes,
            path: file.path.clone(),
            referenced: file.is_vector().then(|| file.referenced.clone()).flatten(),
            manifest: file.manifest.clone(),
        }
    }
}

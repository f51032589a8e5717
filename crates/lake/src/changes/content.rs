//! An epoch of changes as the checkpoint holds it: not positions, which depend on what the table is
//! when they are committed, but the changes themselves.

use calve_engine::{
    error::{Error, Result},
    opaque::Opaque,
};
use serde::{Deserialize, Serialize};

use crate::iceberg::files::Content;

/// The chunks of an epoch, in the order in which they are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangesContent {
    pub(crate) chunks: Vec<Chunk>,
}

/// Changes with at most one for each key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// Before the chunk, rows up to this order (hexadecimal) were removed by a TRUNCATE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) truncate: Option<String>,
    /// Data files of inserts and updates; null: none.
    #[serde(default, skip_serializing_if = "Opaque::is_null")]
    pub(crate) files: Opaque,
    /// The run of the keys to delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deletes: Option<String>,
}

impl ChangesContent {
    /// # Errors
    /// `Corrupt`: not what was written.
    pub(crate) fn from_json(content: &Opaque) -> Result<Self> {
        content
            .parse()
            .map_err(|e| Error::corrupt("the checkpoint holds no changes of a table").because(e))
    }

    /// Whether a checkpoint's content is one of changes.
    pub(crate) fn is(content: &Opaque) -> bool {
        Self::from_json(content).is_ok()
    }

    /// The data files, chunk by chunk.
    ///
    /// # Errors
    /// `Corrupt` when a chunk's files cannot be read.
    pub(crate) fn files(&self) -> Result<Vec<Content>> {
        let chunks = self.chunks.iter().filter(|chunk| !chunk.files.is_null());
        chunks
            .map(|chunk| Content::from_json(&chunk.files))
            .collect()
    }
}

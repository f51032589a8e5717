//! Change data in Iceberg tables: the last change of each key wins, across batches, epochs and
//! restarts, and what is replaced or deleted is marked by position.
//!
//! Batchers find out what each change does and encode its key and order ([`split`]); the writer keeps
//! of each key the last change of the epoch ([`chunk`], [`writer`]); the committer settles the epoch
//! against the table by an index of keys ([`resolve`], [`index`]) and commits data files and deletes
//! as one snapshot ([`output`]). A checkpoint holds changes and never positions: those depend on the
//! snapshot that is committed upon.
//!
//! Invariant: whatever becomes of the index, the table is right; it can be made anew at any time from
//! the columns of key and order and the runs of deleted keys.

mod by_value;
mod chunk;
mod config;
pub(crate) mod content;
mod deletes;
mod flags;
mod index;
mod keys;
mod output;
mod plan;
mod resolve;
mod split;
mod state;
mod store;
mod stored;
mod tombstones;
mod upkeep;
mod writer;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use arrow::datatypes::{Schema, SchemaRef};
use calve_engine::{
    checkpoint::Checkpoints,
    error::{Error, Result},
    seams::{Output, Split, Splitter, TableWriter},
};
use rayon::ThreadPool;

pub use config::{ChangesConfig, Deletes, IndexConfig, Mode, Operation};
use keys::KeyCodec;
use output::ChangesOutput;
use plan::ChangePlan;
pub use plan::LOG_ORDER;
use split::LogSplitter;
use state::Reading;
use stored::StoredColumns;
pub use upkeep::{Settle, Upkeep};
use writer::{ChangesWriter, Parts};

use crate::iceberg::{compact::CompactOptions, evolve::Evolved, handle::TableHandle};

/// What opening a table of changes needs.
pub struct Opening<'a> {
    /// What the user says.
    pub config: &'a ChangesConfig,
    /// Columns of the rows that are none of the table, such as metadata of a change and its offset.
    pub hidden: &'a [String],
    /// Where keys of deleted rows are kept.
    pub checkpoints: &'a Checkpoints,
    /// Keys may be null: those of groups of an aggregate, which are never rejects.
    pub null_keys: bool,
    /// Bytes that changes may take in memory before they are written.
    pub memory_bytes: usize,
    /// And the index of keys, where the user does not say.
    pub index_bytes: usize,
    /// Size of data files, about, in bytes.
    pub target_file_size: u64,
    /// When small files are merged.
    pub upkeep: Upkeep,
}

/// The columns of the table for rows of changes.
///
/// # Errors
/// `Config` when a column that the configuration names is not there.
pub fn table_schema(config: &ChangesConfig, hidden: &[String], rows: &Schema) -> Result<SchemaRef> {
    ChangePlan::new(config, hidden, rows).map(|plan| plan.table().clone())
}

impl Opening<'_> {
    /// Puts the writer of a table of changes before that of its files, and its output in the place of
    /// one that only appends. `rows` are the changes; `files` what the table's files have, and
    /// `evolved` the schema that the table is to get for them, if another.
    ///
    /// # Errors
    /// `Config` or `Schema` when the columns do not fit.
    pub(crate) fn open(
        &self,
        rows: &Schema,
        (files, evolved): (&Schema, Option<Evolved>),
        handle: TableHandle,
        (table, append): (Box<dyn TableWriter>, Arc<dyn Output>),
        index: PathBuf,
        pool: Arc<ThreadPool>,
    ) -> Result<(Box<dyn TableWriter>, Arc<dyn Output>)> {
        let plan = Arc::new(ChangePlan::new(self.config, self.hidden, rows)?);
        if self.config.mode == Mode::Append {
            return Ok((Box::new(LogWriter { plan, table }), append));
        }
        if self.config.key.is_empty() {
            return Err(Error::config("changes.key names no column")
                .hint("name the columns that identify a row, for example `key: [id]`"));
        }
        let codec = Arc::new(KeyCodec::new(&plan, files, self.null_keys)?);
        let columns = Arc::new(StoredColumns::new(codec.clone(), handle.access.clone()));
        let reading = Reading {
            evolved: evolved.map(Arc::new),
            codec: codec.clone(),
            columns,
            checkpoints: self.checkpoints.clone(),
            folder: index,
            memory_bytes: self
                .config
                .index
                .memory_mib
                .map_or(self.index_bytes, |mib| mib << 20),
        };
        let rewrite = CompactOptions {
            target_file_size: self.target_file_size,
            min_files: 1,
            all_deletes: true,
            sort: false,
            memory_bytes: self.memory_bytes,
            dry_run: false,
        };
        let deletes = self.config.deletes;
        let output =
            ChangesOutput::new(handle, reading, deletes, rewrite, self.upkeep, pool.clone());
        let parts = Parts {
            plan,
            codec,
            checkpoints: self.checkpoints.clone(),
            pool,
            retention: self.config.tombstone_retention,
            chunk_bytes: self.memory_bytes,
        };
        Ok((Box::new(ChangesWriter::new(parts, table)), Arc::new(output)))
    }
}

/// Writes every change as a row.
struct LogWriter {
    plan: Arc<ChangePlan>,
    table: Box<dyn TableWriter>,
}

#[async_trait::async_trait]
impl TableWriter for LogWriter {
    fn splitter(&self) -> Box<dyn Splitter> {
        Box::new(LogSplitter::new(self.plan.clone(), self.table.splitter()))
    }

    async fn append(&mut self, split: Split) -> Result<()> {
        self.table.append(split).await
    }

    fn buffered_bytes(&self) -> usize {
        self.table.buffered_bytes()
    }

    fn written_bytes(&self) -> u64 {
        self.table.written_bytes()
    }

    fn open_files(&self) -> usize {
        self.table.open_files()
    }

    fn files_in_flight(&mut self, files: usize) {
        self.table.files_in_flight(files);
    }

    fn seal(&mut self, epoch: calve_model::Epoch) -> Box<dyn calve_engine::seams::Sealed> {
        self.table.seal(epoch)
    }
}

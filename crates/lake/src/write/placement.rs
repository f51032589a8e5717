//! What a kind of table says to the writer: which table partition a row belongs to, what is written
//! of it, under which path, and what the checkpoint must hold of a complete file.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use calve_engine::{error::Result, opaque::Opaque, stores::upload::Uploaded};
use calve_model::Epoch;
use parquet::file::metadata::ParquetMetaData;

use super::partition::TablePartition;

/// Places rows into table partitions and files into folders. Pure but for allocation; shared by all
/// batchers.
pub trait Placement: Send + Sync + 'static {
    /// Schema of the data files: of [`Placed::rows`], with field ids and such in its metadata.
    fn file_schema(&self) -> SchemaRef;

    /// Key columns of the rows and what is to be written of them.
    ///
    /// # Errors
    /// `Data` when a row cannot be placed; `Schema` when the columns are not the table's.
    fn place(&self, rows: RecordBatch) -> Result<Placed>;

    /// Whether [`Placement::place`] would place the rows.
    ///
    /// # Errors
    /// As `place`.
    fn check(&self, rows: &RecordBatch) -> Result<()> {
        self.place(rows.clone()).map(drop)
    }

    /// Path of a new data file, relative to the root, with `/` between folders. `unique` is a name
    /// of a few dozen characters (letters, digits, `-`) that no other file of any process, start or
    /// epoch has; the path must contain it. The epoch is not known yet when a file is opened.
    fn path(&self, partition: &TablePartition, unique: &str) -> String;

    /// What the output needs of a complete file, kept in memory and then in the checkpoint. Called
    /// once for each file, on the pool.
    ///
    /// # Errors
    /// `Internal`, when the metadata cannot be expressed.
    fn describe(&self, file: &FinishedFile<'_>) -> Result<Opaque>;

    /// Content of [`calve_engine::seams::Prepared`] for an epoch; not called when it has no files.
    /// The files are ordered by table partition and sequence, whatever the number of threads.
    ///
    /// # Errors
    /// `Internal`, when it cannot be expressed.
    fn content(&self, epoch: Epoch, files: Vec<DescribedFile>) -> Result<Opaque>;
}

/// Rows with the key that places each of them.
#[derive(Clone, Debug)]
pub struct Placed {
    /// One value per row for each part of the table partition; none: the table has no partitions.
    pub keys: Vec<ArrayRef>,
    /// What is written; as many rows as each key column.
    pub rows: RecordBatch,
}

/// A complete data file, not yet fsynced.
#[derive(Debug)]
pub struct FinishedFile<'a> {
    /// Relative to the root.
    pub path: &'a str,
    /// Its table partition.
    pub partition: &'a TablePartition,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// Its footer.
    pub metadata: &'a Arc<ParquetMetaData>,
    /// The Arrow schema it was written with.
    pub schema: &'a SchemaRef,
}

/// A file as it goes into the checkpoint.
#[derive(Clone, Debug)]
pub struct DescribedFile {
    /// Relative to the root.
    pub path: String,
    /// Its table partition.
    pub partition: Arc<TablePartition>,
    /// 0, 1, 2, … among the files of its table partition and epoch, in row order.
    pub sequence: u32,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// What [`Placement::describe`] said.
    pub described: Opaque,
    /// In an object store: the upload that waits to be completed.
    pub upload: Option<Uploaded>,
}

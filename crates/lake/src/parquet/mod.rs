//! Plain, partitioned Parquet: where rows and files go ([`layout`]), and how an epoch's files become
//! visible exactly once ([`output`]).
//!
//! Below the table's path, `_calve/` holds what is not data: `id` (the table's identity),
//! `staged/` (complete files that are not visible yet) and `commits/<pipeline>/<shard>/<epoch>.json`
//! (what became visible together). Readers skip it: its name begins with an underscore, and staged
//! files do not end in `.parquet`. In an object store nothing is staged: files are uploads that were
//! not completed ([`remote`]).

pub mod clean;
pub mod config;
mod format;
pub mod layout;
pub mod output;
pub mod remote;
mod template;

use std::{path::PathBuf, sync::Arc};

use arrow::datatypes::SchemaRef;
use calve_engine::{
    durable,
    error::{Error, Result},
    seams::{Output, TableWriter},
    stores::{ObjectFolder, upload::Uploads},
};

pub use clean::{Cleaned, clean};
pub use config::ParquetConfig;
pub use layout::ParquetLayout;
pub use output::{CommitEntry, ParquetOutput, PublishedFile};
pub use remote::{ObjectOutput, RemoteLive};

use crate::write::{FanoutWriter, WriteOptions};

const ID: &str = "_calve/id";
/// Below it nobody looks for rows.
const OWN: &str = "_calve";
const COMMITS: &str = "_calve/commits";
/// Commit entries that a reset moved out of the way; their files stay.
const BEFORE_RESET: &str = "_calve/before-reset";
const STAGED: &str = "_calve/staged";
const STAGED_ENDING: &str = "staged";

/// A folder of Parquet files, or a place of them in an object store.
pub struct ParquetTable;

impl ParquetTable {
    /// The writer and the output of a table; its folder is created when missing. `schema` is that of
    /// the rows.
    ///
    /// # Errors
    /// `Config` when the layout does not fit the schema, or the folder cannot be made.
    pub fn open(
        config: &ParquetConfig,
        options: &WriteOptions,
        schema: SchemaRef,
        pipeline: &str,
        shard: &str,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<(Box<dyn TableWriter>, Arc<dyn Output>)> {
        let layout = ParquetLayout::new(config, schema, shard)?;
        let root = local_root(&config.path)?;
        durable::create_dirs(&root.join(STAGED)).map_err(|error| {
            Error::io(
                format!("cannot make the table's folder: path={}", root.display()),
                error,
            )
        })?;
        let output = ParquetOutput::open(root.clone())?;
        let name = format!("{pipeline}-{shard}");
        let writer = FanoutWriter::open(root, &name, Arc::new(layout), options, pool)?;
        Ok((Box::new(writer), Arc::new(output)))
    }

    /// The same in an object store, with about half of the writer's memory again on its way to it.
    ///
    /// # Errors
    /// `Config` when the layout does not fit the schema or an object store, when the store cannot be
    /// written to, or does not honour create-if-absent; `Unavailable` when it does not answer.
    pub async fn open_remote(
        config: &ParquetConfig,
        folder: ObjectFolder,
        options: &WriteOptions,
        schema: SchemaRef,
        (pipeline, shard): (&str, &str),
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<(Box<dyn TableWriter>, Arc<dyn Output>)> {
        let layout = ParquetLayout::new(config, schema, shard)?.named_at_once()?;
        let uploads = Uploads::new(&folder, options.memory_bytes / 2)?;
        let output = ObjectOutput::open(folder).await?;
        let name = format!("{pipeline}-{shard}");
        let writer = FanoutWriter::remote(uploads, &name, Arc::new(layout), options, pool)?;
        Ok((Box::new(writer), Arc::new(output)))
    }
}

fn local_root(path: &str) -> Result<PathBuf> {
    let local = path.strip_prefix("file://").unwrap_or(path);
    if local.contains("://") {
        return Err(Error::config(format!("not a local folder: path={path}")));
    }
    Ok(PathBuf::from(local))
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

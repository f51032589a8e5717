//! Plain, partitioned Parquet: where rows and files go ([`layout`]), and how an epoch's files become
//! visible exactly once ([`output`]).
//!
//! Below the table's path, `_calve/` holds what is not data: `id` (the table's identity),
//! `staged/` (complete files that are not visible yet) and `commits/<pipeline>/<shard>/<epoch>.json`
//! (what became visible together). Readers skip it: its name begins with an underscore, and staged
//! files do not end in `.parquet`.

pub mod clean;
pub mod config;
mod format;
pub mod layout;
pub mod output;
mod template;

use std::{path::PathBuf, sync::Arc};

use arrow::datatypes::SchemaRef;
use calve_engine::{
    durable,
    error::{Error, Result},
    seams::{Output, TableWriter},
};

pub use clean::{Cleaned, clean};
pub use config::ParquetConfig;
pub use layout::ParquetLayout;
pub use output::{ParquetOutput, PublishedFile};

use crate::write::{FanoutWriter, WriteOptions};

const STAGED: &str = "_calve/staged";
const STAGED_ENDING: &str = "staged";

/// A folder of Parquet files.
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
}

fn local_root(path: &str) -> Result<PathBuf> {
    let local = path.strip_prefix("file://").unwrap_or(path);
    if local.contains("://") {
        return Err(Error::config(format!(
            "parquet tables lie on local disks only: path={path}"
        ))
        .hint("write to an Iceberg table, or to a mounted folder"));
    }
    Ok(PathBuf::from(local))
}

#[cfg(test)]
mod tests;

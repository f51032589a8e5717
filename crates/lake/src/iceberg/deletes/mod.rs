//! Deletes by position: in Parquet files of paths and positions (format version 2), and in deletion
//! vectors (format version 3). Both are about rows of one data file when calve writes them, and are
//! read whoever wrote them.
//!
//! Writing makes bytes and the manifest's description; the caller stores the bytes.

pub(crate) mod position;
pub(crate) mod vector;

use std::sync::Arc;

use calve_engine::error::{Error, Result};
use iceberg::io::FileIO;
use roaring::RoaringTreemap;

use super::{
    access,
    live::{DeleteFile, DeleteKind, LiveFile},
};

/// The rows of a data file that are deleted, by deletes that apply to it (see
/// [`super::live::LiveFiles::deletes_of`]).
///
/// # Errors
/// `Corrupt` when a delete file is missing or cannot be read; `Config` for deletes by values.
pub(crate) async fn deleted_rows(
    file_io: &FileIO,
    file: &LiveFile,
    deletes: &[Arc<DeleteFile>],
) -> Result<RoaringTreemap> {
    let mut rows = RoaringTreemap::new();
    for delete in deletes {
        match delete.kind {
            // A vector holds everything; readers leave the others alone.
            DeleteKind::Vector { .. } => return vector::read(file_io, delete).await,
            DeleteKind::Positions => {
                rows |= position::read(file_io, &delete.path, &file.path).await?;
            }
            DeleteKind::Equality => {
                return Err(Error::config(format!(
                    "deletes by values are not applied: file={}",
                    delete.path
                ))
                .hint("compact the table with the engine that wrote them"));
            }
        }
    }
    Ok(rows)
}

fn unreadable(path: &str) -> impl FnOnce(iceberg::Error) -> Error {
    let path = path.to_owned();
    move |e| {
        let wrong = Error::corrupt(format!("cannot read a delete file: file={path}"))
            .hint("the table refers to this file; restore it, or roll the table back");
        access::unreadable(wrong, e)
    }
}

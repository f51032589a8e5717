//! Deletes by position: in Parquet files of paths and positions (format version 2), and in deletion
//! vectors (format version 3). Both are about rows of one data file when calve writes them, and are
//! read whoever wrote them. Deletes by values are in `equality`.
//!
//! Writing makes bytes and the manifest's description; the caller stores the bytes.

pub(crate) mod equality;
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
/// `Corrupt` when a file is missing or cannot be read; `Config` for deletes by values of nested columns.
pub(crate) async fn deleted_rows(
    file_io: &FileIO,
    file: &LiveFile,
    deletes: &[Arc<DeleteFile>],
) -> Result<RoaringTreemap> {
    let mut rows = RoaringTreemap::new();
    let mut vectors = false;
    for delete in deletes {
        match delete.kind {
            DeleteKind::Vector { .. } => {
                rows |= vector::read(file_io, delete).await?;
                vectors = true;
            }
            // A vector holds all positions; readers leave those of files alone.
            DeleteKind::Positions if !vectors => {
                rows |= position::read(file_io, &delete.path, &file.path).await?;
            }
            DeleteKind::Positions | DeleteKind::Equality => {}
        }
    }
    if deletes
        .iter()
        .any(|delete| delete.kind == DeleteKind::Equality)
    {
        rows |= equality::deleted_rows(file_io, file, deletes).await?;
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

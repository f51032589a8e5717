//! The files of tables by their locations, on the local file system or in an object store.
//!
//! A location is the text that stands in metadata: `file:///lake/t/data/x.parquet`, `/lake/…`, or
//! `s3://bucket/…`, whose path is the object's name, character for character. New files have names that
//! no other file ever has, so a write that is repeated does no harm; when it returns, they are durable.

use std::{
    error::Error as StdError,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use calve_engine::{
    error::{Error, Result},
    stores::{ObjectFolder, OpenUpload, Stores, upload::Uploads},
};
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::{
    arrow::ArrowFileReader,
    io::{FileIO, FileMetadata},
};
use parquet::{arrow::async_reader::AsyncFileReader, file::metadata::ParquetMetaData};

use super::{publish, storage};
use crate::write::{FanoutWriter, Placement, WriteOptions};

/// Requests at a time.
const AT_ONCE: usize = 16;

/// Reads and writes the files of tables.
#[derive(Clone, Debug)]
pub(crate) struct FileAccess {
    stores: Stores,
    io: FileIO,
}

/// A file that was found in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listed {
    /// As [`canonical`] gives it.
    pub(crate) location: String,
    pub(crate) bytes: u64,
    /// Milliseconds since 1970; none where it is not known.
    pub(crate) modified_ms: Option<i64>,
}

/// Where a location is.
pub(crate) enum Place {
    Local(PathBuf),
    Object(ObjectFolder),
}

/// The path of a local location; none: it is not local.
pub(crate) fn local(location: &str) -> Option<&str> {
    let path = location
        .strip_prefix("file://")
        .or_else(|| location.strip_prefix("file:"))
        .unwrap_or(location);
    path.starts_with('/').then_some(path)
}

/// One text for all the ways to write a location: a local one is its path.
pub(crate) fn canonical(location: &str) -> String {
    match (local(location), location.split_once("://")) {
        (Some(path), _) => path.to_owned(),
        (None, Some(("s3a" | "s3n", rest))) => format!("s3://{rest}"),
        (None, _) => location.to_owned(),
    }
}

/// Whether a location lies in a folder; both canonical, the folder without a slash at its end.
pub(crate) fn lies_in(location: &str, folder: &str) -> bool {
    let rest = location.strip_prefix(folder);
    rest.is_some_and(|rest| rest.starts_with('/'))
}

/// An error of reading a file that something refers to: `wrong`, unless the store could not be asked.
pub(crate) fn unreadable(wrong: Error, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    let cause = cause.into();
    let mut at: Option<&(dyn StdError + 'static)> = Some(&*cause);
    while let Some(error) = at {
        if let Some(ours) = error.downcast_ref::<Error>() {
            let told = Error::new(ours.kind(), wrong.message());
            let told = match ours.hint_text() {
                Some(hint) => told.hint(hint),
                None => told,
            };
            return told.because(cause);
        }
        at = error.source();
    }
    wrong.because(cause)
}

impl FileAccess {
    pub(crate) fn new(stores: Stores) -> Self {
        Self {
            io: storage::file_io(stores.clone()),
            stores,
        }
    }

    /// For what the crate `iceberg` reads.
    pub(crate) fn io(&self) -> &FileIO {
        &self.io
    }

    /// Where a location is.
    ///
    /// # Errors
    /// `Config` for what is no location.
    pub(crate) fn place(&self, location: &str) -> Result<Place> {
        if let Some(path) = local(location) {
            return Ok(Place::Local(PathBuf::from(path)));
        }
        let location = canonical(location);
        let object = self.stores.at(location.trim_end_matches('/'))?;
        Ok(Place::Object(object))
    }

    /// A writer of data files below a table's location. They are durable when an epoch is sealed; in
    /// an object store they are whole objects then, which nothing refers to yet.
    ///
    /// # Errors
    /// `Config` or `Schema` when the schema or an option does not fit.
    pub(crate) fn writer(
        &self,
        location: &str,
        shard: &str,
        placement: Arc<dyn Placement>,
        options: &WriteOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<FanoutWriter> {
        let options = &WriteOptions {
            text_deltas: false,
            ..options.clone()
        };
        match self.place(location)? {
            Place::Local(root) => FanoutWriter::open(root, shard, placement, options, pool),
            Place::Object(folder) => {
                let uploads = Uploads::new(&folder, options.memory_bytes / 2)?.visible();
                FanoutWriter::remote(uploads, shard, placement, options, pool)
            }
        }
    }

    /// Size of a file; none: it is not there.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer; `Config` without permission.
    pub(crate) async fn size(&self, location: &str) -> Result<Option<u64>> {
        match self.place(location)? {
            Place::Local(path) => match path.metadata() {
                Ok(found) => Ok(Some(found.len())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::io(
                    format!("cannot look at file={}", path.display()),
                    e,
                )),
            },
            Place::Object(object) => Ok(object.head("").await?.map(|found| found.size)),
        }
    }

    /// The first of these that is not there.
    ///
    /// # Errors
    /// As [`FileAccess::size`].
    pub(crate) async fn missing(&self, locations: Vec<String>) -> Result<Option<String>> {
        let mut looked = stream::iter(locations)
            .map(|location| async move {
                let there = self.size(&location).await?.is_some();
                Ok::<_, Error>((!there).then_some(location))
            })
            .buffered(AT_ONCE)
            .try_filter_map(|missing| async move { Ok(missing) })
            .boxed();
        looked.try_next().await
    }

    /// Writes new files of one folder side by side; when it returns, they and their names are durable.
    /// When it fails, none of them is left on a local disk.
    ///
    /// # Errors
    /// `Unavailable` or `Full`; `Config` when the folder is missing or forbidden.
    pub(crate) async fn write_all(
        &self,
        files: Vec<(String, Vec<u8>)>,
        folder: &str,
    ) -> Result<Vec<String>> {
        if local(folder).is_some() {
            return publish::write_all(files, folder).await;
        }
        stream::iter(files)
            .map(|(location, bytes)| async move {
                let Place::Object(object) = self.place(&location)? else {
                    return Err(Error::internal("a file of a remote table is local"));
                };
                object.put("", bytes).await?;
                Ok(location)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Removes a file; fine when it is not there.
    ///
    /// # Errors
    /// As [`FileAccess::size`].
    pub(crate) async fn remove(&self, location: &str) -> Result<()> {
        match self.place(location)? {
            Place::Local(path) => match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(
                    format!("cannot remove file={}", path.display()),
                    e,
                )),
                _ => Ok(()),
            },
            Place::Object(object) => object.delete("").await,
        }
    }

    /// Removes files that are known to be of no use, as far as that goes: `clean` finds the rest.
    pub(crate) async fn discard(&self, locations: &[String]) {
        for location in locations {
            if let Err(error) = self.remove(location).await {
                tracing::debug!(%error, "left a file that nothing refers to");
            }
        }
    }

    /// All files below a folder, but for those in the folders `others` (canonical).
    ///
    /// # Errors
    /// As [`FileAccess::size`].
    pub(crate) async fn list(&self, folder: &str, others: &[String]) -> Result<Vec<Listed>> {
        let name = canonical(folder.trim_end_matches('/'));
        let mut found = Vec::new();
        match self.place(folder)? {
            Place::Local(_) => list_local(Path::new(&name), others, &mut found)?,
            Place::Object(object) => {
                for one in object.list("", None).await? {
                    // Names are relative to the place: its own name is no part of them.
                    let location = format!("{name}/{}", one.name);
                    let another = |other: &String| lies_in(&location, other);
                    if !others.iter().any(another) {
                        found.push(Listed {
                            location,
                            bytes: one.bytes,
                            modified_ms: Some(one.modified_ms),
                        });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Uploads below a folder that were begun before a time and have not ended; none on a local disk.
    ///
    /// # Errors
    /// As [`FileAccess::size`].
    pub(crate) async fn open_uploads(
        &self,
        folder: &str,
        before_ms: i64,
    ) -> Result<Vec<OpenUpload>> {
        let Place::Object(object) = self.place(folder)? else {
            return Ok(Vec::new());
        };
        let mut uploads = object.open_uploads().await?.unwrap_or_default();
        // One that does not say when it was begun has no age: leave it.
        uploads.retain(|upload| upload.begun_ms.is_some_and(|begun| begun <= before_ms));
        Ok(uploads)
    }

    /// Gives up an upload below a folder.
    ///
    /// # Errors
    /// As [`FileAccess::size`].
    pub(crate) async fn abort(&self, folder: &str, upload: &OpenUpload) -> Result<()> {
        match self.place(folder)? {
            Place::Object(object) => object.abort(upload).await,
            Place::Local(_) => Ok(()),
        }
    }

    /// Reads a Parquet file of so many bytes piece by piece.
    ///
    /// # Errors
    /// Those of the crate `iceberg`; see [`unreadable`].
    pub(crate) async fn parquet(
        &self,
        location: &str,
        bytes: u64,
    ) -> iceberg::Result<ArrowFileReader> {
        let reader = self.io.new_input(location)?.reader().await?;
        Ok(ArrowFileReader::new(FileMetadata { size: bytes }, reader))
    }

    /// The footer of a Parquet file of so many bytes.
    ///
    /// # Errors
    /// Those of the libraries; see [`unreadable`].
    pub(crate) async fn footer(
        &self,
        location: &str,
        bytes: u64,
    ) -> Result<Arc<ParquetMetaData>, Box<dyn StdError + Send + Sync>> {
        let mut reader = self.parquet(location, bytes).await?;
        Ok(reader.get_metadata(None).await?)
    }
}

fn list_local(folder: &Path, others: &[String], found: &mut Vec<Listed>) -> Result<()> {
    let failed = |e| Error::io(format!("cannot list folder={}", folder.display()), e);
    if others.iter().any(|other| Path::new(other) == folder) {
        return Ok(());
    }
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let path = entry.path();
        if kind.is_dir() {
            list_local(&path, others, found)?;
        } else if kind.is_file() {
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            let modified = metadata.modified().ok();
            let since = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            // A name that is not text is none of a table's.
            if let Some(location) = path.to_str() {
                found.push(Listed {
                    location: location.to_owned(),
                    bytes: metadata.len(),
                    modified_ms: since.map(|since| since.as_millis() as i64),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_has_one_text() {
        for (location, text) in [
            ("file:///a/b", "/a/b"),
            ("file:/a/b", "/a/b"),
            ("/a/b", "/a/b"),
            ("s3a://b/c%2F d", "s3://b/c%2F d"),
            ("gs://b/c", "gs://b/c"),
        ] {
            assert_eq!(canonical(location), text);
        }
        assert_eq!(local("s3://b/c"), None);
        assert_eq!(local("lake/t"), None);
        assert!(lies_in("s3://b/t/data/x", "s3://b/t"));
        assert!(!lies_in("s3://b/t2/data/x", "s3://b/t"));
    }

    #[test]
    fn a_store_that_does_not_answer_has_lost_nothing() {
        let ours = |error: Error| {
            iceberg::Error::new(iceberg::ErrorKind::Unexpected, "x").with_source(error)
        };
        let wrong = || Error::corrupt("cannot read a manifest");
        let down = unreadable(wrong(), ours(Error::unavailable("no answer")));
        assert_eq!(down.kind(), calve_engine::ErrorKind::Unavailable);
        let within = parquet::errors::ParquetError::External(Box::new(ours(
            Error::config("forbidden").hint("check the credentials"),
        )));
        let forbidden = unreadable(wrong(), within);
        assert_eq!(forbidden.kind(), calve_engine::ErrorKind::Config);
        assert_eq!(forbidden.hint_text(), Some("check the credentials"));
        let gone = iceberg::Error::new(iceberg::ErrorKind::DataInvalid, "gone");
        assert_eq!(
            unreadable(wrong(), gone).kind(),
            calve_engine::ErrorKind::Corrupt
        );
    }
}

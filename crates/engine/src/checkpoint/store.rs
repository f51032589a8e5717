//! Where records lie: create-if-absent, read, list, replace, delete. One trait, since a folder, an
//! object store and a database behave differently below it.

use std::{io::ErrorKind, path::PathBuf, sync::Arc};

use async_trait::async_trait;

use super::ObjectRecords;
use crate::{
    durable::{self, Created},
    error::{Error, Result},
    stores::{Stores, is_remote},
};

/// A store of small named values. Names are `/`-separated, without a leading `/`.
#[async_trait]
pub trait RecordStore: Send + Sync {
    /// Creates `name` durably, unless it is there.
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created>;
    /// Its bytes; none when it is not there.
    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>>;
    /// Puts `bytes` under `name`, durably, in the place of whatever was there.
    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()>;
    /// The last parts of the names directly below a folder; empty when there is no such folder.
    async fn list(&self, folder: &str) -> Result<Vec<String>>;
    /// The names of the folders directly below a folder (empty: the store itself), hidden ones apart.
    async fn folders(&self, folder: &str) -> Result<Vec<String>>;
    /// Removes `name`; fine when it is not there.
    async fn delete(&self, name: &str) -> Result<()>;
    /// Removes what writes that were cut off left directly below a folder. Nobody may be writing
    /// there whose writes still count.
    async fn tidy(&self, folder: &str) -> Result<()> {
        let _ = folder;
        Ok(())
    }
    /// Where it is, for messages; no secrets.
    fn location(&self) -> String;
}

/// Opens the store at a URL or a local path; probes that an object store honours create-if-absent.
///
/// # Errors
/// `Config` for a URL that is none, or a store that accepts to create one name twice.
pub async fn open_store(location: &str, stores: &Stores) -> Result<Arc<dyn RecordStore>> {
    if is_remote(location) {
        let folder = stores.open(location)?;
        return Ok(Arc::new(ObjectRecords::probed(folder).await?));
    }
    let path = location.strip_prefix("file://").unwrap_or(location);
    Ok(Arc::new(LocalRecords::new(path)))
}

/// Records in a local folder, by the durable operations of [`durable`].
#[derive(Clone, Debug)]
pub struct LocalRecords {
    root: PathBuf,
}

impl LocalRecords {
    /// In the folder `root`, which is created with the first record.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &str,
        what: &'static str,
        work: impl FnOnce(PathBuf) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.root.join(name);
        let shown = path.display().to_string();
        tokio::task::spawn_blocking(move || work(path))
            .await
            .map_err(|e| Error::internal("a blocking task died").because(e))?
            .map_err(|e| {
                Error::io(format!("checkpoint store: cannot {what}: path={shown}"), e)
                    .hint("free space or mend the permissions of the checkpoint folder; nothing is lost, start again then")
            })
    }
}

#[async_trait]
impl RecordStore for LocalRecords {
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        self.blocking(name, "create", move |path| durable::create(&path, &bytes))
            .await
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.blocking(name, "read", |path| match std::fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.blocking(name, "write", move |path| durable::replace(&path, &bytes))
            .await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.blocking(folder, "list", |path| {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
            names
                .filter(|n| !n.as_ref().is_ok_and(|n| n.starts_with('.')))
                .collect()
        })
        .await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        self.blocking(folder, "list", |path| {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut names = Vec::new();
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() && !name.starts_with('.') {
                    names.push(name);
                }
            }
            Ok(names)
        })
        .await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.blocking(name, "delete", |path| match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    async fn tidy(&self, folder: &str) -> Result<()> {
        self.blocking(folder, "tidy", |path| {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if durable::is_staged(&name) {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }

    fn location(&self) -> String {
        self.root.display().to_string()
    }
}

//! Records in an object store: create-if-absent is a conditional put.

use async_trait::async_trait;

use super::RecordStore;
use crate::{
    durable::Created,
    error::{Error, Result},
    stores::ObjectFolder,
};

/// Created at the first start, and kept: creating it again must fail.
const PROBE: &str = ".probe";

/// Records below a place of an object store (S3, GCS, Azure, memory).
#[derive(Debug)]
pub struct ObjectRecords {
    folder: ObjectFolder,
}

impl ObjectRecords {
    /// In this place, after probing its store.
    ///
    /// # Errors
    /// `Config` when the store accepts to create one name twice.
    pub async fn probed(folder: ObjectFolder) -> Result<Self> {
        folder.create_probed(PROBE, "").await.map_err(within)?;
        Ok(Self { folder })
    }
}

fn within(error: Error) -> Error {
    error.context("checkpoint store")
}

#[async_trait]
impl RecordStore for ObjectRecords {
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        self.folder.create(name, bytes).await.map_err(within)
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let found = self.folder.get(name).await.map_err(within)?;
        Ok(found.map(|bytes| bytes.to_vec()))
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.folder.put(name, bytes).await.map_err(within)
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let found = self.folder.list(folder, None).await.map_err(within)?;
        let names = found.into_iter().filter_map(|one| {
            let name = one
                .name
                .strip_prefix(folder)?
                .trim_start_matches('/')
                .to_owned();
            (!name.contains('/') && !name.starts_with('.')).then_some(name)
        });
        Ok(names.collect())
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let mut names = self.folder.folders(folder).await.map_err(within)?;
        names.retain(|name| !name.starts_with('.'));
        Ok(names)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.folder.delete(name).await.map_err(within)
    }

    fn location(&self) -> String {
        self.folder.shown().to_owned()
    }
}

//! Records in an object store: create-if-absent is a conditional put.

use std::sync::Arc;

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path,
};
use url::Url;

use super::RecordStore;
use crate::{
    durable::Created,
    error::{Error, Result},
};

/// Records below a prefix of an object store (S3, GCS, Azure, memory).
#[derive(Debug)]
pub struct ObjectRecords {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    shown: String,
}

impl ObjectRecords {
    /// Opens a URL with the environment's credentials, and probes the store.
    ///
    /// # Errors
    /// `Config` for a bad URL or a store without create-if-absent.
    pub async fn open(url: &str) -> Result<Self> {
        let parsed = Url::parse(url)
            .map_err(|e| Error::config(format!("not a URL: checkpoint={url}")).because(e))?;
        let options = std::env::vars().map(|(k, v)| (k.to_lowercase(), v));
        let (store, prefix) = object_store::parse_url_opts(&parsed, options)
            .map_err(|e| Error::config("cannot open the checkpoint store").because(e))?;
        let shown = format!(
            "{}://{}{}",
            parsed.scheme(),
            parsed.host_str().unwrap_or(""),
            parsed.path()
        );
        Self::probed(Arc::from(store), prefix, shown).await
    }

    /// Uses a store that is open already, after probing it.
    ///
    /// # Errors
    /// `Config` when the store accepts to create one name twice.
    pub async fn probed(store: Arc<dyn ObjectStore>, prefix: Path, shown: String) -> Result<Self> {
        let records = Self {
            store,
            prefix,
            shown,
        };
        let name = format!(".probe/{}", uuid::Uuid::new_v4());
        let first = records.create(&name, b"1".to_vec()).await?;
        let second = records.create(&name, b"2".to_vec()).await?;
        records.delete(&name).await?;
        if (first, second) != (Created::Yes, Created::Exists) {
            return Err(Error::config(format!(
                "the store does not honour create-if-absent, so two processes could not be told apart: store={}",
                records.shown
            ))
            .hint("put the checkpoints elsewhere: `checkpoint: {path: …}` takes a local folder or another store"));
        }
        Ok(records)
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), Path::join)
    }

    fn error(&self, what: &str, name: &str, error: StoreError) -> Error {
        Error::unavailable(format!(
            "checkpoint store: cannot {what}: store={} name={name}",
            self.shown
        ))
        .because(error)
    }
}

#[async_trait]
impl RecordStore for ObjectRecords {
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        match self
            .store
            .put_opts(&self.path(name), PutPayload::from(bytes), options)
            .await
        {
            Ok(_) => Ok(Created::Yes),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(Created::Exists)
            }
            Err(error) => Err(self.error("create", name, error)),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.store.get(&self.path(name)).await {
            Ok(found) => {
                let bytes = found
                    .bytes()
                    .await
                    .map_err(|e| self.error("read", name, e))?;
                Ok(Some(bytes.to_vec()))
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("read", name, error)),
        }
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.store
            .put(&self.path(name), PutPayload::from(bytes))
            .await
            .map(drop)
            .map_err(|e| self.error("write", name, e))
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let found: Vec<_> = self
            .store
            .list(Some(&self.path(folder)))
            .try_collect()
            .await
            .map_err(|e| self.error("list", folder, e))?;
        Ok(found
            .into_iter()
            .filter_map(|o| o.location.filename().map(str::to_owned))
            .collect())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("delete", name, error)),
        }
    }

    fn location(&self) -> String {
        self.shown.clone()
    }
}

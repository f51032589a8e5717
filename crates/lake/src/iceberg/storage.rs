//! The storage that the crate `iceberg` reads through: local files as it knows them itself, objects by
//! [`Stores`]. Errors keep calve's own underneath, so that what to do about them is not lost.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{
    error::{Error, ErrorKind},
    stores::{ObjectFolder, Stores},
};
use futures::{StreamExt, stream::BoxStream};
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, LocalFsStorage,
    OutputFile, Storage, StorageConfig, StorageFactory,
};
use serde::{Deserialize, Serialize};

use super::access::local;

type Result<T> = iceberg::Result<T>;

/// What reads and writes by these stores.
pub(super) fn file_io(stores: Stores) -> FileIO {
    FileIOBuilder::new(Arc::new(AnyStoreFactory { stores })).build()
}

/// Makes [`AnyStore`]. The stores are in no serialized form.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AnyStoreFactory {
    #[serde(skip)]
    stores: Stores,
}

#[typetag::serde(name = "CalveStorageFactory")]
impl StorageFactory for AnyStoreFactory {
    fn build(&self, _: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(AnyStore {
            stores: self.stores.clone(),
            files: LocalFsStorage::new(),
        }))
    }
}

/// Local files and objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AnyStore {
    #[serde(skip)]
    stores: Stores,
    files: LocalFsStorage,
}

impl AnyStore {
    /// The object at a location; none: a local file.
    fn object(&self, location: &str) -> Result<Option<ObjectFolder>> {
        if local(location).is_some() {
            return Ok(None);
        }
        self.stores.at(location).map(Some).map_err(failed)
    }
}

/// An error of ours as one of the crate's.
fn failed(error: Error) -> iceberg::Error {
    let retryable = error.kind() == ErrorKind::Unavailable;
    iceberg::Error::new(iceberg::ErrorKind::Unexpected, error.message().to_owned())
        .with_retryable(retryable)
        .with_source(error)
}

fn missing(location: &str) -> iceberg::Error {
    let what = format!("there is no such object: location={location}");
    iceberg::Error::new(iceberg::ErrorKind::DataInvalid, what)
}

fn unsupported(what: &str) -> iceberg::Error {
    iceberg::Error::new(iceberg::ErrorKind::FeatureUnsupported, what)
}

#[async_trait]
#[typetag::serde(name = "CalveStorage")]
impl Storage for AnyStore {
    async fn exists(&self, path: &str) -> Result<bool> {
        match self.object(path)? {
            None => self.files.exists(path).await,
            Some(object) => Ok(object.head("").await.map_err(failed)?.is_some()),
        }
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        match self.object(path)? {
            None => self.files.metadata(path).await,
            Some(object) => {
                let found = object.head("").await.map_err(failed)?;
                let found = found.ok_or_else(|| missing(path))?;
                Ok(FileMetadata { size: found.size })
            }
        }
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        match self.object(path)? {
            None => self.files.read(path).await,
            Some(object) => {
                let read = object.get("").await.map_err(failed)?;
                read.ok_or_else(|| missing(path))
            }
        }
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        match self.object(path)? {
            None => self.files.reader(path).await,
            Some(object) => Ok(Box::new(ObjectRead {
                object,
                location: path.to_owned(),
            })),
        }
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        match self.object(path)? {
            None => self.files.write(path, bytes).await,
            Some(object) => object.put("", bytes).await.map_err(failed),
        }
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        match self.object(path)? {
            None => self.files.writer(path).await,
            Some(_) => Err(unsupported("objects are not written piece by piece here")),
        }
    }

    async fn delete(&self, path: &str) -> Result<()> {
        match self.object(path)? {
            None => self.files.delete(path).await,
            Some(object) => object.delete("").await.map_err(failed),
        }
    }

    async fn delete_prefix(&self, _: &str) -> Result<()> {
        Err(unsupported("nothing is deleted by its prefix here"))
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

/// Reads ranges of one object.
struct ObjectRead {
    object: ObjectFolder,
    location: String,
}

#[async_trait]
impl FileRead for ObjectRead {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let read = self.object.range("", range).await.map_err(failed)?;
        read.ok_or_else(|| missing(&self.location))
    }
}

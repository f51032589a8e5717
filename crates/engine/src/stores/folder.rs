//! A place in an object store: small objects by name, with errors that say what to do.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    Error as StoreError, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, multipart::MultipartStore, path::Path,
};

use super::{OpenUpload, Opened, redact, uploads::S3Lister};
use crate::{
    durable::Created,
    error::{Error, ErrorKind, Result},
};

/// A place in an object store. Names are relative to it, with `/` between their parts.
#[derive(Clone)]
pub struct ObjectFolder {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    lister: Option<Arc<S3Lister>>,
    whole: bool,
    root: Path,
    shown: Arc<str>,
    secrets: Arc<Vec<String>>,
}

impl fmt::Debug for ObjectFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectFolder({})", self.shown)
    }
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name, relative to the place it was looked for from.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, milliseconds since 1970.
    pub modified_ms: i64,
}

impl ObjectFolder {
    pub(super) fn new(opened: Opened, root: Path, shown: String, secrets: Vec<String>) -> Self {
        Self {
            store: opened.store,
            multipart: opened.multipart,
            lister: opened.lister,
            whole: opened.whole,
            root,
            shown: shown.trim_end_matches('/').into(),
            secrets: Arc::new(secrets),
        }
    }

    /// A place in a store in memory, for tests.
    pub fn in_memory() -> Self {
        let opened = Opened::of(object_store::memory::InMemory::new());
        Self::new(opened, Path::default(), "memory:///".to_owned(), Vec::new())
    }

    /// The place `name` within this one.
    ///
    /// # Errors
    /// `Config` for what cannot be a name.
    pub fn sub(&self, name: &str) -> Result<Self> {
        let mut sub = self.clone();
        sub.root = self.path(name)?;
        sub.shown = format!("{}/{name}", self.shown).into();
        Ok(sub)
    }

    /// The store itself, whose paths are those of [`Self::path`].
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The store's multipart uploads.
    ///
    /// # Errors
    /// `Config` for a store that has none (a plain HTTP server).
    pub fn multipart(&self) -> Result<Arc<dyn MultipartStore>> {
        self.multipart.clone().ok_or_else(|| {
            Error::config(format!(
                "this store cannot be written to: url={}",
                self.shown
            ))
            .hint("s3://, gs:// and az:// can")
        })
    }

    /// Whether objects are replaced as a whole only, with an ETag that tells; else they may grow, as
    /// files of an HTTP server do.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Where this is, without secrets.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Where this is in the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of an object in the store.
    ///
    /// # Errors
    /// `Config` for what cannot be a name (a part that is empty or `..`).
    pub fn path(&self, name: &str) -> Result<Path> {
        let whole = match self.root.as_ref() {
            "" => name.to_owned(),
            root => format!("{root}/{name}"),
        };
        Path::parse(&whole)
            .map_err(|e| Error::config(format!("not a name for an object: name={name}")).because(e))
    }

    /// An error of the store, by what to do about it, without secrets.
    pub fn failed(&self, what: &str, name: &str, error: &StoreError) -> Error {
        let kind = match error {
            StoreError::NotFound { .. }
            | StoreError::PermissionDenied { .. }
            | StoreError::Unauthenticated { .. }
            | StoreError::NotSupported { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::UnknownConfigurationKey { .. } => ErrorKind::Config,
            _ => ErrorKind::Unavailable,
        };
        let at = if name.is_empty() {
            format!("url={}", self.shown)
        } else {
            format!("url={}/{name}", self.shown)
        };
        let failed =
            Error::new(kind, format!("{what}: {at}")).because(redact(error, &self.secrets));
        match error {
            StoreError::NotFound { .. } => failed.hint("check that the bucket is there"),
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => failed
                .hint("check the credentials: `stores` of the pipeline file, or the environment"),
            _ => failed,
        }
    }

    /// Creates an object, unless it is there.
    ///
    /// # Errors
    /// `Unavailable` also when another write of this name is under way: try again, and look.
    pub async fn create(&self, name: &str, bytes: impl Into<Bytes>) -> Result<Created> {
        let path = self.path(name)?;
        let options = PutOptions::from(PutMode::Create);
        let payload = PutPayload::from_bytes(bytes.into());
        match self.store.put_opts(&path, payload, options).await {
            Ok(_) => Ok(Created::Yes),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                // S3 answers 409 while another conditional write runs, which may yet fail.
                match self.head(name).await? {
                    Some(_) => Ok(Created::Exists),
                    None => Err(Error::unavailable(format!(
                        "another write is under way: url={}/{name}",
                        self.shown
                    ))),
                }
            }
            Err(error) => Err(self.failed("cannot create an object", name, &error)),
        }
    }

    /// Makes sure that the store honours create-if-absent, by the object `name`, which is there
    /// afterwards, with these bytes if nothing was there before.
    ///
    /// # Errors
    /// `Config` for a store that accepts to create one name twice.
    pub async fn create_probed(&self, name: &str, bytes: impl Into<Bytes>) -> Result<Created> {
        let bytes = bytes.into();
        let first = self.create(name, bytes.clone()).await?;
        if first == Created::Yes && self.create(name, bytes).await? != Created::Exists {
            return Err(Error::config(format!(
                "the store does not honour create-if-absent, so two processes could not be told \
                 apart: url={}",
                self.shown
            ))
            .hint("use a store that answers conditional writes (`If-None-Match: *`)"));
        }
        Ok(first)
    }

    /// An object's bytes; none when it is not there.
    ///
    /// # Errors
    /// `Unavailable`; `Config` without permission.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name)?;
        let read = async { self.store.get(&path).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("cannot read an object", name, &error)),
        }
    }

    /// Some of an object's bytes, by their half-open range; none when it is not there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        if range.is_empty() {
            return Ok(Some(Bytes::new()));
        }
        match self.store.get_range(&self.path(name)?, range).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("cannot read an object", name, &error)),
        }
    }

    /// What is known of an object; none when it is not there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn head(&self, name: &str) -> Result<Option<ObjectMeta>> {
        let path = self.path(name)?;
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.store.get_opts(&path, options).await {
            Ok(found) => Ok(Some(found.meta)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("cannot look at an object", name, &error)),
        }
    }

    /// Writes an object, in the place of whatever was there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let payload = PutPayload::from_bytes(bytes.into());
        match self.store.put(&self.path(name)?, payload).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("cannot write an object", name, &error)),
        }
    }

    /// Copies an object, in the place of whatever was there; false when it is not there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn copy(&self, from: &str, to: &str) -> Result<bool> {
        match self.store.copy(&self.path(from)?, &self.path(to)?).await {
            Ok(()) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed("cannot copy an object", from, &error)),
        }
    }

    /// Removes an object; fine when it is not there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn delete(&self, name: &str) -> Result<()> {
        match self.store.delete(&self.path(name)?).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("cannot delete an object", name, &error)),
        }
    }

    /// All objects below the place `name` (empty: this one), in the order of their names; `after`
    /// leaves out what comes before and at a name.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn list(&self, name: &str, after: Option<&str>) -> Result<Vec<Found>> {
        let prefix = if name.is_empty() {
            self.root.clone()
        } else {
            self.path(name)?
        };
        let listing: BoxStream<'static, object_store::Result<ObjectMeta>> = match after {
            None => self.store.list(Some(&prefix)),
            Some(after) => self
                .store
                .list_with_offset(Some(&prefix), &self.path(after)?),
        };
        let root_bytes = match self.root.as_ref() {
            "" => 0,
            root => root.len() + 1,
        };
        let mut found: Vec<Found> = listing
            .map(|meta| {
                let meta = meta.map_err(|e| self.failed("cannot list objects", name, &e))?;
                Ok::<Found, Error>(Found {
                    name: meta
                        .location
                        .as_ref()
                        .get(root_bytes..)
                        .unwrap_or_default()
                        .to_owned(),
                    bytes: meta.size,
                    modified_ms: meta.last_modified.timestamp_millis(),
                })
            })
            .try_collect()
            .await?;
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Moves the objects directly below the place `from` whose last part `takes` likes to a new place
    /// `<aside>-<n>`. Answers its name, if there were any. The last goes first, so that at any moment
    /// those that are left are a beginning.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn set_aside(
        &self,
        from: &str,
        aside: &str,
        takes: impl Fn(&str) -> bool,
    ) -> Result<Option<String>> {
        let listed = self.list(from, None).await?;
        let names = listed
            .iter()
            .filter_map(|one| one.name.strip_prefix(from)?.strip_prefix('/'));
        let names: Vec<&str> = names.filter(|n| !n.contains('/') && takes(n)).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let mut count = 1_u32;
        let mut to = format!("{aside}-{count}");
        while !self.list(&to, None).await?.is_empty() {
            count += 1;
            to = format!("{aside}-{count}");
        }
        for name in names.iter().rev() {
            let from = format!("{from}/{name}");
            self.copy(&from, &format!("{to}/{name}")).await?;
            self.delete(&from).await?;
        }
        Ok(Some(to))
    }

    /// The last parts of the names of the places directly below the place `name`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn folders(&self, name: &str) -> Result<Vec<String>> {
        let prefix = if name.is_empty() {
            self.root.clone()
        } else {
            self.path(name)?
        };
        let listed = self.store.list_with_delimiter(Some(&prefix)).await;
        let listed = listed.map_err(|e| self.failed("cannot list places", name, &e))?;
        let parts = listed.common_prefixes.iter();
        Ok(parts
            .filter_map(|p| p.filename().map(str::to_owned))
            .collect())
    }

    /// Uploads below this place that were begun and neither completed nor aborted; none where the
    /// store cannot list them, and forgets them by itself (see `docs/operating.md`).
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn open_uploads(&self) -> Result<Option<Vec<OpenUpload>>> {
        let Some(lister) = &self.lister else {
            return Ok(None);
        };
        let listed = lister.list(self.root.as_ref()).await;
        listed.map(Some).map_err(|text| {
            Error::unavailable(format!("cannot list uploads: url={}", self.shown))
                .because(redact(&*text, &self.secrets))
        })
    }

    /// Gives an upload up; fine when it is not there any more.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn abort(&self, upload: &OpenUpload) -> Result<()> {
        let path = Path::parse(&upload.path)
            .map_err(|e| Error::internal("a listed upload has a name that is none").because(e))?;
        match self.multipart()?.abort_multipart(&path, &upload.id).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("cannot abort an upload", "", &error)),
        }
    }
}

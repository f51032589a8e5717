//! Writes large objects part by part as they grow, in bounded memory, and leaves the last step, which
//! makes the object visible, to whoever holds the [`Uploaded`]; or takes it too, where nobody sees an
//! object before something refers to it ([`Uploads::visible`]).
//!
//! The writing side is synchronous and blocks while too many bytes are on their way; it must not run
//! on a thread of the runtime. Parts but for the last have the same size, as some stores ask for.
//! An upload that is dropped before it is [`Pending::finish`]ed is aborted, as far as that goes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use object_store::{
    Error as StoreError, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use super::ObjectFolder;
use crate::{
    error::{Error, Result},
    fault,
};

/// Bytes of a part. Stores want at least 5 MiB.
pub const PART_BYTES: usize = 8 << 20;

/// Permits are counted in units of this many bytes.
const UNIT: usize = 64 << 10;
/// A part counts as at least this many units: that bounds the requests at a time.
const LEAST_UNITS: usize = 8;

/// Makes uploads that share a limit of bytes on their way.
#[derive(Clone)]
pub struct Uploads {
    folder: ObjectFolder,
    multipart: Arc<dyn MultipartStore>,
    permits: Arc<Semaphore>,
    runtime: Handle,
    /// Objects are visible when they are complete.
    visible: bool,
}

/// A complete upload whose object is not visible yet: goes into a checkpoint record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// The store's id of it.
    pub id: String,
    /// The store's ids of its parts, in order.
    pub parts: Vec<String>,
}

/// What became of the wish to make an object visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// It is visible now.
    Yes,
    /// There is no such upload: it was completed before, or aborted.
    NoUpload,
}

impl Uploads {
    /// Uploads into `folder`, with about `in_flight_bytes` on their way at the most. Called on the
    /// runtime that will carry them.
    ///
    /// # Errors
    /// `Config` for a store that cannot be written to.
    pub fn new(folder: &ObjectFolder, in_flight_bytes: usize) -> Result<Self> {
        let runtime = Handle::try_current()
            .map_err(|e| Error::internal("uploads need a runtime").because(e))?;
        let units = (in_flight_bytes / UNIT).max(PART_BYTES / UNIT);
        Ok(Self {
            multipart: folder.multipart()?,
            folder: folder.clone(),
            permits: Arc::new(Semaphore::new(units)),
            runtime,
            visible: false,
        })
    }

    /// The same with objects that are visible as soon as they are complete; small ones go in one
    /// request. For names that no other object ever has, and that are found only where they are told.
    #[must_use]
    pub fn visible(mut self) -> Self {
        self.visible = true;
        self
    }

    /// Where objects go.
    pub fn folder(&self) -> &ObjectFolder {
        &self.folder
    }

    /// Begins an object; nothing is sent yet.
    ///
    /// # Errors
    /// `Config` for what cannot be a name.
    pub fn begin(&self, name: &str) -> Result<Upload> {
        Ok(Upload {
            buffer: Vec::new(),
            pending: Pending {
                shared: Arc::new(Shared {
                    uploads: self.clone(),
                    path: self.folder.path(name)?,
                    name: name.to_owned(),
                    id: OnceCell::new(),
                    keep: AtomicBool::new(false),
                    failed: AtomicBool::new(false),
                }),
                parts: Vec::new(),
                whole: None,
            },
        })
    }

    /// Makes the object of an upload visible.
    ///
    /// # Errors
    /// `Unavailable` when no answer came: look whether the object is there, and try again.
    pub async fn complete(
        folder: &ObjectFolder,
        name: &str,
        uploaded: &Uploaded,
    ) -> Result<Completed> {
        let parts = uploaded.parts.iter().map(|id| PartId {
            content_id: id.clone(),
        });
        let path = folder.path(name)?;
        let multipart = folder.multipart()?;
        let done = multipart.complete_multipart(&path, &uploaded.id, parts.collect());
        match done.await {
            Ok(_) => Ok(Completed::Yes),
            Err(error) if is_gone(&error) => Ok(Completed::NoUpload),
            Err(error) => Err(folder.failed("cannot complete an upload", name, &error)),
        }
    }
}

/// Whether a store says that it does not know the upload or its parts.
fn is_gone(error: &StoreError) -> bool {
    if matches!(error, StoreError::NotFound { .. }) {
        return true;
    }
    let text = super::redact(error, &[]);
    // By the codes of S3 and Google, of Azure, and of the store in memory.
    let codes = [
        "NoSuchUpload",
        "InvalidBlockList",
        "MultipartUpload not found",
    ];
    codes.iter().any(|code| text.contains(code))
}

struct Shared {
    uploads: Uploads,
    path: Path,
    name: String,
    id: OnceCell<String>,
    /// It is somebody else's now: not to be aborted.
    keep: AtomicBool,
    failed: AtomicBool,
}

impl Shared {
    async fn id(&self) -> Result<&String> {
        let begin = || self.uploads.multipart.create_multipart(&self.path);
        let id = self.id.get_or_try_init(begin).await;
        id.map_err(|e| self.failed("cannot begin an upload", &e))
    }

    async fn send(&self, number: usize, bytes: Vec<u8>) -> Result<String> {
        fault::point("store.upload.part")?;
        let id = self.id().await?;
        let payload = PutPayload::from(bytes);
        let sent = self
            .uploads
            .multipart
            .put_part(&self.path, id, number, payload)
            .await;
        let part = sent.map_err(|e| self.failed("cannot upload a part", &e))?;
        fault::point("store.upload.after_part")?;
        Ok(part.content_id)
    }

    fn failed(&self, what: &str, error: &StoreError) -> Error {
        self.uploads.folder.failed(what, &self.name, error)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Acquire) {
            return;
        }
        if let Some(id) = self.id.take() {
            let (multipart, path) = (self.uploads.multipart.clone(), self.path.clone());
            // What is not aborted is found by `clean`: nothing refers to it.
            self.uploads.runtime.spawn(async move {
                let _ = multipart.abort_multipart(&path, &id).await;
            });
        }
    }
}

/// An object that is being written.
pub struct Upload {
    buffer: Vec<u8>,
    pending: Pending,
}

impl Upload {
    /// Bytes held that were not handed to the store yet.
    pub fn buffered(&self) -> usize {
        self.buffer.capacity()
    }

    /// Appends; sends the parts that are full. Blocks while too much is on its way.
    ///
    /// # Errors
    /// Only when the process ends. What fails on the way is said by [`Pending::finish`].
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(part) = self.fill(&mut bytes) {
            self.pending.send(part)?;
        }
        Ok(())
    }

    /// The same for an asynchronous caller.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(part) = self.fill(&mut bytes) {
            let permit = self.pending.permit(part.len()).await?;
            self.pending.start(part, permit);
        }
        Ok(())
    }

    /// Takes of `bytes` what fits; a part when that made it full.
    fn fill(&mut self, bytes: &mut &[u8]) -> Option<Vec<u8>> {
        let room = PART_BYTES - self.buffer.len();
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        *bytes = later;
        // Grows in steps: most files of many are small.
        let wanted = self.buffer.len() + now.len();
        if wanted > self.buffer.capacity() {
            let step = wanted.next_power_of_two().clamp(64 << 10, PART_BYTES);
            self.buffer.reserve_exact(step - self.buffer.len());
        }
        self.buffer.extend_from_slice(now);
        (self.buffer.len() == PART_BYTES).then(|| std::mem::take(&mut self.buffer))
    }

    /// Sends the rest.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn close(mut self) -> io::Result<Pending> {
        let part = std::mem::take(&mut self.buffer);
        let first = self.pending.parts.is_empty();
        if first && self.pending.shared.uploads.visible {
            self.pending.send_whole(part)?;
        } else if first || !part.is_empty() {
            self.pending.send(part)?;
        }
        Ok(self.pending)
    }

    /// Sends the rest, and makes the object visible at once.
    ///
    /// # Errors
    /// `Unavailable`; `Config` without permission.
    pub async fn publish(mut self) -> Result<()> {
        let folder = self.pending.shared.uploads.folder.clone();
        let name = self.pending.shared.name.clone();
        if self.pending.parts.is_empty() {
            return folder.put(&name, self.buffer).await;
        }
        let ended = |e| Error::unavailable("uploads have ended").because(e);
        let permit = self
            .pending
            .permit(self.buffer.len())
            .await
            .map_err(ended)?;
        self.pending.start(self.buffer, permit);
        match self.pending.finish().await? {
            Some(uploaded) => complete_alone(&folder, &name, &uploaded).await,
            None => Ok(()),
        }
    }
}

/// Makes an object visible whose name no other upload has.
async fn complete_alone(folder: &ObjectFolder, name: &str, uploaded: &Uploaded) -> Result<()> {
    match Uploads::complete(folder, name, uploaded).await {
        Ok(Completed::Yes) => Ok(()),
        // An answer may have been lost: the object says whether it was done.
        Ok(Completed::NoUpload) | Err(_) if folder.head(name).await?.is_some() => Ok(()),
        Ok(Completed::NoUpload) => Err(Error::unavailable(format!(
            "an upload has gone: url={}/{name}",
            folder.shown()
        ))),
        Err(error) => Err(error),
    }
}

/// An object whose bytes are on their way.
pub struct Pending {
    shared: Arc<Shared>,
    parts: Vec<JoinHandle<Result<String>>>,
    /// It goes in one request.
    whole: Option<JoinHandle<Result<()>>>,
}

impl Pending {
    fn send_whole(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let runtime = self.shared.uploads.runtime.clone();
        let permit = runtime.block_on(self.permit(bytes.len()))?;
        let shared = Arc::clone(&self.shared);
        self.whole = Some(runtime.spawn(async move {
            fault::point("store.upload.part")?;
            let put = shared.uploads.folder.put(&shared.name, bytes).await;
            drop(permit);
            put?;
            fault::point("store.upload.after_part")
        }));
        Ok(())
    }

    fn send(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let runtime = self.shared.uploads.runtime.clone();
        let permit = runtime.block_on(self.permit(bytes.len()))?;
        self.start(bytes, permit);
        Ok(())
    }

    async fn permit(&self, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
        let units = bytes.div_ceil(UNIT).max(LEAST_UNITS) as u32;
        let permits = Arc::clone(&self.shared.uploads.permits);
        permits
            .acquire_many_owned(units)
            .await
            .map_err(io::Error::other)
    }

    fn start(&mut self, bytes: Vec<u8>, permit: OwnedSemaphorePermit) {
        if self.shared.failed.load(Ordering::Acquire) {
            // It is lost already; the part that failed says why.
            return;
        }
        let (number, shared) = (self.parts.len(), Arc::clone(&self.shared));
        self.parts
            .push(self.shared.uploads.runtime.spawn(async move {
                let sent = shared.send(number, bytes).await;
                drop(permit);
                if sent.is_err() {
                    shared.failed.store(true, Ordering::Release);
                }
                sent
            }));
    }

    /// Waits until all parts are with the store. From then on the upload is the caller's: nothing
    /// aborts it. None: the object is visible (see [`Uploads::visible`]).
    ///
    /// # Errors
    /// The first part's that failed; the upload is aborted.
    pub async fn finish(mut self) -> Result<Option<Uploaded>> {
        let died = |e| Error::internal("an upload died").because(e);
        if let Some(whole) = &mut self.whole {
            whole.await.map_err(died)??;
            return Ok(None);
        }
        let mut parts = Vec::with_capacity(self.parts.len());
        for task in std::mem::take(&mut self.parts) {
            parts.push(task.await.map_err(died)??);
        }
        let id = self.shared.id().await?.clone();
        let uploaded = Uploaded { id, parts };
        let uploads = &self.shared.uploads;
        if uploads.visible {
            fault::point("store.upload.complete")?;
            complete_alone(&uploads.folder, &self.shared.name, &uploaded).await?;
        }
        self.shared.keep.store(true, Ordering::Release);
        Ok((!uploads.visible).then_some(uploaded))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        for task in &self.parts {
            task.abort();
        }
        if let Some(whole) = &self.whole {
            whole.abort();
        }
    }
}

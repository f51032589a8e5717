//! For those who append: room among what may be pending, and the answer when an entry is durable.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use calve_engine::{Error, Result, clock};
use tokio::sync::{mpsc, oneshot};

use super::{
    Shared,
    keys::Known,
    record::{Content, Key, LogId},
    writer::{Append, Ask},
};

/// What is appended.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) content: Content,
    /// Bytes of the payload, or its rows; not zero.
    pub(crate) units: u32,
    pub(crate) events: u32,
    /// Events of the same request that are not in the payload.
    pub(crate) refused: u32,
    pub(crate) key: Option<Key>,
    pub(crate) payload: Bytes,
}

/// Why an entry was not appended.
#[derive(Debug)]
pub(crate) enum NotAppended {
    /// It is not in the log.
    Failed(Error),
    /// The next start may find it in the log, or not.
    Unknown(Error),
}

impl std::fmt::Display for NotAppended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Failed(error) | Self::Unknown(error)) = self;
        error.fmt(f)
    }
}

impl From<NotAppended> for Error {
    fn from(error: NotAppended) -> Self {
        let (NotAppended::Failed(error) | NotAppended::Unknown(error)) = error;
        error
    }
}

/// Appends to the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Appender {
    pub(super) id: LogId,
    pub(super) shared: Arc<Shared>,
    pub(super) asks: mpsc::Sender<Ask>,
}

/// Room among what is pending, given back when this is dropped.
pub(crate) struct Room {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.taken(self.bytes);
    }
}

impl Appender {
    /// Room for an append of so many bytes; none when more than `most` would be pending.
    pub(crate) fn room(&self, bytes: u64, most: u64) -> Option<Room> {
        let pending = &self.shared.pending;
        let taken = pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pending| {
            (pending + bytes <= most).then_some(pending + bytes)
        });
        taken.ok().map(|_| Room {
            shared: Arc::clone(&self.shared),
            bytes,
        })
    }

    /// Appends; answers the offset at which the entry begins, once it is durable. `room` is of as many
    /// bytes as the payload. When the call is dropped, the entry may be appended all the same.
    ///
    /// # Errors
    /// `Full` or `Unavailable` when it could not be written.
    pub(crate) async fn append(&self, entry: Entry, mut room: Room) -> Result<u64, NotAppended> {
        let (reply, answer) = oneshot::channel();
        let closed = "the log is closed: the pipeline is stopping";
        let ended = || NotAppended::Failed(Error::unavailable(closed));
        let append = Append {
            payload_crc: self.id.crc(&entry.payload),
            entry,
            reply,
        };
        let sent = self.asks.send(Ask::Append(append)).await;
        sent.map_err(|_| ended())?;
        let position = answer.await.map_err(|_| ended())??;
        // It is taken by the reader.
        room.bytes = 0;
        Ok(position)
    }

    /// What was answered to an earlier request with this key.
    pub(crate) fn known(&self, key: &[u8; 16]) -> Option<Known> {
        self.shared.state.lock().keys.get(key, clock::now_ms())
    }

    /// Bytes that are appended and not read.
    pub(crate) fn pending(&self) -> u64 {
        self.shared.pending.load(Ordering::Relaxed)
    }

    /// How long the oldest record has not been read, in milliseconds; zero where all are read.
    pub(crate) fn oldest_unread_ms(&self) -> u64 {
        let state = self.shared.state.lock();
        if state.read >= state.durable {
            return 0;
        }
        (clock::now_ms() - state.oldest_ms).max(0) as u64
    }

    /// Bytes of memory that the log holds.
    pub(crate) fn held_bytes(&self) -> u64 {
        let state = self.shared.state.lock();
        let held = state.recent_bytes as u64 + state.keys.held_bytes();
        held + self.shared.buffer_bytes.load(Ordering::Relaxed)
    }

    /// Keys that were forgotten before their time.
    pub(crate) fn forgotten_keys(&self) -> u64 {
        self.shared.state.lock().keys.forgotten()
    }
}

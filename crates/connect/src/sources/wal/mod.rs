//! A write-ahead log in a local folder: what was appended is durable when the append is answered, and
//! is read again from any record on after a crash.
//!
//! Offsets count units of payload (bytes, or rows of Arrow) since the log began, so every event has an
//! offset of its own, as in a file. Segments are files named by their first offset; one thread
//! ([`writer`]) appends, with one fsync for all that wait. [`segments`] finds out at the start what is
//! there: a torn tail is cut off, damage to what was acknowledged is `Corrupt`. [`keys`] remembers
//! idempotency keys longer than the events. One process at a time has the log (a lock on a file).
//!
//! Start with [`Log::open_locked`], [`Appender::append`], [`Log::read`].

mod keys;
mod reader;
mod record;
mod segments;
mod writer;

use std::{
    collections::VecDeque,
    fs::{self, File, TryLockError},
    io::{Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use calve_engine::{Error, ErrorKind, Result, clock, durable};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use self::{
    keys::Keys,
    reader::Reader,
    record::LogId,
    writer::{Append, Ask, Writer},
};
pub(crate) use self::{
    keys::Known,
    record::{Content, Key},
};

/// Appends that wait for the thread; more wait for room.
const WAITING: usize = 1024;

/// How a log is kept.
#[derive(Clone, Debug)]
pub(crate) struct LogOptions {
    pub(crate) folder: PathBuf,
    /// A segment that is larger is followed by another.
    pub(crate) segment_bytes: u64,
    /// Bytes of records that are kept in memory for the reader.
    pub(crate) recent_bytes: usize,
    /// How long idempotency keys are remembered, and how many.
    pub(crate) key_ttl_ms: i64,
    pub(crate) most_keys: usize,
}

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

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The offset at which it begins, and how many it covers.
    pub(crate) position: u64,
    pub(crate) units: u32,
    pub(crate) events: u32,
    /// When it came, in milliseconds since 1970.
    pub(crate) time_ms: i64,
    pub(crate) content: Content,
    pub(crate) payload: Bytes,
}

/// What the appending thread, the reader and those who append share.
struct Shared {
    state: Mutex<State>,
    readable: Notify,
    recent_bytes: usize,
    /// Bytes of payload that are appended, or are going to be, and not read.
    pending: AtomicU64,
    /// Memory of the thread that appends.
    buffer_bytes: AtomicU64,
    #[cfg(test)]
    failing: std::sync::atomic::AtomicBool,
    #[cfg(test)]
    unmendable: std::sync::atomic::AtomicBool,
}

struct State {
    /// Behind the last durable record; and how far the reader is.
    durable: u64,
    read: u64,
    /// The last records, without gap.
    recent: VecDeque<Record>,
    recent_bytes: usize,
    /// First offsets of the segments.
    bases: Vec<u64>,
    keys: Keys,
    /// About when the oldest record came that is not read.
    oldest_ms: i64,
}

impl Shared {
    fn taken(&self, bytes: u64) {
        let less = |pending: u64| Some(pending.saturating_sub(bytes));
        let _ = self
            .pending
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// The log: it is closed, and free for another process, when this is dropped.
pub(crate) struct Log {
    folder: PathBuf,
    id: LogId,
    shared: Arc<Shared>,
    reader: Reader,
    asks: mpsc::Sender<Ask>,
    writer: Option<thread::JoinHandle<()>>,
    /// Held until the thread has ended.
    _lock: Lock,
}

impl Log {
    #[cfg(test)]
    pub(crate) fn open(options: &LogOptions, from: u64, known: Option<&str>) -> Result<Self> {
        Self::open_locked(Lock::take(&options.folder)?, options, from, known)
    }

    /// Opens the log, or begins one, to be read from the offset `from` on. `known` is the log's id, where
    /// the offset came with one.
    ///
    /// # Errors
    /// `Config` when it does not hold what is behind `from`; `Corrupt` when something is damaged that was
    /// acknowledged.
    pub(crate) fn open_locked(
        lock: Lock,
        options: &LogOptions,
        from: u64,
        known: Option<&str>,
    ) -> Result<Self> {
        let folder = options.folder.clone();
        let shown = folder.display();
        let mut keys = Keys::load(&folder, options.key_ttl_ms, options.most_keys)?;
        let (mut pending, mut oldest_ms) = (0, 0);
        let mut on_boundary = false;
        let found = segments::recover(&folder, |header| {
            if let Some(key) = header.key {
                keys.insert(Known {
                    key,
                    time_ms: header.time_ms,
                    position: header.position,
                    events: header.events,
                    refused: header.refused,
                });
            }
            on_boundary |= header.position == from;
            if header.position >= from {
                if pending == 0 {
                    oldest_ms = header.time_ms;
                }
                pending += u64::from(header.payload_bytes);
            }
        })?;
        on_boundary |= found.end == from;
        if let (Some(id), Some(known)) = (found.id, known)
            && id.hex() != known
        {
            return Err(Error::config(format!(
                "the checkpoints are of another log: path={shown} log={} checkpoint={known}",
                id.hex()
            ))
            .hint("put the log's folder back, or name it in `wal.path`"));
        }
        let first = found.bases.first().copied().unwrap_or(0);
        if from < first || !on_boundary {
            return Err(Error::config(format!(
                "the log does not hold what follows the checkpoint: path={shown} offset={from} first={first} end={}",
                found.end
            ))
            .hint(format!(
                "put the log's folder back, or name it in `wal.path`; to begin with what the log has, \
                 start over with `--from 'http={first}'`"
            )));
        }
        let id = found.id.unwrap_or_else(|| LogId(rand::random()));
        let mut bases = found.bases;
        let cannot = |e| Error::io(format!("cannot write the log: path={shown}"), e);
        let (file, file_bytes) = if let Some(base) = bases.last() {
            let path = segments::path(&folder, *base);
            let mut file = File::options().write(true).open(path).map_err(cannot)?;
            file.seek(SeekFrom::Start(found.last_bytes))
                .map_err(cannot)?;
            // What another process wrote before it was killed is whole, but perhaps not on the disk.
            file.sync_all().map_err(cannot)?;
            (file, found.last_bytes)
        } else {
            bases.push(found.end);
            let file = writer::create(&folder, id, found.end).map_err(cannot)?;
            (file, record::SEGMENT_BYTES as u64)
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                durable: found.end,
                read: from,
                recent: VecDeque::new(),
                recent_bytes: 0,
                bases,
                keys,
                oldest_ms,
            }),
            readable: Notify::new(),
            recent_bytes: options.recent_bytes,
            pending: AtomicU64::new(pending),
            buffer_bytes: AtomicU64::new(0),
            #[cfg(test)]
            failing: std::sync::atomic::AtomicBool::new(false),
            #[cfg(test)]
            unmendable: std::sync::atomic::AtomicBool::new(false),
        });
        let writer = Writer {
            folder: folder.clone(),
            id,
            segment_bytes: options.segment_bytes,
            shared: Arc::clone(&shared),
            file,
            file_bytes,
            position: found.end,
            torn: false,
            failing: false,
            buffer: Vec::new(),
        };
        let (asks, asked) = mpsc::channel(WAITING);
        let writer = thread::Builder::new()
            .name("wal".to_owned())
            .spawn(move || writer.run(asked))
            .map_err(|e| Error::io("cannot start the thread that writes the log", e))?;
        Ok(Self {
            reader: Reader {
                folder: folder.clone(),
                id,
                shared: Arc::clone(&shared),
                next: from,
                cursor: None,
            },
            folder,
            id,
            shared,
            asks,
            writer: Some(writer),
            _lock: lock,
        })
    }

    /// Its id, which is random.
    pub(crate) fn id(&self) -> String {
        self.id.hex()
    }

    /// For those who append.
    pub(crate) fn appender(&self) -> Appender {
        Appender {
            id: self.id,
            shared: Arc::clone(&self.shared),
            asks: self.asks.clone(),
        }
    }

    /// Durable records that follow those read before, of about `most` bytes of payload; none when
    /// nothing is there now. Reads a file when the reader does not keep up.
    ///
    /// # Errors
    /// `Corrupt` for what is not what was written.
    pub(crate) fn read(&mut self, most: usize) -> Result<Vec<Record>> {
        self.reader.read(most)
    }

    /// The offset behind the last durable record.
    pub(crate) fn end(&self) -> u64 {
        self.shared.state.lock().durable
    }

    /// Whether [`Log::read`] would give something.
    pub(crate) fn is_readable(&self) -> bool {
        self.reader.next < self.shared.state.lock().durable
    }

    /// Waits until there may be something to read. Cancel-safe.
    pub(crate) async fn readable(&self) {
        if !self.is_readable() {
            self.shared.readable.notified().await;
        }
    }

    /// Removes the segments that hold nothing behind `upto`; their keys stay. What cannot be removed
    /// now is removed at another time.
    ///
    /// # Errors
    /// `Corrupt` when a file of keys is damaged.
    pub(crate) fn trim(&mut self, upto: u64) -> Result<()> {
        let now_ms = clock::now_ms();
        let mut state = self.shared.state.lock();
        let gone = state.bases.partition_point(|base| *base <= upto);
        let gone = gone.saturating_sub(1);
        if gone == 0 {
            return Ok(());
        }
        let removed: Vec<u64> = state.bases[..gone].to_vec();
        let upto = state.bases[gone];
        let fresh = state.keys.take_fresh(upto, now_ms);
        let bytes = if fresh.is_empty() {
            0
        } else {
            keys::file_bytes(fresh.len())
        };
        let (merged, expired) = state.keys.plan(bytes, now_ms);
        let ttl_ms = state.keys.ttl_ms();
        drop(state);
        for path in &expired {
            let _ = fs::remove_file(path);
        }
        if !fresh.is_empty() {
            let still = |known: &Known| now_ms - known.time_ms < ttl_ms;
            match keys::write(&self.folder, upto, &merged, &fresh, still) {
                Ok(written) => {
                    for path in merged.iter().filter(|path| *path != written.path()) {
                        let _ = fs::remove_file(path);
                    }
                    self.shared.state.lock().keys.merged(&merged, written);
                }
                Err(error) => {
                    self.shared.state.lock().keys.put_back(fresh);
                    if error.kind() == ErrorKind::Corrupt {
                        return Err(error);
                    }
                    tracing::warn!("the log is not trimmed now: {error}");
                    return Ok(());
                }
            }
        }
        // The oldest first: whenever it ends, what is left has no gap.
        for base in removed {
            let path = segments::path(&self.folder, base);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = %path.display(), "cannot remove a segment of the log: {error}");
                    break;
                }
            }
            self.shared
                .state
                .lock()
                .bases
                .retain(|known| *known != base);
        }
        let _ = durable::sync_dir(&self.folder);
        Ok(())
    }

    /// Ends the appending thread; appends that come later fail.
    pub(crate) fn seal(&mut self) {
        if let Some(writer) = self.writer.take() {
            // It takes what waits until there is room, so this ends.
            while let Err(mpsc::error::TrySendError::Full(_)) = self.asks.try_send(Ask::Close) {
                thread::yield_now();
            }
            let _ = writer.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.seal();
    }
}

/// The right to a log's folder, which one process has at a time.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "it is held")] File);

impl Lock {
    /// Makes the folder, if need be, and takes it.
    ///
    /// # Errors
    /// `Config` when another process has it.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let cannot = |e| Error::io(format!("cannot lock the log: path={}", folder.display()), e);
        durable::create_dirs(folder).map_err(cannot)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join("lock"))
            .map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Error::config(format!(
                "another process has the log: path={}",
                folder.display()
            ))
            .hint(
                "only one process may run a pipeline; two pipelines need two folders: `wal.path`",
            )),
            Err(TryLockError::Error(e)) => Err(cannot(e)),
        }
    }
}

/// Appends to the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Appender {
    id: LogId,
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
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

fn damaged(what: String) -> Error {
    Error::corrupt(what).hint(
        "events that were acknowledged may be lost: restore the folder of the log from a copy, if there is one",
    )
}

#[cfg(test)]
mod tests;

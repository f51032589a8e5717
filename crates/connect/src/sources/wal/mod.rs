//! A write-ahead log in a local folder: what was appended is durable when the append is answered, and
//! is read again from any record on after a crash.
//!
//! Offsets count units of payload (bytes, or rows of Arrow) since the log began, so every event has an
//! offset of its own, as in a file. Segments are files named by their first offset; one thread
//! ([`writer`]) appends, with one fsync for all that wait. [`segments`] finds out at the start what is
//! there: a torn tail is cut off, damage to what was acknowledged is `Corrupt`. [`keys`] remembers
//! idempotency keys longer than the events, and [`trim`] removes what is committed. One process at a
//! time has the log ([`lock`]).
//!
//! Start with [`Log::open_locked`], [`Appender::append`], [`Log::read`].

mod appender;
mod config;
mod keys;
mod lock;
mod reader;
mod record;
mod segments;
mod trim;
mod writer;

use std::{
    collections::VecDeque,
    fs::File,
    io::{Seek as _, SeekFrom},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use calve_engine::{Error, Payload, RawBatch, Result};
use calve_model::{OffsetRange, SourcePartition};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

pub use self::config::WalConfig;
pub(crate) use self::{
    appender::{Appender, Entry, NotAppended},
    keys::Known,
    lock::Lock,
    record::{Content, Key},
};
use self::{
    keys::Keys,
    reader::Reader,
    record::LogId,
    writer::{Ask, Writer},
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

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The offset at which it begins, and how many it covers.
    pub(crate) position: u64,
    pub(crate) units: u32,
    /// When it came, in milliseconds since 1970.
    pub(crate) time_ms: i64,
    pub(crate) content: Content,
    pub(crate) payload: Bytes,
}

impl Record {
    /// The offset behind it.
    fn end(&self) -> u64 {
        self.position + u64::from(self.units)
    }
}

/// Records of bytes that follow each other, as one batch.
pub(crate) fn batch_of(partition: &str, records: &[Record], log: String) -> RawBatch {
    let payload = if let [one] = records {
        one.payload.clone()
    } else {
        let bytes: Vec<&[u8]> = records.iter().map(|record| &*record.payload).collect();
        Bytes::from(bytes.concat())
    };
    RawBatch {
        partition: SourcePartition::new(partition),
        range: OffsetRange {
            from: records.first().map_or(0, |first| first.position),
            to: records.last().map_or(0, Record::end),
        },
        payload: Payload::Bytes(payload),
        last: false,
        tag: Some(log),
        arrival: None,
    }
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

fn damaged(what: String) -> Error {
    Error::corrupt(what).hint(
        "events that were acknowledged may be lost: restore the folder of the log from a copy, if there is one",
    )
}

#[cfg(test)]
mod tests;

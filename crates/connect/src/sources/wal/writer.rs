//! The thread that appends: it takes all requests that wait, writes them behind each other, and makes
//! them durable by one fsync. Nothing is told to anybody before that.
//!
//! A write or an fsync that fails is an error to the requests of its group alone: the file is cut back
//! to what was durable, and the next group begins there. Where that fails too, nobody can say what a start
//! will find, and nothing is said to them.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use calve_engine::{Error, ErrorKind, Result, clock, durable, fault};
use tokio::sync::{mpsc, oneshot};

use super::{
    Entry, NotAppended, Record, Shared,
    keys::Known,
    record::{HEADER_BYTES, Header, LogId, SEGMENT_BYTES, segment_head},
    segments,
};

/// Bytes of the groups that become durable together, and requests, at the most.
const GROUP_BYTES: usize = 8 << 20;
pub(super) const GROUP: usize = 4096;

pub(super) enum Ask {
    Append(Append),
    Close,
}

pub(super) struct Append {
    pub(super) entry: Entry,
    pub(super) payload_crc: u32,
    pub(super) reply: oneshot::Sender<Result<u64, NotAppended>>,
}

pub(super) struct Writer {
    pub(super) folder: PathBuf,
    pub(super) id: LogId,
    pub(super) segment_bytes: u64,
    pub(super) shared: Arc<Shared>,
    /// The last segment, and how much of it is durable.
    pub(super) file: File,
    pub(super) file_bytes: u64,
    /// The offset behind the last durable record.
    pub(super) position: u64,
    /// Behind `file_bytes` there may be something.
    pub(super) torn: bool,
    /// The last group failed, which was said.
    pub(super) failing: bool,
    pub(super) buffer: Vec<u8>,
}

impl Writer {
    /// Appends until it is told to end, or nobody can ask any more.
    pub(super) fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let mut group = Vec::new();
        while let Some(first) = asked.blocking_recv() {
            let mut next = Some(first);
            let mut bytes = 0;
            let mut closing = false;
            while let Some(ask) = next {
                let Ask::Append(append) = ask else {
                    closing = true;
                    break;
                };
                bytes += append.entry.payload.len();
                group.push(append);
                next = if bytes < GROUP_BYTES && group.len() < GROUP {
                    asked.try_recv().ok()
                } else {
                    None
                };
            }
            self.append(&mut group);
            if closing {
                return;
            }
        }
    }

    fn append(&mut self, group: &mut Vec<Append>) {
        if group.is_empty() {
            return;
        }
        let time_ms = clock::now_ms();
        let headers = self.headers(group, time_ms);
        match self.write(group, &headers) {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the log is written again");
                }
                self.publish(group, &headers);
                for (append, header) in group.drain(..).zip(headers) {
                    let _ = append.reply.send(Ok(header.position));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(requests = group.len(), "{error}");
                }
                for append in group.drain(..) {
                    let _ = append.reply.send(Err(again(&error)));
                }
            }
        }
    }

    fn headers(&self, group: &[Append], time_ms: i64) -> Vec<Header> {
        let mut position = self.position;
        let header = |append: &Append| {
            let entry = &append.entry;
            let header = Header {
                payload_crc: append.payload_crc,
                payload_bytes: entry.payload.len() as u32,
                units: entry.units,
                position,
                synced: self.position,
                time_ms,
                events: entry.events,
                refused: entry.refused,
                content: entry.content,
                key: entry.key,
            };
            position = header.end();
            header
        };
        group.iter().map(header).collect()
    }

    fn write(&mut self, group: &[Append], headers: &[Header]) -> Result<(), NotAppended> {
        let cannot = |e| Error::io("the log cannot be written", e);
        let not_begun = |e| NotAppended::Failed(cannot(e));
        self.mend().map_err(not_begun)?;
        if self.file_bytes >= self.segment_bytes {
            self.rotate().map_err(not_begun)?;
        }
        self.buffer.clear();
        for (append, header) in group.iter().zip(headers) {
            header.write(self.id, &mut self.buffer);
            self.buffer.extend_from_slice(&append.entry.payload);
        }
        self.torn = true;
        let written = self.file.write_all(&self.buffer);
        let bytes = self.buffer.len() as u64;
        if self.buffer.capacity() > 4 * GROUP_BYTES {
            self.buffer = Vec::new();
        }
        let held = self.buffer.capacity() as u64;
        self.shared.buffer_bytes.store(held, Ordering::Relaxed);
        let done = written
            .map_err(cannot)
            .and_then(|()| failing(&self.shared, "wal.write"))
            .and_then(|()| self.file.sync_data().map_err(cannot))
            .and_then(|()| failing(&self.shared, "wal.sync"));
        if let Err(error) = done {
            // At once, so that a full disk has the room again.
            return Err(match self.mend() {
                Ok(()) => NotAppended::Failed(error),
                Err(mending) => NotAppended::Unknown(error.context(format!(
                    "and cannot be cut back to what is durable: {mending}"
                ))),
            });
        }
        self.torn = false;
        self.file_bytes += bytes;
        Ok(())
    }

    /// Cuts off what a failed group left behind.
    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            #[cfg(test)]
            if self.shared.unmendable.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Other.into());
            }
            self.file.set_len(self.file_bytes)?;
            self.file.sync_all()?;
            self.file.seek(SeekFrom::Start(self.file_bytes))?;
            self.torn = false;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = create(&self.folder, self.id, self.position)?;
        self.file_bytes = SEGMENT_BYTES as u64;
        self.shared.state.lock().bases.push(self.position);
        Ok(())
    }

    fn publish(&mut self, group: &mut [Append], headers: &[Header]) {
        let mut state = self.shared.state.lock();
        for (append, header) in group.iter_mut().zip(headers) {
            if let Some(key) = header.key {
                state.keys.insert(Known {
                    key,
                    time_ms: header.time_ms,
                    position: header.position,
                    events: header.events,
                    refused: header.refused,
                });
            }
            if state.durable == state.read {
                state.oldest_ms = header.time_ms;
            }
            state.durable = header.end();
            let payload = std::mem::take(&mut append.entry.payload);
            state.recent_bytes += payload.len() + HEADER_BYTES;
            state.recent.push_back(Record {
                position: header.position,
                units: header.units,
                time_ms: header.time_ms,
                content: header.content,
                payload,
            });
            while state.recent_bytes > self.shared.recent_bytes {
                let Some(dropped) = state.recent.pop_front() else {
                    break;
                };
                state.recent_bytes -= dropped.payload.len() + HEADER_BYTES;
            }
        }
        self.position = state.durable;
        drop(state);
        self.shared.readable.notify_one();
    }
}

fn failing(shared: &Shared, point: &str) -> Result<()> {
    #[cfg(test)]
    if shared.failing.load(Ordering::Relaxed) {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        return Err(Error::io("the log cannot be written", full));
    }
    #[cfg(not(test))]
    let _ = shared;
    fault::point(point)
}

/// A new segment, durable with its head and its name.
pub(super) fn create(folder: &std::path::Path, id: LogId, base: u64) -> io::Result<File> {
    let path = segments::path(folder, base);
    // What an earlier try left behind has no record.
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    let made = file
        .write_all(&segment_head(id, base))
        .and_then(|()| file.sync_all())
        .and_then(|()| durable::sync_dir(folder));
    if made.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    made.map(|()| file)
}

/// The same error for one more request.
fn again(error: &NotAppended) -> NotAppended {
    match error {
        NotAppended::Failed(error) => NotAppended::Failed(same(error)),
        NotAppended::Unknown(error) => NotAppended::Unknown(same(error)),
    }
}

fn same(error: &Error) -> Error {
    let same = Error::new(error.kind(), error.to_string());
    if error.kind() == ErrorKind::Full {
        return same.hint("free space on the disk of the log; then send the request again");
    }
    same
}

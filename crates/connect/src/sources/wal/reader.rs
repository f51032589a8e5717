//! Reads the log in order: from memory while the reader keeps up, from the segments where it does not.
//! Only what is durable is read.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use calve_engine::{Error, Result};

use super::{
    Record, Shared, damaged,
    record::{HEADER_BYTES, Header, LogId, SEGMENT_BYTES},
    segments,
};

pub(super) struct Reader {
    pub(super) folder: PathBuf,
    pub(super) id: LogId,
    pub(super) shared: Arc<Shared>,
    /// The offset that is read next.
    pub(super) next: u64,
    pub(super) cursor: Option<Cursor>,
}

/// An open segment, at a record.
pub(super) struct Cursor {
    file: BufReader<File>,
    base: u64,
    position: u64,
}

impl Reader {
    /// Records that follow, of about `most` bytes of payload (one, if it is larger); none when nothing
    /// is there now.
    pub(super) fn read(&mut self, most: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let upto = {
            let mut state = self.shared.state.lock();
            while let Some(front) = state.recent.front() {
                if front.position > self.next {
                    break;
                }
                let fits = bytes == 0 || bytes + front.payload.len() <= most;
                let is_next = front.position == self.next;
                if is_next && !fits {
                    break;
                }
                let Some(record) = state.recent.pop_front() else {
                    break;
                };
                state.recent_bytes -= record.payload.len() + HEADER_BYTES;
                if is_next {
                    bytes += record.payload.len();
                    self.next += u64::from(record.units);
                    records.push(record);
                }
            }
            let front = state.recent.front().map(|front| front.position);
            front.unwrap_or(state.durable)
        };
        if records.is_empty() {
            while self.next < upto && bytes < most {
                let record = self.read_file()?;
                bytes += record.payload.len();
                self.next += u64::from(record.units);
                records.push(record);
            }
        } else {
            self.cursor = None;
        }
        let mut state = self.shared.state.lock();
        state.read = self.next;
        if let Some(front) = state.recent.front() {
            state.oldest_ms = front.time_ms;
        } else if let Some(last) = records.last() {
            state.oldest_ms = last.time_ms;
        }
        drop(state);
        self.shared.taken(bytes as u64);
        Ok(records)
    }

    /// The next record, from the disk.
    fn read_file(&mut self) -> Result<Record> {
        loop {
            let base = {
                let state = self.shared.state.lock();
                let after = state.bases.partition_point(|base| *base <= self.next);
                after.checked_sub(1).map(|at| state.bases[at])
            };
            let base = base.ok_or_else(|| {
                Error::internal(format!("the log is trimmed too far: offset={}", self.next))
            })?;
            let mut cursor = match self.cursor.take() {
                Some(cursor) if cursor.base == base => cursor,
                _ => self.open(base)?,
            };
            let record = self.record(&mut cursor)?;
            let done = record.position == self.next;
            self.cursor = Some(cursor);
            if done {
                return Ok(record);
            }
        }
    }

    fn open(&self, base: u64) -> Result<Cursor> {
        let path = segments::path(&self.folder, base);
        let open = || -> io::Result<_> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(SEGMENT_BYTES as u64))?;
            Ok(BufReader::with_capacity(256 << 10, file))
        };
        Ok(Cursor {
            file: open().map_err(|e| {
                Error::io(format!("cannot read the log: file={}", path.display()), e)
            })?,
            base,
            position: base,
        })
    }

    fn record(&self, cursor: &mut Cursor) -> Result<Record> {
        let cannot = |e: io::Error| {
            let path = segments::path(&self.folder, cursor.base);
            let what = format!(
                "cannot read the log: file={} offset={}",
                path.display(),
                cursor.position
            );
            if e.kind() == io::ErrorKind::UnexpectedEof {
                damaged(what).because(e)
            } else {
                Error::io(what, e)
            }
        };
        let wrong = || {
            let path = segments::path(&self.folder, cursor.base);
            damaged(format!(
                "a record is damaged: file={} offset={}",
                path.display(),
                cursor.position
            ))
        };
        let mut head = [0; HEADER_BYTES];
        cursor.file.read_exact(&mut head).map_err(cannot)?;
        let header = Header::read(self.id, &head).ok_or_else(wrong)?;
        if header.position != cursor.position {
            return Err(wrong());
        }
        let mut payload = vec![0; header.payload_bytes as usize];
        cursor.file.read_exact(&mut payload).map_err(cannot)?;
        if header.payload_crc != self.id.crc(&payload) {
            return Err(wrong());
        }
        cursor.position = header.end();
        Ok(Record {
            position: header.position,
            units: header.units,
            time_ms: header.time_ms,
            content: header.content,
            payload: Bytes::from(payload),
        })
    }
}

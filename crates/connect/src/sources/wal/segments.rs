//! The files of the log: their names, what is found in them at the start, and what is cut off.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use calve_engine::{Error, Result, durable};

use super::{
    damaged,
    record::{HEADER_BYTES, Header, LogId, SEGMENT_BYTES, read_segment_head},
};

/// How much of a segment is in memory while it is looked through.
const READ_BYTES: usize = 256 << 10;

/// A segment's path.
pub(super) fn path(folder: &Path, base: u64) -> PathBuf {
    folder.join(format!("segment-{base:020}.log"))
}

/// First offsets of the segments that are there, in order.
pub(super) fn list(folder: &Path) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for name in names(folder)? {
        let base = name
            .strip_prefix("segment-")
            .and_then(|rest| rest.strip_suffix(".log"));
        if let Some(base) = base {
            let base = base.parse().map_err(|_| {
                damaged(format!(
                    "not a name of a segment: file={}",
                    folder.join(&name).display()
                ))
            })?;
            found.push(base);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Names of what is in the folder, as far as they are text.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let cannot = |e| Error::io(format!("cannot list the log: path={}", folder.display()), e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot)? {
        names.extend(entry.map_err(cannot)?.file_name().into_string());
    }
    Ok(names)
}

/// What the segments hold.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: Option<LogId>,
    /// First offsets of the segments, in order.
    pub(super) bases: Vec<u64>,
    /// The offset behind the last record.
    pub(super) end: u64,
    /// Bytes of the last segment.
    pub(super) last_bytes: u64,
}

/// Reads the whole log, in order; `record` is told of each record. A torn tail is cut off.
///
/// # Errors
/// `Corrupt` for damage to anything that was acknowledged.
pub(super) fn recover(folder: &Path, mut record: impl FnMut(&Header)) -> Result<Found> {
    let bases = list(folder)?;
    let mut found = Found {
        id: None,
        bases: Vec::new(),
        end: bases.first().copied().unwrap_or(0),
        last_bytes: 0,
    };
    for (index, base) in bases.iter().enumerate() {
        let last = index + 1 == bases.len();
        let file = path(folder, *base);
        let shown = file.display();
        let cannot = |e| Error::io(format!("cannot read the log: file={shown}"), e);
        let mut segment = Segment::open(&file).map_err(cannot)?;
        let head = segment.head().map_err(cannot)?;
        let Some((id, written_base)) = read_segment_head(&head)? else {
            // The head is durable before the first record is written.
            if last && segment.bytes <= SEGMENT_BYTES as u64 {
                tracing::warn!(file = %shown, "a segment of the log was not begun, and is removed");
                fs::remove_file(&file)
                    .and_then(|()| durable::sync_dir(folder))
                    .map_err(|e| Error::io(format!("cannot mend the log: file={shown}"), e))?;
                break;
            }
            return Err(damaged(format!(
                "the head of a segment is damaged: file={shown}"
            )));
        };
        if written_base != *base || *base != found.end || found.id.is_some_and(|seen| seen != id) {
            return Err(damaged(format!(
                "a segment does not follow the one before it: file={shown} expected={}",
                found.end
            )));
        }
        found.id = Some(id);
        found.bases.push(*base);
        let mut at = SEGMENT_BYTES as u64;
        while at < segment.bytes {
            let Some(header) = segment.record(id, found.end).map_err(cannot)? else {
                let mut acknowledged = || segment.was_acknowledged(id, at + 1, found.end);
                if !last || acknowledged().map_err(cannot)? {
                    return Err(damaged(format!(
                        "a record is damaged: file={shown} byte={at} offset={}",
                        found.end
                    )));
                }
                cut(&file, at)
                    .map_err(|e| Error::io(format!("cannot mend the log: file={shown}"), e))?;
                tracing::warn!(
                    file = %shown,
                    bytes = segment.bytes - at,
                    "the log has a torn tail, which was not acknowledged; it is cut off"
                );
                break;
            };
            record(&header);
            found.end = header.end();
            at += HEADER_BYTES as u64 + u64::from(header.payload_bytes);
        }
        found.last_bytes = at;
    }
    Ok(found)
}

/// A segment that is read from its beginning, never as a whole.
struct Segment {
    file: BufReader<File>,
    bytes: u64,
}

impl Segment {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            file: BufReader::with_capacity(READ_BYTES, file),
            bytes,
        })
    }

    /// As much of its head as is there.
    fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        let file = self.file.by_ref();
        file.take(SEGMENT_BYTES as u64).read_to_end(&mut head)?;
        Ok(head)
    }

    /// The next record, when all of it is there and right.
    fn record(&mut self, id: LogId, position: u64) -> io::Result<Option<Header>> {
        let mut head = [0; HEADER_BYTES];
        match self.file.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let header = Header::read(id, &head).filter(|header| header.position == position);
        let Some(header) = header else {
            return Ok(None);
        };
        let mut left = header.payload_bytes as usize;
        let mut crc = id.hasher();
        while left > 0 {
            let read = self.file.fill_buf()?;
            if read.is_empty() {
                return Ok(None);
            }
            let count = read.len().min(left);
            crc.update(&read[..count]);
            self.file.consume(count);
            left -= count;
        }
        Ok((header.payload_crc == crc.finalize()).then_some(header))
    }

    /// Whether a record from byte `at` on says that what is damaged at `position` had been durable.
    fn was_acknowledged(&mut self, id: LogId, at: u64, position: u64) -> io::Result<bool> {
        self.file.seek(SeekFrom::Start(at))?;
        let mut window: Vec<u8> = Vec::new();
        loop {
            let file = self.file.by_ref();
            if file.take(READ_BYTES as u64).read_to_end(&mut window)? == 0 {
                return Ok(false);
            }
            let whole = window.len().saturating_sub(HEADER_BYTES - 1);
            let says = |header: Header| header.synced > position;
            if (0..whole).any(|at| Header::read(id, &window[at..]).is_some_and(says)) {
                return Ok(true);
            }
            // A header may begin in what is left.
            window.drain(..whole);
        }
    }
}

fn cut(file: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).open(file)?;
    file.set_len(bytes)?;
    file.sync_all()
}

//! The files of the log: their names, what is found in them at the start, and what is cut off.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use calve_engine::{Error, Result, durable};

use super::{
    damaged,
    record::{HEADER_BYTES, Header, LogId, SEGMENT_BYTES, read_segment_head},
};

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
        let bytes = fs::read(&file)
            .map_err(|e| Error::io(format!("cannot read the log: file={shown}"), e))?;
        let Some((id, written_base)) = read_segment_head(&bytes)? else {
            // The head is durable before the first record is written.
            if last && bytes.len() <= SEGMENT_BYTES {
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
        let mut at = SEGMENT_BYTES;
        while at < bytes.len() {
            let Some(header) = whole(id, &bytes[at..], found.end) else {
                if !last || was_acknowledged(id, &bytes[at + 1..], found.end) {
                    return Err(damaged(format!(
                        "a record is damaged: file={shown} byte={at} offset={}",
                        found.end
                    )));
                }
                cut(&file, at as u64)
                    .map_err(|e| Error::io(format!("cannot mend the log: file={shown}"), e))?;
                tracing::warn!(
                    file = %shown,
                    bytes = bytes.len() - at,
                    "the log has a torn tail, which was not acknowledged; it is cut off"
                );
                break;
            };
            record(&header);
            found.end = header.end();
            at += HEADER_BYTES + header.payload_bytes as usize;
        }
        found.last_bytes = at as u64;
    }
    Ok(found)
}

/// The record that `bytes` begin with, when all of it is there and right.
fn whole(id: LogId, bytes: &[u8], position: u64) -> Option<Header> {
    let header = Header::read(id, bytes)?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + header.payload_bytes as usize)?;
    (header.position == position && header.payload_crc == id.crc(payload)).then_some(header)
}

/// Whether a record further on says that what is damaged at `position` had been durable.
fn was_acknowledged(id: LogId, bytes: &[u8], position: u64) -> bool {
    let tail = bytes.len().saturating_sub(HEADER_BYTES - 1);
    (0..tail).any(|at| Header::read(id, &bytes[at..]).is_some_and(|h| h.synced > position))
}

fn cut(file: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).open(file)?;
    file.set_len(bytes)?;
    file.sync_all()
}

//! The log: what was put since the last manifest, in frames, with a commit record after each batch.
//!
//! A frame is: length of the rest (four bytes), checksum (four bytes), kind (one byte), body. The
//! checksum goes over the checksum of the frame before (the log's salt for the first), length, kind
//! and body, so that a frame is valid only in its place in its log. What follows the last valid
//! commit record never happened.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::files::{self, damaged};
use super::memtable::Value;

const FRAME_HEADER: usize = 8;
const RECORDS: u8 = 1;
const COMMIT: u8 = 2;
/// A frame is written when it reaches this size.
const FRAME_BYTES: usize = if cfg!(test) { 1 << 10 } else { 64 << 10 };
const DELETED: u16 = u16::MAX;

fn checksum(chain: u32, length: [u8; 4], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(chain);
    hasher.update(&length);
    hasher.update(body);
    hasher.finalize()
}

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    pub(super) id: u64,
    pub(super) salt: u32,
    /// Checksum of the last frame.
    chain: u32,
    /// The frame that is being filled, with room for its header.
    frame: Vec<u8>,
    /// Bytes in the file.
    written: u64,
    /// Bytes up to the last commit record.
    committed: u64,
}

impl Log {
    pub(super) fn create(folder: &Path, id: u64, salt: u32) -> io::Result<Self> {
        let path = files::log_path(folder, id);
        let file = files::create(&path)?;
        Ok(Self {
            path,
            file,
            id,
            salt,
            chain: salt,
            frame: Vec::new(),
            written: 0,
            committed: 0,
        })
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed
    }

    /// Bytes since the last commit record.
    pub(super) fn uncommitted(&self) -> u64 {
        self.written - self.committed + self.frame.len() as u64
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record to the batch.
    #[inline]
    pub(super) fn put(&mut self, key: &[u8], value: Value<'_>) -> io::Result<()> {
        if self.frame.is_empty() {
            self.begin(RECORDS);
        }
        self.frame
            .extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.frame.extend_from_slice(
            &value
                .map_or(DELETED, |value| value.len() as u16)
                .to_le_bytes(),
        );
        self.frame.extend_from_slice(key);
        self.frame.extend_from_slice(value.unwrap_or_default());
        if self.frame.len() >= FRAME_BYTES {
            self.end()
        } else {
            Ok(())
        }
    }

    /// Ends the batch: the point at which it has happened, if the manifest lists this log.
    pub(super) fn commit(&mut self, meta: &[u8]) -> io::Result<()> {
        self.end()?;
        self.begin(COMMIT);
        self.frame.extend_from_slice(meta);
        self.end()?;
        self.committed = self.written;
        Ok(())
    }

    fn begin(&mut self, kind: u8) {
        self.frame.resize(FRAME_HEADER, 0);
        self.frame.push(kind);
    }

    fn end(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.frame.len() - FRAME_HEADER)
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the meta of a commit passes 4 GiB",
                )
            })?
            .to_le_bytes();
        let chain = checksum(self.chain, length, &self.frame[FRAME_HEADER..]);
        self.frame[..4].copy_from_slice(&length);
        self.frame[4..FRAME_HEADER].copy_from_slice(&chain.to_le_bytes());
        files::write(&self.file, &self.path, &self.frame)?;
        self.chain = chain;
        self.written += self.frame.len() as u64;
        self.frame.clear();
        Ok(())
    }

    /// Gives up the log for another: what is not committed is cut off.
    pub(super) fn abandon(self) -> io::Result<PathBuf> {
        if self.written > self.committed {
            files::truncate(&self.file, &self.path, self.committed)?;
        }
        Ok(self.path)
    }

    /// Opens the log of a manifest, cuts off what was not committed, and hands every record up to the
    /// last commit to `apply`, in order. Returns the log and the meta of the last commit.
    pub(super) fn replay(
        folder: &Path,
        (id, salt, least): (u64, u32, u64),
        mut apply: impl FnMut(&[u8], Value<'_>) -> io::Result<()>,
    ) -> io::Result<(Self, Option<Vec<u8>>)> {
        let path = files::log_path(folder, id);
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(&path, "not there"));
            }
            result => result?,
        };
        let mut frames = Frames::new(&file, salt)?;
        let (mut committed, mut chain, mut meta) = (0, salt, None);
        while let Some((kind, body)) = frames.next()? {
            if kind == COMMIT {
                meta = Some(body.to_vec());
                (committed, chain) = (frames.at, frames.chain);
            }
        }
        if committed < least {
            return Err(damaged(&path, "shorter than it was"));
        }
        let total = frames.total;
        let mut frames = Frames::new(&file, salt)?;
        while frames.at < committed {
            let Some((kind, body)) = frames.next()? else {
                return Err(damaged(&path, "changed while it was read"));
            };
            if kind == RECORDS {
                records(body, &mut apply)?
                    .ok_or_else(|| damaged(&path, "a record without an end"))?;
            }
        }
        if total > committed {
            files::truncate(&file, &path, committed)?;
        }
        (&file).seek(SeekFrom::Start(committed))?;
        Ok((
            Self {
                path,
                file,
                id,
                salt,
                chain,
                frame: Vec::new(),
                written: committed,
                committed,
            },
            meta,
        ))
    }
}

fn records(
    mut body: &[u8],
    apply: &mut impl FnMut(&[u8], Value<'_>) -> io::Result<()>,
) -> io::Result<Option<()>> {
    while let Some((header, rest)) = body.split_first_chunk::<4>() {
        let key_length = u16::from_le_bytes([header[0], header[1]]) as usize;
        let value_length = u16::from_le_bytes([header[2], header[3]]);
        let present = value_length != DELETED;
        let Some((key, rest)) = rest.split_at_checked(key_length) else {
            return Ok(None);
        };
        let Some((value, rest)) =
            rest.split_at_checked(if present { value_length as usize } else { 0 })
        else {
            return Ok(None);
        };
        apply(key, present.then_some(value))?;
        body = rest;
    }
    Ok(body.is_empty().then_some(()))
}

/// The valid frames of a log from its beginning.
struct Frames<'a> {
    reader: BufReader<&'a File>,
    body: Vec<u8>,
    chain: u32,
    /// Offset after the last valid frame.
    at: u64,
    total: u64,
}

impl<'a> Frames<'a> {
    fn new(mut file: &'a File, salt: u32) -> io::Result<Self> {
        let total = file.metadata()?.len();
        file.rewind()?;
        Ok(Self {
            reader: BufReader::with_capacity(FRAME_BYTES, file),
            body: Vec::new(),
            chain: salt,
            at: 0,
            total,
        })
    }

    /// Kind and body of the next frame; `None` at the end and at what is no frame.
    fn next(&mut self) -> io::Result<Option<(u8, &[u8])>> {
        let left = self.total - self.at;
        if left < FRAME_HEADER as u64 {
            return Ok(None);
        }
        let mut header = [0; FRAME_HEADER];
        self.reader.read_exact(&mut header)?;
        let length = [header[0], header[1], header[2], header[3]];
        let check = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let bytes = u64::from(u32::from_le_bytes(length));
        if bytes == 0 || bytes > left - FRAME_HEADER as u64 {
            return Ok(None);
        }
        self.body.resize(bytes as usize, 0);
        self.reader.read_exact(&mut self.body)?;
        if checksum(self.chain, length, &self.body) != check {
            return Ok(None);
        }
        self.chain = check;
        self.at += FRAME_HEADER as u64 + bytes;
        Ok(Some((self.body[0], &self.body[1..])))
    }
}

//! One file of records: whole lines (or CSV records, or framed messages) in chunks, from any position.
//!
//! Invariant: every chunk ends where a record ends; only the last of a bounded file may lack its
//! line end. Reading appends to one buffer; only the tail behind the last line end is copied.

use bytes::Bytes;
use calve_engine::{Error, Payload, RawBatch, Result};
use calve_model::{OffsetRange, SourcePartition};

use super::{Compression, FileConfig, input::Input, list::Found};
use crate::sources::{
    buffers::Buffers,
    records::Records,
    tag::{FileTag, HEAD_BYTES, Mark, TAIL_BYTES},
};

/// A last line without line end is kept for the case that its file goes away, up to this length.
const KEPT_BYTES: usize = 64 << 10;

/// Bytes that are skipped at once in compressed text.
const SKIP_BYTES: usize = 1 << 20;

pub(crate) struct TextReader {
    partition: SourcePartition,
    input: Input,
    records: Records,
    chunk_bytes: usize,
    max_line_bytes: usize,
    follow: bool,
    compressed: bool,
    /// Text that was read and not given out.
    buffer: Vec<u8>,
    buffers: Buffers,
    /// Where the buffer begins.
    offset: u64,
    /// How full the buffer is to be before it is cut.
    target: usize,
    size: u64,
    /// When the file was changed, before it was opened.
    changed: Option<i64>,
    eof: bool,
    finished: bool,
    tag: FileTag,
    /// The last bytes before `offset`, as far as they are known.
    before: Vec<u8>,
}

/// The file is not the one that was read before.
pub(crate) fn replaced(name: &str, how: &str) -> Error {
    Error::config(format!("file was {how} since it was read: file={name}")).hint(
        "put the file back as it was, or read under a new name: files that calve reads may grow, and \
         must not change otherwise; `calve checkpoint reset FILE` starts over",
    )
}

/// The file went away, and something in it was not read.
pub(crate) fn vanished(name: &str, offset: u64) -> Error {
    Error::config(format!(
        "file has vanished before it was read to its end: file={name} offset={offset}"
    ))
    .hint("put it back, or start over with `calve checkpoint reset FILE`")
}

/// Checks what the tag remembers of the file's head.
pub(crate) fn check_head(name: &str, tag: &FileTag, head: &[u8]) -> Result<()> {
    let Some(mark) = &tag.head else { return Ok(()) };
    let known = mark.bytes as usize;
    if head.len() < known {
        return Err(replaced(name, "truncated"));
    }
    if Mark::of(&head[..known]) != *mark {
        return Err(replaced(name, "replaced"));
    }
    Ok(())
}

impl TextReader {
    /// Opens a file at a position, and makes sure that it is the file that the tag speaks of.
    pub(crate) async fn open(
        name: &str,
        found: &Found,
        offset: u64,
        tag: &FileTag,
        config: &FileConfig,
        records: Records,
    ) -> Result<Self> {
        let mut input = Input::open(name, &found.location, tag.id.as_deref())?;
        let head = input.head(HEAD_BYTES).await?;
        check_head(name, tag, &head)?;
        let (id, size) = match input.object() {
            Some((id, size)) => (id.map(str::to_owned), size),
            None => (found.looks.id.clone(), found.looks.size),
        };
        let compression = config.compression.of(name, &head);
        let compressed = compression != Compression::None;
        if !compressed && size < offset {
            return Err(replaced(name, "truncated"));
        }
        input.decompress(compression)?;
        let before = if offset > 0 {
            skip(&mut input, name, offset, tag, compressed).await?
        } else {
            Vec::new()
        };
        if offset > 0 && tag.header.is_none() && records.csv().is_some_and(|c| c.header) {
            return Err(Error::corrupt(format!(
                "checkpoint lacks the header: file={name}"
            )));
        }
        let tag = FileTag {
            id,
            head: Some(Mark::of(&head)),
            // It was compared just now, and counts until more is read.
            tail: tag.tail.clone(),
            header: tag.header.clone(),
            ..FileTag::default()
        };
        let chunk_bytes = config.chunk();
        Ok(Self {
            partition: SourcePartition::new(name),
            input,
            records,
            chunk_bytes,
            max_line_bytes: config.max_line_bytes.0 as usize,
            follow: config.follow,
            compressed,
            buffer: Vec::new(),
            buffers: Buffers::default(),
            offset,
            target: chunk_bytes,
            size,
            changed: found.looks.changed,
            eof: false,
            finished: false,
            tag,
            before,
        })
    }

    /// How large chunks are from now on.
    pub(crate) fn ask(&mut self, bytes: usize) {
        // One that is being read, or looks for the end of a long line, goes on as it is.
        if self.buffer.len() < self.target && self.target == self.chunk_bytes {
            self.target = bytes;
        }
        self.chunk_bytes = bytes;
    }

    /// The next chunk; none when the end, or what is there of a growing file, was given out.
    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<RawBatch>> {
        while !self.finished {
            while !self.eof && self.buffer.len() < self.target {
                let want = self.target - self.buffer.len();
                self.eof = self.input.read(&mut self.buffer, want).await? == 0;
            }
            if self.eof {
                self.finished = true;
                if !self.follow {
                    return self.finish().map(Some);
                }
                let cut = self.cut();
                return if cut == 0 {
                    Ok(None)
                } else {
                    self.take(cut, false).map(Some)
                };
            }
            let cut = self.cut();
            if cut > 0 {
                self.target = self.chunk_bytes;
                return self.take(cut, false).map(Some);
            }
            if self.buffer.len() > self.max_line_bytes {
                return Err(Error::config(format!(
                    "{} is too long: file={} offset={} max_line_bytes={}",
                    self.records.name(),
                    self.partition,
                    self.offset,
                    self.max_line_bytes
                ))
                .hint(
                    "raise `max_line_bytes` of the source, if the file really holds such records",
                ));
            }
            self.target = self.buffer.len() * 2;
        }
        Ok(None)
    }

    /// What a growing file holds behind its last line end, now that it was read as far as it goes: the batch
    /// that this is, should the file go away. None: nothing. It may be called once, at the end.
    pub(crate) fn rest(&mut self) -> Option<Result<RawBatch>> {
        let bytes = self.buffer.len();
        if bytes == 0 {
            return None;
        }
        // Of compressed text that ends in its middle nobody knows how the line goes on.
        if bytes > KEPT_BYTES || self.compressed && self.input.is_cut() {
            return Some(Err(vanished(self.partition.as_str(), self.offset)));
        }
        let mut rest = self.take(bytes, true);
        // Kept for long, it must not keep the reader's buffers, which are far larger.
        if let Ok(RawBatch {
            payload: Payload::Bytes(text),
            ..
        }) = &mut rest
        {
            *text = Bytes::copy_from_slice(text);
        }
        Some(rest)
    }

    /// Bytes on the disk when the file was opened.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn cut(&self) -> usize {
        self.records.last_end(&self.buffer, 0)
    }

    fn finish(&mut self) -> Result<RawBatch> {
        if self.compressed && self.input.is_cut() {
            return Err(Error::config(format!(
                "compressed file ends early: file={}",
                self.partition
            ))
            .hint("the file is damaged, or still being written"));
        }
        self.take(self.buffer.len(), true)
    }

    fn take(&mut self, cut: usize, last: bool) -> Result<RawBatch> {
        let mut tail = self
            .buffers
            .take(if self.eof { 0 } else { self.chunk_bytes });
        tail.extend_from_slice(&self.buffer[cut..]);
        let mut chunk = std::mem::replace(&mut self.buffer, tail);
        chunk.truncate(cut);

        self.tag.header_bytes = 0;
        if let Some(csv) = self.records.csv().filter(|c| c.header)
            && self.tag.header.is_none()
            && let Some((start, line)) = csv.records(&chunk).next()
        {
            let names = csv.header_names(line);
            self.tag.header =
                Some(names.map_err(|e| e.context(format!("file={}", self.partition)))?);
            self.tag.header_bytes = (start + line.len()) as u64;
        }
        if !chunk.is_empty() {
            let end = &chunk[chunk.len().saturating_sub(TAIL_BYTES)..];
            self.before.extend_from_slice(end);
            self.before
                .drain(..self.before.len().saturating_sub(TAIL_BYTES));
            self.tag.tail = Some(Mark::of(&self.before));
        }
        self.tag.size = (self.eof && self.buffer.is_empty()).then_some(self.size);
        self.tag.changed = self.changed.filter(|_| self.tag.size.is_some());
        let from = self.offset;
        self.offset += cut as u64;
        Ok(RawBatch {
            partition: self.partition.clone(),
            range: OffsetRange {
                from,
                to: self.offset,
            },
            payload: Payload::Bytes(self.buffers.share(chunk)),
            last,
            tag: self.tag.print(),
            arrival: None,
        })
    }

    /// The tag of what was given out last.
    pub(crate) fn tag(&self) -> &FileTag {
        &self.tag
    }
}

/// Goes to `offset`, and compares what lies before it with what was read then. Gives those bytes.
async fn skip(
    input: &mut Input,
    name: &str,
    offset: u64,
    tag: &FileTag,
    compressed: bool,
) -> Result<Vec<u8>> {
    let tail_bytes = tag.tail.as_ref().map_or(0, |mark| mark.bytes).min(offset);
    let mut before = Vec::new();
    if compressed {
        let mut left = offset;
        while left > 0 {
            // Not a byte more than asked may be lost: what is read ahead stays in `before`.
            let want = (left as usize).min(SKIP_BYTES);
            let had = before.len();
            if input.read_exactly(&mut before, want).await? == 0 {
                return Err(replaced(name, "truncated"));
            }
            left -= (before.len() - had) as u64;
            let surplus = before.len().saturating_sub(tail_bytes as usize);
            before.drain(..surplus);
        }
    } else {
        input.seek(offset - tail_bytes)?;
        while (before.len() as u64) < tail_bytes {
            let want = tail_bytes as usize - before.len();
            if input.read(&mut before, want).await? == 0 {
                return Err(replaced(name, "truncated"));
            }
        }
        input.seek(offset)?;
    }
    before.truncate(tail_bytes as usize);
    match &tag.tail {
        Some(mark) if Mark::of(&before) != *mark => Err(replaced(name, "replaced")),
        _ => Ok(before),
    }
}

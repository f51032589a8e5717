//! Standard input: lines as they come. It cannot be read again, so what was read and not committed
//! when the process dies is lost, unless there is a log ([`super::logged`]):
//! [`super::SourceConfig::can_replay`] says so.
//!
//! A thread of its own reads, since a read of a pipe cannot be abandoned. It outlives the source: what it
//! reads, and the line that is not whole, go to the next source of this process ([`Kept`]), which begins
//! where the schema has evolved.

use std::{
    io::Read,
    sync::{Arc, LazyLock},
    thread,
};

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{Error, Payload, RawBatch, Result, Source, SourceEvent};
use calve_model::{OffsetRange, Offsets, SourcePartition};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{logged::LoggedStdin, records::Records, tag::FileTag, wal::WalConfig};
use crate::{formats::FormatConfig, units::ByteSize};

/// Name of the one source partition.
pub(super) const PARTITION: &str = "stdin";
/// Reads that wait to be taken, and how large each is.
const READS: usize = 8;
const READ_BYTES: usize = 64 << 10;

/// Standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StdinConfig {
    /// Bytes of text that make a batch, when there is so much at once.
    pub chunk_bytes: ByteSize,
    /// A line longer than this (and than `chunk_bytes`) stops the pipeline.
    pub max_line_bytes: ByteSize,
    /// Appends what is read to a write-ahead log first, so that it can be read again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalConfig>,
}

impl Default for StdinConfig {
    fn default() -> Self {
        Self {
            chunk_bytes: ByteSize(1 << 20),
            max_line_bytes: ByteSize(128 << 20),
            wal: None,
        }
    }
}

impl StdinConfig {
    /// Nobody has said how large a batch is.
    pub(super) fn sizes_itself(&self) -> bool {
        self.chunk_bytes == Self::default().chunk_bytes
    }

    pub(crate) fn validate(&self, format: &FormatConfig) -> Result<()> {
        if let Some(wal) = &self.wal {
            wal.validate()?;
            LoggedStdin::validate(format)?;
        }
        if self.chunk_bytes.0 == 0 || self.chunk_bytes.0 > 1 << 30 {
            return Err(Error::config("stdin chunk_bytes is not between 1 and 1GiB"));
        }
        Ok(())
    }
}

type Reads = mpsc::Receiver<std::io::Result<Vec<u8>>>;

/// Where a source leaves what was read of an input and not given out, for the next source of the same
/// input: it cannot be read again. Cheap to clone; clones share it.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Option<Rest>>>);

/// What is left of an input that a source has opened.
struct Rest {
    /// None: it has ended.
    reads: Option<Reads>,
    buffer: Vec<u8>,
}

/// That of the process's standard input.
static PROCESS: LazyLock<Kept> = LazyLock::new(Kept::default);

/// Reads standard input, or anything that can be read.
pub struct StdinSource {
    config: StdinConfig,
    records: Records,
    reads: Option<Reads>,
    input: Option<Box<dyn Read + Send>>,
    discovered: bool,
    buffer: Vec<u8>,
    /// So many bytes of it are known to hold no line end.
    searched: usize,
    offset: u64,
    tag: FileTag,
    ended: bool,
    /// Where the next source of the same input looks.
    kept: Kept,
    opened: bool,
    /// What makes a batch, as was asked for.
    asked: Option<usize>,
}

impl StdinSource {
    /// A source of the process's standard input.
    pub fn new(config: &StdinConfig, format: &FormatConfig) -> Self {
        Self::of(config, format, Box::new(std::io::stdin())).keeping(PROCESS.clone())
    }

    /// A source of something else that is read once.
    pub fn of(config: &StdinConfig, format: &FormatConfig, input: Box<dyn Read + Send>) -> Self {
        Self {
            config: config.clone(),
            records: Records::of(format),
            reads: None,
            input: Some(input),
            discovered: false,
            buffer: Vec::new(),
            searched: 0,
            offset: 0,
            tag: FileTag::default(),
            ended: false,
            kept: Kept::default(),
            opened: false,
            asked: None,
        }
    }

    /// Goes on with what is kept there, and leaves there what it does not give out.
    pub(super) fn keeping(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }

    /// Takes back what was given out last, to leave it to the next source.
    pub(super) fn give_back(&mut self, bytes: &[u8]) {
        self.buffer.splice(..0, bytes.iter().copied());
        self.searched = 0;
    }

    /// The whole records of what was read already, for who reads no more.
    pub(super) fn take_read(&mut self) -> Result<Option<RawBatch>> {
        for _ in 0..=READS {
            let read = self.reads.as_mut().map(mpsc::Receiver::try_recv);
            let Some(Ok(Ok(piece))) = read else {
                break;
            };
            self.buffer.extend_from_slice(&piece);
        }
        let cut = self.cut();
        (cut > 0).then(|| self.take(cut, false)).transpose()
    }

    /// Where the last whole record ends; zero where none does.
    fn cut(&mut self) -> usize {
        let end = self.records.last_end(&self.buffer, self.searched);
        let rest = &self.buffer[self.searched..];
        let is_text = !matches!(self.records, Records::Frames(_));
        if end == 0 && is_text && memchr::memchr(b'\n', rest).is_none() {
            self.searched = self.buffer.len();
        }
        end
    }

    fn take(&mut self, cut: usize, last: bool) -> Result<RawBatch> {
        let tail = self.buffer[cut..].to_vec();
        let mut chunk = std::mem::replace(&mut self.buffer, tail);
        chunk.truncate(cut);
        self.searched = 0;
        self.tag.header_bytes = 0;
        if let Some(csv) = self.records.csv().filter(|c| c.header)
            && self.tag.header.is_none()
            && let Some((start, line)) = csv.records(&chunk).next()
        {
            self.tag.header = Some(csv.header_names(line)?);
            self.tag.header_bytes = (start + line.len()) as u64;
        }
        let from = self.offset;
        self.offset += cut as u64;
        Ok(RawBatch {
            partition: SourcePartition::new(PARTITION),
            range: OffsetRange {
                from,
                to: self.offset,
            },
            payload: Payload::Bytes(Bytes::from(chunk)),
            last,
            tag: self
                .tag
                .header
                .is_some()
                .then(|| self.tag.print())
                .flatten(),
            arrival: None,
        })
    }
}

fn spawn(mut input: Box<dyn Read + Send>, chunk_bytes: usize) -> Result<Reads> {
    let (sender, reads) = mpsc::channel(READS);
    let reader = move || {
        let mut piece = vec![0; chunk_bytes.min(READ_BYTES)];
        loop {
            let read = match input.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => Ok(piece[..read].to_vec()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(reader)
        .map_err(|e| Error::io("cannot start the thread that reads stdin", e))?;
    Ok(reads)
}

#[async_trait]
impl Source for StdinSource {
    fn ask(&mut self, bytes: usize) {
        if self.config.sizes_itself() {
            self.asked = Some(bytes);
        }
    }

    /// Offsets go on where the last run ended, though the bytes before it cannot be read again.
    async fn open(&mut self, from: &Offsets) -> Result<()> {
        self.offset = from.position(PARTITION);
        let Some(input) = self.input.take() else {
            return Ok(());
        };
        if let Some(rest) = self.kept.0.lock().take() {
            self.reads = rest.reads;
            self.buffer = rest.buffer;
        } else {
            self.reads = Some(spawn(input, self.config.chunk_bytes.0 as usize)?);
        }
        self.opened = true;
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if !self.discovered {
            self.discovered = true;
            return Ok(SourceEvent::Discovered(vec![SourcePartition::new(
                PARTITION,
            )]));
        }
        let mut target = self.asked.unwrap_or(self.config.chunk_bytes.0 as usize);
        loop {
            let Some(reads) = &mut self.reads else {
                if self.ended {
                    return Ok(SourceEvent::End);
                }
                self.ended = true;
                let all = self.buffer.len();
                return Ok(SourceEvent::Batch(self.take(all, true)?));
            };
            // What is there already is taken at once; only for the first piece is it worth to wait.
            let read = match reads.try_recv() {
                Ok(read) => Some(read),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let cut = self.cut();
                    if cut > 0 {
                        return Ok(SourceEvent::Batch(self.take(cut, false)?));
                    }
                    let Some(reads) = &mut self.reads else {
                        continue;
                    };
                    reads.recv().await
                }
            };
            match read {
                None => self.reads = None,
                Some(Err(error)) => return Err(Error::io("cannot read stdin", error)),
                Some(Ok(piece)) => self.buffer.extend_from_slice(&piece),
            }
            if self.buffer.len() < target {
                continue;
            }
            let cut = self.cut();
            if cut > 0 {
                return Ok(SourceEvent::Batch(self.take(cut, false)?));
            }
            if self.buffer.len() as u64 > self.config.max_line_bytes.0 {
                return Err(Error::config(format!(
                    "{} is too long: offset={} max_line_bytes={}",
                    self.records.name(),
                    self.offset,
                    self.config.max_line_bytes
                ))
                .hint(
                    "raise `max_line_bytes` of the source, if the input really holds such records",
                ));
            }
            // Twice as much before looking again, but not beyond the limit.
            let most = (self.config.max_line_bytes.0 as usize).saturating_add(1);
            target = (self.buffer.len() * 2).min(most).max(self.buffer.len() + 1);
        }
    }
}

impl Drop for StdinSource {
    fn drop(&mut self) {
        if self.opened {
            *self.kept.0.lock() = Some(Rest {
                reads: self.reads.take(),
                buffer: std::mem::take(&mut self.buffer),
            });
        }
    }
}

#[cfg(test)]
#[path = "stdin_tests.rs"]
mod tests;

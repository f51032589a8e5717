//! Standard input with a write-ahead log: what was read from the pipe is appended first, and read on
//! from the log, so that it can be read again after a crash. The next process goes on with what the
//! log has, and then with its own standard input.
//!
//! What waits in the pipe, or was read and is not in the log yet when the process dies, is nobody's promise:
//! a pipe cannot acknowledge. A source that ends before the process leaves it to the next one. Start with
//! [`LoggedStdin::next`].

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{Error, Payload, RawBatch, Result, Source, SourceEvent};
use calve_model::{OffsetRange, Offsets, SourcePartition};
use tokio::task::JoinHandle;

use super::{
    SourceContext,
    stdin::{PARTITION, StdinConfig, StdinSource},
    wal::{Content, Entry, Lock, Log, LogOptions, NotAppended, WalConfig, batch_of},
};
use crate::formats::FormatConfig;

/// Memory for what is appended and not read on.
const RECENT_BYTES: usize = 16 << 20;

/// Reads standard input through a log.
pub(super) struct LoggedStdin {
    inner: StdinSource,
    batch_bytes: usize,
    /// Nobody has said how large a batch is.
    sizes_itself: bool,
    segment_bytes: u64,
    folder: PathBuf,
    lock: Option<Lock>,
    log: Option<Log>,
    appending: Option<Appending>,
    discovered: bool,
    began: bool,
    /// Nothing more comes from standard input.
    ended: bool,
    stopping: bool,
    over: bool,
}

/// An append that is under way: it goes on when `next` is dropped.
struct Appending {
    task: JoinHandle<Result<u64, NotAppended>>,
    /// The log's end before it; nobody else appends.
    from: u64,
    bytes: Bytes,
}

impl LoggedStdin {
    /// A source of what `inner` gives.
    ///
    /// # Errors
    /// `Config` when nothing says where the log is, or another process has it.
    pub(super) fn new(
        inner: StdinSource,
        config: &StdinConfig,
        wal: &WalConfig,
        context: &SourceContext,
    ) -> Result<Self> {
        let folder = wal.folder(context)?;
        Ok(Self {
            inner,
            batch_bytes: config.chunk_bytes.0 as usize,
            sizes_itself: config.sizes_itself(),
            segment_bytes: wal.segment_size.0,
            lock: Some(Lock::take(&folder)?),
            folder,
            log: None,
            appending: None,
            discovered: false,
            began: false,
            ended: false,
            stopping: false,
            over: false,
        })
    }

    /// Whether a format's records can follow each other over several processes.
    ///
    /// # Errors
    /// `Config` when they cannot.
    pub(super) fn validate(format: &FormatConfig) -> Result<()> {
        let fits = match format {
            FormatConfig::Json(_) | FormatConfig::Debezium(_) => true,
            FormatConfig::Csv(csv) => !csv.header,
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(Error::config(format!(
            "stdin with a log is read as lines without a header: format={}",
            format.name()
        ))
        .hint("json, debezium, and csv with `header: false`; or leave `wal` out"))
    }

    fn log(&mut self) -> Result<&mut Log> {
        self.log
            .as_mut()
            .ok_or_else(|| Error::internal("the log is read before it is open"))
    }

    fn batch(&mut self) -> Result<RawBatch> {
        let most = self.batch_bytes;
        let log = self.log()?;
        Ok(batch_of(PARTITION, &log.read(most)?, log.id()))
    }

    /// Appends what was read, on a task of its own.
    fn append(&mut self, raw: RawBatch) -> Result<()> {
        let Payload::Bytes(mut bytes) = raw.payload else {
            return Err(Error::internal("standard input gave no bytes"));
        };
        if !self.began {
            self.began = true;
            // The decoder expects it at the beginning of the log alone.
            if bytes.starts_with(b"\xef\xbb\xbf") {
                bytes = bytes.slice(3..);
            }
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if !bytes.ends_with(b"\n") {
            // The last line, behind which another process will go on.
            bytes = [&bytes, &b"\n"[..]].concat().into();
        }
        let appender = self.log()?.appender();
        let room = appender
            .room(bytes.len() as u64, u64::MAX)
            .ok_or_else(|| Error::internal("there is no end to what may be pending"))?;
        let units = u32::try_from(bytes.len())
            .map_err(|_| Error::config("stdin was read in pieces of more than 4 GiB"))?;
        let entry = Entry {
            content: Content::Bytes,
            units,
            events: 0,
            refused: 0,
            key: None,
            payload: bytes.clone(),
        };
        let append = async move { appender.append(entry, room).await };
        self.appending = Some(Appending {
            task: tokio::spawn(append),
            from: self.log()?.end(),
            bytes,
        });
        Ok(())
    }
}

impl Drop for LoggedStdin {
    fn drop(&mut self) {
        if let (Some(log), Some(appending)) = (&mut self.log, self.appending.take()) {
            // Behind this it is in the log, or never will be.
            log.seal();
            if log.end() == appending.from {
                self.inner.give_back(&appending.bytes);
            }
        }
    }
}

#[async_trait]
impl Source for LoggedStdin {
    /// What is read from the log, that is; what is appended at once is as it comes.
    fn ask(&mut self, bytes: usize) {
        if self.sizes_itself {
            self.batch_bytes = bytes;
        }
    }

    async fn open(&mut self, from: &Offsets) -> Result<()> {
        let position = from.0.get(PARTITION);
        let options = LogOptions {
            folder: self.folder.clone(),
            segment_bytes: self.segment_bytes,
            recent_bytes: RECENT_BYTES,
            key_ttl_ms: 0,
            most_keys: 0,
        };
        let lock = self.lock.take();
        let lock = lock.ok_or_else(|| Error::internal("the source is opened twice"))?;
        let log = Log::open_locked(
            lock,
            &options,
            position.map_or(0, |position| position.offset),
            position.and_then(|position| position.tag.as_deref()),
        )?;
        self.log = Some(log);
        self.inner.open(&Offsets::default()).await
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if !self.discovered {
            self.discovered = true;
            let partition = SourcePartition::new(PARTITION);
            return Ok(SourceEvent::Discovered(vec![partition]));
        }
        loop {
            if self.over {
                return Ok(SourceEvent::End);
            }
            if self.log()?.is_readable() {
                return Ok(SourceEvent::Batch(self.batch()?));
            }
            if let Some(appending) = &mut self.appending {
                let appended = (&mut appending.task).await;
                self.appending = None;
                appended.map_err(|e| Error::internal("an append ended early").because(e))??;
                continue;
            }
            if self.stopping && !self.ended {
                self.ended = true;
                if let Some(raw) = self.inner.take_read()? {
                    self.append(raw)?;
                }
                continue;
            }
            if self.ended {
                self.over = true;
                if self.stopping {
                    continue;
                }
                let end = self.log()?.end();
                return Ok(SourceEvent::Batch(RawBatch {
                    partition: SourcePartition::new(PARTITION),
                    range: OffsetRange { from: end, to: end },
                    payload: Payload::Bytes(Bytes::new()),
                    last: true,
                    tag: None,
                    arrival: None,
                }));
            }
            match self.inner.next().await? {
                SourceEvent::Batch(raw) => self.append(raw)?,
                SourceEvent::End => self.ended = true,
                SourceEvent::Discovered(_) => {}
                other => return Ok(other),
            }
        }
    }

    async fn committed(&mut self, upto: &Offsets) -> Result<()> {
        let upto = upto.position(PARTITION);
        self.log()?.trim(upto)
    }

    fn lag(&self) -> Option<u64> {
        self.log.as_ref().map(|log| log.appender().pending())
    }

    fn stop(&mut self) -> bool {
        self.stopping = true;
        true
    }
}

#[cfg(test)]
#[path = "logged_tests.rs"]
mod tests;

//! Files as a source: each is a source partition, its offset a byte of its (decompressed) text or a
//! row. Read in the order of their names, once, or followed as they appear and grow.
//!
//! Invariant: a file is read on only when its head, and the bytes before the position, are those
//! that were read before. Start with [`FileSource::next`]; `text` and `rows` read one file.

mod config;
mod input;
mod list;
mod rows;
mod text;

use std::collections::{BTreeMap, VecDeque};

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{Error, Payload, RawBatch, Result, Source, SourceEvent};
use calve_model::{OffsetRange, Offsets, Position, SourcePartition};
use tokio::time::Instant;

pub use self::config::{Compression, FileConfig, FileOrder, Paths};
use self::{
    list::{Found, Pattern},
    rows::RowsReader,
    text::{TextReader, replaced},
};
use super::{SourceContext, records::Records, tag::FileTag};
use crate::formats::FormatConfig;

/// What is known of one file.
struct Known {
    found: Found,
    offset: u64,
    done: bool,
    tag: FileTag,
    /// Size on the disk when it was last read to its end, in this run.
    seen: Option<u64>,
}

enum Reader {
    Text(Box<TextReader>),
    Rows(Box<RowsReader>),
}

/// Reads files.
pub struct FileSource {
    config: FileConfig,
    format: FormatConfig,
    patterns: Vec<Pattern>,
    files: BTreeMap<String, Known>,
    /// Names to be read in this round.
    queue: VecDeque<String>,
    /// Said before anything else.
    pending: VecDeque<SourceEvent>,
    current: Option<(String, Reader)>,
    /// Bytes of a batch that were asked for.
    asked: Option<usize>,
    /// When to look again, after idleness was said.
    wake: Option<Instant>,
}

impl FileSource {
    /// A source of these files; nothing is opened yet.
    ///
    /// # Errors
    /// `Config` for a path that cannot be one.
    pub fn new(
        config: &FileConfig,
        format: &FormatConfig,
        context: &SourceContext,
    ) -> Result<Self> {
        let patterns = config.path.0.iter().map(|path| Pattern::new(path, context));
        Ok(Self {
            config: config.clone(),
            format: format.clone(),
            patterns: patterns.collect::<Result<_>>()?,
            files: BTreeMap::new(),
            queue: VecDeque::new(),
            pending: VecDeque::new(),
            current: None,
            asked: None,
            wake: None,
        })
    }

    /// Whether any file is there.
    pub(super) async fn check(&mut self) -> Result<()> {
        if self.list().await?.is_empty() && !self.config.follow {
            return Err(self.no_file());
        }
        Ok(())
    }

    fn no_file(&self) -> Error {
        Error::config(format!("no file is there: path={}", self.config.path))
            .hint("check the path, or set `follow: true` to wait for files")
    }

    async fn list(&mut self) -> Result<BTreeMap<String, Found>> {
        let mut found = BTreeMap::new();
        for pattern in &self.patterns {
            pattern.find(&mut found).await?;
        }
        Ok(found)
    }

    /// Whether a file has something to read, or has to be looked at.
    fn is_due(&self, name: &str, file: &Known) -> Result<bool> {
        if !file.done {
            return Ok(file.seen != Some(file.found.size));
        }
        let moved = file.found.id.is_some() && file.found.id != file.tag.id;
        if !self.format.is_bytes() {
            return match file.tag.size {
                Some(size) if size != file.found.size => Err(replaced(name, "replaced")),
                _ => Ok(moved),
            };
        }
        Ok(moved || file.tag.size != Some(file.found.size))
    }

    /// Looks which files there are now, and queues what is to be read.
    async fn look(&mut self) -> Result<()> {
        let mut found = self.list().await?;
        let gone: Vec<String> = self
            .files
            .keys()
            .filter(|n| !found.contains_key(*n))
            .cloned()
            .collect();
        for name in gone {
            let file = self
                .files
                .remove(&name)
                .expect("the name was listed from the map");
            if !file.done {
                // It was read to its end before it went away.
                self.pending
                    .push_back(SourceEvent::Batch(ended(&name, file.offset)));
            }
        }
        let mut new = Vec::new();
        for (name, found) in std::mem::take(&mut found) {
            if let Some(file) = self.files.get_mut(&name) {
                if file.found.id != found.id {
                    file.seen = None;
                }
                file.found = found;
                continue;
            }
            new.push(SourcePartition::new(&name));
            let known = Known {
                found,
                offset: 0,
                done: false,
                tag: FileTag::default(),
                seen: None,
            };
            self.files.insert(name, known);
        }
        if !new.is_empty() && self.config.order == FileOrder::Discovery {
            self.pending.push_back(SourceEvent::Discovered(new));
        }
        for (name, file) in &self.files {
            if self.is_due(name, file)? {
                self.queue.push_back(name.clone());
            }
        }
        Ok(())
    }

    async fn open_reader(&mut self, name: &str) -> Result<Reader> {
        let file = &self.files[name];
        if !self.format.is_bytes() {
            let parquet = matches!(self.format, FormatConfig::Parquet(_));
            let reader = RowsReader::open(name, &file.found, file.offset, &file.tag, parquet);
            return reader.await.map(|rows| Reader::Rows(Box::new(rows)));
        }
        let records = Records::of(&self.format);
        let reader = TextReader::open(
            name,
            &file.found,
            file.offset,
            &file.tag,
            &self.config,
            records,
        );
        let mut text = reader.await?;
        if let Some(bytes) = self.asked {
            text.ask(bytes);
        }
        Ok(Reader::Text(Box::new(text)))
    }

    /// The next batch of the file that is open; closes it behind the last.
    async fn read(&mut self) -> Result<Option<RawBatch>> {
        let Some((name, reader)) = &mut self.current else {
            return Ok(None);
        };
        let (raw, tag) = match reader {
            Reader::Text(text) => (text.next().await?, text.tag()),
            Reader::Rows(rows) => (rows.next()?, rows.tag()),
        };
        let file = self.files.get_mut(name).expect("an open file is known");
        if let Some(raw) = &raw {
            file.offset = raw.range.to;
            file.done = raw.last;
            file.tag = tag.clone();
        }
        if raw.as_ref().is_none_or(|raw| raw.last) {
            file.seen = Some(match reader {
                Reader::Text(text) => text.size(),
                Reader::Rows(_) => file.found.size,
            });
            self.current = None;
        }
        Ok(raw)
    }
}

/// Nothing more will come of a file.
fn ended(name: &str, offset: u64) -> RawBatch {
    RawBatch {
        partition: SourcePartition::new(name),
        range: OffsetRange {
            from: offset,
            to: offset,
        },
        payload: Payload::Bytes(Bytes::new()),
        last: true,
        tag: None,
        arrival: None,
    }
}

#[async_trait]
impl Source for FileSource {
    fn ask(&mut self, bytes: usize) {
        if self.config.chunk_bytes.is_some() {
            return;
        }
        self.asked = Some(bytes);
        if let Some((_, Reader::Text(text))) = &mut self.current {
            text.ask(bytes);
        }
    }

    async fn open(&mut self, from: &Offsets) -> Result<()> {
        let mut found = self.list().await?;
        if found.is_empty() && from.0.is_empty() && !self.config.follow {
            return Err(self.no_file());
        }
        let mut unread = Vec::new();
        for (partition, position) in &from.0 {
            let name = partition.as_str();
            let tag = position
                .tag
                .as_deref()
                .map(FileTag::parse)
                .unwrap_or_default();
            let Some(found) = found.remove(name) else {
                // `size` is set when the end was reached, as far as the file went then.
                if !position.done && (tag.size.is_none() || !self.format.is_bytes()) {
                    return Err(Error::config(format!(
                        "file has vanished before it was read to its end: file={name} offset={}",
                        position.offset
                    ))
                    .hint("put it back, or start over with `calve checkpoint reset FILE`"));
                }
                if !position.done {
                    self.pending
                        .push_back(SourceEvent::Batch(ended(name, position.offset)));
                }
                continue;
            };
            let known = Known {
                found,
                offset: position.offset,
                done: position.done,
                tag,
                seen: None,
            };
            if !known.done {
                unread.push(partition.clone());
            }
            self.files.insert(name.to_owned(), known);
        }
        for (name, found) in found {
            unread.push(SourcePartition::new(&name));
            let tag = FileTag::default();
            self.files.insert(
                name,
                Known {
                    found,
                    offset: 0,
                    done: false,
                    tag,
                    seen: None,
                },
            );
        }
        if !unread.is_empty() && self.config.order == FileOrder::Discovery {
            unread.sort();
            self.pending.push_front(SourceEvent::Discovered(unread));
        }
        for (name, file) in &self.files {
            if self.is_due(name, file)? {
                self.queue.push_back(name.clone());
            }
        }
        Ok(())
    }

    /// The end of each file, behind its last whole line. Everything is read through once: only so is
    /// it known where the last line of a compressed file, or the last record of CSV, ends.
    async fn latest(&mut self) -> Result<Offsets> {
        if !self.config.follow {
            return Err(
                Error::config("only files that are followed have a latest position")
                    .hint("set `follow: true`, or leave `--from latest` out"),
            );
        }
        let mut latest = Offsets::default();
        self.open(&latest).await?;
        loop {
            match self.next().await? {
                SourceEvent::Batch(raw) => {
                    let position = Position {
                        offset: raw.range.to,
                        done: raw.last,
                        tag: raw.tag,
                    };
                    latest.0.insert(raw.partition, position);
                }
                SourceEvent::Discovered(_) | SourceEvent::Progress(_) => {}
                SourceEvent::Idle | SourceEvent::End => return Ok(latest),
            }
        }
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            if let Some(raw) = self.read().await? {
                return Ok(SourceEvent::Batch(raw));
            }
            if let Some(name) = self.queue.front().cloned() {
                // Taken from the queue only when it is open: this call may be dropped meanwhile.
                let opened = self.open_reader(&name).await;
                self.queue.pop_front();
                match opened {
                    Ok(reader) => self.current = Some((name, reader)),
                    // A Parquet or Arrow file without its end is probably still being written.
                    Err(error)
                        if self.config.follow
                            && !self.format.is_bytes()
                            && self.files[&name].offset == 0 =>
                    {
                        tracing::warn!(file = name, %error, "file cannot be read yet");
                        let file = self.files.get_mut(&name).expect("a queued file is known");
                        file.seen = Some(file.found.size);
                    }
                    Err(error) => return Err(error),
                }
                continue;
            }
            if !self.config.follow {
                return Ok(SourceEvent::End);
            }
            let Some(wake) = self.wake else {
                self.wake = Some(Instant::now() + self.config.poll_interval.0);
                return Ok(SourceEvent::Idle);
            };
            tokio::time::sleep_until(wake).await;
            self.look().await?;
            self.wake = None;
        }
    }

    fn lag(&self) -> Option<u64> {
        if !self.format.is_bytes() {
            return None;
        }
        let plain = |name: &String, file: &Known| {
            let compression = self.config.compression.of(name, &[]);
            (compression == Compression::None).then(|| file.found.size.saturating_sub(file.offset))
        };
        self.files
            .iter()
            .map(|(name, file)| plain(name, file))
            .sum()
    }
}

#[cfg(test)]
mod tests;

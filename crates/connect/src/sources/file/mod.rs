//! Files as a source: each is a source partition, its offset a byte of its (decompressed) text or a
//! row. Read in the order of their names, once, or followed as they appear and grow.
//!
//! Invariant: a file is read on only when its head, and the bytes before the position, are those
//! that were read before, also where it was away meanwhile. Start with [`FileSource::next`]; `text` and `rows` read one file.

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
    list::{Found, Looks, Pattern},
    rows::RowsReader,
    text::{TextReader, replaced, vanished},
};
use super::{SourceContext, records::Records, tag::FileTag};
use crate::formats::FormatConfig;

/// What is known of one file.
struct Known {
    found: Found,
    offset: u64,
    done: bool,
    tag: FileTag,
    /// How it looked when it was last read to its end, in this run.
    seen: Option<Looks>,
    /// The line that has no end yet: the file's last batch, should it go away.
    rest: Option<Result<RawBatch>>,
}

impl Known {
    fn new(found: Found) -> Self {
        Self {
            found,
            offset: 0,
            done: false,
            tag: FileTag::default(),
            seen: None,
            rest: None,
        }
    }

    /// The batch with which a file ends that has gone away. What it is known by follows the batch.
    fn end(&mut self, name: &str) -> Result<RawBatch> {
        let Some(rest) = self.rest.take() else {
            return Ok(ended(name, self.offset));
        };
        let raw = rest?;
        self.offset = raw.range.to;
        self.tag = raw.tag.as_deref().map(FileTag::parse).unwrap_or_default();
        Ok(raw)
    }
}

/// How far a file was read that is not there now, and how to know it again.
struct Gone {
    offset: u64,
    tag: FileTag,
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
    /// Files that were read and went away. A file that comes under such a name must be the same one.
    gone: BTreeMap<String, Gone>,
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
            gone: BTreeMap::new(),
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
        let now = &file.found.looks;
        if file.seen.as_ref() == Some(now) {
            return Ok(false);
        }
        if !file.done {
            return Ok(true);
        }
        let resized = file.tag.size != Some(now.size);
        if resized && file.tag.size.is_some() && !self.format.is_bytes() {
            return Err(replaced(name, "replaced"));
        }
        // Written to in place, it has its size and identity still. What was not remembered differs, too:
        // such a file is looked at once.
        let moved = now.id.is_some() && now.id != file.tag.id;
        let touched = now.changed.is_some() && now.changed != file.tag.changed;
        Ok(moved || touched || (resized && self.format.is_bytes()))
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
            let mut file = self
                .files
                .remove(&name)
                .expect("the name was listed from the map");
            if !file.done {
                // It was read to its end before it went away.
                let end = file.end(&name)?;
                self.pending.push_back(SourceEvent::Batch(end));
            }
            let Known { offset, tag, .. } = file;
            self.gone.insert(name, Gone { offset, tag });
        }
        let mut new = Vec::new();
        for (name, found) in std::mem::take(&mut found) {
            if let Some(file) = self.files.get_mut(&name) {
                file.found = found;
                continue;
            }
            let mut known = Known::new(found);
            let was = self.gone.remove(&name);
            let is_back = was.is_some();
            if let Some(Gone { offset, tag }) = was {
                // Reading on at the offset finds out whether it is the same file.
                known = Known {
                    offset,
                    tag,
                    done: true,
                    ..known
                };
            }
            if !is_back || self.is_due(&name, &known)? {
                new.push(SourcePartition::new(&name));
            }
            self.files.insert(name, known);
        }
        if !new.is_empty() && self.config.order == FileOrder::Discovery {
            self.pending.push_back(SourceEvent::Discovered(new));
        }
        self.queue_due()
    }

    /// Queues the files that have something to read.
    fn queue_due(&mut self) -> Result<()> {
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
            file.rest = None;
        }
        if raw.as_ref().is_none_or(|raw| raw.last) {
            let mut seen = file.found.looks.clone();
            if let Reader::Text(text) = reader {
                seen.size = text.size();
                file.rest = text.rest();
            }
            file.seen = Some(seen);
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
                let offset = position.offset;
                if !position.done && (tag.size.is_none() || !self.format.is_bytes()) {
                    return Err(vanished(name, offset));
                }
                if !position.done {
                    self.pending
                        .push_back(SourceEvent::Batch(ended(name, offset)));
                }
                self.gone.insert(name.to_owned(), Gone { offset, tag });
                continue;
            };
            let known = Known {
                offset: position.offset,
                done: position.done,
                tag,
                ..Known::new(found)
            };
            if !known.done {
                unread.push(partition.clone());
            }
            self.files.insert(name.to_owned(), known);
        }
        for (name, found) in found {
            unread.push(SourcePartition::new(&name));
            self.files.insert(name, Known::new(found));
        }
        if !unread.is_empty() && self.config.order == FileOrder::Discovery {
            unread.sort();
            self.pending.push_front(SourceEvent::Discovered(unread));
        }
        self.queue_due()
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
                        file.seen = Some(file.found.looks.clone());
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
            (compression == Compression::None)
                .then(|| file.found.looks.size.saturating_sub(file.offset))
        };
        self.files
            .iter()
            .map(|(name, file)| plain(name, file))
            .sum()
    }
}

#[cfg(test)]
mod changed_tests;
#[cfg(test)]
mod tests;

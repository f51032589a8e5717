//! Made-up events as a replayable source. An offset is a byte of the generated text.
//!
//! Text is made in blocks of a fixed number of events, each from the seed and its number. The tag
//! of a position says in which block it lies and where that block begins, so that going on from any
//! offset makes one block again, and skips into it.

mod changes;
mod config;
mod events;

use async_trait::async_trait;
use bytes::Bytes;
use calve_engine::{Error, Payload, RawBatch, Result, Source, SourceEvent};
use calve_model::{OffsetRange, Offsets, SourcePartition};
use tokio::time::{Duration, Instant};

use self::events::{BLOCK_EVENTS, Events};
pub use self::{
    changes::{Envelope, GeneratedChanges},
    config::{
        GeneratorConfig, GeneratorKind, Late, NoSettings, TemplateField, TemplateFields,
        TimestampForm,
    },
};

/// With a rate, batches are made this often, or less often when events are rarer.
const PACE: Duration = Duration::from_millis(50);
/// What was missed while the pipeline was slow is made up for, up to this much.
const CATCH_UP: Duration = Duration::from_secs(1);

/// One generated source partition.
struct Stream {
    partition: SourcePartition,
    events: Events,
    /// Text of the current block.
    text: Vec<u8>,
    /// Where in `text` the next batch begins.
    at: usize,
    /// Number of the current block, and the offset at which it begins.
    block: u64,
    block_offset: u64,
    /// Events given out.
    given: u64,
    /// Events to give out; none: endless.
    count: Option<u64>,
    done: bool,
}

impl Stream {
    fn start(&mut self, from: u64, tag: Option<&str>) -> Result<()> {
        if from > 0 {
            let numbers = tag.and_then(|tag| {
                let (block, at) = tag.strip_prefix("block=")?.split_once(" at=")?;
                Some((block.parse::<u64>().ok()?, at.parse::<u64>().ok()?))
            });
            let Some((block, at)) = numbers.filter(|(_, at)| *at <= from) else {
                return Err(Error::corrupt(format!(
                    "checkpoint of the generator cannot be read: partition={}",
                    self.partition
                )));
            };
            (self.block, self.block_offset) = (block, at);
        }
        self.events.block(self.block, &mut self.text);
        let skip = (from - self.block_offset) as usize;
        let whole = skip == 0 || self.text.get(skip - 1) == Some(&b'\n');
        if !whole {
            return Err(Error::config(format!(
                "generator makes other events than before: partition={} offset={from}",
                self.partition
            ))
            .hint("put its settings back, or start over with `calve checkpoint reset FILE`"));
        }
        self.at = skip;
        let lines = memchr::memchr_iter(b'\n', &self.text[..skip]).count() as u64;
        self.given = self.block * BLOCK_EVENTS + lines;
        Ok(())
    }

    fn left(&self) -> u64 {
        self.count
            .map_or(u64::MAX, |count| count.saturating_sub(self.given))
    }

    fn offset(&self) -> u64 {
        self.block_offset + self.at as u64
    }

    /// A batch of at most so many events, and about so many bytes.
    fn take(&mut self, most_events: u64, most_bytes: usize) -> RawBatch {
        let from = self.offset();
        let mut wanted = most_events.min(self.left());
        let mut chunk = Vec::new();
        while wanted > 0 && chunk.len() < most_bytes {
            if self.at == self.text.len() {
                self.block_offset += self.text.len() as u64;
                self.block += 1;
                self.text.clear();
                self.at = 0;
                self.events.block(self.block, &mut self.text);
            }
            let rest = &self.text[self.at..];
            let in_block = BLOCK_EVENTS - self.given % BLOCK_EVENTS;
            let taken = wanted.min(in_block);
            let bytes = if taken == in_block {
                rest.len()
            } else {
                let end = memchr::memchr_iter(b'\n', rest).nth(taken as usize - 1);
                end.expect("a block has a line for each event") + 1
            };
            chunk.extend_from_slice(&rest[..bytes]);
            self.at += bytes;
            self.given += taken;
            wanted -= taken;
        }
        self.done = self.left() == 0;
        RawBatch {
            partition: self.partition.clone(),
            range: OffsetRange {
                from,
                to: self.offset(),
            },
            payload: Payload::Bytes(Bytes::from(chunk)),
            last: self.done,
            tag: Some(format!("block={} at={}", self.block, self.block_offset)),
            arrival: None,
        }
    }
}

/// Makes up events.
pub struct GeneratorSource {
    config: GeneratorConfig,
    streams: Vec<Stream>,
    /// Bytes of a batch.
    chunk: usize,
    discovered: bool,
    /// Whose turn it is.
    turn: usize,
    /// When the count of events below began.
    began: Option<Instant>,
    /// Events given out since then, over all source partitions.
    since: u64,
}

impl GeneratorSource {
    /// A generator; it makes nothing yet.
    ///
    /// # Errors
    /// `Config` for settings that contradict each other.
    pub fn new(config: &GeneratorConfig) -> Result<Self> {
        config.validate()?;
        let partitions = u64::from(config.partitions);
        let stream = |i: u64| Stream {
            partition: SourcePartition::new(match partitions {
                1 => "generator".to_owned(),
                _ => format!("generator/{i}"),
            }),
            events: Events::new(config, i),
            text: Vec::new(),
            at: 0,
            block: 0,
            block_offset: 0,
            given: 0,
            count: config
                .count
                .map(|all| all / partitions + u64::from(i < all % partitions)),
            done: false,
        };
        Ok(Self {
            chunk: config.batch_bytes.0.max(1) as usize,
            config: config.clone(),
            streams: (0..partitions).map(stream).collect(),
            discovered: false,
            turn: 0,
            began: None,
            since: 0,
        })
    }

    /// How many events are due now; waits until there is one. Keeps its state in `self` only, so it
    /// may be dropped.
    async fn due(&mut self) -> u64 {
        let Some(rate) = self.config.rate else {
            return u64::MAX;
        };
        let began = *self.began.get_or_insert_with(Instant::now);
        // The next batch is due when a pace's worth of events is, and one event at least.
        let next = self.since as f64 + (rate * PACE.as_secs_f64()).max(1.0);
        tokio::time::sleep_until(began + Duration::from_secs_f64((next / rate).min(1e9))).await;
        let due = (began.elapsed().as_secs_f64() * rate) as u64;
        let most = (rate * CATCH_UP.as_secs_f64()).max(1.0) as u64;
        let behind = due.saturating_sub(self.since);
        if behind > most {
            self.began = Some(Instant::now());
            self.since = 0;
            return most;
        }
        behind.max(1)
    }
}

#[async_trait]
impl Source for GeneratorSource {
    fn ask(&mut self, bytes: usize) {
        if self.config.batch_bytes == GeneratorConfig::default().batch_bytes {
            self.chunk = bytes;
        }
    }

    async fn open(&mut self, from: &Offsets) -> Result<()> {
        for stream in &mut self.streams {
            let position = from.0.get(&stream.partition);
            let offset = position.map_or(0, |p| p.offset);
            stream.start(offset, position.and_then(|p| p.tag.as_deref()))?;
            // What was ended goes on when there is to be more now.
            stream.done = position.is_some_and(|p| p.done) && stream.left() == 0;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        if !self.discovered {
            self.discovered = true;
            let unread = self
                .streams
                .iter()
                .filter(|s| !s.done)
                .map(|s| s.partition.clone());
            return Ok(SourceEvent::Discovered(unread.collect()));
        }
        if self.streams.iter().all(|stream| stream.done) {
            return Ok(SourceEvent::End);
        }
        let due = self.due().await;
        while self.streams[self.turn].done {
            self.turn = (self.turn + 1) % self.streams.len();
        }
        let stream = &mut self.streams[self.turn];
        let before = stream.given;
        // With a rate, source partitions take turns by batches of a pace, not of a whole chunk.
        let raw = stream.take(due, self.chunk);
        self.since += stream.given - before;
        self.turn = (self.turn + 1) % self.streams.len();
        Ok(SourceEvent::Batch(raw))
    }
}

#[cfg(test)]
mod tests;

//! What a batcher does with a raw batch: decode, transform, split. Each set of decoder, transform
//! and splitter is used by one task at a time; there are as many sets as tasks that ever ran at once.

use std::{sync::Arc, time::Instant};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use calve_model::{Micros, OffsetRange, SourcePartition};
use parking_lot::Mutex;

use crate::{
    batch::{Decoded, EventTimeBounds, RawBatch, Reject},
    error::{ErrorKind, Result},
    event_time::EventTime,
    metrics::{Metrics, Stage},
    seams::{BatcherFactory, Decoder, Split, Splitter, Transform},
    windows::{Windowed, assign::Assigned},
};

/// A raw batch after the batcher, on its way to the writer.
pub(super) struct Processed {
    pub(super) partition: SourcePartition,
    pub(super) range: OffsetRange,
    pub(super) last: bool,
    pub(super) tag: Option<String>,
    pub(super) events: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Bytes of its rows, before the transform and after it.
    pub(super) held_bytes: usize,
    pub(super) bounds: EventTimeBounds,
    pub(super) arrival: Option<Micros>,
    pub(super) rows_of: Vec<Rows>,
    pub(super) rejects: Vec<Reject>,
}

/// What became of a raw batch.
pub(super) enum Made {
    /// Rows and rejects.
    Rows(Box<Processed>),
    /// Nothing yet: the schema must evolve to this one first.
    Evolve(SchemaRef),
}

/// Rows on their way to the table.
pub(super) enum Rows {
    /// For the table at once.
    Split(Split),
    /// For windows.
    Assigned(Assigned),
}

pub(super) struct Batchers {
    factory: Arc<dyn BatcherFactory>,
    idle: Mutex<Vec<Batcher>>,
    /// Splitters are made by the writer, which the loop owns: one is kept as the pattern.
    pattern: Mutex<Box<dyn Splitter>>,
    event_time: Option<EventTime>,
    windowed: Option<Arc<Windowed>>,
    metrics: Metrics,
}

struct Batcher {
    decoder: Box<dyn Decoder>,
    transform: Box<dyn Transform>,
    splitter: Box<dyn Splitter>,
}

impl Batchers {
    pub(super) fn new(
        factory: Arc<dyn BatcherFactory>,
        pattern: Box<dyn Splitter>,
        event_time: Option<EventTime>,
        windowed: Option<Arc<Windowed>>,
        metrics: Metrics,
    ) -> Result<Self> {
        let first = Batcher {
            decoder: factory.decoder()?,
            transform: factory.transform()?,
            splitter: pattern.fresh(),
        };
        Ok(Self {
            factory,
            idle: Mutex::new(vec![first]),
            pattern: Mutex::new(pattern),
            event_time,
            windowed,
            metrics,
        })
    }

    pub(super) fn process(&self, raw: &RawBatch) -> Result<Made> {
        let idle = self.idle.lock().pop();
        let mut batcher = match idle {
            Some(batcher) => batcher,
            None => Batcher {
                decoder: self.factory.decoder()?,
                transform: self.factory.transform()?,
                splitter: self.pattern.lock().fresh(),
            },
        };
        let processed = self.one(&mut batcher, raw)?;
        self.idle.lock().push(batcher);
        Ok(processed)
    }

    fn one(&self, batcher: &mut Batcher, raw: &RawBatch) -> Result<Made> {
        let begun = Instant::now();
        let decoded = batcher.decoder.decode(raw)?;
        if let Some(schema) = batcher.decoder.evolved(raw)? {
            return Ok(Made::Evolve(schema));
        }
        self.metrics
            .stage(Stage::Decode, begun.elapsed().as_secs_f64());
        let mut work = Work {
            batcher,
            raw,
            decoded: &decoded,
            windowed: self.windowed.as_deref(),
            rows: 0,
            held_bytes: decoded.rows.get_array_memory_size(),
            rows_of: Vec::new(),
            rejects: Vec::new(),
        };
        work.range(0, decoded.rows.num_rows(), &self.metrics)?;
        let Work {
            rows,
            held_bytes,
            rows_of,
            rejects: found,
            ..
        } = work;
        let events = (decoded.rows.num_rows() + decoded.rejects.len()) as u64;
        let bounds = self
            .event_time
            .as_ref()
            .and_then(|at| at.bounds(&decoded.rows));
        let mut rejects = decoded.rejects;
        if !found.is_empty() {
            rejects.extend(found);
            rejects.sort_by_key(|r| r.offset);
        }
        Ok(Made::Rows(Box::new(Processed {
            partition: raw.partition.clone(),
            range: raw.range,
            last: raw.last,
            tag: raw.tag.clone(),
            events,
            rows,
            bytes: raw.bytes() as u64,
            held_bytes,
            bounds,
            arrival: raw.arrival,
            rows_of,
            rejects,
        })))
    }
}

struct Work<'a> {
    batcher: &'a mut Batcher,
    raw: &'a RawBatch,
    decoded: &'a Decoded,
    windowed: Option<&'a Windowed>,
    rows: u64,
    held_bytes: usize,
    rows_of: Vec<Rows>,
    rejects: Vec<Reject>,
}

impl Work<'_> {
    /// Rows `from..to`; when they fail because of one of them, halves until it is found.
    fn range(&mut self, from: usize, to: usize, metrics: &Metrics) -> Result<()> {
        if from == to {
            return Ok(());
        }
        match self.try_range(self.decoded.rows.slice(from, to - from), metrics) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Data => {
                if to - from == 1 {
                    let mut reject = self.batcher.decoder.locate(self.raw, self.decoded, from);
                    error.to_string().clone_into(&mut reject.error);
                    self.rejects.push(reject);
                    return Ok(());
                }
                let middle = from.midpoint(to);
                self.range(from, middle, metrics)?;
                self.range(middle, to, metrics)
            }
            Err(error) => Err(error),
        }
    }

    fn try_range(&mut self, rows: RecordBatch, metrics: &Metrics) -> Result<()> {
        let begun = Instant::now();
        let rows = self.batcher.transform.apply(rows)?;
        let transformed = begun.elapsed();
        metrics.stage(Stage::Transform, transformed.as_secs_f64());
        let count = rows.num_rows() as u64;
        if count > 0 {
            self.held_bytes += rows.get_array_memory_size();
            let rows = match self.windowed {
                None => Rows::Split(self.batcher.splitter.split(rows)?),
                Some(windowed) => {
                    // Whether rows fit the table is found while the event is at hand to be rejected.
                    if windowed.aggregate.is_none() && !windowed.pane_columns {
                        self.batcher.splitter.check(&rows)?;
                    }
                    Rows::Assigned(windowed.assign(rows)?)
                }
            };
            self.rows_of.push(rows);
            metrics.stage(
                Stage::Split,
                begun.elapsed().saturating_sub(transformed).as_secs_f64(),
            );
        }
        self.rows += count;
        Ok(())
    }
}

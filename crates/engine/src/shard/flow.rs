//! What the stages of a shard tell its controller of sizes, and what it answers.

use std::{sync::Arc, time::Duration};

use calve_model::flow::{Controller, Fact, Goal, Sizes};
use parking_lot::Mutex;

use super::{ShardOptions, in_flight};
use crate::{batch::RawBatch, metrics::Metrics};

/// How often an epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitEvery {
    /// So long after its first event.
    Fixed(Duration),
    /// As seldom as rows may still be visible so long after they were read.
    Fresh(Duration),
}

/// How large a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchRows {
    /// As the source gives it.
    Source,
    /// About so many events.
    Fixed(u64),
    /// As many as cost least.
    Auto,
}

/// What a source is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) bytes: usize,
    pub(super) rows: u64,
}

impl Asked {
    /// The events that were asked for, where a batch of so many bytes has about as many.
    pub(super) fn met_by(self, bytes: usize) -> Option<u64> {
        let (least, most) = (self.bytes / 8 * 7, self.bytes / 8 * 9);
        (least..=most).contains(&bytes).then_some(self.rows)
    }
}

/// Shared by reader, loop, preparer and committer.
#[derive(Clone)]
pub(super) struct Flow(Arc<Inner>);

struct Inner {
    every: CommitEvery,
    rows: BatchRows,
    /// Of all batches together, as they are read.
    most_bytes: usize,
    state: Mutex<State>,
    metrics: Metrics,
}

struct State {
    controller: Controller,
    /// Bytes of an event, as they were lately.
    event_bytes: Option<f64>,
    told: Option<Sizes>,
}

/// Of a batch that is asked for, whatever its events are.
const LEAST_BYTES: usize = 1 << 10;
/// Batches that are in flight at least, where their size is found, or batchers would take turns.
const IN_FLIGHT: usize = 8;

impl Flow {
    pub(super) fn new(options: &ShardOptions, metrics: Metrics) -> Self {
        let (every, rows) = (options.commit_every, options.batch_rows);
        let (CommitEvery::Fixed(freshness) | CommitEvery::Fresh(freshness)) = every;
        let most_bytes = options.in_flight_bytes / (1 + in_flight::ROWS);
        let goal = Goal {
            freshness: micros(freshness),
            memory: options.memory_bytes,
            batch: (most_bytes / IN_FLIGHT) as u64,
        };
        Self(Arc::new(Inner {
            every,
            rows,
            most_bytes,
            state: Mutex::new(State {
                controller: Controller::new(goal),
                event_bytes: None,
                told: None,
            }),
            metrics,
        }))
    }

    /// Something happened.
    pub(super) fn see(&self, fact: Fact) {
        let mut state = self.0.state.lock();
        if let Fact::Batch { rows, bytes, .. } = fact
            && rows > 0
        {
            let now = bytes as f64 / rows as f64;
            let before = state.event_bytes.unwrap_or(now);
            state.event_bytes = Some(before + (now - before) / 8.0);
        }
        state.controller.see(fact);
        let sizes = state.controller.sizes();
        if state.told != Some(sizes) {
            let every = state.told.map(|told| told.commit_every);
            if every != Some(sizes.commit_every) && self.is_fresh() {
                tracing::debug!(every_ms = sizes.commit_every / 1000, "commit interval");
            }
            state.told = Some(sizes);
            // Under the lock: what is told last is what counts last.
            self.0.metrics.set_sizes(
                self.wanted(&sizes),
                self.every(&sizes),
                sizes.files_in_flight,
            );
        }
    }

    fn is_fresh(&self) -> bool {
        matches!(self.0.every, CommitEvery::Fresh(_))
    }

    fn wanted(&self, sizes: &Sizes) -> Option<u64> {
        match self.0.rows {
            BatchRows::Source => None,
            BatchRows::Fixed(rows) => Some(rows),
            BatchRows::Auto => Some(sizes.batch_rows),
        }
    }

    /// How long an epoch lasts now.
    pub(super) fn commit_every(&self) -> Duration {
        self.every(&self.0.state.lock().controller.sizes())
    }

    fn every(&self, sizes: &Sizes) -> Duration {
        match self.0.every {
            CommitEvery::Fixed(every) => every,
            CommitEvery::Fresh(_) => Duration::from_micros(sizes.commit_every.max(0) as u64),
        }
    }

    /// How many files are made durable at once now.
    pub(super) fn files_in_flight(&self) -> usize {
        self.0.state.lock().controller.sizes().files_in_flight as usize
    }

    /// The first batch tells how large an event is before it is decoded: until then many are read.
    pub(super) fn guess(&self, raw: &RawBatch) {
        let mut state = self.0.state.lock();
        if state.event_bytes.is_none() {
            let events = raw.payload.events().max(1);
            state.event_bytes = Some(raw.bytes() as f64 / events as f64);
        }
    }

    /// Bytes and events of the next batch; none: as the source likes.
    pub(super) fn next_batch(&self) -> Option<Asked> {
        if self.0.rows == BatchRows::Source {
            return None;
        }
        let state = self.0.state.lock();
        let rows = self.wanted(&state.controller.sizes())?;
        let bytes = rows as f64 * state.event_bytes?;
        let bytes = (bytes as usize).min(self.0.most_bytes).max(LEAST_BYTES);
        Some(Asked { bytes, rows })
    }
}

pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

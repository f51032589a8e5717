//! What a running pipeline says about itself: counters that anyone may read without locking the
//! engine, in Prometheus' text format or as a [`Status`]. Labels never hold a table partition's value.

mod flow;
mod intake;
mod labels;
mod series;
mod shares;
mod status;

use std::borrow::Cow;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use parking_lot::{Mutex, RwLock};
use prometheus_client::{encoding::text, registry::Registry};

pub(crate) use self::shares::{Change, Condition};
use self::{
    labels::{FigureLabel, OutcomeLabel, OutputLabel, PartLabel, StageLabel, Unlabelled},
    series::Series,
    shares::Shares,
};
pub use self::{
    shares::FlowStage,
    status::{ProcessMemory, StageShares, Status},
};
use crate::{
    seams::Link,
    shard::{REJECTS, TABLE, moment},
};

/// A stage that time is spent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Reading from the source.
    Read,
    /// Raw bytes to Arrow.
    Decode,
    /// The SQL transform.
    Transform,
    /// Rows by table partition.
    Split,
    /// Completing an epoch's files and making them durable.
    Prepare,
    /// Writing the checkpoint record.
    Checkpoint,
}

impl Stage {
    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Decode => "decode",
            Self::Transform => "transform",
            Self::Split => "split",
            Self::Prepare => "prepare",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// The counters of one shard. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    pipeline: String,
    shard: String,
    table: String,
    series: Series,
    written_bytes: AtomicU64,
    committed_rows: AtomicU64,
    committed_files: AtomicU64,
    snapshots: AtomicU64,
    watermark: AtomicI64,
    link: RwLock<Option<Arc<Link>>>,
    last_commit_ms: AtomicI64,
    connected: AtomicBool,
    behind: AtomicBool,
    state: RwLock<(&'static str, String)>,
    shares: Mutex<Shares>,
}

const NO_WATERMARK: i64 = i64::MIN;

/// A label's value as the text format wants it; the encoder leaves that to its caller.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

impl Inner {
    fn label(&self, output: &str) -> OutputLabel {
        OutputLabel {
            table: self.table.clone(),
            output: output.to_owned(),
        }
    }

    fn outcome(&self, output: &str, outcome: &'static str) -> OutcomeLabel {
        OutcomeLabel {
            table: self.table.clone(),
            output: output.to_owned(),
            outcome,
        }
    }
}

impl Metrics {
    /// Counters of one shard, all at zero; the table has no name.
    pub fn new(pipeline: &str, shard: &str) -> Self {
        Self::of_table(pipeline, shard, "")
    }

    /// Counters of one shard, all at zero; `table` is the name of its table, for the labels.
    pub fn of_table(pipeline: &str, shard: &str, table: &str) -> Self {
        let label =
            |name: &'static str, value: &str| (Cow::Borrowed(name), Cow::Owned(value.to_owned()));
        let labels = [label("pipeline", pipeline), label("shard", shard)];
        let mut registry = Registry::with_prefix_and_labels("calve", labels.into_iter());
        let inner = Inner {
            series: Series::registered(&mut registry),
            written_bytes: AtomicU64::new(0),
            committed_rows: AtomicU64::new(0),
            committed_files: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            watermark: AtomicI64::new(NO_WATERMARK),
            link: RwLock::new(None),
            last_commit_ms: AtomicI64::new(0),
            connected: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            state: RwLock::new(("starting", String::new())),
            shares: Mutex::default(),
            registry,
            pipeline: pipeline.to_owned(),
            shard: shard.to_owned(),
            table: escaped(table),
        };
        inner.series.flow.show(&inner.shares.lock().look(moment()));
        // They begin at zero: a series that comes with its first value has no rate then.
        for output in [TABLE, REJECTS] {
            let label = inner.label(output);
            drop(inner.series.rows.get_or_create(&label));
            drop(inner.series.files.get_or_create(&label));
            drop(inner.series.commit_seconds.get_or_create(&label));
            let outcome = inner.outcome(output, "committed");
            drop(inner.series.commits.get_or_create(&outcome));
        }
        Self(Arc::new(inner))
    }

    /// Rows behind the watermark and the allowed lateness.
    pub(crate) fn late(&self, rows: u64) {
        if rows > 0 {
            self.0.series.late.inc_by(rows);
        }
    }

    /// Prometheus' text format (OpenMetrics).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let watermark = self.0.watermark.load(Ordering::Relaxed);
        if watermark != NO_WATERMARK {
            let lag = crate::clock::now_ms() as f64 / 1e3 - watermark as f64 / 1e6;
            self.0
                .series
                .watermark_lag
                .get_or_create(&Unlabelled::new())
                .set(lag.max(0.0));
        }
        let look = self.0.shares.lock().look(moment());
        self.0.series.flow.show(&look);
        // For writing: of two that encode at once, one adds what is new.
        let link = self.0.link.write();
        if let Some(intake) = link.as_ref().and_then(|link| link.intake()) {
            self.0.series.intake.take(intake);
        } else if let Some(link) = &*link {
            let counter = self.0.series.reconnects.get_or_create(&Unlabelled::new());
            counter.inc_by(link.reconnects().saturating_sub(counter.get()));
        }
        drop(link);
        text::encode(&mut text, &self.0.registry).expect("writing to a string cannot fail");
        text
    }

    /// A look at the counters.
    pub fn status(&self) -> Status {
        let inner = &self.0;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let watermark = inner.watermark.load(Ordering::Relaxed);
        let lag = inner
            .series
            .source_lag
            .get(&Unlabelled::new())
            .map(|lag| lag.get());
        let (state, last_snapshot) = inner.state.read().clone();
        let look = inner.shares.lock().look(moment());
        Status {
            pipeline: inner.pipeline.clone(),
            shard: inner.shard.clone(),
            state,
            last_snapshot,
            events: inner.series.events.get(),
            bytes: inner.series.bytes.get(),
            rejected: inner.series.rejected.get(),
            late: inner.series.late.get(),
            rows_committed: load(&inner.committed_rows),
            files_committed: load(&inner.committed_files),
            bytes_committed: load(&inner.written_bytes),
            snapshots: load(&inner.snapshots),
            last_commit_ms: inner.last_commit_ms.load(Ordering::Relaxed),
            watermark: (watermark != NO_WATERMARK).then_some(watermark),
            memory_bytes: inner.series.memory.get().max(0) as u64,
            open_files: inner.series.open_files.get().max(0) as u64,
            source_lag: lag.map(|lag| lag.max(0) as u64),
            connected: inner.connected.load(Ordering::Relaxed)
                && inner.link.read().as_ref().is_none_or(|l| l.is_connected()),
            reconnects: inner.link.read().as_ref().and_then(|link| {
                let connects = link.intake().is_none();
                connects.then(|| link.reconnects())
            }),
            behind: inner.behind.load(Ordering::Relaxed),
            stages: StageShares::of(&look),
            bottleneck: look.bottleneck.map(FlowStage::name),
        }
    }

    /// starting, running, stopping, done, failed.
    pub fn set_state(&self, state: &'static str) {
        self.0.state.write().0 = state;
    }

    /// The source answers.
    pub fn set_connected(&self, connected: bool) {
        self.0.connected.store(connected, Ordering::Relaxed);
    }

    /// The source's connection, to be looked at.
    pub fn set_link(&self, link: Option<Arc<Link>>) {
        let mut held = self.0.link.write();
        // What the one before has counted is not lost.
        if let Some(intake) = held.as_ref().and_then(|link| link.intake()) {
            self.0.series.intake.take(intake);
        }
        *held = link;
    }

    /// Commits do not keep up.
    pub fn set_behind(&self, behind: bool) {
        self.0.behind.store(behind, Ordering::Relaxed);
    }

    /// Events were read.
    pub fn received(&self, events: u64, bytes: u64, rejected: u64) {
        self.0.series.events.inc_by(events);
        self.0.series.bytes.inc_by(bytes);
        self.0.series.rejected.inc_by(rejected);
        self.0.series.batch_rows.set(events as i64);
    }

    /// A stage took this long.
    pub fn stage(&self, stage: Stage, seconds: f64) {
        self.0
            .series
            .stages
            .get_or_create(&StageLabel {
                stage: stage.name(),
            })
            .observe(seconds);
    }

    /// A stage of the flow does something else now.
    pub(crate) fn change(&self, change: Change) {
        // Under the lock, so that no change is told of behind a later one.
        let mut shares = self.0.shares.lock();
        shares.change(moment(), change);
    }

    /// The watermark moved; microseconds of event time.
    pub fn set_watermark(&self, watermark: i64) {
        self.0.watermark.store(watermark, Ordering::Relaxed);
    }

    /// What `limits.memory` is.
    pub fn set_memory_limit(&self, bytes: u64) {
        self.0.series.memory_limit.set(bytes as i64);
    }

    /// What each part of the pipeline holds of `limits.memory`.
    pub fn set_levels(&self, held: [(&'static str, usize); 3], open_files: usize) {
        let series = &self.0.series;
        for (part, bytes) in held {
            series
                .held
                .get_or_create(&PartLabel { part })
                .set(bytes as i64);
        }
        let all: usize = held.iter().map(|(_, bytes)| bytes).sum();
        series.memory.set(all as i64);
        self.0.series.open_files.set(open_files as i64);
    }

    /// What the controller of sizes wants: events of a batch, where it says so, how long an epoch
    /// lasts, and how many files are made durable at once.
    pub fn set_sizes(
        &self,
        batch_rows: Option<u64>,
        commit_every: std::time::Duration,
        files_in_flight: u64,
    ) {
        let inner = &self.0;
        if let Some(rows) = batch_rows {
            let gauge = inner.series.wanted_rows.get_or_create(&Unlabelled::new());
            gauge.set(rows as i64);
        }
        let gauge = inner
            .series
            .commit_interval
            .get_or_create(&Unlabelled::new());
        gauge.set(commit_every.as_secs_f64());
        let gauge = inner
            .series
            .files_in_flight
            .get_or_create(&Unlabelled::new());
        gauge.set(files_in_flight as i64);
    }

    /// What the system and the allocator say.
    pub fn set_process(&self, memory: ProcessMemory) {
        let inner = &self.0;
        inner.series.resident.set(memory.resident as i64);
        inner.series.anonymous.set(memory.anonymous as i64);
        for (figure, bytes) in [
            ("committed", memory.committed),
            ("committed_peak", memory.committed_peak),
            ("reserved", memory.reserved),
        ] {
            let gauge = inner
                .series
                .allocator
                .get_or_create(&FigureLabel { figure });
            gauge.set(bytes as i64);
        }
    }

    /// What the source still has; none: it cannot tell.
    pub fn set_source_lag(&self, lag: Option<u64>) {
        match lag {
            Some(lag) => {
                let gauge = self.0.series.source_lag.get_or_create(&Unlabelled::new());
                gauge.set(i64::try_from(lag).unwrap_or(i64::MAX));
            }
            None => self.0.series.source_lag.clear(),
        }
    }

    /// A try to commit ended.
    pub fn commit_tried(&self, output: &str, outcome: &'static str, seconds: f64) {
        let inner = &self.0;
        let outcome = inner.outcome(output, outcome);
        inner.series.commits.get_or_create(&outcome).inc();
        let took = inner
            .series
            .commit_seconds
            .get_or_create(&inner.label(output));
        took.observe(seconds);
    }

    /// An output holds an epoch's files now.
    pub fn committed(&self, output: &str, prepared: &crate::Prepared, snapshot: Option<String>) {
        let label = self.0.label(output);
        self.0
            .series
            .rows
            .get_or_create(&label)
            .inc_by(prepared.rows);
        self.0
            .series
            .files
            .get_or_create(&label)
            .inc_by(prepared.files);
        if output == TABLE {
            self.0
                .committed_rows
                .fetch_add(prepared.rows, Ordering::Relaxed);
            self.0
                .committed_files
                .fetch_add(prepared.files, Ordering::Relaxed);
            self.0
                .written_bytes
                .fetch_add(prepared.bytes, Ordering::Relaxed);
            if let Some(snapshot) = snapshot {
                self.0.snapshots.fetch_add(1, Ordering::Relaxed);
                self.0.state.write().1 = snapshot;
            }
        }
    }

    /// Every output holds what was read up to an epoch, be it that nothing was for it.
    pub fn acknowledged(&self) {
        self.0
            .last_commit_ms
            .store(crate::clock::now_ms(), Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;

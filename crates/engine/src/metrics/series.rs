//! The series of a shard, and what they are called.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{
    flow::FlowSeries,
    intake::IntakeFigures,
    labels::{FigureLabel, OutcomeLabel, OutputLabel, PartLabel, StageLabel, Unlabelled},
};

/// Those that are kept; what is told once, and those of others, are only registered.
pub(super) struct Series {
    pub(super) events: Counter,
    pub(super) bytes: Counter,
    pub(super) rejected: Counter,
    pub(super) late: Counter,
    pub(super) rows: Family<OutputLabel, Counter>,
    pub(super) files: Family<OutputLabel, Counter>,
    pub(super) commits: Family<OutcomeLabel, Counter>,
    pub(super) commit_seconds: Family<OutputLabel, Histogram>,
    pub(super) stages: Family<StageLabel, Histogram>,
    pub(super) flow: FlowSeries,
    pub(super) watermark_lag: Family<Unlabelled, Gauge<f64, AtomicU64>>,
    pub(super) source_lag: Family<Unlabelled, Gauge>,
    pub(super) reconnects: Family<Unlabelled, Counter>,
    pub(super) intake: IntakeFigures,
    pub(super) memory: Gauge,
    pub(super) held: Family<PartLabel, Gauge>,
    pub(super) memory_limit: Gauge,
    pub(super) resident: Gauge,
    pub(super) wanted_rows: Family<Unlabelled, Gauge>,
    pub(super) commit_interval: Family<Unlabelled, Gauge<f64, AtomicU64>>,
    pub(super) files_in_flight: Family<Unlabelled, Gauge>,
    pub(super) anonymous: Gauge,
    pub(super) allocator: Family<FigureLabel, Gauge>,
    pub(super) batch_rows: Gauge,
    pub(super) open_files: Gauge,
}

impl Series {
    /// All at zero, and those that have labels without any, in a registry.
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_1, 4.0, 10));
        let series = Self {
            events: Counter::default(),
            bytes: Counter::default(),
            rejected: Counter::default(),
            late: Counter::default(),
            rows: Family::default(),
            files: Family::default(),
            commits: Family::default(),
            commit_seconds: Family::new_with_constructor(seconds),
            stages: Family::new_with_constructor(seconds),
            flow: FlowSeries::default(),
            watermark_lag: Family::default(),
            source_lag: Family::default(),
            reconnects: Family::default(),
            intake: IntakeFigures::default(),
            memory: Gauge::default(),
            held: Family::default(),
            memory_limit: Gauge::default(),
            resident: Gauge::default(),
            wanted_rows: Family::default(),
            commit_interval: Family::default(),
            files_in_flight: Family::default(),
            anonymous: Gauge::default(),
            allocator: Family::default(),
            batch_rows: Gauge::default(),
            open_files: Gauge::default(),
        };
        series.register(registry);
        series
    }

    fn register(&self, registry: &mut Registry) {
        let up: Gauge = Gauge::default();
        up.set(1);
        registry.register("up", "the pipeline's process runs", up);
        registry.register(
            "events_received",
            "events read from the source",
            self.events.clone(),
        );
        registry.register(
            "bytes_received",
            "bytes read from the source",
            self.bytes.clone(),
        );
        registry.register(
            "events_rejected",
            "events that went to the rejects",
            self.rejected.clone(),
        );
        registry.register(
            "events_late",
            "events behind the watermark and the allowed lateness",
            self.late.clone(),
        );
        registry.register("events_written", "rows made visible", self.rows.clone());
        registry.register(
            "files_written",
            "data files made visible",
            self.files.clone(),
        );
        registry.register("commits", "commits by outcome", self.commits.clone());
        registry.register_with_unit(
            "commit_duration",
            "time of a commit",
            Unit::Seconds,
            self.commit_seconds.clone(),
        );
        registry.register_with_unit(
            "stage_duration",
            "time in a stage, a batch",
            Unit::Seconds,
            self.stages.clone(),
        );
        self.flow.register(registry);
        registry.register_with_unit(
            "watermark_lag",
            "processing time less watermark",
            Unit::Seconds,
            self.watermark_lag.clone(),
        );
        registry.register(
            "source_lag",
            "bytes or events not read yet",
            self.source_lag.clone(),
        );
        registry.register(
            "source_reconnects",
            "times that the source had to connect again",
            self.reconnects.clone(),
        );
        self.intake.register(registry);
        registry.register_with_unit(
            "memory",
            "bytes of limits.memory that are held",
            Unit::Bytes,
            self.memory.clone(),
        );
        registry.register_with_unit(
            "memory_limit",
            "what limits.memory is",
            Unit::Bytes,
            self.memory_limit.clone(),
        );
        registry.register_with_unit(
            "memory_held",
            "bytes of limits.memory that are held, by part",
            Unit::Bytes,
            self.held.clone(),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "bytes of the process in memory, those of the executable included",
            Unit::Bytes,
            self.resident.clone(),
        );
        registry.register_with_unit(
            "process_anonymous_memory",
            "bytes of the process in memory that are not pages of files",
            Unit::Bytes,
            self.anonymous.clone(),
        );
        registry.register_with_unit(
            "allocator",
            "what the allocator holds: bytes committed now and at most, and addresses reserved",
            Unit::Bytes,
            self.allocator.clone(),
        );
        registry.register(
            "batch_rows",
            "rows of the last batch",
            self.batch_rows.clone(),
        );
        registry.register(
            "batch_rows_wanted",
            "events that a batch is to have",
            self.wanted_rows.clone(),
        );
        registry.register_with_unit(
            "commit_interval",
            "how long an epoch lasts",
            Unit::Seconds,
            self.commit_interval.clone(),
        );
        registry.register(
            "files_in_flight",
            "files that are made durable at once",
            self.files_in_flight.clone(),
        );
        registry.register("open_files", "data files open", self.open_files.clone());
    }
}

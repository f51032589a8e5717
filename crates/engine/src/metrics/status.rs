//! What is told of a running pipeline in one piece.

use serde::Serialize;

use super::shares::{FlowStage, Look};

/// One look at a running pipeline.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The pipeline's id.
    pub pipeline: String,
    /// The shard.
    pub shard: String,
    /// starting, running, stopping, done, failed.
    pub state: &'static str,
    /// The last snapshot or publication.
    pub last_snapshot: String,
    /// Events read from the source in this run.
    pub events: u64,
    /// Bytes read from the source in this run, as events.
    pub bytes: u64,
    /// Events that went to the rejects in this run.
    pub rejected: u64,
    /// Rows behind the watermark and the allowed lateness, in this run.
    pub late: u64,
    /// Rows visible in the table, of this run.
    pub rows_committed: u64,
    /// Data files visible in the table, of this run.
    pub files_committed: u64,
    /// Bytes of those files.
    pub bytes_committed: u64,
    /// Snapshots or publications made in this run.
    pub snapshots: u64,
    /// Milliseconds since 1970 of the last commit; 0: none in this run.
    pub last_commit_ms: i64,
    /// Watermark in microseconds of event time.
    pub watermark: Option<i64>,
    /// Bytes held by the writers.
    pub memory_bytes: u64,
    /// Data files open.
    pub open_files: u64,
    /// Bytes or events known to exist and not read.
    pub source_lag: Option<u64>,
    /// The source is connected.
    pub connected: bool,
    /// Times that it had to connect again, where it holds a connection.
    pub reconnects: Option<u64>,
    /// Too many epochs are prepared and not committed.
    pub behind: bool,
    /// What each stage did in the last ten seconds, from the source on.
    pub stages: Vec<StageShares>,
    /// The stage that the others wait for, by name; none: nothing is held up, or there is little to do.
    pub bottleneck: Option<&'static str>,
}

impl Status {
    /// The stage that the others wait for, and the share of time in which it was busy.
    pub fn waits_for(&self) -> Option<(&'static str, f64)> {
        let stage = self.bottleneck?;
        let found = self.stages.iter().find(|s| s.stage == stage)?;
        Some((stage, found.busy))
    }
}

/// Shares of the time of one stage, together 1; all zero where it did not run.
#[derive(Clone, Debug, Serialize)]
pub struct StageShares {
    /// Its name: source, batchers, writer, files, commit.
    pub stage: &'static str,
    /// It worked, or waited for an outside system that did.
    pub busy: f64,
    /// It waited for input.
    pub starved: f64,
    /// It waited for what comes behind it.
    pub blocked: f64,
}

impl StageShares {
    pub(super) fn of(look: &Look) -> Vec<Self> {
        // Enough to read, and what rounding leaves over is nobody's.
        let short = |share: f64| (share * 1e4).round() / 1e4;
        let named = FlowStage::ALL.into_iter().zip(look.shares);
        let shares = named.map(|(stage, [busy, starved, blocked])| Self {
            stage: stage.name(),
            busy: short(busy),
            starved: short(starved),
            blocked: short(blocked),
        });
        shares.collect()
    }
}

/// What the process holds, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessMemory {
    /// In memory, pages of the executable included.
    pub resident: u64,
    /// In memory, without pages of files.
    pub anonymous: u64,
    /// What the allocator may use without asking the system.
    pub committed: u64,
    /// The most that it ever was.
    pub committed_peak: u64,
    /// Addresses that the allocator has taken.
    pub reserved: u64,
}

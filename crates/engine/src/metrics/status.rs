//! What is told of a running pipeline in one piece.

use serde::Serialize;

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

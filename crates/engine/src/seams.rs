//! The I/O seams: source, decoder, transform, aggregate, table, output. Closed sets are enums
//! elsewhere; only what has several implementations behind it is a trait here.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use calve_model::{Epoch, Micros, Offsets, SourcePartition};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    batch::{Decoded, RawBatch, Reject},
    error::{Error, Result},
    opaque::Opaque,
};

/// Reads raw batches. Lives on a thread of its own (with a runtime of one thread), so it may block
/// for as long as one read takes; it never decodes.
#[async_trait]
pub trait Source: Send {
    /// Goes to `from`; called once, before the first `next`.
    ///
    /// # Errors
    /// `Config` when what the offsets name is not there or was replaced.
    async fn open(&mut self, from: &Offsets) -> Result<()>;

    /// Where reading begins that takes only what comes from now on. Called instead of `open`; the
    /// source is thrown away then.
    ///
    /// # Errors
    /// `Config` where a source has no such place.
    async fn latest(&mut self) -> Result<Offsets> {
        Err(Error::config("this source has no latest position")
            .hint("leave `--from latest` out, or name offsets: `--from 'PARTITION=OFFSET'`"))
    }

    /// The next batch or event. Cancel-safe: a dropped call loses nothing.
    async fn next(&mut self) -> Result<SourceEvent>;

    /// How large the next batches are best, bytes. A wish: what is configured, or what a source must
    /// give in one piece, counts more.
    fn ask(&mut self, bytes: usize) {
        let _ = bytes;
    }

    /// Everything up to `upto` is durable in every output.
    async fn committed(&mut self, upto: &Offsets) -> Result<()> {
        let _ = upto;
        Ok(())
    }

    /// Events or bytes known to exist and not read yet, where the source can tell.
    fn lag(&self) -> Option<u64> {
        None
    }

    /// What its connection is like, where it holds one; asked for once, behind `open`.
    fn link(&self) -> Option<Arc<Link>> {
        None
    }

    /// The run is to end. A source that has promised to keep what it was given takes nothing new, and
    /// answers true: it is asked on until it says [`SourceEvent::End`]. Others are not asked any more.
    fn stop(&mut self) -> bool {
        false
    }
}

/// How much a source that is given events has, which nobody has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntakeLevels {
    /// Bytes of events that are accepted and not read.
    pub pending_bytes: u64,
    /// How long the oldest of them has waited, in milliseconds.
    pub oldest_unread_ms: u64,
    /// Idempotency keys that were forgotten before their time.
    pub forgotten_keys: u64,
    /// Bytes of memory that the source holds: bodies that are under way, events that nobody has read, keys.
    pub held_bytes: u64,
}

/// Figures of a source that is given events by requests. Counts are taken from here by whoever shows
/// them, so that they can go on over several openings of the source.
pub struct Intake {
    answers: Mutex<BTreeMap<u16, u64>>,
    accepted: AtomicU64,
    repeated: AtomicU64,
    levels: Box<dyn Fn() -> IntakeLevels + Send + Sync>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake")
            .field("levels", &self.levels())
            .finish_non_exhaustive()
    }
}

impl Intake {
    /// Nothing yet; `levels` looks at what there is now.
    pub fn new(levels: impl Fn() -> IntakeLevels + Send + Sync + 'static) -> Self {
        Self {
            answers: Mutex::default(),
            accepted: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            levels: Box::new(levels),
        }
    }

    /// A request was answered with this HTTP status.
    pub fn answered(&self, status: u16) {
        *self.answers.lock().entry(status).or_default() += 1;
    }

    /// Events are durable.
    pub fn accepted(&self, events: u64) {
        self.accepted.fetch_add(events, Ordering::Relaxed);
    }

    /// A request had been accepted before.
    pub fn repeated(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// What there is now.
    pub fn levels(&self) -> IntakeLevels {
        (self.levels)()
    }

    /// Answers by status, events accepted and requests repeated since this was called last.
    pub(crate) fn take_counts(&self) -> (BTreeMap<u16, u64>, u64, u64) {
        (
            std::mem::take(&mut *self.answers.lock()),
            self.accepted.swap(0, Ordering::Relaxed),
            self.repeated.swap(0, Ordering::Relaxed),
        )
    }
}

/// A source's connection, as it can be looked at while `next` waits.
#[derive(Debug, Default)]
pub struct Link {
    connected: AtomicBool,
    reconnects: AtomicU64,
    intake: Option<Intake>,
}

impl Link {
    /// That of a source which is given events.
    pub fn of_intake(intake: Intake) -> Self {
        Self {
            intake: Some(intake),
            ..Self::default()
        }
    }

    /// The figures of a source that is given events.
    pub fn intake(&self) -> Option<&Intake> {
        self.intake.as_ref()
    }

    /// Whether it is connected now.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// How often it had to connect again.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// The source says whether it is connected.
    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// The source connects again.
    pub fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a source says.
#[derive(Debug)]
pub enum SourceEvent {
    /// Source partitions that exist and have not been read; they hold the watermark.
    Discovered(Vec<SourcePartition>),
    /// Events.
    Batch(RawBatch),
    /// Polled, and nothing is there now in any source partition.
    Idle,
    /// What the source knows of event time and processing time.
    Progress(Progress),
    /// Everything was read; nothing will come.
    End,
}

/// What a source knows of time, beside its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The source partition that it is about.
    pub partition: SourcePartition,
    /// No event below this event time will come from it, in microseconds.
    pub watermark: Option<Micros>,
    /// Processing time has come to this, in microseconds since 1970 (see [`RawBatch::arrival`]).
    pub arrival: Option<Micros>,
}

/// Turns raw batches into Arrow. One instance belongs to one batcher; it keeps what it learned.
pub trait Decoder: Send {
    /// Every event of the batch becomes a row or a reject.
    ///
    /// # Errors
    /// Only for what makes the whole stream unreadable; a bad event is a reject.
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded>;

    /// Finds the event behind row `row` of what `decode` made of `raw`: its offset and its text.
    /// Slow; used only when a row is rejected after decoding.
    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject;

    /// Offsets of the events behind all rows of what `decode` made of `raw`, as `locate` finds them: in
    /// the rows' order, never falling; equal where events share an offset. Decoders find them in one walk.
    fn offsets(&self, raw: &RawBatch, decoded: &Decoded) -> Vec<u64> {
        let rows = 0..decoded.rows.num_rows();
        rows.map(|row| self.locate(raw, decoded, row).offset)
            .collect()
    }

    /// The schema that would hold the whole of the batch that was decoded last, where its own does not:
    /// an evolution of it, with more fields or wider types. Rows of the batch lack something then. Only
    /// for decoders that were asked to look.
    ///
    /// # Errors
    /// `Schema` when there is no such schema.
    fn evolved(&mut self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        let _ = raw;
        Ok(None)
    }
}

/// Maps decoded rows to the table's rows, batch by batch, without memory of earlier batches.
/// One instance belongs to one batcher.
pub trait Transform: Send {
    /// The table's rows.
    ///
    /// # Errors
    /// `Data` when a value of the batch does not convert: the caller halves the batch until the row
    /// that is to blame is found, and rejects it.
    fn apply(&mut self, rows: RecordBatch) -> Result<RecordBatch>;
}

/// Aggregates rows by window, in two phases: each batch becomes partial states, of which there are
/// far fewer than rows; states are merged, and finished when a window's trigger fires. One instance
/// serves all batchers and the shard loop at once; nothing is remembered between calls.
///
/// States are rows of [`Aggregate::state_schema`]. The engine may store them, and may set their
/// window columns to another window's (sessions that merge) before they are merged or finished.
/// Results depend on the states and their order alone; an empty input makes no rows.
pub trait Aggregate: Send + Sync {
    /// Rows of a pane, as the table gets them.
    fn schema(&self) -> SchemaRef;

    /// Partial states: the group columns, then the accumulators' columns.
    fn state_schema(&self) -> SchemaRef;

    /// Where a window's start (inclusive) and end (exclusive) are in a state; both are
    /// `Timestamp(Microsecond, None)`.
    fn window_columns(&self) -> (usize, usize);

    /// The states of some rows, one row for each window and group. `rows` have the transform's
    /// columns and, behind them, `window_start` and `window_end`.
    ///
    /// # Errors
    /// `Data` when a value of the batch does not convert (see [`Transform::apply`]).
    fn partial(&self, rows: &RecordBatch) -> Result<RecordBatch>;

    /// The same states in fewer rows: one for each window and group, in the order in which they
    /// come first.
    ///
    /// # Errors
    /// `Corrupt` when they are not of this query, `Config` when a figure overflows; never `Data`.
    fn merge(&self, states: &[RecordBatch]) -> Result<RecordBatch>;

    /// The rows of the panes of all windows in `states`: by window start, then window end, then in
    /// the order in which the groups come first.
    ///
    /// # Errors
    /// As [`Aggregate::merge`]; also `Config` when an expression does not accept the figure of a
    /// group, such as a division by zero: no event is to blame, so there is nothing to reject.
    fn finish(&self, states: &[RecordBatch]) -> Result<RecordBatch>;

    /// Where columns of the input, named by a session's key, are in a state.
    ///
    /// # Errors
    /// `Config` when a state is not grouped by one of them.
    fn key_columns(&self, key: &[String]) -> Result<Vec<usize>>;

    /// What a checkpoint's fingerprint of the aggregate is made of: the SQL and the schema of states.
    fn fingerprint(&self) -> String;
}

/// Rows of one batch, split by table partition by a [`Splitter`]; opaque to the engine.
pub type Split = Box<dyn Any + Send>;

/// Splits rows by table partition. One instance belongs to one batcher.
pub trait Splitter: Send {
    /// Rows keep their order within each table partition.
    ///
    /// # Errors
    /// `Data` when a row cannot be placed (see [`Transform::apply`]).
    fn split(&mut self, rows: RecordBatch) -> Result<Split>;

    /// Whether `split` would place the rows: for rows that are kept, and split later.
    ///
    /// # Errors
    /// As [`Splitter::split`].
    fn check(&mut self, rows: &RecordBatch) -> Result<()> {
        self.split(rows.clone()).map(drop)
    }

    /// One of the same kind for one more batcher, with nothing learned yet.
    fn fresh(&self) -> Box<dyn Splitter>;
}

/// Writes the data files of one output. Append is called in source order, by one caller; the work of
/// encoding is spread over the batchers' thread pool.
#[async_trait]
pub trait TableWriter: Send {
    /// A splitter for one more batcher.
    fn splitter(&self) -> Box<dyn Splitter>;

    /// Goes on after an epoch whose record kept these runs for this output (see
    /// [`Prepared::runs`]). Called once, before anything else.
    fn resume(&mut self, runs: &[String]) {
        let _ = runs;
    }

    /// Takes the rows; waits only while too many bytes are unwritten.
    async fn append(&mut self, split: Split) -> Result<()>;

    /// Bytes held in memory: rows not yet encoded and encoded pages not yet on disk.
    fn buffered_bytes(&self) -> usize;

    /// Bytes appended to the data files since the last seal (an estimate while they are open).
    fn written_bytes(&self) -> u64;

    /// Data files open now.
    fn open_files(&self) -> usize;

    /// Does what must be done before a cut, and may take a while. Nothing is appended between it and
    /// the cut.
    async fn before_seal(&mut self) -> Result<()> {
        Ok(())
    }

    /// How many files are best made durable at once, from the next [`TableWriter::seal`] on: flow control
    /// looks for what costs least.
    fn files_in_flight(&mut self, files: usize) {
        let _ = files;
    }

    /// Cuts: all that was appended so far belongs to `epoch`. Returns at once; the files become
    /// complete and durable in [`Sealed::finish`], while the writer takes rows of the next epoch.
    fn seal(&mut self, epoch: Epoch) -> Box<dyn Sealed>;
}

/// What was appended before a cut, on its way to the disk.
#[async_trait]
pub trait Sealed: Send {
    /// Completes the files and makes them durable; they are not referred to by anything yet.
    async fn finish(self: Box<Self>) -> Result<Prepared>;
}

/// An epoch's files of one output: complete, durable, not yet visible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Rows in the files.
    pub rows: u64,
    /// Size of the files.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// What the output needs to make them visible; opaque to the engine. Null when there is nothing.
    pub content: Opaque,
    /// Every run in the checkpoint store (see [`crate::checkpoint::Checkpoints::create_run`]) that
    /// the output needs from this epoch on, also those of earlier epochs; what is not named any more
    /// is deleted. A writer that keeps runs names them in every epoch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<String>,
}

/// One output's part of one checkpoint, to be made visible.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The pipeline's id.
    pub pipeline: Arc<str>,
    /// The shard.
    pub shard: Arc<str>,
    /// The epoch of the record.
    pub epoch: Epoch,
    /// SHA-256 of the record, hexadecimal.
    pub digest: String,
    /// Path of the record in the checkpoint store.
    pub record: String,
    /// The last epoch before this one that held something for this output; 0: none.
    pub previous: Epoch,
    /// Digest of the offsets at the beginning of this epoch (equals the last commit's `offsets_to`).
    pub offsets_from: String,
    /// Digest of the offsets at its end.
    pub offsets_to: String,
    /// The shard's offsets at its end.
    pub offsets: Offsets,
    /// The shard's watermark, microseconds of event time.
    pub watermark: Option<i64>,
    /// Every window that ends at or before this event time (in microseconds) is closed; none where
    /// there are no windows.
    pub complete: Option<i64>,
    /// The files.
    pub prepared: Prepared,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Visible now, by us.
    Committed {
        /// Snapshot id or name of the publication.
        snapshot: String,
    },
    /// Was visible before: an earlier try had succeeded.
    AlreadyCommitted,
    /// Somebody else committed in between: decide again.
    Conflict,
    /// The output holds a later epoch under another owner.
    Fenced,
    /// No answer: look, never guess.
    Unknown,
}

/// What an output holds of this shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputState {
    /// Identity of the table (its UUID); none where there is no table yet.
    pub identity: Option<String>,
    /// The last epoch it holds, with its record's digest.
    pub held: Option<(Epoch, String)>,
}

/// Makes prepared files visible: a table, its late table, the rejects.
#[async_trait]
pub trait Output: Send + Sync {
    /// What it holds now; used by recovery, and to resolve unknown outcomes.
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState>;

    /// One try; never retries a conflict itself. Idempotent: a record that is held already answers
    /// [`Outcome::AlreadyCommitted`].
    async fn commit(&self, commit: &Commit) -> Result<Outcome>;

    /// Looks after what is visible: called after an epoch was acknowledged, while no commit is under
    /// way. Does a bounded piece of work, and nothing that a crash, or a failure, could spoil: a failure
    /// is logged, and the next epoch is committed all the same.
    async fn tend(&self) -> Result<()> {
        Ok(())
    }

    /// Looks after what is visible when there is time: the source has ended, or nothing has come to commit
    /// for a while. As [`Output::tend`]; answers whether it is worth another call before the next commit.
    async fn settle(&self) -> Result<bool> {
        Ok(false)
    }
}

/// Makes the decoder, transform and such of one more batcher.
pub trait BatcherFactory: Send + Sync {
    /// The decoder of one batcher.
    fn decoder(&self) -> Result<Box<dyn Decoder>>;
    /// The transform of one batcher.
    fn transform(&self) -> Result<Box<dyn Transform>>;
    /// Schema of the table's rows, after the transform.
    fn schema(&self) -> SchemaRef;
}

//! Flow control: how large a batch is, how often is committed, how many files are on their way at once.
//!
//! A [`Controller`] is told what happened ([`Fact`]) and answers with [`Sizes`]. The user gives one
//! number, the [`Goal`]'s freshness: how long after an event was read its row may become visible. The
//! least cost is the longest interval between commits that keeps it ([`cadence`]), and the sizes at
//! which a row and a file cost least, found by trying neighbours ([`climb`]). Nothing here has a clock:
//! the same facts in the same order make the same sizes.

mod cadence;
mod climb;

use crate::Micros;

use cadence::Cadence;
use climb::Climb;

/// What the user wants, and may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// From the reading of an event to its row in the table, microseconds.
    pub freshness: Micros,
    /// The memory that may be held, bytes.
    pub memory: u64,
    /// What one batch may have of it, bytes as they are read.
    pub batch: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fact {
    /// A batch went through a batcher.
    Batch {
        /// Events in it.
        rows: u64,
        /// Bytes that it held.
        bytes: u64,
        /// Time on a thread and in the loop, microseconds.
        cost: Micros,
        /// From the reading of its first event until its rows were taken into an epoch, microseconds.
        age: Micros,
        /// How many events it was to have when it was read, where it has about as many. Batches are under
        /// way while sizes change, and a trial is judged by its own alone.
        wanted: Option<u64>,
    },
    /// An epoch's files and its record are in their stores.
    Prepared {
        /// How many files.
        files: u64,
        /// From the cut until its turn came, microseconds.
        waited: Micros,
        /// From then on, microseconds.
        took: Micros,
    },
    /// An epoch is visible in every output.
    Committed {
        /// From when it was prepared until its turn came, microseconds.
        waited: Micros,
        /// From the first try on, microseconds.
        took: Micros,
    },
    /// How much of the memory budget is in use now, bytes.
    Held(u64),
}

/// What the pipeline is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Events of a batch.
    pub batch_rows: u64,
    /// An epoch ends this long after its first event, microseconds.
    pub commit_every: Micros,
    /// Files that are completed and uploaded at once.
    pub files_in_flight: u64,
}

/// Sizes of batches that are tried: each twice the one before.
const BATCH_ROWS: &[u64] = &[
    250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000,
];
const FIRST_BATCH: usize = 5;
const LANES: &[u64] = &[1, 2, 4, 8, 16, 32, 64];
const FIRST_LANES: usize = 3;
/// A batch takes a twentieth of the freshness at the most: it waits for none.
const BATCH_SHARE: i64 = 20;
/// Files on their way are worth a trial when they take so much of the freshness.
const WORTH_WHILE: f64 = 0.1;
/// Shares of the budget above which batches shrink, and below which they may grow again.
const TIGHT: f64 = 0.9;
const EASY: f64 = 0.7;

/// Finds [`Sizes`] for a [`Goal`].
#[derive(Clone, Debug)]
pub struct Controller {
    goal: Goal,
    cadence: Cadence,
    batches: Climb,
    lanes: Climb,
    /// Bytes of a row, and microseconds, as they were lately.
    row: Option<(f64, f64)>,
    /// By how many halvings batches are smaller than they would be.
    tight: u32,
}

impl Controller {
    /// A controller that knows nothing yet.
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            cadence: Cadence::new(goal.freshness),
            batches: Climb::new(BATCH_ROWS, FIRST_BATCH, 6, 0.03, 4, true),
            lanes: Climb::new(LANES, FIRST_LANES, 3, 0.05, 16, false),
            row: None,
            tight: 0,
        }
    }

    /// Something happened.
    pub fn see(&mut self, fact: Fact) {
        match fact {
            Fact::Batch {
                rows,
                bytes,
                cost,
                age,
                wanted,
            } => {
                if rows == 0 {
                    return;
                }
                let now = (bytes as f64 / rows as f64, cost as f64 / rows as f64);
                let (size, time) = self.row.unwrap_or(now);
                self.row = Some((size + (now.0 - size) / 8.0, time + (now.1 - time) / 8.0));
                self.cadence.aged(age);
                let most = self.most_rows();
                self.batches.limit(most);
                if wanted == Some(self.batches.size()) {
                    self.batches.see(now.1, most);
                }
            }
            Fact::Prepared {
                files,
                waited,
                took,
            } => {
                self.cadence.prepared(waited, took);
                // Fewer files than lanes say nothing of the lanes, and what takes no time needs none.
                let share = took as f64 / self.goal.freshness.max(1) as f64;
                if files >= self.lanes.size() && share > WORTH_WHILE {
                    self.lanes.see(took as f64 / files as f64, u64::MAX);
                }
            }
            Fact::Committed { waited, took } => self.cadence.committed(waited, took),
            Fact::Held(bytes) => {
                let share = bytes as f64 / self.goal.memory.max(1) as f64;
                if share > TIGHT {
                    self.tight = (self.tight + 1).min(BATCH_ROWS.len() as u32);
                } else if share < EASY {
                    self.tight = self.tight.saturating_sub(1);
                }
            }
        }
    }

    /// What to do now.
    pub fn sizes(&self) -> Sizes {
        let rows = self.batches.size().min(self.most_rows());
        Sizes {
            batch_rows: (rows >> self.tight).max(BATCH_ROWS[0]),
            commit_every: self.cadence.every(),
            files_in_flight: self.lanes.size(),
        }
    }

    /// What fits into memory and time.
    fn most_rows(&self) -> u64 {
        let Some((bytes, time)) = self.row else {
            return u64::MAX;
        };
        let memory = self.goal.batch as f64 / bytes.max(1.0);
        let time = (self.goal.freshness / BATCH_SHARE) as f64 / time.max(1e-6);
        memory.min(time) as u64
    }
}

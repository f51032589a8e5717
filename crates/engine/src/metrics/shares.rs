//! What each stage of the flow does with its time: shares of busy, starved and blocked.
//!
//! [`Shares`] is told what changes and when, and has no clock. What goes on now counts up to the
//! moment at which it is looked at, so a stage that has been blocked for a minute shows it before
//! that has ended. Each moment of a stage belongs to one [`Condition`]; of the batchers, each moment of
//! each thread does, and their figures are means over the threads.

use std::time::Duration;

/// A stage of the flow, in the order in which events come through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowStage {
    /// The thread that reads.
    Source,
    /// The pool of threads that decode, run the SQL and split; they encode files, too.
    Batchers,
    /// The loop that puts batches back in order, keeps windows, and gives rows to the files.
    Writer,
    /// Encoding, completing and storing files, and the record of their epoch.
    Files,
    /// Making epochs visible.
    Commit,
}

const STAGES: usize = 5;

impl FlowStage {
    /// All of them, from the source on.
    pub const ALL: [Self; STAGES] = [
        Self::Source,
        Self::Batchers,
        Self::Writer,
        Self::Files,
        Self::Commit,
    ];

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Batchers => "batchers",
            Self::Writer => "writer",
            Self::Files => "files",
            Self::Commit => "commit",
        }
    }
}

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It works, or waits for an outside system that works for it.
    Busy,
    /// It waits for input.
    Starved,
    /// It waits for what comes behind it.
    Blocked,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The shard begins, with so many threads that batch.
    Started(u32),
    /// It has ended.
    Ended,
    Source(Condition),
    Writer(Condition),
    /// The writer waits until rows that it gave to the files are out of memory; or does not any more.
    Writing(bool),
    Files(Condition),
    Commit(Condition),
    /// A batch waits for a thread.
    Handed,
    /// A thread took it.
    Begun,
    /// It is done, and waits for the writer.
    Done,
    /// The writer took it.
    Taken,
}

/// How many threads are busy, starved and blocked.
type Parts = [u32; 3];

/// Time in each condition: busy, starved, blocked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent(pub(crate) [Duration; 3]);

impl Spent {
    fn add(&mut self, parts: Parts, time: Duration) {
        let all = parts.iter().sum::<u32>().max(1);
        for (sum, part) in self.0.iter_mut().zip(parts) {
            *sum += time * part / all;
        }
    }

    fn shares(self) -> [f64; 3] {
        let all = self.0.iter().sum::<Duration>().as_secs_f64();
        self.0.map(|one| {
            if all > 0.0 {
                one.as_secs_f64() / all
            } else {
                0.0
            }
        })
    }
}

/// The window that shares are of: so many slots, and the one that is not full yet.
const SLOT: Duration = Duration::from_millis(500);
const SLOTS: u64 = 20;
/// A stage that was blocked for less than this share was not held up.
const HELD_UP: f64 = 0.1;

/// Totals, and the last seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    total: Spent,
    slots: [(u64, Spent); SLOTS as usize + 1],
}

impl Kept {
    fn add(&mut self, parts: Parts, from: Duration, to: Duration) {
        self.total.add(parts, to.saturating_sub(from));
        let (first, last) = (slot_of(from), slot_of(to));
        for number in first.max(last.saturating_sub(SLOTS))..=last {
            let begin = SLOT.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
            let time = to.min(begin + SLOT).saturating_sub(from.max(begin));
            let slot = &mut self.slots[(number % (SLOTS + 1)) as usize];
            if slot.0 != number {
                *slot = (number, Spent::default());
            }
            slot.1.add(parts, time);
        }
    }

    /// Of the window that ends at `now`.
    fn shares(&self, now: Duration) -> [f64; 3] {
        let last = slot_of(now);
        let mut sum = Spent::default();
        for (_, spent) in self.slots.iter().filter(|(n, _)| n + SLOTS >= last) {
            for (sum, one) in sum.0.iter_mut().zip(spent.0) {
                *sum += one;
            }
        }
        sum.shares()
    }
}

fn slot_of(moment: Duration) -> u64 {
    (moment.as_millis() / SLOT.as_millis()) as u64
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    source: Option<Condition>,
    writer: Option<Condition>,
    files: Option<Condition>,
    commit: Option<Condition>,
    writing: bool,
    threads: u32,
    handed: u32,
    at_work: u32,
    ready: u32,
    since: Duration,
    kept: [Kept; STAGES],
}

impl Shares {
    /// Something changes at `now`, which is no earlier than it was before.
    pub(crate) fn change(&mut self, now: Duration, change: Change) {
        self.count(now);
        match change {
            Change::Started(threads) => {
                *self = Self {
                    since: self.since,
                    kept: self.kept,
                    threads,
                    source: Some(Condition::Busy),
                    writer: Some(Condition::Starved),
                    files: Some(Condition::Starved),
                    commit: Some(Condition::Starved),
                    ..Self::default()
                };
            }
            Change::Ended => {
                *self = Self {
                    since: self.since,
                    kept: self.kept,
                    ..Self::default()
                };
            }
            Change::Source(condition) => self.source = Some(condition),
            Change::Writer(condition) => self.writer = Some(condition),
            Change::Writing(waits) => self.writing = waits,
            Change::Files(condition) => self.files = Some(condition),
            Change::Commit(condition) => self.commit = Some(condition),
            Change::Handed => self.handed += 1,
            Change::Begun => {
                self.handed = self.handed.saturating_sub(1);
                self.at_work += 1;
            }
            Change::Done => {
                self.at_work = self.at_work.saturating_sub(1);
                self.ready += 1;
            }
            Change::Taken => self.ready = self.ready.saturating_sub(1),
        }
    }

    /// What has gone on since the last change counts as it has been.
    fn count(&mut self, now: Duration) {
        let from = self.since;
        self.since = now.max(from);
        if now <= from {
            return;
        }
        for stage in FlowStage::ALL {
            if let Some(parts) = self.parts(stage) {
                self.kept[stage as usize].add(parts, from, now);
            }
        }
    }

    /// How much of the stage is busy, starved and blocked; none: it does not run.
    fn parts(&self, stage: FlowStage) -> Option<Parts> {
        let condition = match stage {
            FlowStage::Batchers => return self.batchers(),
            FlowStage::Source => self.source?,
            FlowStage::Writer if self.writing => Condition::Blocked,
            FlowStage::Writer => self.writer?,
            FlowStage::Files if self.writing => Condition::Busy,
            FlowStage::Files => self.files?,
            FlowStage::Commit => self.commit?,
        };
        Some(match condition {
            Condition::Busy => [1, 0, 0],
            Condition::Starved => [0, 1, 0],
            Condition::Blocked => [0, 0, 1],
        })
    }

    /// A thread without a batch encodes while one waits for a thread; it is blocked while the source
    /// may not read since the writer does not take what is done; else it has nothing to do.
    fn batchers(&self) -> Option<Parts> {
        if self.threads == 0 {
            return None;
        }
        let threads = self.threads;
        let at_work = self.at_work.min(threads);
        let rest = threads - at_work;
        Some(if self.handed > 0 {
            [threads, 0, 0]
        } else if self.source == Some(Condition::Blocked) && self.ready > 0 {
            [at_work, 0, rest]
        } else {
            [at_work, rest, 0]
        })
    }

    /// What is known at `now`.
    pub(crate) fn look(&self, now: Duration) -> Look {
        let mut all = self.clone();
        all.count(now);
        let shares = all.kept.map(|kept| kept.shares(all.since));
        Look {
            spent: all.kept.map(|kept| kept.total),
            shares,
            bottleneck: bottleneck(&shares),
        }
    }
}

/// A look at all stages, in the order of [`FlowStage::ALL`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Look {
    /// Since the first start.
    pub(crate) spent: [Spent; STAGES],
    /// Busy, starved and blocked in the last ten seconds; all zero where it did not run.
    pub(crate) shares: [[f64; 3]; STAGES],
    pub(crate) bottleneck: Option<FlowStage>,
}

/// The stage that the others wait for: of those behind the last one that was held up, the one that was
/// busy most, where that was at least half as long; the source where nothing was held up and it was busy
/// for half of the time.
fn bottleneck(shares: &[[f64; 3]; STAGES]) -> Option<FlowStage> {
    let held_up = shares.iter().rposition(|[_, _, held]| *held >= HELD_UP);
    let busy = |stage: &FlowStage| shares[*stage as usize][0];
    match held_up {
        Some(at) => {
            let behind = FlowStage::ALL.into_iter().skip(at + 1);
            let most = behind.max_by(|a, b| busy(a).total_cmp(&busy(b)))?;
            (busy(&most) >= shares[at][2] / 2.0).then_some(most)
        }
        None => (busy(&FlowStage::Source) >= 0.5).then_some(FlowStage::Source),
    }
}

#[cfg(test)]
#[path = "shares_tests.rs"]
mod tests;

//! Upkeep between the commits of a pipeline: small files become few, and deleted rows are left out, by
//! the one that commits, so that nothing of this pipeline conflicts with it. The index of keys follows in
//! the same step: it reads the keys of the files that came, and knows that each is the row of its key.
//! That holds for what is done a little after each commit, for what is done at times, and for what is done
//! when there is time: a writer of its own would begin again and again, since each commit deletes from the
//! files that it has read.
//!
//! Killed anywhere the table is right; the index reflects an older snapshot then, and is made anew.

use std::time::{Duration, Instant};

use calve_engine::{
    error::{Error, Policy, Result},
    fault,
};
use tokio::sync::Mutex;

use super::{
    output::ChangesOutput,
    resolve::relocate,
    state::{State, blocking},
};
use crate::iceberg::compact::{
    CompactOptions, Due, Failed, Merged, Spared, Tiers, Turn, merge, without_dead_manifests,
};

/// When files of a table of changes are merged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upkeep {
    /// After each commit; none: never.
    pub tiers: Option<Tiers>,
    /// After so long each time, as [`crate::iceberg::compact()`] does it; none: never.
    pub every: Option<(Duration, CompactOptions)>,
    /// When the source has ended or is quiet; none: never.
    pub settle: Option<Settle>,
}

/// Files are written again without the rows that are deleted from them, so that readers find no deletes:
/// those first that have lost most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settle {
    /// What is made has at most about this size, in bytes.
    pub target_file_size: u64,
    /// So many bytes of files at the most, or as many as were earned and not used yet, where these are more:
    /// each byte that is committed earns four, which is what it costs to write a file again that has lost one
    /// row in five.
    pub bytes: u64,
}

/// Bytes that a byte earns.
const EARNED: u64 = 4;

/// Upkeep, and when the next one is due.
pub(super) struct Turns {
    upkeep: Upkeep,
    now: Mutex<Now>,
}

/// Where the upkeep at times stands.
struct Now {
    /// When the last turn ended; before the first, the start.
    ended: Instant,
    /// The turn that has begun; its steps come before anything else.
    turn: Option<Turn>,
    /// What is not merged after a commit, for a while.
    spared: Spared,
    /// Something was committed since files were settled last.
    committed: bool,
    /// Bytes that may be written for what was committed.
    earned: u64,
    /// Until the next commit.
    settling: Option<Settling>,
}

/// Files without deletes are in the making.
#[derive(Debug, Default)]
struct Settling {
    /// So many bytes more, at the most.
    left: u64,
    turn: Option<Turn>,
}

impl Turns {
    pub(super) fn new(upkeep: Upkeep) -> Self {
        let now = Now {
            ended: Instant::now(),
            turn: None,
            spared: Spared::default(),
            committed: false,
            earned: 0,
            settling: None,
        };
        Self {
            upkeep,
            now: Mutex::new(now),
        }
    }

    /// So many bytes were committed.
    pub(super) async fn committed(&self, bytes: u64) {
        let mut now = self.now.lock().await;
        now.committed = true;
        now.earned = now.earned.saturating_add(bytes.saturating_mul(EARNED));
        now.settling = None;
    }
}

/// What a step is for.
enum Work<'a> {
    Tiers(&'a Tiers, &'a mut Spared),
    /// The turn begins with the step, where none has begun.
    Turn(&'a CompactOptions, &'a mut Option<Turn>),
    Settle(&'a Settle, &'a mut Settling),
}

impl Work<'_> {
    fn turn(&mut self) -> Option<&mut Turn> {
        match self {
            Self::Tiers(..) => None,
            Self::Turn(_, turn) => turn.as_mut(),
            Self::Settle(_, settling) => settling.turn.as_mut(),
        }
    }

    fn done(&self) -> &'static str {
        match self {
            Self::Tiers(..) | Self::Turn(..) => "merged small files",
            Self::Settle(..) => "wrote files again without their deleted rows",
        }
    }

    /// These could not be merged.
    fn leave_out(&mut self, files: &[String], error: &Error) {
        let count = files.len();
        if let Some(turn) = self.turn() {
            tracing::warn!(files = count, %error, "files are left out of this turn of compaction");
            turn.leave(files);
        } else if let Self::Tiers(_, spared) = self {
            if spared.leave(files) {
                tracing::warn!(
                    files = count,
                    %error,
                    "files cannot be merged: others are, and these are tried again later"
                );
            } else {
                tracing::debug!(files = count, %error, "files still cannot be merged");
            }
        }
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Others have committed: the next commit takes that in first.
    NotNow,
    /// Nothing is due.
    Nothing,
    /// No row of the table is deleted.
    NoDeletes,
    /// Some files cannot be merged.
    LeftOut,
    /// Perhaps there is more to do.
    Merged,
}

impl ChangesOutput {
    /// One step, if there is something to do and the index knows the table as it is.
    pub(super) async fn look_after(&self) -> Result<()> {
        let Upkeep { tiers, every, .. } = &self.turns.upkeep;
        let mut now = self.turns.now.lock().await;
        if let Some((every, options)) = every
            && (now.turn.is_some() || now.ended.elapsed() >= *every)
        {
            let step = self.take_step(Work::Turn(options, &mut now.turn)).await;
            // A turn that fails is over, too: what fails would fail again after each commit.
            if !matches!(step, Ok(Step::Merged | Step::LeftOut | Step::NotNow)) {
                (now.ended, now.turn) = (Instant::now(), None);
            }
            return step.map(drop);
        }
        if let Some(tiers) = tiers {
            self.take_step(Work::Tiers(tiers, &mut now.spared)).await?;
        }
        Ok(())
    }

    /// One step towards files without deletes; answers whether to go on.
    pub(super) async fn settle_some(&self) -> Result<bool> {
        let Some(settle) = &self.turns.upkeep.settle else {
            return Ok(false);
        };
        let mut now = self.turns.now.lock().await;
        let Now {
            committed,
            earned,
            settling,
            ..
        } = &mut *now;
        if std::mem::take(committed) {
            *settling = Some(Settling {
                left: settle.bytes.max(*earned),
                turn: None,
            });
        }
        let Some(open) = settling else {
            return Ok(false);
        };
        let before = open.left;
        let step = self.take_step(Work::Settle(settle, open)).await;
        *earned = earned.saturating_sub(before - open.left);
        if matches!(step, Ok(Step::NoDeletes)) {
            *earned = 0;
        }
        let goes_on = matches!(step, Ok(Step::Merged | Step::LeftOut));
        if !goes_on {
            *settling = None;
        }
        step.map(|_| goes_on)
    }

    async fn take_step(&self, work: Work<'_>) -> Result<Step> {
        let mut state = self.state.lock().await;
        // Dropped or failed on the way, the index holds half of a step.
        let mut taken = std::mem::take(&mut *state);
        let done = self.step(&mut taken, work).await;
        if done.is_err() {
            taken.forget();
        }
        *state = taken;
        done
    }

    async fn step(&self, state: &mut State, mut work: Work<'_>) -> Result<Step> {
        let handle = &self.handle;
        let known = handle.load_existing().await?;
        let before = known.metadata.current_snapshot_id();
        if known.metadata.uuid() != handle.uuid || !state.is_at(before) {
            return Ok(Step::NotNow);
        }
        handle.live(&known, &mut state.live).await?;
        let mut options = self.rewrite;
        let due = match &mut work {
            Work::Tiers(tiers, spared) => {
                spared.begin(&state.live);
                Due::ByTiers(tiers, spared)
            }
            Work::Turn(whole, turn) => {
                options.memory_bytes = whole.memory_bytes;
                Due::Whole(whole, turn.get_or_insert_with(|| Turn::new(&known)))
            }
            Work::Settle(settle, Settling { left, turn }) => Due::Deleted {
                target_file_size: settle.target_file_size,
                bytes: *left,
                turn: turn.get_or_insert_with(|| Turn::new(&known)),
            },
        };
        let pool = self.pool.clone();
        let merged = merge(handle, &known, &mut state.live, due, &options, pool).await;
        let merged = match merged {
            Ok(merged) => merged,
            Err(Failed { error, files }) if !files.is_empty() => {
                work.leave_out(&files, &error);
                // What is not about these files would fail for others, too.
                let policy = error.kind().decide().0;
                let passes = matches!(policy, Policy::Retry | Policy::RetryBriefly);
                return Ok(if passes { Step::NotNow } else { Step::LeftOut });
            }
            Err(failed) => return Err(failed.error),
        };
        let Some(Merged {
            snapshot,
            files,
            done,
        }) = merged
        else {
            if !matches!(work, Work::Settle(..)) || state.live.deletes().next().is_some() {
                return Ok(Step::Nothing);
            }
            if let Some(snapshot) = without_dead_manifests(handle).await? {
                self.reached(state, before, snapshot.parse().ok(), &[])
                    .await?;
            }
            return Ok(Step::NoDeletes);
        };
        let Some(snapshot) = snapshot else {
            return Ok(Step::NotNow);
        };
        if let Some(turn) = work.turn() {
            turn.leave(&files);
        }
        if let Work::Settle(_, settling) = &mut work {
            settling.left = settling.left.saturating_sub(done.bytes_before);
        }
        fault::point("changes.merged")?;
        self.follow(state, files.clone()).await?;
        self.reached(state, before, Some(snapshot), &files).await?;
        tracing::info!(
            files_before = done.files_before,
            files_after = done.files_after,
            bytes = done.bytes_after,
            rows_deleted = done.rows_deleted,
            "{}",
            work.done()
        );
        Ok(Step::Merged)
    }

    /// Upkeep has made a snapshot of the table as it was `before`, with these files.
    async fn reached(
        &self,
        state: &mut State,
        before: Option<i64>,
        snapshot: Option<i64>,
        files: &[String],
    ) -> Result<()> {
        let known = self.handle.load_existing().await?;
        let now = known.metadata.current_snapshot();
        let ours = now.filter(|now| {
            Some(now.snapshot_id()) == snapshot && now.parent_snapshot_id() == before
        });
        if let Some(now) = ours {
            self.handle.live(&known, &mut state.live).await?;
            state.merged(now.snapshot_id())
        } else {
            // Somebody was in between: what they added is read before the next commit.
            state.wrote(files);
            Ok(())
        }
    }

    /// Rows are in these files now.
    pub(super) async fn follow(&self, state: &mut State, files: Vec<String>) -> Result<()> {
        let mut index = state.take_index()?;
        let reading = self.reading.clone();
        let (index, done) = blocking(move || {
            let mut done = Ok(());
            for path in files {
                done = done.and_then(|()| relocate(&mut index, &reading.columns, &path));
            }
            (index, done)
        })
        .await?;
        state.index = Some(index);
        done
    }
}

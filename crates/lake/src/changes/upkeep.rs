//! Upkeep between the commits of a pipeline: small files become few, and deleted rows are left out, by
//! the one that commits, so that nothing of this pipeline conflicts with it. The index of keys follows in
//! the same step: it reads the keys of the files that came, and knows that each is the row of its key.
//! That holds for what is done a little after each commit, and for what is done at times: a writer of its
//! own would begin again and again, since each commit deletes from the files that it has read.
//!
//! Killed anywhere the table is right; the index reflects an older snapshot then, and is made anew.

use std::time::{Duration, Instant};

use calve_engine::{error::Result, fault};
use tokio::sync::Mutex;

use super::{
    output::ChangesOutput,
    resolve::relocate,
    state::{State, blocking},
};
use crate::iceberg::compact::{CompactOptions, Due, Merged, Tiers, merge};

/// When files of a table of changes are merged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upkeep {
    /// After each commit; none: never.
    pub tiers: Option<Tiers>,
    /// After so long each time, as [`crate::iceberg::compact()`] does it; none: never.
    pub every: Option<(Duration, CompactOptions)>,
}

/// Upkeep, and when the next one is due.
pub(super) struct Turns {
    upkeep: Upkeep,
    /// When all that was due at the last turn had been done; before the first, the start.
    last: Mutex<Instant>,
}

impl Turns {
    pub(super) fn new(upkeep: Upkeep) -> Self {
        Self {
            upkeep,
            last: Mutex::new(Instant::now()),
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
    /// Perhaps there is more to do.
    Merged,
}

impl ChangesOutput {
    /// One step of each kind, if there is something to do and the index knows the table as it is.
    pub(super) async fn look_after(&self) -> Result<()> {
        let Upkeep { tiers, every } = self.turns.upkeep;
        if let Some(tiers) = tiers {
            self.take_step(&Due::ByTiers(tiers)).await?;
        }
        let Some((every, options)) = every else {
            return Ok(());
        };
        let mut last = self.turns.last.lock().await;
        // A turn takes as many steps, each after a commit, as there is something to do.
        if last.elapsed() >= every && self.take_step(&Due::Whole(options)).await? == Step::Nothing {
            *last = Instant::now();
        }
        Ok(())
    }

    async fn take_step(&self, due: &Due) -> Result<Step> {
        let mut state = self.state.lock().await;
        // Dropped or failed on the way, the index holds half of a step.
        let mut taken = std::mem::take(&mut *state);
        let done = self.step(&mut taken, due).await;
        if done.is_err() {
            taken.forget();
        }
        *state = taken;
        done
    }

    async fn step(&self, state: &mut State, due: &Due) -> Result<Step> {
        let handle = &self.handle;
        let known = handle.load_existing().await?;
        let before = known.metadata.current_snapshot_id();
        if known.metadata.uuid() != handle.uuid || !state.is_at(before) {
            return Ok(Step::NotNow);
        }
        handle.live(&known, &mut state.live).await?;
        let (options, pool) = (&self.rewrite, self.pool.clone());
        let merged = merge(handle, &known, &mut state.live, due, options, pool).await?;
        let Some(Merged {
            snapshot: Some(snapshot),
            files,
            done,
        }) = merged
        else {
            return Ok(Step::Nothing);
        };
        fault::point("changes.merged")?;
        self.follow(state, files.clone()).await?;
        let known = handle.load_existing().await?;
        let ours = known
            .metadata
            .current_snapshot()
            .is_some_and(|now| now.snapshot_id() == snapshot && now.parent_snapshot_id() == before);
        if ours {
            handle.live(&known, &mut state.live).await?;
            state.merged(snapshot)?;
        } else {
            // Somebody was in between: what they added is read before the next commit.
            state.wrote(&files);
        }
        tracing::info!(
            files_before = done.files_before,
            files_after = done.files_after,
            bytes = done.bytes_after,
            rows_deleted = done.rows_deleted,
            "merged small files"
        );
        Ok(Step::Merged)
    }

    /// Rows are in these files now.
    async fn follow(&self, state: &mut State, files: Vec<String>) -> Result<()> {
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

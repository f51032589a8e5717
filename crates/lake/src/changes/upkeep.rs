//! Upkeep between the commits of a pipeline: small files become few, and deleted rows are left out, by
//! the one that commits, so that nothing of this pipeline conflicts with it. The index of keys follows in
//! the same step: it reads the keys of the files that came, and knows that each is the row of its key.
//!
//! Killed anywhere the table is right; the index reflects an older snapshot then, and is made anew.

use calve_engine::{error::Result, fault};

use super::{
    output::ChangesOutput,
    resolve::relocate,
    state::{State, blocking},
};
use crate::iceberg::compact::{Merged, Tiers, merge};

impl ChangesOutput {
    /// One step, if there is something to do and the index knows the table as it is.
    pub(super) async fn look_after(&self, tiers: &Tiers) -> Result<()> {
        let mut state = self.state.lock().await;
        // Dropped or failed on the way, the index holds half of a step.
        let mut taken = std::mem::take(&mut *state);
        let done = self.step(&mut taken, tiers).await;
        if done.is_err() {
            taken.forget();
        }
        *state = taken;
        done
    }

    async fn step(&self, state: &mut State, tiers: &Tiers) -> Result<()> {
        let handle = &self.handle;
        let known = handle.load_existing().await?;
        let before = known.metadata.current_snapshot_id();
        // Otherwise others have committed: the next commit takes that in first.
        if known.metadata.uuid() != handle.uuid || !state.is_at(before) {
            return Ok(());
        }
        handle.live(&known, &mut state.live).await?;
        let (options, pool) = (&self.rewrite, self.pool.clone());
        let merged = merge(handle, &known, &mut state.live, tiers, options, pool).await?;
        let Some(Merged {
            snapshot: Some(snapshot),
            files,
            done,
        }) = merged
        else {
            return Ok(());
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
        Ok(())
    }

    /// Rows are in these files now.
    async fn follow(&self, state: &mut State, files: Vec<String>) -> Result<()> {
        let mut index = state.take_index()?;
        let reading = self.reading.clone();
        let (index, done) = blocking(move || {
            let mut done = Ok(());
            for path in files {
                done = done
                    .and_then(|()| relocate(&mut index, &reading.codec, &reading.columns, &path));
            }
            (index, done)
        })
        .await?;
        state.index = Some(index);
        done
    }
}

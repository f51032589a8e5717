//! The preparer: waits until an epoch's files are durable and creates its record, one epoch after
//! the other. The record is the point of no return.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use calve_model::{Epoch, flow::Fact};
use tokio::sync::mpsc;

use super::{
    LATE, REJECTS, TABLE, committer,
    cut::Cut,
    flow::{self, Flow},
    ground,
    watched::watched,
};
use crate::{
    checkpoint::{Checkpoints, Record},
    error::{Error, Result},
    fault,
    metrics::{Change, Condition, Metrics, Stage},
    windows::SavedWindows,
};

pub(super) struct Preparer {
    pub(super) checkpoints: Checkpoints,
    /// The record that the next one follows.
    pub(super) base: Record,
    pub(super) metrics: Metrics,
    pub(super) flow: Flow,
    pub(super) retry_for: Duration,
}

impl Preparer {
    pub(super) async fn run(
        mut self,
        mut cuts: mpsc::Receiver<Cut>,
        prepared: mpsc::Sender<committer::Ready>,
    ) -> Result<Epoch> {
        while let Some(mut cut) = cuts.recv().await {
            self.metrics.change(Change::Files(Condition::Busy));
            let turn = ground::now();
            let waited = turn.saturating_sub(cut.at);
            let begun = Instant::now();
            let (table, rejects, late) = cut
                .finish
                .ended()
                .await
                .map_err(|e| Error::internal("a task of the writer died").because(e))??;
            self.metrics
                .stage(Stage::Prepare, begun.elapsed().as_secs_f64());
            fault::point("prepare.after_files")?;
            let mut record = self.base.following();
            record.offsets = cut.offsets;
            record.watermarks = cut.watermarks;
            record.totals = cut.totals;
            record.windows = cut.windows;
            record.drained = cut.drained;
            let mut dead_runs = cut.dead_runs;
            let files = table.files + late.as_ref().map_or(0, |late| late.files);
            let parts = [(TABLE, Some(table)), (REJECTS, rejects), (LATE, late)];
            for (name, part) in parts {
                if let (Some(output), Some(mut part)) = (record.outputs.get_mut(name), part) {
                    let before =
                        std::mem::replace(&mut output.runs, std::mem::take(&mut part.runs));
                    dead_runs.extend(before.into_iter().filter(|run| !output.runs.contains(run)));
                    let holds = part.files > 0 || !part.content.is_null();
                    output.prepared = holds.then_some(part);
                }
            }
            let begun = Instant::now();
            let checkpoints = &self.checkpoints;
            let digest = committer::retrying("create a checkpoint record", self.retry_for, || {
                checkpoints.create(&record)
            })
            .await?;
            self.metrics
                .stage(Stage::Checkpoint, begun.elapsed().as_secs_f64());
            self.flow.see(Fact::Prepared {
                files,
                waited: flow::micros(waited),
                took: flow::micros(ground::since(turn)),
            });
            for name in &dead_runs {
                fault::point("windows.each_dead_run")?;
                // What cannot be deleted now is deleted by the next start.
                if let Err(error) = self.checkpoints.delete_run(name).await {
                    tracing::warn!(%error, run = name, "cannot delete a run that is not needed any more");
                }
            }
            // They may be large, and only a restart needs them.
            record.windows = record.windows.as_ref().map(SavedWindows::emptied);
            let record = Arc::new(record);
            self.base = (*record).clone();
            self.metrics.set_behind(prepared.capacity() == 0);
            let metrics = &self.metrics;
            let sent = watched(prepared.send((record, digest, ground::now())), |waits| {
                if waits {
                    metrics.change(Change::Files(Condition::Blocked));
                }
            });
            if sent.await.is_err() {
                std::future::pending::<()>().await;
            }
            self.metrics.change(Change::Files(Condition::Starved));
        }
        Ok(self.base.epoch)
    }
}

//! The committer: makes prepared epochs visible in every output, in epoch order, never N+1 before N.
//! The one place that retries: an unavailable server is tried again, a conflict is decided again, and
//! an unknown outcome is looked up, never guessed.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use calve_model::{Epoch, Offsets, flow::Fact};
use tokio::sync::{mpsc, watch};

use super::{
    LATE, TABLE,
    flow::{self, Flow},
    ground::{self, Moment},
};
use crate::{
    checkpoint::{Checkpoints, Record, offsets_digest},
    error::{Error, Policy, Result},
    fault,
    metrics::{Change, Condition, Metrics},
    seams::{Commit, Outcome, Output},
};

/// Records below the newest that stay until the next deletion; deleting is not free.
const RETIRE_AFTER: u64 = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a full disk is tried again: somebody's cleaning may be about to end.
const BRIEFLY: Duration = Duration::from_secs(2);

/// A record, its digest, and since when it has been prepared.
pub(super) type Ready = (Arc<Record>, String, Moment);

pub(super) struct Committer {
    pub(super) checkpoints: Checkpoints,
    pub(super) outputs: BTreeMap<String, Arc<dyn Output>>,
    pub(super) metrics: Metrics,
    pub(super) acks: watch::Sender<Offsets>,
    pub(super) flow: Flow,
    pub(super) retry_for: Duration,
    pub(super) settle_after: Duration,
}

impl Committer {
    /// Commits what earlier owners prepared, to the outputs that lack it.
    pub(super) async fn recover(
        &self,
        missing: Vec<(Arc<Record>, String, Vec<String>)>,
    ) -> Result<()> {
        for (record, digest, outputs) in missing {
            self.metrics.change(Change::Commit(Condition::Busy));
            tracing::info!(
                epoch = record.epoch.0,
                "committing an epoch that an earlier run prepared"
            );
            for name in outputs {
                self.commit(&record, &digest, &name).await?;
            }
        }
        self.metrics.change(Change::Commit(Condition::Starved));
        Ok(())
    }

    pub(super) async fn run(self, mut prepared: mpsc::Receiver<Ready>) -> Result<()> {
        let mut newest = Epoch::NONE;
        let mut retired = Epoch::NONE;
        // What earlier owners prepared was committed just now.
        let mut settled = false;
        loop {
            let next = tokio::select! {
                biased;
                next = prepared.recv() => next,
                () = ground::sleep(self.settle_after), if !settled => {
                    self.metrics.change(Change::Commit(Condition::Busy));
                    // Closed: the run is to end.
                    let wanted = || !prepared.is_empty() || prepared.is_closed();
                    settle(&self.outputs, wanted).await;
                    settled = true;
                    self.metrics.change(Change::Commit(Condition::Starved));
                    continue;
                }
            };
            let Some((record, digest, since)) = next else {
                break;
            };
            self.metrics.change(Change::Commit(Condition::Busy));
            let turn = ground::now();
            for name in self.outputs.keys() {
                self.commit(&record, &digest, name).await?;
                fault::point("commit.between_outputs")?;
            }
            self.flow.see(Fact::Committed {
                waited: flow::micros(turn.saturating_sub(since)),
                took: flow::micros(ground::since(turn)),
            });
            newest = record.epoch;
            self.metrics.acknowledged();
            // The reader may have ended before; then there is nobody to tell.
            let _ = self.acks.send(record.offsets.clone());
            for (name, output) in &self.outputs {
                if let Err(error) = output.tend().await {
                    tracing::warn!(%error, output = name, "cannot look after the output now");
                }
            }
            if newest.0 >= retired.0 + RETIRE_AFTER {
                self.checkpoints.retire(newest).await?;
                retired = newest;
            }
            settled = false;
            self.metrics.change(Change::Commit(Condition::Starved));
        }
        if newest > retired {
            self.checkpoints.retire(newest).await?;
        }
        Ok(())
    }

    async fn commit(&self, record: &Arc<Record>, digest: &str, name: &str) -> Result<()> {
        let (Some(output), Some(part)) = (self.outputs.get(name), record.outputs.get(name)) else {
            return Ok(());
        };
        let Some(prepared) = &part.prepared else {
            return Ok(());
        };
        let commit = Commit {
            pipeline: Arc::clone(self.checkpoints.pipeline()),
            shard: Arc::clone(self.checkpoints.shard()),
            epoch: record.epoch,
            digest: digest.to_owned(),
            record: self.checkpoints.path(record.epoch),
            previous: part.previous,
            offsets_from: part.previous_offsets.clone(),
            offsets_to: offsets_digest(&record.offsets),
            offsets: record.offsets.clone(),
            watermark: record.watermarks.clone().current(),
            complete: record.complete(),
            prepared: prepared.clone(),
        };
        let begun = ground::now();
        fault::passed("commit.before").await?;
        let tried = retrying("commit", self.retry_for, || async {
            let begun = ground::now();
            let outcome = output.commit(&commit).await;
            let label = outcome.as_ref().map_or("failed", name_of);
            self.metrics
                .commit_tried(name, label, ground::since(begun).as_secs_f64());
            match outcome? {
                Outcome::Committed { snapshot } => Ok(Some(snapshot)),
                Outcome::AlreadyCommitted => Ok(None),
                Outcome::Conflict => Err(Error::conflict("another writer committed in between")),
                Outcome::Fenced => Err(Error::fenced(format!(
                    "the {name} holds a later epoch of another owner: pipeline={} epoch={}",
                    commit.pipeline, commit.epoch
                ))
                .hint("only one process may run a pipeline; stop the other, or leave it to it")),
                Outcome::Unknown => self.look(output, &commit).await,
            }
        });
        let snapshot = tried.await?;
        fault::point("commit.after")?;
        self.metrics.committed(name, prepared, snapshot.clone());
        if name == LATE {
            tracing::info!(
                epoch = record.epoch.0,
                rows = prepared.rows,
                "late rows committed"
            );
        } else if name == TABLE {
            let (ms, rows, files) = (
                ground::since(begun).as_millis() as u64,
                prepared.rows,
                prepared.files,
            );
            tracing::info!(
                epoch = record.epoch.0,
                rows,
                files,
                bytes = prepared.bytes,
                ms,
                snapshot,
                "committed"
            );
        } else {
            tracing::warn!(
                epoch = record.epoch.0,
                rejects = prepared.rows,
                "rejects written"
            );
        }
        Ok(())
    }

    /// No answer came: what the output holds decides.
    async fn look(&self, output: &Arc<dyn Output>, commit: &Commit) -> Result<Option<String>> {
        let state = output.state(&commit.pipeline, &commit.shard).await?;
        match state.held {
            Some((epoch, digest)) if epoch == commit.epoch && digest == commit.digest => Ok(None),
            _ => Err(Error::unavailable(
                "no answer to a commit, and it is not there",
            )),
        }
    }
}

/// Looks after outputs, step by step, until they want no more of it or something else is `wanted`.
pub(super) async fn settle(outputs: &BTreeMap<String, Arc<dyn Output>>, wanted: impl Fn() -> bool) {
    for (name, output) in outputs {
        while !wanted() {
            match output.settle().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, output = name, "cannot look after the output now");
                    break;
                }
            }
        }
    }
}

fn name_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Committed { .. } => "committed",
        Outcome::AlreadyCommitted => "already_committed",
        Outcome::Conflict => "conflict",
        Outcome::Fenced => "fenced",
        Outcome::Unknown => "unknown",
    }
}

/// Tries until it succeeds, fails for good, or has failed for `limit`; pauses grow from try to try.
pub(super) async fn retrying<T, F: Future<Output = Result<T>>>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let begun = ground::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let limit = match error.kind().decide().0 {
            Policy::Retry => limit,
            Policy::RetryBriefly => limit.min(BRIEFLY),
            Policy::Reject | Policy::Stop => return Err(error),
        };
        if ground::since(begun) >= limit {
            return Err(error);
        }
        tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "cannot {what} now, trying again");
        ground::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::seams::OutputState;

    /// Wants so many calls; its last one fails, if it is to.
    struct Wants {
        calls: AtomicUsize,
        most: usize,
        fails: bool,
    }

    #[async_trait]
    impl Output for Wants {
        async fn state(&self, _: &str, _: &str) -> Result<OutputState> {
            Ok(OutputState::default())
        }

        async fn commit(&self, _: &Commit) -> Result<Outcome> {
            Ok(Outcome::AlreadyCommitted)
        }

        async fn settle(&self) -> Result<bool> {
            let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            match calls == self.most {
                true if self.fails => Err(Error::unavailable("not now")),
                last => Ok(!last),
            }
        }
    }

    #[tokio::test]
    async fn outputs_are_settled_until_they_want_no_more_or_something_else_is_wanted() {
        for (fails, limit, first, second) in [
            (false, 100, 3, 2),
            (true, 100, 3, 2),
            (false, 2, 2, 0),
            (false, 4, 3, 1),
            (false, 0, 0, 0),
        ] {
            let of = |most| {
                Arc::new(Wants {
                    calls: AtomicUsize::new(0),
                    most,
                    fails,
                })
            };
            let (a, b) = (of(3), of(2));
            let outputs: BTreeMap<String, Arc<dyn Output>> = BTreeMap::from([
                ("a".to_owned(), Arc::clone(&a) as Arc<dyn Output>),
                ("b".to_owned(), Arc::clone(&b) as Arc<dyn Output>),
            ]);
            let calls = |of: &Wants| of.calls.load(Ordering::Relaxed);
            settle(&outputs, || calls(&a) + calls(&b) >= limit).await;
            assert_eq!((calls(&a), calls(&b)), (first, second), "{fails} {limit}");
        }
    }
}

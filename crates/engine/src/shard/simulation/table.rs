//! The table of the simulation: a writer of files, and an output with the rules of the Iceberg one.
//! And the real rejects, whose calls may fail as all others.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use calve_model::Epoch;

use super::{
    clock,
    plan::WIDTH,
    process::Process,
    source::column,
    world::{Event, number},
};
use crate::{
    error::{Error, Result},
    opaque::Opaque,
    rejects::{RejectLine, RejectsOutput},
    seams::{Commit, Outcome, Output, OutputState, Prepared, Sealed, Split, Splitter, TableWriter},
};

struct SimSplitter;

impl Splitter for SimSplitter {
    fn split(&mut self, rows: RecordBatch) -> Result<Split> {
        let events: Vec<Event> = (column(&rows, 0).iter().zip(column(&rows, 1)))
            .map(|(partition, event)| (*partition as usize, *event as u64))
            .collect();
        Ok(Box::new(events))
    }

    fn fresh(&self) -> Box<dyn Splitter> {
        Box::new(Self)
    }
}

pub(super) struct SimWriter {
    process: Arc<Process>,
    rows: Vec<Event>,
}

impl SimWriter {
    pub(super) fn new(process: &Arc<Process>) -> Self {
        Self {
            process: Arc::clone(process),
            rows: Vec::new(),
        }
    }
}

#[async_trait]
impl TableWriter for SimWriter {
    fn splitter(&self) -> Box<dyn Splitter> {
        Box::new(SimSplitter)
    }

    async fn append(&mut self, split: Split) -> Result<()> {
        let plan = &self.process.world.plan;
        self.process.delay("table.append", plan.append).await;
        self.process.quick("table.append").await?;
        let rows = split.downcast::<Vec<Event>>();
        self.rows.extend(*rows.expect("our own splitter's"));
        Ok(())
    }

    fn buffered_bytes(&self) -> usize {
        self.rows.len()
    }

    fn written_bytes(&self) -> u64 {
        0
    }

    fn open_files(&self) -> usize {
        usize::from(!self.rows.is_empty())
    }

    fn seal(&mut self, epoch: Epoch) -> Box<dyn Sealed> {
        Box::new(SimSealed {
            process: Arc::clone(&self.process),
            epoch,
            rows: std::mem::take(&mut self.rows),
        })
    }
}

struct SimSealed {
    process: Arc<Process>,
    epoch: Epoch,
    rows: Vec<Event>,
}

#[async_trait]
impl Sealed for SimSealed {
    async fn finish(self: Box<Self>) -> Result<Prepared> {
        if self.rows.is_empty() {
            return Ok(Prepared::default());
        }
        self.process.before("table.finish").await?;
        let file = format!("{}-{}", self.process.id, self.epoch);
        let prepared = Prepared {
            rows: self.rows.len() as u64,
            bytes: self.rows.len() as u64 * WIDTH,
            files: 1,
            content: Opaque::of(&[&file])?,
            runs: Vec::new(),
        };
        self.process.world.state().files.insert(file, self.rows);
        self.process
            .delay("table.finish", self.process.world.plan.call)
            .await;
        Ok(prepared)
    }
}

pub(super) struct SimTable(pub(super) Arc<Process>);

#[async_trait]
impl Output for SimTable {
    async fn state(&self, _: &str, _: &str) -> Result<OutputState> {
        self.0.before("table.state").await?;
        let held = self.0.world.state().committed.last_key_value().map(held);
        self.0.after("table.state").await?;
        Ok(OutputState {
            identity: Some("the table".into()),
            held,
        })
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        self.0.before("table.load").await?;
        let seen = self.0.world.state().version;
        if let Some(known) = self.decide(commit)? {
            return Ok(known);
        }
        self.0.before("table.swap").await?;
        if let Some(clock) = clock::current() {
            clock.sleep(self.0.world.plan.commit).await;
        }
        if self.0.draw(self.0.world.plan.conflict) {
            self.0.world.state().version += 1;
        }
        if self.0.draw(self.0.world.plan.lose) {
            // It never arrived, and who asks for it cannot know.
            return Ok(Outcome::Unknown);
        }
        if !self.swap(commit, seen) {
            return Ok(Outcome::Conflict);
        }
        if self.0.lost("table.swap").await {
            // Both are what a server can do to us.
            return if self.0.draw(0.5) {
                Ok(Outcome::Unknown)
            } else {
                Err(Error::unavailable(
                    "injected: the answer of a commit is lost",
                ))
            };
        }
        Ok(Outcome::Committed {
            snapshot: commit.epoch.to_string(),
        })
    }
}

fn held((epoch, (digest, _)): (&Epoch, &(String, String))) -> (Epoch, String) {
    (*epoch, digest.clone())
}

impl SimTable {
    /// What the table says before anything is written; none: go on. See `iceberg/commit.rs`.
    fn decide(&self, commit: &Commit) -> Result<Option<Outcome>> {
        let state = self.0.world.state();
        if let Some((digest, _)) = state.committed.get(&commit.epoch) {
            return Ok(Some(if *digest == commit.digest {
                Outcome::AlreadyCommitted
            } else {
                Outcome::Fenced
            }));
        }
        let (epoch, offsets) = state
            .committed
            .last_key_value()
            .map_or((Epoch::NONE, ""), |(epoch, (_, offsets))| (*epoch, offsets));
        if epoch > commit.previous {
            return Ok(Some(Outcome::Fenced));
        }
        if epoch < commit.previous {
            return Err(Error::corrupt(format!(
                "the table lacks an epoch: held={epoch} needed={}",
                commit.previous
            )));
        }
        if epoch > Epoch::NONE && offsets != commit.offsets_from {
            return Err(Error::corrupt("the offsets do not follow"));
        }
        Ok(None)
    }

    fn swap(&self, commit: &Commit, seen: u64) -> bool {
        let mut state = self.0.world.state();
        if state.version != seen {
            return false;
        }
        state.may_commit("table", commit.epoch, &commit.digest);
        let files: Vec<String> = commit.prepared.content.parse().expect("our own content");
        for file in files {
            let Some(rows) = state.files.get(&file).cloned() else {
                state
                    .breaches
                    .push(format!("a prepared file is gone: {file}"));
                continue;
            };
            state.table.extend(rows);
        }
        state.version += 1;
        let offsets = commit.offsets_to.clone();
        state
            .committed
            .insert(commit.epoch, (commit.digest.clone(), offsets));
        true
    }
}

/// The real folder of rejects, behind calls that may fail.
pub(super) struct SimRejects {
    pub(super) process: Arc<Process>,
    pub(super) folder: RejectsOutput,
}

#[async_trait]
impl Output for SimRejects {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        self.process.before("rejects.state").await?;
        self.folder.state(pipeline, shard).await
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        self.process.before("rejects.commit").await?;
        if self.process.draw(self.process.world.plan.lose) {
            return Ok(Outcome::Unknown);
        }
        let outcome = self.folder.commit(commit).await?;
        if let Outcome::Committed { snapshot } = &outcome {
            self.published(commit, snapshot);
        }
        if self.process.lost("rejects.commit").await {
            return Ok(Outcome::Unknown);
        }
        Ok(outcome)
    }
}

impl SimRejects {
    fn published(&self, commit: &Commit, file: &str) {
        let world = &self.process.world;
        let folder = world.root.join(&*commit.pipeline).join(&*commit.shard);
        let text = std::fs::read_to_string(folder.join(file)).expect("it was published");
        let mut state = world.state();
        state.may_commit("rejects", commit.epoch, &commit.digest);
        for line in text.lines() {
            let line: RejectLine = serde_json::from_str(line).expect("a line of rejects");
            let event = (number(&line.source_partition), line.offset / WIDTH);
            if !state.rejected.insert(event) {
                let breach = format!("twice in the rejects: {event:?}");
                state.breaches.push(breach);
            }
        }
    }
}

//! The loop: takes items in the order of their numbers, gives rows to the writer, and cuts epochs.

use std::{collections::BTreeMap, sync::Arc};

use calve_model::{Epoch, Offsets, Watermarks, watermark::END_OF_TIME};
use tokio::sync::{Semaphore, mpsc};

use super::{
    KIB, ShardOptions, Summary,
    batcher::Processed,
    ground::{self, Moment, Task},
    reader::{Item, What},
};
use crate::{
    checkpoint::{Record, Totals},
    error::{Error, Result},
    metrics::Metrics,
    rejects::RejectsWriter,
    seams::{Prepared, TableWriter},
};

/// An epoch at its end: what was read, and the files on their way to the disk.
pub(super) struct Cut {
    pub(super) offsets: Offsets,
    pub(super) watermarks: Watermarks,
    pub(super) totals: Totals,
    pub(super) finish: Task<Result<(Prepared, Option<Prepared>)>>,
}

pub(super) struct Cutter {
    epoch: Epoch,
    offsets: Offsets,
    watermarks: Watermarks,
    before: Totals,
    totals: Totals,
    table: Box<dyn TableWriter>,
    rejects: RejectsWriter,
    metrics: Metrics,
    options: ShardOptions,
    permits: Arc<Semaphore>,
    permits_in_all: usize,
    /// When the first event of the open epoch was taken; none: nothing to cut.
    opened: Option<Moment>,
    last_cut: Option<Moment>,
    idle_since: Option<Moment>,
}

impl Cutter {
    pub(super) fn new(
        claim: Record,
        table: Box<dyn TableWriter>,
        rejects: RejectsWriter,
        metrics: Metrics,
        options: ShardOptions,
        permits: Arc<Semaphore>,
    ) -> Self {
        Self {
            epoch: claim.epoch,
            offsets: claim.offsets,
            watermarks: claim.watermarks,
            before: claim.totals,
            totals: claim.totals,
            table,
            rejects,
            metrics,
            options,
            permits_in_all: permits.available_permits(),
            permits,
            opened: None,
            last_cut: None,
            idle_since: None,
        }
    }

    pub(super) async fn run(
        mut self,
        mut incoming: mpsc::Receiver<Item>,
        cuts: mpsc::Sender<Cut>,
    ) -> Result<Summary> {
        let mut next = 0;
        let mut early: BTreeMap<u64, Item> = BTreeMap::new();
        loop {
            let deadline = self.deadline();
            let wait = deadline.unwrap_or_default().saturating_sub(ground::now());
            let item = tokio::select! {
                biased;
                () = ground::sleep(wait), if deadline.is_some() => {
                    self.cut(&cuts).await?;
                    continue;
                }
                item = incoming.recv() => item,
            };
            let Some(item) = item else {
                return Err(Error::internal("the reader ended without saying so"));
            };
            early.insert(item.number, item);
            while let Some(item) = early.remove(&next) {
                next += 1;
                let Item { what, held, .. } = item;
                match what? {
                    What::Batch(batch) => self.take(*batch).await?,
                    What::Discovered(partitions) => {
                        for partition in &partitions {
                            self.watermarks.discover(partition);
                        }
                    }
                    What::Idle => self.idle(),
                    What::End { source_ended } => {
                        drop(held);
                        self.cut(&cuts).await?;
                        return Ok(self.summary(source_ended));
                    }
                }
                drop(held);
            }
            let in_flight = (self.permits_in_all
                - self.permits.available_permits().min(self.permits_in_all))
                * KIB;
            self.metrics.set_levels(
                self.table.buffered_bytes() + in_flight,
                self.table.open_files(),
            );
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let due = self.opened? + self.options.commit_every;
        let soonest = self.last_cut.map(|at| at + self.options.min_interval);
        Some(soonest.map_or(due, |soonest| due.max(soonest)))
    }

    async fn take(&mut self, batch: Processed) -> Result<()> {
        self.offsets
            .advance(&batch.partition, batch.range)
            .map_err(|e| Error::internal(format!("source_partition={}: {e}", batch.partition)))?;
        let position = self.offsets.0.entry(batch.partition.clone()).or_default();
        position.done = batch.last;
        if batch.tag.is_some() {
            position.tag = batch.tag;
        }
        if let Some((_, highest)) = batch.bounds {
            self.watermarks.observe(&batch.partition, highest);
        }
        if batch.last {
            self.watermarks.done(&batch.partition);
        }
        self.idle_since = None;
        self.show_watermark();
        self.totals.events += batch.events;
        self.totals.rows += batch.rows;
        self.totals.rejects += batch.rejects.len() as u64;
        tracing::trace!(bytes = batch.bytes, rows = batch.rows, "batch");
        for split in batch.splits {
            self.table.append(split).await?;
        }
        self.rejects
            .append(&batch.partition, &batch.rejects)
            .await?;
        self.opened.get_or_insert_with(ground::now);
        Ok(())
    }

    fn idle(&mut self) {
        let since = *self.idle_since.get_or_insert_with(ground::now);
        if ground::since(since) >= self.options.idle_timeout {
            for partition in self.offsets.0.keys() {
                self.watermarks.idle(partition);
            }
            self.show_watermark();
        }
    }

    fn show_watermark(&mut self) {
        if let Some(watermark) = self.watermarks.current()
            && watermark != END_OF_TIME
        {
            self.metrics.set_watermark(watermark);
        }
    }

    /// Ends the epoch; waits only while too many epochs are prepared and not committed.
    async fn cut(&mut self, cuts: &mpsc::Sender<Cut>) -> Result<()> {
        if self.opened.take().is_none() {
            return Ok(());
        }
        self.epoch = self.epoch.next();
        let table = self.table.seal(self.epoch);
        let rejects = self.rejects.seal();
        let finish = Task::spawn(async move {
            let rejects = async {
                match rejects {
                    Some(rejects) => rejects.finish().await.map(Some),
                    None => Ok(None),
                }
            };
            tokio::try_join!(table.finish(), rejects)
        });
        self.watermarks.current();
        let cut = Cut {
            offsets: self.offsets.clone(),
            watermarks: self.watermarks.clone(),
            totals: self.totals,
            finish,
        };
        self.metrics.set_behind(cuts.capacity() == 0);
        // Closed only when the preparer has failed, and its error is the one that counts.
        if cuts.send(cut).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.metrics.set_behind(false);
        self.last_cut = Some(ground::now());
        Ok(())
    }

    fn summary(&self, ended: bool) -> Summary {
        let run = Totals {
            events: self.totals.events - self.before.events,
            rows: self.totals.rows - self.before.rows,
            rejects: self.totals.rejects - self.before.rejects,
        };
        Summary {
            run,
            since_start: self.totals,
            epoch: self.epoch,
            ended,
        }
    }
}

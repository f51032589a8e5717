//! The loop: takes items in the order of their numbers, gives rows to the writer, and cuts epochs.

use std::{collections::BTreeMap, time::Duration};

use calve_model::{Epoch, Offsets, Watermarks, flow::Fact, watermark::END_OF_TIME};
use tokio::sync::mpsc;

use super::{
    ShardOptions, Summary,
    batcher::{Processed, Rows},
    committer,
    flow::{self, Flow},
    ground::{self, Moment, Task},
    in_flight::InFlight,
    panes::{self, OpenWindows, SealedWindows},
    reader::{Item, What},
    watched::watched,
};
use crate::{
    checkpoint::{Checkpoints, Record, Totals},
    error::{Error, Result},
    metrics::{Change, Condition, Metrics},
    rejects::RejectsWriter,
    seams::{Prepared, Progress, Sealed, TableWriter},
    windows::SavedWindows,
};

/// An epoch at its end: what was read, and the files on their way to the disk.
pub(super) struct Cut {
    pub(super) at: Moment,
    pub(super) offsets: Offsets,
    pub(super) watermarks: Watermarks,
    pub(super) totals: Totals,
    pub(super) windows: Option<SavedWindows>,
    pub(super) drained: bool,
    /// Runs that the record of this epoch does not need any more.
    pub(super) dead_runs: Vec<String>,
    pub(super) finish: Task<Result<Finished>>,
}

/// The files of an epoch: of the table, of the rejects, of late rows.
type Finished = (Prepared, Option<Prepared>, Option<Prepared>);

/// What the loop writes to.
pub(super) struct Tables {
    pub(super) table: Box<dyn TableWriter>,
    pub(super) late: Option<Box<dyn TableWriter>>,
    pub(super) rejects: RejectsWriter,
}

pub(super) struct Cutter {
    epoch: Epoch,
    offsets: Offsets,
    watermarks: Watermarks,
    before: Totals,
    totals: Totals,
    /// Rows before the open epoch.
    rows_before: u64,
    windows: Option<OpenWindows>,
    tables: Tables,
    metrics: Metrics,
    options: ShardOptions,
    checkpoints: Checkpoints,
    in_flight: InFlight,
    flow: Flow,
    /// When the first event of the open epoch was taken; none: nothing to cut.
    opened: Option<Moment>,
    last_cut: Option<Moment>,
    idle_since: Option<Moment>,
    /// Every window was fired and closed on demand.
    drained: bool,
}

impl Cutter {
    pub(super) fn new(
        claim: Record,
        windows: Option<OpenWindows>,
        tables: Tables,
        metrics: Metrics,
        options: ShardOptions,
        (in_flight, flow): (InFlight, Flow),
        checkpoints: Checkpoints,
    ) -> Self {
        Self {
            epoch: claim.epoch,
            offsets: claim.offsets,
            watermarks: claim.watermarks,
            before: claim.totals,
            totals: claim.totals,
            rows_before: claim.totals.rows,
            windows,
            tables,
            metrics,
            options,
            checkpoints,
            in_flight,
            flow,
            opened: None,
            last_cut: None,
            idle_since: None,
            drained: false,
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
            let tick = self.windows.as_ref().and_then(OpenWindows::next_tick);
            let wait =
                |until: Option<Moment>| until.unwrap_or_default().saturating_sub(ground::now());
            self.metrics.change(Change::Writer(Condition::Starved));
            let item = tokio::select! {
                biased;
                () = ground::sleep(wait(deadline)), if deadline.is_some() => {
                    self.metrics.change(Change::Writer(Condition::Busy));
                    self.cut(&cuts).await?;
                    continue;
                }
                () = ground::sleep(wait(tick)), if tick.is_some() => {
                    self.metrics.change(Change::Writer(Condition::Busy));
                    self.tick().await?;
                    continue;
                }
                item = incoming.recv() => item,
            };
            let Some(item) = item else {
                return Err(Error::internal("the reader ended without saying so"));
            };
            self.metrics.change(Change::Writer(Condition::Busy));
            early.insert(item.number, item);
            while let Some(item) = early.remove(&next) {
                next += 1;
                let Item { what, held, .. } = item;
                match what? {
                    What::Batch(batch, spent) => {
                        self.metrics.change(Change::Taken);
                        let begun = ground::now();
                        let (rows, bytes) = (batch.events, batch.bytes);
                        self.take(*batch).await?;
                        self.flow.see(Fact::Batch {
                            rows,
                            bytes,
                            cost: flow::micros(spent.cost + ground::since(begun)),
                            age: flow::micros(ground::since(spent.read_at)),
                            wanted: spent.wanted,
                        });
                        if let Some(windows) = &mut self.windows
                            && !windows.relieve().await
                        {
                            // Rows of open windows leave the memory when they lie in a run.
                            self.cut(&cuts).await?;
                            if let Some(windows) = &mut self.windows {
                                windows.relieve().await;
                            }
                        }
                    }
                    What::Discovered(partitions) => {
                        for partition in &partitions {
                            self.watermarks.discover(partition);
                        }
                    }
                    What::Idle => self.idle().await?,
                    What::Progress(progress) => self.progress(progress).await?,
                    What::Evolve(schema) => {
                        // What came before is committed with the schema that it has; the next start
                        // reads on from here, with the new one.
                        drop(held);
                        self.cut(&cuts).await?;
                        let evolve = Some(schema);
                        return Ok(Summary {
                            evolve,
                            ..self.summary(false)
                        });
                    }
                    What::End { source_ended } => {
                        drop(held);
                        self.close_windows(source_ended).await?;
                        self.cut(&cuts).await?;
                        self.metrics.change(Change::Writer(Condition::Starved));
                        return Ok(self.summary(source_ended));
                    }
                }
                drop(held);
                // Batches overtake each other on their way here: several may be next at once, and
                // what fired in one of them does not wait for the others.
                if self.deadline().is_some_and(|due| due <= ground::now()) {
                    self.cut(&cuts).await?;
                }
            }
            self.tell_levels();
        }
    }

    /// Tells metrics and flow control what is held.
    fn tell_levels(&self) {
        let Tables { table, late, .. } = &self.tables;
        let late = late.as_ref().map_or(0, |late| late.buffered_bytes());
        let held = [
            ("batches", self.in_flight.held()),
            (
                "windows",
                self.windows.as_ref().map_or(0, OpenWindows::memory),
            ),
            ("files", table.buffered_bytes() + late),
        ];
        self.metrics.set_levels(held, table.open_files());
        let held: usize = held.iter().map(|(_, bytes)| bytes).sum();
        self.flow.see(Fact::Held(held as u64));
    }

    fn deadline(&self) -> Option<Moment> {
        let fired = self.windows.as_ref().is_some_and(OpenWindows::fired);
        let rows = self.totals.rows - self.rows_before;
        let full = self.options.commit_rows.is_some_and(|most| rows >= most);
        let wait = if fired || full {
            Duration::ZERO
        } else {
            self.flow.commit_every()
        };
        let due = self.opened? + wait;
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
        if let (Some(windows), Some(arrival)) = (&mut self.windows, batch.arrival) {
            windows.arrival(arrival, &mut self.tables.table).await?;
        }
        self.idle_since = None;
        self.opened.get_or_insert_with(ground::now);
        self.metrics
            .received(batch.events, batch.bytes, batch.rejects.len() as u64);
        self.totals.events += batch.events;
        self.totals.rows += batch.rows;
        self.totals.rejects += batch.rejects.len() as u64;
        tracing::trace!(bytes = batch.bytes, rows = batch.rows, "batch");
        let Tables { table, late, .. } = &mut self.tables;
        for rows in batch.rows_of {
            match (rows, &mut self.windows) {
                (Rows::Split(split), _) => table.append(split).await?,
                (Rows::Assigned(rows), Some(windows)) => {
                    let late = windows.take(rows, table, late.as_mut()).await?;
                    self.totals.late += late;
                    self.metrics.late(late);
                }
                (Rows::Assigned(_), None) => {
                    return Err(Error::internal("rows of windows in a shard without them"));
                }
            }
        }
        self.tables
            .rejects
            .append(&batch.partition, &batch.rejects)
            .await?;
        // What the batch says of event time counts from the next one on: its own rows are not late.
        if let Some((_, highest)) = batch.bounds {
            self.watermarks.observe(&batch.partition, highest);
        }
        if batch.last {
            // What it said still counts, should another run find more to read.
            self.advance().await?;
            self.watermarks.done(&batch.partition);
        }
        self.advance().await
    }

    /// Tells windows and metrics how far event time has come.
    async fn advance(&mut self) -> Result<()> {
        let Some(watermark) = self.watermarks.current() else {
            return Ok(());
        };
        // At the end of the source windows are drained, and their watermark stays where it was:
        // another run may find more to read.
        if watermark == END_OF_TIME {
            return Ok(());
        }
        self.metrics.set_watermark(watermark);
        if let Some(windows) = &mut self.windows {
            windows.watermark(watermark, &mut self.tables.table).await?;
            self.open_if_fired();
        }
        Ok(())
    }

    /// A pane that fired without an event in its epoch is committed, too.
    fn open_if_fired(&mut self) {
        if self.windows.as_ref().is_some_and(OpenWindows::fired) {
            self.opened.get_or_insert_with(ground::now);
        }
    }

    async fn tick(&mut self) -> Result<()> {
        if let Some(windows) = &mut self.windows {
            windows.tick(&mut self.tables.table).await?;
            self.open_if_fired();
        }
        Ok(())
    }

    async fn progress(&mut self, progress: Progress) -> Result<()> {
        if let (Some(windows), Some(arrival)) = (&mut self.windows, progress.arrival) {
            windows.arrival(arrival, &mut self.tables.table).await?;
            self.open_if_fired();
        }
        if let Some(watermark) = progress.watermark {
            self.watermarks.given(&progress.partition, watermark);
        }
        self.advance().await
    }

    /// At the end of the source, or on demand, every window fires and closes.
    async fn close_windows(&mut self, source_ended: bool) -> Result<()> {
        if let Some(windows) = &mut self.windows
            && (source_ended || self.options.drain)
        {
            // Those that close without another pane are closed in the record, too.
            if windows.drain(&mut self.tables.table).await? {
                self.opened.get_or_insert_with(ground::now);
            }
        }
        if self.options.drain {
            self.drained = true;
            self.opened.get_or_insert_with(ground::now);
        }
        Ok(())
    }

    async fn idle(&mut self) -> Result<()> {
        let since = *self.idle_since.get_or_insert_with(ground::now);
        if ground::since(since) >= self.options.idle_timeout {
            for partition in self.offsets.0.keys() {
                self.watermarks.idle(partition);
            }
            self.advance().await?;
        }
        Ok(())
    }

    /// Ends the epoch; waits only while too many epochs are prepared and not committed.
    async fn cut(&mut self, cuts: &mpsc::Sender<Cut>) -> Result<()> {
        if self.opened.take().is_none() {
            return Ok(());
        }
        self.epoch = self.epoch.next();
        self.rows_before = self.totals.rows;
        let sealed = match &mut self.windows {
            Some(windows) => Some(windows.seal(self.epoch).await?),
            None => None,
        };
        let (windows, run, dead_runs) = match sealed {
            Some(SealedWindows { saved, run, dead }) => (Some(saved), run, dead),
            None => (None, None, Vec::new()),
        };
        self.tables.table.before_seal().await?;
        let files_in_flight = self.flow.files_in_flight();
        self.tables.table.files_in_flight(files_in_flight);
        if let Some(late) = &mut self.tables.late {
            late.files_in_flight(files_in_flight);
        }
        let table = self.tables.table.seal(self.epoch);
        let late = self.tables.late.as_mut().map(|late| late.seal(self.epoch));
        let rejects = self.tables.rejects.seal();
        let (checkpoints, retry_for) = (self.checkpoints.clone(), self.options.retry_for);
        let finish = Task::spawn(async move {
            let rejects = async {
                match rejects {
                    Some(rejects) => rejects.finish().await.map(Some),
                    None => Ok(None),
                }
            };
            let run = async {
                match &run {
                    Some(run) => {
                        committer::retrying("write rows of open windows", retry_for, || {
                            panes::write_run(&checkpoints, run)
                        })
                        .await
                    }
                    None => Ok(()),
                }
            };
            let (table, rejects, late, ()) =
                tokio::try_join!(table.finish(), rejects, finished(late), run)?;
            Ok((table, rejects, late))
        });
        self.watermarks.current();
        let cut = Cut {
            at: ground::now(),
            offsets: self.offsets.clone(),
            watermarks: self.watermarks.clone(),
            totals: self.totals,
            windows,
            drained: self.drained,
            dead_runs,
            finish,
        };
        self.metrics.set_behind(cuts.capacity() == 0);
        // Closed only when the preparer has failed, and its error is the one that counts.
        let metrics = &self.metrics;
        let sent = watched(cuts.send(cut), |waits| {
            metrics.change(Change::Writer(if waits {
                Condition::Blocked
            } else {
                Condition::Busy
            }));
        });
        if sent.await.is_err() {
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
            late: self.totals.late - self.before.late,
        };
        Summary {
            run,
            since_start: self.totals,
            epoch: self.epoch,
            ended,
            evolve: None,
        }
    }
}

async fn finished(sealed: Option<Box<dyn Sealed>>) -> Result<Option<Prepared>> {
    match sealed {
        Some(sealed) => sealed.finish().await.map(Some),
        None => Ok(None),
    }
}

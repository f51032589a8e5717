//! The loop's part of windows: tells the model what was seen, and carries out what it answers. Rows
//! of panes go to the table's writer in the epoch that is open when they fire.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    },
    compute::filter_record_batch,
};
use calve_model::{
    Epoch, Micros,
    watermark::END_OF_TIME,
    windows::{Accumulation, Effect, PaneInfo, Panes, Placement, Seen},
};
use parking_lot::Mutex;
use rayon::ThreadPool;
use rustc_hash::FxHashSet;

use super::ground;
use crate::{
    checkpoint::Checkpoints,
    error::{Error, Result},
    fault,
    seams::{Aggregate, Split, Splitter, TableWriter},
    windows::{
        Key, LateRows, SavedWindows, Windowed, arrow_failed,
        assign::{Assigned, by_window},
        contents::{Contents, NewRun, Of, Piece},
        runs::{self, Runs},
    },
};

/// Rows of states that one run of an aggregate's plan takes at once.
const STATE_ROWS: usize = 262_144;
/// Rows of partial states that wait to be merged with those of the same window.
const UNMERGED_ROWS: usize = 262_144;

/// The open windows of a shard.
pub(super) struct OpenWindows {
    plan: Arc<Windowed>,
    panes: Panes<Key>,
    contents: Contents,
    runs: Runs,
    /// Highest processing time that was acted on.
    processing_time: Micros,
    /// The source says what time it is.
    source_clock: bool,
    splits: Splits,
    /// A pane fired since the last cut.
    fired: bool,
    /// Every window was fired and closed.
    drained: bool,
    /// Partial states that came since they were merged last.
    unmerged: usize,
    effects: Vec<Effect<Key>>,
}

/// What a cut does for windows.
pub(super) struct SealedWindows {
    pub(super) saved: SavedWindows,
    /// Every window that ends at or before this event time is closed.
    pub(super) complete: Option<Micros>,
    pub(super) run: Option<NewRun>,
    /// Runs that the record does not need, and no later one.
    pub(super) dead: Vec<String>,
}

/// Splits batches on the pool.
struct Splits {
    pool: Arc<ThreadPool>,
    idle: Arc<Mutex<Vec<Box<dyn Splitter>>>>,
    pattern: Mutex<Box<dyn Splitter>>,
}

impl Splits {
    /// Splits the batches side by side and appends them in their order.
    async fn append(
        &self,
        batches: Vec<RecordBatch>,
        table: &mut Box<dyn TableWriter>,
    ) -> Result<()> {
        let splits = batches.into_iter().map(|rows| {
            let idle = Arc::clone(&self.idle);
            let taken = idle.lock().pop();
            let mut splitter = taken.unwrap_or_else(|| self.pattern.lock().fresh());
            ground::on_pool(&self.pool, move || -> Result<Split> {
                let split = splitter.split(rows);
                idle.lock().push(splitter);
                split
            })
        });
        for split in splits.collect::<Vec<_>>() {
            table.append(split.await??).await?;
        }
        Ok(())
    }

    fn width(&self) -> usize {
        2 * self.pool.current_num_threads()
    }
}

/// Panes that fire together.
#[derive(Default)]
struct Together {
    back: Vec<(Of, PaneInfo)>,
    out: Vec<(Of, PaneInfo)>,
    seen: FxHashSet<Of>,
    close: Vec<Of>,
}

impl OpenWindows {
    pub(super) fn new(
        plan: Arc<Windowed>,
        saved: Option<SavedWindows>,
        checkpoints: Checkpoints,
        pattern: Box<dyn Splitter>,
        pool: Arc<ThreadPool>,
    ) -> Result<Self> {
        let (processing_time, panes, contents) = match saved {
            Some(saved) => saved.restore(&plan.strategy)?,
            None => (
                Micros::MIN,
                Panes::new(plan.strategy.clone()),
                Contents::default(),
            ),
        };
        Ok(Self {
            panes,
            contents,
            runs: Runs::new(checkpoints),
            processing_time,
            source_clock: false,
            splits: Splits {
                pool,
                idle: Arc::default(),
                pattern: Mutex::new(pattern),
            },
            fired: false,
            drained: false,
            unmerged: 0,
            effects: Vec::new(),
            plan,
        })
    }

    /// Whether a pane fired since the last cut.
    pub(super) fn fired(&self) -> bool {
        self.fired
    }

    /// Processing time now, which never goes back.
    fn now(&mut self) -> Micros {
        if !self.source_clock {
            self.processing_time = self.processing_time.max(ground::processing_time());
        }
        self.processing_time
    }

    /// Until when nothing has to be done, if nothing comes; none: for ever.
    pub(super) fn next_tick(&self) -> Option<ground::Moment> {
        if self.source_clock {
            return None;
        }
        let at = self.panes.next_tick()?;
        let wait = at.saturating_sub(ground::processing_time()).max(0);
        Some(ground::now() + std::time::Duration::from_micros(wait as u64))
    }

    /// Processing time has come to `to`, says the source: what was due before it fires.
    pub(super) async fn arrival(
        &mut self,
        to: Micros,
        table: &mut Box<dyn TableWriter>,
    ) -> Result<()> {
        self.source_clock = true;
        if to > self.processing_time {
            self.panes.tick(to - 1, &mut self.effects);
            self.processing_time = to;
            self.carry_out(table).await?;
        }
        Ok(())
    }

    /// Fires what is due now.
    pub(super) async fn tick(&mut self, table: &mut Box<dyn TableWriter>) -> Result<()> {
        let now = self.now();
        self.panes.tick(now, &mut self.effects);
        self.carry_out(table).await
    }

    /// Takes a batch; answers how many rows are late.
    pub(super) async fn take(
        &mut self,
        assigned: Assigned,
        table: &mut Box<dyn TableWriter>,
        late_table: Option<&mut Box<dyn TableWriter>>,
    ) -> Result<u64> {
        let now = self.now();
        let page = self.contents.begin(assigned.content.clone());
        let mut late = vec![false; assigned.groups.len()];
        let mut late_rows = 0;
        for (group, late) in assigned.groups.iter().zip(&mut late) {
            let seen = Seen {
                key: group.key.clone(),
                window: group.window,
                count: group.elements,
                bytes: group.bytes,
            };
            match self.panes.seen(now, seen, &mut self.effects) {
                Placement::Late => {
                    *late = true;
                    late_rows += group.elements;
                }
                Placement::Into(window) => {
                    for effect in self.effects.drain(..) {
                        if let Effect::Merge { key, from, into } = effect {
                            self.contents.merge(&key, &from, into);
                        }
                    }
                    let of = (group.key.clone(), window);
                    self.contents.put(page, of, &group.at);
                    if self.plan.aggregate.is_some() {
                        self.unmerged += group.at.len();
                    }
                }
            }
        }
        self.contents.end(page);
        if late_rows > 0 {
            let rows = late_of(&assigned, &late)?;
            self.put_late(rows, table, late_table).await?;
        }
        self.panes.settle(now, &mut self.effects);
        self.carry_out(table).await?;
        if self.unmerged > UNMERGED_ROWS {
            self.merge_scattered().await?;
        }
        Ok(late_rows)
    }

    async fn put_late(
        &mut self,
        rows: RecordBatch,
        table: &mut Box<dyn TableWriter>,
        late_table: Option<&mut Box<dyn TableWriter>>,
    ) -> Result<()> {
        match (self.plan.late, late_table) {
            (LateRows::Drop, _) => Ok(()),
            (LateRows::Append, _) => {
                let rows = self.dressed(rows, None)?;
                self.splits.append(vec![rows], table).await
            }
            (LateRows::Side, Some(late_table)) => {
                let split = late_table.splitter().split(rows)?;
                late_table.append(split).await
            }
            (LateRows::Side, None) => Err(Error::internal("there is no table for late rows")),
        }
    }

    /// Event time is complete up to `to`.
    pub(super) async fn watermark(
        &mut self,
        to: Micros,
        table: &mut Box<dyn TableWriter>,
    ) -> Result<()> {
        let now = self.now();
        self.panes.watermark(now, to, &mut self.effects);
        self.carry_out(table).await
    }

    /// Fires and closes everything; answers whether there was something.
    pub(super) async fn drain(&mut self, table: &mut Box<dyn TableWriter>) -> Result<bool> {
        let now = self.now();
        let open = self.panes.open() > 0;
        let watermark = self.panes.watermark_now();
        self.panes.drain(now, &mut self.effects);
        self.carry_out(table).await?;
        // Another run may find more to read: its watermark goes on from where it was.
        self.panes = Panes::new(self.plan.strategy.clone());
        if let Some(watermark) = watermark {
            self.panes.watermark(now, watermark, &mut self.effects);
        }
        self.drained = true;
        Ok(open)
    }

    async fn carry_out(&mut self, table: &mut Box<dyn TableWriter>) -> Result<()> {
        let effects = std::mem::take(&mut self.effects);
        let mut together = Together::default();
        for effect in effects {
            match effect {
                Effect::Merge { key, from, into } => {
                    self.fire(std::mem::take(&mut together), table).await?;
                    self.contents.merge(&key, &from, into);
                }
                Effect::Retract { key, window, pane } => {
                    let of = (key, window);
                    if together.seen.contains(&of) {
                        self.fire(std::mem::take(&mut together), table).await?;
                    }
                    together.back.push((of, pane));
                }
                Effect::Fire { key, window, pane } => {
                    let of = (key, window);
                    if !together.seen.insert(of.clone()) {
                        self.fire(std::mem::take(&mut together), table).await?;
                        together.seen.insert(of.clone());
                    }
                    together.out.push((of, pane));
                }
                Effect::Close { key, window } => together.close.push((key, window)),
            }
        }
        self.fire(together, table).await
    }

    async fn fire(&mut self, together: Together, table: &mut Box<dyn TableWriter>) -> Result<()> {
        if !together.out.is_empty() || !together.back.is_empty() {
            self.fired = true;
            match self.plan.aggregate.clone() {
                None => self.fire_rows(together.out, table).await?,
                Some(aggregate) => {
                    for some in self.alike(together.back, true) {
                        self.take_back(&aggregate, some, table).await?;
                    }
                    for some in self.alike(together.out, false) {
                        self.fire_states(&aggregate, some, table).await?;
                    }
                }
            }
        }
        for of in &together.close {
            self.contents.close(of);
        }
        Ok(())
    }

    /// Panes whose rows can be made at once: all, or those that look the same in the pane's columns;
    /// and not too many.
    fn alike(&self, panes: Vec<(Of, PaneInfo)>, emitted: bool) -> Vec<(PaneInfo, Vec<Of>)> {
        let mut all: Vec<(PaneInfo, Vec<Of>, usize)> = Vec::new();
        for (of, pane) in panes {
            let rows = self.contents.rows(&of, emitted);
            let same = |other: &PaneInfo| {
                !self.plan.pane_columns
                    || (other.index, other.timing, other.last)
                        == (pane.index, pane.timing, pane.last)
            };
            let found = all
                .iter_mut()
                .rev()
                .take(8)
                .find(|(other, _, has)| same(other) && *has + rows <= STATE_ROWS);
            match found {
                Some((_, of_windows, has)) => {
                    of_windows.push(of);
                    *has += rows;
                }
                None => all.push((pane, vec![of], rows)),
            }
        }
        all.into_iter().map(|(pane, of, _)| (pane, of)).collect()
    }

    async fn fire_rows(
        &mut self,
        panes: Vec<(Of, PaneInfo)>,
        table: &mut Box<dyn TableWriter>,
    ) -> Result<()> {
        for (pane, windows) in self.alike(panes, false) {
            let mut pieces: Vec<Piece> = Vec::new();
            for of in &windows {
                pieces.extend(self.contents.take(of));
            }
            let all = pieces.clone();
            pieces.reverse();
            let mut ready = Vec::new();
            while let Some(rows) = self.contents.next(&mut pieces, &mut self.runs).await? {
                ready.push(self.dressed(rows, Some((&pane, "+")))?);
                if ready.len() >= self.splits.width() {
                    self.splits
                        .append(std::mem::take(&mut ready), table)
                        .await?;
                }
            }
            self.splits.append(ready, table).await?;
            self.contents.release(&all);
        }
        Ok(())
    }

    /// Rows that take back what was emitted.
    async fn take_back(
        &mut self,
        aggregate: &Arc<dyn Aggregate>,
        (pane, windows): (PaneInfo, Vec<Of>),
        table: &mut Box<dyn TableWriter>,
    ) -> Result<()> {
        let mut pieces = Vec::new();
        for of in &windows {
            pieces.extend(self.contents.take_emitted(of));
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let states = self.contents.gather(&pieces, &mut self.runs).await?;
        let aggregate = Arc::clone(aggregate);
        let rows =
            ground::on_pool(&self.splits.pool, move || aggregate.finish(&[states])).await??;
        self.contents.release(&pieces);
        let rows = self.dressed(rows, Some((&pane, "-")))?;
        self.splits.append(vec![rows], table).await
    }

    async fn fire_states(
        &mut self,
        aggregate: &Arc<dyn Aggregate>,
        (pane, windows): (PaneInfo, Vec<Of>),
        table: &mut Box<dyn TableWriter>,
    ) -> Result<()> {
        let keeps = self.plan.keeps();
        let Some((states, pieces)) = self.states_of(&windows).await? else {
            return Ok(());
        };
        let finishing = Arc::clone(aggregate);
        let (merged, rows) = ground::on_pool(&self.splits.pool, move || -> Result<_> {
            let merged = finishing.merge(&[states])?;
            let rows = finishing.finish(std::slice::from_ref(&merged))?;
            Ok((merged, rows))
        })
        .await??;
        if keeps {
            let retracting = self.plan.strategy.accumulation == Accumulation::Retracting;
            let grouped = by_window(merged, aggregate.as_ref(), &self.plan.key_in_states)?;
            self.contents
                .replace(grouped.content, grouped.groups, retracting);
        } else {
            for of in &windows {
                let _ = self.contents.take(of);
            }
            self.contents.release(&pieces);
        }
        let rows = self.dressed(rows, Some((&pane, "+")))?;
        self.splits.append(vec![rows], table).await
    }

    /// The states of windows, as one batch whose window columns say where they belong now.
    async fn states_of(&mut self, windows: &[Of]) -> Result<Option<(RecordBatch, Vec<Piece>)>> {
        let Some(aggregate) = &self.plan.aggregate else {
            return Ok(None);
        };
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for of in windows {
            for piece in self.contents.held(of) {
                let rows = starts.len() + piece.rows as usize;
                starts.resize(rows, of.1.start);
                ends.resize(rows, of.1.end);
                pieces.push(*piece);
            }
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        let states = self.contents.gather(&pieces, &mut self.runs).await?;
        let mut columns = states.columns().to_vec();
        let (start, end) = aggregate.window_columns();
        columns[start] = Arc::new(TimestampMicrosecondArray::from(starts));
        columns[end] = Arc::new(TimestampMicrosecondArray::from(ends));
        let states = RecordBatch::try_new(states.schema(), columns).map_err(arrow_failed)?;
        Ok(Some((states, pieces)))
    }

    /// Merges the states of windows that have several.
    async fn merge_scattered(&mut self) -> Result<()> {
        self.unmerged = 0;
        let Some(aggregate) = self.plan.aggregate.clone() else {
            return Ok(());
        };
        let mut windows: Vec<Of> = self.contents.scattered();
        while !windows.is_empty() {
            let mut rows = 0;
            let count = windows
                .iter()
                .take_while(|of| {
                    rows += self.contents.rows(of, false);
                    rows <= STATE_ROWS
                })
                .count();
            let rest = windows.split_off(count.max(1));
            if let Some((states, _)) = self.states_of(&windows).await? {
                let merging = Arc::clone(&aggregate);
                let work = move || merging.merge(&[states]);
                let merged = ground::on_pool(&self.splits.pool, work).await??;
                let grouped = by_window(merged, aggregate.as_ref(), &self.plan.key_in_states)?;
                self.contents
                    .replace(grouped.content, grouped.groups, false);
            }
            windows = rest;
        }
        Ok(())
    }

    /// Rows with the columns that say which pane they belong to.
    fn dressed(&self, rows: RecordBatch, of: Option<(&PaneInfo, &str)>) -> Result<RecordBatch> {
        if !self.plan.pane_columns && !self.plan.is_changelog() {
            return Ok(rows);
        }
        let count = rows.num_rows();
        let schema = self.plan.schema(&rows.schema());
        let mut columns = rows.columns().to_vec();
        if let Some(aggregate) = &self.plan.aggregate {
            debug_assert_eq!(columns.len(), aggregate.schema().fields().len());
        }
        let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; count])) };
        if self.plan.pane_columns {
            let index = of.map_or(-1, |(pane, _)| pane.index as i64);
            let last = of.is_some_and(|(pane, _)| pane.last);
            columns.push(Arc::new(Int64Array::from(vec![index; count])));
            columns.push(text(of.map_or("late", |(pane, _)| pane.timing.as_str())));
            columns.push(Arc::new(BooleanArray::from(vec![last; count])));
        }
        if self.plan.is_changelog() {
            columns.push(text(of.map_or("+", |(_, op)| op)));
        }
        RecordBatch::try_new(schema, columns).map_err(arrow_failed)
    }

    /// Bytes that the open windows hold in memory.
    pub(super) fn memory(&self) -> usize {
        self.contents.memory()
    }

    /// Brings the memory below its limit by what is durable already. False: a cut is needed first.
    pub(super) async fn relieve(&mut self) -> bool {
        let limit = self.plan.memory_bytes;
        while self.contents.memory() > limit {
            self.contents.evict(limit / 4 * 3);
            if self.contents.memory() <= limit {
                break;
            }
            if self.contents.unsaved() > limit / 4 {
                return false;
            }
            if !self.contents.written().await {
                break;
            }
        }
        true
    }

    /// Ends an epoch: what lies in no run goes into one.
    pub(super) async fn seal(&mut self, epoch: Epoch) -> Result<SealedWindows> {
        self.fired = false;
        self.merge_scattered().await?;
        let name = Checkpoints::run_name(epoch);
        let run = self.contents.seal(name, &mut self.runs).await?;
        Ok(SealedWindows {
            saved: SavedWindows::of(self.processing_time, &self.panes, &self.contents),
            complete: if self.drained {
                Some(END_OF_TIME)
            } else {
                self.panes.complete_below()
            },
            run,
            dead: self.contents.dead(),
        })
    }
}

/// The late rows of a batch, as they came.
fn late_of(assigned: &Assigned, late: &[bool]) -> Result<RecordBatch> {
    let is_late = |group: usize| late.get(group).copied().unwrap_or(false);
    if let Some((rows, ids)) = &assigned.rows {
        let mask = ids.iter().map(|id| Some(is_late(*id as usize)));
        return filter_record_batch(rows, &mask.collect()).map_err(arrow_failed);
    }
    let mut mask = vec![false; assigned.content.num_rows()];
    for (number, group) in assigned.groups.iter().enumerate() {
        mask[group.at.clone()].fill(is_late(number));
    }
    filter_record_batch(&assigned.content, &BooleanArray::from(mask)).map_err(arrow_failed)
}

/// Writes a run; it is durable afterwards.
pub(super) async fn write_run(checkpoints: &Checkpoints, run: &NewRun) -> Result<()> {
    let batches = run.batches.clone();
    let bytes = ground::blocking(move || runs::encode(&batches)).await??;
    fault::point("windows.before_run")?;
    checkpoints.create_run(&run.name, bytes).await?;
    fault::point("windows.after_run")?;
    run.durable.set();
    Ok(())
}

//! The loop's part of windows: tells the model what was seen, and carries out what it answers. Rows
//! of panes go to the table's writer in the epoch that is open when they fire.

mod firing;

use std::sync::Arc;

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use calve_model::{
    Epoch, Micros,
    watermark::END_OF_TIME,
    windows::{Effect, PaneInfo, Panes, Placement, Seen, Windowing},
};
use rayon::ThreadPool;
use rustc_hash::FxHashSet;

use self::firing::Splits;
use super::ground;
use crate::{
    checkpoint::Checkpoints,
    error::{Error, Result},
    fault,
    seams::{Splitter, TableWriter},
    windows::{
        Key, LateRows, SavedWindows, Windowed, arrow_failed,
        assign::Assigned,
        contents::{Contents, NewRun, Of},
        runs::{self, Runs},
    },
};

/// Rows of partial states that wait to be merged with those of the same window.
const UNMERGED_ROWS: usize = 65_536;

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
    pub(super) run: Option<NewRun>,
    /// Runs that the record does not need, and no later one.
    pub(super) dead: Vec<String>,
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
        // Else a period of the source's clock would be long over by the machine's, before the source
        // has said a word.
        let source_clock = saved.as_ref().is_some_and(SavedWindows::source_clock);
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
            runs: Runs::new(checkpoints, plan.rows.clone()),
            processing_time,
            source_clock,
            splits: Splits::new(pool, pattern),
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
            let rows = late_of(&assigned, &late, &self.plan)?;
            late_rows = rows.num_rows() as u64;
            self.put_late(rows, table, late_table).await?;
        }
        self.panes.settle(now, &mut self.effects);
        self.carry_out(table).await?;
        // As many as are merged already, at least: so a state is merged a few times, not each time.
        if self.unmerged > UNMERGED_ROWS.max(self.panes.open()) {
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
        let complete = if self.drained {
            Some(END_OF_TIME)
        } else {
            self.panes.complete_below()
        };
        Ok(SealedWindows {
            saved: SavedWindows::of(
                (self.processing_time, self.source_clock),
                complete,
                &self.panes,
                &self.contents,
            ),
            run,
            dead: self.contents.dead(),
        })
    }
}

/// The late rows of a batch, as they came. A row of sliding windows is late when the last of them is.
fn late_of(assigned: &Assigned, late: &[bool], plan: &Windowed) -> Result<RecordBatch> {
    let mut group_of = vec![u32::MAX; assigned.content.num_rows()];
    for (number, group) in assigned.groups.iter().enumerate() {
        group_of[group.at.clone()].fill(number as u32);
    }
    let (rows, ids) = match &assigned.rows {
        Some((rows, ids)) => (rows, ids),
        None => (&assigned.content, &group_of),
    };
    let is_late = |id: u32| late.get(id as usize).copied().unwrap_or(false);
    let mask: BooleanArray = match (&plan.strategy.windowing, &plan.time) {
        (Windowing::Sliding { period, .. }, Some(time)) => {
            let times = time.micros(rows)?;
            let last = |id: u32, at: Micros| {
                let group = assigned.groups.get(id as usize);
                group.is_some_and(|group| at - group.window.start < *period)
            };
            let rows = ids.iter().zip(&times);
            rows.map(|(id, at)| Some(is_late(*id) && last(*id, *at)))
                .collect()
        }
        _ => ids.iter().map(|id| Some(is_late(*id))).collect(),
    };
    filter_record_batch(rows, &mask).map_err(arrow_failed)
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

//! Makes the rows of panes and appends them to the table: rows as they are, or the results of partial
//! states, and the rows that take an earlier pane back.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use calve_model::windows::{Accumulation, PaneInfo};
use parking_lot::Mutex;
use rayon::ThreadPool;

use super::{OpenWindows, Together, ground};
use crate::{
    error::Result,
    seams::{Aggregate, Split, Splitter, TableWriter},
    windows::{
        arrow_failed,
        assign::by_window,
        contents::{Of, Piece},
    },
};

/// Rows of states that one run of an aggregate's plan takes at once.
const STATE_ROWS: usize = 65_536;

/// Splits batches on the pool.
pub(super) struct Splits {
    pool: Arc<ThreadPool>,
    idle: Arc<Mutex<Vec<Box<dyn Splitter>>>>,
    pattern: Mutex<Box<dyn Splitter>>,
}

impl Splits {
    /// By splitters like `pattern`.
    pub(super) fn new(pool: Arc<ThreadPool>, pattern: Box<dyn Splitter>) -> Self {
        Self {
            pool,
            idle: Arc::default(),
            pattern: Mutex::new(pattern),
        }
    }

    /// Splits the batches side by side and appends them in their order.
    pub(super) async fn append(
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

impl OpenWindows {
    pub(super) async fn fire(
        &mut self,
        together: Together,
        table: &mut Box<dyn TableWriter>,
    ) -> Result<()> {
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
            self.contents.by_run(&mut pieces);
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
        if self.plan.is_changelog() {
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
    pub(super) async fn merge_scattered(&mut self) -> Result<()> {
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
        self.contents.squeeze(&mut self.runs).await
    }

    /// Rows with the columns that say which pane they belong to.
    pub(super) fn dressed(
        &self,
        rows: RecordBatch,
        of: Option<(&PaneInfo, &str)>,
    ) -> Result<RecordBatch> {
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
}

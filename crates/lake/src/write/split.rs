//! Splits a batch by table partition: group ids, a counting sort of row numbers, one gather per
//! column. Rows that lie together already (one table partition, or rising hours) are not copied.

use std::{ops::Range, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};
use calve_engine::{
    error::{Error, Result},
    seams::{Split, Splitter},
};
use rustc_hash::FxHashSet;

use super::{
    gather,
    group::Groups,
    partition::{PartitionRef, TablePartition},
    placement::{Placed, Placement},
};

/// Table partitions that a splitter remembers before it starts over.
const REMEMBERED: usize = 1 << 16;

/// A batch whose rows lie grouped by table partition; what [`FanoutSplitter`] makes.
#[derive(Clone, Debug)]
pub struct SplitRows {
    /// The rows, grouped.
    pub rows: RecordBatch,
    /// Which rows belong to which table partition; each occurs once, and every row in one.
    pub groups: Vec<(PartitionRef, Range<usize>)>,
}

/// Splits batches for one batcher; remembers the table partitions it has seen.
pub struct FanoutSplitter {
    placement: Arc<dyn Placement>,
    seen: FxHashSet<PartitionRef>,
}

impl FanoutSplitter {
    /// A splitter for one more batcher.
    pub fn new(placement: Arc<dyn Placement>) -> Self {
        Self {
            placement,
            seen: FxHashSet::default(),
        }
    }

    /// Splits rows, in their order within each table partition; the table partitions are ordered by
    /// their first row.
    ///
    /// # Errors
    /// Those of [`Placement::place`]; `Config` for a key column of a type that has no partitions.
    pub fn split_rows(&mut self, rows: RecordBatch) -> Result<SplitRows> {
        let Placed { keys, rows } = self.placement.place(rows)?;
        let count = rows.num_rows();
        if u32::try_from(count).is_err() {
            return Err(Error::internal(format!(
                "batch has too many rows: rows={count}"
            )));
        }
        let groups = Groups::of(&keys, count)?;
        let partitions = groups
            .firsts
            .iter()
            .map(|row| self.remember(&keys, *row as usize))
            .collect::<Result<Vec<_>>>()?;
        if partitions.len() <= 1 {
            let groups = partitions.into_iter().map(|one| (one, 0..count)).collect();
            return Ok(SplitRows { rows, groups });
        }

        let mut ends = vec![0usize; partitions.len()];
        for id in &groups.ids {
            ends[*id as usize] += 1;
        }
        let mut at = 0;
        let mut ranges = Vec::with_capacity(partitions.len());
        for (partition, end) in partitions.into_iter().zip(&mut ends) {
            let start = at;
            at += *end;
            *end = start;
            ranges.push((partition, start..at));
        }
        if groups.contiguous() {
            return Ok(SplitRows {
                rows,
                groups: ranges,
            });
        }
        let mut order = vec![0u32; count];
        for (row, id) in groups.ids.iter().enumerate() {
            let to = &mut ends[*id as usize];
            order[*to] = row as u32;
            *to += 1;
        }
        Ok(SplitRows {
            rows: gather::reorder(&rows, order)?,
            groups: ranges,
        })
    }

    fn remember(&mut self, keys: &[ArrayRef], row: usize) -> Result<PartitionRef> {
        let partition = TablePartition::of(keys, row)?;
        if let Some(seen) = self.seen.get(&partition) {
            return Ok(seen.clone());
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        let new = Arc::new(partition);
        self.seen.insert(new.clone());
        Ok(new)
    }
}

impl Splitter for FanoutSplitter {
    fn fresh(&self) -> Box<dyn Splitter> {
        Box::new(Self::new(Arc::clone(&self.placement)))
    }

    fn check(&mut self, rows: &RecordBatch) -> Result<()> {
        self.placement.check(rows)
    }

    fn split(&mut self, rows: RecordBatch) -> Result<Split> {
        Ok(Box::new(self.split_rows(rows)?))
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;

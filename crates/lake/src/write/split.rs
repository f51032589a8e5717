//! Splits a batch by table partition: group ids, a counting sort of row numbers, one gather per
//! column of fixed width (strings stay where they are, see `gather`). Rows that lie together already
//! (one table partition, or rising hours) are not copied.

use std::{ops::Range, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};
use calve_engine::{
    error::{Error, Result},
    seams::{Split, Splitter},
};
use rustc_hash::FxHashSet;

use super::{
    gather::{self, Alike},
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

        let places = Places::of(&groups.ids, partitions.len());
        let ranges: Vec<_> = places.ranges().collect();
        let rows = if groups.contiguous() {
            rows
        } else {
            let alike = Alike {
                keys: &keys,
                firsts: &groups.firsts,
                ranges: &ranges,
            };
            gather::reorder(&rows, places.order(&groups.ids), &alike)?
        };
        Ok(SplitRows {
            rows,
            groups: partitions.into_iter().zip(ranges).collect(),
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

/// Where the rows of each group go: a counting sort, in two halves that do not wait for each other.
/// Each row's place depends on the one before it in the group, through memory.
struct Places {
    /// By group: the next place of a row of the first half, and of the second.
    next: Vec<[u32; 2]>,
    rows: usize,
}

impl Places {
    /// `ids` are below `groups`.
    fn of(ids: &[u32], groups: usize) -> Self {
        let mut next = vec![[0u32; 2]; groups];
        let (first, second) = ids.split_at(ids.len() / 2);
        for (a, b) in first.iter().zip(second) {
            next[*a as usize][0] += 1;
            next[*b as usize][1] += 1;
        }
        if let Some(odd) = second.get(first.len()) {
            next[*odd as usize][1] += 1;
        }
        let mut at = 0;
        for half in next.iter_mut().flatten() {
            at += std::mem::replace(half, at);
        }
        Self {
            next,
            rows: ids.len(),
        }
    }

    /// The places of each group.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = self.next.iter().map(|[start, _]| *start as usize);
        let ends = starts.clone().skip(1).chain([self.rows]);
        starts.zip(ends).map(|(start, end)| start..end)
    }

    /// Row numbers in the order of the groups.
    fn order(mut self, ids: &[u32]) -> Vec<u32> {
        let mut order = vec![0u32; ids.len()];
        let mut put = |id: u32, half: usize, row: usize| {
            let to = &mut self.next[id as usize][half];
            order[*to as usize] = row as u32;
            *to += 1;
        };
        let (first, second) = ids.split_at(ids.len() / 2);
        let middle = first.len();
        for (row, (a, b)) in first.iter().zip(second).enumerate() {
            put(*a, 0, row);
            put(*b, 1, middle + row);
        }
        if let Some(odd) = second.get(middle) {
            put(*odd, 1, 2 * middle);
        }
        order
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

//! Changes in memory until they are written: of each key the last counts. A chunk ends with the
//! epoch, or when it holds too much; what later chunks say of the same keys is settled by the commit.
//! Where deleted rows stay, a key may have a row and then a delete in one chunk: what the delete flags.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch},
    compute::{concat, filter, filter_record_batch},
};
use calve_engine::error::{Error, Result};
use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::FxHashMap;

use super::{config::Operation, split::ChangeRows};

/// Changes of which at most one counts for each key.
#[derive(Default)]
pub(crate) struct OpenChunk {
    batches: Vec<Batch>,
    /// The change that counts of each key: batch and row.
    newest: HashTable<(u32, u32)>,
    /// Deleted rows stay in the table.
    soft: bool,
    /// Where they do: the row that a delete which counts will flag, if it came with this chunk.
    flagged: FxHashMap<(u32, u32), (u32, u32)>,
    bytes: usize,
    /// Rows up to this order were removed, by a TRUNCATE in this chunk.
    truncate: Option<Vec<u8>>,
    /// Changes below this order came too late: a TRUNCATE of this epoch has removed their rows.
    floor: Option<Vec<u8>>,
}

struct Batch {
    changes: Arc<ChangeRows>,
    counts: Vec<bool>,
}

/// A chunk, ready to be written.
#[derive(Default)]
pub(crate) struct ClosedChunk {
    pub(crate) truncate: Option<Vec<u8>>,
    /// The rows of inserts and updates, in the order in which they came.
    pub(crate) rows: Vec<RecordBatch>,
    /// Columns of key and order of the deletes; empty: there are none.
    pub(crate) deletes: Vec<ArrayRef>,
}

impl OpenChunk {
    pub(crate) fn new(soft: bool) -> Self {
        Self {
            soft,
            ..Self::default()
        }
    }

    /// Takes some changes of a batch.
    pub(crate) fn take(&mut self, changes: &Arc<ChangeRows>, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        let count = changes.ops.len();
        self.bytes += changes.rows.get_array_memory_size()
            + changes.keyed.keys.size()
            + changes
                .keyed
                .orders
                .as_ref()
                .map_or(0, arrow::row::Rows::size)
            + count * 32;
        let batch = self.batches.len() as u32;
        self.batches.push(Batch {
            changes: changes.clone(),
            counts: vec![false; count],
        });
        for row in rows {
            self.change(batch, row);
        }
    }

    fn change(&mut self, batch: u32, row: usize) {
        let changes = &self.batches[batch as usize].changes;
        match changes.ops[row] {
            Operation::Skip => return,
            Operation::Truncate => return self.truncate(batch, row),
            Operation::Insert | Operation::Update | Operation::Delete => {}
        }
        let order = changes.keyed.order(row);
        if self
            .floor
            .as_ref()
            .is_some_and(|floor| order < floor.as_slice())
        {
            return;
        }
        let key = changes.keyed.keys.row(row);
        let batches = &self.batches;
        let at = |&(batch, row): &(u32, u32)| (&*batches[batch as usize].changes, row as usize);
        let same = |place: &(u32, u32)| {
            let (changes, row) = at(place);
            changes.keyed.keys.row(row) == key
        };
        let hash = |place: &(u32, u32)| {
            let (changes, row) = at(place);
            changes.hashes[row]
        };
        let mut replaced = None;
        match self.newest.entry(changes.hashes[row], same, hash) {
            Entry::Vacant(vacant) => {
                vacant.insert((batch, row as u32));
            }
            Entry::Occupied(mut held) => {
                let (before, before_row) = at(held.get());
                // Of two with one order the one that comes later counts.
                if before.keyed.order(before_row) > order {
                    return;
                }
                replaced = Some(std::mem::replace(held.get_mut(), (batch, row as u32)));
            }
        }
        let place = (batch, row as u32);
        self.count(place, true);
        let Some(before) = replaced else { return };
        // The row that the key has here, if any.
        let held = if self.is_delete(before) {
            self.count(before, false);
            self.flagged.remove(&before)
        } else {
            Some(before)
        };
        match held {
            Some(held) if self.soft && self.is_delete(place) => {
                self.flagged.insert(place, held);
            }
            Some(held) => self.count(held, false),
            None => {}
        }
    }

    fn count(&mut self, (batch, row): (u32, u32), counts: bool) {
        self.batches[batch as usize].counts[row as usize] = counts;
    }

    fn is_delete(&self, (batch, row): (u32, u32)) -> bool {
        self.batches[batch as usize].changes.ops[row as usize] == Operation::Delete
    }

    /// Everything up to the order of this change is gone. Where rows stay that is the commit's to say, and
    /// the chunk is empty.
    fn truncate(&mut self, batch: u32, row: usize) {
        let order = self.batches[batch as usize]
            .changes
            .keyed
            .order(row)
            .to_vec();
        let batches = &mut self.batches;
        self.newest.retain(|&mut (batch, row)| {
            let Batch { changes, counts } = &mut batches[batch as usize];
            let stays = changes.keyed.order(row as usize) > order.as_slice();
            counts[row as usize] = stays;
            stays
        });
        for truncated in [&mut self.truncate, &mut self.floor] {
            if truncated.as_ref().is_none_or(|before| *before < order) {
                *truncated = Some(order.clone());
            }
        }
    }

    /// Bytes that it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing was taken since the last chunk.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.truncate.is_none()
    }

    /// Ends the chunk. What came too late by a TRUNCATE comes too late in the next chunk, too.
    pub(crate) fn close(&mut self) -> Result<ClosedChunk> {
        let failed = |e| Error::internal("cannot gather changes").because(e);
        let fresh = Self::new(self.soft);
        let open = std::mem::replace(self, fresh);
        self.floor = open.floor;
        let mut closed = ClosedChunk {
            truncate: open.truncate,
            ..ClosedChunk::default()
        };
        let mut deletes: Vec<Vec<ArrayRef>> = Vec::new();
        for Batch { changes, counts } in open.batches {
            let is_row = |op: &Operation| *op != Operation::Delete;
            let pick = |rows: bool| -> BooleanArray {
                let both = counts.iter().zip(&changes.ops);
                both.map(|(counts, op)| Some(*counts && is_row(op) == rows))
                    .collect()
            };
            let rows = pick(true);
            if rows.true_count() > 0 {
                closed.rows.push(if rows.true_count() == rows.len() {
                    changes.rows.clone()
                } else {
                    filter_record_batch(&changes.rows, &rows).map_err(failed)?
                });
            }
            let gone = pick(false);
            if gone.true_count() > 0 {
                let columns = changes.columns.iter().map(|column| filter(column, &gone));
                deletes.push(columns.collect::<Result<_, _>>().map_err(failed)?);
            }
        }
        if let Some(first) = deletes.first() {
            closed.deletes = (0..first.len())
                .map(|n| {
                    let parts: Vec<&dyn arrow::array::Array> =
                        deletes.iter().map(|columns| columns[n].as_ref()).collect();
                    concat(&parts)
                })
                .collect::<Result<_, _>>()
                .map_err(failed)?;
        }
        Ok(closed)
    }
}

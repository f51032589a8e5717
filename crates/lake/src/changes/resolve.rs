//! From changes to positions, against one snapshot of the table: which rows of which files are gone
//! when an epoch is committed. Blocks; run away from the threads of the I/O.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{array::RecordBatch, row::Rows};
use calve_engine::error::Result;
use roaring::RoaringTreemap;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    index::{Entry, FileId, KeyIndex, Where},
    keys::{KeyCodec, KeyedRows},
    stored::StoredColumns,
};

/// Rows to delete, by data file.
pub(crate) type Positions = FxHashMap<FileId, RoaringTreemap>;
/// Keys to delete, by the data file that has the row.
pub(crate) type Keys = FxHashMap<FileId, Vec<Box<[u8]>>>;
/// Rows that stay with the flag of deleted ones, by data file, and the order that each gets; none: its
/// own. They are among those to delete, too: each is written anew.
pub(crate) type Flags = FxHashMap<FileId, BTreeMap<u32, Option<Box<[u8]>>>>;

/// A chunk, read.
#[derive(Debug, Default)]
pub(crate) struct ReadChunk {
    /// Up to this order all rows are removed before the chunk.
    pub(crate) truncate: Option<Vec<u8>>,
    /// Locations of its data files.
    pub(crate) files: Vec<Arc<str>>,
    /// Keys and orders to delete.
    pub(crate) deletes: Vec<RecordBatch>,
}

/// What became of the changes of an epoch.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) positions: Positions,
    /// Keys whose rows are deleted by value, and not by position.
    pub(crate) keys: Keys,
    pub(crate) flags: Flags,
    /// Everything that the table had is removed, and these chunks are the first that count.
    pub(crate) truncated: Option<usize>,
    /// Changes older than what the table holds.
    pub(crate) stale: u64,
    /// Rows that were there and are deleted or replaced.
    pub(crate) replaced: u64,
}

/// Settles changes by the index.
pub(crate) struct Resolver<'a> {
    pub(crate) index: &'a mut KeyIndex,
    pub(crate) codec: &'a KeyCodec,
    pub(crate) columns: &'a StoredColumns,
    /// Data files of the base snapshot.
    pub(crate) live: &'a FxHashSet<FileId>,
    /// Rows of the base snapshot are deleted by value.
    pub(crate) by_value: bool,
    /// Seconds since 1970.
    pub(crate) now: u32,
}

impl Resolver<'_> {
    /// Applies the chunks in their order, and brings the index to the state after them.
    ///
    /// # Errors
    /// Those of reading and of the index; the index is of no use then.
    pub(crate) fn resolve(&mut self, chunks: &[ReadChunk]) -> Result<Resolved> {
        let mut resolved = Resolved::default();
        let soft = self.codec.soft();
        // Files of the chunks before are live as soon as they were applied.
        let mut new = FxHashSet::default();
        for (n, chunk) in chunks.iter().enumerate() {
            if let Some(order) = &chunk.truncate {
                self.truncate(order, n, &new, &mut resolved)?;
            }
            if !soft {
                self.delete_all(chunk, &new, &mut resolved)?;
            }
            for path in &chunk.files {
                let file = FileId::of(path);
                let columns = self.columns;
                columns.read(path, |first, keyed| {
                    self.upserts(file, first, &keyed, &new, &mut resolved)
                })?;
            }
            new.extend(chunk.files.iter().map(|path| FileId::of(path)));
            // A row may come with the chunk that deletes it: what is flagged must be there.
            if soft {
                self.delete_all(chunk, &new, &mut resolved)?;
            }
        }
        Ok(resolved)
    }

    fn delete_all(
        &mut self,
        chunk: &ReadChunk,
        new: &FxHashSet<FileId>,
        resolved: &mut Resolved,
    ) -> Result<()> {
        for rows in &chunk.deletes {
            let keyed = self.codec.encode_run(rows)?;
            self.deletes(&keyed, new, resolved)?;
        }
        Ok(())
    }

    fn upserts(
        &mut self,
        file: FileId,
        first: u32,
        keyed: &KeyedRows,
        new: &FxHashSet<FileId>,
        resolved: &mut Resolved,
    ) -> Result<()> {
        let found = self.index.get(&keyed.keys)?;
        for row in 0..keyed.keys.num_rows() {
            let order = keyed.order(row);
            let at = first + row as u32;
            let held = found.entry(row);
            if self.is_stale(held.as_ref(), order) {
                resolved
                    .positions
                    .entry(file)
                    .or_default()
                    .insert(at.into());
                resolved.stale += 1;
                continue;
            }
            if let Some(held) = held {
                self.remove(keyed.keys.row(row).data(), &held, new, resolved);
            }
            let place = Where::Row { file, row: at };
            self.index
                .put(keyed.keys.row(row).data(), &Entry { place, order })?;
        }
        Ok(())
    }

    fn deletes(
        &mut self,
        keyed: &KeyedRows,
        new: &FxHashSet<FileId>,
        resolved: &mut Resolved,
    ) -> Result<()> {
        let found = self.index.get(&keyed.keys)?;
        for row in 0..keyed.keys.num_rows() {
            let order = keyed.order(row);
            let held = found.entry(row);
            if self.is_stale(held.as_ref(), order) {
                resolved.stale += 1;
                continue;
            }
            if let Some(held) = &held {
                let key = keyed.keys.row(row);
                if self.codec.soft() && self.flag(key.data(), held, Some(order), new, resolved) {
                    let place = held.place;
                    self.index.put(key.data(), &Entry { place, order })?;
                    continue;
                }
                self.remove(key.data(), held, new, resolved);
            }
            self.bury(&keyed.keys, row, order)?;
        }
        Ok(())
    }

    /// Whether a change is older than what the table holds of its key, or than a TRUNCATE.
    fn is_stale(&self, held: Option<&Entry<'_>>, order: &[u8]) -> bool {
        held.is_some_and(|held| held.order > order) || self.index.below_floor(order)
    }

    /// What is left of a deleted key.
    fn bury(&mut self, keys: &Rows, row: usize, order: &[u8]) -> Result<()> {
        let key = keys.row(row);
        if self.codec.ordered() {
            let place = Where::Deleted { at: self.now };
            self.index.put(key.data(), &Entry { place, order })
        } else {
            self.index.delete(key.data())
        }
    }

    /// A row that is in the table stays, with a flag. False: there is none.
    fn flag(
        &self,
        key: &[u8],
        held: &Entry<'_>,
        order: Option<&[u8]>,
        new: &FxHashSet<FileId>,
        resolved: &mut Resolved,
    ) -> bool {
        let Where::Row { file, row } = held.place else {
            return false;
        };
        let of_file = resolved.flags.get(&file);
        let is_flagged = of_file.is_some_and(|rows| rows.contains_key(&row));
        if !is_flagged && !self.remove(key, held, new, resolved) {
            return false;
        }
        let kept = resolved.flags.entry(file).or_default().entry(row);
        let kept = kept.or_default();
        if let Some(order) = order {
            *kept = Some(order.into());
        }
        true
    }

    /// A row that is in the table no longer belongs there. False: there is none.
    fn remove(
        &self,
        key: &[u8],
        held: &Entry<'_>,
        new: &FxHashSet<FileId>,
        resolved: &mut Resolved,
    ) -> bool {
        let Where::Row { file, row } = held.place else {
            return false;
        };
        // One that was to be flagged goes already.
        let flags = resolved.flags.get_mut(&file);
        if flags.is_some_and(|rows| rows.remove(&row).is_some()) {
            return true;
        }
        let live = self.live.contains(&file);
        if live && self.by_value {
            resolved.keys.entry(file).or_default().push(key.into());
        } else if live || new.contains(&file) {
            let rows = resolved.positions.entry(file).or_default();
            rows.insert(row.into());
        } else {
            return false;
        }
        resolved.replaced += 1;
        true
    }

    fn truncate(
        &mut self,
        order: &[u8],
        chunk: usize,
        new: &FxHashSet<FileId>,
        resolved: &mut Resolved,
    ) -> Result<()> {
        let soft = self.codec.soft();
        if !self.codec.ordered() && !soft {
            self.index.clear()?;
            resolved.positions.clear();
            resolved.keys.clear();
            resolved.truncated = Some(chunk);
            return Ok(());
        }
        let mut gone = Vec::new();
        self.index.scan(|key, entry| {
            if entry.order <= order && matches!(entry.place, Where::Row { .. }) {
                if soft && self.flag(key, &entry, None, new, resolved) {
                    return;
                }
                self.remove(key, &entry, new, resolved);
                gone.push(key.to_vec());
            }
        })?;
        for key in gone {
            self.index.delete(&key)?;
        }
        if self.codec.ordered() {
            self.index.raise_floor(order);
        }
        Ok(())
    }
}

/// The rows of a data file were in others before, and each is the row of its key.
///
/// # Errors
/// Those of reading and of the index; the index is of no use then.
pub(crate) fn relocate(index: &mut KeyIndex, columns: &StoredColumns, path: &str) -> Result<()> {
    let file = FileId::of(path);
    columns.read(path, |first, keyed| {
        for row in 0..keyed.keys.num_rows() {
            let place = Where::Row {
                file,
                row: first + row as u32,
            };
            let order = keyed.order(row);
            index.put(keyed.keys.row(row).data(), &Entry { place, order })?;
        }
        Ok(())
    })
}

/// Puts the rows of a data file that is in the table into the index.
pub(crate) struct Indexer<'a> {
    pub(crate) index: &'a mut KeyIndex,
    pub(crate) codec: &'a KeyCodec,
    pub(crate) columns: &'a StoredColumns,
    pub(crate) live: &'a FxHashSet<FileId>,
}

impl Indexer<'_> {
    /// `deleted` are rows that deletes remove. Answers with the rows that have a key which another
    /// row has, too, and lose against it: the higher order counts, then what was indexed last.
    ///
    /// # Errors
    /// Those of reading and of the index.
    pub(crate) fn add(
        &mut self,
        path: &str,
        deleted: &RoaringTreemap,
        lost: &mut Positions,
    ) -> Result<()> {
        let file = FileId::of(path);
        self.columns.read(path, |first, keyed| {
            let found = self.index.get(&keyed.keys)?;
            // Two rows of one piece may have one key, in a table that others have written.
            let mut here: FxHashMap<&[u8], u32> = FxHashMap::default();
            for row in 0..keyed.keys.num_rows() {
                let at = first + row as u32;
                if deleted.contains(at.into()) {
                    continue;
                }
                let order = keyed.order(row);
                let key = keyed.keys.row(row);
                let twin = here.get(key.data()).map(|&at| Entry {
                    place: Where::Row { file, row: at },
                    order: keyed.order((at - first) as usize),
                });
                let held = twin.or_else(|| found.entry(row));
                if let Some(Entry {
                    place:
                        Where::Row {
                            file: other,
                            row: before,
                        },
                    order: others,
                }) = held
                    && (self.live.contains(&other) || other == file)
                    && (other, before) != (file, at)
                {
                    if others > order {
                        lost.entry(file).or_default().insert(at.into());
                        continue;
                    }
                    lost.entry(other).or_default().insert(before.into());
                }
                let place = Where::Row { file, row: at };
                self.index.put(key.data(), &Entry { place, order })?;
                here.insert(keyed.keys.row(row).data(), at);
            }
            Ok(())
        })
    }

    /// Puts keys that were deleted into the index, where no row has them.
    ///
    /// # Errors
    /// Those of the index.
    pub(crate) fn bury(&mut self, rows: &RecordBatch, at: u32) -> Result<()> {
        let keyed = self.codec.encode_run(rows)?;
        let found = self.index.get(&keyed.keys)?;
        for row in 0..keyed.keys.num_rows() {
            let order = keyed.order(row);
            if found.entry(row).is_none_or(|held| held.order <= order) {
                let place = Where::Deleted { at };
                self.index
                    .put(keyed.keys.row(row).data(), &Entry { place, order })?;
            }
        }
        Ok(())
    }
}

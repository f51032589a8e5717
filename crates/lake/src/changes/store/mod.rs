//! An embedded map from small byte keys to small byte values, for an index that can be rebuilt.
//!
//! Made for one thread that looks up and puts large batches, with little memory and little disk. Not
//! a database: nothing is synced. Instead, whatever is killed or lost, [`Store::open`] finds the state
//! of one of the last commits, complete, or says that the store is damaged (`InvalidData`): then
//! delete the folder and build it again.
//!
//! How it works: what is put goes into a hash table in memory (`memtable`) and into a log. A full
//! table is written as sorted runs, one per shard of the keys (`run`), and runs are merged as
//! `plan` says. While everything fits into memory, only the log is ever written. The manifest
//! lists runs and log; runs that were written before their commit are listed by it only then. Start
//! reading at [`Store::commit`].

mod batch;
mod block;
mod files;
mod filter;
mod hash;
mod levels;
mod log;
mod manifest;
mod memtable;
mod merge;
mod plan;
mod probe;
mod run;
mod run_cursor;
mod run_writer;
#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use batch::{Keys, Values};
use hash::{SHARDS, hash_key, shard_of};
use levels::Levels;
use log::Log;
use manifest::Manifest;
use memtable::{Memtable, Value};
use probe::{Probe, sort_probes};
use run::Scratch;

/// Longest key, in bytes.
pub(crate) const KEY_MAX: usize = u16::MAX as usize;
/// Longest value, in bytes.
pub(crate) const VALUE_MAX: usize = u16::MAX as usize - 1;

/// A log that has grown to this many times of what it holds is written anew.
const LOG_GROWTH: u64 = 4;
const MEMORY_MIN_BYTES: usize = 16 << 10;
/// Keys that are looked up in the table together.
const WARM_KEYS: usize = 32;
/// A log below this size is left alone.
const LOG_MIN_BYTES: u64 = 1 << 20;

/// How a store behaves; may differ each time it is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Bytes of memory for table, filters, indexes and buffers together; at least 16 KiB are taken.
    /// Filters shrink when they do not fit; indexes, about 1 % of what is on disk, do not. What a
    /// batch of keys and its values take comes on top, and ten bytes for each key of the batch.
    pub(crate) memory_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
        }
    }
}

/// An open store. One process at a time can hold it open.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    /// Locked as long as the store is open.
    _lock: File,
    memory: usize,
    seed: u64,
    table: Memtable,
    levels: Levels,
    log: Log,
    /// The manifest on disk lists `log`, which must hold `log_min` bytes.
    log_listed: bool,
    log_min: u64,
    meta: Option<Vec<u8>>,
    /// Files that the manifest on disk still lists and the next will not.
    obsolete: Vec<PathBuf>,
    /// Shards take turns at merging, bit by bit while the table fills again, so that no commit takes
    /// long. Whose turn it is, and how many turns are still to come for what was written.
    turn: usize,
    turns_owed: usize,
    /// A change failed half way: memory and disk may differ.
    broken: bool,
}

impl Store {
    /// Opens the store in `folder`, or creates an empty one.
    ///
    /// # Errors
    /// `WouldBlock` when it is open elsewhere, `InvalidData` when it is damaged, and what the file
    /// system says.
    pub(crate) fn open(folder: &Path, options: Options) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(files::LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                format!(
                    "the key store is open elsewhere: folder={}",
                    folder.display()
                ),
            ),
            TryLockError::Error(error) => error,
        })?;
        let manifest = match Manifest::load(folder)? {
            Some(manifest) => manifest,
            None => Self::create(folder)?,
        };
        let (seed, memory) = (manifest.seed, options.memory_bytes.max(MEMORY_MIN_BYTES));
        let mut levels = Levels::open(
            folder.to_path_buf(),
            seed,
            manifest.next_id,
            memory * 3 / 8,
            &manifest.shards,
        )?;
        let mut keep: Vec<PathBuf> = levels.paths().collect();
        keep.push(files::log_path(folder, manifest.log_id));
        files::remove_strays(folder, &keep)?;

        let mut table = Memtable::new(
            seed,
            table_limit(memory, levels.memory_bytes()),
            memory / 4 * 3,
        );
        let mut spilled = false;
        let log = (manifest.log_id, manifest.log_salt, manifest.log_min);
        let (log, meta) = Log::replay(folder, log, |key, value| {
            if !table.fits(key, value) && !make_room(&mut table, &levels) {
                levels.spill(&table)?;
                levels.merge_uncommitted()?;
                table.clear();
                table.set_limit(table_limit(memory, levels.memory_bytes()));
                spilled = true;
            }
            table.put(hash_key(seed, key), key, value);
            Ok(())
        })?;
        let mut store = Self {
            folder: folder.to_path_buf(),
            _lock: lock,
            memory,
            seed,
            table,
            levels,
            log,
            log_listed: true,
            log_min: manifest.log_min,
            meta,
            obsolete: Vec::new(),
            turn: 0,
            turns_owed: SHARDS,
            broken: false,
        };
        if spilled {
            store.rewrite_log()?;
        }
        Ok(store)
    }

    fn create(folder: &Path) -> io::Result<Manifest> {
        files::remove_strays(folder, &[])?;
        let shards = (0..SHARDS).map(|_| Vec::new()).collect();
        let log_salt = hash::random() as u32;
        let manifest = Manifest {
            seed: hash::random(),
            next_id: 1,
            log_id: 0,
            log_salt,
            log_min: 0,
            shards,
        };
        Log::create(folder, manifest.log_id, log_salt)?;
        manifest.save(folder)?;
        Ok(manifest)
    }

    /// What the last commit said; `None` when there was none since the store was created or cleared.
    pub(crate) fn meta(&self) -> Option<&[u8]> {
        self.meta.as_deref()
    }

    /// Looks up a batch of keys. What was put counts at once, committed or not.
    ///
    /// # Errors
    /// `InvalidData` when the store is damaged, `InvalidInput` when the values pass 4 GiB together,
    /// and what the file system says.
    pub(crate) fn get(&self, keys: &Keys) -> io::Result<Values> {
        const FOUND: u8 = u8::MAX;
        self.check()?;
        let mut values = Values::none(keys.len());
        let in_memory = self.levels.is_empty();
        let mut shards = Vec::with_capacity(if in_memory { 0 } else { keys.len() });
        let mut hashes = Vec::with_capacity(WARM_KEYS);
        for start in (0..keys.len()).step_by(WARM_KEYS) {
            let group = start..keys.len().min(start + WARM_KEYS);
            hashes.clear();
            hashes.extend(
                group
                    .clone()
                    .map(|index| hash_key(self.seed, keys.get(index))),
            );
            self.table.warm(&hashes);
            for (index, hash) in group.zip(&hashes) {
                let known = self.table.get(*hash, keys.get(index));
                if let Some(Some(value)) = known {
                    values.set(index, |out| out.extend_from_slice(value))?;
                }
                if !in_memory {
                    shards.push(if known.is_some() {
                        FOUND
                    } else {
                        shard_of(*hash) as u8
                    });
                }
            }
        }
        let (mut probes, mut scratch) = (Vec::new(), Scratch::default());
        for shard in 0..SHARDS {
            probes.clear();
            for (index, _) in shards
                .iter()
                .enumerate()
                .filter(|(_, of)| usize::from(**of) == shard)
            {
                let hash = hash_key(self.seed, keys.get(index));
                probes.push(Probe {
                    word: 0,
                    hash,
                    index: index as u32,
                });
            }
            sort_probes(keys, &mut probes);
            self.levels
                .find(shard, keys, &mut probes, &mut scratch, &mut values)?;
        }
        Ok(values)
    }

    /// Sets the value of a key, which may be empty.
    ///
    /// # Errors
    /// `InvalidInput` when key or value is too long ([`KEY_MAX`], [`VALUE_MAX`]). Any other error may
    /// have come half way: the store then refuses everything until it is opened again.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.change(key, Some(value))
    }

    /// Deletes a key; it need not be there.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub(crate) fn delete(&mut self, key: &[u8]) -> io::Result<()> {
        self.change(key, None)
    }

    fn change(&mut self, key: &[u8], value: Value<'_>) -> io::Result<()> {
        self.check()?;
        if key.len() > KEY_MAX || value.is_some_and(|value| value.len() > VALUE_MAX) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "too long for the key store: key_bytes={} value_bytes={}",
                    key.len(),
                    value.map_or(0, <[u8]>::len)
                ),
            ));
        }
        // A batch that writes the same keys over and over must not grow the log for ever.
        let long_log =
            self.log.uncommitted() > LOG_GROWTH * (self.memory as u64).max(LOG_MIN_BYTES);
        if long_log || (!self.table.fits(key, value) && !make_room(&mut self.table, &self.levels)) {
            self.guarded(Self::spill)?;
        }
        self.table.put(hash_key(self.seed, key), key, value);
        let logged = self.log.put(key, value);
        self.broken |= logged.is_err();
        logged
    }

    /// Makes everything that was put since the last commit last, together with `meta`: after a crash
    /// all of it is there or nothing.
    ///
    /// # Errors
    /// What the file system says; whether the commit has happened is known when the store is opened
    /// again, by its [`Store::meta`].
    pub(crate) fn commit(&mut self, meta: &[u8]) -> io::Result<()> {
        self.check()?;
        self.guarded(|store| {
            // While the manifest lists this log, its commit record is the point of no return.
            // Otherwise runs were written since, and it is the manifest that names them and this log.
            store.log.commit(meta)?;
            store.meta = Some(meta.to_vec());
            let live = (store.table.live_bytes() as u64).max(LOG_MIN_BYTES / LOG_GROWTH);
            if !store.log_listed {
                store.log_min = store.log.committed();
                store.publish()?;
            } else if store.log.committed() > live * LOG_GROWTH {
                store.rewrite_log()?;
            }
            store.merge_due()
        })
    }

    /// Empties the store, for good and at once: [`Store::meta`] says `None` then.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.check()?;
        self.guarded(|store| {
            store.table.clear();
            store.obsolete.extend(store.levels.clear());
            store.new_log()?;
            store.log_min = 0;
            store.meta = None;
            store.set_table_limit();
            store.publish()
        })
    }

    /// Hands every key and its value to `each`, once, in any order, in bounded memory.
    ///
    /// # Errors
    /// `InvalidData` when the store is damaged, and what the file system says.
    pub(crate) fn scan(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        self.check()?;
        for shard in 0..SHARDS {
            self.levels.scan(shard, &self.table, |key, value| {
                if let Some(value) = value {
                    each(key, value);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Keys in the store, about: a key that was put again counts twice until it leaves the table in
    /// memory. Exact while everything is in memory.
    pub(crate) fn len_estimate(&self) -> u64 {
        self.levels.live_keys() + (self.table.len() - self.table.deleted()) as u64
    }

    /// Bytes of its files now.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn disk_bytes(&self) -> io::Result<u64> {
        files::folder_bytes(&self.folder)
    }

    /// Bytes of memory that table, filters and indexes take now.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.bytes() + self.levels.memory_bytes()
    }

    fn check(&self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other(
                "the key store failed in the middle of a change: open it again",
            ));
        }
        Ok(())
    }

    fn guarded(&mut self, change: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        self.broken = true;
        change(self)?;
        self.broken = false;
        Ok(())
    }

    /// Writes the table as runs, which count when the next commit lists them, with a log of its own.
    fn spill(&mut self) -> io::Result<()> {
        self.levels.spill(&self.table)?;
        self.table.clear();
        self.turns_owed += SHARDS;
        self.new_log()?;
        self.levels.merge_uncommitted()?;
        self.set_table_limit();
        Ok(())
    }

    fn set_table_limit(&mut self) {
        self.table
            .set_limit(table_limit(self.memory, self.levels.memory_bytes()));
    }

    /// Replaces the log by an empty one that the next manifest will list.
    fn new_log(&mut self) -> io::Result<()> {
        let id = self.levels.new_id();
        let old = std::mem::replace(
            &mut self.log,
            Log::create(&self.folder, id, hash::random() as u32)?,
        );
        if self.log_listed {
            self.obsolete.push(old.abandon()?);
        } else {
            files::remove(old.path())?;
        }
        self.log_listed = false;
        Ok(())
    }

    /// Writes what the table holds, which is committed, to a new log, and lets the manifest list it.
    fn rewrite_log(&mut self) -> io::Result<()> {
        self.new_log()?;
        for (key, value) in self.table.iter() {
            self.log.put(key, value)?;
        }
        self.log.commit(self.meta.as_deref().unwrap_or_default())?;
        self.log_min = self.log.committed();
        self.publish()
    }

    /// Writes the manifest, and deletes what it no longer lists.
    fn publish(&mut self) -> io::Result<()> {
        let manifest = Manifest {
            seed: self.seed,
            next_id: self.levels.next_id(),
            log_id: self.log.id,
            log_salt: self.log.salt,
            log_min: self.log_min,
            shards: self.levels.entries(),
        };
        manifest.save(&self.folder)?;
        self.log_listed = true;
        self.levels.set_committed();
        for path in self.obsolete.drain(..) {
            files::remove(&path)?;
        }
        Ok(())
    }

    /// Merges what is due in as many shards as the table is full, each with a manifest of its own: so
    /// only one shard's old and new runs stand on disk together.
    fn merge_due(&mut self) -> io::Result<()> {
        let may_wait = SHARDS - (SHARDS * self.table.bytes() / self.table.limit()).min(SHARDS);
        while self.turns_owed > may_wait {
            while let Some(replaced) = self.levels.merge_next(self.turn)? {
                self.obsolete.extend(replaced);
                self.publish()?;
                self.set_table_limit();
            }
            self.turn = (self.turn + 1) % SHARDS;
            self.turns_owed -= 1;
        }
        Ok(())
    }
}

/// What the table may take of `memory` when filters and indexes take `others`.
fn table_limit(memory: usize, others: usize) -> usize {
    let buffers = memory / 16;
    memory
        .saturating_sub(others + buffers)
        .clamp(memory / 4, memory / 4 * 3)
}

/// Compacts the table, if that helps and then another entry probably fits; false: write it out.
fn make_room(table: &mut Memtable, levels: &Levels) -> bool {
    let drop_deleted = levels.is_empty();
    let worth = table.worth_compacting(drop_deleted);
    if worth {
        table.compact(drop_deleted);
    }
    worth
}

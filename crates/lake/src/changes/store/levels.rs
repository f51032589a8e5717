//! The runs of all shards: writing them from the memtable, merging them, finding keys in them.
//!
//! Runs that the manifest lists stay until a manifest without them has been written; newer ones may
//! come and go before that.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::batch::{Keys, Values};
use super::files;
use super::filter::Filter;
use super::hash::{SHARDS, hash_key};
use super::manifest::RunEntry;
use super::memtable::{Memtable, Value};
use super::merge::{Source, merge};
use super::plan::{self, Size};
use super::probe::Probe;
use super::run::{Run, Scratch};
use super::run_writer::RunWriter;

const BITS_PER_KEY: u64 = 10;
/// A filter with fewer bits per key than this says too little to be held.
const LEAST_BITS_PER_KEY: u64 = 2;

#[derive(Debug)]
pub(super) struct Levels {
    folder: PathBuf,
    seed: u64,
    /// No file has this number or a higher one.
    next_id: u64,
    /// Bytes that filters may take.
    filter_budget: usize,
    /// Runs of each shard, oldest first.
    shards: Vec<Vec<Run>>,
}

impl Levels {
    pub(super) fn open(
        folder: PathBuf,
        seed: u64,
        next_id: u64,
        filter_budget: usize,
        entries: &[Vec<RunEntry>],
    ) -> io::Result<Self> {
        let open = |runs: &Vec<RunEntry>| {
            runs.iter()
                .map(|entry| Run::open(&folder, *entry))
                .collect()
        };
        let shards = entries
            .iter()
            .map(open)
            .collect::<io::Result<Vec<Vec<Run>>>>()?;
        let mut levels = Self {
            folder,
            seed,
            next_id,
            filter_budget,
            shards,
        };
        levels.trim_filters();
        Ok(levels)
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(Vec::is_empty)
    }

    pub(super) fn entries(&self) -> Vec<Vec<RunEntry>> {
        self.shards
            .iter()
            .map(|runs| runs.iter().map(|run| run.entry).collect())
            .collect()
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.shards.iter().flatten().map(|run| run.path.clone())
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.shards.iter().flatten().map(Run::memory_bytes).sum()
    }

    /// Keys that count, about.
    pub(super) fn live_keys(&self) -> u64 {
        let runs = || self.shards.iter().flatten();
        let present: u64 = runs().map(|run| run.keys - run.deleted).sum();
        present.saturating_sub(runs().map(|run| run.entry.shadow).sum())
    }

    /// The manifest lists all runs now.
    pub(super) fn set_committed(&mut self) {
        self.shards
            .iter_mut()
            .flatten()
            .for_each(|run| run.committed = true);
    }

    /// Forgets all runs, and returns their files.
    pub(super) fn clear(&mut self) -> Vec<PathBuf> {
        let paths = self.paths().collect();
        self.shards.iter_mut().for_each(Vec::clear);
        paths
    }

    /// An empty filter for `keys` keys of the `total` in the store, or none when memory is too short.
    fn new_filter(&self, keys: u64, total: u64) -> Option<Filter> {
        let affordable = self.filter_budget as u64 * 8 / total.max(1);
        let bits = affordable.min(BITS_PER_KEY);
        (bits >= LEAST_BITS_PER_KEY).then(|| Filter::new(keys, bits))
    }

    fn total_keys(&self) -> u64 {
        self.shards.iter().flatten().map(|run| run.keys).sum()
    }

    /// Gives up filters, the largest first, until they fit a budget that has become smaller.
    fn trim_filters(&mut self) {
        let size = |run: &Run| run.filter.as_ref().map_or(0, Filter::bytes);
        let mut bytes: usize = self.shards.iter().flatten().map(size).sum();
        while bytes > self.filter_budget * 4 / 3 {
            let Some(largest) = self.shards.iter_mut().flatten().max_by_key(|run| size(run)) else {
                return;
            };
            bytes -= size(largest);
            largest.filter = None;
        }
    }

    /// Writes the memtable as one new run per shard.
    pub(super) fn spill(&mut self, table: &Memtable) -> io::Result<()> {
        let total = self.total_keys() + table.len() as u64;
        for shard in 0..SHARDS {
            let sorted = table.sorted(shard);
            let keys = sorted.len() as u64;
            let Some(source) = Source::table(sorted) else {
                continue;
            };
            let id = self.new_id();
            let mut writer = RunWriter::create(&self.folder, id, self.new_filter(keys, total))?;
            let older = &self.shards[shard];
            let (seed, mut shadow) = (self.seed, 0);
            merge(vec![source], |key, value| {
                if older.is_empty() && value.is_none() {
                    return Ok(());
                }
                let hash = hash_key(seed, key);
                shadow += u64::from(older.iter().any(|run| run.may_contain(hash)));
                writer.push(key, hash, value)
            })?;
            self.shards[shard].extend(writer.finish(shadow)?);
        }
        self.trim_filters();
        Ok(())
    }

    /// Merges runs that no manifest lists, where there are many, and deletes the files they were.
    pub(super) fn merge_uncommitted(&mut self) -> io::Result<()> {
        for shard in 0..SHARDS {
            let old = self.shards[shard]
                .iter()
                .take_while(|run| run.committed)
                .count();
            while let Some(range) = plan::next_similar(&self.sizes(shard)[old..]) {
                for path in self.merge_range(shard, range.start + old..range.end + old)? {
                    files::remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Does the next merge that the shard is due for, and returns the files that are no longer needed;
    /// `None` when it is due for none.
    pub(super) fn merge_next(&mut self, shard: usize) -> io::Result<Option<Vec<PathBuf>>> {
        plan::next_merge(&self.sizes(shard))
            .map(|range| self.merge_range(shard, range))
            .transpose()
    }

    fn sizes(&self, shard: usize) -> Vec<Size> {
        let size = |run: &Run| Size {
            bytes: run.entry.bytes,
            keys: run.keys,
            garbage: run.deleted + run.entry.shadow,
        };
        self.shards[shard].iter().map(size).collect()
    }

    fn merge_range(&mut self, shard: usize, range: Range<usize>) -> io::Result<Vec<PathBuf>> {
        let id = self.new_id();
        let runs = &self.shards[shard][range.clone()];
        let keys: u64 = runs.iter().map(|run| run.keys).sum();
        let shadow: u64 = runs.iter().map(|run| run.entry.shadow).sum();
        let mut writer =
            RunWriter::create(&self.folder, id, self.new_filter(keys, self.total_keys()))?;
        let sources = runs
            .iter()
            .rev()
            .map(Source::run)
            .collect::<io::Result<_>>()?;
        let (seed, oldest, mut kept) = (self.seed, range.start == 0, 0);
        merge(sources, |key, value| {
            kept += 1;
            // Below the oldest run there is nothing that a mark could hide.
            if oldest && value.is_none() {
                Ok(())
            } else {
                writer.push(key, hash_key(seed, key), value)
            }
        })?;
        let shadow = if oldest {
            0
        } else {
            shadow.saturating_sub(keys - kept)
        };
        let merged = writer.finish(shadow)?;
        let replaced = self.shards[shard]
            .splice(range, merged)
            .map(|run| run.path)
            .collect();
        self.trim_filters();
        Ok(replaced)
    }

    /// Looks for the sorted probes of a shard, newest run first.
    pub(super) fn find(
        &self,
        shard: usize,
        keys: &Keys,
        probes: &mut Vec<Probe>,
        scratch: &mut Scratch,
        values: &mut Values,
    ) -> io::Result<()> {
        for run in self.shards[shard].iter().rev() {
            if probes.is_empty() {
                break;
            }
            run.find(keys, probes, scratch, values)?;
        }
        Ok(())
    }

    /// Hands every key of a shard to `each`, marks of deleted ones included; the memtable is newest.
    pub(super) fn scan(
        &self,
        shard: usize,
        table: &Memtable,
        each: impl FnMut(&[u8], Value<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut sources: Vec<Source<'_>> = Source::table(table.sorted(shard)).into_iter().collect();
        for run in self.shards[shard].iter().rev() {
            sources.push(Source::run(run)?);
        }
        merge(sources, each)
    }
}

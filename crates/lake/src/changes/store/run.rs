//! A run: sorted keys of one shard in a file that never changes.
//!
//! The file: blocks; the filter (may be empty); the index; the footer. The index names the start of
//! each block and the shortest key that separates it from the block before. Index and filter are
//! held in memory. The manifest knows the file's length and the footer's checksum, which covers the
//! checksum of filter and index; each block has its own.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::batch::{Keys, Values};
use super::block::{Layout, unpack};
use super::files::{self, damaged};
use super::filter::Filter;
use super::manifest::RunEntry;
use super::probe::Probe;

/// Bytes that are read at once.
pub(super) const READ_BYTES: usize = 64 << 10;
/// Blocks that nobody asked for are read along when that saves a call.
const GAP_BYTES: u32 = 6 << 10;
const DONE: u32 = u32::MAX;

/// Where the blocks are.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Start of each block, and the end of the last.
    pub(super) starts: Vec<u32>,
    pub(super) key_ends: Vec<u32>,
    pub(super) keys: Vec<u8>,
}

impl Index {
    pub(super) fn blocks(&self) -> usize {
        self.key_ends.len()
    }

    fn key(&self, block: usize) -> &[u8] {
        let start = if block == 0 {
            0
        } else {
            self.key_ends[block - 1] as usize
        };
        &self.keys[start..self.key_ends[block] as usize]
    }

    /// The last block that begins at or before `key`, at or after block `from`, which does.
    #[inline]
    fn find_from(&self, from: usize, key: &[u8]) -> usize {
        let (mut low, mut step) = (from, 1);
        while low + step < self.blocks() && self.key(low + step) <= key {
            low += step;
            step *= 2;
        }
        let mut high = (low + step).min(self.blocks());
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if self.key(middle) <= key {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    fn bytes(&self) -> usize {
        (self.starts.len() + self.key_ends.len()) * 4 + self.keys.len()
    }

    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        for number in self.starts.iter().chain(&self.key_ends) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.keys);
    }

    fn read_from(bytes: &[u8], blocks: usize) -> Option<Self> {
        let (numbers, keys) = bytes.split_at_checked((2 * blocks + 1) * 4)?;
        let mut numbers = numbers
            .as_chunks::<4>()
            .0
            .iter()
            .map(|number| u32::from_le_bytes(*number));
        let starts: Vec<u32> = numbers.by_ref().take(blocks + 1).collect();
        let key_ends: Vec<u32> = numbers.collect();
        let ordered = starts.is_sorted() && key_ends.is_sorted();
        let ends_well = key_ends
            .last()
            .is_some_and(|end| *end as usize == keys.len());
        (ordered && ends_well).then(|| Self {
            starts,
            key_ends,
            keys: keys.to_vec(),
        })
    }
}

/// The end of a run's file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footer {
    pub(super) keys: u64,
    pub(super) deleted: u64,
    pub(super) blocks: u64,
    pub(super) filter_at: u64,
    pub(super) index_at: u64,
    /// Checksum of filter and index.
    pub(super) check: u32,
}

impl Footer {
    pub(super) const BYTES: usize = 5 * 8 + 4 + 4;

    /// Appends the footer, and returns its checksum.
    pub(super) fn write_to(self, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        for number in [
            self.keys,
            self.deleted,
            self.blocks,
            self.filter_at,
            self.index_at,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.check.to_le_bytes());
        let check = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&check.to_le_bytes());
        check
    }

    fn read_from(bytes: &[u8], expected: u32) -> Option<Self> {
        let (body, check) = bytes.split_last_chunk::<4>()?;
        let (numbers, tail_check) = body.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*check) != expected || crc32fast::hash(body) != expected {
            return None;
        }
        let [keys, deleted, blocks, filter_at, index_at] =
            *numbers.as_chunks::<8>().0.first_chunk::<5>()?;
        Some(Self {
            keys: u64::from_le_bytes(keys),
            deleted: u64::from_le_bytes(deleted),
            blocks: u64::from_le_bytes(blocks),
            filter_at: u64::from_le_bytes(filter_at),
            index_at: u64::from_le_bytes(index_at),
            check: u32::from_le_bytes(*tail_check),
        })
    }
}

/// Buffers that look-ups share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Block and place among the probes.
    hits: Vec<(u32, u32)>,
    stored: Vec<u8>,
    payload: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) entry: RunEntry,
    /// Keys, those marked as deleted included.
    pub(super) keys: u64,
    pub(super) deleted: u64,
    pub(super) index: Index,
    pub(super) filter: Option<Filter>,
    /// The manifest on disk lists it.
    pub(super) committed: bool,
}

impl Run {
    pub(super) fn open(folder: &Path, entry: RunEntry) -> io::Result<Self> {
        let path = files::run_path(folder, entry.id);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(&path, "not there"));
            }
            result => result?,
        };
        let footer_at = entry.bytes.checked_sub(Footer::BYTES as u64);
        let (Some(footer_at), true) = (footer_at, file.metadata()?.len() == entry.bytes) else {
            return Err(damaged(&path, "not as long as it was"));
        };
        let mut bytes = vec![0; Footer::BYTES];
        files::read_at(&file, &path, footer_at, &mut bytes)?;
        let footer = Footer::read_from(&bytes, entry.check)
            .ok_or_else(|| damaged(&path, "another footer"))?;
        // The checksum has passed: what the footer says is what was written.
        bytes.resize((footer_at - footer.filter_at) as usize, 0);
        files::read_at(&file, &path, footer.filter_at, &mut bytes)?;
        if crc32fast::hash(&bytes) != footer.check {
            return Err(damaged(&path, "checksum of filter and index"));
        }
        let (filter, index) = bytes.split_at((footer.index_at - footer.filter_at) as usize);
        let index = Index::read_from(index, footer.blocks as usize)
            .ok_or_else(|| damaged(&path, "index out of order"))?;
        let (keys, deleted) = (footer.keys, footer.deleted);
        Ok(Self {
            path,
            file,
            entry,
            keys,
            deleted,
            index,
            filter: Filter::read_from(filter),
            committed: true,
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.index.bytes() + self.filter.as_ref().map_or(0, Filter::bytes)
    }

    #[inline]
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.may_contain(hash))
    }

    /// Looks for the probes, which are sorted by key; those that it knows it takes out, and sets their
    /// values, unless the key is marked as deleted.
    pub(super) fn find(
        &self,
        keys: &Keys,
        probes: &mut Vec<Probe>,
        scratch: &mut Scratch,
        values: &mut Values,
    ) -> io::Result<()> {
        let Scratch {
            hits,
            stored,
            payload,
        } = scratch;
        hits.clear();
        let mut block = 0;
        for (at, probe) in probes.iter().enumerate() {
            if self.may_contain(probe.hash) {
                block = self.index.find_from(block, keys.get(probe.index as usize));
                hits.push((block as u32, at as u32));
            }
        }
        let mut rest = &hits[..];
        while let Some((first, _)) = rest.first() {
            let count = self.near(rest);
            let (group, others) = rest.split_at(count);
            rest = others;
            let start = self.index.starts[*first as usize];
            let end = self.index.starts[group[count - 1].0 as usize + 1];
            stored.resize((end - start) as usize, 0);
            files::read_at(&self.file, &self.path, u64::from(start), stored)?;
            for same_block in group.chunk_by(|a, b| a.0 == b.0) {
                let block = same_block[0].0 as usize;
                let range = self.index.starts[block] - start..self.index.starts[block + 1] - start;
                let (layout, payload) =
                    self.unpack(&stored[range.start as usize..range.end as usize], payload)?;
                for (_, at) in same_block {
                    let probe = &mut probes[*at as usize];
                    let index = probe.index as usize;
                    if let Some(entry) = layout.find(payload, keys.get(index)) {
                        if !layout.is_deleted(payload, entry) {
                            values.set(index, |out| layout.value(payload, entry, out))?;
                        }
                        probe.index = DONE;
                    }
                }
            }
        }
        probes.retain(|probe| probe.index != DONE);
        Ok(())
    }

    /// How many of the hits, at least one, are worth one read.
    fn near(&self, hits: &[(u32, u32)]) -> usize {
        let starts = &self.index.starts;
        let first = starts[hits[0].0 as usize];
        let mut last = hits[0].0 as usize;
        hits.iter()
            .position(|(block, _)| {
                let block = *block as usize;
                let apart = block > last
                    && (starts[block] - starts[last + 1] > GAP_BYTES
                        || (starts[block + 1] - first) as usize > READ_BYTES);
                last = block;
                apart
            })
            .unwrap_or(hits.len())
    }

    /// Checks a block and takes it apart.
    pub(super) fn unpack<'a>(
        &self,
        stored: &'a [u8],
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<(Layout, &'a [u8])> {
        unpack(stored, buffer)
            .and_then(|payload| Some((Layout::parse(payload)?, payload)))
            .ok_or_else(|| damaged(&self.path, "checksum of a block"))
    }
}

//! Writes a run from keys that come in order.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::block::BlockBuilder;
use super::files;
use super::filter::Filter;
use super::hash::shared_prefix;
use super::manifest::RunEntry;
use super::memtable::Value;
use super::run::{Footer, Index, Run};

const WRITE_BYTES: usize = 128 << 10;

pub(super) struct RunWriter {
    path: PathBuf,
    file: File,
    id: u64,
    /// What is not yet in the file.
    out: Vec<u8>,
    written: u64,
    block: BlockBuilder,
    /// The last key of the last block.
    last_key: Vec<u8>,
    index: Index,
    filter: Option<Filter>,
    keys: u64,
    deleted: u64,
}

impl RunWriter {
    /// `filter`: an empty one that is large enough, or none.
    pub(super) fn create(folder: &Path, id: u64, filter: Option<Filter>) -> io::Result<Self> {
        let path = files::run_path(folder, id);
        let file = files::create(&path)?;
        Ok(Self {
            path,
            file,
            id,
            out: Vec::with_capacity(WRITE_BYTES + (8 << 10)),
            written: 0,
            block: BlockBuilder::new(),
            last_key: Vec::new(),
            index: Index {
                starts: vec![0],
                ..Index::default()
            },
            filter,
            keys: 0,
            deleted: 0,
        })
    }

    /// Adds a key that is greater than the last.
    #[inline]
    pub(super) fn push(&mut self, key: &[u8], hash: u64, value: Value<'_>) -> io::Result<()> {
        if let Some(filter) = &mut self.filter {
            filter.insert(hash);
        }
        self.block.push(key, value);
        self.keys += 1;
        self.deleted += u64::from(value.is_none());
        if self.block.is_full() {
            self.end_block()
        } else {
            Ok(())
        }
    }

    fn end_block(&mut self) -> io::Result<()> {
        let first = self.block.first_key();
        if self.index.blocks() > 0 {
            let separator = (shared_prefix(&self.last_key, first) + 1).min(first.len());
            self.index.keys.extend_from_slice(&first[..separator]);
        }
        self.index.key_ends.push(self.index.keys.len() as u32);
        self.last_key.clear();
        self.last_key.extend_from_slice(self.block.last_key());
        self.block.finish(&mut self.out);
        let end = u32::try_from(self.written + self.out.len() as u64).map_err(|_| {
            io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "a sixteenth of the key store passes 4 GiB: file={}",
                    self.path.display()
                ),
            )
        })?;
        self.index.starts.push(end);
        if self.out.len() >= WRITE_BYTES {
            self.write()
        } else {
            Ok(())
        }
    }

    fn write(&mut self) -> io::Result<()> {
        files::write(&self.file, &self.path, &self.out)?;
        self.written += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    /// Ends the file; without a key there is none. `shadow` is for the manifest.
    pub(super) fn finish(mut self, shadow: u64) -> io::Result<Option<Run>> {
        if self.keys == 0 {
            files::remove(&self.path)?;
            return Ok(None);
        }
        if !self.block.is_empty() {
            self.end_block()?;
        }
        let filter_at = self.written + self.out.len() as u64;
        let start = self.out.len();
        if let Some(filter) = &self.filter {
            filter.write_to(&mut self.out);
        }
        let index_at = self.written + self.out.len() as u64;
        self.index.write_to(&mut self.out);
        let footer = Footer {
            keys: self.keys,
            deleted: self.deleted,
            blocks: self.index.blocks() as u64,
            filter_at,
            index_at,
            check: crc32fast::hash(&self.out[start..]),
        };
        let check = footer.write_to(&mut self.out);
        self.write()?;
        self.index.starts.shrink_to_fit();
        self.index.key_ends.shrink_to_fit();
        self.index.keys.shrink_to_fit();
        Ok(Some(Run {
            path: self.path,
            file: self.file,
            entry: RunEntry {
                id: self.id,
                bytes: self.written,
                check,
                shadow,
            },
            keys: self.keys,
            deleted: self.deleted,
            index: self.index,
            filter: self.filter,
            committed: false,
        }))
    }
}

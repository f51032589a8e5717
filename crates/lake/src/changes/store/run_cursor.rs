//! Walks over all keys of a run in order, for merges and scans.

use std::io;

use super::block::Layout;
use super::files;
use super::hash::sort_word;
use super::memtable::Value;
use super::run::{READ_BYTES, Run};

/// Stands at a key of a run.
#[derive(Debug)]
pub(super) struct RunCursor<'a> {
    run: &'a Run,
    next_block: usize,
    stored: Vec<u8>,
    /// Where in the file `stored` begins.
    stored_at: u32,
    /// What an unpacked block needs on the way to `payload`.
    buffer: Vec<u8>,
    payload: Vec<u8>,
    layout: Layout,
    at: usize,
    key: Vec<u8>,
    pub(super) word: u64,
}

impl<'a> RunCursor<'a> {
    /// At the first key.
    pub(super) fn new(run: &'a Run) -> io::Result<Self> {
        let mut cursor = Self {
            run,
            next_block: 0,
            stored: Vec::new(),
            stored_at: 0,
            buffer: Vec::new(),
            payload: Vec::new(),
            layout: Layout::default(),
            at: 0,
            key: Vec::new(),
            word: 0,
        };
        cursor.load()?;
        Ok(cursor)
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The value at the cursor, in `out`.
    pub(super) fn value<'b>(&self, out: &'b mut Vec<u8>) -> Value<'b> {
        out.clear();
        if self.layout.is_deleted(&self.payload, self.at) {
            return None;
        }
        self.layout.value(&self.payload, self.at, out);
        Some(out)
    }

    /// Moves on; false past the last key.
    pub(super) fn advance(&mut self) -> io::Result<bool> {
        self.at += 1;
        if self.at < self.layout.entries {
            self.take_key();
            return Ok(true);
        }
        self.load()
    }

    fn take_key(&mut self) {
        self.key.truncate(self.layout.prefix(&self.payload).len());
        self.key
            .extend_from_slice(self.layout.suffix(&self.payload, self.at));
        self.word = sort_word(&self.key);
    }

    fn load(&mut self) -> io::Result<bool> {
        let starts = &self.run.index.starts;
        let block = self.next_block;
        if block == self.run.index.blocks() {
            return Ok(false);
        }
        let (start, end) = (starts[block], starts[block + 1]);
        if end as usize > self.stored_at as usize + self.stored.len() {
            let whole =
                starts.partition_point(|at| (at.saturating_sub(start)) as usize <= READ_BYTES) - 1;
            let until = starts[whole.max(block + 1)];
            self.stored.resize((until - start) as usize, 0);
            self.stored_at = start;
            files::read_at(
                &self.run.file,
                &self.run.path,
                u64::from(start),
                &mut self.stored,
            )?;
        }
        let stored =
            &self.stored[(start - self.stored_at) as usize..(end - self.stored_at) as usize];
        let (layout, payload) = self.run.unpack(stored, &mut self.buffer)?;
        self.layout = layout;
        self.payload.clear();
        self.payload.extend_from_slice(payload);
        self.next_block += 1;
        self.at = 0;
        self.key.clear();
        self.key
            .extend_from_slice(self.layout.prefix(&self.payload));
        self.take_key();
        Ok(true)
    }
}

//! Byte strings one behind the other, as Arrow keeps them.
//!
//! A string is copied 16 bytes at a time into a buffer that always has room for one block more, and
//! its end is looked for in the same blocks; what was copied beyond the end is overwritten by the
//! next string or cut off. Every string is a part of validated text, so the buffer is valid too.

use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use wide::u8x16;

use super::{
    column::Nulls,
    text::{BLOCK, Failure, Step, block, byte, escape, last_block, quotes, special, unended},
};

/// Byte strings one behind the other.
pub(super) struct Packed {
    /// The strings up to `used`; then room.
    bytes: Vec<u8>,
    used: usize,
    /// Where each string ends, after a zero.
    ends: Vec<i32>,
    nulls: Nulls,
    /// Bytes and rows of the last batch: the first guess for the next.
    guess: (usize, usize),
}

impl Packed {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            used: 0,
            ends: vec![0],
            nulls: Nulls::default(),
            guess: (0, 0),
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Bytes of all strings.
    pub(super) fn bytes(&self) -> usize {
        self.used
    }

    #[inline]
    pub(super) fn get(&self, row: usize) -> &[u8] {
        &self.bytes[self.ends[row] as usize..self.ends[row + 1] as usize]
    }

    /// Ends the string that begins at `used`. With what dictionaries keep, a raw batch is below 2 GiB.
    #[inline]
    fn end(&mut self, used: usize) {
        self.used = used;
        self.ends.push(used as i32);
    }

    #[cold]
    fn grow(&mut self, needed: usize) {
        let room = needed.max(self.bytes.len() * 2).max(self.guess.0 + 64);
        self.bytes.resize(room, 0);
    }

    /// Copies the string whose content begins at `at`, and pushes it, when one block holds it and it
    /// is plain: no loop, and most strings are. Answers where it ends.
    #[inline]
    pub(super) fn copy_short(&mut self, bytes: &[u8], at: usize) -> Option<usize> {
        let block = block(bytes, at)?;
        let used = self.used as u32 as usize; // as in `block`
        let room = self.bytes.get_mut(used..used + BLOCK)?;
        let text = u8x16::new(*block);
        // Where there is no hit a bit behind the block stands in, where no quote is.
        let plain = (special(text) | 1 << BLOCK).trailing_zeros();
        if quotes(text) >> plain & 1 == 0 {
            return None;
        }
        room.copy_from_slice(block);
        self.end(used + plain as usize);
        Some(at + plain as usize + 1)
    }

    /// Copies the string whose content begins at `at`, whatever it is; answers where it ends.
    pub(super) fn copy(&mut self, bytes: &[u8], at: usize) -> Step {
        match self.copy_short(bytes, at) {
            Some(end) => Ok(end),
            None => self.copy_any(bytes, at),
        }
    }

    /// The same, for strings of any length with anything in them.
    #[inline(never)]
    fn copy_any(&mut self, bytes: &[u8], mut at: usize) -> Step {
        let mut used = self.used;
        loop {
            if self.bytes.len() < used + BLOCK {
                self.grow(used + BLOCK);
            }
            let block = block(bytes, at)
                .copied()
                .unwrap_or_else(|| last_block(bytes, at));
            self.bytes[used..used + BLOCK].copy_from_slice(&block);
            let hits = special(u8x16::new(block));
            if hits == 0 {
                at += BLOCK;
                used += BLOCK;
                continue;
            }
            let plain = hits.trailing_zeros() as usize;
            at += plain;
            used += plain;
            if byte(bytes, at) == b'"' {
                self.end(used);
                return Ok(at + 1);
            }
            (at, used) = self.unescape(bytes, at, used)?;
        }
    }

    /// Decodes the escape sequence at `at` to `used`.
    fn unescape(
        &mut self,
        bytes: &[u8],
        at: usize,
        used: usize,
    ) -> Result<(usize, usize), Failure> {
        if byte(bytes, at) != b'\\' {
            return Err(unended());
        }
        let (one, at) = escape(bytes, at)?;
        // The block that was just copied left room for 16 bytes behind the old `used`.
        if self.bytes.len() < used + BLOCK {
            self.grow(used + BLOCK);
        }
        Ok((at, used + one.encode_utf8(&mut self.bytes[used..]).len()))
    }

    /// Appends a null, which holds nothing.
    #[inline]
    pub(super) fn push_null(&mut self) {
        self.nulls.push(self.len());
        self.end(self.used);
    }

    /// Appends a null that holds as many bytes as every value does.
    pub(super) fn push_null_of(&mut self, size: usize) {
        self.nulls.push(self.len());
        self.push(&vec![0; size]);
    }

    pub(super) fn push(&mut self, value: &[u8]) {
        let used = self.used + value.len();
        if self.bytes.len() < used {
            self.grow(used);
        }
        self.bytes[self.used..used].copy_from_slice(value);
        self.end(used);
    }

    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.ends.truncate(len + 1);
            self.used = self.ends[len] as usize;
        }
        self.nulls.truncate(len);
    }

    /// Offsets and bytes of what is there, which stays.
    pub(super) fn copied(&self) -> (Vec<i32>, Buffer) {
        let bytes = self.bytes[..self.used].to_vec();
        (self.ends.clone(), Buffer::from_vec(bytes))
    }

    /// Offsets, bytes and validity; starts over.
    pub(super) fn finish(&mut self) -> (Vec<i32>, Buffer, Option<NullBuffer>) {
        self.guess = (
            self.used + self.used / 8,
            self.ends.len() + self.ends.len() / 8,
        );
        let nulls = self.nulls.finish(self.len());
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.truncate(self.used);
        self.used = 0;
        let mut next = Vec::with_capacity(self.guess.1);
        next.push(0);
        let ends = std::mem::replace(&mut self.ends, next);
        (ends, Buffer::from_vec(bytes), nulls)
    }
}

/// Offsets of the large layouts.
pub(super) fn large(ends: &[i32]) -> OffsetBuffer<i64> {
    OffsetBuffer::new(ends.iter().map(|&end| i64::from(end)).collect())
}

//! Reads messages into rows of cells: one pass over the bytes, no allocation for each message.
//!
//! The rules are protobuf's: of a field that comes twice the last value counts, a message that comes
//! twice is merged, another case of a oneof clears the one before, a field of another wire type than
//! its own is unknown. Invariant: after a failure the rows are what they were before the message.

use super::{
    table::{ABSENT, Action, NOWHERE, Op, Scope, Table, Tables},
    wire::{MAX_DEPTH, Span, cut, too_deep, zigzag32, zigzag64},
};
use crate::formats::json::text::{Failure, Step};

/// Places with this bit are in the spill and not in the batch.
const SPILLED: u64 = 1 << 31;

/// A message may make the spill grow by so many times its own length. What is put together of two
/// pieces needs one; pieces of two fields that alternate thousands of times would need thousands.
const SPILL_FACTOR: usize = 64;

/// The cell of a text or bytes at a place of the batch.
#[inline]
fn place(from: usize, to: usize) -> u64 {
    (from as u64) << 32 | (to - from) as u64
}

/// The cell of a constant at a place among [`Tables::constants`], which the spill begins with.
pub(super) fn constant(from: usize, to: usize) -> u64 {
    place(from, to) | SPILLED << 32
}

/// What cells of text and bytes point to.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) spill: &'a [u8],
}

impl<'a> Places<'a> {
    /// The bytes that a cell stands for, which is not [`ABSENT`].
    #[inline]
    pub(super) fn get(self, cell: u64) -> &'a [u8] {
        let (from, len) = (cell >> 32, cell as u32 as usize);
        let (within, from) = if from & SPILLED == 0 {
            (self.bytes, from as usize)
        } else {
            (self.spill, (from & !SPILLED) as usize)
        };
        &within[from..from + len]
    }
}

/// Reads messages of one batch.
pub(super) struct Reader<'a> {
    /// All messages of the batch; shorter than 2 GiB.
    pub(super) bytes: &'a [u8],
    pub(super) tables: &'a Tables,
    /// Bytes that had to be put together: begins with the constants.
    pub(super) spill: &'a mut Vec<u8>,
    /// Checks text while it is read, and not all of it at the end.
    pub(super) careful: bool,
    /// How long the spill may become.
    spill_end: usize,
}

#[expect(
    clippy::inline_always,
    reason = "calls in the innermost loop cost a third of it"
)]
impl<'a> Reader<'a> {
    pub(super) fn new(
        bytes: &'a [u8],
        tables: &'a Tables,
        spill: &'a mut Vec<u8>,
        careful: bool,
    ) -> Self {
        Self {
            bytes,
            tables,
            spill,
            careful,
            spill_end: 0,
        }
    }

    /// Reads the message between two places into one row more of the first scope.
    pub(super) fn message(
        &mut self,
        from: usize,
        to: usize,
        scopes: &mut [Scope],
    ) -> Result<(), Failure> {
        let rows = scopes[0].rows;
        let spilled = self.spill.len();
        self.spill_end = spilled + SPILL_FACTOR * (to - from);
        let read = match Scope::open(scopes) {
            Some((row, lists)) => self.fields(0, from, to, row, lists, MAX_DEPTH),
            None => Ok(()),
        };
        if read.is_err() {
            Scope::truncate(scopes, rows);
            self.spill.truncate(spilled);
        }
        read
    }

    /// Reads the fields between two places.
    fn fields(
        &mut self,
        table: u16,
        mut at: usize,
        end: usize,
        row: &mut [u64],
        lists: &mut [Scope],
        depth: u32,
    ) -> Result<(), Failure> {
        let tables = self.tables;
        let table = &tables.all[usize::from(table)];
        let span = Span {
            bytes: self.bytes,
            end,
        };
        while at < end {
            let (key, next) = span.key(at)?;
            let found = table.find(key);
            if found == 0 {
                at = span.skip(key, next, depth)?;
                continue;
            }
            let action = table.action(found);
            if action.oneof != NOWHERE {
                self.choose(table, action, row, lists)
                    .map_err(|f| f.within(table.name(found)))?;
            }
            at = self
                .value(span, key, next, action, row, lists, depth)
                .map_err(|failure| failure.within(table.name(found)))?;
        }
        Ok(())
    }

    /// Notes the case of a oneof.
    #[inline(always)]
    fn choose(
        &self,
        table: &Table,
        action: Action,
        row: &mut [u64],
        lists: &mut [Scope],
    ) -> Result<(), Failure> {
        let case = u64::from(action.case);
        let before = std::mem::replace(&mut row[usize::from(action.oneof)], case);
        if before != case && before != 0 {
            return self.clear(table, before as usize, row, lists);
        }
        Ok(())
    }

    /// Reads the value at `at`, behind its key, and answers where it ends.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the state of the innermost loop")]
    fn value(
        &mut self,
        span: Span<'a>,
        key: u32,
        at: usize,
        action: Action,
        row: &mut [u64],
        lists: &mut [Scope],
        depth: u32,
    ) -> Step {
        let cell = usize::from(action.cell);
        // Most fields are text: asked for by itself it is guessed better than among all.
        if action.op == Op::Text {
            return self.text(span, at, &mut row[cell]);
        }
        match action.op {
            Op::Text => self.text(span, at, &mut row[cell]),
            Op::Bytes => {
                let (from, to) = span.length(at)?;
                row[cell] = place(from, to);
                Ok(to)
            }
            Op::Message => {
                let (from, to) = span.length(at)?;
                self.enter(action, from, to, row, lists, depth)?;
                Ok(to)
            }
            Op::Varint32 => {
                let (value, next) = span.varint(at)?;
                row[cell] = u64::from(value as u32);
                Ok(next)
            }
            Op::Varint64 => {
                let (value, next) = span.varint(at)?;
                row[usize::from(action.flag)] = 1;
                row[cell] = value;
                Ok(next)
            }
            Op::Bool => {
                let (value, next) = span.varint(at)?;
                row[cell] = u64::from(value != 0);
                Ok(next)
            }
            Op::Zigzag32 => {
                let (value, next) = span.varint(at)?;
                row[cell] = u64::from(zigzag32(value as u32));
                Ok(next)
            }
            Op::Zigzag64 => {
                let (value, next) = span.varint(at)?;
                row[usize::from(action.flag)] = 1;
                row[cell] = zigzag64(value);
                Ok(next)
            }
            Op::Fixed32 => {
                let (value, next) = span.fixed32(at)?;
                row[cell] = u64::from(value);
                Ok(next)
            }
            Op::Fixed64 => {
                let (value, next) = span.fixed64(at)?;
                row[usize::from(action.flag)] = 1;
                row[cell] = value;
                Ok(next)
            }
            Op::Skip => span.skip(key, at, depth),
            Op::Raw => {
                let (from, to) = span.length(at)?;
                row[cell] = self.merge(row[cell], from, to)?;
                Ok(to)
            }
            Op::RawGroup => {
                let (to, next) = span.group(key, at, depth)?;
                row[cell] = self.merge(row[cell], at, to)?;
                Ok(next)
            }
            Op::Group => {
                let (to, next) = span.group(key, at, depth)?;
                self.enter(action, at, to, row, lists, depth)?;
                Ok(next)
            }
            Op::Push => self.push(span, key, at, action, lists, depth),
            Op::PushPacked => {
                let (mut at, end) = span.length(at)?;
                let packed = Span {
                    bytes: span.bytes,
                    end,
                };
                while at < end {
                    at = self.push(packed, key, at, action, lists, depth)?;
                }
                Ok(end)
            }
        }
    }

    /// Notes the place of text.
    #[inline(always)]
    fn text(&self, span: Span<'a>, at: usize, cell: &mut u64) -> Step {
        let (from, to) = span.length(at)?;
        let before = std::mem::replace(cell, place(from, to));
        if self.careful || (before != ABSENT && before as u32 != 0) {
            self.check(before)?;
            self.check(*cell)?;
        }
        Ok(to)
    }

    /// Reads a message into the same row.
    #[inline(always)]
    fn enter(
        &mut self,
        action: Action,
        from: usize,
        to: usize,
        row: &mut [u64],
        lists: &mut [Scope],
        depth: u32,
    ) -> Result<(), Failure> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(too_deep());
        };
        let present = std::mem::replace(&mut row[usize::from(action.cell)], 1);
        if present == 0 {
            for (cell, value) in &self.tables.all[usize::from(action.table)].initial {
                row[usize::from(*cell)] = *value;
            }
        }
        self.fields(action.table, from, to, row, lists, depth)
    }

    /// Reads an element of a list into a row of its own.
    fn push(
        &mut self,
        span: Span<'a>,
        key: u32,
        at: usize,
        action: Action,
        lists: &mut [Scope],
        depth: u32,
    ) -> Step {
        let element = self.tables.elements[usize::from(action.table)];
        let Some((row, lists)) = Scope::open(&mut lists[usize::from(element.scope)..]) else {
            return Err(cut());
        };
        self.element(span, key, at, element.action, row, lists, depth)
    }

    /// [`Self::value`] for elements: a function of its own, since `value` is built into its caller.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "as `value`")]
    fn element(
        &mut self,
        span: Span<'a>,
        key: u32,
        at: usize,
        action: Action,
        row: &mut [u64],
        lists: &mut [Scope],
        depth: u32,
    ) -> Step {
        self.value(span, key, at, action, row, lists, depth)
    }

    /// Makes the cells of a case what they were before it came.
    #[cold]
    #[inline(never)]
    fn clear(
        &self,
        table: &Table,
        case: usize,
        row: &mut [u64],
        lists: &mut [Scope],
    ) -> Result<(), Failure> {
        let clear = &table.clears[case - 1];
        for text in &clear.texts {
            self.check(row[usize::from(*text)])?;
        }
        for (cell, value) in &clear.cells {
            row[usize::from(*cell)] = *value;
        }
        for (cell, scope) in &clear.lists {
            let first = row[usize::from(*cell)] as usize;
            let scopes = &mut lists[usize::from(*scope)..];
            self.check_rows(scopes, first)?;
            Scope::truncate(scopes, first);
        }
        Ok(())
    }

    /// Checks the text of elements that are dropped, so that what is accepted does not depend on it.
    fn check_rows(&self, scopes: &[Scope], first: usize) -> Result<(), Failure> {
        let Some((own, inner)) = scopes.split_first() else {
            return Ok(());
        };
        for at in first..own.rows {
            for text in &own.texts {
                self.check(own.row(at)[usize::from(*text)])?;
            }
        }
        if first < own.rows {
            for (cell, scope) in &own.lists {
                let first = own.row(first)[usize::from(*cell)] as usize;
                self.check_rows(&inner[usize::from(*scope)..], first)?;
            }
        }
        Ok(())
    }

    /// The place of a message that is merged with one that came before.
    fn merge(&mut self, before: u64, from: usize, to: usize) -> Result<u64, Failure> {
        if before == ABSENT || before as u32 == 0 {
            return Ok(place(from, to));
        }
        let places = Places {
            bytes: self.bytes,
            spill: self.spill,
        };
        let (old, end) = (before >> 32, places.get(before).len() + to - from);
        let start = (old & !SPILLED) as usize;
        let is_last = old & SPILLED != 0 && start + before as u32 as usize == self.spill.len();
        let start = if is_last { start } else { self.spill.len() };
        if start + end > self.spill_end {
            return Err(Failure::new("a message comes in too many pieces"));
        }
        if !is_last {
            let old = places.get(before).to_vec();
            self.spill.extend_from_slice(&old);
        }
        self.spill.extend_from_slice(&self.bytes[from..to]);
        Ok(constant(start, self.spill.len()))
    }

    /// Checks that a cell's text is UTF-8.
    #[cold]
    #[inline(never)]
    fn check(&self, cell: u64) -> Result<(), Failure> {
        let places = Places {
            bytes: self.bytes,
            spill: self.spill,
        };
        if cell == ABSENT || std::str::from_utf8(places.get(cell)).is_ok() {
            return Ok(());
        }
        Err(Failure::new("a string is not UTF-8"))
    }
}

//! Field tables: what to do with each field of a message, compiled from descriptors by `plan`.
//!
//! A row of cells holds what a message said so far, one word for each field that a column asks for.
//! Fields that nobody asked for have no action, and are walked over.

use super::wire::{BYTES, FIXED32, FIXED64, GROUP, VARINT};

/// A cell without a value. No number below 64 bits and no place in the batch looks like it; fields of
/// 64 bits have a cell for presence beside them.
pub(super) const ABSENT: u64 = u64::MAX;

/// The cell that nobody reads, the first of each row: where there is no presence to note.
pub(super) const NOWHERE: u16 = 0;

/// How values of a field are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Unknown, or asked for by nobody.
    Skip,
    /// A varint, its low 32 bits.
    Varint32,
    Varint64,
    Zigzag32,
    Zigzag64,
    Bool,
    Fixed32,
    Fixed64,
    /// Text: its place.
    Text,
    /// Bytes: their place.
    Bytes,
    /// A message kept as it is; one that comes again is merged by appending it.
    Raw,
    /// The same, as a group.
    RawGroup,
    /// A message with a table of its own.
    Message,
    /// The same, as a group.
    Group,
    /// One element of a list: a row of its own.
    Push,
    /// Any number of elements of a list.
    PushPacked,
}

impl Op {
    /// The wire type of the values that it reads.
    pub(super) fn wire_type(self) -> u32 {
        match self {
            Self::Varint32 | Self::Varint64 | Self::Zigzag32 | Self::Zigzag64 | Self::Bool => {
                VARINT
            }
            Self::Fixed32 => FIXED32,
            Self::Fixed64 => FIXED64,
            Self::Group | Self::RawGroup => GROUP,
            Self::Skip
            | Self::Text
            | Self::Bytes
            | Self::Raw
            | Self::Message
            | Self::Push
            | Self::PushPacked => BYTES,
        }
    }

    /// Whether lists of them may be packed.
    pub(super) fn packs(self) -> bool {
        matches!(self.wire_type(), VARINT | FIXED32 | FIXED64)
    }
}

/// What to do with a field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Action {
    pub(super) op: Op,
    /// Where the value goes; with [`Op::Message`] where its presence is noted.
    pub(super) cell: u16,
    /// Where the presence of a value of 64 bits is noted.
    pub(super) flag: u16,
    /// The table of a message; the element of a list among [`Tables::elements`].
    pub(super) table: u16,
    /// The cell of the oneof that the field is a case of; [`NOWHERE`]: of none.
    pub(super) oneof: u16,
    /// Which case it is, from 1: its place among the message's fields.
    pub(super) case: u16,
}

impl Action {
    pub(super) const SKIP: Self = Self {
        op: Op::Skip,
        cell: NOWHERE,
        flag: NOWHERE,
        table: 0,
        oneof: NOWHERE,
        case: 0,
    };
}

/// An element of a list: which scope its rows are in, and how it is read into one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element {
    /// Counted from the scope that the list is in: 0 is the next one.
    pub(super) scope: u16,
    pub(super) action: Action,
}

/// What is undone when another case of a oneof comes.
#[derive(Debug, Default)]
pub(super) struct Clear {
    /// Cells with what they become again, those of lists left out.
    pub(super) cells: Vec<(u16, u64)>,
    /// Cells that say where a list begins, with its scope, as in [`Scope::lists`].
    pub(super) lists: Vec<(u16, u16)>,
    /// Those of the cells that hold places of text.
    pub(super) texts: Vec<u16>,
}

/// The table of one message at one place.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Keys (number and wire type) below its length, to places in `actions`.
    direct: Vec<u16>,
    /// All other keys, ascending.
    rest: Vec<(u32, u16)>,
    actions: Vec<Action>,
    names: Vec<String>,
    /// What the cells of fields without presence become when the message is there.
    pub(super) initial: Vec<(u16, u64)>,
    /// By case, from 1.
    pub(super) clears: Vec<Clear>,
}

/// Keys of the field numbers below 256 are looked up directly.
const DIRECT: u32 = 256 << 3;

impl Table {
    /// A table of actions by their keys, with the names of their fields.
    pub(super) fn new(mut by_key: Vec<(u32, Action, String)>) -> Self {
        by_key.sort_by_key(|(key, ..)| *key);
        let mut table = Self {
            actions: vec![Action::SKIP],
            names: vec![String::new()],
            ..Self::default()
        };
        for (key, action, name) in by_key {
            let place = table.actions.len() as u16;
            table.actions.push(action);
            table.names.push(name);
            if key < DIRECT {
                table.direct.resize(key as usize + 1, 0);
                table.direct[key as usize] = place;
            } else {
                table.rest.push((key, place));
            }
        }
        table
    }

    /// Where the action of a key is.
    #[inline]
    pub(super) fn find(&self, key: u32) -> usize {
        match self.direct.get(key as usize) {
            Some(place) => usize::from(*place),
            None => self.search(key),
        }
    }

    fn search(&self, key: u32) -> usize {
        match self.rest.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(found) => usize::from(self.rest[found].1),
            Err(_) => 0,
        }
    }

    #[inline]
    pub(super) fn action(&self, place: usize) -> Action {
        self.actions[place]
    }

    pub(super) fn name(&self, place: usize) -> &str {
        &self.names[place]
    }
}

/// All tables of a plan; the first is that of the whole message.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) all: Vec<Table>,
    pub(super) elements: Vec<Element>,
    /// Texts that are no part of a message: declared defaults.
    pub(super) constants: Vec<u8>,
}

/// Rows of cells: those of the messages, or of the elements of one list of them.
#[derive(Debug)]
pub(super) struct Scope {
    /// What a row is before anything was read.
    pub(super) template: Vec<u64>,
    /// Cells that say where a list begins, with the scope of its elements, counted as in [`Element`].
    pub(super) lists: Vec<(u16, u16)>,
    /// Cells that hold places of text.
    pub(super) texts: Vec<u16>,
    /// The rows, one behind the other.
    pub(super) cells: Vec<u64>,
    pub(super) rows: usize,
}

impl Scope {
    pub(super) fn new() -> Self {
        Self {
            template: vec![0],
            lists: Vec::new(),
            texts: Vec::new(),
            cells: Vec::new(),
            rows: 0,
        }
    }

    /// Opens a row of the first scope; the scopes behind it are those of its lists, and of theirs.
    #[inline]
    pub(super) fn open(scopes: &mut [Self]) -> Option<(&mut [u64], &mut [Self])> {
        let (own, inner) = scopes.split_first_mut()?;
        let at = own.cells.len();
        own.cells.extend_from_slice(&own.template);
        own.rows += 1;
        let row = &mut own.cells[at..];
        for (cell, scope) in &own.lists {
            row[usize::from(*cell)] = inner[usize::from(*scope)].rows as u64;
        }
        Some((row, inner))
    }

    /// Row `at`.
    #[inline]
    pub(super) fn row(&self, at: usize) -> &[u64] {
        let width = self.template.len();
        &self.cells[at * width..(at + 1) * width]
    }

    /// All rows.
    #[inline]
    pub(super) fn all(&self) -> std::slice::ChunksExact<'_, u64> {
        self.cells.chunks_exact(self.template.len())
    }

    /// Drops the rows of the first scope from row `rows` on, with all that is in their lists.
    #[cold]
    pub(super) fn truncate(scopes: &mut [Self], rows: usize) {
        let Some((own, inner)) = scopes.split_first_mut() else {
            return;
        };
        if rows >= own.rows {
            return;
        }
        for (cell, scope) in &own.lists {
            let first = own.row(rows)[usize::from(*cell)] as usize;
            Self::truncate(&mut inner[usize::from(*scope)..], first);
        }
        own.cells.truncate(rows * own.template.len());
        own.rows = rows;
    }
}

//! Objects read into columns, with the order of the keys learned from the stream.
//!
//! What stands between two values (comma, key, colon, white space) is learned as an *edge*: literal
//! bytes, and the column that takes the value behind them. Each edge remembers which edges followed
//! it last. Reading an object is then: compare the bytes with the edge that is expected, append the
//! value, go on. Where the bytes differ, the edge that followed before that is tried, then the others,
//! and then the key is read the slow way, and learned. So a stream in another order, or in several,
//! costs a mispredicted branch or two, never a parse of its keys.
//!
//! Invariant: an edge matches only where reading the key the slow way would come to the same column
//! and the same byte. Edges at the beginning of an object are kept apart from those behind a value.

use arrow::{array::ArrayRef, datatypes::Fields, error::ArrowError};
use calve_engine::Result;
use rustc_hash::FxHashMap;

use super::{
    column::Slot,
    text::{BLOCK, Failure, Step, block, byte, colon, last_block, skip_space, skip_value, string},
};

/// The edge that stands before an object; its successors are the first keys.
const START: usize = 0;
/// Stands for what was not learned.
const UNLEARNED: usize = 1;
/// Up to so many edges they are all tried before a key is read the slow way.
const TRY_ALL: usize = 48;
/// So many ways of writing one key are learned (white space before and after, escapes).
const WAYS: usize = 4;
/// So many keys that the schema does not know are learned.
const UNKNOWN_KEYS: usize = 32;
/// The longest literal that is learned.
const LONGEST: usize = 256;

/// What is behind an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// A value for this column.
    Field(usize),
    /// A value that no column wants.
    Skip,
    /// The end of the object.
    End,
}

/// The bytes between two values.
struct Edge {
    /// Its first bytes, zero behind its end, and a mask of ones over them.
    literal: u128,
    mask: u128,
    /// Its bytes beyond those.
    rest: Box<[u8]>,
    len: usize,
    target: Target,
    first: bool,
    /// Edges that followed last, and before that.
    next: usize,
    alternative: usize,
}

impl Edge {
    /// An edge that matches nothing: text has no bytes of all ones.
    fn none() -> Self {
        Self {
            literal: u128::MAX,
            mask: u128::MAX,
            rest: Box::default(),
            len: 0,
            target: Target::End,
            first: false,
            next: UNLEARNED,
            alternative: UNLEARNED,
        }
    }

    fn new(literal: &[u8], target: Target, first: bool) -> Self {
        let (head, rest) = literal.split_at(literal.len().min(BLOCK));
        let (mut padded, mut mask) = ([0; BLOCK], [0; BLOCK]);
        padded[..head.len()].copy_from_slice(head);
        mask[..head.len()].fill(0xff);
        Self {
            literal: u128::from_le_bytes(padded),
            mask: u128::from_le_bytes(mask),
            rest: rest.into(),
            len: literal.len(),
            target,
            first,
            ..Self::none()
        }
    }

    #[inline]
    fn matches(&self, bytes: &[u8], at: usize, block: u128) -> bool {
        (block ^ self.literal) & self.mask == 0
            && (self.rest.is_empty()
                || bytes
                    .get(at + BLOCK..)
                    .is_some_and(|rest| rest.starts_with(&self.rest)))
    }
}

/// Reads objects into the columns of a struct, or of the rows.
pub(super) struct Object {
    slots: Vec<Slot>,
    names: Vec<(String, bool)>,
    by_name: FxHashMap<String, usize>,
    /// Number of the object that filled each slot last.
    filled: Vec<u64>,
    current: u64,
    /// What did not fit in the object that is being read, by field.
    failed: Vec<(usize, Failure)>,
    /// Objects read, nulls among them.
    len: usize,
    edges: Vec<Edge>,
    /// Edges by target: the fields, then unknown keys, then ends.
    known: Vec<Vec<usize>>,
}

impl Object {
    /// # Errors
    /// `Config` for a field whose type cannot be read from JSON.
    pub(super) fn new(fields: &Fields) -> Result<Self> {
        let mut by_name = FxHashMap::default();
        for (n, field) in fields.iter().enumerate() {
            by_name.entry(field.name().clone()).or_insert(n); // of two of a name, the first
        }
        Ok(Self {
            slots: fields
                .iter()
                .map(|field| Slot::new(field))
                .collect::<Result<_>>()?,
            names: fields
                .iter()
                .map(|f| (f.name().clone(), f.is_nullable()))
                .collect(),
            by_name,
            filled: vec![0; fields.len()],
            current: 0,
            failed: Vec::new(),
            len: 0,
            edges: vec![Edge::none(), Edge::none()],
            known: vec![Vec::new(); fields.len() + 2],
        })
    }

    /// Objects read, nulls among them.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Reads the object at `at`; every column has one value more then. After a failure the caller
    /// truncates.
    pub(super) fn read(&mut self, text: &str, mut at: usize) -> Step {
        let bytes = text.as_bytes();
        self.current += 1;
        let mut count = 0;
        self.failed.clear();
        let mut previous = START;
        loop {
            let expected = self.edges[previous].next;
            let edge = &self.edges[expected];
            let target;
            (previous, target, at) = match block(bytes, at) {
                Some(ahead) if edge.matches(bytes, at, u128::from_le_bytes(*ahead)) => {
                    (expected, edge.target, at + edge.len)
                }
                _ => self.turn(text, previous, at)?,
            };
            match target {
                Target::Field(n) => {
                    if self.filled[n] == self.current {
                        self.forget(n);
                        count -= 1;
                    }
                    self.filled[n] = self.current;
                    count += 1;
                    at = match self.slots[n].append(text, at) {
                        Ok(end) => end,
                        Err(failure) => self.fail(n, failure, bytes, at)?,
                    };
                }
                Target::Skip => at = skip_value(bytes, at)?,
                Target::End => break,
            }
        }
        if let Some((_, failure)) = self.failed.pop() {
            return Err(failure);
        }
        if count < self.slots.len() {
            self.fill()?;
        }
        self.len += 1;
        Ok(at)
    }

    /// Takes the value of a field back: of a key that comes twice, the last value counts.
    #[cold]
    fn forget(&mut self, n: usize) {
        self.slots[n].any().truncate(self.len);
        self.failed.retain(|(slot, _)| *slot != n);
    }

    /// Walks over a value that does not fit its field, which is forgiven when the key comes again.
    #[cold]
    fn fail(&mut self, n: usize, failure: Failure, bytes: &[u8], at: usize) -> Step {
        self.slots[n].any().truncate(self.len);
        let failure = failure.within(&self.names[n].0);
        let Ok(end) = skip_value(bytes, at) else {
            return Err(failure);
        };
        self.failed.push((n, failure));
        Ok(end)
    }

    /// Nulls for the fields that the object lacks.
    #[inline(never)]
    fn fill(&mut self) -> Result<(), Failure> {
        for (n, (name, nullable)) in self.names.iter().enumerate() {
            if self.filled[n] == self.current {
                continue;
            }
            if !nullable {
                return Err(Failure::new("a required field is missing").within(name));
            }
            self.slots[n].any().append_null();
        }
        Ok(())
    }

    /// The edge at `at` where the expected one is not, its target, and where its value begins.
    #[inline(never)]
    fn turn(
        &mut self,
        text: &str,
        previous: usize,
        at: usize,
    ) -> Result<(usize, Target, usize), Failure> {
        let bytes = text.as_bytes();
        let first = previous == START;
        let ahead = block(bytes, at)
            .copied()
            .unwrap_or_else(|| last_block(bytes, at));
        let ahead = u128::from_le_bytes(ahead);
        let alternative = self.edges[previous].alternative;
        let matches = |n: usize| {
            let edge = &self.edges[n];
            edge.first == first && edge.matches(bytes, at, ahead)
        };
        let mut found = matches(alternative).then_some(alternative);
        if found.is_none() && self.edges.len() <= TRY_ALL {
            found = (UNLEARNED + 1..self.edges.len()).find(|&n| matches(n));
        }
        let (target, end) = if let Some(n) = found {
            (self.edges[n].target, at + self.edges[n].len)
        } else {
            let (target, end) = if first {
                self.open(text, at)?
            } else {
                self.follow(text, at)?
            };
            found = self.learn(&bytes[at..end], target, first, ahead);
            (target, end)
        };
        let Some(index) = found else {
            return Ok((UNLEARNED, target, end));
        };
        let previous = &mut self.edges[previous];
        previous.alternative = previous.next;
        previous.next = index;
        Ok((index, target, end))
    }

    /// Remembers a literal, or finds it among those of its target; none where enough are known.
    fn learn(&mut self, literal: &[u8], target: Target, first: bool, ahead: u128) -> Option<usize> {
        let (list, most) = match target {
            Target::Field(n) => (n, 2 * WAYS),
            Target::Skip => (self.slots.len(), UNKNOWN_KEYS),
            Target::End => (self.slots.len() + 1, 2 * WAYS),
        };
        let known = self.known[list].iter().copied().find(|&n| {
            let edge = &self.edges[n];
            edge.first == first && edge.len == literal.len() && edge.matches(literal, 0, ahead)
        });
        if known.is_some() || self.known[list].len() == most || literal.len() > LONGEST {
            return known;
        }
        self.edges.push(Edge::new(literal, target, first));
        self.known[list].push(self.edges.len() - 1);
        Some(self.edges.len() - 1)
    }

    /// Reads the beginning of an object and its first key.
    fn open(&self, text: &str, at: usize) -> Result<(Target, usize), Failure> {
        let bytes = text.as_bytes();
        if byte(bytes, at) != b'{' {
            return Err(Failure::new("expected an object"));
        }
        let at = skip_space(bytes, at + 1);
        if byte(bytes, at) == b'}' {
            return Ok((Target::End, at + 1));
        }
        self.key(text, at)
    }

    /// Reads what follows a value: a comma and a key, or the end.
    fn follow(&self, text: &str, at: usize) -> Result<(Target, usize), Failure> {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        match byte(bytes, at) {
            b'}' => Ok((Target::End, at + 1)),
            b',' => self.key(text, skip_space(bytes, at + 1)),
            _ => Err(Failure::new("expected a comma or the object's end")),
        }
    }

    fn key(&self, text: &str, at: usize) -> Result<(Target, usize), Failure> {
        let bytes = text.as_bytes();
        if byte(bytes, at) != b'"' {
            return Err(Failure::new("expected a key"));
        }
        let (key, at) = string(text, at)?;
        let target = self
            .by_name
            .get(key.as_ref())
            .map_or(Target::Skip, |&n| Target::Field(n));
        Ok((target, colon(bytes, at)?))
    }

    /// A null in every column.
    pub(super) fn append_null(&mut self) {
        for slot in &mut self.slots {
            slot.any().append_null();
        }
        self.len += 1;
    }

    /// Keeps the first `len` objects.
    pub(super) fn truncate(&mut self, len: usize) {
        for slot in &mut self.slots {
            slot.any().truncate(len);
        }
        self.len = self.len.min(len);
    }

    /// The columns; starts over, but remembers the keys.
    pub(super) fn finish(&mut self) -> Result<Vec<ArrayRef>, ArrowError> {
        self.len = 0;
        self.slots
            .iter_mut()
            .map(|slot| slot.any().finish())
            .collect()
    }
}

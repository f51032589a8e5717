//! The order of an object's keys, learned from the stream.
//!
//! What stands between two values (comma, key, colon, white space) is an *edge*: literal bytes, and
//! what is behind them. Edges form a tree of the orders that were seen, until it is full; then they
//! are shared, and the tree becomes a graph. Each edge remembers which edge followed it last, so a
//! stream in one order costs one comparison for each value, and one in several orders a mispredicted
//! branch where they part, never a parse of its keys.
//!
//! Invariant: an edge matches only where reading the key the slow way would come to the same target
//! and the same byte. That holds since an edge follows only edges of its own kind: those that begin
//! an object follow the start alone, the others follow values alone.

use arrow::datatypes::Fields;
use rustc_hash::FxHashMap;
use wide::u8x16;

use super::text::{BLOCK, Failure, block, byte, colon, last_block, same, skip_space, string};

/// The edge that stands before an object; its successors are the first keys.
pub(in crate::formats) const START: usize = 0;
/// Stands for what was not learned.
pub(in crate::formats) const UNLEARNED: usize = 1;
/// So many edges, and four more for each field; behind them the tree grows no more.
const EDGES: usize = 160;
/// So many edges at the most, whatever the schema.
const MOST_EDGES: usize = u16::MAX as usize;
/// So many edges that may follow one are remembered.
const SUCCESSORS: usize = 16;
/// So many ways of writing one key are learned (white space before and after, escapes).
const WAYS: usize = 4;
/// So many keys that the schema does not know are learned.
const UNKNOWN_KEYS: usize = 32;
/// The longest literal that is learned.
const LONGEST: usize = 256;

/// What is behind an edge: the number of a field, or one of the two below.
pub(in crate::formats) type Target = u32;
/// A value that no column wants.
pub(in crate::formats) const SKIP: Target = u32::MAX - 1;
/// The end of an object that may lack fields.
pub(in crate::formats) const END: Target = u32::MAX;
/// The end of an object on whose way every field has come.
pub(in crate::formats) const COMPLETE: Target = u32::MAX - 2;

/// Counts as a byte that no block has: the literal is longer than a block.
const LONG: u32 = 1 << BLOCK;

/// The bytes between two values. Half a cache line, since every value passes one.
pub(in crate::formats) struct Edge {
    /// Its first bytes, and a bit for each that counts; [`LONG`] when there are more.
    literal: u8x16,
    counts: u32,
    pub(in crate::formats) target: Target,
    pub(in crate::formats) len: u16,
    /// The edge that is expected behind it, and the one that is tried then.
    pub(in crate::formats) next: u16,
    pub(in crate::formats) alternative: u16,
}

impl Edge {
    /// Whether these are its bytes. Never says so of a long one.
    #[inline]
    pub(in crate::formats) fn matches(&self, ahead: &[u8; BLOCK]) -> bool {
        same(ahead, self.literal) & self.counts == self.counts
    }
}

/// What else is known of an edge.
struct Ways {
    /// Its bytes, and the last of them.
    literal: Box<[u8]>,
    tail: u8x16,
    first: bool,
    /// How many different fields have come on the one way to it; none where there are many ways.
    fields: Option<usize>,
    /// All edges that followed.
    successors: Vec<usize>,
}

/// What was learned about an object's keys.
pub(in crate::formats) struct Keys {
    pub(in crate::formats) edges: Vec<Edge>,
    /// As many as edges.
    ways: Vec<Ways>,
    by_name: FxHashMap<String, Target>,
    /// One edge for each literal, by target: the fields, then unknown keys, then ends.
    literals: Vec<Vec<usize>>,
}

impl Keys {
    pub(in crate::formats) fn new(fields: &Fields) -> Self {
        let mut by_name = FxHashMap::default();
        for (n, field) in fields.iter().enumerate() {
            by_name.entry(field.name().clone()).or_insert(n as Target); // of two of a name, the first
        }
        let mut keys = Self {
            edges: Vec::new(),
            ways: Vec::new(),
            by_name,
            literals: vec![Vec::new(); fields.len() + 2],
        };
        for come in [Some(0), None] {
            keys.add(&[0xff], END, false, come); // matches nothing: text has no such byte
        }
        keys
    }

    fn add(&mut self, literal: &[u8], target: Target, first: bool, fields: Option<usize>) -> usize {
        let counts = if literal.len() > BLOCK {
            LONG
        } else {
            (1 << literal.len()) - 1
        };
        self.edges.push(Edge {
            literal: u8x16::new(last_block(literal, 0)),
            counts,
            target,
            len: literal.len() as u16,
            next: UNLEARNED as u16,
            alternative: UNLEARNED as u16,
        });
        self.ways.push(Ways {
            literal: literal.into(),
            tail: u8x16::new(last_block(literal, literal.len().saturating_sub(BLOCK))),
            first,
            fields,
            successors: Vec::new(),
        });
        self.edges.len() - 1
    }

    /// Whether the bytes at `at`, which are `ahead` and more, are those of long edge `n`.
    fn matches_long(&self, n: usize, bytes: &[u8], at: usize, ahead: &[u8; BLOCK]) -> bool {
        const ALL: u32 = LONG - 1;
        let way = &self.ways[n];
        let last = way.literal.len() - BLOCK;
        same(ahead, self.edges[n].literal) == ALL
            && block(bytes, at + last).is_some_and(|end| same(end, way.tail) == ALL)
            && (last <= BLOCK || bytes[at + BLOCK..at + last] == way.literal[BLOCK..last])
    }

    /// The edge at `at` where the expected one is not, or is long: its number, its target, and where
    /// its value begins.
    #[inline(never)]
    pub(in crate::formats) fn turn(
        &mut self,
        text: &str,
        previous: usize,
        at: usize,
    ) -> Result<(usize, Target, usize), Failure> {
        let bytes = text.as_bytes();
        if let Some(ahead) = block(bytes, at) {
            let edge = &self.edges[previous];
            for n in [edge.alternative as usize, edge.next as usize] {
                let edge = &self.edges[n];
                if edge.matches(ahead)
                    || edge.counts == LONG && self.matches_long(n, bytes, at, ahead)
                {
                    return Ok((n, edge.target, at + edge.len as usize));
                }
            }
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let mut known = self.ways[previous].successors.iter().copied();
        let found = known.find(|&n| rest.starts_with(&self.ways[n].literal));
        if let Some(index) = found {
            self.expect(previous, index);
            let edge = &self.edges[index];
            return Ok((index, edge.target, at + edge.len as usize));
        }
        let (mut target, end) = if previous == START {
            self.open(text, at)?
        } else {
            self.follow(text, at)?
        };
        if target == END && self.ways[previous].fields == Some(self.literals.len() - 2) {
            target = COMPLETE;
        }
        let index = self.learn(&bytes[at..end], target, previous);
        Ok((index.unwrap_or(UNLEARNED), target, end))
    }

    /// Remembers that `index` followed `previous`.
    fn expect(&mut self, previous: usize, index: usize) {
        let edge = &mut self.edges[previous];
        if edge.next != index as u16 {
            edge.alternative = edge.next;
            edge.next = index as u16;
        }
    }

    /// An edge for the literal behind `previous`; none where enough of its kind are known.
    fn learn(&mut self, literal: &[u8], target: Target, previous: usize) -> Option<usize> {
        let fields = self.literals.len() - 2;
        let (list, most) = match target {
            SKIP => (fields, UNKNOWN_KEYS),
            END | COMPLETE => (fields + 1, 2 * WAYS),
            field => (field as usize, 2 * WAYS),
        };
        let first = previous == START;
        let known = self.literals[list].iter().copied().find(|&n| {
            let way = &self.ways[n];
            way.first == first && *way.literal == *literal
        });
        let full = self.literals[list].len() == most || self.edges.len() >= MOST_EDGES;
        let shared = match known {
            Some(known) => known,
            None if full || literal.len() > LONGEST => return None,
            None => {
                let target = if target == COMPLETE { END } else { target };
                let new = self.add(literal, target, first, None);
                self.literals[list].push(new);
                new
            }
        };
        let index = match self.ways[previous].fields {
            Some(before) if self.edges.len() < (EDGES + 4 * fields).min(MOST_EDGES) => {
                let come = before + usize::from((target as usize) < fields);
                self.add(literal, target, first, Some(come))
            }
            _ => shared,
        };
        if previous != UNLEARNED && self.ways[previous].successors.len() < SUCCESSORS {
            self.ways[previous].successors.push(index);
            self.expect(previous, index);
        }
        Some(index)
    }

    /// Reads the beginning of an object and its first key.
    fn open(&self, text: &str, at: usize) -> Result<(Target, usize), Failure> {
        let bytes = text.as_bytes();
        if byte(bytes, at) != b'{' {
            return Err(Failure::new("expected an object"));
        }
        let at = skip_space(bytes, at + 1);
        if byte(bytes, at) == b'}' {
            return Ok((END, at + 1));
        }
        self.key(text, at)
    }

    /// Reads what follows a value: a comma and a key, or the end.
    fn follow(&self, text: &str, at: usize) -> Result<(Target, usize), Failure> {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        match byte(bytes, at) {
            b'}' => Ok((END, at + 1)),
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
        let target = self.by_name.get(key.as_ref()).copied().unwrap_or(SKIP);
        Ok((target, colon(bytes, at)?))
    }
}

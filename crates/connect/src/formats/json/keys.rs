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

use super::text::{BLOCK, Failure, block, byte, colon, last_block, same, skip_space, string};

/// The edge that stands before an object; its successors are the first keys.
pub(super) const START: usize = 0;
/// Stands for what was not learned.
const UNLEARNED: usize = 1;
/// So many edges make a tree, and four more for each field; further ones are shared.
const EDGES: usize = 160;
/// So many edges that may follow one are remembered.
const SUCCESSORS: usize = 16;
/// So many ways of writing one key are learned (white space before and after, escapes).
const WAYS: usize = 4;
/// So many keys that the schema does not know are learned.
const UNKNOWN_KEYS: usize = 32;
/// The longest literal that is learned.
const LONGEST: usize = 256;

/// What is behind an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A value for this column.
    Field(usize),
    /// A value that no column wants.
    Skip,
    /// The end of the object.
    End,
}

/// The bytes between two values.
pub(super) struct Edge {
    /// Its first bytes, and a bit for each that counts.
    literal: [u8; BLOCK],
    counts: u32,
    /// Its bytes beyond those.
    rest: Box<[u8]>,
    pub(super) len: usize,
    pub(super) target: Target,
    first: bool,
    /// The edge that followed last, and the one before that.
    pub(super) next: usize,
    alternative: usize,
    /// All edges that followed.
    successors: Vec<usize>,
}

impl Edge {
    /// An edge that matches nothing: text has no such bytes.
    fn none() -> Self {
        Self {
            literal: [0xff; BLOCK],
            counts: 1,
            rest: Box::default(),
            len: 0,
            target: Target::End,
            first: false,
            next: UNLEARNED,
            alternative: UNLEARNED,
            successors: Vec::new(),
        }
    }

    fn new(literal: &[u8], target: Target, first: bool) -> Self {
        let (head, rest) = literal.split_at(literal.len().min(BLOCK));
        let mut padded = [0; BLOCK];
        padded[..head.len()].copy_from_slice(head);
        Self {
            literal: padded,
            counts: (1 << head.len()) - 1,
            rest: rest.into(),
            len: literal.len(),
            target,
            first,
            ..Self::none()
        }
    }

    #[inline]
    pub(super) fn matches(&self, bytes: &[u8], at: usize, ahead: &[u8; BLOCK]) -> bool {
        same(ahead, &self.literal) & self.counts == self.counts
            && (self.rest.is_empty()
                || bytes
                    .get(at + BLOCK..)
                    .is_some_and(|rest| rest.starts_with(&self.rest)))
    }
}

/// What was learned about an object's keys.
pub(super) struct Keys {
    pub(super) edges: Vec<Edge>,
    by_name: FxHashMap<String, usize>,
    /// One edge for each literal, by target: the fields, then unknown keys, then ends.
    literals: Vec<Vec<usize>>,
}

impl Keys {
    pub(super) fn new(fields: &Fields) -> Self {
        let mut by_name = FxHashMap::default();
        for (n, field) in fields.iter().enumerate() {
            by_name.entry(field.name().clone()).or_insert(n); // of two of a name, the first
        }
        let edges = vec![Edge::none(), Edge::none()];
        Self {
            edges,
            by_name,
            literals: vec![Vec::new(); fields.len() + 2],
        }
    }

    /// The edge at `at` where the expected one is not, its target, and where its value begins.
    #[inline(never)]
    pub(super) fn turn(
        &mut self,
        text: &str,
        previous: usize,
        at: usize,
    ) -> Result<(usize, Target, usize), Failure> {
        let bytes = text.as_bytes();
        let ahead = block(bytes, at)
            .copied()
            .unwrap_or_else(|| last_block(bytes, at));
        let known = &self.edges[previous].successors;
        let found = known
            .iter()
            .copied()
            .find(|&n| self.edges[n].matches(bytes, at, &ahead));
        if let Some(index) = found {
            self.expect(previous, index);
            return Ok((index, self.edges[index].target, at + self.edges[index].len));
        }
        let first = previous == START;
        let (target, end) = if first {
            self.open(text, at)?
        } else {
            self.follow(text, at)?
        };
        let index = self.learn(&bytes[at..end], target, previous);
        Ok((index.unwrap_or(UNLEARNED), target, end))
    }

    /// Remembers that `index` followed `previous`.
    fn expect(&mut self, previous: usize, index: usize) {
        let previous = &mut self.edges[previous];
        previous.alternative = previous.next;
        previous.next = index;
    }

    /// An edge for the literal behind `previous`; none where enough of its kind are known.
    fn learn(&mut self, literal: &[u8], target: Target, previous: usize) -> Option<usize> {
        let fields = self.literals.len() - 2;
        let (list, most) = match target {
            Target::Field(n) => (n, 2 * WAYS),
            Target::Skip => (fields, UNKNOWN_KEYS),
            Target::End => (fields + 1, 2 * WAYS),
        };
        let first = previous == START;
        let ahead = last_block(literal, 0);
        let known = self.literals[list].iter().copied().find(|&n| {
            let edge = &self.edges[n];
            edge.first == first && edge.len == literal.len() && edge.matches(literal, 0, &ahead)
        });
        let new = self.edges.len();
        let index = match known {
            Some(known) if previous == UNLEARNED || new >= EDGES + 4 * fields => known,
            None if self.literals[list].len() == most || literal.len() > LONGEST => return None,
            _ => {
                self.edges.push(Edge::new(literal, target, first));
                if known.is_none() {
                    self.literals[list].push(new);
                }
                new
            }
        };
        if previous != UNLEARNED && self.edges[previous].successors.len() < SUCCESSORS {
            self.edges[previous].successors.push(index);
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
}

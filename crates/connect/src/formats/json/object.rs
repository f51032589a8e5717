//! Objects read into columns: the row itself, and structs within it.
//!
//! Reading an object is: compare the bytes with the edge that is expected (see `keys`), append the
//! value behind it to its column, go on until the object's end; then give nulls to the fields that
//! did not come.

use std::sync::atomic::Ordering;

use arrow::{array::ArrayRef, datatypes::Fields, error::ArrowError};
use calve_engine::Result;
use memchr::memrchr_iter;

use super::{
    column::Slot,
    keys::{COMPLETE, Keys, SKIP, START, UNLEARNED},
    text::{Failure, Step, block, is_null, skip_space, skip_value},
    wire::Wire,
};
use crate::formats::evolve::Unknown;

/// The failure of an object with a field that is not known, whose value begins at `at`.
#[cold]
fn unknown_key(bytes: &[u8], at: usize) -> Failure {
    let before = bytes[..at].trim_ascii_end();
    let key = before.strip_suffix(b":").unwrap_or(before).trim_ascii_end();
    let key = key.strip_suffix(b"\"").unwrap_or(key);
    let escaped = |quote: usize| {
        key[..quote]
            .iter()
            .rev()
            .take_while(|b| **b == b'\\')
            .count()
            % 2
            == 1
    };
    let from = memrchr_iter(b'"', key).find(|quote| !escaped(*quote));
    let name = String::from_utf8_lossy(&key[from.map_or(key.len(), |quote| quote + 1)..]);
    Failure::new("the schema has no such field").within(&name)
}

/// One field of an object.
struct Place {
    slot: Slot,
    nullable: bool,
    name: String,
}

/// Reads objects into the columns of a struct, or of the rows.
pub(in crate::formats) struct Object {
    places: Vec<Place>,
    keys: Keys,
    unknown: Unknown,
    /// What did not fit in the object that is being read, by field.
    failed: Vec<(usize, Failure)>,
    /// Objects read, nulls among them.
    len: usize,
    began: usize,
}

impl Object {
    /// Fields as the children of `wire` say that they are written.
    ///
    /// # Errors
    /// `Config` for a field whose type cannot be read from JSON.
    pub(in crate::formats) fn new(fields: &Fields, wire: &Wire) -> Result<Self> {
        let place = |(n, field): (usize, &arrow::datatypes::FieldRef)| {
            let slot = Slot::new(field, wire.child(n))?;
            Ok(Place {
                slot,
                nullable: field.is_nullable(),
                name: field.name().clone(),
            })
        };
        Ok(Self {
            places: fields
                .iter()
                .enumerate()
                .map(place)
                .collect::<Result<_>>()?,
            keys: Keys::new(fields),
            unknown: Unknown::Skip,
            failed: Vec::new(),
            len: 0,
            began: 0,
        })
    }

    /// Whether it reads a field of this name.
    pub(in crate::formats) fn has(&self, name: &str) -> bool {
        self.places.iter().any(|place| place.name == name)
    }

    /// Objects read, nulls among them.
    pub(in crate::formats) fn len(&self) -> usize {
        self.len
    }

    /// Reads the object at `at`; every column has one value more then. After a failure the caller
    /// truncates.
    pub(in crate::formats) fn read(&mut self, text: &str, at: usize) -> Step {
        self.walk(text, at, false)
    }

    /// Reads the object at `at`, and those of the lines behind it as long as nothing else is on them;
    /// answers where the last one ends. After a failure the caller truncates, and [`Self::began`] says
    /// which object it was.
    pub(in crate::formats) fn read_lines(&mut self, text: &str, at: usize) -> Step {
        self.walk(text, at, true)
    }

    /// Where the last object begins that [`Self::read_lines`] came to.
    pub(in crate::formats) fn began(&self) -> usize {
        self.began
    }

    fn walk(&mut self, text: &str, mut at: usize, lines: bool) -> Step {
        let bytes = text.as_bytes();
        self.began = at;
        let mut previous = START;
        let mut next = self.keys.edges[START].next as usize;
        loop {
            let edge = &self.keys.edges[next];
            let target;
            if block(bytes, at).is_some_and(|ahead| edge.matches(ahead)) {
                (previous, target) = (next, edge.target);
                at += edge.len as usize;
                next = edge.next as usize;
            } else {
                (previous, target, at) = self.keys.turn(text, previous, at)?;
                next = self.keys.edges[previous].next as usize;
            }
            if let Some(place) = self.places.get_mut(target as usize) {
                if let Some(end) = place.slot.plain(bytes, at, self.len) {
                    at = end;
                } else {
                    let learned;
                    (learned, at) = self.append(target as usize, text, at)?;
                    if !learned {
                        (previous, next) = (UNLEARNED, UNLEARNED);
                    }
                }
            } else if target == SKIP {
                at = self.skip(bytes, at)?;
            } else {
                if target != COMPLETE {
                    self.fill()?;
                }
                self.len += 1;
                if lines && bytes.get(at..at + 2) == Some(b"\n{") {
                    at += 1;
                    self.began = at;
                    previous = START;
                    next = self.keys.edges[START].next as usize;
                    continue;
                }
                return Ok(at);
            }
        }
    }

    /// Reads over the value of a field that is not known.
    #[inline]
    fn skip(&self, bytes: &[u8], at: usize) -> Step {
        match &self.unknown {
            Unknown::Skip => {}
            Unknown::Note(_) | Unknown::Refuse if is_null(bytes, skip_space(bytes, at)) => {}
            Unknown::Note(noted) => noted.store(true, Ordering::Relaxed),
            Unknown::Refuse => return Err(unknown_key(bytes, at)),
        }
        skip_value(bytes, at)
    }

    /// What becomes of fields that are not known, here and in what is inside.
    pub(in crate::formats) fn when_unknown(&mut self, unknown: &Unknown) {
        self.unknown = unknown.clone();
        for place in &mut self.places {
            place.slot.any().when_unknown(unknown);
        }
    }

    /// Appends the value at `at` to column `n`, whatever it is; answers where it ends, and whether the
    /// object may go on along the edges that were learned. It may not where a value did not fit, which
    /// is forgiven when the key comes again, or where a key came again, whose last value counts: its
    /// end must not be taken for a complete one.
    #[inline(never)]
    fn append(&mut self, n: usize, text: &str, at: usize) -> Result<(bool, usize), Failure> {
        let column = self.places[n].slot.any();
        let first = column.len() == self.len;
        if !first {
            column.truncate(self.len);
        }
        match column.append(text, at) {
            Ok(end) => Ok((first, end)),
            Err(failure) => Ok((false, self.fail(n, failure, text.as_bytes(), at)?)),
        }
    }

    /// Walks over a value that does not fit its field, which is forgiven when the key comes again.
    #[cold]
    fn fail(&mut self, n: usize, failure: Failure, bytes: &[u8], at: usize) -> Step {
        let place = &mut self.places[n];
        place.slot.any().truncate(self.len);
        let failure = failure.within(&place.name);
        let end = skip_value(bytes, at);
        if end.is_err() {
            return Err(failure);
        }
        self.failed.push((n, failure));
        end
    }

    /// Nulls for the fields that the object lacks; fails where one did not fit and did not come
    /// again, or is required.
    #[inline(never)]
    fn fill(&mut self) -> Result<(), Failure> {
        let row = self.len;
        while let Some((n, failure)) = self.failed.pop() {
            if self.places[n].slot.any().len() == row {
                return Err(failure);
            }
        }
        for place in &mut self.places {
            let column = place.slot.any();
            if column.len() == row {
                if !place.nullable {
                    return Err(Failure::new("a required field is missing").within(&place.name));
                }
                column.append_null();
            }
        }
        Ok(())
    }

    /// A null in every column.
    pub(in crate::formats) fn append_null(&mut self) {
        for place in &mut self.places {
            place.slot.any().append_null();
        }
        self.len += 1;
    }

    /// Keeps the first `len` objects.
    pub(in crate::formats) fn truncate(&mut self, len: usize) {
        for place in &mut self.places {
            place.slot.any().truncate(len);
        }
        self.len = self.len.min(len);
        self.failed.clear();
    }

    /// The columns; starts over, but remembers the keys.
    pub(in crate::formats) fn finish(&mut self) -> Result<Vec<ArrayRef>, ArrowError> {
        self.len = 0;
        self.places
            .iter_mut()
            .map(|place| place.slot.any().finish())
            .collect()
    }
}

//! Objects read into columns: the row itself, and structs within it.
//!
//! Reading an object is: compare the bytes with the edge that is expected (see `keys`), append the
//! value behind it to its column, go on until the object's end; then give nulls to the fields that
//! did not come.

use arrow::{array::ArrayRef, datatypes::Fields, error::ArrowError};
use calve_engine::Result;

use super::{
    column::Slot,
    keys::{Keys, START, Target},
    text::{Failure, Step, block, skip_value},
};

/// One field of an object.
struct Place {
    slot: Slot,
    /// Number of the object that filled it last.
    filled: u64,
    nullable: bool,
    name: String,
}

/// Reads objects into the columns of a struct, or of the rows.
pub(super) struct Object {
    places: Vec<Place>,
    keys: Keys,
    /// Number of the object that is being read.
    current: u64,
    /// What did not fit in it, by field.
    failed: Vec<(usize, Failure)>,
    /// Objects read, nulls among them.
    len: usize,
}

impl Object {
    /// # Errors
    /// `Config` for a field whose type cannot be read from JSON.
    pub(super) fn new(fields: &Fields) -> Result<Self> {
        let place = |field: &arrow::datatypes::FieldRef| {
            let slot = Slot::new(field)?;
            Ok(Place {
                slot,
                filled: 0,
                nullable: field.is_nullable(),
                name: field.name().clone(),
            })
        };
        Ok(Self {
            places: fields.iter().map(place).collect::<Result<_>>()?,
            keys: Keys::new(fields),
            current: 0,
            failed: Vec::new(),
            len: 0,
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
        self.failed.clear();
        let mut count = 0;
        let mut previous = START;
        loop {
            let target;
            (previous, target, at) = self.step(text, previous, at)?;
            match target {
                Target::Field(n) => {
                    let place = &mut self.places[n];
                    if place.filled == self.current {
                        // Of a key that comes twice, the last value counts.
                        place.slot.any().truncate(self.len);
                        self.failed.retain(|(field, _)| *field != n);
                    } else {
                        place.filled = self.current;
                        count += 1;
                    }
                    at = match place.slot.append(text, at) {
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
        if count < self.places.len() {
            self.fill()?;
        }
        self.len += 1;
        Ok(at)
    }

    /// The edge at `at`, behind edge `previous`: its number, its target, and where its value begins.
    #[inline]
    fn step(
        &mut self,
        text: &str,
        previous: usize,
        at: usize,
    ) -> Result<(usize, Target, usize), Failure> {
        let edges = self.keys.edges.as_slice();
        if let Some(ahead) = block(text.as_bytes(), at) {
            let expected = edges[previous].next;
            let edge = &edges[expected];
            if edge.matches(text.as_bytes(), at, ahead) {
                return Ok((expected, edge.target, at + edge.len));
            }
        }
        self.keys.turn(text, previous, at)
    }

    /// Walks over a value that does not fit its field, which is forgiven when the key comes again.
    #[cold]
    fn fail(&mut self, n: usize, failure: Failure, bytes: &[u8], at: usize) -> Step {
        let place = &mut self.places[n];
        place.slot.any().truncate(self.len);
        let failure = failure.within(&place.name);
        let Ok(end) = skip_value(bytes, at) else {
            return Err(failure);
        };
        self.failed.push((n, failure));
        Ok(end)
    }

    /// Nulls for the fields that the object lacks.
    #[inline(never)]
    fn fill(&mut self) -> Result<(), Failure> {
        for place in self
            .places
            .iter_mut()
            .filter(|place| place.filled != self.current)
        {
            if !place.nullable {
                return Err(Failure::new("a required field is missing").within(&place.name));
            }
            place.slot.any().append_null();
        }
        Ok(())
    }

    /// A null in every column.
    pub(super) fn append_null(&mut self) {
        for place in &mut self.places {
            place.slot.any().append_null();
        }
        self.len += 1;
    }

    /// Keeps the first `len` objects.
    pub(super) fn truncate(&mut self, len: usize) {
        for place in &mut self.places {
            place.slot.any().truncate(len);
        }
        self.len = self.len.min(len);
    }

    /// The columns; starts over, but remembers the keys.
    pub(super) fn finish(&mut self) -> Result<Vec<ArrayRef>, ArrowError> {
        self.len = 0;
        self.places
            .iter_mut()
            .map(|place| place.slot.any().finish())
            .collect()
    }
}

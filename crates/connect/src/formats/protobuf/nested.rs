//! Columns of structs, lists and maps.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ListArray, MapArray, StructArray, UInt32Array},
    buffer::{OffsetBuffer, ScalarBuffer},
    compute::take,
    datatypes::{FieldRef, Fields},
    error::ArrowError,
};
use rustc_hash::FxHashSet;

use super::{
    fill::{Fill, Kind, Leaf, Validity, View},
    table::NOWHERE,
};

/// Messages.
pub(super) struct Structs {
    scope: usize,
    /// The cell that says whether the message is there; [`NOWHERE`]: it always is.
    present: u16,
    fields: Fields,
    columns: Vec<Box<dyn Fill>>,
    validity: Validity,
    rows: usize,
}

impl Structs {
    pub(super) fn new(
        scope: usize,
        present: u16,
        fields: Fields,
        columns: Vec<Box<dyn Fill>>,
    ) -> Self {
        Self {
            scope,
            present,
            fields,
            columns,
            validity: Validity::default(),
            rows: 0,
        }
    }
}

/// Notes for each row whether a message is there.
fn note(validity: &mut Validity, view: &View<'_>, scope: usize, present: u16) {
    for row in view.scopes[scope].all() {
        validity.push(present == NOWHERE || row[usize::from(present)] != 0);
    }
}

impl Fill for Structs {
    fn append(&mut self, view: &mut View<'_>) {
        note(&mut self.validity, view, self.scope, self.present);
        self.rows += view.scopes[self.scope].rows;
        for column in &mut self.columns {
            column.append(view);
        }
    }

    fn nulls(&self) -> usize {
        self.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        // All of them, also behind one that fails: the next batch begins with empty ones.
        let columns: Vec<_> = self.columns.iter_mut().map(|c| c.finish()).collect();
        let columns = columns.into_iter().collect::<Result<Vec<_>, _>>();
        let nulls = self.validity.finish();
        let rows = std::mem::take(&mut self.rows);
        let fields = self.fields.clone();
        let array = StructArray::try_new_with_length(fields, columns?, nulls, rows)?;
        Ok(Arc::new(array))
    }
}

/// Where the elements of lists are, which have a scope of their own.
pub(super) struct Place {
    /// The scope that the lists are in.
    pub(super) scope: usize,
    /// The cell that says where a list begins.
    pub(super) cell: u16,
    /// The cell that says whether the message of the list is there; [`NOWHERE`]: it always is.
    pub(super) present: u16,
    /// The scope of the elements.
    pub(super) elements: usize,
}

impl Place {
    /// Calls `each` with the elements of each row, as a range of rows of their scope.
    fn each(&self, view: &View<'_>, mut each: impl FnMut(usize, usize)) {
        let elements = view.scopes[self.elements].rows;
        let mut starts = view.scopes[self.scope]
            .all()
            .map(|row| row[usize::from(self.cell)]);
        let Some(mut start) = starts.next() else {
            return;
        };
        for next in starts {
            each(start as usize, next as usize);
            start = next;
        }
        each(start as usize, elements);
    }
}

/// Ends of lists, and which are there.
#[derive(Default)]
struct Ends {
    offsets: Vec<i32>,
    validity: Validity,
    /// Elements of earlier blocks.
    before: usize,
}

impl Ends {
    fn append(&mut self, place: &Place, view: &View<'_>) {
        note(&mut self.validity, view, place.scope, place.present);
        let before = self.before;
        place.each(view, |_, end| self.offsets.push((before + end) as i32));
        self.before += view.scopes[place.elements].rows;
    }

    fn finish(&mut self) -> Result<OffsetBuffer<i32>, ArrowError> {
        let elements = std::mem::take(&mut self.before);
        if elements > i32::MAX as usize {
            return Err(ArrowError::OffsetOverflowError(elements));
        }
        let mut offsets = vec![0];
        offsets.append(&mut self.offsets);
        Ok(OffsetBuffer::new(ScalarBuffer::from(offsets)))
    }
}

/// Lists of anything.
pub(super) struct Lists {
    place: Place,
    field: FieldRef,
    items: Box<dyn Fill>,
    ends: Ends,
}

impl Lists {
    pub(super) fn new(place: Place, field: FieldRef, items: Box<dyn Fill>) -> Self {
        Self {
            place,
            field,
            items,
            ends: Ends::default(),
        }
    }
}

impl Fill for Lists {
    fn append(&mut self, view: &mut View<'_>) {
        self.ends.append(&self.place, view);
        self.items.append(view);
    }

    fn nulls(&self) -> usize {
        self.ends.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let items = self.items.finish();
        let nulls = self.ends.validity.finish();
        let offsets = self.ends.finish()?;
        let array = ListArray::try_new(Arc::clone(&self.field), offsets, items?, nulls)?;
        Ok(Arc::new(array))
    }
}

/// Maps: lists of entries, of which the last of each key counts.
pub(super) struct Maps {
    place: Place,
    entries: FieldRef,
    key: Leaf,
    keys: Box<dyn Fill>,
    values: Box<dyn Fill>,
    ends: Ends,
    /// Entries that a later one replaces; ascending.
    replaced: Vec<u32>,
}

impl Maps {
    pub(super) fn new(
        place: Place,
        entries: FieldRef,
        key: Leaf,
        keys: Box<dyn Fill>,
        values: Box<dyn Fill>,
    ) -> Self {
        Self {
            place,
            entries,
            key,
            keys,
            values,
            ends: Ends::default(),
            replaced: Vec::new(),
        }
    }

    /// Notes the entries of rows that come again with the same key.
    fn note_replaced(&mut self, view: &View<'_>) {
        let entries = &view.scopes[self.place.elements];
        let cell = |at: usize| entries.row(at)[usize::from(self.key.cell)];
        let before = self.ends.before;
        let is_text = matches!(self.key.kind, Kind::Text);
        let first = self.replaced.len();
        self.place.each(view, |start, end| {
            if end - start < 2 {
                return;
            }
            let (mut texts, mut numbers) = (FxHashSet::default(), FxHashSet::default());
            for at in (start..end).rev() {
                let new = if is_text {
                    texts.insert(view.places.get(cell(at)))
                } else {
                    numbers.insert(cell(at))
                };
                if !new {
                    self.replaced.push((before + at) as u32);
                }
            }
        });
        self.replaced[first..].sort_unstable();
    }

    /// Leaves the replaced entries out.
    #[cold]
    fn without(
        &mut self,
        offsets: &OffsetBuffer<i32>,
        keys: ArrayRef,
        values: ArrayRef,
    ) -> Result<(OffsetBuffer<i32>, ArrayRef, ArrayRef), ArrowError> {
        let replaced = std::mem::take(&mut self.replaced);
        let ends = offsets.iter().map(|end| {
            let gone = replaced.partition_point(|at| i64::from(*at) < i64::from(*end));
            *end - gone as i32
        });
        let ends: Vec<i32> = ends.collect();
        let mut gone = replaced.iter().copied().peekable();
        let keep = (0..keys.len() as u32).filter(|at| gone.next_if_eq(at).is_none());
        let keep = UInt32Array::from_iter_values(keep);
        let (keys, values) = (take(&keys, &keep, None)?, take(&values, &keep, None)?);
        Ok((OffsetBuffer::new(ends.into()), keys, values))
    }
}

impl Fill for Maps {
    fn append(&mut self, view: &mut View<'_>) {
        self.note_replaced(view);
        self.ends.append(&self.place, view);
        self.keys.append(view);
        self.values.append(view);
    }

    fn nulls(&self) -> usize {
        self.ends.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let (keys, values) = (self.keys.finish(), self.values.finish());
        let nulls = self.ends.validity.finish();
        let offsets = self.ends.finish();
        let replaced = !self.replaced.is_empty();
        let (Ok(mut keys), Ok(mut values), Ok(mut offsets)) = (keys, values, offsets) else {
            self.replaced.clear();
            return Err(ArrowError::InvalidArgumentError(
                "a map's entries".to_owned(),
            ));
        };
        if replaced {
            (offsets, keys, values) = self.without(&offsets, keys, values)?;
        }
        let arrow::datatypes::DataType::Struct(pair) = self.entries.data_type() else {
            return Err(ArrowError::SchemaError("a map without entries".to_owned()));
        };
        let entries = StructArray::try_new(pair.clone(), vec![keys, values], None)?;
        let entry = Arc::clone(&self.entries);
        Ok(Arc::new(MapArray::try_new(
            entry, offsets, entries, nulls, false,
        )?))
    }
}

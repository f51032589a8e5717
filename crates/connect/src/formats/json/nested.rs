//! Columns of columns: structs, lists, maps.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, FixedSizeListArray, LargeListArray, ListArray, MapArray, StructArray},
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, FieldRef, Fields},
    error::ArrowError,
};
use calve_engine::{Error, Result};

use super::{
    column::{Column, Nulls, Slot, append_null},
    object::Object,
    text::{Failure, Step, byte, colon, skip_space},
    wire::Wire,
};
use crate::formats::evolve::Unknown;

/// Objects with fields of their own.
pub(super) struct Struct {
    object: Object,
    fields: Fields,
    nulls: Nulls,
    nullable: bool,
}

impl Struct {
    /// # Errors
    /// `Config` for a field whose type cannot be read from JSON; so the others.
    pub(super) fn new(fields: &Fields, wire: &Wire, nullable: bool) -> Result<Self> {
        let object = Object::new(fields, wire)?;
        Ok(Self {
            object,
            fields: fields.clone(),
            nulls: Nulls::default(),
            nullable,
        })
    }
}

impl Column for Struct {
    #[inline]
    fn len(&self) -> usize {
        self.object.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) == b'{' {
            return self.object.read(text, at);
        }
        let nullable = self.nullable;
        append_null(self, bytes, at, nullable, "an object")
    }

    fn append_null(&mut self) {
        self.nulls.push(self.object.len());
        self.object.append_null();
    }

    fn truncate(&mut self, len: usize) {
        self.object.truncate(len);
        self.nulls.truncate(len);
    }

    fn when_unknown(&mut self, unknown: &Unknown) {
        self.object.when_unknown(unknown);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let len = self.object.len();
        let nulls = self.nulls.finish(len);
        let columns = self.object.finish()?;
        let fields = self.fields.clone();
        Ok(Arc::new(StructArray::try_new_with_length(
            fields, columns, nulls, len,
        )?))
    }
}

/// Reads the values of a list whose bracket is at `at`; answers how many, and where it ends.
fn items(item: &mut Slot, text: &str, at: usize) -> Result<(usize, usize), Failure> {
    let bytes = text.as_bytes();
    let mut at = skip_space(bytes, at + 1);
    if byte(bytes, at) == b']' {
        return Ok((0, at + 1));
    }
    let mut count = 0;
    loop {
        at = skip_space(bytes, item.append(text, at)?);
        count += 1;
        match byte(bytes, at) {
            b',' => at += 1,
            b']' => return Ok((count, at + 1)),
            _ => return Err(Failure::new("expected a comma or the list's end")),
        }
    }
}

/// Where each list or map ends among its items, after a zero; and which of them are null.
struct Ends {
    ends: Vec<i32>,
    nulls: Nulls,
}

impl Ends {
    fn new() -> Self {
        Self {
            ends: vec![0],
            nulls: Nulls::default(),
        }
    }

    fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// How many items there are.
    fn items(&self) -> usize {
        self.ends.last().copied().unwrap_or_default() as usize
    }

    fn push(&mut self, count: usize) {
        self.ends.push((self.items() + count) as i32);
    }

    fn push_null(&mut self) {
        self.nulls.push(self.len());
        self.push(0);
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len + 1);
        self.nulls.truncate(len);
    }

    /// Offsets and validity; starts over.
    fn finish(&mut self) -> (Vec<i32>, Option<NullBuffer>) {
        let nulls = self.nulls.finish(self.len());
        (std::mem::replace(&mut self.ends, vec![0]), nulls)
    }
}

/// Lists of any length.
pub(super) struct List {
    item: Slot,
    field: FieldRef,
    large: bool,
    ends: Ends,
    nullable: bool,
}

impl List {
    pub(super) fn new(field: &FieldRef, wire: &Wire, large: bool, nullable: bool) -> Result<Self> {
        let (item, field) = (Slot::new(field, wire.child(0))?, Arc::clone(field));
        Ok(Self {
            item,
            field,
            large,
            ends: Ends::new(),
            nullable,
        })
    }
}

impl Column for List {
    #[inline]
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) != b'[' {
            let nullable = self.nullable;
            return append_null(self, bytes, at, nullable, "a list");
        }
        let (count, end) = items(&mut self.item, text, at)?;
        self.ends.push(count);
        Ok(end)
    }

    fn append_null(&mut self) {
        self.ends.push_null();
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.item.any().truncate(self.ends.items());
    }

    fn when_unknown(&mut self, unknown: &Unknown) {
        self.item.any().when_unknown(unknown);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let items = self.item.any().finish()?;
        let field = Arc::clone(&self.field);
        let (ends, nulls) = self.ends.finish();
        Ok(if self.large {
            let ends = OffsetBuffer::new(ends.into_iter().map(i64::from).collect());
            Arc::new(LargeListArray::try_new(field, ends, items, nulls)?)
        } else {
            Arc::new(ListArray::try_new(
                field,
                OffsetBuffer::new(ends.into()),
                items,
                nulls,
            )?)
        })
    }
}

/// Lists of one length.
pub(super) struct FixedList {
    item: Slot,
    field: FieldRef,
    size: usize,
    len: usize,
    nulls: Nulls,
    nullable: bool,
}

impl FixedList {
    pub(super) fn new(field: &FieldRef, wire: &Wire, size: i32, nullable: bool) -> Result<Self> {
        let (item, field) = (Slot::new(field, wire.child(0))?, Arc::clone(field));
        let size = usize::try_from(size)
            .map_err(|e| Error::config(format!("list size is negative: size={size}")).because(e))?;
        Ok(Self {
            item,
            field,
            size,
            len: 0,
            nulls: Nulls::default(),
            nullable,
        })
    }
}

impl Column for FixedList {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) != b'[' {
            let nullable = self.nullable;
            return append_null(self, bytes, at, nullable, "a list");
        }
        let (count, end) = items(&mut self.item, text, at)?;
        if count != self.size {
            return Err(Failure::new(format!(
                "expected {} items, got {count}",
                self.size
            )));
        }
        self.len += 1;
        Ok(end)
    }

    fn append_null(&mut self) {
        self.nulls.push(self.len);
        self.len += 1;
        for _ in 0..self.size {
            self.item.any().append_null();
        }
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.nulls.truncate(len);
        self.item.any().truncate(self.len * self.size);
    }

    fn when_unknown(&mut self, unknown: &Unknown) {
        self.item.any().when_unknown(unknown);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let len = std::mem::take(&mut self.len);
        let nulls = self.nulls.finish(len);
        let items = self.item.any().finish()?;
        let (field, size) = (Arc::clone(&self.field), self.size as i32);
        Ok(Arc::new(FixedSizeListArray::try_new_with_length(
            field, size, items, nulls, len,
        )?))
    }
}

/// Objects whose keys are values too.
pub(super) struct Map {
    keys: Slot,
    values: Slot,
    field: FieldRef,
    entries: Fields,
    ends: Ends,
    nullable: bool,
}

impl Map {
    pub(super) fn new(field: &FieldRef, wire: &Wire, nullable: bool) -> Result<Self> {
        let DataType::Struct(entries) = field.data_type() else {
            return Err(super::column::unsupported(field));
        };
        let [key, value] = entries.as_ref() else {
            return Err(super::column::unsupported(field));
        };
        Ok(Self {
            keys: Slot::new(key, wire.child(0))?,
            values: Slot::new(value, wire.child(1))?,
            field: Arc::clone(field),
            entries: entries.clone(),
            ends: Ends::new(),
            nullable,
        })
    }

    /// Reads the entries of the object at `at`; answers how many, and where it ends.
    fn read(&mut self, text: &str, at: usize) -> Result<(usize, usize), Failure> {
        let bytes = text.as_bytes();
        let mut at = skip_space(bytes, at + 1);
        if byte(bytes, at) == b'}' {
            return Ok((0, at + 1));
        }
        let mut count = 0;
        loop {
            if byte(bytes, at) != b'"' {
                return Err(Failure::new("expected a key"));
            }
            at = colon(bytes, self.keys.append(text, at)?)?;
            at = skip_space(bytes, self.values.append(text, at)?);
            count += 1;
            match byte(bytes, at) {
                b',' => at = skip_space(bytes, at + 1),
                b'}' => return Ok((count, at + 1)),
                _ => return Err(Failure::new("expected a comma or the object's end")),
            }
        }
    }
}

impl Column for Map {
    #[inline]
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        if byte(bytes, at) != b'{' {
            let nullable = self.nullable;
            return append_null(self, bytes, at, nullable, "an object");
        }
        let (count, end) = self.read(text, at)?;
        self.ends.push(count);
        Ok(end)
    }

    fn append_null(&mut self) {
        self.ends.push_null();
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.keys.any().truncate(self.ends.items());
        self.values.any().truncate(self.ends.items());
    }

    fn when_unknown(&mut self, unknown: &Unknown) {
        self.values.any().when_unknown(unknown);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let columns = vec![self.keys.any().finish()?, self.values.any().finish()?];
        let count = self.ends.items();
        let (ends, nulls) = self.ends.finish();
        let ends = OffsetBuffer::new(ends.into());
        let entries = StructArray::try_new_with_length(self.entries.clone(), columns, None, count)?;
        Ok(Arc::new(MapArray::try_new(
            Arc::clone(&self.field),
            ends,
            entries,
            nulls,
            false,
        )?))
    }
}

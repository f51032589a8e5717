//! Columns of text and of bytes.

use std::{fmt::Write as _, sync::Arc};

use arrow::{
    array::{ArrayRef, BinaryArray, FixedSizeBinaryArray, StringArray},
    buffer::{OffsetBuffer, ScalarBuffer},
    error::ArrowError,
};

use super::{
    convert,
    fill::{Fill, Kind, Leaf, Scalar, Validity, View, renew},
    json,
    labels::Case,
    table::ABSENT,
};

/// How many bytes are copied at once where there are as many; longer values are copied whole.
const SHORT: usize = 64;

/// Values of different lengths, one behind the other.
struct Packed {
    bytes: Vec<u8>,
    /// Where each ends; first a 0, where the first begins.
    ends: Vec<i32>,
    validity: Validity,
}

impl Default for Packed {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            ends: vec![0],
            validity: Validity::default(),
        }
    }
}

impl Packed {
    /// Ends a value: all bytes since the last.
    #[inline]
    fn end(&mut self) {
        self.ends.push(self.bytes.len() as i32);
        self.validity.push(true);
    }

    #[inline]
    fn null(&mut self) {
        self.ends.push(self.bytes.len() as i32);
        self.validity.push(false);
    }

    fn offsets(&mut self) -> Result<OffsetBuffer<i32>, ArrowError> {
        let ends = renew(&mut self.ends);
        self.ends.push(0);
        if self.bytes.len() > i32::MAX as usize {
            return Err(ArrowError::OffsetOverflowError(self.bytes.len()));
        }
        Ok(OffsetBuffer::new(ScalarBuffer::from(ends)))
    }
}

/// Appends the bytes of a cell's place; none of one that is absent. Most are short: a copy of a fixed
/// length takes a few instructions and no branch that could be guessed wrong, and what it brings too
/// much is cut off again.
#[inline]
fn copy(view: &View<'_>, cell: u64, out: &mut Vec<u8>) {
    let absent = cell == ABSENT;
    let from = if absent { 0 } else { (cell >> 32) as usize };
    let len = if absent { 0 } else { cell as u32 as usize };
    let rest = view.places.bytes.get(from..).unwrap_or_default();
    match rest.first_chunk::<SHORT>() {
        Some(block) if len <= SHORT => {
            let end = out.len() + len;
            out.extend_from_slice(block);
            out.truncate(end);
        }
        _ if absent => {}
        _ => out.extend_from_slice(view.places.get(cell)),
    }
}

/// How text or bytes of a field become those of the column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// As they are; numbers as their digits, messages as JSON, enums as their names.
    Same,
    /// Bytes from digits.
    FromHex,
    /// Digits of bytes.
    ToHex,
}

/// Appends a value of a kind; an error says why it cannot be.
fn write(
    leaf: &Leaf,
    how: How,
    row: &[u64],
    view: &View<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let value = leaf.value(row, view.places);
    match (value, &leaf.kind, how) {
        (Scalar::Bytes(bytes), Kind::Raw(message), How::Same) => {
            return json::write(message, bytes, out);
        }
        (Scalar::Bytes(bytes), _, How::Same) => out.extend_from_slice(bytes),
        (Scalar::Bytes(bytes), _, How::ToHex) => convert::hex(bytes, out),
        (Scalar::Bytes(bytes), _, How::FromHex) => {
            if !convert::unhex(bytes, out) {
                return Err("the value is no even number of hexadecimal digits".to_owned());
            }
        }
        (Scalar::Int(number), Kind::Enum(of), _) => {
            let name = i32::try_from(number).ok().and_then(|n| of.get_value(n));
            match name {
                Some(value) => out.extend_from_slice(value.name().as_bytes()),
                None => out.extend_from_slice(number.to_string().as_bytes()),
            }
        }
        (Scalar::Int(number), ..) => out.extend_from_slice(number.to_string().as_bytes()),
        (Scalar::Bool(set), ..) => out.extend_from_slice(if set { b"true" } else { b"false" }),
        (Scalar::Float(_) | Scalar::Moment(..), ..) => {
            return Err("the value is no text".to_owned());
        }
    }
    Ok(())
}

/// Text.
pub(super) struct Texts {
    scope: usize,
    leaves: Vec<(Leaf, How)>,
    /// The field, where there is but one and it is text.
    only: Option<Leaf>,
    /// What stands where no field has a value.
    otherwise: Option<Case>,
    packed: Packed,
}

impl Texts {
    pub(super) fn new(scope: usize, leaves: Vec<(Leaf, How)>, otherwise: Option<Case>) -> Self {
        let only = match leaves.as_slice() {
            [(leaf, How::Same)] if matches!(leaf.kind, Kind::Text) => Some(leaf.clone()),
            _ => None,
        };
        Self {
            scope,
            leaves,
            only,
            otherwise,
            packed: Packed::default(),
        }
    }

    fn absent(&mut self, row: &[u64]) {
        match self.otherwise.as_ref().and_then(|case| case.label(row)) {
            Some(label) => {
                self.packed.bytes.extend_from_slice(label.as_bytes());
                self.packed.end();
            }
            None => self.packed.null(),
        }
    }
}

impl Fill for Texts {
    fn append(&mut self, view: &mut View<'_>) {
        let scopes = view.scopes;
        let rows = scopes[self.scope].all();
        if let Some(leaf) = self.only.take() {
            self.packed.ends.reserve(scopes[self.scope].rows);
            self.packed.bytes.reserve(SHORT * scopes[self.scope].rows);
            for row in rows {
                let cell = row[usize::from(leaf.cell)];
                if self.otherwise.is_some() && cell == ABSENT {
                    self.absent(row);
                    continue;
                }
                copy(view, cell, &mut self.packed.bytes);
                self.packed.ends.push(self.packed.bytes.len() as i32);
                self.packed.validity.push(cell != ABSENT);
            }
            self.only = Some(leaf);
            return;
        }
        for row in rows {
            let found = self.leaves.iter().find(|(leaf, _)| !leaf.absent(row));
            let Some((leaf, how)) = found else {
                self.absent(row);
                continue;
            };
            let before = self.packed.bytes.len();
            match write(leaf, *how, row, view, &mut self.packed.bytes) {
                Ok(()) => self.packed.end(),
                Err(what) => {
                    self.packed.bytes.truncate(before);
                    view.failed(&leaf.path, what);
                    self.packed.null();
                }
            }
        }
    }

    fn nulls(&self) -> usize {
        self.packed.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let offsets = self.packed.offsets();
        let bytes = renew(&mut self.packed.bytes);
        let nulls = self.packed.validity.finish();
        Ok(Arc::new(StringArray::try_new(
            offsets?,
            bytes.into(),
            nulls,
        )?))
    }
}

/// Bytes.
pub(super) struct Octets {
    scope: usize,
    leaves: Vec<(Leaf, How)>,
    packed: Packed,
}

impl Octets {
    pub(super) fn new(scope: usize, leaves: Vec<(Leaf, How)>) -> Self {
        Self {
            scope,
            leaves,
            packed: Packed::default(),
        }
    }
}

/// Appends the bytes of a field to a column of them: a message is its own bytes there.
fn write_bytes(
    leaf: &Leaf,
    how: How,
    row: &[u64],
    view: &View<'_>,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let cell = row[usize::from(leaf.cell)];
    match how {
        How::FromHex if !convert::unhex(view.places.get(cell), out) => {
            Err("the value is no even number of hexadecimal digits".to_owned())
        }
        How::FromHex => Ok(()),
        How::Same | How::ToHex => {
            out.extend_from_slice(view.places.get(cell));
            Ok(())
        }
    }
}

impl Fill for Octets {
    fn append(&mut self, view: &mut View<'_>) {
        let scopes = view.scopes;
        for row in scopes[self.scope].all() {
            let found = self.leaves.iter().find(|(leaf, _)| !leaf.absent(row));
            let Some((leaf, how)) = found else {
                self.packed.null();
                continue;
            };
            match write_bytes(leaf, *how, row, view, &mut self.packed.bytes) {
                Ok(()) => self.packed.end(),
                Err(what) => {
                    view.failed(&leaf.path, what);
                    self.packed.null();
                }
            }
        }
    }

    fn nulls(&self) -> usize {
        self.packed.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let offsets = self.packed.offsets();
        let bytes = renew(&mut self.packed.bytes);
        let nulls = self.packed.validity.finish();
        Ok(Arc::new(BinaryArray::try_new(
            offsets?,
            bytes.into(),
            nulls,
        )?))
    }
}

/// Bytes of one length.
pub(super) struct Fixed {
    scope: usize,
    leaves: Vec<(Leaf, How)>,
    width: usize,
    bytes: Vec<u8>,
    validity: Validity,
}

impl Fixed {
    pub(super) fn new(scope: usize, leaves: Vec<(Leaf, How)>, width: usize) -> Self {
        Self {
            scope,
            leaves,
            width,
            bytes: Vec::new(),
            validity: Validity::default(),
        }
    }
}

impl Fill for Fixed {
    fn append(&mut self, view: &mut View<'_>) {
        let scopes = view.scopes;
        for row in scopes[self.scope].all() {
            let end = self.bytes.len() + self.width;
            let found = self.leaves.iter().find(|(leaf, _)| !leaf.absent(row));
            let mut there = false;
            if let Some((leaf, how)) = found {
                match write_bytes(leaf, *how, row, view, &mut self.bytes) {
                    Ok(()) if self.bytes.len() == end => there = true,
                    Ok(()) => {
                        let mut what = String::new();
                        let _ = write!(what, "the value has not {} bytes", self.width);
                        view.failed(&leaf.path, what);
                    }
                    Err(what) => view.failed(&leaf.path, what),
                }
            }
            if !there {
                self.bytes.resize(end, 0);
            }
            self.validity.push(there);
        }
    }

    fn nulls(&self) -> usize {
        self.validity.nulls()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let bytes = renew(&mut self.bytes);
        let nulls = self.validity.finish();
        let array = FixedSizeBinaryArray::try_new(self.width as i32, bytes.into(), nulls)?;
        Ok(Arc::new(array))
    }
}

//! Columns of booleans and of nothing.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, BooleanBufferBuilder, NullArray},
    error::ArrowError,
};

use super::{
    column::{Column, Nulls, append_null, null_or_fail},
    text::{Step, byte, skip_space, word},
};

/// `true` and `false`.
pub(super) struct Boolean {
    values: BooleanBufferBuilder,
    nulls: Nulls,
    nullable: bool,
}

impl Boolean {
    pub(super) fn new(nullable: bool) -> Self {
        Self {
            values: BooleanBufferBuilder::new(0),
            nulls: Nulls::default(),
            nullable,
        }
    }
}

impl Column for Boolean {
    #[inline]
    fn len(&self) -> usize {
        self.values.len()
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        let (end, value) = match byte(bytes, at) {
            b't' => (word(bytes, at, b"true")?, true),
            b'f' => (word(bytes, at, b"false")?, false),
            _ => {
                let nullable = self.nullable;
                return append_null(self, bytes, at, nullable, "a boolean");
            }
        };
        self.values.append(value);
        Ok(end)
    }

    fn append_null(&mut self) {
        self.nulls.push(self.values.len());
        self.values.append(false);
    }

    fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish(self.values.len());
        Ok(Arc::new(BooleanArray::new(self.values.finish(), nulls)))
    }
}

/// A column that takes nothing but null.
#[derive(Default)]
pub(super) struct Null {
    len: usize,
}

impl Column for Null {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    fn append(&mut self, text: &str, at: usize) -> Step {
        let bytes = text.as_bytes();
        let end = null_or_fail(bytes, skip_space(bytes, at), true, &"null")?;
        self.len += 1;
        Ok(end)
    }

    fn append_null(&mut self) {
        self.len += 1;
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(NullArray::new(std::mem::take(&mut self.len))))
    }
}

//! The column `_offset`: behind the columns of the events, the offset of each in its source partition. For
//! pipelines that ask for it; the schema of the events, which checkpoints keep, does not have it.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use calve_engine::{Decoded, Decoder, Error, RawBatch, Reject, Result, batch::OFFSET};

/// Puts the column behind those of another decoder.
pub struct OffsetsDecoder {
    inner: Box<dyn Decoder>,
    schema: SchemaRef,
}

impl OffsetsDecoder {
    /// For a decoder to rows of the schema `events`.
    pub fn new(inner: Box<dyn Decoder>, events: &Schema) -> Self {
        let schema = Self::schema(events);
        Self { inner, schema }
    }

    /// Schema of the rows.
    pub fn schema(events: &Schema) -> SchemaRef {
        let mut fields = events.fields().to_vec();
        fields.push(Field::new(OFFSET, DataType::Int64, false).into());
        Arc::new(Schema::new(fields))
    }
}

impl Decoder for OffsetsDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        let decoded = self.inner.decode(raw)?;
        let offsets = self.inner.offsets(raw, &decoded);
        let offsets: Int64Array = offsets.into_iter().map(|at| Some(at as i64)).collect();
        let mut columns = decoded.rows.columns().to_vec();
        columns.push(Arc::new(offsets) as ArrayRef);
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|e| {
            Error::internal("rows and their offsets do not fit together").because(e)
        })?;
        Ok(Decoded { rows, ..decoded })
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        self.inner.locate(raw, decoded, row)
    }

    fn offsets(&self, raw: &RawBatch, decoded: &Decoded) -> Vec<u64> {
        self.inner.offsets(raw, decoded)
    }

    fn evolved(&mut self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        self.inner.evolved(raw)
    }
}

#[cfg(test)]
#[path = "offsets_tests.rs"]
mod tests;

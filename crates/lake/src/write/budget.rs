//! What the writer holds in memory, counted once for each buffer, and released when the last row
//! slice of it is gone.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{Field, Schema},
    error::ArrowError,
};
use tokio::sync::Notify;

use super::gather;

/// Bytes in use of one writer.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
    /// Somebody released something, or a task ended. One waiter: the caller of `append`.
    pub(crate) changed: Notify,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn exceeded(&self) -> bool {
        self.used() > self.limit
    }

    /// Replaces a count of `before` bytes by `after` bytes.
    pub(crate) fn recount(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
            self.changed.notify_one();
        }
    }
}

/// A batch that counts against the budget as long as any slice of it is queued.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) rows: RecordBatch,
    bytes: usize,
    budget: Arc<Budget>,
}

impl Loaded {
    pub(crate) fn new(rows: RecordBatch, budget: &Arc<Budget>) -> Arc<Self> {
        let bytes = batch_bytes(&rows);
        budget.recount(0, bytes);
        Arc::new(Self {
            rows,
            bytes,
            budget: budget.clone(),
        })
    }

    /// The share of `rows` rows, in bytes.
    pub(crate) fn share(&self, rows: usize) -> usize {
        self.bytes * rows / self.rows.num_rows().max(1)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.budget.recount(self.bytes, 0);
    }
}

/// Consecutive rows of one table partition.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) batch: Arc<Loaded>,
    pub(crate) start: usize,
    pub(crate) rows: usize,
}

impl Piece {
    pub(crate) fn bytes(&self) -> usize {
        self.batch.share(self.rows)
    }

    /// Takes the first `rows` rows away.
    pub(crate) fn split_off_front(&mut self, rows: usize) -> Self {
        let front = Self {
            batch: self.batch.clone(),
            start: self.start,
            rows,
        };
        self.start += rows;
        self.rows -= rows;
        front
    }

    /// One of its columns, as the split left it.
    pub(crate) fn column(&self, index: usize) -> ArrayRef {
        self.batch.rows.column(index).slice(self.start, self.rows)
    }

    /// Its rows, on their own.
    pub(crate) fn batch(&self) -> Result<RecordBatch, ArrowError> {
        let columns = (0..self.batch.rows.num_columns())
            .map(|index| gather::settled(&self.column(index)))
            .collect::<Result<Vec<_>, _>>()?;
        let fields = self.batch.rows.schema_ref().fields().iter().zip(&columns);
        let fields = fields
            .map(|(field, column)| Field::clone(field).with_data_type(column.data_type().clone()));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(schema, columns, &options)
    }
}

/// Bytes that the rows of a batch need, whatever larger buffers they may be slices of.
fn batch_bytes(rows: &RecordBatch) -> usize {
    let column = |array: &dyn Array| {
        let held = array.get_array_memory_size();
        if gather::selection(array).is_some() {
            // Strings that were not copied: their buffers stay whole.
            return held;
        }
        array
            .to_data()
            .get_slice_memory_size()
            .map_or(held, |bytes| bytes.min(held))
    };
    rows.columns()
        .iter()
        .map(|array| column(array.as_ref()))
        .sum::<usize>()
        + 64
}

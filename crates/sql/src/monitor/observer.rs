//! What one batcher adds to the monitors: rows wait until there are enough for one run of the partial
//! aggregation, and partial states are merged when they have become many.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use parking_lot::Mutex;

use super::{MAX_GROUPS, MAX_STATE_BYTES, Shared, split::Monitor};
use crate::caret;

/// Rows for which a run of the partial aggregation costs little beside the work itself.
const FLUSH_ROWS: usize = 32_768;

/// States are merged above this many rows or bytes, and above twice what the last merge left.
const REDUCE_ROWS: usize = 4_096;
const REDUCE_BYTES: usize = 4 << 20;

/// Feeds the monitors with one batcher's rows.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    part: Arc<Mutex<Part>>,
}

impl Observer {
    pub(super) fn new(shared: Arc<Shared>, part: Arc<Mutex<Part>>) -> Self {
        Self { shared, part }
    }

    /// Adds the rows to each monitor.
    pub fn observe(&mut self, rows: &RecordBatch) {
        if rows.num_rows() == 0 || self.shared.monitors.is_empty() {
            return;
        }
        let mut part = self.part.lock();
        part.pending.push(rows.clone());
        part.pending_rows += rows.num_rows();
        if part.pending_rows >= FLUSH_ROWS {
            part.flush(&self.shared.monitors);
        }
    }
}

/// What one observer holds.
#[derive(Debug)]
pub(super) struct Part {
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    states: Vec<States>,
}

/// Partial states of one monitor.
#[derive(Debug, Default)]
struct States {
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    /// Size after the last merge.
    merged_rows: usize,
    merged_bytes: usize,
}

impl Part {
    pub(super) fn new(monitors: usize) -> Self {
        Self {
            pending: Vec::new(),
            pending_rows: 0,
            states: (0..monitors).map(|_| States::default()).collect(),
        }
    }

    /// Turns the rows that wait into states.
    pub(super) fn flush(&mut self, monitors: &[Monitor]) {
        if self.pending.is_empty() {
            return;
        }
        for (monitor, states) in monitors.iter().zip(&mut self.states) {
            if monitor.note().is_none()
                && let Err(error) = states.add(monitor, &self.pending)
            {
                monitor.stop(caret::running(&error, None).message());
            }
            if monitor.note().is_some() {
                *states = States::default();
            }
        }
        self.pending.clear();
        self.pending_rows = 0;
    }

    /// The states of one monitor.
    pub(super) fn states(&self, monitor: usize) -> Vec<RecordBatch> {
        self.states[monitor].batches.clone()
    }
}

impl States {
    fn add(&mut self, monitor: &Monitor, rows: &[RecordBatch]) -> Result<(), DataFusionError> {
        for batch in monitor.partial(rows)? {
            self.rows += batch.num_rows();
            self.bytes += batch.get_array_memory_size();
            self.batches.push(batch);
        }
        if self.rows <= REDUCE_ROWS.max(2 * self.merged_rows)
            && self.bytes <= REDUCE_BYTES.max(2 * self.merged_bytes)
        {
            return Ok(());
        }
        self.batches = monitor.reduce(&self.batches)?;
        self.rows = self.batches.iter().map(RecordBatch::num_rows).sum();
        self.bytes = self
            .batches
            .iter()
            .map(RecordBatch::get_array_memory_size)
            .sum();
        self.merged_rows = self.rows;
        self.merged_bytes = self.bytes;
        if self.rows > MAX_GROUPS {
            monitor.stop(&format!("it has too many groups: limit={MAX_GROUPS}"));
        } else if self.bytes > MAX_STATE_BYTES {
            monitor.stop(&format!(
                "it needs too much memory: limit_bytes={MAX_STATE_BYTES}"
            ));
        }
        Ok(())
    }
}

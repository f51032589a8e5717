//! Splits a batch by table partition.

use std::{ops::Range, sync::Arc};

use arrow::array::RecordBatch;
use calve_engine::{
    error::{Error, Result},
    seams::{Split, Splitter},
};

use super::{partition::PartitionRef, placement::Placement};

/// A batch whose rows lie grouped by table partition; what [`FanoutSplitter`] makes.
#[derive(Debug)]
pub struct SplitRows {
    /// The rows, grouped.
    pub rows: RecordBatch,
    /// Which rows belong to which table partition; each occurs once, and every row in one.
    pub groups: Vec<(PartitionRef, Range<usize>)>,
}

/// Splits batches for one batcher.
pub struct FanoutSplitter {
    placement: Arc<dyn Placement>,
}

impl FanoutSplitter {
    /// A splitter for one more batcher.
    pub fn new(placement: Arc<dyn Placement>) -> Self {
        Self { placement }
    }
}

impl Splitter for FanoutSplitter {
    fn split(&mut self, rows: RecordBatch) -> Result<Split> {
        let _ = self.placement.place(rows)?;
        Err(Error::internal("not yet"))
    }
}

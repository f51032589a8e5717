//! What a batcher does with changes: finds out what each does, and encodes key and order. The rows
//! stay as they are, in their order; which of them count is found later, when all batches are there.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use calve_engine::{
    error::Result,
    seams::{Split, Splitter},
};

use super::{
    config::Operation,
    keys::{KeyCodec, KeyedRows},
    plan::ChangePlan,
};

/// A batch of changes.
pub(crate) struct ChangeRows {
    /// The table's rows, one for each change.
    pub(crate) rows: RecordBatch,
    /// Columns of key and order, in the types of the table.
    pub(crate) columns: Vec<ArrayRef>,
    pub(crate) keyed: KeyedRows,
    pub(crate) ops: Vec<Operation>,
    /// Hashes of the keys.
    pub(crate) hashes: Vec<u64>,
}

/// Splits changes for one batcher.
pub(crate) struct ChangeSplitter {
    plan: Arc<ChangePlan>,
    codec: Arc<KeyCodec>,
    /// Whether the rows fit the table is found here, where an event can be rejected.
    inner: Box<dyn Splitter>,
}

impl ChangeSplitter {
    pub(crate) fn new(
        plan: Arc<ChangePlan>,
        codec: Arc<KeyCodec>,
        inner: Box<dyn Splitter>,
    ) -> Self {
        Self { plan, codec, inner }
    }

    fn read(&mut self, changes: &RecordBatch) -> Result<ChangeRows> {
        let ops = self.plan.operations(changes)?;
        let columns = self.codec.columns(self.plan.key_and_order(changes))?;
        let keyless = |op| matches!(op, Operation::Truncate | Operation::Skip);
        self.codec.check_keys(&columns, |row| !keyless(ops[row]))?;
        let keyed = self.codec.encode(&columns)?;
        let rows = self.plan.rows(changes, &ops)?;
        let hashes = keyed.keys.iter().map(|key| hash(key.data())).collect();
        Ok(ChangeRows {
            rows,
            columns,
            keyed,
            ops,
            hashes,
        })
    }
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::Hasher as _;
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

impl Splitter for ChangeSplitter {
    fn split(&mut self, rows: RecordBatch) -> Result<Split> {
        let changes = self.read(&rows)?;
        self.inner.check(&changes.rows)?;
        Ok(Box::new(changes))
    }

    fn check(&mut self, rows: &RecordBatch) -> Result<()> {
        let changes = self.read(rows)?;
        self.inner.check(&changes.rows)
    }

    fn fresh(&self) -> Box<dyn Splitter> {
        Box::new(Self::new(
            self.plan.clone(),
            self.codec.clone(),
            self.inner.fresh(),
        ))
    }
}

/// Splits changes for a log of them: every change is a row.
pub(crate) struct LogSplitter {
    plan: Arc<ChangePlan>,
    inner: Box<dyn Splitter>,
}

impl LogSplitter {
    pub(crate) fn new(plan: Arc<ChangePlan>, inner: Box<dyn Splitter>) -> Self {
        Self { plan, inner }
    }

    fn rows(&self, changes: &RecordBatch) -> Result<RecordBatch> {
        let ops = self.plan.operations(changes)?;
        let rows = self.plan.rows(changes, &ops)?;
        if ops.iter().all(|op| *op != Operation::Skip) {
            return Ok(rows);
        }
        let kept = ops.iter().map(|op| Some(*op != Operation::Skip)).collect();
        arrow::compute::filter_record_batch(&rows, &kept)
            .map_err(|e| calve_engine::error::Error::internal("cannot filter rows").because(e))
    }
}

impl Splitter for LogSplitter {
    fn split(&mut self, rows: RecordBatch) -> Result<Split> {
        let rows = self.rows(&rows)?;
        self.inner.split(rows)
    }

    fn check(&mut self, rows: &RecordBatch) -> Result<()> {
        let rows = self.rows(rows)?;
        self.inner.check(&rows)
    }

    fn fresh(&self) -> Box<dyn Splitter> {
        Box::new(Self::new(self.plan.clone(), self.inner.fresh()))
    }
}

//! Windows of a pipeline: which window a row belongs to, and what open windows hold.
//!
//! The decisions (what fires when, what is late) are [`calve_model::windows`]; here are the rows.
//! Batchers assign rows to windows ([`assign`]); the loop keeps them in pages ([`contents`]) until a
//! pane takes them; a cut writes new pages as a run ([`runs`]) to the checkpoint store, and the record
//! refers to it ([`saved`]). Never here: a table, a clock.

pub(crate) mod assign;
pub(crate) mod contents;
pub(crate) mod key;
pub(crate) mod runs;
pub(crate) mod saved;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use calve_model::windows::{Accumulation, Strategy};

pub use key::Key;
pub use saved::SavedWindows;

use crate::{
    error::{Error, Result},
    event_time::EventTime,
    seams::Aggregate,
};

/// Column of a pane's number within its window, from 0.
pub const PANE_INDEX: &str = "_pane_index";
/// Column of a pane's timing: `early`, `on_time`, `late`.
pub const PANE_TIMING: &str = "_pane_timing";
/// Column that says whether a pane is the last of its window.
pub const PANE_LAST: &str = "_pane_last";
/// Column of a changelog: `+` adds a row, `-` takes it back.
pub const OP: &str = "_op";
/// Start of the window, inclusive; a column of what an aggregate reads.
pub const WINDOW_START: &str = "window_start";
/// End of the window, exclusive; a column of what an aggregate reads.
pub const WINDOW_END: &str = "window_end";

/// What becomes of events behind the watermark and the allowed lateness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateRows {
    /// They go to a table of their own.
    Side,
    /// They are counted and left out.
    Drop,
    /// They go to the table at once, as rows of no pane.
    Append,
}

/// How a pipeline's rows are grouped in time.
#[derive(Clone)]
pub struct Windowed {
    /// Windows, trigger, lateness, accumulation.
    pub strategy: Strategy,
    /// Event time of the rows (after the transform); none: all rows are in the global window.
    pub time: Option<EventTime>,
    /// Columns of the rows whose values get windows of their own; none: all rows share them.
    pub key: Vec<usize>,
    /// Schema of the rows that windows hold, where they hold rows as they are: those of earlier runs are
    /// brought into it.
    pub rows: Option<SchemaRef>,
    /// What is made of a window's rows; none: rows as they are.
    pub aggregate: Option<Arc<dyn Aggregate>>,
    /// Where the key columns are in the aggregate's states.
    pub key_in_states: Vec<usize>,
    /// Late rows.
    pub late: LateRows,
    /// Whether rows say which pane they belong to.
    pub pane_columns: bool,
    /// Bytes of open windows that may lie in memory; past it they lie in runs alone.
    pub memory_bytes: usize,
}

impl Windowed {
    /// Schema of the rows that panes bring to the table, from that of the transform's rows.
    pub fn schema(&self, rows: &SchemaRef) -> SchemaRef {
        let rows = match &self.aggregate {
            Some(aggregate) => aggregate.schema(),
            None => Arc::clone(rows),
        };
        let mut fields: Vec<Arc<Field>> = rows.fields().iter().cloned().collect();
        let mut add = |name: &str, of| fields.push(Arc::new(Field::new(name, of, false)));
        if self.pane_columns {
            add(PANE_INDEX, DataType::Int64);
            add(PANE_TIMING, DataType::Utf8);
            add(PANE_LAST, DataType::Boolean);
        }
        if self.is_changelog() {
            add(OP, DataType::Utf8);
        }
        Arc::new(Schema::new_with_metadata(fields, rows.metadata().clone()))
    }

    /// Whether panes replace earlier ones, so that rows say whether they are added or taken back, and a
    /// window keeps its states after a firing. Rows as they are never do: what was appended is not
    /// appended again.
    pub fn is_changelog(&self) -> bool {
        self.aggregate.is_some() && self.strategy.accumulation != Accumulation::Discarding
    }
}

pub(crate) fn arrow_failed(error: arrow::error::ArrowError) -> Error {
    Error::internal("rows of a window do not fit together").because(error)
}

/// A window column of states, in microseconds.
pub(crate) fn micros_at(
    rows: &arrow::array::RecordBatch,
    column: usize,
) -> Result<&arrow::array::TimestampMicrosecondArray> {
    use arrow::array::AsArray;
    rows.column(column)
        .as_primitive_opt()
        .ok_or_else(|| Error::internal("a window column of another type"))
}

//! The data-file writer that both kinds of table share.
//!
//! [`FanoutSplitter`] splits a batch by table partition (on the batchers), [`FanoutWriter`] queues
//! the rows of each table partition and encodes them to Parquet on the same thread pool, within a
//! memory budget. A [`Placement`] says what the table partitions are and where their files go.
//! Nothing here makes a file visible: that is the output's part.
//!
//! Invariants: rows keep their order within a table partition; a file is complete and durable when
//! `finish` returns, or removed. Start reading with [`writer`].

mod budget;
pub mod compression;
mod dictionary;
pub mod encoding;
mod file;
mod gather;
mod group;
pub mod options;
pub mod partition;
pub mod placement;
mod queue;
mod sealed;
pub mod split;
pub(crate) mod sync;
pub mod writer;

use calve_engine::error::Error;

pub use compression::Compression;
pub use options::WriteOptions;
pub use partition::{KeyValue, TablePartition};
pub use placement::{DescribedFile, FinishedFile, Placed, Placement};
pub use split::{FanoutSplitter, SplitRows};
pub use writer::FanoutWriter;

/// A kernel refused arrays that were checked before.
fn arrow_failed(error: arrow::error::ArrowError) -> Error {
    Error::internal("cannot rearrange rows").because(error)
}

#[cfg(test)]
mod codec_tests;
#[cfg(test)]
mod writer_tests;

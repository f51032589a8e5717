//! The engine of calve: batches, the seams, the batchers, the shard loop, checkpoints, metrics.
//!
//! Never here: a connector, an SQL engine, a table format. Start with [`seams`], then [`shard`].
#![warn(missing_docs)]

pub mod batch;
pub mod checkpoint;
pub mod clock;
pub mod conform;
pub mod durable;
pub mod error;
pub mod event_time;
pub mod fault;
pub mod metrics;
pub mod opaque;
pub mod rejects;
pub mod seams;
pub mod secret;
pub mod shard;
pub mod short;
pub mod stores;
pub mod windows;

pub use batch::{Decoded, EventTimeBounds, Payload, RawBatch, Reject};
pub use error::{Error, ErrorKind, Policy, Result};
pub use opaque::Opaque;
pub use seams::{
    Aggregate, BatcherFactory, Commit, Decoder, Outcome, Output, OutputState, Prepared, Sealed,
    Source, SourceEvent, Split, Splitter, TableWriter, Transform,
};
pub use secret::Secret;

//! The pure core of calve: windows and panes, watermarks, positions, recovery. Values in, values out.
//!
//! Never here: tokio, arrow, clocks, threads, I/O. What can be decided from values alone is decided
//! here and tested without a clock. Start with [`offsets`], then [`recovery`]; for the Dataflow model
//! with [`windows`]; for sizes that set themselves with [`flow`].
#![warn(missing_docs)]

pub mod epoch;
pub mod flow;
pub mod offsets;
pub mod recovery;
pub mod watermark;
pub mod windows;

pub use epoch::Epoch;
pub use offsets::{OffsetError, OffsetRange, Offsets, Position, SourcePartition};
pub use watermark::{Micros, Watermarks};

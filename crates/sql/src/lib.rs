//! SQL in calve, on DataFusion: transforms of event batches, aggregates of windows, monitor queries,
//! `calve query`.
//!
//! Never here: a source, a table format, output to a terminal. A transform sees one batch at a time
//! and remembers nothing, so it accepts only SQL whose result does not depend on where batches
//! begin and end, nor on when it runs. Start with [`transform`], then [`aggregate`] and
//! [`monitor`].
#![warn(missing_docs)]

pub mod aggregate;
mod caret;
mod check;
mod columns;
mod cut;
mod fold;
mod leaf;
pub mod lookup;
pub mod monitor;
pub mod query;
mod session;
mod steps;
pub mod transform;

pub use aggregate::WindowedAggregate;
pub use lookup::{Lookup, LookupConfig, LookupFormat};
pub use monitor::{Figure, MonitoredTransform, Monitors, Observer};
pub use query::{QueryOptions, QueryResult, query};
pub use transform::{EVENTS, Planned, SqlTransform};

//! Sources and formats: what reads raw batches, and what turns them into Arrow.
//!
//! Never here: SQL, tables, checkpoints. Siblings are never imported. Start with [`sources`] for
//! where events come from, and [`formats`] for what they look like.

pub mod descriptors;
pub mod formats;
mod one_of;
pub mod sources;
pub mod units;

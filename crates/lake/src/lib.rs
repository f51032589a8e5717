//! Tables of calve: partitioned Parquet and Apache Iceberg, written by one shared data-file writer.
//!
//! Start with [`write`], which splits rows by table partition, encodes and syncs data files; then
//! [`parquet`] and [`iceberg`], which say where a row goes and how prepared files become visible.

pub mod changes;
pub mod checkpoints;
pub mod iceberg;
pub mod parquet;
#[cfg(test)]
mod postgres_server;
pub mod write;

//! HTTP.
#![allow(dead_code)]
pub(crate) mod wal;

//! One file a command: its arguments, and what it does.

pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod demo;
pub(crate) mod explain;
mod from;
pub(crate) mod init;
pub(crate) mod query;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod table;
pub(crate) mod tap;

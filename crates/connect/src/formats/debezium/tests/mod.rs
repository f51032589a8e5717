//! Changes as rows.

mod fixture;

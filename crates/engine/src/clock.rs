//! The one place that reads the wall clock. Nothing that is decided depends on it; it only stamps
//! what people read.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of processing time since 1970-01-01T00:00:00Z.
#[allow(
    clippy::disallowed_methods,
    reason = "this is the place that owns the wall clock"
)]
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as i64)
}

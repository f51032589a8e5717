//! The number of a shard's checkpoint.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of a shard's checkpoint: 1, 2, 3, …; 0 stands for "none yet". Never goes back.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before the first checkpoint.
    pub const NONE: Self = Self(0);

    /// The epoch that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! What a pipeline may use.

use calve_connect::units::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::auto::AutoOr;
use crate::shares;

/// What calve may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Memory for what is read, open windows, open files and indexes; `auto`: a quarter of what the
    /// machine has, or the cgroup.
    pub(crate) memory: AutoOr<ByteSize>,
    /// Threads that decode, transform and encode. Default: one per core. The result does not
    /// depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batchers: Option<usize>,
    /// Events of a batch, about; `auto`: as many as cost least.
    pub(crate) batch_rows: AutoOr<u64>,
}

impl LimitsConfig {
    /// The memory budget, bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        match self.memory {
            AutoOr::Auto => shares::default_budget(),
            AutoOr::Fixed(size) => size.0,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            memory: AutoOr::Auto,
            batchers: None,
            batch_rows: AutoOr::Auto,
        }
    }
}

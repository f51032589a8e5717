//! The settings of a log.

use std::path::PathBuf;

use calve_engine::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{sources::SourceContext, units::ByteSize};

/// The write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WalConfig {
    /// A folder on a local disk. Default: beside the checkpoints, where those are in a local folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Size of its files, which are removed one by one when what they hold is committed.
    pub segment_size: ByteSize,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            path: None,
            segment_size: ByteSize(64 << 20),
        }
    }
}

impl WalConfig {
    /// Checks what can be checked without I/O.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn validate(&self) -> Result<()> {
        let bytes = self.segment_size.0;
        if !(1 << 10..=1 << 30).contains(&bytes) {
            return Err(Error::config(format!(
                "wal.segment_size is not between 1KiB and 1GiB: segment_size={bytes}"
            )));
        }
        Ok(())
    }

    /// Where the log is.
    ///
    /// # Errors
    /// `Config` when nothing says it.
    pub(crate) fn folder(&self, context: &SourceContext) -> Result<PathBuf> {
        let given = self.path.as_ref().map(|path| context.base.join(path));
        given.or_else(|| context.wal.clone()).ok_or_else(|| {
            Error::config("there is no local folder for the write-ahead log: path=wal.path")
                .hint("name a folder on a local disk: `wal: { path: /var/lib/calve/orders }`")
        })
    }
}

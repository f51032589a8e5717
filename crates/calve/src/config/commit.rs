//! When files become visible, and how they are looked after.

use std::time::Duration;

use calve_connect::units::{ByteSize, Span};
use calve_engine::shard::CommitEvery;
use calve_lake::write::Compression;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::auto::AutoOr;

/// When and how files are written and made visible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CommitConfig {
    /// An epoch ends after this long; `auto`: as seldom as `freshness` allows. Default: 30s, and
    /// `auto` with `freshness`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<AutoOr<Span>>,
    /// With `every: auto`: rows are to be visible so long after their events were read. Default: 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) freshness: Option<Span>,
    /// An epoch does not end sooner than this after the last.
    pub(crate) min_interval: Span,
    /// An epoch ends when it has so many rows, or a few more: whole batches. Default: rows do not end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rows: Option<u64>,
    /// A data file is closed when it has about so many bytes.
    pub(crate) target_file_size: ByteSize,
    /// Codec of data files.
    pub(crate) compression: Compression,
}

/// How often an epoch ends, where nothing is said.
const EVERY: Duration = Duration::from_secs(30);
/// How late rows may be visible, where sizes are found and nothing is said.
const FRESHNESS: Duration = Duration::from_secs(10);

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            every: None,
            freshness: None,
            min_interval: Span(Duration::from_secs(1)),
            rows: None,
            target_file_size: ByteSize(128 << 20),
            compression: Compression::default(),
        }
    }
}

impl CommitConfig {
    /// How often an epoch ends.
    pub(crate) fn interval(&self) -> CommitEvery {
        match (self.every, self.freshness) {
            (Some(AutoOr::Fixed(every)), _) => CommitEvery::Fixed(every.0),
            (None, None) => CommitEvery::Fixed(EVERY),
            (_, freshness) => CommitEvery::Fresh(freshness.map_or(FRESHNESS, |f| f.0)),
        }
    }

    /// The longest that an epoch lasts, as long as commits are not slower than that.
    pub(crate) fn longest(&self) -> Span {
        let (CommitEvery::Fixed(every) | CommitEvery::Fresh(every)) = self.interval();
        Span(every)
    }

    /// When an epoch ends, behind "an epoch ends".
    pub(crate) fn words(&self) -> String {
        match self.interval() {
            CommitEvery::Fixed(every) => {
                format!("{} (commit.every) after its first event", Span(every))
            }
            CommitEvery::Fresh(freshness) => format!(
                "as late as its rows can still be visible {} (commit.freshness) after they were read",
                Span(freshness)
            ),
        }
    }
}

/// How an Iceberg table is looked after while the pipeline runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct UpkeepConfig {
    /// What the pipeline does between its commits.
    pub(crate) compact: Compact,
    /// With `auto`: fewer small files of a table partition are not merged. At least 2.
    pub(crate) min_files: usize,
    /// With `auto`: a file is written again when so large a share of its rows is deleted, above 0 to 1.
    pub(crate) deleted_share: f64,
    /// With `auto`: when a run has ended, or nothing was committed for `settle_after`, so many bytes of files from
    /// which rows are deleted are written again without them; or four times what was committed and not used yet,
    /// where that is more. 0: none.
    pub(crate) settle: ByteSize,
    /// When nothing was committed for so long, and for twice the time of an epoch, there is time to settle.
    pub(crate) settle_after: Span,
    /// Small files become few, and files lose the rows that were deleted from them, after so long each
    /// time, as `calve table compact` does it: beside the commits, in a table of changes between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compact_every: Option<Span>,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        Self {
            compact: Compact::Auto,
            min_files: 4,
            deleted_share: 0.2,
            settle: ByteSize(128 << 20),
            settle_after: Span(Duration::from_mins(1)),
            compact_every: None,
        }
    }
}

/// Whether a pipeline merges files between its commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compact {
    /// A table of changes is merged a little after each commit; others are not.
    Auto,
    /// Never.
    Off,
}

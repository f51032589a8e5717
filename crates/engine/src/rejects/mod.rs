//! The rejects: events that could not be decoded or did not fit, as NDJSON, exactly once.
//!
//! An output like the table: an epoch's rejects are written to a staged file, which the checkpoint
//! record names; the commit publishes it by a link that never replaces, or by a copy in an object
//! store. The published name holds epoch and record digest, so the place itself says what it holds.

mod output;
mod writer;

use std::path::{Path, PathBuf};

use calve_model::{Epoch, SourcePartition};
use serde::{Deserialize, Serialize};

pub use output::RejectsOutput;
pub use writer::{RejectsWriter, SealedRejects, remove};

use crate::{
    batch::Reject,
    error::Result,
    opaque::Opaque,
    stores::{ObjectFolder, Stores, is_remote},
};

/// One line of a rejects file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectLine {
    /// The event as it came, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The event's bytes in hexadecimal, when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_hex: Option<String>,
    /// Why it was rejected.
    pub error: String,
    /// Where it came from.
    pub source_partition: String,
    /// Where in there.
    pub offset: u64,
}

impl RejectLine {
    /// The line of a reject.
    pub fn new(partition: &SourcePartition, reject: &Reject) -> Self {
        let text = std::str::from_utf8(&reject.raw).ok().map(str::to_owned);
        let hex = text.is_none().then(|| crate::checkpoint::hex(&reject.raw));
        Self {
            event: text,
            event_hex: hex,
            error: reject.error.clone(),
            source_partition: partition.to_string(),
            offset: reject.offset,
        }
    }
}

/// Where rejects go.
#[derive(Clone, Debug)]
pub enum RejectsPlace {
    /// A folder, created with the first reject.
    Local(PathBuf),
    /// A place in an object store.
    Remote(ObjectFolder),
}

impl RejectsPlace {
    /// A local path, or the URL of an object store.
    ///
    /// # Errors
    /// `Config` for a URL that cannot be opened.
    pub fn open(location: &str, stores: &Stores) -> Result<Self> {
        if is_remote(location) {
            return stores.open(location).map(Self::Remote);
        }
        let path = location.strip_prefix("file://").unwrap_or(location);
        Ok(Self::Local(Path::new(path).to_owned()))
    }
}

/// An epoch's rejects in a checkpoint record.
#[derive(Serialize, Deserialize)]
struct Content {
    /// A path, or a name within the place in an object store.
    staged: PathBuf,
}

/// The name, relative to a staged name, by which it is known that it is one.
const STAGED_ENDING: &str = ".tmp";

/// The staged name in the part of a record that is the rejects'; none when it holds something else.
pub fn staged_in(content: &Opaque) -> Option<String> {
    let content = content.parse::<Content>().ok()?;
    Some(content.staged.to_str()?.to_owned())
}

/// The name under which a record's rejects are published, in the folder of its shard.
pub fn published_name(epoch: Epoch, digest: &str) -> String {
    format!("{:020}-{digest}.ndjson", epoch.0)
}

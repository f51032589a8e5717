//! What a checkpoint keeps of a source partition besides its offset, to know the file again and to
//! decode it from the middle. JSON in `Position.tag`; unknown keys are ignored.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// At most so many bytes of a file's head, and before its position, are remembered by their hash.
pub(crate) const HEAD_BYTES: usize = 1024;
pub(crate) const TAIL_BYTES: usize = 256;

/// The tag of a batch of text or rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FileTag {
    /// Device and inode of a local file, ETag of an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// The first bytes of the file as it lies on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) head: Option<Mark>,
    /// The last bytes of the text before the position; of rows those of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tail: Option<Mark>,
    /// Size of the file on the disk when its end was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    /// When it was changed, in nanoseconds after 1970, where `size` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) changed: Option<i64>,
    /// Names of the file's columns, for CSV with a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) header: Option<Vec<String>>,
    /// How many bytes at the beginning of this batch are the header.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) header_bytes: u64,
}

/// A number of bytes and their hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) bytes: u64,
    pub(crate) sha: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Mark {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let sha = Sha256::digest(bytes);
        let half = |b: &u8, shift: u8| char::from_digit(u32::from(b >> shift & 15), 16);
        let sha = sha[..12]
            .iter()
            .flat_map(|b| [half(b, 4), half(b, 0)])
            .flatten();
        let sha = sha.collect();
        Self {
            bytes: bytes.len() as u64,
            sha,
        }
    }
}

impl FileTag {
    /// What was stored; nothing when it is not of this form.
    pub(crate) fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    pub(crate) fn print(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }
}

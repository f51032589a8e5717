//! The settings of the file source.

use std::fmt;

use calve_engine::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FileSource, list::Pattern};
use crate::{
    formats::FormatConfig,
    sources::SourceContext,
    units::{ByteSize, Span},
};

/// Files: local or in an object store, read once or followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// A path, glob (`*`, `**`, `?`, `[…]`) or URL (`s3://`, `gs://`, `az://`, `https://`,
    /// `file://`), or a list of them.
    pub path: Paths,
    /// Goes on when everything is read: takes new files, and lines that are added to files.
    #[serde(default)]
    pub follow: bool,
    /// What the names of the files say about event time.
    #[serde(default)]
    pub order: FileOrder,
    /// How text files are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// How often to look for new files and lines, with `follow`.
    #[serde(default = "poll_interval")]
    pub poll_interval: Span,
    /// Bytes of text that make a batch. Default: 1 MiB, and what `limits.batch_rows` makes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_bytes: Option<ByteSize>,
    /// A line longer than this stops the pipeline.
    #[serde(default = "max_line_bytes")]
    pub max_line_bytes: ByteSize,
}

fn poll_interval() -> Span {
    Span(std::time::Duration::from_secs(1))
}

const CHUNK_BYTES: ByteSize = ByteSize(1 << 20);

fn max_line_bytes() -> ByteSize {
    ByteSize(128 << 20)
}

/// One path or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "OneOrMore", into = "OneOrMore")]
#[schemars(with = "OneOrMore")]
pub struct Paths(pub Vec<String>);

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a path, or a list of paths")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<OneOrMore> for Paths {
    fn from(paths: OneOrMore) -> Self {
        match paths {
            OneOrMore::One(path) => Self(vec![path]),
            OneOrMore::More(paths) => Self(paths),
        }
    }
}

impl From<Paths> for OneOrMore {
    fn from(mut paths: Paths) -> Self {
        match paths.0.len() {
            1 => Self::One(paths.0.remove(0)),
            _ => Self::More(paths.0),
        }
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query may hold a signature.
        let shown = self.0.iter().map(|path| match path.split_once('?') {
            Some((plain, _)) if path.starts_with("http") => plain,
            _ => path,
        });
        f.write_str(&shown.collect::<Vec<_>>().join(","))
    }
}

/// What the names of files say about event time. Files are read in the order of their names anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileOrder {
    /// Nothing: every file that is known and not read holds the watermark back.
    #[default]
    Discovery,
    /// Event time rises with the name: unread files do not hold the watermark back.
    Name,
}

/// Compression of text files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// By the first bytes of each file.
    #[default]
    Auto,
    /// Plain text.
    None,
    /// gzip, also several members one after the other.
    Gzip,
    /// Zstandard, also several frames one after the other.
    Zstd,
}

impl Compression {
    /// What a file is, by its first bytes; by its name while it is empty.
    pub(super) fn of(self, name: &str, head: &[u8]) -> Self {
        if self != Self::Auto {
            return self;
        }
        let ends = |end: &str| head.is_empty() && name.to_ascii_lowercase().ends_with(end);
        if head.starts_with(&[0x1f, 0x8b]) || ends(".gz") {
            Self::Gzip
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || ends(".zst") {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

impl FileConfig {
    /// The files at these paths, with the defaults for all else.
    pub fn new(paths: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            path: Paths(paths.into_iter().map(Into::into).collect()),
            follow: false,
            order: FileOrder::default(),
            compression: Compression::default(),
            poll_interval: poll_interval(),
            chunk_bytes: None,
            max_line_bytes: max_line_bytes(),
        }
    }

    /// Bytes of a chunk, as long as nobody asks for another size.
    pub(crate) fn chunk(&self) -> usize {
        self.chunk_bytes.unwrap_or(CHUNK_BYTES).0 as usize
    }

    pub(crate) fn validate(&self, format: &FormatConfig) -> Result<()> {
        if self.path.0.is_empty() {
            return Err(Error::config("file source without a path"));
        }
        if let Some(bytes) = self.chunk_bytes.filter(|b| b.0 == 0 || b.0 > 1 << 30) {
            return Err(Error::config(format!(
                "chunk_bytes is not between 1 and 1GiB: chunk_bytes={bytes}"
            )));
        }
        if self.poll_interval.0.is_zero() && self.follow {
            return Err(Error::config("poll_interval is zero"));
        }
        if !format.is_bytes() && matches!(self.compression, Compression::Gzip | Compression::Zstd) {
            return Err(Error::config(format!(
                "{} files are not compressed as a whole",
                format.name()
            ))
            .hint("leave `compression` out: the format has its own"));
        }
        // The syntax of paths; stores are not reached by this.
        let context = SourceContext::default();
        self.path
            .0
            .iter()
            .filter(|path| !path.contains("://"))
            .try_for_each(|path| Pattern::new(path, &context).map(|_| ()))
    }

    pub(crate) fn fingerprint(&self) -> String {
        format!("file {}", self.path)
    }

    pub(crate) async fn check_connect(&self, context: &SourceContext) -> Result<()> {
        let format = FormatConfig::Json(crate::formats::JsonConfig::default());
        FileSource::new(self, &format, context)?.check().await
    }
}

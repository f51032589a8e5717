//! Which files there are: paths, globs and URLs, and the names of their source partitions.
//!
//! A name is the path as the pipeline file writes it (relative paths stay relative), so that it is
//! stable over restarts from other folders; `%`, control characters and what is not UTF-8 are
//! percent-encoded.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use calve_engine::{
    Error, Result,
    stores::{ObjectFolder, shown},
};
use futures::TryStreamExt;
use object_store::{GetOptions, ObjectMeta};
use url::Url;

use crate::sources::SourceContext;

/// Where a file lies.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    Local(PathBuf),
    Remote {
        folder: ObjectFolder,
        path: object_store::path::Path,
    },
}

/// A file that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) location: Location,
    pub(crate) looks: Looks,
}

/// What is seen of a file without reading it. As long as it stays the same, nobody reads the file again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Looks {
    /// Bytes on the disk.
    pub(crate) size: u64,
    /// Device and inode; the ETag of an object; when a file of an HTTP server was changed.
    pub(crate) id: Option<String>,
    /// When it was changed, in nanoseconds after 1970. None of an object with an ETag, which says it better.
    pub(crate) changed: Option<i64>,
}

/// One entry of `path`, taken apart once.
pub(crate) enum Pattern {
    /// A path or glob as it was written, and where it begins.
    Local { written: String, base: PathBuf },
    Remote {
        /// What names begin with: scheme and host.
        root: String,
        folder: ObjectFolder,
        glob: Option<glob::Pattern>,
    },
}

const GLOB: [char; 3] = ['*', '?', '['];

impl Pattern {
    /// Takes an entry of `path` apart; checks its syntax.
    pub(crate) fn new(written: &str, context: &SourceContext) -> Result<Self> {
        match Url::parse(written) {
            // A Windows drive letter is not a scheme.
            Ok(url) if url.scheme().len() > 1 && written.contains("://") => {
                if url.scheme() == "file" {
                    let path = url
                        .to_file_path()
                        .map_err(|()| Error::config(format!("not a local path: path={written}")))?;
                    return Self::local(&path.to_string_lossy(), context);
                }
                Self::remote(written, context)
            }
            _ => Self::local(written, context),
        }
    }

    fn local(written: &str, context: &SourceContext) -> Result<Self> {
        if written.trim().is_empty() {
            return Err(Error::config("file path is empty"));
        }
        let mut written = written.replace("/./", "/");
        while written.contains("//") {
            written = written.replace("//", "/");
        }
        while let Some(rest) = written.strip_prefix("./") {
            written = String::from(rest);
        }
        glob::Pattern::new(&written)
            .map_err(|e| Error::config(format!("not a glob: path={written}")).because(e))?;
        Ok(Self::Local {
            written,
            base: context.base.clone(),
        })
    }

    fn remote(written: &str, context: &SourceContext) -> Result<Self> {
        let bad = || Error::config(format!("not a URL of a file: path={}", shown(written)));
        let scheme_end = written.find("://").ok_or_else(bad)? + 3;
        let path_start = written[scheme_end..]
            .find('/')
            .map_or(written.len(), |i| scheme_end + i);
        let (root, path) = written.split_at(path_start);
        // A query belongs to http; elsewhere a question mark is a glob.
        let is_http = root.starts_with("http");
        let is_glob = if is_http {
            let path = path.split('?').next().unwrap_or_default();
            path.contains('*')
        } else {
            path.contains(GLOB)
        };
        if is_http && is_glob {
            return Err(Error::config(format!(
                "files of an HTTP server cannot be listed: path={}",
                shown(written)
            ))
            .hint("name each file: `path: [https://…, https://…]`"));
        }
        let plain = if is_glob {
            let first = path.find(GLOB).unwrap_or(path.len());
            &path[..path[..first].rfind('/').map_or(0, |i| i + 1)]
        } else {
            path
        };
        let folder = context.stores.open(&format!("{root}{plain}"))?;
        let glob = is_glob
            .then(|| glob::Pattern::new(path.trim_start_matches('/')))
            .transpose();
        let glob = glob.map_err(|e| bad().because(e))?;
        let root = shown(root);
        Ok(Self::Remote { root, folder, glob })
    }

    /// Finds the files; several patterns may find one file, which counts once.
    pub(crate) async fn find(&self, into: &mut BTreeMap<String, Found>) -> Result<()> {
        match self {
            Self::Local { written, base } => find_local(written, base, into),
            Self::Remote {
                root,
                folder,
                glob: None,
            } => match look_at(folder).await {
                Ok(meta) => {
                    insert_remote(root, folder, meta, into);
                    Ok(())
                }
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(folder.failed("cannot find a file", "", &error)),
            },
            Self::Remote {
                root,
                folder,
                glob: Some(glob),
            } => {
                let mut listing = folder.store().list(Some(folder.root()));
                let options = glob::MatchOptions {
                    require_literal_separator: true,
                    ..Default::default()
                };
                let failed = |e| folder.failed("cannot list files", "", &e);
                while let Some(meta) = listing.try_next().await.map_err(failed)? {
                    if glob.matches_with(meta.location.as_ref(), options) {
                        insert_remote(root, folder, meta, into);
                    }
                }
                Ok(())
            }
        }
    }
}

/// What a store knows of one object. An HTTP server may allow no HEAD, a signed link for one.
async fn look_at(folder: &ObjectFolder) -> object_store::Result<ObjectMeta> {
    let get = |head| {
        let options = GetOptions {
            head,
            ..GetOptions::default()
        };
        folder.store().get_opts(folder.root(), options)
    };
    match get(true).await {
        Err(_) if !folder.is_whole() => get(false).await.map(|found| found.meta),
        found => found.map(|found| found.meta),
    }
}

/// What changes when an object is replaced.
pub(super) fn identity(folder: &ObjectFolder, meta: &ObjectMeta) -> Option<String> {
    let tag = meta.e_tag.as_deref().map(|tag| tag.trim_matches('"'));
    let changed_ms = meta.last_modified.timestamp_millis();
    match tag {
        Some(tag) if !tag.is_empty() => Some(tag.to_owned()),
        _ if !folder.is_whole() && changed_ms > 0 => Some(format!("changed-{changed_ms}")),
        _ => None,
    }
}

fn insert_remote(
    root: &str,
    folder: &ObjectFolder,
    meta: ObjectMeta,
    into: &mut BTreeMap<String, Found>,
) {
    let id = identity(folder, &meta);
    let name = encode(&format!("{root}/{}", meta.location));
    let location = Location::Remote {
        folder: folder.clone(),
        path: meta.location,
    };
    let changed = meta.last_modified.timestamp_nanos_opt();
    let looks = Looks {
        size: meta.size,
        changed: changed.filter(|_| id.is_none()),
        id,
    };
    into.insert(name, Found { location, looks });
}

fn find_local(written: &str, base: &Path, into: &mut BTreeMap<String, Found>) -> Result<()> {
    let full = base.join(written);
    // A file whose name looks like a glob is meant as it is written.
    if full.is_file() || !written.contains(GLOB) {
        return match fs::metadata(&full) {
            Ok(meta) if meta.is_file() => {
                insert_local(encode(written), full, &meta, into);
                Ok(())
            }
            Ok(_) => Err(
                Error::config(format!("not a file: path={written}")).hint(format!(
                    "to read the files of a folder write {}/*",
                    written.trim_end_matches('/')
                )),
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(format!("cannot look at path={written}"), e)),
        };
    }
    let escaped = glob::Pattern::escape(&base.to_string_lossy());
    let pattern = Path::new(&escaped).join(written);
    let options = glob::MatchOptions {
        require_literal_separator: true,
        ..Default::default()
    };
    let found = glob::glob_with(&pattern.to_string_lossy(), options)
        .map_err(|e| Error::config(format!("not a glob: path={written}")).because(e))?;
    for path in found {
        let path = match path {
            Ok(path) => path,
            Err(e) => return Err(Error::io(format!("cannot list path={written}"), e.into())),
        };
        // A file may vanish between the listing and the look at it.
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        if meta.is_file() {
            let relative = if Path::new(written).is_absolute() {
                path.as_path()
            } else {
                path.strip_prefix(base).unwrap_or(&path)
            };
            insert_local(name_of(relative), path.clone(), &meta, into);
        }
    }
    Ok(())
}

fn insert_local(
    name: String,
    path: PathBuf,
    meta: &fs::Metadata,
    into: &mut BTreeMap<String, Found>,
) {
    #[cfg(unix)]
    let id = {
        use std::os::unix::fs::MetadataExt;
        Some(format!("{:x}-{:x}", meta.dev(), meta.ino()))
    };
    #[cfg(not(unix))]
    let id = None;
    let since = meta.modified().ok();
    let since = since.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let looks = Looks {
        size: meta.len(),
        id,
        changed: since.and_then(|since| i64::try_from(since.as_nanos()).ok()),
    };
    let location = Location::Local(path);
    into.insert(name, Found { location, looks });
}

fn name_of(path: &Path) -> String {
    match path.to_str() {
        Some(text) => encode(text),
        None => encode_bytes(path.as_os_str().as_encoded_bytes()),
    }
}

fn encode(text: &str) -> String {
    if text.chars().any(|c| c.is_control() || c == '%') {
        return encode_bytes(text.as_bytes());
    }
    text.to_owned()
}

fn encode_bytes(bytes: &[u8]) -> String {
    let mut name = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '%' {
                let mut utf8 = [0; 4];
                c.encode_utf8(&mut utf8)
                    .bytes()
                    .for_each(|b| name.push_str(&format!("%{b:02X}")));
            } else {
                name.push(c);
            }
        }
        chunk
            .invalid()
            .iter()
            .for_each(|b| name.push_str(&format!("%{b:02X}")));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_distinct() {
        assert_eq!(encode("data/a b.ndjson"), "data/a b.ndjson");
        assert_eq!(encode("100%\n"), "100%25%0A");
        assert_eq!(encode_bytes(b"a\xff/b"), "a%FF/b");
        assert_eq!(shown("https://me:pw@host/x?sig=1"), "https://host/x");
        assert_eq!(shown("s3://bucket/a@b"), "s3://bucket/a@b");
    }
}

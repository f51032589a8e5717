//! Removes staged files that nothing refers to.

use std::{collections::HashSet, fs, io, time::Duration};

use calve_engine::error::{Error, Result};

use super::{STAGED, local_root};

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Paths relative to the table's, sorted.
    pub files: Vec<String>,
    /// Their size. A published file's staged name is counted too, though it frees nothing.
    pub bytes: u64,
}

/// Removes staged files of the table at `path` that were last changed `older_than` ago or earlier and
/// are not in `live` (paths relative to the table's, as in [`super::PublishedFile::staged`]: those of
/// every record of every pipeline). With `dry_run` only says what it would remove.
///
/// # Errors
/// `Config` or `Unavailable` when the folder cannot be read or changed.
#[expect(
    clippy::implicit_hasher,
    reason = "nobody has a set with another hasher"
)]
pub async fn clean(
    path: &str,
    older_than: Duration,
    live: &HashSet<String>,
    dry_run: bool,
) -> Result<Cleaned> {
    let root = local_root(path)?;
    let live = live.clone();
    let work = move || {
        let folder = root.join(STAGED);
        let failed = |error| {
            Error::io(
                format!("cannot clean staged files: path={}", folder.display()),
                error,
            )
        };
        let mut cleaned = Cleaned::default();
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(cleaned),
            Err(error) => return Err(failed(error)),
        };
        for entry in listing {
            let entry = entry.map_err(failed)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let name = format!("{STAGED}/{name}");
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            // A file from the future has no age: leave it.
            let age = metadata
                .modified()
                .map_err(failed)?
                .elapsed()
                .unwrap_or_default();
            if !metadata.is_file() || live.contains(&name) || age < older_than {
                continue;
            }
            if !dry_run {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
            cleaned.bytes += metadata.len();
            cleaned.files.push(name);
        }
        cleaned.files.sort();
        Ok(cleaned)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("a task that cleans died").because(error))?
}

//! Removes staged files that nothing refers to, and what is left of commits that were being written when
//! their process died.

use std::{collections::HashSet, fs, io, time::Duration};

use calve_engine::{
    durable,
    error::{Error, Result},
};

use super::{OWN, STAGED, local_root};

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
/// every record of every pipeline); and, as old, what [`durable::create`] left beside commits. With `dry_run`
/// only says what it would remove.
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
        let mut cleaned = Cleaned::default();
        let mut folders = vec![OWN.to_owned()];
        while let Some(folder) = folders.pop() {
            let failed = |error| {
                let at = root.join(&folder);
                Error::io(format!("cannot clean: path={}", at.display()), error)
            };
            let listing = match fs::read_dir(root.join(&folder)) {
                Ok(listing) => listing,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in listing {
                let entry = entry.map_err(failed)?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                    continue;
                };
                let path = format!("{folder}/{name}");
                let kind = entry.file_type().map_err(failed)?;
                if kind.is_dir() {
                    folders.push(path);
                    continue;
                }
                let left = if folder == STAGED {
                    !live.contains(&path)
                } else {
                    durable::is_staged(&name)
                };
                if !left || !kind.is_file() {
                    continue;
                }
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
                if age < older_than {
                    continue;
                }
                if !dry_run {
                    fs::remove_file(entry.path()).map_err(failed)?;
                }
                cleaned.bytes += metadata.len();
                cleaned.files.push(path);
            }
        }
        cleaned.files.sort();
        Ok(cleaned)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("a task that cleans died").because(error))?
}

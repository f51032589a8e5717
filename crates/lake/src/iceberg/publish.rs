//! Writes the files of a commit on a local disk, and names them. What is written here is referred to by nothing until
//! the catalog's row is swapped (see `handle.rs`).

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use calve_engine::{
    durable,
    error::{Error, Result},
};
use uuid::Uuid;

use super::access::local;

/// Asks writers to remove the metadata files that the log no longer lists.
pub(super) const DELETE_AFTER_COMMIT: &str = "write.metadata.delete-after-commit.enabled";

/// The metadata folder and the next metadata file in it.
pub(super) fn next_metadata(current: &str, table: &str) -> (String, String) {
    let (folder, name) = match current.rsplit_once('/') {
        Some((folder, name)) => (folder.to_owned(), name),
        None => (format!("{table}/metadata"), current),
    };
    // `00012-<uuid>.metadata.json`, or `v12.metadata.json` by others.
    let digits: String = name
        .trim_start_matches('v')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let version = digits.parse::<u64>().unwrap_or(0) + 1;
    let next = format!("{folder}/{version:05}-{}.metadata.json", Uuid::new_v4());
    (folder, next)
}

/// Writes new files of one local folder side by side; when it returns, they and their names are
/// durable. When it fails, none of them is left. Answers their locations.
///
/// # Errors
/// `Unavailable` or `Full`; `Config` when the folder is missing or forbidden.
pub(super) async fn write_all(files: Vec<(String, Vec<u8>)>, folder: &str) -> Result<Vec<String>> {
    let path_of = |location: &str| {
        let path = local(location).map(PathBuf::from);
        path.ok_or_else(|| Error::internal(format!("not a local location: location={location}")))
    };
    let folder = path_of(folder)?;
    let failed = |path: &Path, e: io::Error| {
        Error::io(
            format!("cannot write the table's metadata: file={}", path.display()),
            e,
        )
    };
    let mut tasks = Vec::new();
    for (location, bytes) in files {
        let path = path_of(&location)?;
        tasks.push(tokio::task::spawn_blocking(move || {
            let written = write_new(&path, &bytes);
            (location, path, written)
        }));
    }
    let mut written = Vec::new();
    let mut paths = Vec::new();
    let mut error = None;
    for task in tasks {
        let (location, path, result) = task
            .await
            .map_err(|e| Error::internal("a task that writes has died").because(e))?;
        match result {
            Ok(()) => {
                written.push(location);
                paths.push(path);
            }
            Err(e) => error = Some(failed(&path, e)),
        }
    }
    if let Some(error) = error {
        for path in paths {
            let _ = fs::remove_file(path);
        }
        return Err(error);
    }
    let sync = folder.clone();
    tokio::task::spawn_blocking(move || durable::sync_dir(&sync))
        .await
        .map_err(|e| Error::internal("a task that syncs has died").because(e))?
        .map_err(|e| failed(&folder, e))?;
    Ok(written)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

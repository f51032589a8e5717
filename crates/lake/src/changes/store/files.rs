//! Names of the files of a store, and every operation that changes one.
//!
//! All changes go through here, so that tests can stop the world before any of them and look at what
//! a killed process would leave behind. Nothing is synced: the store is a cache that says when it
//! is damaged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(super) const MANIFEST: &str = "manifest";
pub(super) const MANIFEST_NEW: &str = "manifest.new";
pub(super) const LOCK: &str = "lock";
const RUN: &str = "run";
const LOG: &str = "log";
/// Hexadecimal digits of a file's number.
const ID_DIGITS: usize = 12;

pub(super) fn run_path(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("{id:0ID_DIGITS$x}.{RUN}"))
}

pub(super) fn log_path(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("{id:0ID_DIGITS$x}.{LOG}"))
}

/// The error of something that cannot be what this store wrote.
pub(super) fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "key store is damaged: file={} problem={what}; delete the folder and build it again",
            path.display()
        ),
    )
}

/// Creates a file, or empties the one that is there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    step("create", path)?;
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}

pub(super) fn write(mut file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    step("write", path)?;
    file.write_all(bytes)
}

pub(super) fn truncate(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    step("truncate", path)?;
    file.set_len(bytes)
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step("rename", to)?;
    fs::rename(from, to)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    step("remove", path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Deletes runs, logs and half-made manifests that `keep` does not name. Other files are left alone.
pub(super) fn remove_strays(folder: &Path, keep: &[PathBuf]) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let ours =
            is_run_or_log(&path) || path.file_name().is_some_and(|name| name == MANIFEST_NEW);
        if ours && !keep.contains(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// By its name, so that a folder given by mistake loses nothing.
fn is_run_or_log(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    matches!(extension, Some(RUN | LOG))
        && stem.is_some_and(|id| id.len() == ID_DIGITS && u64::from_str_radix(id, 16).is_ok())
}

/// Bytes of all files in the folder.
pub(super) fn folder_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        match entry?.metadata() {
            Ok(metadata) => bytes += metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Reads exactly `buffer.len()` bytes at `offset`, without moving any cursor.
#[cfg(unix)]
pub(super) fn read_at(file: &File, path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    file.read_exact_at(buffer, offset)
        .map_err(|error| too_short(path, error))
}

/// Reads exactly `buffer.len()` bytes at `offset`.
#[cfg(not(unix))]
pub(super) fn read_at(
    mut file: &File,
    path: &Path,
    offset: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    use std::io::{Read as _, Seek as _};
    file.seek(io::SeekFrom::Start(offset))?;
    file.read_exact(buffer)
        .map_err(|error| too_short(path, error))
}

fn too_short(path: &Path, error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        damaged(path, "shorter than it was")
    } else {
        error
    }
}

#[cfg(not(test))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "the tests' counterpart fails")]
fn step(_what: &str, _path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) type Hook = Box<dyn FnMut(&str, &Path) -> io::Result<()>>;

#[cfg(test)]
thread_local! {
    /// Called before each change of a file by this thread.
    pub(super) static HOOK: std::cell::RefCell<Option<Hook>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
fn step(what: &str, path: &Path) -> io::Result<()> {
    HOOK.with_borrow_mut(|hook| hook.as_mut().map_or(Ok(()), |hook| hook(what, path)))
}

//! Durable operations on a local file system: what has returned survives a power cut.
//!
//! A new file is complete or absent: written under a hidden name, fsynced, then linked to its name
//! without replacing, then its folder is fsynced. Blocking; call from threads that may block.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Whether a create-if-absent created the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was absent; it is ours now.
    Yes,
    /// It was there before, and is untouched.
    Exists,
}

/// Creates a file with these bytes, durably, unless the name is taken.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<Created> {
    let staged = stage(path, bytes)?;
    let created = publish(&staged, path);
    let _ = fs::remove_file(&staged);
    created
}

/// Whether a name is one under which [`create`] and [`replace`] write before it counts.
pub fn is_staged(name: &str) -> bool {
    name.starts_with('.') && name.strip_suffix(".tmp").is_some()
}

/// Writes a file with these bytes, durably, in the place of whatever was there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = stage(path, bytes)?;
    fs::rename(&staged, path).inspect_err(|_| {
        let _ = fs::remove_file(&staged);
    })?;
    sync_dir(parent(path))
}

/// Gives a complete, fsynced file a second name, unless that is taken; fsyncs the folder.
pub fn publish(staged: &Path, path: &Path) -> io::Result<Created> {
    let created = match fs::hard_link(staged, path) {
        Ok(()) => Created::Yes,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Created::Exists,
        Err(error) => return Err(error),
    };
    sync_dir(parent(path))?;
    Ok(created)
}

/// Makes the names in a folder durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates a folder and those above it, each durable in its parent.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    let mut missing: Vec<&Path> = Vec::new();
    let mut at = dir;
    while !at.as_os_str().is_empty() && !at.exists() {
        missing.push(at);
        match at.parent() {
            Some(up) => at = up,
            None => break,
        }
    }
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => sync_dir(parent(dir))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(up) if !up.as_os_str().is_empty() => up,
        _ => Path::new("."),
    }
}

fn stage(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let dir = parent(path);
    create_dirs(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let staged = dir.join(format!(".{name}.{}-{count}.tmp", std::process::id()));
    let written = (|| {
        let mut file = File::create(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.inspect_err(|_| {
        let _ = fs::remove_file(&staged);
    })?;
    Ok(staged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_does_not_replace() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a/b/record");
        assert_eq!(create(&path, b"one").expect("create"), Created::Yes);
        assert_eq!(create(&path, b"two").expect("create"), Created::Exists);
        assert_eq!(fs::read(&path).expect("read"), b"one");
        replace(&path, b"three").expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"three");
        let names = fs::read_dir(path.parent().expect("parent"))
            .expect("list")
            .count();
        assert_eq!(names, 1, "no staged file stays behind");
    }
}

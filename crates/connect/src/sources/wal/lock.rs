//! The lock on a log's folder.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use calve_engine::{Error, Result, durable};

/// The right to a log's folder, which one process has at a time.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "it is held")] File);

impl Lock {
    /// Makes the folder, if need be, and takes it.
    ///
    /// # Errors
    /// `Config` when another process has it.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let cannot = |e| Error::io(format!("cannot lock the log: path={}", folder.display()), e);
        durable::create_dirs(folder).map_err(cannot)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join("lock"))
            .map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Error::config(format!(
                "another process has the log: path={}",
                folder.display()
            ))
            .hint(
                "only one process may run a pipeline; two pipelines need two folders: `wal.path`",
            )),
            Err(TryLockError::Error(e)) => Err(cannot(e)),
        }
    }
}

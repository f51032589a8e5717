//! Makes files and the folders above them durable. Blocking.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use calve_engine::{
    durable,
    error::{Error, Result},
};
use parking_lot::Mutex;
use rustc_hash::FxHashSet;

use super::file::disk_failed;

/// Threads that wait for the disk at once, where nobody says otherwise.
pub(crate) const WAITING: usize = 8;
/// From so many files on, the file system is asked to write everything it has, once.
const MANY: usize = 256;

/// A complete file that a power cut may still destroy.
pub(crate) struct Unsynced {
    pub(crate) path: PathBuf,
    /// The handle it was written through, where it is still open.
    pub(crate) file: Option<Arc<File>>,
}

/// Makes files below `root` durable, with the folders above them up to `root`. Folders in `durable`
/// are known to be there after a power cut; new ones are added. `at_once` threads wait for the disk.
pub(crate) fn files(
    root: &Path,
    files: Vec<Unsynced>,
    durable: &Mutex<FxHashSet<PathBuf>>,
    at_once: usize,
) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    // Folders that got a new name: those of the files, and those above folders that are new to us.
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    let mut news: Vec<PathBuf> = Vec::new();
    {
        let known = durable.lock();
        for file in &files {
            let mut at = file.path.parent();
            while let Some(folder) = at {
                if !folders.insert(folder.to_owned()) || known.contains(folder) || folder == root {
                    break;
                }
                news.push(folder.to_owned());
                at = folder.parent();
            }
        }
    }
    folders.insert(root.to_owned());
    if files.len() >= MANY {
        let whole = File::open(root).and_then(|root| Ok(rustix::fs::syncfs(root)?));
        whole.map_err(|error| sync_failed(root, error))?;
    } else {
        each(&files, at_once, |one| {
            let synced = match &one.file {
                Some(file) => file.sync_all(),
                None => File::open(&one.path).and_then(|file| file.sync_all()),
            };
            synced.map_err(|error| sync_failed(&one.path, error))
        })?;
        let folders: Vec<PathBuf> = folders.into_iter().collect();
        each(&folders, at_once, |folder| {
            durable::sync_dir(folder).map_err(|error| sync_failed(folder, error))
        })?;
    }
    durable.lock().extend(news);
    Ok(())
}

/// Does something for each, so many at a time.
pub(crate) fn each<T: Sync>(
    all: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    if all.len() <= 1 || at_once <= 1 {
        return all.iter().try_for_each(work);
    }
    let next = AtomicUsize::new(0);
    let turns = || -> Result<()> {
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(one)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once.min(all.len()))
            .map(|_| scope.spawn(turns))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::internal("a thread that syncs died")))
        })
    })
}

fn sync_failed(path: &Path, error: io::Error) -> Error {
    disk_failed(
        format!("cannot make a file durable: path={}", path.display()),
        error,
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn so_many_are_under_way_at_once_and_each_is_done_once() {
        for at_once in [1, 3, 20] {
            let (now, most, done) = (
                AtomicUsize::new(0),
                AtomicUsize::new(0),
                AtomicUsize::new(0),
            );
            let all: Vec<usize> = (0..24).collect();
            each(&all, at_once, |one| {
                let others = now.fetch_add(1, Ordering::SeqCst);
                most.fetch_max(others + 1, Ordering::SeqCst);
                // Until as many are here as may be; the last ones find nobody to wait for.
                let begun = Instant::now();
                while most.load(Ordering::SeqCst) < at_once
                    && begun.elapsed() < Duration::from_secs(10)
                {
                    std::thread::yield_now();
                }
                done.fetch_add(one + 1, Ordering::SeqCst);
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
            .expect("all are done");
            assert_eq!(most.into_inner(), at_once);
            assert_eq!(done.into_inner(), 24 * 25 / 2);
        }
    }
}

//! Removes what is committed: segments, oldest first, behind the keys that they hold.

use std::fs;

use calve_engine::{ErrorKind, Result, clock, durable};

use super::{
    Log,
    keys::{self, Known},
    segments,
};

impl Log {
    /// Removes the segments that hold nothing behind `upto`; their keys stay. What cannot be removed
    /// now is removed at another time.
    ///
    /// # Errors
    /// `Corrupt` when a file of keys is damaged.
    pub(crate) fn trim(&mut self, upto: u64) -> Result<()> {
        let now_ms = clock::now_ms();
        let mut state = self.shared.state.lock();
        let gone = state.bases.partition_point(|base| *base <= upto);
        let gone = gone.saturating_sub(1);
        if gone == 0 {
            return Ok(());
        }
        let removed: Vec<u64> = state.bases[..gone].to_vec();
        let upto = state.bases[gone];
        let fresh = state.keys.take_fresh(upto, now_ms);
        let bytes = if fresh.is_empty() {
            0
        } else {
            keys::file_bytes(fresh.len())
        };
        let (merged, expired) = state.keys.plan(bytes, now_ms);
        let ttl_ms = state.keys.ttl_ms();
        drop(state);
        for path in &expired {
            let _ = fs::remove_file(path);
        }
        if !fresh.is_empty() {
            let still = |known: &Known| now_ms - known.time_ms < ttl_ms;
            match keys::write(&self.folder, upto, &merged, &fresh, still) {
                Ok(written) => {
                    for path in merged.iter().filter(|path| *path != written.path()) {
                        let _ = fs::remove_file(path);
                    }
                    self.shared.state.lock().keys.merged(&merged, written);
                }
                Err(error) => {
                    self.shared.state.lock().keys.put_back(fresh);
                    if error.kind() == ErrorKind::Corrupt {
                        return Err(error);
                    }
                    tracing::warn!("the log is not trimmed now: {error}");
                    return Ok(());
                }
            }
        }
        // The oldest first: whenever it ends, what is left has no gap.
        for base in removed {
            let path = segments::path(&self.folder, base);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = %path.display(), "cannot remove a segment of the log: {error}");
                    break;
                }
            }
            self.shared
                .state
                .lock()
                .bases
                .retain(|known| *known != base);
        }
        let _ = durable::sync_dir(&self.folder);
        Ok(())
    }
}

//! What batches hold from the reading until the writer has them: each has a permit for its bytes as they
//! were read, and for those of the rows that become of them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit of permits, bytes.
const KIB: usize = 1024;
/// Bytes of rows for a byte that is read, at the least that is reckoned with: decoded, transformed,
/// and split.
pub(super) const ROWS: usize = 3;
/// What the rows of any batch take, however few they are; it says nothing of larger ones.
const ANY_BATCH: usize = 64 << 10;

/// Shared by the reader, which waits, the batchers, which say what became of a batch, and the loop.
#[derive(Clone)]
pub(super) struct InFlight(Arc<Inner>);

struct Inner {
    room: Arc<Semaphore>,
    /// KiB in all.
    limit: u32,
    /// Bytes of rows for a byte that is read: quick to rise, slow to fall.
    rows: AtomicU32,
    /// A batch has shown how many.
    known: AtomicBool,
}

impl InFlight {
    pub(super) fn new(bytes: usize) -> Self {
        let limit = (bytes / KIB).clamp(64, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self(Arc::new(Inner {
            room: Arc::new(Semaphore::new(limit)),
            limit: limit as u32,
            rows: AtomicU32::new(ROWS as u32),
            known: AtomicBool::new(false),
        }))
    }

    /// Waits while nothing more is to be read. Cancel-safe.
    pub(super) async fn room(&self) {
        // Never closed.
        let _ = self.0.room.acquire().await;
    }

    /// Waits until a batch of so many bytes has room; one that is larger than all of it has all of it,
    /// and so has the first, of which nobody knows what it becomes.
    pub(super) async fn enter(&self, read: usize) -> OwnedSemaphorePermit {
        let size = if self.0.known.load(Ordering::Relaxed) {
            let rows = self.0.rows.load(Ordering::Relaxed) as usize;
            let size = read.saturating_mul(1 + rows).div_ceil(KIB);
            size.clamp(1, self.0.limit as usize) as u32
        } else {
            self.0.limit
        };
        let room = Arc::clone(&self.0.room);
        room.acquire_many_owned(size)
            .await
            .expect("the semaphore of batches is never closed")
    }

    /// Of `read` bytes became so many bytes of rows: the permit is for both from now on, or for as much of
    /// it as there is.
    pub(super) fn became(&self, read: usize, rows: usize, permit: &mut OwnedSemaphorePermit) {
        if read > 0 {
            let seen = rows.saturating_sub(ANY_BATCH).div_ceil(read);
            let seen = u32::try_from(seen).unwrap_or(u32::MAX);
            // Two batchers that are here at once may lose one of two values, which are alike.
            let before = self.0.rows.load(Ordering::Relaxed);
            let after = seen.max(before - before.div_ceil(8).min(before));
            self.0.rows.store(after.max(ROWS as u32), Ordering::Relaxed);
            self.0.known.store(true, Ordering::Relaxed);
        }
        // Only now is there room: who takes it knows what to reckon with.
        let size = (read + rows).div_ceil(KIB).clamp(1, self.0.limit as usize);
        let held = permit.num_permits();
        if size < held {
            drop(permit.split(held - size));
        } else if let Ok(more) =
            Arc::clone(&self.0.room).try_acquire_many_owned((size - held) as u32)
        {
            permit.merge(more);
        }
    }

    /// Bytes that are held, as they were reckoned.
    pub(super) fn held(&self) -> usize {
        let free = self.0.room.available_permits();
        (self.0.limit as usize).saturating_sub(free) * KIB
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn waits(work: impl Future) -> bool {
        timeout(Duration::from_millis(1), work).await.is_err()
    }

    #[tokio::test]
    async fn the_first_batch_goes_alone_and_rows_count() {
        let flow = InFlight::new(1 << 20);
        let mut first = flow.enter(1000).await;
        assert_eq!(flow.held(), 1 << 20);
        assert!(waits(flow.room()).await && waits(flow.enter(1)).await);
        flow.became(1000, 500, &mut first);
        assert_eq!(flow.held(), 2 << 10);
        drop(first);
        // Four times what is read: itself, and three for rows.
        let held: Vec<_> = [flow.enter(100 << 10).await, flow.enter(100 << 10).await].into();
        assert_eq!(flow.held(), 800 << 10);
        assert!(!waits(flow.room()).await && waits(flow.enter(100 << 10)).await);
        drop(held);
        // An event that becomes a hundred rows.
        let mut one = flow.enter(1 << 10).await;
        flow.became(1 << 10, 60 << 10, &mut one);
        assert_eq!(flow.held(), 61 << 10);
        drop(flow.enter(1 << 10).await);
        flow.became(1 << 10, (100 << 10) + ANY_BATCH, &mut one);
        assert_eq!(flow.held(), 165 << 10);
        drop(one);
        let mut one = flow.enter(10 << 10).await;
        assert_eq!(flow.held(), 1010 << 10);
        flow.became(10 << 10, 9_000 << 10, &mut one);
        assert_eq!(flow.held(), 1 << 20, "there is not more");
        for _ in 0..100 {
            flow.became(1 << 10, 1, &mut one);
        }
        drop(one);
        let one = flow.enter(10 << 10).await;
        assert_eq!(flow.held(), 40 << 10);
        drop(one);
        // What is larger than everything goes alone.
        let _large = flow.enter(100 << 20).await;
        assert_eq!(flow.held(), 1 << 20);
        assert!(waits(flow.room()).await);
    }
}

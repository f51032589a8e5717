//! What a shard stands on: threads, blocking work, and processing time. The one place where the
//! simulation puts its own in, so that all the rest of what it runs is the loop that ships.

use std::{future::Future, time::Duration};

use calve_model::{Micros, Offsets};
use rayon::ThreadPool;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::CancellationToken;

use super::reader::Reader;
#[cfg(test)]
use super::simulation::clock as simulated;
use crate::{
    clock,
    error::{Error, Result},
};

/// Processing time since some moment before the shard began; only differences mean anything.
pub(crate) type Moment = Duration;

/// Processing time now.
pub(crate) fn now() -> Moment {
    static BEGIN: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    #[cfg(test)]
    if let Some(clock) = simulated::current() {
        return clock.now();
    }
    BEGIN.elapsed()
}

/// Processing time in microseconds since 1970, as the wall clock was when the process began and as
/// much later as has passed since: it never jumps.
pub(super) fn processing_time() -> Micros {
    static BEGIN: std::sync::LazyLock<(Moment, i64)> =
        std::sync::LazyLock::new(|| (now(), clock::now_ms()));
    #[cfg(test)]
    if let Some(clock) = simulated::current() {
        return clock.now().as_micros() as Micros;
    }
    let (begin, wall_ms) = *BEGIN;
    wall_ms * 1000 + since(begin).as_micros() as Micros
}

/// Processing time that has passed since `then`.
pub(super) fn since(then: Moment) -> Duration {
    now().saturating_sub(then)
}

/// Waits; for no time at all it does not even yield. Cancel-safe.
pub(super) async fn sleep(pause: Duration) {
    if pause.is_zero() {
        return;
    }
    #[cfg(test)]
    if let Some(clock) = simulated::current() {
        return clock.sleep(pause).await;
    }
    tokio::time::sleep(pause).await;
}

/// Runs work that blocks, away from the threads of the I/O.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    #[cfg(test)]
    if simulated::current().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("a blocking task died").because(e))
}

/// Runs one batcher's work on the pool, in any order with the others'.
pub(super) fn spawn_batch(pool: &ThreadPool, work: impl FnOnce() + Send + 'static) {
    #[cfg(test)]
    if let Some(clock) = simulated::current() {
        tokio::spawn(async move {
            clock.pause().await;
            work();
        });
        return;
    }
    pool.spawn_fifo(work);
}

/// Computes on the pool; the task itself only waits.
pub(super) fn on_pool<T: Send + 'static>(
    pool: &ThreadPool,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T>> {
    let (done, result) = oneshot::channel();
    #[cfg(test)]
    let simulated = simulated::current().is_some();
    #[cfg(not(test))]
    let simulated = false;
    if simulated {
        let _ = done.send(work());
    } else {
        pool.spawn_fifo(move || {
            let _ = done.send(work());
        });
    }
    async {
        result
            .await
            .map_err(|_| Error::internal("a task of the pool was dropped"))
    }
}

/// Runs the reader on a thread of its own, with a runtime of its own, until it ends or `abort`.
pub(super) fn spawn_reader(
    reader: Reader,
    from: Offsets,
    abort: CancellationToken,
) -> Result<oneshot::Receiver<Result<()>>> {
    let (done, result) = oneshot::channel();
    let reading = async move {
        tokio::select! {
            biased;
            () = abort.cancelled() => Ok(()),
            outcome = reader.read(from) => outcome,
        }
    };
    #[cfg(test)]
    if simulated::current().is_some() {
        tokio::spawn(async move { done.send(reading.await) });
        return Ok(result);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal("cannot make the reader's runtime").because(e))?;
    std::thread::Builder::new()
        .name("calve-reader".into())
        .spawn(move || {
            let _ = done.send(runtime.block_on(reading));
        })
        .map_err(|e| Error::internal("cannot start the reader thread").because(e))?;
    Ok(result)
}

/// A task that ends with its handle: what has failed goes no further in the background.
pub(super) struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    pub(super) fn spawn(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Waits for its end. Cancel-safe; not to be called again after it has answered.
    pub(super) async fn ended(&mut self) -> std::result::Result<T, JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

//! The reader: the source on a thread of its own, which numbers what it reads and hands it to the
//! pool. It waits while too many bytes are in flight, which is how a slow sink stops the source.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use calve_model::{Offsets, SourcePartition};
use rayon::ThreadPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    KIB,
    batcher::{Batchers, Processed},
};
use crate::{
    batch::RawBatch,
    error::{Error, Result},
    metrics::{Metrics, Stage},
    seams::{Source, SourceEvent},
};

/// Something the loop takes in the order of `number`.
pub(super) struct Item {
    pub(super) number: u64,
    pub(super) what: Result<What>,
    /// Its place in the channel, and its bytes; free again when the loop drops it.
    pub(super) held: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

pub(super) enum What {
    Batch(Box<Processed>),
    Discovered(Vec<SourcePartition>),
    Idle,
    End { source_ended: bool },
}

pub(super) struct Reader {
    pub(super) source: Box<dyn Source>,
    pub(super) batchers: Arc<Batchers>,
    pub(super) pool: Arc<ThreadPool>,
    pub(super) permits: Arc<Semaphore>,
    /// As many as the channel has places, so that a batcher never waits to send.
    pub(super) slots: Arc<Semaphore>,
    pub(super) items: mpsc::Sender<Item>,
    pub(super) acks: mpsc::Receiver<Offsets>,
    pub(super) stop: CancellationToken,
    pub(super) abort: CancellationToken,
    pub(super) metrics: Metrics,
}

impl Reader {
    pub(super) fn spawn(self, from: Offsets) -> Result<oneshot::Receiver<Result<()>>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::internal("cannot make the reader's runtime").because(e))?;
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("calve-reader".into())
            .spawn(move || {
                let abort = self.abort.clone();
                let outcome = runtime.block_on(async {
                    tokio::select! {
                        () = abort.cancelled() => Ok(()),
                        outcome = self.read(from) => outcome,
                    }
                });
                let _ = done.send(outcome);
            })
            .map_err(|e| Error::internal("cannot start the reader thread").because(e))?;
        Ok(result)
    }

    async fn read(mut self, from: Offsets) -> Result<()> {
        let limit = self.permits.available_permits() as u32;
        let mut number = 0;
        if let Err(error) = self.source.open(&from).await {
            self.say(0, Err(error)).await;
            return Ok(());
        }
        self.metrics.set_connected(true);
        loop {
            let begun = Instant::now();
            let event = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.metrics.set_state("stopping");
                    self.say(number, Ok(What::End { source_ended: false })).await;
                    break;
                }
                Some(upto) = self.acks.recv() => {
                    self.source.committed(&upto).await?;
                    continue;
                }
                event = self.source.next() => event,
            };
            match event {
                Ok(SourceEvent::Batch(raw)) => {
                    self.metrics
                        .stage(Stage::Read, begun.elapsed().as_secs_f64());
                    self.metrics.set_source_lag(self.source.lag());
                    let size = (raw.bytes().div_ceil(KIB) as u32).clamp(1, limit);
                    let Ok(bytes) = Arc::clone(&self.permits).acquire_many_owned(size).await else {
                        break;
                    };
                    let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                        break;
                    };
                    self.hand_over(number, raw, (slot, Some(bytes)));
                }
                Ok(SourceEvent::Discovered(partitions)) => {
                    self.say(number, Ok(What::Discovered(partitions))).await;
                }
                Ok(SourceEvent::Idle) => self.say(number, Ok(What::Idle)).await,
                Ok(SourceEvent::End) => {
                    self.say(number, Ok(What::End { source_ended: true })).await;
                    break;
                }
                Err(error) => {
                    self.say(number, Err(error)).await;
                    return Ok(());
                }
            }
            number += 1;
        }
        // What is read is told to be durable until the committer has ended.
        while let Some(upto) = self.acks.recv().await {
            self.source.committed(&upto).await?;
        }
        Ok(())
    }

    fn hand_over(
        &self,
        number: u64,
        raw: RawBatch,
        held: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    ) {
        let (batchers, items) = (Arc::clone(&self.batchers), self.items.clone());
        self.pool.spawn_fifo(move || {
            let what =
                catch_unwind(AssertUnwindSafe(|| batchers.process(&raw))).unwrap_or_else(|_| {
                    Err(Error::internal(
                        "a batcher panicked; this is a bug in calve",
                    ))
                });
            // Fails only when the loop has ended, and then nobody waits for it.
            let _ = items.try_send(Item {
                number,
                what: what.map(|p| What::Batch(Box::new(p))),
                held,
            });
        });
    }

    async fn say(&self, number: u64, what: Result<What>) {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            return;
        };
        let _ = self
            .items
            .send(Item {
                number,
                what,
                held: (slot, None),
            })
            .await;
    }
}

//! The reader: the source on a thread of its own, which numbers what it reads and hands it to the
//! pool. It waits while too many bytes are in flight, which is how a slow sink stops the source.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::datatypes::SchemaRef;
use calve_model::{Offsets, SourcePartition};
use rayon::ThreadPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    batcher::{Batchers, Made, Processed},
    flow::{Asked, Flow},
    ground::{self, Moment},
    in_flight::InFlight,
    watched::watched,
};
use crate::{
    batch::RawBatch,
    error::{Error, Result},
    metrics::{Change, Condition, Metrics, Stage},
    seams::{Progress, Source, SourceEvent},
};

/// Something the loop takes in the order of `number`.
pub(super) struct Item {
    pub(super) number: u64,
    pub(super) what: Result<What>,
    /// Its place in the channel, and its bytes; free again when the loop drops it.
    pub(super) held: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

/// When a batch was read, and how large it was to be.
#[derive(Clone, Copy)]
struct Read {
    at: Moment,
    asked: Option<Asked>,
}

/// What a batch has taken so far.
#[derive(Clone, Copy)]
pub(super) struct Spent {
    pub(super) read_at: Moment,
    /// On the batcher's thread.
    pub(super) cost: Duration,
    /// Events that it was to have, where it has about as many.
    pub(super) wanted: Option<u64>,
}

pub(super) enum What {
    Batch(Box<Processed>, Spent),
    Discovered(Vec<SourcePartition>),
    Idle,
    Progress(Progress),
    /// The next batch needs this schema.
    Evolve(SchemaRef),
    End {
        source_ended: bool,
    },
}

pub(super) struct Reader {
    pub(super) source: Box<dyn Source>,
    pub(super) hands: Hands,
    pub(super) flow: Flow,
    /// The newest offsets that every output holds. Only the newest counts, so nobody waits for the
    /// reader to take them: a committer that waited for a reader that waits for room would be stuck.
    pub(super) acks: watch::Receiver<Offsets>,
    pub(super) stop: CancellationToken,
}

/// What the reader gives its batches to.
pub(super) struct Hands {
    pub(super) batchers: Arc<Batchers>,
    pub(super) pool: Arc<ThreadPool>,
    /// As many as the channel has places, so that a batcher never waits to send.
    pub(super) slots: Arc<Semaphore>,
    pub(super) items: mpsc::Sender<Item>,
    pub(super) in_flight: InFlight,
    pub(super) metrics: Metrics,
}

impl Reader {
    pub(super) async fn read(self, from: Offsets) -> Result<()> {
        let Self {
            mut source,
            hands,
            flow,
            mut acks,
            stop,
        } = self;
        let metrics = &hands.metrics;
        let mut number = 0;
        if stop.is_cancelled() {
            // What is only drained need not be there any more.
            hands
                .say(
                    0,
                    Ok(What::End {
                        source_ended: false,
                    }),
                )
                .await;
            return Ok(());
        }
        if let Err(error) = source.open(&from).await {
            hands.say(0, Err(error)).await;
            return Ok(());
        }
        metrics.set_link(source.link());
        metrics.set_connected(true);
        let mut asked = None;
        let mut stopping = false;
        loop {
            let next = flow.next_batch();
            if let Some(next) = next.filter(|_| next != asked) {
                source.ask(next.bytes);
            }
            asked = next;
            let begun = Instant::now();
            let event = tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    metrics.set_state("stopping");
                    // Nobody takes anything where the schema evolves.
                    if !hands.items.is_closed() && source.stop() {
                        stopping = true;
                        continue;
                    }
                    hands.say(number, Ok(What::End { source_ended: false })).await;
                    break;
                }
                Ok(()) = acks.changed() => {
                    metrics.change(reads(false));
                    let upto = acks.borrow_and_update().clone();
                    match source.committed(&upto).await {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
                // While there is no room nothing is read: even one event may be large.
                event = async {
                    hands.room(hands.in_flight.room()).await;
                    watched(source.next(), |waits| metrics.change(reads(waits))).await
                } => event,
            };
            if stopping && hands.items.is_closed() {
                break;
            }
            match event {
                Ok(SourceEvent::Batch(raw)) => {
                    metrics.stage(Stage::Read, begun.elapsed().as_secs_f64());
                    metrics.set_source_lag(source.lag());
                    let at = ground::now();
                    let bytes = hands.room(hands.in_flight.enter(raw.bytes())).await;
                    let slot = Arc::clone(&hands.slots).acquire_owned();
                    let Ok(slot) = hands.room(slot).await else {
                        break;
                    };
                    if asked.is_none() {
                        flow.guess(&raw);
                    }
                    let read = Read { at, asked };
                    hands.over(number, raw, read, (slot, bytes));
                }
                Ok(SourceEvent::Discovered(partitions)) => {
                    hands.say(number, Ok(What::Discovered(partitions))).await;
                }
                Ok(SourceEvent::Idle) => hands.say(number, Ok(What::Idle)).await,
                Ok(SourceEvent::Progress(progress)) => {
                    hands.say(number, Ok(What::Progress(progress))).await;
                }
                Ok(SourceEvent::End) => {
                    let source_ended = !stopping;
                    hands.say(number, Ok(What::End { source_ended })).await;
                    break;
                }
                Err(error) => {
                    hands.say(number, Err(error)).await;
                    return Ok(());
                }
            }
            number += 1;
        }
        metrics.change(Change::Source(Condition::Starved));
        // What is read is told to be durable until the committer has ended.
        while acks.changed().await.is_ok() {
            let upto = acks.borrow_and_update().clone();
            source.committed(&upto).await?;
        }
        Ok(())
    }
}

/// The source works while it is polled, and waits for something outside between.
fn reads(waits: bool) -> Change {
    Change::Source(if waits {
        Condition::Starved
    } else {
        Condition::Busy
    })
}

impl Hands {
    /// Waits for room behind the reader.
    async fn room<T>(&self, room: impl Future<Output = T>) -> T {
        let found = watched(room, |waits| {
            if waits {
                self.metrics.change(Change::Source(Condition::Blocked));
            }
        });
        let found = found.await;
        self.metrics.change(reads(false));
        found
    }

    fn over(
        &self,
        number: u64,
        raw: RawBatch,
        read: Read,
        (slot, mut bytes): (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) {
        let (batchers, items) = (Arc::clone(&self.batchers), self.items.clone());
        let in_flight = self.in_flight.clone();
        let metrics = self.metrics.clone();
        metrics.change(Change::Handed);
        ground::spawn_batch(&self.pool, move || {
            metrics.change(Change::Begun);
            let begun = ground::now();
            let size = raw.bytes();
            let what =
                catch_unwind(AssertUnwindSafe(|| batchers.process(&raw))).unwrap_or_else(|_| {
                    Err(Error::internal(
                        "a batcher panicked; this is a bug in calve",
                    ))
                });
            if let Ok(Made::Rows(made)) = &what {
                in_flight.became(size, made.held_bytes, &mut bytes);
            }
            metrics.change(Change::Done);
            // Fails only when the loop has ended, and then nobody waits for it.
            let _ = items.try_send(Item {
                number,
                what: what.map(|made| match made {
                    Made::Rows(batch) => What::Batch(
                        batch,
                        Spent {
                            read_at: read.at,
                            cost: ground::since(begun),
                            wanted: read.asked.and_then(|asked| asked.met_by(size)),
                        },
                    ),
                    Made::Evolve(schema) => What::Evolve(schema),
                }),
                held: (slot, Some(bytes)),
            });
        });
    }

    async fn say(&self, number: u64, what: Result<What>) {
        let slot = Arc::clone(&self.slots).acquire_owned();
        let Ok(slot) = self.room(slot).await else {
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

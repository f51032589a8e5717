//! The loop on a world in which all is well but for one thing: order, bounds, stop, and which error
//! counts. Those about threads run on real ones, the others in simulated time.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arrow::datatypes::SchemaRef;
use parking_lot::{Condvar, Mutex};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    clock,
    plan::Plan,
    process::Process,
    rejects_folder, shard,
    source::SimFactory,
    world::{Event, World},
};
use crate::{
    batch::{Decoded, RawBatch, Reject},
    error::{ErrorKind, Result},
    seams::{BatcherFactory, Decoder, Transform},
    shard::{PREPARED_EPOCHS, Shard, Summary, run},
};

struct Only {
    world: Arc<World>,
    process: Arc<Process>,
    _folder: tempfile::TempDir,
}

fn only(plan: Plan) -> Only {
    let folder = rejects_folder();
    let world = World::new(plan, folder.path().to_owned());
    let (tell, _) = mpsc::channel(1);
    Only {
        process: Process::new(&world, 0, tell),
        world,
        _folder: folder,
    }
}

impl Only {
    fn fine(&self, whole: bool) {
        self.world.settled(whole);
        let breaches = &self.world.state().breaches;
        assert!(breaches.is_empty(), "{breaches:#?}");
    }
}

/// Holds the second batch back until three that came behind it are through; the first goes alone.
struct SecondIsLast {
    begun: AtomicU32,
    through: Mutex<u32>,
    changed: Condvar,
    held: OnceLock<bool>,
}

struct Factory(Arc<SecondIsLast>);
struct HoldingDecoder(Arc<SecondIsLast>, Box<dyn Decoder>);

impl BatcherFactory for Factory {
    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(HoldingDecoder(
            Arc::clone(&self.0),
            SimFactory.decoder()?,
        )))
    }

    fn transform(&self) -> Result<Box<dyn Transform>> {
        SimFactory.transform()
    }

    fn schema(&self) -> SchemaRef {
        SimFactory.schema()
    }
}

impl Decoder for HoldingDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Result<Decoded> {
        let mut through = self.0.through.lock();
        let second = self.0.begun.fetch_add(1, Ordering::Relaxed) == 1;
        if second {
            let soon = Duration::from_secs(20);
            let waited = self
                .0
                .changed
                .wait_while_for(&mut through, |n| *n < 4, soon);
            let _ = self.0.held.set(!waited.timed_out());
        } else {
            *through += 1;
            self.0.changed.notify_all();
        }
        drop(through);
        self.1.decode(raw)
    }

    fn locate(&self, raw: &RawBatch, decoded: &Decoded, row: usize) -> Reject {
        self.1.locate(raw, decoded, row)
    }
}

/// On real threads; the second batch is decoded last where there are several.
fn rows_with(batchers: usize) -> (Vec<Event>, Vec<Event>) {
    let only = only(Plan {
        threads: batchers,
        ..Plan::calm(vec![700, 300])
    });
    let hold = Arc::new(SecondIsLast {
        begun: AtomicU32::new(0),
        through: Mutex::new(if batchers > 1 { 0 } else { 4 }),
        changed: Condvar::new(),
        held: OnceLock::new(),
    });
    let shard = Shard {
        factory: Arc::new(Factory(Arc::clone(&hold))),
        ..shard(&only.process)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let summary = runtime
        .block_on(run(shard, CancellationToken::new()))
        .expect("nothing goes wrong");
    assert!(summary.ended);
    assert_eq!(hold.held.get(), Some(&true), "no others came through");
    only.fine(true);
    let state = only.world.state();
    (
        state.table.clone(),
        state.rejected.iter().copied().collect(),
    )
}

#[test]
fn order_and_result_do_not_depend_on_the_number_of_batchers() {
    let one = rows_with(1);
    assert!(one.0.len() > 500 && !one.1.is_empty());
    for batchers in [2, 4, 8] {
        assert_eq!(rows_with(batchers), one, "batchers={batchers}");
    }
}

#[test]
fn a_slow_sink_stops_the_source() {
    let only = Arc::new(only(Plan {
        append: Duration::from_hours(1000),
        seed: 4,
        ..Plan::calm(vec![10_000])
    }));
    let running = Arc::clone(&only);
    clock::simulate(4, async move {
        tokio::spawn(run(shard(&running.process), CancellationToken::new()));
        wait(Duration::from_mins(1)).await;
    })
    .expect("a minute passes");
    let read = only.world.state().batches_read;
    // The places in the channel, and the one that the reader holds.
    assert!((2..=9).contains(&read), "batches read: {read}");
}

#[test]
fn a_slow_commit_stops_the_source() {
    let only = Arc::new(only(Plan {
        commit: Duration::from_hours(1000),
        ..Plan::calm(vec![10_000])
    }));
    let running = Arc::clone(&only);
    let read = clock::simulate(5, async move {
        tokio::spawn(run(shard(&running.process), CancellationToken::new()));
        wait(Duration::from_mins(1)).await;
        let read = running.world.state().batches_read;
        wait(Duration::from_mins(1)).await;
        read
    });
    let state = only.world.state();
    assert_eq!(read, Ok(state.batches_read), "it reads on");
    // The claim, the one being committed, those in the queue, and the one that finds no place.
    let records = state.created.len();
    assert!(records <= 3 + PREPARED_EPOCHS, "records: {records}");
    assert!(state.batches_read < 1000, "read: {}", state.batches_read);
}

#[test]
fn stop_commits_what_was_read() {
    for seed in 1..20 {
        let only = Arc::new(only(Plan {
            seed,
            append: Duration::from_millis(seed),
            ..Plan::calm(vec![10_000, 10_000])
        }));
        let running = Arc::clone(&only);
        let summary = clock::simulate(seed, async move {
            let stop = CancellationToken::new();
            let task = tokio::spawn(run(shard(&running.process), stop.clone()));
            wait(Duration::from_millis(100 + seed * 7)).await;
            stop.cancel();
            task.await.expect("it does not panic")
        });
        let summary: Summary = summary.expect("it ends").expect("it ends well");
        assert!(!summary.ended);
        let read: u64 = only.world.state().read.values().sum();
        assert_eq!(summary.run.events, read, "seed={seed}");
        assert!(read > 0);
        only.fine(false);
    }
}

#[test]
fn the_first_error_wins_and_ends_everything() {
    let calls = [
        "source.open",
        "source.next",
        "source.committed",
        "table.append",
        "table.finish",
        "store.create",
        "table.load",
        "table.swap",
        "rejects.commit",
    ];
    for broken in calls {
        let only = Arc::new(only(Plan {
            broken: Some((broken, ErrorKind::Schema)),
            ..Plan::calm(vec![3000])
        }));
        let running = Arc::clone(&only);
        let ended = clock::simulate(6, async move {
            let ended = run(shard(&running.process), CancellationToken::new()).await;
            let calls = running.world.state().trace.len();
            wait(Duration::from_mins(1)).await;
            let later = running.world.state().trace.len();
            assert_eq!(calls, later, "{broken}: something goes on");
            ended
        });
        let error = ended.expect("it ends").expect_err(broken);
        assert_eq!(error.kind(), ErrorKind::Schema, "{broken}: {error}");
        assert!(error.to_string().contains(broken), "{broken}: {error}");
    }
}

#[test]
fn a_server_is_tried_for_long_and_a_full_disk_is_not() {
    let long = Duration::from_mins(1);
    for (kind, at_least, at_most) in [
        (ErrorKind::Unavailable, long, long * 2),
        (ErrorKind::Full, Duration::from_secs(1), long / 10),
    ] {
        for call in ["table.swap", "rejects.commit"] {
            let mut plan = Plan::calm(vec![300]);
            plan.options.retry_for = long;
            plan.broken = Some((call, kind));
            let only = Arc::new(only(plan));
            let ended = clock::simulate(7, async move {
                let ended = run(shard(&only.process), CancellationToken::new()).await;
                (ended, clock::current().expect("a simulation").now())
            });
            let (ended, took) = ended.expect("it ends");
            assert_eq!(ended.expect_err(call).kind(), kind);
            assert!(
                took > at_least && took < at_most,
                "{call} {kind:?} {took:?}"
            );
        }
    }
}

async fn wait(long: Duration) {
    clock::current().expect("a simulation").sleep(long).await;
}

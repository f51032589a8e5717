//! Seeded simulation: the shard loop that ships, over a world of fakes that fails, forgets to answer,
//! is slow, and whose processes die and fall asleep at any call.
//!
//! One thread and a clock of its own run everything, reader and batchers too (`ground.rs` is the
//! seam), so a seed decides every step: a failing one is printed, and [`REPLAY`] runs it again with
//! its trace. Real threads are in `loop_tests.rs`. Start with [`run_seed`].

pub(super) mod clock;
mod loop_tests;
mod plan;
mod process;
mod source;
mod store;
mod table;
mod world;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use calve_model::windows::Strategy;
use rayon::ThreadPool;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{
    plan::Plan,
    process::{Fate, Process},
    source::{SimFactory, SimSource},
    store::SimStore,
    table::{SimRejects, SimTable, SimWriter},
    world::World,
};
use super::{REJECTS, Shard, Summary, TABLE, run};
use crate::{
    checkpoint::Checkpoints,
    error::{ErrorKind, Result},
    event_time::{EventTime, Unit},
    metrics::Metrics,
    rejects::{RejectsOutput, RejectsPlace, RejectsWriter},
    windows::{LateRows, Windowed},
};

const SEEDS: u64 = 1000;
/// A seed to look at: put the one that was printed here and run `a_seed_to_look_at`.
const REPLAY: u64 = 0;
/// Processes after which a run that does not end never will.
const PROCESSES: u32 = 60;

/// What a process is made of; only the process is its own, the world is everybody's.
fn shard(process: &Arc<Process>) -> Shard {
    let plan = &process.world.plan;
    let checkpoints = Checkpoints::new(Arc::new(SimStore(Arc::clone(process))), "sim", "main");
    let place = RejectsPlace::Local(process.world.root.clone());
    let rejects = SimRejects {
        process: Arc::clone(process),
        folder: RejectsOutput::new(place.clone()),
    };
    let event_time = EventTime::of(&source::schema(), "at", Some(Unit::Millis));
    Shard {
        rejects: RejectsWriter::new(place, checkpoints.pipeline(), checkpoints.shard()),
        checkpoints,
        source: Box::new(SimSource::new(process)),
        factory: Arc::new(SimFactory),
        event_time: Some(event_time.expect("our own column")),
        windowed: plan.windows.clone().map(windowed),
        table: Box::new(SimWriter::new(process)),
        late: None,
        outputs: BTreeMap::from([
            (
                TABLE.to_owned(),
                Arc::new(SimTable(Arc::clone(process))) as _,
            ),
            (REJECTS.to_owned(), Arc::new(rejects) as _),
        ]),
        pool: pool(plan.threads),
        metrics: Metrics::new("sim", "main"),
        fingerprints: BTreeMap::from([("source".to_owned(), "sim".to_owned())]),
        harmless: BTreeMap::new(),
        options: plan.options.clone(),
    }
}

/// Little memory, so that rows leave it; late rows stay, so that each event is in the table once.
fn windowed(strategy: Strategy) -> Windowed {
    let keyed = strategy.windowing.merges();
    Windowed {
        strategy,
        time: EventTime::of(&source::schema(), "at", Some(Unit::Millis)).ok(),
        key: if keyed { vec![0] } else { Vec::new() },
        rows: None,
        aggregate: None,
        key_in_states: Vec::new(),
        late: LateRows::Append,
        pane_columns: false,
        memory_bytes: 4 << 10,
    }
}

/// Pools are shared: starting threads takes longer than a whole simulation, which uses none.
fn pool(threads: usize) -> Arc<ThreadPool> {
    static POOLS: LazyLock<[Arc<ThreadPool>; 4]> = LazyLock::new(|| {
        [1, 2, 4, 8].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
            Arc::new(pool.expect("a pool"))
        })
    });
    Arc::clone(&POOLS[threads.ilog2() as usize])
}

/// What became of a process.
enum End {
    Ended(Result<Summary>),
    Died,
    Sleeps,
}

/// A process that runs.
struct Alive {
    process: Arc<Process>,
    running: JoinHandle<Result<Summary>>,
    fate: mpsc::Receiver<Fate>,
}

impl Alive {
    fn start(world: &Arc<World>, id: u32) -> Self {
        let (tell, fate) = mpsc::channel(2);
        let process = Process::new(world, id, tell);
        let stop = CancellationToken::new();
        if process.draw(world.plan.stop) {
            let (stop, after) = (stop.clone(), world.below(Duration::from_millis(500)));
            let clock = clock::current().expect("a simulation");
            tokio::spawn(async move {
                clock.sleep(after).await;
                stop.cancel();
            });
        }
        let running = tokio::spawn(run(shard(&process), stop));
        Self {
            process,
            running,
            fate,
        }
    }

    /// Waits until it ends, dies or falls asleep.
    async fn watch(&mut self) -> End {
        tokio::select! {
            biased;
            Some(fate) = self.fate.recv() => match fate {
                Fate::Died => {
                    self.running.abort();
                    End::Died
                }
                Fate::FellAsleep => End::Sleeps,
            },
            ended = &mut self.running => End::Ended(ended.expect("the shard panicked")),
        }
    }
}

/// Starts a process whenever none is awake, until one reads the source to its end; then wakes all
/// that sleep, and looks whether they do harm.
async fn operate(world: Arc<World>) {
    let mut asleep: Vec<JoinHandle<()>> = Vec::new();
    let mut id = 0;
    let mut done = false;
    while !done {
        if id > PROCESSES {
            return world.breach("does not come to its end".into());
        }
        let mut alive = Alive::start(&world, id);
        id += 1;
        match alive.watch().await {
            End::Ended(ended) => done = judge(&world, &ended),
            End::Died => {}
            End::Sleeps => asleep.push(tokio::spawn(sleeper(Arc::clone(&world), alive))),
        }
    }
    for sleeper in asleep {
        sleeper.await.expect("a sleeper panicked");
    }
    // A sleeper may have been the rightful owner when it died; and nothing is read twice.
    match Alive::start(&world, u32::MAX).watch().await {
        End::Ended(ended) if judge(&world, &ended) => {}
        End::Ended(ended) => world.breach(format!("the last start did not end well: {ended:?}")),
        End::Died | End::Sleeps => world.breach("something happened to the last".into()),
    }
    world.settled(true);
}

/// Wakes a process some time later, and waits for its end.
async fn sleeper(world: Arc<World>, mut alive: Alive) {
    let clock = clock::current().expect("a simulation");
    let long = world.below(Duration::from_secs(20));
    clock.sleep(long).await;
    alive.process.wake();
    if let End::Ended(ended) = alive.watch().await {
        judge(&world, &ended);
    }
}

/// Whether the source was read to its end. A start may fail for what was injected and for nothing else.
fn judge(world: &World, ended: &Result<Summary>) -> bool {
    if let Err(error) = ended {
        let injected = match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Conflict | ErrorKind::Fenced => true,
            ErrorKind::Config
            | ErrorKind::Data
            | ErrorKind::Full
            | ErrorKind::Schema
            | ErrorKind::Corrupt
            | ErrorKind::Internal => false,
        };
        if !injected {
            world.breach(format!("a process failed: {error:?}"));
        }
    }
    ended.as_ref().is_ok_and(|summary| summary.ended)
}

/// Runs a seed; answers its world.
fn run_seed(plan: Plan) -> Arc<World> {
    let folder = rejects_folder();
    let seed = plan.seed;
    let world = World::new(plan, folder.path().to_owned());
    if let Err(at) = clock::simulate(seed, operate(Arc::clone(&world))) {
        world.breach(format!("stuck for good at {at:?}"));
    }
    world
}

/// In memory where there is such a folder: the simulation has its own idea of what is durable.
fn rejects_folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.expect("a folder")
}

fn check(seed: u64) -> Arc<World> {
    let world = run_seed(Plan::of(seed));
    let state = world.state();
    assert!(
        state.breaches.is_empty(),
        "seed={seed} (set REPLAY to it): {:#?}\nafter:\n{}",
        state.breaches,
        state.trace[state.trace.len().saturating_sub(60)..].join("\n")
    );
    drop(state);
    world
}

#[test]
fn whatever_happens_each_event_is_there_once() {
    let mut most = (0, 0, 0);
    for seed in 1..=SEEDS {
        let world = check(seed);
        let state = world.state();
        most.0 += state.created.len();
        most.1 += state.table.len();
        most.2 += state.trace.len();
    }
    println!("epochs, rows, calls: {most:?}");
    assert!(
        most.0 as u64 > 8 * SEEDS,
        "the seeds exercise next to nothing: {most:?}"
    );
}

#[test]
fn a_seed_replays_step_by_step() {
    for seed in [3, 77, 201] {
        let (one, two) = (check(seed), check(seed));
        assert!(one.state().trace.len() > 20);
        assert_eq!(one.state().trace, two.state().trace, "seed={seed}");
    }
}

#[test]
fn a_seed_to_look_at() {
    let world = check(REPLAY);
    println!("{:#?}\n{}", world.plan, world.state().trace.join("\n"));
}

//! A pipeline in miniature: events arrive, one processor makes batches, epochs are cut, prepared and
//! committed one after the other. Times are made up, but in the proportions that the real parts have.

use std::collections::VecDeque;

use calve_model::flow::{Controller, Fact, Goal, Sizes};

/// A world that a pipeline runs in.
#[derive(Clone, Copy)]
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    pub(crate) freshness: f64,
    /// Events a second at a time.
    pub(crate) load: fn(f64) -> f64,
    /// What a commit takes at a time, seconds.
    pub(crate) catalog: fn(f64) -> f64,
    /// Table partitions, and how unequal they are (the exponent of Zipf's law).
    pub(crate) partitions: (usize, f64),
    /// What a file takes to be uploaded, seconds; the spread of its logarithm; how many at once the
    /// store takes without becoming slower.
    pub(crate) store: (f64, f64, u64),
}

impl World {
    /// Nothing changes but by chance.
    pub(crate) fn is_steady(&self) -> bool {
        self.store.1 < 0.5
            && [100.0, 300.0, 500.0].iter().all(|t| {
                let moved = |of: fn(f64) -> f64| (of(*t) - of(0.0)).abs();
                moved(self.load) + moved(self.catalog) < 1e-9
            })
    }
}

/// The worlds that the controller is judged in.
pub(crate) const WORLDS: &[World] = &[
    World {
        name: "load that changes in steps",
        load: |t| match t {
            t if t < 100.0 => 5_000.0,
            t if t < 250.0 => 400_000.0,
            t if t < 400.0 => 50_000.0,
            t if t < 500.0 => 1_200_000.0,
            _ => 2_000.0,
        },
        ..CALM
    },
    World {
        name: "a catalog that takes 0.02 s",
        catalog: |_| 0.02,
        ..CALM
    },
    World {
        name: "a catalog that takes 0.3 s",
        catalog: |_| 0.3,
        ..CALM
    },
    World {
        name: "a catalog that takes 5.2 s",
        catalog: |_| 5.2,
        ..CALM
    },
    World {
        name: "a catalog that becomes slow, and fast again",
        catalog: |t| match t {
            t if t < 200.0 => 0.05,
            t if t < 400.0 => 6.0,
            _ => 0.05,
        },
        ..CALM
    },
    World {
        name: "skewed partitions",
        partitions: (2_000, 1.2),
        ..CALM
    },
    World {
        name: "a noisy store",
        partitions: (200, 0.0),
        store: (0.08, 0.8, 12),
        ..CALM
    },
    World {
        name: "few events, freshness 30 s",
        seconds: 3_600.0,
        freshness: 30.0,
        load: |_| 1_000.0,
        ..CALM
    },
];

const CALM: World = World {
    name: "",
    seconds: 600.0,
    freshness: 10.0,
    load: |_| 100_000.0,
    catalog: |_| 0.1,
    partitions: (20, 0.0),
    store: (0.01, 0.2, 16),
};

/// Seconds of a processor: for a batch, a row (more in batches that no cache holds), a cut, a commit,
/// and a file: to make it, and to read and merge it later.
const BATCH: f64 = 300e-6;
const ROW: f64 = 0.6e-6;
const CACHED_ROWS: f64 = 64_000.0;
const CUT: f64 = 5e-3;
const COMMIT: f64 = 10e-3;
const FILE: f64 = 3e-3;
/// An event waits so long at the most for its batch to fill.
const LINGER: f64 = 0.2;
const PREPARED_EPOCHS: usize = 4;
const GRID: f64 = 0.05;

/// What a run cost.
#[derive(Clone, Default)]
pub(crate) struct Run {
    /// Seconds of a processor, those included that its files cost later.
    pub(crate) work: f64,
    /// Seconds by which the table was older than it may be, over the time that it was, in units of the
    /// freshness.
    pub(crate) late: f64,
    pub(crate) commits: u64,
    pub(crate) files: u64,
    /// An epoch each.
    pub(crate) trace: Vec<Point>,
}

impl Run {
    /// What is to be small: work, and as much for a freshness in which the table is a second too old.
    pub(crate) fn cost(&self) -> f64 {
        self.work + self.late
    }
}

/// When an epoch was cut, what sizes were, and how old its oldest row was when it became visible.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "not every user draws")]
pub(crate) struct Point {
    pub(crate) at: f64,
    pub(crate) sizes: Sizes,
    pub(crate) age: f64,
}

/// Who says how large things are.
pub(crate) enum Policy {
    Fixed(Sizes),
    Controlled(Box<Controller>),
}

impl Policy {
    pub(crate) fn controlled(world: &World) -> Self {
        let goal = Goal {
            freshness: micros(world.freshness),
            memory: 1 << 30,
            batch: 1 << 25,
        };
        Self::Controlled(Box::new(Controller::new(goal)))
    }

    fn sizes(&self) -> Sizes {
        match self {
            Self::Fixed(sizes) => *sizes,
            Self::Controlled(controller) => controller.sizes(),
        }
    }

    fn see(&mut self, fact: Fact) {
        if let Self::Controlled(controller) = self {
            controller.see(fact);
        }
    }
}

pub(crate) fn micros(seconds: f64) -> i64 {
    (seconds * 1e6) as i64
}

/// Arrivals as a sum over time.
struct Arrivals(Vec<f64>);

impl Arrivals {
    fn of(world: &World) -> Self {
        let mut sum = vec![0.0];
        let steps = (world.seconds / GRID) as usize;
        for step in 0..steps {
            let load = (world.load)(step as f64 * GRID) * GRID;
            sum.push(sum[step] + load);
        }
        Self(sum)
    }

    fn until(&self, t: f64) -> f64 {
        let at = t / GRID;
        let whole = at as usize;
        let Some(next) = self.0.get(whole + 1) else {
            return self.0[self.0.len() - 1];
        };
        self.0[whole] + (next - self.0[whole]) * at.fract()
    }

    /// When event `number` arrives.
    fn when(&self, number: f64) -> f64 {
        let after = self.0.partition_point(|sum| *sum < number);
        if after >= self.0.len() {
            return f64::INFINITY;
        }
        if after == 0 {
            return 0.0;
        }
        let (from, to) = (self.0[after - 1], self.0[after]);
        (after as f64 - 1.0 + (number - from) / (to - from)) * GRID
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014): noise that is the same in each run.
struct Noise(u64);

impl Noise {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A factor of median 1.
    fn factor(&mut self, spread: f64) -> f64 {
        let twelve: f64 = (0..12).map(|_| self.unit()).sum();
        ((twelve - 6.0) * spread).exp()
    }
}

/// Files of an epoch: how many table partitions so many rows touch.
fn touched(world: &World, shares: &[f64], rows: f64) -> f64 {
    if world.partitions.1 == 0.0 {
        let n = world.partitions.0 as f64;
        return n * (1.0 - (1.0 - 1.0 / n).powf(rows));
    }
    shares.iter().map(|p| 1.0 - (-p * rows).exp()).sum()
}

/// Runs a pipeline in a world.
pub(crate) fn run(world: &World, mut policy: Policy) -> Run {
    let arrivals = Arrivals::of(world);
    let weights = (1..=world.partitions.0).map(|rank| (rank as f64).powf(-world.partitions.1));
    let sum: f64 = weights.clone().sum();
    let shares: Vec<f64> = weights.map(|weight| weight / sum).collect();
    let mut noise = Noise(7);
    let mut run = Run::default();
    let (mut t, mut taken, mut rows) = (0.0_f64, 0.0_f64, 0.0_f64);
    let mut opened: Option<(f64, f64)> = None;
    let mut last_cut = 0.0;
    let (mut store_free, mut catalog_free) = (0.0_f64, 0.0_f64);
    let mut ends: VecDeque<f64> = VecDeque::new();
    let mut facts: Vec<(f64, Fact)> = Vec::new();
    while t < world.seconds {
        facts.sort_by(|a, b| a.0.total_cmp(&b.0));
        while facts.first().is_some_and(|(at, _)| *at <= t) {
            policy.see(facts.remove(0).1);
        }
        let sizes = policy.sizes();
        let due = opened.map_or(f64::INFINITY, |(at, _)| {
            at + sizes.commit_every as f64 / 1e6
        });
        if due <= t {
            let (_, oldest) = opened.take().expect("an open epoch");
            while ends.front().is_some_and(|end| *end <= t) {
                ends.pop_front();
            }
            if ends.len() >= PREPARED_EPOCHS {
                t = ends.pop_front().expect("an epoch").max(t);
            }
            let files = touched(world, &shares, rows).round().max(1.0);
            let work = CUT + FILE * files / 2.0;
            run.work += work + FILE * files / 2.0 + COMMIT;
            let cut = t;
            t += work;
            let turn = store_free.max(t);
            let prepared = turn + upload(world, files, sizes, &mut noise);
            store_free = prepared;
            let begun = catalog_free.max(prepared);
            let end = begun + (world.catalog)(begun) * noise.factor(0.1);
            catalog_free = end;
            ends.push_back(end);
            facts.push((
                prepared,
                Fact::Prepared {
                    files: files as u64,
                    waited: micros(turn - t),
                    took: micros(prepared - turn + t - cut),
                },
            ));
            let took = micros(end - begun);
            let waited = micros(begun - prepared);
            facts.push((end, Fact::Committed { waited, took }));
            run.commits += 1;
            run.files += files as u64;
            let late = (end - oldest - world.freshness).max(0.0);
            run.late += late * (t - last_cut) / world.freshness;
            last_cut = t;
            run.trace.push(Point {
                at: t,
                sizes,
                age: end - oldest,
            });
            rows = 0.0;
            continue;
        }
        let want = sizes.batch_rows as f64;
        let oldest = arrivals.when(taken + 1.0).max(0.0);
        let ready = arrivals.when(taken + want).min(oldest + LINGER).max(t);
        if ready > due || ready >= world.seconds {
            t = due.min(world.seconds);
            continue;
        }
        t = ready;
        let n = (arrivals.until(t) - taken).min(want).max(1.0).floor();
        let beyond = (n / CACHED_ROWS).log2().max(0.0);
        let cost = (BATCH + n * ROW * (1.0 + 0.15 * beyond)) * noise.factor(0.03);
        t += cost;
        run.work += cost;
        taken += n;
        rows += n;
        opened.get_or_insert((t, oldest));
        policy.see(Fact::Batch {
            rows: n as u64,
            bytes: n as u64 * 100,
            cost: micros(cost),
            age: micros(t - oldest),
            wanted: (n >= want).then_some(sizes.batch_rows),
        });
    }
    run
}

/// How long the files of an epoch take: side by side, until the store is overrun.
fn upload(world: &World, files: f64, sizes: Sizes, noise: &mut Noise) -> f64 {
    let (latency, spread, most) = world.store;
    let lanes = (sizes.files_in_flight as usize).min(files as usize);
    let slower = (lanes as f64 / most as f64).max(1.0).powi(2);
    let mut ends = vec![0.0_f64; lanes];
    for file in 0..files as usize {
        ends[file % lanes] += latency * slower * noise.factor(spread);
    }
    ends.into_iter().fold(0.0, f64::max)
}

/// Every fixed setting that is searched; the interval as a share of the freshness.
pub(crate) fn settings() -> Vec<(u64, f64, u64)> {
    let mut all = Vec::new();
    for rows in [1_000, 8_000, 32_000, 128_000, 512_000] {
        for share in [0.05, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 1.2] {
            for lanes in [1, 8, 16, 64] {
                all.push((rows, share, lanes));
            }
        }
    }
    all
}

/// The cost of each of [`settings`] in a world.
pub(crate) fn searched(world: &World) -> Vec<f64> {
    let settings = settings();
    let halves: Vec<_> = settings.chunks(settings.len().div_ceil(2)).collect();
    std::thread::scope(|scope| {
        let tasks: Vec<_> = halves
            .into_iter()
            .map(|half| {
                scope.spawn(move || -> Vec<f64> {
                    half.iter()
                        .map(|s| run(world, fixed(world, *s)).cost())
                        .collect()
                })
            })
            .collect();
        tasks
            .into_iter()
            .flat_map(|task| task.join().expect("a run"))
            .collect()
    })
}

pub(crate) fn fixed(world: &World, (rows, share, lanes): (u64, f64, u64)) -> Policy {
    Policy::Fixed(Sizes {
        batch_rows: rows,
        commit_every: micros(share * world.freshness),
        files_in_flight: lanes,
    })
}

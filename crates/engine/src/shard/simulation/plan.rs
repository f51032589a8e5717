//! What a seed stands for: the events, the settings, and how often what goes wrong.

use std::time::Duration;

use bytes::Bytes;
use calve_model::windows::{Strategy, Trigger, Windowing};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    error::{Error, ErrorKind, Result},
    shard::{BatchRows, CommitEvery, ShardOptions},
};

/// Bytes of an event's line; so an offset says which event it is.
pub(super) const WIDTH: u64 = 20;

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Row,
    /// Cannot be decoded.
    Malformed,
    /// Is decoded, and does not fit the transform.
    Misfit,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Events of each source partition.
    pub(super) partitions: Vec<u64>,
    /// Highest number of events of a batch.
    pub(super) batch_events: u64,
    pub(super) threads: usize,
    pub(super) options: ShardOptions,
    /// How rows are grouped in time; none: not at all.
    pub(super) windows: Option<Strategy>,
    /// The longest that the sink takes for a batch.
    pub(super) append: Duration,
    /// How long a commit takes beyond that of a call.
    pub(super) commit: Duration,
    /// The call that never works, and how it fails.
    pub(super) broken: Option<(&'static str, ErrorKind)>,
    /// The longest that a call takes.
    pub(super) call: Duration,
    /// Chance of a call to fail and do nothing.
    pub(super) fail: f64,
    /// Chance of a call to do what it should, and to lose the answer.
    pub(super) lose: f64,
    /// Chance of a call to begin an outage.
    pub(super) outage: f64,
    /// Chance of another writer to commit before us.
    pub(super) conflict: f64,
    /// Chance of the source to fail instead of giving a batch.
    pub(super) source_fails: f64,
    /// Chance of a process to be killed, put to sleep, told to stop.
    pub(super) crash: f64,
    pub(super) sleep: f64,
    pub(super) stop: f64,
    /// Processes after which nothing goes wrong any more.
    pub(super) patience: u32,
}

impl Plan {
    /// Nothing goes wrong.
    pub(super) fn calm(partitions: Vec<u64>) -> Self {
        Self {
            seed: 0,
            partitions,
            batch_events: 8,
            threads: 1,
            options: ShardOptions {
                drain: false,
                commit_every: CommitEvery::Fixed(Duration::from_millis(30)),
                batch_rows: BatchRows::Source,
                memory_bytes: 64 << 20,
                min_interval: Duration::ZERO,
                commit_rows: None,
                max_delay: 10_000,
                idle_timeout: Duration::from_millis(50),
                settle_after: Duration::from_millis(30),
                in_flight_bytes: 1 << 20,
                retry_for: Duration::from_secs(5),
            },
            append: Duration::ZERO,
            commit: Duration::ZERO,
            windows: None,
            broken: None,
            call: Duration::from_millis(2),
            fail: 0.0,
            lose: 0.0,
            outage: 0.0,
            conflict: 0.0,
            source_fails: 0.0,
            crash: 0.0,
            sleep: 0.0,
            stop: 0.0,
            patience: 0,
        }
    }

    pub(super) fn of(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut chance = |of: f64, most: f64| {
            if random.random_bool(of) {
                random.random_range(0.0..most)
            } else {
                0.0
            }
        };
        let (fail, lose) = (chance(0.6, 0.15), chance(0.6, 0.1));
        let (outage, conflict) = (chance(0.2, 0.01), chance(0.4, 0.5));
        let source_fails = chance(0.3, 0.05);
        let (crash, sleep, stop) = (chance(0.8, 1.0), chance(0.6, 1.0), chance(0.3, 0.5));
        let millis = |n| Duration::from_millis(n);
        let partitions = random.random_range(1..=4);
        let calm = Self::calm(
            (0..partitions)
                .map(|_| random.random_range(0..150))
                .collect(),
        );
        let windows = random.random_bool(0.5).then(|| strategy(&mut random));
        Self {
            seed,
            windows,
            batch_events: random.random_range(1..12),
            threads: if random.random_bool(0.5) { 1 } else { 4 },
            options: ShardOptions {
                commit_every: CommitEvery::Fixed(millis(random.random_range(0..80))),
                min_interval: millis(random.random_range(0..20)),
                // In half of them there is room for a few batches only.
                in_flight_bytes: if seed.is_multiple_of(2) {
                    64 << 10
                } else {
                    1 << 20
                },
                ..calm.options
            },
            append: millis(if random.random_bool(0.2) { 200 } else { 1 }),
            call: millis(random.random_range(0..6)),
            fail,
            lose,
            outage,
            conflict,
            source_fails,
            crash,
            sleep,
            stop,
            patience: random.random_range(1..15),
            ..calm
        }
    }

    /// # Errors
    /// The call never works.
    pub(super) fn works(&self, call: &str) -> Result<()> {
        match self.broken {
            Some((broken, kind)) if broken == call => {
                Err(Error::new(kind, format!("injected: {call} is broken")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn kind(&self, partition: usize, event: u64) -> Kind {
        let mixed = (event + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(partition as u64 + 1)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9 ^ self.seed);
        match (mixed >> 40) % 12 {
            0 => Kind::Malformed,
            1 => Kind::Misfit,
            _ => Kind::Row,
        }
    }

    /// The lines of events `from..to`: source partition, event, kind, event time in ms.
    pub(super) fn lines(&self, partition: usize, from: u64, to: u64) -> Bytes {
        let mut text = String::new();
        for event in from..to {
            let kind = match self.kind(partition, event) {
                Kind::Row => 'r',
                Kind::Malformed => '?',
                Kind::Misfit => 'm',
            };
            let at = event * 10 + (event * 7 + partition as u64) % 25;
            text.push_str(&format!("{partition} {event:06} {kind} {at:08}\n"));
        }
        assert_eq!(text.len() as u64, (to - from) * WIDTH);
        text.into()
    }
}

/// Windows that lose nothing and have nothing twice: what is late is appended.
fn strategy(random: &mut ChaCha8Rng) -> Strategy {
    let millis = |n: i64| n * 1000;
    let length = millis(random.random_range(20..800));
    Strategy {
        windowing: match random.random_range(0..3) {
            0 => Windowing::Fixed {
                size: length,
                offset: millis(random.random_range(0..20)),
            },
            1 => Windowing::Session { gap: length / 8 },
            _ => Windowing::Global,
        },
        trigger: match random.random_range(0..4) {
            0 => Trigger::phases(Some(Trigger::Count(random.random_range(1..30))), None),
            1 => Trigger::phases(
                Some(Trigger::Period {
                    every: millis(random.random_range(1..60)),
                    aligned: random.random_bool(0.5),
                }),
                Some(Trigger::Count(1)),
            ),
            _ => Trigger::default(),
        },
        allowed_lateness: if random.random_bool(0.5) {
            millis(random.random_range(0..200))
        } else {
            0
        },
        ..Strategy::default()
    }
}

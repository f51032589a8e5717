//! What survives a crash: the checkpoint store, the data files, the table, the published rejects; and
//! the watch over it. Whatever breaks a promise is written down the moment it happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use calve_model::{Epoch, Micros, Offsets};
use parking_lot::{Mutex, MutexGuard};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::plan::{Kind, Plan, WIDTH};
use crate::checkpoint::{Record, RecordKind, digest};

/// Source partition and number of an event.
pub(super) type Event = (usize, u64);

pub(super) struct World {
    pub(super) plan: Plan,
    /// Rejects are real files, below this folder.
    pub(super) root: PathBuf,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) random: ChaCha8Rng,
    /// The checkpoint store.
    pub(super) store: BTreeMap<String, Vec<u8>>,
    /// Data files, referred to or not.
    pub(super) files: BTreeMap<String, Vec<Event>>,
    /// The table's rows, in the order of its snapshots.
    pub(super) table: Vec<Event>,
    /// What the table holds of each epoch that was committed: digest of the record and the offsets.
    pub(super) committed: BTreeMap<Epoch, (String, String)>,
    /// Rises with each commit, ours or another writer's.
    pub(super) version: u64,
    pub(super) rejected: BTreeSet<Event>,
    /// Epochs whose record counts: digest, and what it must not fall behind.
    pub(super) created: BTreeMap<Epoch, Created>,
    /// Until when nothing answers.
    pub(super) outage: Duration,
    /// Highest event that was read, of each source partition.
    pub(super) read: BTreeMap<usize, u64>,
    pub(super) batches_read: u64,
    pub(super) trace: Vec<String>,
    pub(super) breaches: Vec<String>,
}

pub(super) struct Created {
    pub(super) digest: String,
    offsets: Offsets,
    watermark: Option<Micros>,
}

/// Name of a source partition, and back.
pub(super) fn name(partition: usize) -> String {
    format!("p{partition}")
}

pub(super) fn number(name: &str) -> usize {
    name.trim_start_matches('p').parse().expect("our own name")
}

impl World {
    pub(super) fn new(plan: Plan, root: PathBuf) -> Arc<Self> {
        let random = ChaCha8Rng::seed_from_u64(plan.seed ^ 0x5eed);
        Arc::new(Self {
            plan,
            root,
            state: Mutex::new(State {
                random,
                store: BTreeMap::new(),
                files: BTreeMap::new(),
                table: Vec::new(),
                committed: BTreeMap::new(),
                version: 0,
                rejected: BTreeSet::new(),
                created: BTreeMap::new(),
                outage: Duration::ZERO,
                read: BTreeMap::new(),
                batches_read: 0,
                trace: Vec::new(),
                breaches: Vec::new(),
            }),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn draw(&self, chance: f64) -> bool {
        chance > 0.0 && self.state().random.random_bool(chance)
    }

    pub(super) fn below(&self, limit: Duration) -> Duration {
        let micros = limit.as_micros() as u64;
        Duration::from_micros(self.state().random.random_range(0..=micros))
    }

    /// Tells what was promised and did not hold.
    pub(super) fn breach(&self, what: String) {
        self.state().breaches.push(what);
    }

    /// Every event below these offsets is in an output: what the source may forget.
    pub(super) fn acknowledged(&self, upto: &Offsets) {
        let mut state = self.state();
        if self.plan.windows.is_some() {
            // Rows of open windows are in runs.
            return;
        }
        let there: BTreeSet<Event> = state.table.iter().copied().collect();
        for (partition, position) in &upto.0 {
            let partition = number(partition.as_str());
            for event in 0..position.offset / WIDTH {
                let event = (partition, event);
                if !there.contains(&event) && !state.rejected.contains(&event) {
                    let breach = format!("acknowledged, and in no output: {event:?}");
                    state.breaches.push(breach);
                    return;
                }
            }
        }
    }

    /// At the end: each event once, where it belongs, in order; epochs without gaps.
    pub(super) fn settled(&self, whole: bool) {
        let mut state = self.state();
        let mut breaches = Vec::new();
        let mut next: BTreeMap<usize, u64> = BTreeMap::new();
        let mut there = BTreeSet::new();
        for event in &state.table {
            if !there.insert(*event) {
                breaches.push(format!("twice in the table: {event:?}"));
            }
            let next = next.entry(event.0).or_default();
            if event.1 < *next && self.plan.windows.is_none() {
                breaches.push(format!("out of order in the table: {event:?}"));
            }
            *next = event.1;
        }
        let runs = state.store.keys().filter(|name| name.contains("/.runs/"));
        if whole && runs.count() > 0 {
            breaches.push("runs are left though every window has closed".into());
        }
        for (partition, events) in self.plan.partitions.iter().enumerate() {
            let upto = if whole {
                *events
            } else {
                state.read.get(&partition).copied().unwrap_or_default()
            };
            for event in (0..upto).map(|event| (partition, event)) {
                let row = self.plan.kind(partition, event.1) == Kind::Row;
                if there.contains(&event) != row || state.rejected.contains(&event) == row {
                    breaches.push(format!(
                        "lost or misplaced: {event:?} row={row} in_table={} in_rejects={}",
                        there.contains(&event),
                        state.rejected.contains(&event)
                    ));
                }
            }
        }
        breaches.truncate(5);
        state.breaches.append(&mut breaches);
    }
}

impl State {
    /// A record was put where none was.
    pub(super) fn record_created(&mut self, bytes: &[u8]) {
        let Ok(record) = Record::parse(bytes) else {
            return self
                .breaches
                .push("an unreadable record was created".into());
        };
        let made = Created {
            digest: digest(bytes),
            watermark: record.watermarks.clone().current(),
            offsets: record.offsets.clone(),
        };
        let Some((newest, before)) = self.created.last_key_value() else {
            if record.epoch != Epoch(1) || record.kind != RecordKind::Claim {
                self.breaches.push(format!("begins with {record:?}"));
            }
            self.created.insert(record.epoch, made);
            return;
        };
        if record.epoch <= *newest {
            // A sleeper took a name that was used and deleted. It must notice, and nobody else may
            // mind; its record does not count.
            return;
        }
        let behind = before
            .offsets
            .0
            .iter()
            .any(|(name, position)| made.offsets.position(name.as_str()) < position.offset);
        if record.epoch != newest.next() {
            self.breaches
                .push(format!("a gap: {newest} {}", record.epoch));
        }
        if behind {
            self.breaches
                .push(format!("offsets went back: epoch={}", record.epoch));
        }
        if made.watermark < before.watermark {
            self.breaches
                .push(format!("the watermark went back: epoch={}", record.epoch));
        }
        self.created.insert(record.epoch, made);
    }

    /// The record of an epoch that is committed is the one that counts.
    pub(super) fn may_commit(&mut self, what: &str, epoch: Epoch, digest: &str) {
        if self.created.get(&epoch).map(|c| c.digest.as_str()) != Some(digest) {
            self.breaches.push(format!(
                "the {what} got an epoch of a record that does not count: epoch={epoch}"
            ));
        }
    }
}

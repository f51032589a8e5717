//! Changes of a made-up table, as plain rows with an operation or as Debezium's envelopes.
//!
//! What change number `n` is follows from the settings and `n` alone, without the changes before it:
//! keys come in rounds, each key once in a round, so that key and version follow from the number; a
//! share of the changes goes to rounds of few hot keys. A key's first change is an insert. Whether
//! another one is a delete is thrown by key and version; the change after a delete is an insert.

use calve_engine::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::events::{BLOCK_EVENTS, Random, write, write_padded, write_signed};

const REGIONS: [&str; 5] = ["us", "eu", "apac", "latam", "africa"];
/// Shares are kept in parts of this many.
const PARTS: u64 = 1 << 16;
/// Positions in the made-up log of a database are this far apart.
const LSN_STEP: u64 = 296;

/// A stream of changes of one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratedChanges {
    /// Rows that the table has at most; `id` is below it.
    pub keys: u64,
    /// So many of them are hot.
    pub hot_keys: u64,
    /// Fraction of the changes that goes to hot keys.
    pub hot_share: f64,
    /// Fraction of a row's later changes that delete it; at most a half. The next one inserts it
    /// again.
    pub deletes: f64,
    /// Fraction of a row's later changes that move it to another region.
    pub moves: f64,
    /// Changes come up to this many changes before or behind their turn, which `seq` tells; at most
    /// 4096. Those of one key stay in their order.
    pub disorder: u64,
    /// Disorder among the changes of one key too.
    pub disorder_within_keys: bool,
    /// How changes are written.
    pub envelope: Envelope,
}

impl Default for GeneratedChanges {
    fn default() -> Self {
        Self {
            keys: 500_000,
            hot_keys: 1000,
            hot_share: 0.5,
            deletes: 0.05,
            moves: 0.02,
            disorder: 0,
            disorder_within_keys: false,
            envelope: Envelope::Plain,
        }
    }
}

/// How changes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Envelope {
    /// Rows: op (insert, update, delete), id, seq (rising), ts (milliseconds), name, amount, region.
    /// A delete has the first four alone.
    #[default]
    Plain,
    /// As Debezium writes changes of a Postgres table with the default replica identity.
    Debezium,
}

impl GeneratedChanges {
    pub(super) fn validate(&self) -> Result<()> {
        for (name, value, most) in [
            ("hot_share", self.hot_share, 1.0),
            ("deletes", self.deletes, 0.5),
            ("moves", self.moves, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(Error::config(format!(
                    "generator changes.{name} is not from 0 to {most}: {name}={value}"
                )));
            }
        }
        if !(1..=1 << 31).contains(&self.keys) {
            return Err(Error::config(
                "generator changes.keys is not from 1 to 2^31",
            ));
        }
        if self.disorder > BLOCK_EVENTS {
            return Err(Error::config(format!(
                "generator changes.disorder is above {BLOCK_EVENTS}: disorder={}",
                self.disorder
            )));
        }
        Ok(())
    }
}

/// Keys that take turns.
struct Ring {
    first: u64,
    keys: u64,
    /// Coprime to `keys`: multiples of it visit every key once.
    step: u64,
}

impl Ring {
    fn new(first: u64, keys: u64) -> Self {
        // By the golden ratio neighbours lie far apart.
        let mut step = (keys as f64 * 0.618) as u64 | 1;
        while gcd(step, keys.max(1)) > 1 {
            step += 2;
        }
        Self { first, keys, step }
    }

    /// Key and version of the change number `n` of this ring.
    fn change(&self, n: u64, salt: u64) -> (u64, u64) {
        let (round, place) = (n / self.keys, n % self.keys);
        let turned = place * self.step + mix(salt ^ round) % self.keys;
        (self.first + turned % self.keys, round)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Insert,
    Update,
    Delete,
}

/// Makes the changes of one source partition, whose keys are its own.
pub(super) struct Changes {
    config: GeneratedChanges,
    salt: u64,
    partition: u64,
    partitions: u64,
    hot: Ring,
    cold: Ring,
    /// The hot share, in [`PARTS`].
    hot_parts: u64,
    delete_parts: u64,
    move_parts: u64,
}

impl Changes {
    pub(super) fn new(
        config: &GeneratedChanges,
        seed: u64,
        partition: u64,
        partitions: u64,
    ) -> Self {
        let own = |all: u64| all / partitions + u64::from(partition < all % partitions);
        let keys = own(config.keys).max(1);
        let hot = own(config.hot_keys).min(keys);
        let parts = |share: f64| (share * PARTS as f64).round() as u64;
        let hot_parts = match (hot, keys - hot) {
            (0, _) => 0,
            (_, 0) => PARTS,
            _ => parts(config.hot_share),
        };
        Self {
            salt: mix(mix(seed) ^ partition),
            partition,
            partitions,
            hot: Ring::new(0, hot),
            cold: Ring::new(hot, keys - hot),
            hot_parts,
            delete_parts: parts(config.deletes),
            move_parts: parts(config.moves),
            config: config.clone(),
        }
    }

    /// The numbers of the changes of a block, in the order in which they come; none where that is
    /// their own.
    pub(super) fn turns(&self, block: u64) -> Option<Vec<u64>> {
        let reach = self.config.disorder as usize;
        if reach < 2 {
            return None;
        }
        let first = block * BLOCK_EVENTS;
        let mut turns: Vec<u64> = (first..first + BLOCK_EVENTS).collect();
        let mut random = Random::new(&[self.salt, block]);
        for window in turns.chunks_mut(reach) {
            for n in (1..window.len()).rev() {
                window.swap(n, random.below(n as u64 + 1) as usize);
            }
            if !self.config.disorder_within_keys {
                self.restore(window);
            }
        }
        Some(turns)
    }

    /// Puts the changes of each key back into their order; the places of the key stay.
    fn restore(&self, window: &mut [u64]) {
        let mut places: Vec<(u64, usize)> = window
            .iter()
            .enumerate()
            .map(|(place, n)| (self.key(*n).0, place))
            .collect();
        places.sort_unstable();
        for places in places.chunk_by(|a, b| a.0 == b.0) {
            let mut turns: Vec<u64> = places.iter().map(|(_, place)| window[*place]).collect();
            turns.sort_unstable();
            for ((_, place), turn) in places.iter().zip(turns) {
                window[*place] = turn;
            }
        }
    }

    /// Key (within the source partition) and version of change `n`.
    fn key(&self, n: u64) -> (u64, u64) {
        let before =
            |n: u64| ((u128::from(n) * u128::from(self.hot_parts)) / u128::from(PARTS)) as u64;
        let hot = before(n);
        if before(n + 1) > hot {
            self.hot.change(hot, self.salt)
        } else {
            self.cold.change(n - hot, self.salt)
        }
    }

    /// Whether version `version` of a key is thrown to be a delete.
    fn thrown(&self, key: u64, version: u64) -> bool {
        version > 0 && mix(self.salt ^ (key << 24) ^ version) % PARTS < self.delete_parts
    }

    fn op(&self, key: u64, version: u64) -> Op {
        // Of deletes that are thrown one after the other, every second one finds no row.
        let mut run = 0;
        while run < version && self.thrown(key, version - 1 - run) {
            run += 1;
        }
        match (run % 2 == 0, self.thrown(key, version)) {
            _ if version == 0 => Op::Insert,
            (false, _) => Op::Insert,
            (true, true) => Op::Delete,
            (true, false) => Op::Update,
        }
    }

    /// Appends change `n`, that happened `seconds` after `start` (seconds too).
    pub(super) fn write(&self, n: u64, start: i64, seconds: f64, into: &mut Vec<u8>) {
        let (key, version) = self.key(n);
        let op = self.op(key, version);
        let change = Change {
            op,
            id: key * self.partitions + self.partition,
            seq: n * self.partitions + self.partition + 1,
            millis: start * 1000 + (seconds * 1e3).floor() as i64,
            values: mix(self.salt ^ (key << 20) ^ !version),
            region: REGIONS
                [((key + (version * self.move_parts + mix(key) % PARTS) / PARTS) % 5) as usize],
        };
        match self.config.envelope {
            Envelope::Plain => change.plain(into),
            Envelope::Debezium => change.debezium(into),
        }
    }
}

/// One change, to be written.
struct Change {
    op: Op,
    id: u64,
    seq: u64,
    /// When it happened, since 1970.
    millis: i64,
    /// What name and amount are made of.
    values: u64,
    region: &'static str,
}

impl Change {
    fn plain(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(match self.op {
            Op::Insert => b"{\"op\":\"insert\",\"id\":".as_slice(),
            Op::Update => b"{\"op\":\"update\",\"id\":",
            Op::Delete => b"{\"op\":\"delete\",\"id\":",
        });
        write(self.id, into);
        into.extend_from_slice(b",\"seq\":");
        write(self.seq, into);
        into.extend_from_slice(b",\"ts\":");
        write_signed(self.millis, into);
        if self.op == Op::Delete {
            into.extend_from_slice(b",\"name\":null,\"amount\":null,\"region\":null}");
            return;
        }
        self.columns(into);
        into.push(b'}');
    }

    /// Name, amount and region, each behind a comma.
    fn columns(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(b",\"name\":\"customer ");
        write_padded::<6>((self.values >> 32) % 1_000_000, into);
        into.extend_from_slice(b"\",\"amount\":");
        let cents = (self.values & 0xffff_ffff) % 1_000_000;
        write(cents / 100, into);
        into.push(b'.');
        write_padded::<2>(cents % 100, into);
        into.extend_from_slice(b",\"region\":\"");
        into.extend_from_slice(self.region.as_bytes());
        into.push(b'"');
    }

    fn debezium(&self, into: &mut Vec<u8>) {
        let lsn = self.seq * LSN_STEP;
        if self.op == Op::Delete {
            into.extend_from_slice(b"{\"before\":{\"id\":");
            write(self.id, into);
            into.extend_from_slice(
                b",\"name\":null,\"amount\":null,\"region\":null,\"updated_at\":null},\"after\":null",
            );
        } else {
            into.extend_from_slice(b"{\"before\":null,\"after\":{\"id\":");
            write(self.id, into);
            self.columns(into);
            into.extend_from_slice(b",\"updated_at\":");
            write_signed(self.millis * 1000, into);
            into.push(b'}');
        }
        into.extend_from_slice(
            b",\"source\":{\"version\":\"3.0.0.Final\",\"connector\":\"postgresql\",\"name\":\"generator\",\"ts_ms\":",
        );
        write_signed(self.millis, into);
        into.extend_from_slice(b",\"snapshot\":\"false\",\"db\":\"shop\",\"sequence\":\"[\\\"");
        write(lsn - LSN_STEP, into);
        into.extend_from_slice(b"\\\",\\\"");
        write(lsn, into);
        into.extend_from_slice(b"\\\"]\",\"schema\":\"public\",\"table\":\"customers\",\"txId\":");
        write(self.seq, into);
        into.extend_from_slice(b",\"lsn\":");
        write(lsn, into);
        into.extend_from_slice(match self.op {
            Op::Insert => b",\"xmin\":null},\"op\":\"c\",\"ts_ms\":".as_slice(),
            Op::Update => b",\"xmin\":null},\"op\":\"u\",\"ts_ms\":",
            Op::Delete => b",\"xmin\":null},\"op\":\"d\",\"ts_ms\":",
        });
        write_signed(self.millis + 250, into);
        into.extend_from_slice(b",\"transaction\":null}");
    }
}

//! Disk and memory of a store of ten million keys, and its rate. Takes half a minute, and counts the
//! memory of the whole process, so it runs alone and when asked for:
//! `cargo test --release -p calve -p calve-lake --lib figures -- --ignored --nocapture`

use std::time::Instant;

use super::{Keys, Options, Store};

const KEYS: u64 = 10_000_000;
const BATCH: u64 = 100_000;
const ROUNDS: u64 = 30;

fn mix(n: u64) -> u64 {
    let n = (n ^ 0x5bf0_3635).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// A key of eight bytes, as the index encodes it.
fn key(n: u64) -> [u8; 9] {
    let mut key = [1; 9];
    key[1..].copy_from_slice(&mix(n).to_be_bytes());
    key
}

/// File, row, order: as the index has them.
fn value(n: u64, version: u64) -> [u8; 21] {
    let mut value = [1; 21];
    value[..8].copy_from_slice(&mix(n / 1_000_000 + version).to_le_bytes());
    value[8..12].copy_from_slice(&((n % 1_000_000) as u32).to_le_bytes());
    value[13..].copy_from_slice(&(version * KEYS + n).to_be_bytes());
    value
}

/// A figure of the process, in MiB.
fn process(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find(|line| line.starts_with(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.expect("a figure") / 1024
}

#[test]
#[ignore = "takes half a minute and must run alone"]
#[allow(clippy::print_stderr, reason = "figures are what it is for")]
fn figures_of_ten_million_keys() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(dir.path(), Options::default()).expect("a store");
    let mut most_disk = 0;
    let begun = Instant::now();
    for n in 0..KEYS {
        store.put(&key(n), &value(n, 0)).expect("put");
        if n % BATCH == BATCH - 1 {
            store.commit(b"loading").expect("committed");
            most_disk = most_disk.max(store.disk_bytes().expect("a size"));
        }
    }
    let loaded = begun.elapsed();
    let begun = Instant::now();
    for round in 1..=ROUNDS {
        let mut keys = Keys::with_capacity(BATCH as usize, BATCH as usize * 9);
        let picks = || (0..BATCH).map(|n| mix(round * BATCH + n) % KEYS);
        picks().for_each(|n| keys.push(&key(n)));
        let found = store.get(&keys).expect("found");
        assert!(found.iter().all(|value| value.is_some()), "a key is lost");
        for n in picks() {
            store.put(&key(n), &value(n, round)).expect("put");
        }
        store.commit(&round.to_le_bytes()).expect("committed");
        most_disk = most_disk.max(store.disk_bytes().expect("a size"));
    }
    let rate = (ROUNDS * BATCH) as f64 / begun.elapsed().as_secs_f64();
    let (disk, memory) = (store.disk_bytes().expect("a size"), process("VmHWM"));
    eprintln!(
        "keys={KEYS} loaded_s={:.1} get_and_put_per_s={rate:.0} disk_mb={} most_disk_mb={} process_peak_mib={memory}",
        loaded.as_secs_f64(),
        disk / 1_000_000,
        most_disk / 1_000_000,
    );
    assert!(most_disk <= 400_000_000, "disk: {most_disk}");
    assert!(memory <= 100, "memory: {memory} MiB");
}

//! Tests of the whole store: against a map here, against what crashes leave behind in `crashes`.

mod crashes;
mod figures;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};

use proptest::prelude::*;

use super::{Keys, Options, Store};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Small enough that a few hundred keys are written as runs.
const TINY: Options = Options {
    memory_bytes: 24 << 10,
};

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn key(n: u64) -> Vec<u8> {
    match n % 11 {
        0 => format!("a key with letters {n:05}").into_bytes(),
        1 => n.to_string().into_bytes(),
        _ => [&[7][..], &n.to_be_bytes()].concat(),
    }
}

fn value(random: &mut Random) -> Vec<u8> {
    match random.below(40) {
        0 => Vec::new(),
        1 => vec![5; random.below(3_000) as usize],
        2..6 => random.next().to_le_bytes().to_vec(),
        _ => [
            &random.below(9).to_be_bytes()[..],
            &random.below(9_000).to_be_bytes(),
            &[1],
        ]
        .concat(),
    }
}

/// Puts and deletes `count` keys below `keys` in store and map.
fn change(
    store: &mut Store,
    map: &mut Map,
    random: &mut Random,
    count: u64,
    keys: u64,
) -> io::Result<()> {
    for _ in 0..count {
        let key = key(random.below(keys));
        if random.below(5) == 0 {
            store.delete(&key)?;
            map.remove(&key);
        } else {
            let value = value(random);
            store.put(&key, &value)?;
            map.insert(key, value);
        }
    }
    Ok(())
}

fn all(store: &Store) -> io::Result<Map> {
    let mut map = Map::new();
    let mut twice = false;
    store.scan(|key, value| twice |= map.insert(key.to_vec(), value.to_vec()).is_some())?;
    assert!(!twice, "a key was scanned twice");
    Ok(map)
}

fn check(store: &Store, map: &Map, keys: u64) {
    assert_eq!(all(store).unwrap(), *map);
    let mut batch = Keys::new();
    (0..keys).rev().for_each(|n| batch.push(&key(n * 7 % keys)));
    (0..20).for_each(|n| batch.push(&key(n)));
    let values = store.get(&batch).unwrap();
    assert_eq!(values.len(), batch.len());
    for (key, value) in batch.iter().zip(values.iter()) {
        assert_eq!(value, map.get(key).map(Vec::as_slice), "{key:?}");
    }
}

#[derive(Debug, Clone)]
enum Op {
    Change(u64, u64),
    Commit,
    Reopen(usize),
    Clear,
    Check,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<u64>(), 1..1_500_u64).prop_map(|(seed, count)| Op::Change(seed, count)),
        6 => Just(Op::Commit),
        2 => (10_usize..200).prop_map(|kib| Op::Reopen(kib << 10)),
        1 => Just(Op::Clear),
        2 => Just(Op::Check),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn it_equals_a_map_that_forgets_what_was_not_committed(keys in 1..4_000_u64, ops in prop::collection::vec(op(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), TINY).unwrap();
        let (mut map, mut committed, mut commits) = (Map::new(), Map::new(), 0_u32);
        for op in ops {
            match op {
                Op::Change(seed, count) => change(&mut store, &mut map, &mut Random(seed), count, keys).unwrap(),
                Op::Commit => {
                    commits += 1;
                    store.commit(&commits.to_le_bytes()).unwrap();
                    committed.clone_from(&map);
                }
                Op::Reopen(memory_bytes) => {
                    drop(store);
                    store = Store::open(folder.path(), Options { memory_bytes }).unwrap();
                    map.clone_from(&committed);
                    check(&store, &map, keys);
                }
                Op::Clear => {
                    store.clear().unwrap();
                    (map, committed, commits) = (Map::new(), Map::new(), 0);
                }
                Op::Check => check(&store, &map, keys),
            }
            let meta = (commits > 0).then(|| commits.to_le_bytes());
            assert_eq!(store.meta(), meta.as_ref().map(|meta| &meta[..]));
        }
        check(&store, &map, keys);
    }
}

#[test]
fn files_of_others_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (other, stray) = (
        folder.path().join("server.log"),
        folder.path().join("0000000000ff.run"),
    );
    fs::write(&other, "x").unwrap();
    fs::write(&stray, "x").unwrap();
    Store::open(folder.path(), TINY).unwrap();
    assert!(other.exists() && !stray.exists());
}

#[test]
fn only_one_at_a_time_has_it_open() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), TINY).unwrap();
    assert_eq!(
        Store::open(folder.path(), TINY).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    drop(store);
    Store::open(folder.path(), TINY).unwrap();
}

#[test]
fn limits_of_keys_and_values_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), TINY).unwrap();
    let (long_key, long_value) = (vec![1; super::KEY_MAX], vec![2; super::VALUE_MAX]);
    for key in [&long_key[..], b"", b"b"] {
        store.put(key, &long_value).unwrap();
    }
    assert_eq!(
        store
            .put(&vec![1; super::KEY_MAX + 1], b"")
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        store
            .put(b"a", &vec![1; super::VALUE_MAX + 1])
            .unwrap_err()
            .kind(),
        ErrorKind::InvalidInput
    );
    store.commit(b"").unwrap();
    drop(store);
    let store = Store::open(folder.path(), TINY).unwrap();
    let mut keys = Keys::new();
    for key in [&long_key[..], b"a", b"", &vec![1; super::KEY_MAX + 1], b"b"] {
        keys.push(key);
    }
    let found: Vec<bool> = store
        .get(&keys)
        .unwrap()
        .iter()
        .map(|value| value == Some(&long_value))
        .collect();
    assert_eq!(found, [true, false, true, false, true]);
    assert_eq!(store.meta(), Some(&b""[..]));
}

#[test]
fn what_fits_into_memory_is_only_logged_and_the_log_stays_short() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(
        folder.path(),
        Options {
            memory_bytes: 4 << 20,
        },
    )
    .unwrap();
    for round in 0..300_u32 {
        for n in 0..3_000_u32 {
            if n % 10 == round % 10 {
                store.delete(&n.to_be_bytes()).unwrap();
            } else {
                store
                    .put(&n.to_be_bytes(), &vec![1; ((n + round) % 30) as usize])
                    .unwrap();
            }
        }
        store.commit(b"m").unwrap();
        assert!(
            store.disk_bytes().unwrap() < 1_300_000,
            "{}",
            store.disk_bytes().unwrap()
        );
    }
    assert_eq!(
        (
            store.len_estimate(),
            fs::read_dir(folder.path()).unwrap().count()
        ),
        (2_700, 3)
    );
    let before = all(&store).unwrap();
    drop(store);
    let store = Store::open(
        folder.path(),
        Options {
            memory_bytes: 4 << 20,
        },
    )
    .unwrap();
    assert_eq!(
        (store.len_estimate(), all(&store).unwrap()),
        (2_700, before)
    );
}

#[test]
fn memory_and_disk_stay_within_bounds_while_keys_are_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        memory_bytes: 1 << 20,
    };
    let mut store = Store::open(folder.path(), options).unwrap();
    let (mut random, keys) = (Random(1), 200_000_u64);
    for round in 0..60 {
        for n in 0..10_000 {
            let key = if round < 20 {
                round * 10_000 + n
            } else {
                random.below(keys)
            };
            store
                .put(
                    &key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(),
                    &random.next().to_be_bytes(),
                )
                .unwrap();
        }
        store.commit(b"m").unwrap();
        assert!(
            store.memory_bytes() <= options.memory_bytes,
            "{}",
            store.memory_bytes()
        );
    }
    // 16 bytes a key, an eighth more for filter and index, a sixth for what is overwritten, and the log.
    let disk = store.disk_bytes().unwrap();
    assert!(disk < keys * 16 * 9 / 8 * 7 / 6 + (2 << 20), "{disk}");
    let estimate = store.len_estimate();
    assert!(estimate.abs_diff(keys) < keys / 8, "{estimate}");
    assert_eq!(all(&store).unwrap().len() as u64, keys);
}

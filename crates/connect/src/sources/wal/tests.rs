//! The log against cuts, flips, two owners, full disks and trimming.

use std::{collections::BTreeMap, fs, path::Path};

use calve_engine::ErrorKind;
use tempfile::TempDir;

use super::*;
use crate::sources::testing::block_on;

const DAY_MS: i64 = 86_400_000;

fn options(dir: &Path) -> LogOptions {
    LogOptions {
        folder: dir.join("wal"),
        segment_bytes: 600,
        recent_bytes: 1 << 20,
        key_ttl_ms: DAY_MS,
        most_keys: 1000,
    }
}

fn payload(n: u32) -> Bytes {
    let text = format!("{{\"n\":{n},\"pad\":\"{}\"}}\n", "x".repeat(n as usize % 7));
    Bytes::from(text)
}

fn key(n: u32) -> Key {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&n.to_le_bytes());
    Key { key, body: key }
}

fn append_as(log: &Log, n: u32, key: Option<Key>) -> Result<u64, NotAppended> {
    let payload = payload(n);
    let appender = log.appender();
    let room = appender.room(payload.len() as u64, u64::MAX);
    let entry = Entry {
        content: Content::Bytes,
        units: payload.len() as u32,
        events: 1,
        refused: 0,
        key,
        payload,
    };
    block_on(appender.append(entry, room.expect("room")))
}

fn append(log: &Log, n: u32) -> u64 {
    append_as(log, n, None).expect("append")
}

fn read_all(log: &mut Log) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let some = log.read(40).expect("read");
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn payloads(records: &[Record]) -> Vec<Bytes> {
    let mut position = records.first().map_or(0, |first| first.position);
    for record in records {
        assert_eq!(record.position, position, "records follow each other");
        position += u64::from(record.units);
    }
    records.iter().map(|r| r.payload.clone()).collect()
}

fn segments_of(dir: &Path) -> Vec<PathBuf> {
    let folder = dir.join("wal");
    let bases = segments::list(&folder).expect("list");
    bases.iter().map(|b| segments::path(&folder, *b)).collect()
}

/// A log of `count` records, each durable before the next was written.
fn filled(options: &LogOptions, count: u32) -> Vec<u64> {
    let log = Log::open(options, 0, None).expect("open");
    (0..count).map(|n| append(&log, n)).collect()
}

#[test]
fn what_was_appended_is_read_from_any_record_on() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    let starts = filled(&options, 30);
    assert!(segments_of(dir.path()).len() > 3);
    let mut id = None;
    for (from, start) in starts.iter().enumerate() {
        let mut log = Log::open(&options, *start, id.as_deref()).expect("open");
        id = Some(log.id());
        let expected: Vec<Bytes> = (from as u32..30).map(payload).collect();
        let bytes: usize = expected.iter().map(Bytes::len).sum();
        assert_eq!(log.appender().pending(), bytes as u64);
        assert_eq!(payloads(&read_all(&mut log)), expected);
        assert_eq!(log.appender().pending(), 0);
    }
    let error = Log::open(&options, starts[3] + 1, None).err();
    assert_eq!(error.expect("no record").kind(), ErrorKind::Config);
    let error = Log::open(&options, 1 << 40, None).err();
    assert_eq!(error.expect("beyond the end").kind(), ErrorKind::Config);
    let error = Log::open(&options, 0, Some("another")).err();
    assert_eq!(error.expect("another log").kind(), ErrorKind::Config);
}

#[test]
fn a_reader_that_does_not_keep_up_reads_the_files() {
    let dir = TempDir::new().expect("a folder");
    let options = LogOptions {
        recent_bytes: 300,
        ..options(dir.path())
    };
    let mut log = Log::open(&options, 0, None).expect("open");
    let mut read = Vec::new();
    let mut expected = Vec::new();
    for n in 0..60 {
        append(&log, n);
        expected.push(payload(n));
        // Now it keeps up, and now it does not.
        if n % 20 < 7 {
            read.extend(log.read(30).expect("read"));
        }
    }
    read.extend(read_all(&mut log));
    assert_eq!(payloads(&read), expected);
    assert!(!log.is_readable());
    assert_eq!(log.appender().oldest_unread_ms(), 0);
}

#[test]
fn groups_of_many_that_append_at_once_are_whole_and_in_order() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    let mut log = Log::open(&options, 0, None).expect("open");
    let appender = log.appender();
    let found = block_on(async {
        let append = |n: u32| {
            let (appender, payload) = (appender.clone(), payload(n));
            async move {
                let room = appender.room(payload.len() as u64, u64::MAX).expect("room");
                let entry = Entry {
                    content: Content::Bytes,
                    units: payload.len() as u32,
                    events: 1,
                    refused: 0,
                    key: None,
                    payload: payload.clone(),
                };
                (appender.append(entry, room).await.expect("append"), payload)
            }
        };
        futures::future::join_all((0..5000).map(append)).await
    });
    let expected: BTreeMap<u64, Bytes> = found.into_iter().collect();
    let expected: Vec<Bytes> = expected.into_values().collect();
    assert_eq!(payloads(&read_all(&mut log)), expected);
    drop(log);
    let mut log = Log::open(&options, 0, None).expect("open");
    assert_eq!(payloads(&read_all(&mut log)), expected);
}

#[test]
fn wherever_the_tail_is_torn_what_is_whole_stays() {
    let dir = TempDir::new().expect("a folder");
    let options = LogOptions {
        segment_bytes: 1 << 20,
        ..options(dir.path())
    };
    filled(&options, 4);
    let file = segments_of(dir.path()).remove(0);
    let bytes = fs::read(&file).expect("read");
    let mut ends = vec![record::SEGMENT_BYTES];
    for n in 0..4 {
        ends.push(ends[n as usize] + record::HEADER_BYTES + payload(n).len());
    }
    assert_eq!(ends[4], bytes.len());
    for length in 0..=bytes.len() {
        fs::write(&file, &bytes[..length]).expect("write");
        let whole = ends.iter().filter(|end| **end <= length).count();
        let whole = whole.saturating_sub(1) as u32;
        let mut log = Log::open(&options, 0, None).expect("open");
        append(&log, 99);
        let mut expected: Vec<Bytes> = (0..whole).map(payload).collect();
        expected.push(payload(99));
        assert_eq!(payloads(&read_all(&mut log)), expected, "length={length}");
        drop(log);
        let mut log = Log::open(&options, 0, None).expect("open again");
        assert_eq!(payloads(&read_all(&mut log)), expected, "length={length}");
    }
}

#[test]
fn a_flipped_bit_is_found_and_costs_at_the_most_the_last_record() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    filled(&options, 9);
    let files = segments_of(dir.path());
    assert!(files.len() >= 2);
    let last = payload(8).len() + record::HEADER_BYTES;
    for (index, file) in files.iter().enumerate() {
        let bytes = fs::read(file).expect("read");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(file, &damaged).expect("write");
            let torn = index + 1 == files.len() && at >= bytes.len() - last;
            match Log::open(&options, 0, None) {
                Ok(mut log) => {
                    assert!(torn, "file={index} at={at}");
                    let expected: Vec<Bytes> = (0..8).map(payload).collect();
                    assert_eq!(payloads(&read_all(&mut log)), expected);
                }
                Err(error) => {
                    assert!(!torn, "file={index} at={at} {error:?}");
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                }
            }
        }
        fs::write(file, &bytes).expect("write");
    }
}

#[test]
fn records_of_a_group_that_was_not_acknowledged_may_be_torn_in_any_order() {
    let dir = TempDir::new().expect("a folder");
    let options = LogOptions {
        segment_bytes: 1 << 20,
        ..options(dir.path())
    };
    filled(&options, 2);
    let file = segments_of(dir.path()).remove(0);
    let mut bytes = fs::read(&file).expect("read");
    let (id, _) = record::read_segment_head(&bytes)
        .expect("a version")
        .expect("a head");
    let synced = (payload(0).len() + payload(1).len()) as u64;
    let mut position = synced;
    let torn = bytes.len();
    for n in 2..4 {
        let payload = payload(n);
        let header = record::Header {
            payload_crc: id.crc(&payload),
            payload_bytes: payload.len() as u32,
            units: payload.len() as u32,
            position,
            synced,
            time_ms: 0,
            events: 1,
            refused: 0,
            content: Content::Bytes,
            key: None,
        };
        header.write(id, &mut bytes);
        bytes.extend_from_slice(&payload);
        position = header.end();
    }
    // The first of the two did not reach the disk, the second did; neither was acknowledged.
    bytes[torn..torn + 50].fill(0);
    fs::write(&file, &bytes).expect("write");
    let mut log = Log::open(&options, 0, None).expect("open");
    assert_eq!(payloads(&read_all(&mut log)), [payload(0), payload(1)]);
}

#[test]
fn a_segment_that_is_missing_or_cut_is_damage() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    filled(&options, 20);
    let files = segments_of(dir.path());
    let middle = fs::read(&files[1]).expect("read");
    let corrupt = || {
        let error = Log::open(&options, 0, None).err().expect("damage");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    };
    fs::remove_file(&files[1]).expect("remove");
    corrupt();
    fs::write(&files[1], &middle[..middle.len() - 1]).expect("write");
    corrupt();
    let last = record::HEADER_BYTES + payload(9).len();
    fs::write(&files[1], &middle[..middle.len() - last.min(middle.len())]).expect("write");
    corrupt();
    fs::write(&files[1], &middle).expect("write");
    // The first one is gone: no damage, but not what was asked for.
    fs::remove_file(&files[0]).expect("remove");
    let error = Log::open(&options, 0, None).err().expect("trimmed");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("--from"))
    );
}

#[test]
fn one_process_at_a_time() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    let log = Log::open(&options, 0, None).expect("open");
    let error = Log::open(&options, 0, None).err().expect("locked");
    assert!(error.message().contains("another process"), "{error:?}");
    let appender = log.appender();
    drop(log);
    let log = Log::open(&options, 0, None).expect("free again");
    let room = appender.room(1, 1).expect("room");
    let entry = Entry {
        content: Content::Bytes,
        units: 1,
        events: 1,
        refused: 0,
        key: None,
        payload: Bytes::from_static(b"x"),
    };
    let error = block_on(appender.append(entry, room)).expect_err("closed");
    assert_eq!(Error::from(error).kind(), ErrorKind::Unavailable);
    append(&log, 1);
}

#[test]
fn segments_go_when_they_are_committed_and_keys_stay_for_their_time() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    let mut position = 0;
    for round in 0..8 {
        let mut log = Log::open(&options, position, None).expect("open");
        for n in 0..10 {
            let n = round * 10 + n;
            append_as(&log, n, (n % 3 > 0).then(|| key(n))).expect("append");
        }
        let read = read_all(&mut log);
        position = read.last().map_or(0, |r| r.position + u64::from(r.units));
        log.trim(position).expect("trim");
        assert_eq!(segments_of(dir.path()).len(), 1, "the last one stays");
        for n in 0..(round + 1) * 10 {
            let known = log.appender().known(&key(n).key);
            assert_eq!(known.is_some(), n % 3 > 0, "n={n}");
            assert_eq!(known.map_or(1, |k| k.events), 1);
        }
    }
    let files = segments::names(&options.folder).expect("list");
    let files = files.iter().filter(|name| name.starts_with("keys-"));
    assert!(files.count() < 5, "files of keys are merged");
    let log = Log::open(&options, position, None).expect("open");
    let remembered = (0..80).filter(|n| log.appender().known(&key(*n).key).is_some());
    assert_eq!(remembered.count(), 80 - 27);
    drop(log);
    // Too old, all of them.
    let short = LogOptions {
        key_ttl_ms: 0,
        ..options.clone()
    };
    let mut log = Log::open(&short, position, None).expect("open");
    assert!((0..80).all(|n| log.appender().known(&key(n).key).is_none()));
    (0..10).for_each(|n| {
        append(&log, n);
    });
    let read = read_all(&mut log);
    let upto = read.last().map_or(0, |r| r.position + u64::from(r.units));
    log.trim(upto).expect("trim");
    let files = segments::names(&options.folder).expect("list");
    assert!(!files.iter().any(|name| name.starts_with("keys-")));
}

#[test]
fn the_oldest_of_too_many_keys_are_forgotten() {
    let dir = TempDir::new().expect("a folder");
    let options = LogOptions {
        most_keys: 10,
        ..options(dir.path())
    };
    let log = Log::open(&options, 0, None).expect("open");
    for n in 0..25 {
        append_as(&log, n, Some(key(n))).expect("append");
    }
    let appender = log.appender();
    let known: Vec<u32> = (0..25)
        .filter(|n| appender.known(&key(*n).key).is_some())
        .collect();
    assert_eq!(known, (15..25).collect::<Vec<_>>());
    assert_eq!(appender.forgotten_keys(), 15);
    // However many there were, though nothing is trimmed.
    let held = appender.held_bytes();
    for n in 25..500 {
        append_as(&log, n, Some(key(n))).expect("append");
    }
    let more = appender.held_bytes() - held;
    let records = 475 * (payload(6).len() + record::HEADER_BYTES) as u64;
    assert!(more < records + 2000, "{more}");
}

#[test]
fn a_full_disk_fails_those_who_append_and_not_the_log() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    let mut log = Log::open(&options, 0, None).expect("open");
    append(&log, 0);
    for n in 1..4 {
        log.shared.failing.store(true, Ordering::Relaxed);
        let error = append_as(&log, 90 + n, Some(key(n))).expect_err("full");
        assert!(
            matches!(&error, NotAppended::Failed(error) if error.kind() == ErrorKind::Full),
            "{error:?}"
        );
        assert_eq!(log.appender().known(&key(n).key), None);
        log.shared.failing.store(false, Ordering::Relaxed);
        append(&log, n);
    }
    let expected: Vec<Bytes> = (0..4).map(payload).collect();
    assert_eq!(payloads(&read_all(&mut log)), expected);
    assert_eq!(log.appender().pending(), 0);
    drop(log);
    let mut log = Log::open(&options, 0, None).expect("open");
    assert_eq!(payloads(&read_all(&mut log)), expected);
}

// Its records are whole, and the next start takes them: to say that nothing was taken would be wrong.
#[test]
fn what_can_neither_be_made_durable_nor_be_cut_off_is_not_denied() {
    let dir = TempDir::new().expect("a folder");
    let options = options(dir.path());
    let log = Log::open(&options, 0, None).expect("open");
    append(&log, 0);
    log.shared.failing.store(true, Ordering::Relaxed);
    log.shared.unmendable.store(true, Ordering::Relaxed);
    let error = append_as(&log, 1, None).expect_err("full");
    assert!(matches!(error, NotAppended::Unknown(_)), "{error:?}");
    // Nothing of this one is written.
    let error = append_as(&log, 2, None).expect_err("not mended");
    assert!(matches!(error, NotAppended::Failed(_)), "{error:?}");
    drop(log);
    let mut log = Log::open(&options, 0, None).expect("open");
    assert_eq!(payloads(&read_all(&mut log)), [payload(0), payload(1)]);
}

#[test]
fn room_is_limited_and_given_back() {
    let dir = TempDir::new().expect("a folder");
    let mut log = Log::open(&options(dir.path()), 0, None).expect("open");
    append(&log, 5);
    let bytes = payload(5).len() as u64;
    let appender = log.appender();
    assert!(appender.room(10, bytes + 9).is_none());
    let room = appender.room(10, bytes + 10).expect("room");
    assert!(appender.room(1, bytes + 10).is_none());
    drop(room);
    assert_eq!(appender.pending(), bytes);
    read_all(&mut log);
    assert_eq!(appender.pending(), 0);
}

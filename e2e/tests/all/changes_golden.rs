//! A generated stream of changes (hot keys, deletes, rows that come back, moves between regions, disorder
//! across and within keys, repeats) becomes the table that DuckDB makes of the same changes, row by row,
//! as PyIceberg and DuckDB read it: undisturbed, killed at random, and beside others that write.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Output},
    time::{Duration, Instant},
};

use calve_e2e::{Running, beside, command, pause, python};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// The stream that most tests take.
const SMALL: u64 = 200_000;

/// How a table of changes is written.
#[derive(Clone, Copy)]
struct Mode {
    changes: &'static str,
    version: u8,
    disorder: bool,
}

const POSITION: Mode = Mode {
    changes: "order_by: [seq]",
    version: 2,
    disorder: true,
};
const VECTOR: Mode = Mode {
    changes: "order_by: [seq], deletes: vector",
    version: 3,
    disorder: true,
};
const COPY: Mode = Mode {
    changes: "order_by: [seq], deletes: copy_on_write",
    version: 2,
    disorder: true,
};
/// Without an order what comes last counts.
const BY_ARRIVAL: Mode = Mode {
    changes: "deletes: position",
    version: 2,
    disorder: false,
};

/// A pipeline of generated changes into a table partitioned by region.
struct Stream {
    dir: PathBuf,
    mode: Mode,
    keys: u64,
    every_ms: u64,
    /// More of the pipeline file.
    more: &'static str,
}

impl Stream {
    fn new(dir: PathBuf, mode: Mode, keys: u64) -> Self {
        fs::create_dir_all(&dir).expect("a folder");
        Self {
            dir,
            mode,
            keys,
            every_ms: 200,
            more: "",
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("orders.yaml")
    }

    /// The pipeline file for the first `count` changes; `rate` a second, 0 for flat out.
    fn write(&self, count: u64, rate: u64) {
        let (root, keys, every) = (self.dir.display(), self.keys, self.every_ms);
        let more = self.more;
        let Mode {
            changes,
            version,
            disorder,
        } = self.mode;
        let hot = keys / 500;
        let rate = match rate {
            0 => String::new(),
            rate => format!("rate: {rate}, "),
        };
        let text = format!(
            "name: orders\n\
             source:\n  generator: {{ kind: changes, seed: 5, count: {count}, {rate}duplicates: 0.01, batch_bytes: 64KiB, \
             changes: {{ keys: {keys}, hot_keys: {hot}, deletes: 0.1, moves: 0.1, disorder: 4096, \
             disorder_within_keys: {disorder} }} }}\n\
             format: {{ json: {{ columns: {{ op: varchar, id: bigint, seq: bigint, ts: bigint, name: varchar, \
             amount: double, region: varchar }} }} }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{root}/lake/catalog.db\", warehouse: \"{root}/lake\" }}, \
             table: shop.orders, partition_by: [region], format_version: {version}, \
             changes: {{ key: [id], op_column: op, {changes} }} }} }}\n\
             commit: {{ every: {every}ms, min_interval: 10ms }}\n\
             checkpoint: {{ path: \"{root}/checkpoints\" }}\n\
             rejects: {{ path: \"{root}/rejects\" }}\n{more}"
        );
        fs::write(self.file(), text).expect("the pipeline file");
    }

    fn start(&self) -> Running {
        Running::start(&self.dir, &self.file(), "", &[])
    }

    /// Goes on to the first `count` changes.
    fn runs(&self, count: u64) {
        self.write(count, 0);
        self.ended_well(self.start().wait());
    }

    fn ended_well(&self, status: ExitStatus) {
        assert!(status.success(), "{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn lose_index(&self) {
        fs::remove_dir_all(self.dir.join("lake/.calve-index")).expect("there was an index");
    }

    fn table(&self, what: &str, args: &[&str]) -> Output {
        let catalog = self.dir.join("lake/catalog.db");
        let mut all = vec!["table", what, "--catalog"];
        let catalog = catalog.to_string_lossy();
        all.extend([catalog.as_ref(), "shop.orders"]);
        all.extend(args);
        command(&all)
    }

    /// The table is what DuckDB makes of the first `count` changes; answers with what was found.
    fn equals(&self, count: u64, what: &str) -> Value {
        self.write(count, 0);
        let tapped = command(&["tap", &self.file().to_string_lossy()]);
        assert!(tapped.status.success(), "{}", said(&tapped));
        fs::write(self.dir.join("golden.ndjson"), tapped.stdout).expect("changes");
        let found = python("changes_golden.py", &[json!({ "dir": self.dir })]).remove(0);
        let log = || self.log();
        assert!(found["golden"].as_u64() > Some(self.keys / 4), "{found}");
        let mut kinds = vec!["deletes", "repeated", "inserted_again", "moved"];
        kinds.extend(self.mode.disorder.then_some("late"));
        for kind in kinds {
            assert!(found[kind].as_u64() > Some(0), "{what}: no {kind}: {found}");
        }
        for reader in ["pyiceberg", "duckdb"] {
            let of = &found[reader];
            assert_eq!(of["missing"], json!([0, []]), "{what}: {found}\n{}", log());
            assert_eq!(of["extra"], json!([0, []]), "{what}: {found}\n{}", log());
            assert_eq!(of["foreign"], true, "{what}: {found}\n{}", log());
        }
        found
    }

    fn verify(&self) -> Output {
        let checkpoints = self.dir.join("checkpoints");
        self.table("verify", &["--checkpoint", &checkpoints.to_string_lossy()])
    }

    fn verifies(&self, what: &str) {
        let verified = self.verify();
        assert!(verified.status.success(), "{what}: {}", said(&verified));
    }
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

#[test]
fn two_million_changes_of_half_a_million_keys() {
    let root = tempfile::tempdir().expect("a folder");
    let stream = Stream::new(root.path().into(), POSITION, 500_000);
    stream.runs(2_000_000);
    let found = stream.equals(2_000_000, "2 M changes");
    stream.verifies("2 M changes");
    assert!(found["snapshots"].as_u64() >= Some(3), "{found}");
}

#[test]
fn each_way_of_deleting_gives_the_same_rows() {
    let root = tempfile::tempdir().expect("a folder");
    for (name, mode) in [("vector", VECTOR), ("copy", COPY), ("arrival", BY_ARRIVAL)] {
        let mut stream = Stream::new(root.path().join(name), mode, SMALL / 4);
        stream.every_ms = 100;
        stream.write(SMALL, 200_000);
        stream.ended_well(stream.start().wait());
        let found = stream.equals(SMALL, name);
        stream.verifies(name);
        assert!(found["snapshots"].as_u64() >= Some(4), "{name}: {found}");
    }
}

/// The longest that a process reads before it is killed, in ms.
const LONGEST_LIFE: u64 = 500;

#[test]
fn killed_at_random_times() {
    let seed = std::env::var("CALVE_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(4);
    let root = tempfile::tempdir().expect("a folder");
    for (name, mode) in [("position", POSITION), ("vector", VECTOR)] {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut stream = Stream::new(root.path().join(name), mode, SMALL / 4);
        stream.every_ms = 60;
        let kills = 20;
        // At this rate not all changes can be read before the last kill, however fast the machine is.
        stream.write(SMALL, SMALL * 1000 / (kills * LONGEST_LIFE));
        for kill in 0..kills {
            let starts = || stream.log().matches("took the pipeline over").count();
            let before = starts();
            let running = stream.start();
            let life = Duration::from_millis(random.random_range(20..LONGEST_LIFE));
            let at_once = random.random_bool(0.2);
            let mut until = Instant::now() + life;
            let mut started = at_once;
            while Instant::now() < until || !started {
                if !started && starts() > before {
                    started = true;
                    until = Instant::now() + life;
                }
                pause(2);
            }
            let signal = running.kill().signal();
            assert_eq!(
                signal,
                Some(9),
                "ended before kill {kill}: {}",
                stream.log()
            );
            if random.random_bool(0.2) {
                let _ = fs::remove_dir_all(stream.dir.join("lake/.calve-index"));
            }
        }
        stream.runs(SMALL);
        let found = stream.equals(SMALL, &format!("{name}, seed={seed}"));
        stream.verifies(name);
        assert!(found["snapshots"].as_u64() > Some(kills / 2), "{found}");
    }
}

#[test]
fn an_index_that_is_lost_between_runs() {
    let root = tempfile::tempdir().expect("a folder");
    let stream = Stream::new(root.path().into(), POSITION, SMALL / 4);
    for part in 1..=8 {
        stream.runs(SMALL / 8 * part);
        if part % 3 != 0 {
            stream.lose_index();
        }
    }
    stream.equals(SMALL, "index lost");
    stream.verifies("index lost");
}

/// Runs a stream of so many changes a second, and tells how often it was compacted meanwhile.
type Compacted = fn(stream: &mut Stream, rate: u64) -> usize;

/// The table is right, and was compacted so many times. A slower stream, with more time between commits,
/// leaves room for that on a busy machine.
fn right_when_compacted(times: usize, run: Compacted) {
    let root = tempfile::tempdir().expect("a folder");
    for (name, mode) in [("position", POSITION), ("vector", VECTOR)] {
        let (mut found, mut log) = (Vec::new(), String::new());
        for slower in [1, 3, 10] {
            let dir = root.path().join(format!("{name}-{slower}"));
            let mut stream = Stream::new(dir, mode, SMALL / 4);
            stream.every_ms = 500 * slower;
            let compacted = run(&mut stream, 30_000 / slower);
            stream.equals(SMALL, name);
            stream.verifies(name);
            found.push(compacted);
            log = stream.log();
            if compacted >= times {
                break;
            }
        }
        let last = *found.last().expect("one try");
        assert!(last >= times, "{name}: compaction met it: {found:?}: {log}");
    }
}

#[test]
fn compaction_all_the_while() {
    right_when_compacted(2, |stream, rate| {
        stream.write(SMALL, rate);
        let mut running = stream.start();
        let mut compacted = 0;
        let status = loop {
            if let Some(status) = running.ended() {
                break status;
            }
            pause(100);
            if !stream.dir.join("lake/catalog.db").exists() {
                continue;
            }
            let done = stream.table("compact", &["--min-files", "2", "--all"]);
            // The table itself comes a moment after the catalog.
            let early = said(&done).contains("no such table");
            assert!(done.status.success() || early, "{}", said(&done));
            compacted += usize::from(!done.stdout.is_empty());
        };
        stream.ended_well(status);
        compacted
    });
}

#[test]
fn compaction_in_the_process_of_the_pipeline() {
    right_when_compacted(2, |stream, rate| {
        // Each commit deletes from the files that are compacted, and comes sooner than that takes.
        (stream.every_ms, stream.more) = (200, "upkeep: { compact: off, compact_every: 300ms }\n");
        stream.write(SMALL, rate);
        let slow = "iceberg.compact.before_commit=stall=0.6@1+";
        let running = Running::start(&stream.dir, &stream.file(), slow, &[]);
        stream.ended_well(running.wait());
        stream.log().matches("merged small files").count()
    });
}

#[test]
fn another_engine_that_writes_and_rewrites() {
    let root = tempfile::tempdir().expect("a folder");
    let mut stream = Stream::new(root.path().into(), POSITION, SMALL / 4);
    stream.every_ms = 400;
    let finish = |child: std::process::Child| -> Value {
        let output = child.wait_with_output().expect("wait for Python");
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    stream.runs(SMALL / 4);
    // Nobody disturbs this round: whole regions are rewritten, whose rows the index had.
    let alone = finish(beside("rewriter.py", &stream.dir, &["once"]));
    for (what, times) in [("rewrite", 2), ("evolve", 2), ("expire", 1)] {
        assert_eq!(alone[what], times, "{alone}");
    }
    stream.write(SMALL, 30_000);
    let writer = beside("rewriter.py", &stream.dir, &[]);
    let status = stream.start().wait();
    fs::write(stream.dir.join("stop"), "").expect("stop");
    let done = finish(writer);
    stream.ended_well(status);
    let found = stream.equals(SMALL, &format!("beside {done}"));
    let count = |what: &str| done[what].as_u64().unwrap_or(0);
    assert!(count("append") + count("replace") >= 2, "{done}");
    assert!(count("evolve") >= 1 && count("expire") >= 1, "{done}");
    assert!(found["foreign"].as_u64() > Some(0), "{found}");
    // It leaves deletes behind of files that it has written again, which is nothing wrong.
    stream.verifies("beside another engine");
}

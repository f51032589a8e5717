//! The binary is killed at every fault point, and at random, and started again: the table and the
//! rejects afterwards equal those of a run that nobody disturbed.

use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    time::{Duration, Instant},
};

use calve_e2e::{Scenario, Sink, readers};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const EVENTS: u64 = 60_000;
const RATE: u64 = 150_000;

const BOTH: &[&str] = &[
    "start.before_claim=kill",
    "start.after_claim=kill",
    "checkpoint.before_create=kill",
    "checkpoint.before_create=kill@3",
    "checkpoint.after_create=kill",
    "checkpoint.after_create=kill@3",
    "write.finish.before_fsync=kill@2",
    "prepare.after_files=kill@2",
    "commit.before=kill",
    "commit.before=kill@4",
    "commit.after=kill@2",
    "commit.between_outputs=kill@3",
    "rejects.before_publish=kill@2",
    "rejects.after_publish=kill@2",
    "checkpoint.retire.after_floor=kill",
    "checkpoint.retire.each=kill",
];
const ICEBERG: &[&str] = &[
    "iceberg.commit.before_manifest=kill@2",
    "iceberg.commit.before_metadata=kill@2",
    "iceberg.commit.before_cas=kill@2",
    "iceberg.commit.after_cas=kill@2",
];
const PARQUET: &[&str] = &[
    "parquet.publish.each=kill@2",
    "parquet.commit.before_entry=kill@2",
    "parquet.commit.after_entry=kill@2",
];

fn assert_same(what: &str, found: &Value, golden: &Value) {
    for key in [
        "rows",
        "ids",
        "fingerprint",
        "rejects",
        "reject_ids",
        "duckdb_rows",
    ] {
        assert_eq!(
            found[key], golden[key],
            "{what}: {key} differs: {found} against {golden}"
        );
    }
    assert_eq!(
        found["doubled"], 0,
        "{what}: a file is referenced twice: {found}"
    );
}

fn golden(root: &Path, sink: Sink, events: u64) -> Value {
    let scenario = Scenario::new(root.join("golden"), sink, events, 0);
    let status = scenario.run("");
    assert!(
        status.success(),
        "the golden run failed: {}",
        scenario.log()
    );
    let golden = readers(&[scenario.spec()]).remove(0);
    assert_eq!(
        golden["rows"], golden["ids"],
        "each event is there once: {golden}"
    );
    let rows = golden["rows"].as_u64().expect("rows");
    let rejects = golden["rejects"].as_u64().expect("rejects");
    assert_eq!(
        rows + rejects,
        events,
        "every event is accounted for: {golden}"
    );
    assert!(rejects > 0, "some were malformed: {golden}");
    golden
}

fn killed_at_each(sink: Sink, own: &[&str]) {
    let root = tempfile::tempdir().expect("a folder");
    let golden = golden(root.path(), sink, EVENTS);
    let mut specs = Vec::new();
    let faults: Vec<&str> = BOTH.iter().chain(own).copied().collect();
    for (n, fault) in faults.iter().enumerate() {
        let scenario = Scenario::new(root.path().join(n.to_string()), sink, EVENTS, RATE);
        let status = scenario.run(fault);
        assert_eq!(
            status.signal(),
            Some(9),
            "{fault}: not reached: {}",
            scenario.log()
        );
        let status = scenario.run("");
        assert!(
            status.success(),
            "{fault}: the next start failed: {}",
            scenario.log()
        );
        specs.push(scenario.spec());
    }
    for (fault, found) in faults.iter().zip(readers(&specs)) {
        assert_same(fault, &found, &golden);
    }
}

#[test]
fn iceberg_killed_at_each_point() {
    killed_at_each(Sink::Iceberg, ICEBERG);
}

#[test]
fn parquet_killed_at_each_point() {
    killed_at_each(Sink::Parquet, PARQUET);
}

#[test]
fn a_lost_answer_is_looked_up() {
    let root = tempfile::tempdir().expect("a folder");
    let golden = golden(root.path(), Sink::Iceberg, EVENTS);
    let scenario = Scenario::new(root.path().join("lost"), Sink::Iceberg, EVENTS, RATE);
    let status = scenario.run("iceberg.commit.after_cas=lost@3");
    assert!(status.success(), "{}", scenario.log());
    assert_same("lost", &readers(&[scenario.spec()])[0], &golden);
}

#[test]
fn several_prepared_epochs_are_committed_by_the_next_start() {
    for (sink, fails) in [
        (Sink::Iceberg, "iceberg.commit.before_manifest"),
        (Sink::Parquet, "parquet.commit.before_entry"),
    ] {
        let root = tempfile::tempdir().expect("a folder");
        let golden = golden(root.path(), sink, EVENTS);
        let scenario = Scenario::new(root.path().join("behind"), sink, EVENTS, RATE);
        let mut child = scenario.start(&format!("{fails}=error@1+,checkpoint.after_create=kill@5"));
        let status = child.wait().expect("wait");
        assert_eq!(status.signal(), Some(9), "{}", scenario.log());
        assert!(scenario.run("").success(), "{}", scenario.log());
        let log = scenario.log();
        let recovered = log
            .matches("committing an epoch that an earlier run prepared")
            .count();
        assert!(
            recovered >= 3,
            "several were prepared and none committed: {recovered}: {log}"
        );
        assert_same("behind", &readers(&[scenario.spec()])[0], &golden);
    }
}

/// The longest that a process reads before it is killed, in ms; but where a machine is so busy that hardly
/// any comes to a commit, one of them waits for one.
const LONGEST_LIFE: u64 = 260;

/// At this rate not all events can be read before the last kill, however fast the machine is.
fn killed_at_random(sink: Sink, kills: u64, events: u64) {
    let seed = std::env::var("CALVE_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(11);
    let rate = events * 1000 / (kills * LONGEST_LIFE) * 4 / 5;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let root = tempfile::tempdir().expect("a folder");
    let golden = golden(root.path(), sink, events);
    let scenario = Scenario::new(root.path().join("killed"), sink, events, rate);
    for kill in 0..kills {
        let starts = || scenario.log().matches("took the pipeline over").count();
        let commits = || scenario.log().matches(" committed").count() as u64;
        let before = starts();
        let least = (commits() < kill / 3).then(|| commits() + 1);
        let mut child = scenario.start("");
        // One in four may die while it starts, the others live on from their claim.
        let at_once = random.random_bool(0.25);
        let life = random.random_range(20..LONGEST_LIFE);
        let mut until = Instant::now() + Duration::from_millis(life);
        let mut started = at_once;
        let patience = Instant::now() + Duration::from_secs(30);
        let waits = || least.is_some_and(|n| commits() < n) && Instant::now() < patience;
        while Instant::now() < until || !started || waits() {
            if !started && starts() > before {
                started = true;
                until = Instant::now() + Duration::from_millis(life);
            }
            calve_e2e::pause(2);
        }
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(
            status.signal(),
            Some(9),
            "seed={seed}: it ended before kill {kill}: {}",
            scenario.log()
        );
    }
    let commits = scenario.log().matches(" committed").count() as u64;
    assert!(
        commits > kills / 4,
        "killed before anything happened: {commits} commits in {kills} lives"
    );
    // One more, of which something is left for certain.
    let status = scenario.run("prepare.after_files=kill");
    assert_eq!(status.signal(), Some(9), "{}", scenario.log());
    scenario.write(events, 0, "SELECT * FROM events");
    assert!(
        scenario.run("").success(),
        "seed={seed}: {}",
        scenario.log()
    );
    // Nothing stays of all those that died.
    let before = scenario.with_leftovers();
    assert_ne!(before["leftovers"], json!([]), "seed={seed}");
    let cleaned = scenario.clean();
    let said = String::from_utf8_lossy(&cleaned.stderr);
    assert!(cleaned.status.success(), "seed={seed}: {said}");
    let found = scenario.with_leftovers();
    assert_same(&format!("seed={seed}"), &found, &golden);
    assert_eq!(found["leftovers"], json!([]), "seed={seed}: {said}");
}

#[test]
fn iceberg_killed_two_hundred_times() {
    killed_at_random(Sink::Iceberg, 200, 1_000_000);
}

#[test]
fn parquet_killed_fifty_times() {
    killed_at_random(Sink::Parquet, 50, 300_000);
}

//! What a start refuses, with the way out in the message; and two processes with one pipeline.

use std::{fs, process::Command};

use calve_e2e::{Scenario, Sink, command, readers};
use rustix::process::{Pid, Signal, kill_process};

fn wait_for(scenario: &Scenario, what: &str, times: usize) {
    for _ in 0..600 {
        if scenario.log().matches(what).count() >= times {
            return;
        }
        calve_e2e::pause(20);
    }
    panic!("did not say `{what}` {times} times: {}", scenario.log());
}

fn finished(dir: &std::path::Path, sink: Sink) -> Scenario {
    let scenario = Scenario::new(dir.join("p"), sink, 20_000, 0);
    assert!(scenario.run("").success(), "{}", scenario.log());
    scenario
}

/// Runs once more, expects a refusal with this exit code, and that the log says each of `said`.
fn refused(scenario: &Scenario, code: i32, said: &[&str]) {
    let before = scenario.log().len();
    let status = scenario.run("");
    let log = scenario.log()[before..].to_owned();
    assert_eq!(status.code(), Some(code), "{log}");
    for text in said {
        assert!(log.contains(text), "does not say `{text}`: {log}");
    }
}

#[test]
fn a_finished_pipeline_starts_and_ends_again_without_a_change() {
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let root = tempfile::tempdir().expect("a folder");
        let scenario = finished(root.path(), sink);
        let before = readers(&[scenario.spec()]);
        assert!(scenario.run("").success(), "{}", scenario.log());
        assert_eq!(readers(&[scenario.spec()]), before);
    }
}

#[test]
fn a_deleted_checkpoint_store_is_refused_until_it_is_rebuilt() {
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let root = tempfile::tempdir().expect("a folder");
        let golden = Scenario::new(root.path().join("golden"), sink, 30_000, 0);
        assert!(golden.run("").success(), "{}", golden.log());
        let scenario = finished(root.path(), sink);
        fs::remove_dir_all(scenario.dir.join("checkpoints")).expect("delete the store");
        refused(
            &scenario,
            1,
            &["the checkpoint store is empty", "calve checkpoint rebuild"],
        );
        let rebuilt = command(&["checkpoint", "rebuild", &scenario.file().to_string_lossy()]);
        assert!(rebuilt.status.success(), "{rebuilt:?}");
        scenario.write(30_000, 0, "SELECT * FROM events");
        assert!(scenario.run("").success(), "{}", scenario.log());
        let found = readers(&[scenario.spec(), golden.spec()]);
        for key in ["rows", "ids", "fingerprint", "rejects", "reject_ids"] {
            assert_eq!(found[0][key], found[1][key], "{key}: {found:?}");
        }
    }
}

#[test]
fn checkpoints_are_not_made_from_commits_where_the_table_shows_more() {
    let root = tempfile::tempdir().expect("a folder");
    let golden = Scenario::new(root.path().join("golden"), Sink::Parquet, 20_000, 0);
    assert!(golden.run("").success(), "{}", golden.log());
    let scenario = Scenario::new(root.path().join("p"), Sink::Parquet, 20_000, 100_000);
    scenario.run("parquet.commit.before_entry=kill@2");
    fs::remove_dir_all(scenario.dir.join("checkpoints")).expect("delete the store");
    let file = scenario.file();
    let rebuild = || command(&["checkpoint", "rebuild", &file.to_string_lossy()]);
    // Until nothing is left that would be there twice.
    loop {
        let done = rebuild();
        if done.status.success() {
            break;
        }
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let first = said.split("first=").nth(1).expect("it names a file");
        let first = first.split_whitespace().next().expect("a path");
        fs::remove_file(scenario.dir.join("out").join(first)).expect("the file");
    }
    assert!(scenario.run("").success(), "{}", scenario.log());
    let found = readers(&[scenario.spec(), golden.spec()]);
    // Rejects of what is read again are moved aside, where they are counted, too.
    for key in ["rows", "ids", "fingerprint", "reject_ids"] {
        assert_eq!(found[0][key], found[1][key], "{key}: {found:?}");
    }
}

#[test]
fn a_changed_sql_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = finished(root.path(), Sink::Iceberg);
    scenario.write(
        20_000,
        0,
        "SELECT id, upper(region) AS region, amount FROM events",
    );
    refused(&scenario, 2, &["changed=sql", "hint:"]);
}

/// Replaces text of the pipeline file; it must be there.
fn edit(scenario: &Scenario, from: &str, to: &str) {
    let text = fs::read_to_string(scenario.file()).expect("read");
    assert!(text.contains(from), "{from}: {text}");
    fs::write(scenario.file(), text.replace(from, to)).expect("write");
}

#[test]
fn changed_columns_are_refused() {
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let root = tempfile::tempdir().expect("a folder");
        let scenario = Scenario::new(root.path().join("p"), sink, 20_000, 0);
        let select = "SELECT id, region, amount FROM events";
        scenario.write(20_000, 0, select);
        assert!(scenario.run("").success(), "{}", scenario.log());
        let before = readers(&[scenario.spec()]);
        // The table's rows stay as they were, so only the checkpoints can tell.
        edit(
            &scenario,
            "amount: double }",
            "amount: double, extra: bigint }",
        );
        edit(&scenario, "sink:", "schema: { evolve: strict }\nsink:");
        refused(&scenario, 2, &["changed=schema", "calve checkpoint"]);
        scenario.write(20_000, 0, select);
        assert!(
            scenario.run("").success(),
            "the change put back: {}",
            scenario.log()
        );
        assert_eq!(readers(&[scenario.spec()]), before);
    }
}

#[test]
fn columns_that_do_not_fit_the_table_are_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = finished(root.path(), Sink::Iceberg);
    edit(&scenario, "amount: double }", "amount: varchar }");
    refused(&scenario, 1, &["amount", "string", "double", "hint:"]);
}

#[test]
fn a_dropped_and_recreated_table_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = finished(root.path(), Sink::Iceberg);
    fs::remove_dir_all(scenario.dir.join("lake")).expect("drop the table and its catalog");
    refused(&scenario, 1, &["dropped and created again", "hint:"]);
}

#[test]
fn a_rolled_back_table_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 20_000, 0);
    let catalog = scenario.dir.join("lake/catalog.db");
    // Killed after the first epochs; their catalog is kept and put back at the end.
    scenario.write(60_000, 100_000, "SELECT * FROM events");
    let status = scenario.run("commit.before=kill@4");
    assert!(!status.success(), "{}", scenario.log());
    let old = fs::read(&catalog).expect("read the catalog");
    // Several lives, so that on a busy machine, too, what was prepared then is retired.
    for life in 0..4 {
        scenario.write(60_000 + life * 20_000, 100_000, "SELECT * FROM events");
        assert!(scenario.run("").success(), "{}", scenario.log());
    }
    fs::write(&catalog, old).expect("put the old catalog back");
    refused(&scenario, 1, &["rolled back or restored", "hint:"]);
}

#[test]
fn the_older_of_two_processes_stops() {
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let root = tempfile::tempdir().expect("a folder");
        let scenario = Scenario::new(root.path().join("p"), sink, 60_000, 30_000);
        let mut old = scenario.start("");
        wait_for(&scenario, "committed", 1);
        assert!(
            scenario.run("").success(),
            "the newer one ends well: {}",
            scenario.log()
        );
        let status = old.wait().expect("wait");
        assert_eq!(status.code(), Some(1), "{}", scenario.log());
        assert!(
            scenario.log().contains("another process has taken over"),
            "{}",
            scenario.log()
        );
        let found = &readers(&[scenario.spec()])[0];
        assert_eq!(found["rows"], found["ids"], "{found}");
        let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
        assert_eq!(all.map(|(a, b)| a + b), Some(60_000), "{found}");
        assert_eq!(found["duckdb_rows"], found["rows"], "{found}");
    }
}

const STEPS: &[&str] = &[
    "start.before_claim",
    "start.after_claim",
    "checkpoint.before_create",
    "checkpoint.after_create",
    "write.finish.before_fsync",
    "prepare.after_files",
    "commit.before",
    "commit.after",
    "commit.between_outputs",
    "rejects.before_publish",
    "rejects.after_publish",
    "checkpoint.retire.after_floor",
    "checkpoint.retire.each",
];
const ICEBERG_STEPS: &[&str] = &[
    "iceberg.commit.before_manifest",
    "iceberg.commit.before_metadata",
    "iceberg.commit.before_cas",
    "iceberg.commit.after_cas",
];
const PARQUET_STEPS: &[&str] = &[
    "parquet.publish.each",
    "parquet.commit.before_entry",
    "parquet.commit.after_entry",
];

/// Waits until a process was stopped by a signal.
fn is_stopped(child: &std::process::Child) -> bool {
    (0..1500).any(|_| {
        calve_e2e::pause(10);
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    })
}

fn asleep_in_any_step(sink: Sink, own: &[&str]) {
    let root = tempfile::tempdir().expect("a folder");
    let points: Vec<&str> = STEPS.iter().chain(own).copied().collect();
    let mut specs = Vec::new();
    for point in &points {
        let tries = (0..5).map(|n| root.path().join(format!("{point}-{n}")));
        let scenario = tries.map(|dir| asleep(sink, dir, point)).find_map(|s| s);
        let scenario = scenario.expect("not always stopped within a transaction of SQLite");
        specs.push(scenario.spec());
    }
    for (point, found) in points.iter().zip(readers(&specs)) {
        assert_eq!(found["rows"], found["ids"], "{point}: {found}");
        let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
        assert_eq!(all.map(|(a, b)| a + b), Some(40_000), "{point}: {found}");
        assert_eq!(found["duckdb_rows"], found["rows"], "{point}: {found}");
        assert_eq!(found["doubled"], 0, "{point}: {found}");
    }
}

/// Stops a process at a point, lets another one go on, and wakes it. None: its committer, which works
/// at the same time, was stopped while it held SQLite's lock, so nobody else could go on.
fn asleep(sink: Sink, dir: std::path::PathBuf, point: &str) -> Option<Scenario> {
    // Slow enough for it to be far from its end at any point, also where commits take long.
    let scenario = Scenario::new(dir, sink, 40_000, 8_000);
    let once = point.starts_with("start") || point.contains("retire");
    let pass = if once { 1 } else { 2 };
    let mut old = scenario.start(&format!("{point}=stop@{pass}"));
    let pid = Pid::from_child(&old);
    assert!(is_stopped(&old), "{point}: not reached: {}", scenario.log());
    scenario.write(40_000, 0, "SELECT * FROM events");
    let success = scenario.run("").success();
    if !success && scenario.log().contains("holds the lock of the catalog") {
        old.kill().expect("kill");
        old.wait().expect("wait");
        return None;
    }
    assert!(success, "{point}: {}", scenario.log());
    let before = scenario.log().len();
    kill_process(pid, Signal::CONT).expect("wake it");
    let status = old.wait().expect("wait");
    let log = scenario.log().split_off(before);
    if point == "start.before_claim" {
        // It had taken nothing over yet, and so does that now, behind the end of the other.
        assert_eq!(status.code(), Some(0), "{point}: {log}");
    } else {
        assert_eq!(status.code(), Some(1), "{point}: {log}");
        let said = log.contains("another process has taken over this pipeline");
        assert!(said && log.contains("hint:"), "{point}: {log}");
    }
    Some(scenario)
}

#[test]
fn an_iceberg_process_that_was_asleep_in_any_step_stops_and_harms_nothing() {
    asleep_in_any_step(Sink::Iceberg, ICEBERG_STEPS);
}

#[test]
fn a_parquet_process_that_was_asleep_in_any_step_stops_and_harms_nothing() {
    asleep_in_any_step(Sink::Parquet, PARQUET_STEPS);
}

/// The slower has looked at the first events for their schema when the faster reads all of them.
#[test]
fn two_first_starts_with_an_inferred_schema_double_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 40_000, 0);
    edit(
        &scenario,
        "format: { json: { columns: { id: bigint, region: varchar, amount: double } } }",
        "format: json",
    );
    let mut slow = scenario.start("start.before_claim=stop");
    let pid = Pid::from_child(&slow);
    assert!(is_stopped(&slow), "{}", scenario.log());
    assert!(scenario.run("").success(), "{}", scenario.log());
    kill_process(pid, Signal::CONT).expect("wake it");
    let status = slow.wait().expect("wait");
    assert_eq!(status.code(), Some(0), "{}", scenario.log());
    let found = &readers(&[scenario.spec()])[0];
    let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
    assert_eq!(all.map(|(a, b)| a + b), Some(40_000), "{found}");
    assert_eq!(found["duckdb_rows"], found["rows"], "{found}");
    assert_eq!(found["rows"], found["ids"], "{found}");
}

#[test]
fn sigterm_commits_and_exits_zero() {
    let root = tempfile::tempdir().expect("a folder");
    for (name, sink) in [("iceberg", Sink::Iceberg), ("parquet", Sink::Parquet)] {
        let scenario = Scenario::new(root.path().join(name), sink, 1_000_000, 20_000);
        let mut child = scenario.start("");
        wait_for(&scenario, "committed", 2);
        kill_process(Pid::from_child(&child), Signal::TERM).expect("terminate");
        let status = child.wait().expect("wait");
        assert_eq!(status.code(), Some(0), "{}", scenario.log());
        let found = scenario.with_leftovers();
        assert!(found["rows"].as_u64() > Some(0), "{found}");
        // What was read is there, and nothing else.
        let log = scenario.log();
        let read = log.split("events read").nth(1).unwrap_or_default();
        let read = read.split_whitespace().next().unwrap_or_default();
        let read: u64 = read.replace(',', "").parse().expect("a number of events");
        let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
        assert_eq!(all.map(|(a, b)| a + b), Some(read), "{found}: {log}");
        assert_eq!(found["leftovers"], serde_json::json!([]), "{found}");
    }
}

#[test]
fn a_wrong_pipeline_file_exits_two_and_says_where() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 10, 0);
    let text = fs::read_to_string(scenario.file())
        .expect("read")
        .replace("commit:", "comit:");
    fs::write(scenario.file(), text).expect("write");
    let done = command(&["check", scenario.file().to_str().expect("UTF-8")]);
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        said.contains("comit") && said.contains("commit"),
        "suggests the key: {said}"
    );
}

/// Mounts need a namespace of their own: the test runs again inside of one.
#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let inside = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().expect("the test's own path"))
        .args([
            "--exact",
            "refusals::within_a_small_file_system",
            "--ignored",
            "--nocapture",
        ])
        .env("CALVE_SMALL", root.path())
        .output()
        .expect("unshare (util-linux) makes a mount namespace for this test");
    let said = String::from_utf8_lossy(&inside.stdout);
    let failed = String::from_utf8_lossy(&inside.stderr);
    assert!(
        inside.status.success() && said.contains("1 passed"),
        "{said}{failed}\nthis test needs user namespaces (kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)"
    );
}

#[test]
#[ignore = "run by a_full_disk_is_an_error_and_loses_nothing, in a mount namespace"]
fn within_a_small_file_system() {
    let root = std::env::var_os("CALVE_SMALL").expect("set by the test that runs this one");
    let root = std::path::Path::new(&root);
    // Half of what all events need; the catalog and metadata of Iceberg need some, too.
    for (sink, folder, size) in [
        (Sink::Iceberg, "lake", "size=1m"),
        (Sink::Parquet, "out", "size=500k"),
    ] {
        let scenario = Scenario::new(root.join(folder), sink, 200_000, 0);
        let lake = scenario.dir.join(folder);
        fs::create_dir_all(&lake).expect("a folder");
        let mount = |options: &[&str]| {
            let mut mount = Command::new("mount");
            let status = mount.args(options).arg(&lake).status().expect("mount");
            assert!(status.success(), "cannot mount a small file system");
        };
        mount(&["-t", "tmpfs", "-o", size, "tmpfs"]);
        let begun = std::time::Instant::now();
        let status = scenario.run("");
        let log = scenario.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("No space left"), "{log}");
        assert!(log.contains("hint:") && log.contains("free space"), "{log}");
        let took = begun.elapsed();
        assert!(
            took.as_secs() < 20,
            "a full disk is not waited for: {took:?}"
        );
        // Room for the rest; what was committed before stays.
        mount(&["-o", "remount,size=200m"]);
        assert!(scenario.run("").success(), "{}", scenario.log());
        let found = &readers(&[scenario.spec()])[0];
        let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
        assert_eq!(all.map(|(a, b)| a + b), Some(200_000), "{found}");
        assert_eq!(found["duckdb_rows"], found["rows"], "{found}");
        assert_eq!(found["rows"], found["ids"], "{found}");
    }
}

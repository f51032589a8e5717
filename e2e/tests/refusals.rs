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
fn a_deleted_checkpoint_store_is_refused() {
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let root = tempfile::tempdir().expect("a folder");
        let scenario = finished(root.path(), sink);
        fs::remove_dir_all(scenario.dir.join("checkpoints")).expect("delete the store");
        refused(
            &scenario,
            1,
            &["the checkpoint store is empty", "calve checkpoint rebuild"],
        );
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
    assert!(scenario.run("").success(), "{}", scenario.log());
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
    }
}

#[test]
fn a_process_that_was_asleep_in_any_step_stops_and_harms_nothing() {
    let points = [
        "checkpoint.before_create",
        "checkpoint.after_create",
        "prepare.after_files",
        "commit.before",
        "iceberg.commit.before_manifest",
        "iceberg.commit.before_metadata",
        "iceberg.commit.before_cas",
        "iceberg.commit.after_cas",
        "rejects.before_publish",
        "commit.after",
    ];
    for point in points {
        let root = tempfile::tempdir().expect("a folder");
        let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 40_000, 60_000);
        let mut old = scenario.start(&format!("{point}=stop@3"));
        let pid = Pid::from_child(&old);
        let stopped = (0..500).any(|_| {
            calve_e2e::pause(10);
            let stat = fs::read_to_string(format!("/proc/{}/stat", old.id())).unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        });
        assert!(stopped, "{point}: not reached: {}", scenario.log());
        assert!(scenario.run("").success(), "{point}: {}", scenario.log());
        kill_process(pid, Signal::CONT).expect("wake it");
        let status = old.wait().expect("wait");
        assert_eq!(status.code(), Some(1), "{point}: {}", scenario.log());
        let found = &readers(&[scenario.spec()])[0];
        assert_eq!(found["rows"], found["ids"], "{point}: {found}");
        let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
        assert_eq!(all.map(|(a, b)| a + b), Some(40_000), "{point}: {found}");
        assert_eq!(found["doubled"], 0, "{point}: {found}");
    }
}

#[test]
fn sigterm_commits_and_exits_zero() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 1_000_000, 20_000);
    let mut child = scenario.start("");
    wait_for(&scenario, "committed", 2);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("terminate");
    assert_eq!(
        child.wait().expect("wait").code(),
        Some(0),
        "{}",
        scenario.log()
    );
    let found = &readers(&[scenario.spec()])[0];
    assert!(found["rows"].as_u64() > Some(0));
    assert_eq!(found["unreferenced"], 0, "nothing is left over: {found}");
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

#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 200_000, 0);
    let lake = scenario.dir.join("lake");
    fs::create_dir_all(&lake).expect("a folder");
    let mount = |args: &[&str]| {
        Command::new("mount")
            .args(args)
            .arg(&lake)
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"]) {
        println!("not run: this test mounts a small file system, which needs root");
        return;
    }
    let status = scenario.run("");
    let log = scenario.log();
    // Room for the rest; what was committed before stays.
    let grown = mount(&["-o", "remount,size=200m"]);
    let again = grown && scenario.run("").success();
    let found = again.then(|| readers(&[scenario.spec()]).remove(0));
    Command::new("umount").arg(&lake).status().expect("umount");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("No space left"), "{log}");
    let found = found.unwrap_or_else(|| panic!("the next start failed: {}", scenario.log()));
    let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
    assert_eq!(all.map(|(a, b)| a + b), Some(200_000), "{found}");
    assert_eq!(found["rows"], found["ids"], "{found}");
}

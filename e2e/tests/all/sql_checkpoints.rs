//! Checkpoints in a SQL database: the binary is killed at each point of the checkpoint store, and the
//! commands look at them. The store itself is tested in its crate, also over PostgreSQL.

use std::{fs, os::unix::process::ExitStatusExt};

use calve_e2e::{Scenario, Sink, command, readers};

const EVENTS: u64 = 60_000;

fn with_sql(dir: std::path::PathBuf, rate: u64) -> Scenario {
    let scenario = Scenario::new(dir, Sink::Iceberg, EVENTS, rate);
    let text = fs::read_to_string(scenario.file()).expect("read");
    let dir = scenario.dir.display();
    let (from, to) = (
        format!("path: \"{dir}/checkpoints\""),
        format!("sql: \"sqlite:{dir}/state/checkpoints.db\""),
    );
    assert!(text.contains(&from), "{text}");
    fs::write(scenario.file(), text.replace(&from, &to)).expect("write");
    scenario
}

#[test]
fn killed_at_each_point_of_the_store() {
    let root = tempfile::tempdir().expect("a folder");
    let golden = with_sql(root.path().join("golden"), 0);
    assert!(golden.run("").success(), "{}", golden.log());
    let golden_found = readers(&[golden.spec()]).remove(0);
    let faults = [
        "start.before_claim=kill",
        "start.after_claim=kill",
        "checkpoint.before_create=kill@3",
        "checkpoint.after_create=kill@3",
        "checkpoint.after_create=error@3",
        "checkpoint.retire.after_floor=kill",
        "checkpoint.retire.each=kill",
    ];
    let mut specs = Vec::new();
    for (n, fault) in faults.iter().enumerate() {
        let scenario = with_sql(root.path().join(n.to_string()), 150_000);
        let status = scenario.run(fault);
        let expected = fault.contains("kill").then_some(9);
        assert_eq!(status.signal(), expected, "{fault}: {}", scenario.log());
        assert!(scenario.run("").success(), "{fault}: {}", scenario.log());
        assert!(!scenario.dir.join("checkpoints").exists());
        specs.push(scenario.spec());
    }
    for (fault, found) in faults.iter().zip(readers(&specs)) {
        for key in ["rows", "ids", "fingerprint", "rejects", "doubled"] {
            assert_eq!(found[key], golden_found[key], "{fault}: {key}: {found}");
        }
    }
}

#[test]
fn the_commands_work_with_it() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = with_sql(root.path().join("p"), 0);
    let file = scenario.file();
    let file = file.to_str().expect("UTF-8");
    let run = |args: &[&str]| {
        let done = command(args);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{args:?}: {said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    run(&["check", file]);
    run(&["checkpoint", "ls", file]);
    let state = scenario.dir.join("state");
    assert!(!state.exists(), "looking created something");
    assert!(scenario.run("").success(), "{}", scenario.log());
    let listed = run(&["checkpoint", "ls", file]);
    assert!(listed.contains("checkpoint"), "{listed}");
    let shown = run(&["checkpoint", "show", file]);
    assert!(shown.contains("\"epoch\""), "{shown}");
    let reset = run(&["checkpoint", "reset", file, "--yes"]);
    assert!(reset.contains("records_deleted"), "{reset}");
    assert!(scenario.run("").success(), "{}", scenario.log());
    let found = &readers(&[scenario.spec()])[0];
    assert_eq!(
        found["rows"].as_u64(),
        found["ids"].as_u64().map(|n| n * 2),
        "read a second time after the reset: {found}"
    );
}

#[test]
fn a_password_is_never_shown() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = with_sql(root.path().join("p"), 0);
    let text = fs::read_to_string(scenario.file()).expect("read");
    let at = text.find("\"sqlite:").expect("the URL") + 1;
    let end = at + text[at..].find('"').expect("its end");
    // Whether the build knows PostgreSQL or not, nobody listens there.
    let url = "postgres://calve:hunter2@127.0.0.1:1/db?password=hunter3";
    let text = format!("{}{url}{}", &text[..at], &text[end..]);
    fs::write(scenario.file(), text).expect("write");
    let file = scenario.file();
    for args in [&["check"][..], &["checkpoint", "ls"], &["run"]] {
        let done = command(&[args, &[file.to_str().expect("UTF-8")]].concat());
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("127.0.0.1"), "{args:?}: {said}");
        assert!(!said.contains("hunter"), "{args:?}: {said}");
    }
}

//! Compaction, expiry, cleaning and verification by the real binary: beside a running pipeline, after
//! another engine's deletes, and killed at every step.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Output, Stdio},
};

use calve_e2e::{Scenario, Sink, calve, python, readers};

/// `calve table COMMAND …` on the scenario's table.
fn table(scenario: &Scenario, command: &str, args: &[&str], fault: &str) -> Output {
    let mut calve = Command::new(calve());
    calve.args(["table", command, "--catalog"]);
    calve.arg(scenario.dir.join("lake/catalog.db"));
    if command != "compact" {
        calve
            .arg("--checkpoint")
            .arg(scenario.dir.join("checkpoints"));
    }
    calve.args(args).arg("shop.orders").stdin(Stdio::null());
    if !fault.is_empty() {
        calve.env("CALVE_FAULT", fault);
    }
    calve.output().expect("run calve")
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

fn well(scenario: &Scenario, command: &str, args: &[&str]) -> String {
    let done = table(scenario, command, args, "");
    assert!(done.status.success(), "{command}: {}", said(&done));
    said(&done)
}

const SMALL: &[&str] = &["--min-files", "2", "--all", "--memory", "32MiB"];
const OLD: &[&str] = &["--older-than", "0s", "--keep", "2"];

#[test]
fn compaction_beside_a_pipeline_loses_and_doubles_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 240_000, 30_000);
    let text = std::fs::read_to_string(scenario.file()).expect("read");
    let slower = text.replace("every: 40ms", "every: 200ms");
    assert_ne!(text, slower);
    std::fs::write(scenario.file(), slower).expect("write");
    let mut running = scenario.start("");
    let mut compacted = 0;
    while running.try_wait().expect("look").is_none() {
        calve_e2e::pause(300);
        if !scenario.dir.join("lake/catalog.db").exists() {
            continue;
        }
        let done = table(&scenario, "compact", SMALL, "");
        // The table itself comes a moment after the catalog.
        let early = said(&done).contains("no such table");
        assert!(done.status.success() || early, "{}", said(&done));
        compacted += usize::from(!done.stdout.is_empty());
        if compacted == 3 {
            well(&scenario, "expire", OLD);
        }
    }
    let status = running.wait().expect("wait");
    assert!(status.success(), "{}", scenario.log());
    assert!(compacted >= 4, "compaction met the pipeline: {compacted}");
    let found = &readers(&[scenario.spec()])[0];
    let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
    assert_eq!(all.map(|(a, b)| a + b), Some(240_000), "{found}");
    assert_eq!(found["rows"], found["ids"], "{found}");
    assert_eq!(found["rows"], found["duckdb_rows"], "{found}");
    well(&scenario, "verify", &[]);

    // Another engine deletes rows; then everything is tidied up, and no row changes.
    let deleted = &python("delete_rows.py", &[scenario.spec()])[0];
    assert!(
        deleted["deleted"].as_u64().is_some_and(|n| n > 0),
        "{deleted}"
    );
    let before = &readers(&[scenario.spec()])[0];
    assert_ne!(before["rows"], found["rows"]);
    well(&scenario, "compact", SMALL);
    let expired = table(&scenario, "expire", OLD, "");
    assert!(expired.status.success(), "{}", said(&expired));
    let removed = String::from_utf8_lossy(&expired.stdout);
    assert!(removed.contains(".parquet"), "{}", said(&expired));
    assert!(scenario.clean().status.success());
    let after = &readers(&[scenario.spec()])[0];
    for key in ["rows", "ids", "fingerprint", "duckdb_rows"] {
        assert_eq!(before[key], after[key], "{key}: {before} against {after}");
    }
    let files = |found: &serde_json::Value| found["files"].as_u64().expect("a number");
    assert!(files(after) <= 3, "one file a region: {after}");
    well(&scenario, "verify", &["--json"]);
}

#[test]
fn killed_at_each_step_the_table_stays_whole() {
    let root = tempfile::tempdir().expect("a folder");
    let faults = [
        ("compact", "write.finish.before_fsync=kill"),
        ("compact", "iceberg.compact.before_commit=kill"),
        ("compact", "iceberg.commit.before_manifest=kill"),
        ("compact", "iceberg.commit.before_metadata=kill"),
        ("compact", "iceberg.commit.before_cas=kill"),
        ("compact", "iceberg.commit.after_cas=kill"),
        ("expire", "iceberg.commit.before_cas=kill"),
        ("expire", "iceberg.commit.after_cas=kill"),
        ("expire", "iceberg.expire.before_remove=kill"),
        ("expire", "iceberg.expire.each=kill@3"),
    ];
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 20_000, 0);
    for (n, (command, fault)) in faults.iter().enumerate() {
        // A second life of the same pipeline, so that there is something to do each time; not so fast
        // that a busy machine makes one commit of it.
        scenario.write(20_000 * (n as u64 + 1), 50_000, "SELECT * FROM events");
        assert!(scenario.run("").success(), "{}", scenario.log());
        let before = &readers(&[scenario.spec()])[0];
        let args = if *command == "compact" { SMALL } else { OLD };
        let killed = table(&scenario, command, args, fault);
        assert_eq!(
            killed.status.signal(),
            Some(9),
            "{fault}: not reached: {}",
            said(&killed)
        );
        let cleaned = scenario.clean();
        assert!(cleaned.status.success(), "{fault}: {}", said(&cleaned));
        // Of what was written and not committed nothing stays; what was committed does.
        let left = String::from_utf8_lossy(&cleaned.stdout).contains("/compact-");
        let lost = *command == "compact" && !fault.contains("after_cas");
        assert_eq!(left, lost, "{fault}: {}", said(&cleaned));
        let verified = table(&scenario, "verify", &[], "");
        assert!(verified.status.success(), "{fault}: {}", said(&verified));
        let after = &readers(&[scenario.spec()])[0];
        for key in ["rows", "ids", "fingerprint", "duckdb_rows"] {
            assert_eq!(before[key], after[key], "{fault} {key}");
        }
    }
    let before = &readers(&[scenario.spec()])[0];
    let lost = table(&scenario, "compact", SMALL, "iceberg.commit.after_cas=lost");
    assert!(lost.status.success(), "looked up: {}", said(&lost));
    let after = &readers(&[scenario.spec()])[0];
    assert_eq!(before["fingerprint"], after["fingerprint"]);
    well(&scenario, "verify", &[]);
}

#[test]
fn verification_tells_what_is_wrong_and_fails() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 5_000, 0);
    assert!(scenario.run("").success(), "{}", scenario.log());
    assert!(well(&scenario, "verify", &[]).contains("nothing is wrong"));
    let data = scenario.dir.join("lake/shop/orders/data/region=eu");
    let file = std::fs::read_dir(data)
        .expect("a folder")
        .next()
        .expect("a file")
        .expect("an entry")
        .path();
    std::fs::remove_file(&file).expect("removed");
    let found = table(&scenario, "verify", &["--json"], "");
    assert_eq!(found.status.code(), Some(1), "{}", said(&found));
    let line = String::from_utf8_lossy(&found.stdout).into_owned();
    let finding: serde_json::Value = serde_json::from_str(line.trim()).expect("one JSON object");
    assert_eq!(finding["kind"], "file");
    let name = file
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert!(
        finding["what"]
            .as_str()
            .is_some_and(|what| what.contains(&name))
    );
}

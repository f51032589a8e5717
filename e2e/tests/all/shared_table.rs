//! Another engine writes to calve's table while calve runs, and `clean` leaves nothing behind.

use calve_e2e::{Scenario, Sink, readers};
use serde_json::json;

#[test]
fn a_second_writer_costs_retries_and_no_data() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 450_000, 30_000);
    // An overwrite reads the table before it commits; at 25 commits a second it would always lose.
    let text = std::fs::read_to_string(scenario.file()).expect("read");
    let slower = text.replace("every: 40ms", "every: 700ms");
    assert_ne!(text, slower);
    std::fs::write(scenario.file(), slower).expect("write");
    let mut calve = scenario.start("");
    let other = scenario.second_writer();
    let status = calve.wait().expect("wait");
    std::fs::write(scenario.dir.join("stop"), "").expect("stop the second writer");
    let other = other.wait_with_output().expect("wait");
    let did = String::from_utf8_lossy(&other.stdout).into_owned();
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(other.status.success(), "{said}");
    for what in ["appended", "overwritten", "expired"] {
        assert!(did.contains(what), "the second writer never {what}: {did}");
    }
    assert!(status.success(), "{did}: {}", scenario.log());
    let found = &readers(&[scenario.spec()])[0];
    let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
    assert_eq!(all.map(|(a, b)| a + b), Some(450_000), "{did}: {found}");
    assert_eq!(found["duckdb_rows"], found["rows"], "{did}: {found}");
    assert_eq!(found["rows"], found["ids"], "{did}: {found}");
}

#[test]
fn clean_leaves_no_file_of_a_killed_run_behind() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 60_000, 150_000);
    assert!(!scenario.run("prepare.after_files=kill@3").success());
    assert!(scenario.run("").success(), "{}", scenario.log());
    let before = scenario.with_leftovers();
    assert_ne!(before["unreferenced"], 0, "the kill left files: {before}");
    let cleaned = scenario.clean();
    let said = String::from_utf8_lossy(&cleaned.stderr).into_owned();
    assert!(cleaned.status.success(), "{said}");
    let after = scenario.with_leftovers();
    assert_eq!(after["unreferenced"], 0, "{said}: {after}");
    assert_eq!(after["leftovers"], json!([]), "{said}: {after}");
    assert_eq!(after["fingerprint"], before["fingerprint"], "{after}");
    assert_eq!(after["duckdb_rows"], before["duckdb_rows"], "{after}");
}

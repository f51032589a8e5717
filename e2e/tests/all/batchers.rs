//! The result does not depend on the number of batchers: the same rows in the same order within each
//! table partition, and the same rejects, whether one thread did it or eight.

use std::fs;

use calve_e2e::{Scenario, Sink, python};
use serde_json::Value;

const EVENTS: u64 = 300_000;

fn runs(sink: Sink) {
    let root = tempfile::tempdir().expect("a folder");
    let mut specs = Vec::new();
    for batchers in 1..=8 {
        let scenario = Scenario::new(root.path().join(batchers.to_string()), sink, EVENTS, 0);
        // Small files, so that order also spans files of one epoch.
        let text = fs::read_to_string(scenario.file())
            .expect("read")
            .replace("commit: { ", "commit: { target_file_size: 64KiB, ");
        let text = format!("{text}limits: {{ batchers: {batchers} }}\n");
        fs::write(scenario.file(), text).expect("write");
        assert!(scenario.run("").success(), "{}", scenario.log());
        specs.push(scenario.spec());
    }
    let found = python("order.py", &specs);
    let one = &found[0];
    let partitions = one["partitions"].as_object().expect("a map");
    assert_eq!(partitions.len(), 3, "{one}");
    let rows: u64 = partitions.values().filter_map(|p| p[0].as_u64()).sum();
    let rejects = one["rejects"].as_array().map_or(0, Vec::len) as u64;
    assert!(rejects > 0, "some were malformed: {one}");
    assert_eq!(rows + rejects, EVENTS, "{one}");
    assert!(
        partitions.values().all(|p| p[2] == Value::Bool(true)),
        "events of one source partition stay in order: {one}"
    );
    assert!(one["files"].as_u64() > Some(6), "several files each: {one}");
    for (batchers, other) in (1..).zip(&found) {
        for key in ["partitions", "rejects"] {
            assert_eq!(other[key], one[key], "batchers={batchers}: {key} differ");
        }
    }
}

#[test]
fn one_to_eight_batchers_write_the_same_iceberg_table() {
    runs(Sink::Iceberg);
}

#[test]
fn one_to_eight_batchers_write_the_same_parquet() {
    runs(Sink::Parquet);
}

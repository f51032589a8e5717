//! Memory stays within `limits.memory` and a fixed overhead, whatever comes. `scripts/prove-memory` does
//! the same with larger numbers under a hard limit of the system.
#![cfg(target_os = "linux")]

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use calve_e2e::{calve, pause};

const MIB: u64 = 1 << 20;
/// What the process takes beside its budget, at the most.
const OVERHEAD: u64 = 128 * MIB;

/// Runs a pipeline; its rows, and the most anonymous memory that it was seen to have.
fn run(dir: &Path, memory: u64, text: &str) -> (u64, u64) {
    let at = dir.display();
    let text = format!(
        "name: memory\n{text}\nrejects: {{ path: \"{at}/rejects\" }}\nlimits: {{ memory: {}MiB }}\n",
        memory / MIB
    );
    let file = dir.join("p.yaml");
    fs::write(&file, text.replace("DIR", &at.to_string())).expect("write");
    let log = fs::File::create(dir.join("log")).expect("a log");
    let mut child = Command::new(calve())
        .args(["run", &file.to_string_lossy(), "--log", "json"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("run calve");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let code = loop {
        if let Some(code) = child.try_wait().expect("its state") {
            break code;
        }
        let held = fs::read_to_string(&status).unwrap_or_default();
        let anonymous = held.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib = anonymous.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0) * 1024);
        pause(5);
    };
    let log = fs::read_to_string(dir.join("log")).expect("its log");
    assert!(code.success(), "{log}");
    let rows = log.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let fields = &line["fields"];
        (fields["message"] == "committed").then(|| fields["rows"].as_u64().expect("rows"))
    });
    (rows.sum(), most)
}

/// Every row arrives, and memory stays where it belongs.
fn within(memory: u64, rows: u64, text: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    holds(dir.path(), memory, rows, text);
}

fn holds(dir: &Path, memory: u64, rows: u64, text: &str) {
    let (written, most) = run(dir, memory, text);
    assert_eq!(written, rows);
    assert!(most > 8 * MIB, "{most} bytes: was it measured?");
    assert!(most <= memory + OVERHEAD, "{} MiB", most / MIB);
}

#[test]
fn thousands_of_table_partitions_that_are_open_at_once() {
    let text = "
source:
  generator:
    kind: template
    count: 200000
    fields: { id: { sequence: 1 }, device: { integer: [1, 5000] }, value: { uniform: [0, 100] } }
format: { json: { columns: { id: bigint, device: bigint, value: double } } }
sink:
  iceberg: { catalog: { sqlite: DIR/lake/catalog.db, warehouse: DIR/lake }, table: a.b, partition_by: [device] }";
    within(64 * MIB, 200_000, text);
}

#[test]
fn a_window_that_is_far_larger_than_its_share() {
    let text = "
source: { generator: { kind: sales, count: 3000000 } }
format: { json: { columns: { ts: bigint, user_id: bigint, region: varchar, amount: double, sku: varchar } } }
event_time: { column: ts, unit: s }
window: { fixed: 365d }
sink: { parquet: { path: DIR/out } }";
    within(64 * MIB, 3_000_000, text);
}

#[test]
fn events_that_become_a_thousand_rows_each() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut lines = String::new();
    for id in 0..10_000 {
        let _ = writeln!(
            lines,
            "{{\"id\":{id},\"name\":\"a name of some length {id}\"}}"
        );
    }
    fs::write(dir.path().join("in.ndjson"), lines).expect("write");
    let text = "
source: { file: { path: DIR/in.ndjson, chunk_bytes: 16KiB } }
format: { json: { columns: { id: bigint, name: varchar } } }
transform:
  sql: SELECT id, name, unnest(generate_series(1, 1000)) AS n FROM events
sink: { parquet: { path: DIR/out } }";
    holds(dir.path(), 64 * MIB, 10_000_000, text);
}

#[test]
fn events_that_are_a_tenth_of_the_budget() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut lines = String::new();
    for id in 0..20 {
        // Not the same byte again and again, which a codec would make nothing of.
        let body: String = (0..8_000_000_u64)
            .map(|n| char::from(b'a' + ((n * n / 7 + id) % 26) as u8))
            .collect();
        let _ = writeln!(lines, "{{\"id\":{id},\"body\":\"{body}\"}}");
    }
    fs::write(dir.path().join("in.ndjson"), lines).expect("write");
    let text = "
source: { file: { path: DIR/in.ndjson } }
format: { json: { columns: { id: bigint, body: varchar } } }
sink: { parquet: { path: DIR/out } }";
    holds(dir.path(), 80 * MIB, 20, text);
}

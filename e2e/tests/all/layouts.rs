//! The presets of a plain Parquet table's folders: each row lies where its own time and type say, and readers
//! take that from the names of the folders.

use std::{collections::BTreeSet, fs, path::Path};

use calve_e2e::{Running, python};
use serde_json::json;

const EVENTS: u64 = 600;
/// So many seconds after each other, over five days from 2025-12-31 at 04:00 UTC.
const APART: u64 = 613;
const FIRST: u64 = 1_767_153_600;

/// The folders below one that hold files, without calve's own.
fn folders(root: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(below).expect("a folder") {
        let path = entry.expect("an entry").path();
        let own = path.file_name().is_some_and(|name| name == "_calve");
        if path.is_dir() && !own {
            folders(root, &path, found);
        } else if path.extension().is_some_and(|end| end == "parquet") {
            let folder = below.strip_prefix(root).expect("below it");
            found.insert(folder.display().to_string());
        }
    }
}

#[test]
fn the_presets_are_read_as_hive_folders() {
    let root = tempfile::tempdir().expect("a folder");
    let lines = (0..EVENTS).map(|n| {
        // Types that no folder could be called as they are.
        let kind = [json!("fee"), json!("a/b"), json!(null)][n as usize % 3].clone();
        let event = json!({ "id": n, "ts": FIRST + n * APART, "event_type": kind });
        format!("{event}\n")
    });
    let events = root.path().join("events.ndjson");
    fs::write(&events, lines.collect::<String>()).expect("events");

    let day = "CAST(year AS INT) <> year(ts) OR CAST(month AS INT) <> month(ts) OR CAST(day AS INT) <> day(ts)";
    let hour = format!("{day} OR CAST(hour AS INT) <> hour(ts)");
    let kind =
        "event_type IS DISTINCT FROM CASE id % 3 WHEN 0 THEN 'fee' WHEN 1 THEN 'a/b' ELSE NULL END";
    let hours = (EVENTS - 1) * APART / 3600 + 1;
    let mut specs = Vec::new();
    for (layout, wrong, count, one) in [
        ("date", day, 5, "year=2026/month=01/day=03"),
        (
            "date_hour",
            hour.as_str(),
            hours,
            "year=2025/month=12/day=31/hour=04",
        ),
        (
            "date_hour_type",
            hour.as_str(),
            3 * hours,
            "year=2026/month=01/day=01/hour=00/event_type=fee",
        ),
    ] {
        let dir = root.path().join(layout);
        fs::create_dir(&dir).expect("a folder");
        let (from, at) = (events.display(), dir.display());
        let text = format!(
            "name: layouts\n\
             source: {{ file: {{ path: \"{from}\" }} }}\n\
             format: {{ json: {{ columns: {{ id: bigint, ts: bigint, event_type: varchar }} }} }}\n\
             transform: {{ sql: \"SELECT id, to_timestamp_seconds(ts) AS ts, event_type FROM events\" }}\n\
             sink: {{ parquet: {{ path: \"{at}/out\", layout: {layout}, time_column: ts }} }}\n"
        );
        let file = dir.join("layouts.yaml");
        fs::write(&file, text).expect("the pipeline file");
        let status = Running::start(&dir, &file, "", &[]).wait();
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(status.success(), "{layout}: {log}");

        let (out, mut found) = (dir.join("out"), BTreeSet::new());
        folders(&out, &out, &mut found);
        assert_eq!(found.len() as u64, count, "{layout}: {found:?}");
        assert!(found.contains(one), "{layout}: {found:?}");
        let all = format!(
            "SELECT count(*), count(DISTINCT id), count(*) FILTER ({wrong}), count(*) FILTER ({kind}) FROM t"
        );
        specs.push(json!({ "folder": out, "queries": [all] }));
    }
    for found in python("hive.py", &specs) {
        assert_eq!(found, json!([[[EVENTS, EVENTS, 0, 0]]]));
    }
}

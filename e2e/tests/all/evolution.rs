//! Schemas that evolve: new fields in the middle of a stream, at any depth; columns that are declared
//! anew; another engine that changes the table meanwhile. Nothing is lost, nothing is there twice, and
//! the table's schema changes in the commit of the first rows that need it.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf, process::ExitStatus};

use calve_e2e::{Running, python};
use serde_json::{Value, json};

/// Events of one file; more than what the first schema is inferred from.
const EVENTS: u64 = 25_000;

struct Job {
    dir: PathBuf,
}

impl Job {
    fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("in")).expect("a folder");
        Self { dir }
    }

    /// A file of events, numbered from `first`.
    fn events(&self, name: &str, first: u64, event: impl Fn(u64) -> Value) {
        let lines = (first..first + EVENTS).map(|n| format!("{}\n", event(n)));
        fs::write(self.dir.join("in").join(name), lines.collect::<String>()).expect("written");
    }

    /// Three versions of events, one in each file.
    fn versions(&self) {
        let place = |n: u64| json!({ "zip": n % 100 });
        self.events(
            "a.ndjson",
            0,
            |n| json!({ "id": n, "name": format!("n{n}"), "place": place(n) }),
        );
        self.events("b.ndjson", EVENTS, |n| {
            let mut at = place(n);
            at["town"] = json!(format!("t{}", n % 7));
            json!({ "id": n, "place": at, "price": n as f64 / 4.0, "none": null, "empty": [] })
        });
        self.events("c.ndjson", 2 * EVENTS, |n| {
            let tags: Vec<u64> = (0..n % 3).collect();
            json!({ "tags": tags, "id": n, "name": "c", "empty": ["now"] })
        });
    }

    fn write(&self, format: &str, more: &str) {
        let dir = self.dir.display();
        let text = format!(
            "name: evolving\n\
             source: {{ file: {{ path: \"{dir}/in/*\", chunk_bytes: 64KiB }} }}\n\
             format: {format}\n\
             {more}\n\
             commit: {{ every: 40ms, min_interval: 10ms }}\n\
             checkpoint: {{ path: \"{dir}/checkpoints\" }}\n\
             rejects: {{ path: \"{dir}/rejects\" }}\n"
        );
        fs::write(self.file(), text).expect("write the pipeline file");
    }

    fn iceberg(&self, more: &str) -> String {
        let dir = self.dir.display();
        format!(
            "sink: {{ iceberg: {{ catalog: {{ sqlite: \"{dir}/lake/catalog.db\", warehouse: \"{dir}/lake\" }}, \
             table: shop.orders{more} }} }}"
        )
    }

    fn file(&self) -> PathBuf {
        self.dir.join("evolving.yaml")
    }

    fn run(&self, fault: &str) -> ExitStatus {
        Running::start(&self.dir, &self.file(), fault, &[]).wait()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn ask(&self, queries: &[&str]) -> Value {
        self.spec(json!({ "queries": queries }))
    }

    fn spec(&self, mut spec: Value) -> Value {
        spec["dir"] = json!(self.dir);
        python("evolution.py", &[spec]).remove(0)
    }

    fn rejects(&self) -> u64 {
        let mut found = 0;
        let mut folders = vec![self.dir.join("rejects")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found += fs::read_to_string(path).expect("read").lines().count() as u64;
                }
            }
        }
        found
    }
}

/// What the three versions amount to, field by field.
const ALL: &[&str] = &[
    "SELECT count(*), count(DISTINCT id), sum(id), min(id), max(id) FROM {t}",
    "SELECT count(name), count(price), count(place), count(place.zip), count(place.town), count(tags), count(empty) FROM {t}",
    "SELECT sum(price), sum(place.zip), sum(len(tags)), count(DISTINCT place.town) FROM {t}",
    "SELECT count(*) FROM {t} WHERE price IS NOT NULL AND (price <> id / 4 OR place.town <> 't' || (id % 7)) OR \
     name IS NOT NULL AND name NOT IN ('c', 'n' || id)",
];

fn all_is_there(rows: &Value) {
    let n = 3 * EVENTS;
    let numbers = |from: u64, to: u64| (from..to).sum::<u64>();
    assert_eq!(rows[0][0], json!([n, n, numbers(0, n), 0, n - 1]));
    assert_eq!(
        rows[1][0],
        json!([
            2 * EVENTS,
            EVENTS,
            2 * EVENTS,
            2 * EVENTS,
            EVENTS,
            EVENTS,
            EVENTS
        ])
    );
    let price = numbers(EVENTS, 2 * EVENTS) as f64 / 4.0;
    let zips: u64 = (0..2 * EVENTS).map(|n| n % 100).sum();
    let tags: u64 = (2 * EVENTS..n).map(|n| n % 3).sum();
    assert_eq!(rows[2][0], json!([price, zips, tags, 7]));
    assert_eq!(rows[3][0][0], 0, "a value is in the wrong row");
}

#[test]
fn new_fields_become_columns_whatever_is_killed() {
    let root = tempfile::tempdir().expect("a folder");
    let faults = [
        "",
        "checkpoint.after_create=kill@2",
        "checkpoint.before_create=kill@3",
        "start.before_claim=kill@2",
        "start.after_claim=kill@2",
        "start.after_claim=kill@3",
        "commit.before=kill@2",
        "iceberg.commit.before_metadata=kill@2",
        "iceberg.commit.before_cas=kill@2",
        "iceberg.commit.after_cas=kill@3",
        "iceberg.commit.after_cas=lost@2",
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        let job = Job::new(root.path().join(n.to_string()));
        job.versions();
        job.write("{ json: {} }", &job.iceberg(""));
        let ended = job.run(fault);
        if fault.contains("kill") {
            assert_eq!(ended.signal(), Some(9), "{fault}: {}", job.log());
            assert!(job.run("").success(), "{fault}: {}", job.log());
        } else {
            assert!(ended.success(), "{fault}: {}", job.log());
        }
        let found = job.ask(ALL);
        all_is_there(&found["rows"]);
        assert_eq!(job.rejects(), 0);
        let columns: Vec<&str> = found["columns"]
            .as_array()
            .expect("columns")
            .iter()
            .filter_map(|column| column[0].as_str())
            .collect();
        assert_eq!(
            columns,
            ["id", "name", "place", "price", "empty", "tags"],
            "{fault}"
        );
        assert_eq!(found["alone"], 0, "{fault}: a schema came before its rows");
        let first = found["snapshots"][0].as_array().map(Vec::len);
        assert_eq!(first, Some(3), "{fault}: the first rows need three columns");
    }
}

#[test]
fn a_strict_schema_rejects_and_a_declared_one_chooses() {
    let root = tempfile::tempdir().expect("a folder");
    let job = Job::new(root.path().join("strict"));
    job.versions();
    let strict = format!("schema: {{ evolve: strict }}\n{}", job.iceberg(""));
    job.write("{ json: {} }", &strict);
    assert!(job.run("").success(), "{}", job.log());
    let found = job.ask(&["SELECT count(*), max(id) FROM {t}"]);
    assert_eq!(found["rows"][0][0], json!([EVENTS, EVENTS - 1]));
    assert_eq!(job.rejects(), 2 * EVENTS);
    assert!(job.log().contains("rejected"), "{}", job.log());

    let job = Job::new(root.path().join("declared"));
    job.versions();
    job.write(
        "{ json: { columns: { id: bigint, tags: \"list<int>\" } } }",
        &job.iceberg(""),
    );
    assert!(job.run("").success(), "{}", job.log());
    let found = job.ask(&["SELECT count(*), sum(len(tags)) FROM {t}"]);
    let tags = (2 * EVENTS..3 * EVENTS).map(|n| n % 3).sum::<u64>();
    assert_eq!(found["rows"][0][0], json!([3 * EVENTS, tags]));
    assert_eq!(job.rejects(), 0);
}

#[test]
fn what_does_not_fit_stands_in_a_column_of_its_own() {
    let root = tempfile::tempdir().expect("a folder");
    let job = Job::new(root.path().join("rescued"));
    job.events("a.ndjson", 0, |n| match n % 4 {
        0 => json!({ "id": n, "amount": n as f64 / 2.0 }),
        1 => json!({ "id": n, "amount": format!("{n} EUR") }),
        2 => json!({ "id": n, "amount": 1.5, "note": { "by": [n, null] } }),
        _ => json!({ "id": n, "amount": [n], "new": true }),
    });
    fs::write(job.dir.join("in/b.ndjson"), "{ broken\n".repeat(3)).expect("written");
    job.write(
        "{ json: { columns: { id: bigint, amount: double } } }",
        &format!("schema: {{ rescued: _rescued }}\n{}", job.iceberg("")),
    );
    assert!(job.run("").success(), "{}", job.log());
    let found = job.ask(&[
        "SELECT count(*), count(DISTINCT id), count(amount), count(_rescued) FROM {t}",
        "SELECT count(*) FROM {t} WHERE _rescued IS DISTINCT FROM CASE id % 4 \
         WHEN 1 THEN '{{\"amount\":\"' || id || ' EUR\"}}' \
         WHEN 2 THEN '{{\"note\":{{\"by\":[' || id || ',null]}}}}' \
         WHEN 3 THEN '{{\"amount\":[' || id || '],\"new\":true}}' END",
        "SELECT count(*) FROM {t} WHERE amount IS DISTINCT FROM \
         CASE id % 4 WHEN 0 THEN id / 2 WHEN 2 THEN 1.5 END",
    ]);
    let quarter = EVENTS / 4;
    let counts = json!([[EVENTS, EVENTS, 2 * quarter, 3 * quarter]]);
    assert_eq!(found["rows"], json!([counts, [[0]], [[0]]]));
    let columns = json!([["id", "long"], ["amount", "double"], ["_rescued", "string"]]);
    assert_eq!(found["columns"], columns);
    // What is no JSON has nothing that fits.
    assert_eq!(job.rejects(), 3);
}

#[test]
fn declared_columns_come_go_widen_and_get_other_names() {
    let root = tempfile::tempdir().expect("a folder");
    let job = Job::new(root.path().join("declared"));
    job.events(
        "a.ndjson",
        0,
        |n| json!({ "id": n, "old": n, "gone": "x", "f": 0.5 }),
    );
    let first = "{ json: { columns: { id: int, old: int, gone: varchar, f: float } } }";
    job.write(first, &job.iceberg(", partition_by: [\"bucket(4, id)\"]"));
    assert!(job.run("").success(), "{}", job.log());

    job.events(
        "b.ndjson",
        EVENTS,
        |n| json!({ "id": (n << 32), "new": n, "f": 0.1, "place": { "zip": 1 } }),
    );
    let second =
        "{ json: { columns: { id: bigint, new: int, f: double, place: \"struct<zip: int>\" } } }";
    let sink = job.iceberg(", partition_by: [\"bucket(4, id)\"]");
    job.write(second, &format!("schema: {{ evolve: strict }}\n{sink}"));
    assert!(!job.run("").success(), "strict says no: {}", job.log());
    assert!(job.log().contains("+ id long"), "{}", job.log());
    job.write(
        second,
        &format!("schema: {{ rename: {{ old: new }} }}\n{sink}"),
    );
    assert!(job.run("").success(), "{}", job.log());

    let found = job.ask(&[
        "SELECT count(*), count(DISTINCT id), max(id) FROM {t}",
        "SELECT sum(new), count(gone), count(place.zip), round(sum(f), 3) FROM {t}",
    ]);
    let n = 2 * EVENTS;
    assert_eq!(found["rows"][0][0], json!([n, n, (n - 1) << 32]));
    let sum = found["rows"][1][0].as_array().expect("a row").clone();
    assert_eq!(
        sum[..3],
        [json!((0..n).sum::<u64>()), json!(EVENTS), json!(EVENTS)]
    );
    let expected = 0.6 * EVENTS as f64;
    assert!(
        (sum[3].as_f64().expect("a number") - expected).abs() < 1e-3,
        "{sum:?}"
    );
    assert_eq!(
        found["columns"],
        json!([
            ["id", "long"],
            ["new", "int"],
            ["gone", "string"],
            ["f", "double"],
            ["place", "struct<6: zip: optional int>"]
        ])
    );

    // Back to a narrower type: no.
    let narrow = "{ json: { columns: { id: int, new: int, gone: varchar, f: float } } }";
    job.write(narrow, &job.iceberg(", partition_by: [\"bucket(4, id)\"]"));
    assert_eq!(job.run("").code(), Some(2), "{}", job.log());
    assert!(job.log().contains("changed=schema"), "{}", job.log());
    // Back to the old name, whose column is there: its values would be in two.
    job.write(first, &job.iceberg(", partition_by: [\"bucket(4, id)\"]"));
    assert_eq!(job.run("").code(), Some(1), "{}", job.log());
    assert!(
        job.log().contains("the table's new had this name"),
        "{}",
        job.log()
    );
}

#[test]
fn another_engine_may_change_the_schema_meanwhile() {
    let root = tempfile::tempdir().expect("a folder");
    // What PyIceberg adds: a column that takes our id; ours, after another one; and ours itself.
    let adds = [
        json!({ "theirs": "string" }),
        json!({ "theirs": "long", "price": "double" }),
        json!({ "price": "double" }),
    ];
    for changes in ["", ", changes: { key: [id] }"] {
        for (n, add) in adds.iter().enumerate() {
            let job = Job::new(root.path().join(format!("{n}{}", changes.len())));
            job.events("a.ndjson", 0, |n| json!({ "id": n, "name": "a" }));
            job.write("{ json: {} }", &job.iceberg(changes));
            assert!(job.run("").success(), "{}", job.log());
            job.events(
                "b.ndjson",
                EVENTS,
                |n| json!({ "id": n, "price": n as f64, "place": { "x": n } }),
            );
            // The rows with the new column are prepared, and not committed.
            let ended = job.run("iceberg.commit.before_manifest=kill");
            assert_eq!(ended.signal(), Some(9), "{}", job.log());
            job.spec(json!({ "add": add }));
            assert!(job.run("").success(), "{}", job.log());
            let found = job.ask(&[
                "SELECT count(*), count(DISTINCT id), sum(price), count(name), sum(place.x) FROM {t}",
                "SELECT count(*) FROM {t} WHERE price IS NOT NULL AND (price <> id OR place.x <> id)",
            ]);
            let sum = (EVENTS..2 * EVENTS).sum::<u64>();
            assert_eq!(
                found["rows"][0][0],
                json!([2 * EVENTS, 2 * EVENTS, sum as f64, EVENTS, sum]),
                "{add}{changes}"
            );
            assert_eq!(found["rows"][1][0][0], 0);
            if let Some(theirs) = add.get("theirs") {
                let columns = found["columns"].as_array().expect("columns");
                assert!(columns.contains(&json!(["theirs", theirs])), "{columns:?}");
            }
            let catalog = job.dir.join("lake/catalog.db");
            let catalog = catalog.to_str().expect("UTF-8");
            let checkpoints = job.dir.join("checkpoints");
            let verified = calve_e2e::command(&[
                "table",
                "verify",
                "--catalog",
                catalog,
                "--checkpoint",
                checkpoints.to_str().expect("UTF-8"),
                "shop.orders",
            ]);
            let said = String::from_utf8_lossy(&verified.stdout).into_owned()
                + &String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success(), "{add}{changes}: {said}");
        }
    }
}

#[test]
fn changes_of_a_table_that_got_a_column() {
    let root = tempfile::tempdir().expect("a folder");
    let job = Job::new(root.path().join("changes"));
    let change =
        |n: u64, after: Value| json!({ "op": "c", "before": null, "after": after, "ts_ms": n });
    job.events("a.ndjson", 0, |n| change(n, json!({ "id": n, "v": 1 })));
    job.events("b.ndjson", EVENTS, |n| {
        // Half of them replace rows of the first file.
        let id = if n % 2 == 0 { n } else { n - EVENTS };
        change(n, json!({ "id": id, "v": 2, "note": format!("n{n}") }))
    });
    job.write(
        "{ debezium: { metadata: [ts_ms] } }",
        &job.iceberg(", changes: { key: [id], order_by: [ts_ms] }"),
    );
    assert!(job.run("").success(), "{}", job.log());
    let found = job.ask(&[
        "SELECT count(*), count(DISTINCT id), count(note), sum(v) FROM {t}",
        "SELECT count(*) FROM {t} WHERE (note IS NULL) <> (v = 1)",
    ]);
    let replaced = EVENTS / 2;
    let rows = EVENTS + EVENTS / 2;
    assert_eq!(
        found["rows"][0][0],
        json!([rows, rows, EVENTS, rows - EVENTS + 2 * EVENTS])
    );
    assert_eq!(found["rows"][1][0][0], 0);
    assert!(replaced > 0 && job.rejects() == 0);
    assert_eq!(found["alone"], 0);
}

#[test]
fn parquet_of_several_schemas_is_read_together() {
    let root = tempfile::tempdir().expect("a folder");
    let job = Job::new(root.path().join("parquet"));
    job.versions();
    let out = job.dir.join("out");
    job.write(
        "{ json: {} }",
        &format!("sink: {{ parquet: {{ path: \"{}\" }} }}", out.display()),
    );
    assert!(job.run("").success(), "{}", job.log());
    let found = job.spec(json!({ "parquet": out, "queries": ALL }));
    all_is_there(&found["rows"]);
    assert_eq!(job.rejects(), 0);
}

#[test]
fn rows_of_open_windows_go_on_with_more_columns() {
    let root = tempfile::tempdir().expect("a folder");
    let job = Job::new(root.path().join("windows"));
    job.events(
        "a.ndjson",
        0,
        |n| json!({ "id": n, "ts": n / 100, "place": { "x": 1 } }),
    );
    job.events(
        "b.ndjson",
        EVENTS,
        |n| json!({ "id": n, "ts": n / 100, "place": { "x": 1, "y": 2 }, "price": n as f64 }),
    );
    let windows = "event_time: { column: ts, unit: s }\nwindow: { fixed: 1h }\n";
    job.write("{ json: {} }", &format!("{windows}{}", job.iceberg("")));
    assert!(job.run("").success(), "{}", job.log());
    let found = job.ask(&[
        "SELECT count(*), count(DISTINCT id), sum(price), sum(place.x), sum(place.y) FROM {t}",
    ]);
    let sum = (EVENTS..2 * EVENTS).sum::<u64>() as f64;
    assert_eq!(
        found["rows"][0][0],
        json!([2 * EVENTS, 2 * EVENTS, sum, 2 * EVENTS, 2 * EVENTS])
    );
}

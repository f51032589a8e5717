//! Changes into a table of a REST catalog, whose schema evolves between runs: merged by position, by
//! copies and by deletion vectors, as PyIceberg and DuckDB read it; and a store that takes no vectors.
//!
//! The store of the catalog's server refuses Puffin files among its tables. Where a test needs them, a proxy
//! says that the table lies in an ordinary bucket.

use std::{collections::BTreeMap, fs, path::PathBuf};

use calve_e2e::{
    proxy::{Fault, Proxy, Request},
    rest::{OnRest, Who, ask},
    s3::S3,
};
use serde_json::{Value, json};

const FILES: i64 = 7;
/// From this file on there are other columns.
const THEN: i64 = 4;
const CHANGES: i64 = 100;
const KEYS: i64 = 400;

/// The change of a row, and the row that it makes, with every column there ever is.
fn change(file: i64, at: i64) -> (i64, Option<Value>, Value) {
    // Each key once in a file; four of five are in the next file too.
    let (id, seq) = ((file * 140 + at * 7) % KEYS, file * 1000 + at);
    let name = format!("n{seq}");
    let mut event = json!({ "op": "u", "id": id, "seq": seq, "name": name });
    if (file + at) % 9 == 0 {
        event["op"] = json!("d");
        return (id, None, event);
    }
    let row = if file < THEN {
        (event["n"], event["gone"]) = (json!(at), json!(format!("g{seq}")));
        json!([id, seq, name, at, event["gone"], null])
    } else {
        // More than an int holds.
        let (n, more) = ((1_i64 << 40) + at, seq as f64 / 4.0);
        (event["n"], event["more"]) = (json!(n), json!(more));
        json!([id, seq, name, n, null, more])
    };
    (id, Some(row), event)
}

struct Orders {
    pipeline: OnRest,
    at: (u16, Who),
    version: u8,
    inputs: PathBuf,
    index: PathBuf,
    rows: BTreeMap<i64, Value>,
    upkeep: &'static str,
}

impl Orders {
    fn new(server: &S3, dir: &tempfile::TempDir, name: &str, port: u16, version: u8) -> Self {
        let at = (port, Who::OAuth);
        let inputs = dir.path().join(name).join("in");
        fs::create_dir_all(&inputs).expect("a folder");
        Self {
            pipeline: OnRest::new(server, dir.path(), name, at, ("", "", "")),
            at,
            version,
            inputs,
            index: dir.path().join(name).join("index"),
            rows: BTreeMap::new(),
            upkeep: "compact: off",
        }
    }

    /// More changes.
    fn add(&mut self, file: i64) {
        let mut text = String::new();
        for at in 0..CHANGES {
            let (id, row, event) = change(file, at);
            text += &format!("{event}\n");
            match row {
                Some(row) => self.rows.insert(id, row),
                None => self.rows.remove(&id),
            };
        }
        let path = self.inputs.join(format!("{file:03}.ndjson"));
        fs::write(path, text).expect("changes");
    }

    fn write(&self, deletes: &str, columns: &str) {
        let source = format!("{{ file: {{ path: \"{}/*\" }} }}", self.inputs.display());
        let table = format!(
            ", format_version: {}, changes: {{ key: [id], op_column: op, order_by: [seq], deletes: {deletes}, \
             index: {{ path: \"{}\" }} }}",
            self.version,
            self.index.display()
        );
        let more = format!(
            "format: {{ json: {{ columns: {{ op: varchar, id: bigint, seq: bigint, name: varchar, {columns} }} }} }}\n\
             upkeep: {{ {} }}",
            self.upkeep
        );
        self.pipeline.write(self.at, (&source, &table, &more));
    }

    /// A run for each of these files, and so a commit.
    fn runs(&mut self, deletes: &str, files: std::ops::Range<i64>) {
        for file in files {
            self.add(file);
            self.write(deletes, if file < THEN { BEFORE } else { AFTER });
            let status = self.pipeline.run("");
            assert!(status.success(), "{}", self.pipeline.log());
        }
    }

    /// Both readers find the rows that there should be; answers with what else they found.
    fn is_right(&self, server: &S3) -> Value {
        let columns = ["id", "seq", "name", "n", "gone", "more"];
        let all = "SELECT id, seq, name, n, gone, more FROM t ORDER BY id";
        let name = &self.pipeline.name;
        let found = ask(
            server,
            &json!({ "do": "changes", "name": name, "columns": columns, "queries": [all] }),
        );
        let rows: Vec<&Value> = self.rows.values().collect();
        assert!(rows.len() > KEYS as usize / 4, "{}", rows.len());
        assert_eq!(found["queries"][0], json!(rows), "{name}");
        let of = |column: usize| rows.iter().filter(|row| !row[column].is_null()).count();
        assert!(of(4) > 0 && of(5) > 0, "rows from before and after");
        assert_eq!(found["version"], self.version, "{found}");
        assert_eq!(found["types"]["n"], "long", "{found}");
        assert_eq!(found["types"]["more"], "double", "{found}");
        let verified = self.pipeline.table_command(&["verify"]);
        let said = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success(), "{name}: {said}");
        found
    }
}

const BEFORE: &str = "n: int, gone: varchar";
const AFTER: &str = "n: bigint, more: double";

/// One more commit, of a run that leaves no deletes at its end.
fn settles(orders: &mut Orders, server: &S3, deletes: &str) {
    orders.upkeep = "min_files: 99, deleted_share: 1";
    orders.runs(deletes, FILES..FILES + 1);
    let found = orders.is_right(server);
    let log = orders.pipeline.log();
    assert!(log.contains("without their deleted rows"), "{log}");
    // A commit, files without deletes, and manifests without those that are gone.
    let schemas = found["schemas"].as_array().expect("snapshots").len();
    assert_eq!(schemas as i64, FILES + 3, "{found}");
}

/// Snapshots of the first schema, then those of the second, each made by one request.
fn one_commit_has_schema_and_rows(found: &Value, proxy: &Proxy) {
    let schemas: Vec<u64> = serde_json::from_value(found["schemas"].clone()).expect("numbers");
    let (before, after) = (THEN as usize, (FILES - THEN) as usize);
    let expected = [vec![0; before], vec![1; after]].concat();
    assert_eq!(schemas, expected);
    let commits = proxy.seen().iter().filter(|r| r.is_commit()).count();
    assert_eq!(commits, schemas.len(), "a schema has no commit of its own");
}

#[test]
fn a_schema_evolves_with_the_rows_that_need_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    let proxy = Proxy::start(server.catalog(), |_| Fault::None);
    let mut orders = Orders::new(&server, &dir, "by_position", proxy.port(), 2);
    orders.runs("position", 0..FILES);
    one_commit_has_schema_and_rows(&orders.is_right(&server), &proxy);
    settles(&mut orders, &server, "position");

    let elsewhere = |_: &Request| {
        Fault::Change(Box::new(|body| {
            let Ok(mut json) = serde_json::from_str::<Value>(body) else {
                return body.to_owned();
            };
            let location = json["metadata"]["location"].as_str();
            if let Some(moved) = location.map(|at| at.replace("s3://ice/", "s3://data/ice/")) {
                json["metadata"]["location"] = json!(moved);
            }
            json.to_string()
        }))
    };
    let proxy = Proxy::start(server.catalog(), elsewhere);
    let mut orders = Orders::new(&server, &dir, "by_vector", proxy.port(), 3);
    orders.runs("vector", 0..FILES);
    one_commit_has_schema_and_rows(&orders.is_right(&server), &proxy);
    settles(&mut orders, &server, "vector");
}

#[test]
fn a_store_that_takes_no_vectors() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    let mut orders = Orders::new(&server, &dir, "refused", server.catalog(), 3);
    // Nothing is deleted yet.
    orders.runs("vector", 0..1);
    orders.add(1);
    let (status, log) = (orders.pipeline.run(""), orders.pipeline.log());
    assert_eq!(status.code(), Some(2), "{log}");
    for said in [
        "-deletes.puffin",
        "403",
        "takes no Puffin files",
        "`deletes: copy_on_write`",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    // The way out that it told: what was prepared is committed in the other manner.
    orders.runs("copy_on_write", 2..FILES);
    orders.is_right(&server);
}

//! Debezium's changes of a real table become that table, with files in S3: in a REST catalog that is in
//! trouble, and in SQLite, where deletion vectors can be tried too (the server of the REST catalog takes no
//! Puffin files). Killed on the way, with the index of keys lost. PyIceberg and DuckDB must agree.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
};

use calve_e2e::{
    fixture,
    proxy::{Proxy, troubles},
    rest::{OnRest, Who, ask},
    s3::S3,
};
use serde_json::{Value, json};

/// The fixture's last state: rows, sum of quantity, sum of price in cents.
const LAST: (u64, u64, u64) = (559, 1648, 58_869_985);
const FORMAT: &str = "format: { debezium: { columns: { id: bigint, customer_name: varchar, \
    product_name: varchar, quantity: int, price: double, order_date: bigint, status: varchar } } }\n\
    commit: { every: 1ms, min_interval: 0s }";

/// Files of changes, and what a pipeline says of them.
struct Orders {
    source: String,
    table: String,
    index: PathBuf,
}

impl Orders {
    fn new(dir: &Path, name: &str, text: &str, (deletes, version): (&str, u8)) -> Self {
        let inputs = dir.join(name).join("in");
        fs::create_dir_all(&inputs).expect("a folder");
        let lines: Vec<&str> = text.lines().collect();
        for (n, part) in lines.chunks(60).enumerate() {
            let path = inputs.join(format!("{n:03}.jsonl"));
            fs::write(path, part.join("\n") + "\n").expect("changes");
        }
        let index = dir.join(name).join("index");
        Self {
            source: format!("{{ file: {{ path: \"{}/*.jsonl\" }} }}", inputs.display()),
            table: format!(
                ", format_version: {version}, changes: {{ key: [id], order_by: [source.lsn], \
                 deletes: {deletes}, index: {{ path: \"{}\" }} }}",
                index.display()
            ),
            index,
        }
    }

    fn text(&self) -> (&str, &str, &str) {
        (&self.source, &self.table, FORMAT)
    }

    /// Runs to the end, killed on the way; the index is a cache, and is made anew from the objects.
    fn run(&self, pipeline: &OnRest) {
        for fault in [
            "changes.resolved=kill",
            "changes.deletes_written=kill",
            // The last one: everything may be in the table then.
            "iceberg.commit.after_cas=kill",
        ] {
            let (status, log) = (pipeline.run(fault), pipeline.log());
            assert_eq!(status.signal(), Some(9), "{fault}: not reached: {log}");
            fs::remove_dir_all(&self.index).expect("an index");
        }
        assert!(pipeline.run("").success(), "{}", pipeline.log());
        for args in [
            &["clean", "--stopped", "--older-than", "0s"][..],
            &["verify"][..],
        ] {
            let done = pipeline.table_command(args);
            let said = String::from_utf8_lossy(&done.stderr);
            let listed = String::from_utf8_lossy(&done.stdout);
            assert!(done.status.success(), "{args:?}: {said}{listed}");
        }
    }
}

/// The table equals the source's last state, for both readers.
fn is_last_state(server: &S3, name: &str, location: &Value) {
    let columns = [
        "id",
        "customer_name",
        "product_name",
        "quantity",
        "price",
        "order_date",
        "status",
    ];
    let sums = "SELECT sum(quantity)::BIGINT, round(sum(price) * 100)::BIGINT FROM t";
    let found = ask(
        server,
        &json!({ "do": "changes", "name": name, "columns": columns, "queries": [sums], "location": location }),
    );
    assert_eq!(found["rows"], LAST.0, "{name}: {found}");
    assert_eq!(found["keys"], LAST.0, "{name}: {found}");
    assert_eq!(found["queries"][0], json!([[LAST.1, LAST.2]]), "{name}");
}

#[test]
fn changes_become_the_source_s_table() {
    let Some(path) = fixture("cdc/debezium-orders.jsonl") else {
        return;
    };
    let text = fs::read_to_string(path).expect("the fixture");
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    for (name, deletes) in [("by_position", "position"), ("by_copy", "copy_on_write")] {
        let orders = Orders::new(dir.path(), name, &text, (deletes, 2));
        let proxy = Proxy::start(server.catalog(), troubles);
        let at = (proxy.port(), Who::OAuth);
        let pipeline = OnRest::new(&server, dir.path(), name, at, orders.text());
        orders.run(&pipeline);
        is_last_state(&server, name, &Value::Null);
    }
    let orders = Orders::new(dir.path(), "by_vector", &text, ("vector", 3));
    let at = (server.catalog(), Who::OAuth);
    let pipeline = OnRest::new(&server, dir.path(), "by_vector", at, orders.text());
    let catalog = format!(
        "{{ sqlite: \"{}/catalog.db\", warehouse: \"s3://data/lake\" }}",
        dir.path().display()
    );
    pipeline.write_with(&catalog, orders.text());
    orders.run(&pipeline);
    let shown = pipeline.table_command(&["show", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    is_last_state(&server, "by_vector", &shown["metadata_location"]);
}

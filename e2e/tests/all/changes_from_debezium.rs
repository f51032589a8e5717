//! What Debezium's connectors write each in their own way, as the table has it in the end.

use std::{fs, path::PathBuf};

use calve_e2e::{Running, python};
use serde_json::{Value, json};

/// A pipeline over files of changes whose columns are inferred.
struct Job {
    dir: PathBuf,
    files: usize,
}

impl Job {
    fn new(dir: PathBuf, changes: &str) -> Self {
        fs::create_dir_all(dir.join("in")).expect("a folder");
        let root = dir.display();
        let text = format!(
            "name: changes\n\
             source: {{ file: {{ path: \"{root}/in/*.jsonl\" }} }}\n\
             format: {{ debezium: {{}} }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{root}/lake/catalog.db\", warehouse: \"{root}/lake\" }}, \
             table: shop.orders, changes: {{ {changes} }} }} }}\n\
             commit: {{ every: 1ms, min_interval: 0s }}\n\
             checkpoint: {{ path: \"{root}/checkpoints\" }}\n\
             rejects: {{ path: \"{root}/rejects\" }}\n"
        );
        fs::write(dir.join("changes.yaml"), text).expect("the pipeline file");
        Self { dir, files: 0 }
    }

    /// One more file of changes, which is read in a run of its own.
    fn read(&mut self, lines: &[Value]) -> (Option<i32>, String) {
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        let name = format!("in/{:05}.jsonl", self.files);
        self.files += 1;
        fs::write(self.dir.join(name), lines.join("\n") + "\n").expect("changes");
        let ended = Running::start(&self.dir, &self.dir.join("changes.yaml"), "", &[]).wait();
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        (ended.code(), log)
    }

    fn reads(&mut self, lines: &[Value]) {
        let (code, log) = self.read(lines);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("rejected     0"), "{log}");
    }

    fn ask(&self, columns: &[&str], query: &str) -> Value {
        let spec = json!({ "dir": self.dir, "columns": columns, "queries": [query] });
        python("changes.py", &[spec]).remove(0)["queries"][0].take()
    }
}

#[test]
fn documents_come_and_go_by_the_keys_of_their_messages() {
    let root = tempfile::tempdir().expect("a folder");
    let message = |n: u64, op: &str, ord: u64| {
        let id = json!({ "$oid": format!("596e275826f08b2730779{n:03x}") });
        let name = format!("{op}{n}");
        let after = json!({ "_id": id, "name": name, "n": { "$numberLong": n.to_string() } });
        let after = (op != "d").then(|| after.to_string());
        let source =
            json!({ "connector": "mongodb", "db": "shop", "collection": "orders", "ord": ord });
        json!({
            "key": { "id": id.to_string() },
            "value": { "before": null, "after": after, "source": source, "op": op, "ts_ms": ord }
        })
    };
    let mut job = Job::new(root.path().join("documents"), "order_by: [source.ord]");
    let created: Vec<Value> = (0..300).map(|n| message(n, "c", n)).collect();
    job.reads(&created);
    // Half in the epoch of the deletes, half before it; and tombstones behind.
    let mut more: Vec<Value> = (300..400).map(|n| message(n, "c", n)).collect();
    more.extend((0..400).step_by(2).map(|n| message(n, "u", 1000 + n)));
    for n in (0..400).step_by(4) {
        let delete = message(n, "d", 2000 + n);
        more.push(delete.clone());
        more.push(json!({ "key": delete["key"], "value": null }));
    }
    job.reads(&more);
    let found = job.ask(
        &["_id", "name", "n"],
        "SELECT count(*), count(DISTINCT _id), sum(n)::BIGINT, count(*) FILTER (name[1] = 'u'), \
         count(*) FILTER (n % 4 = 0) FROM t",
    );
    let sum: u64 = (0..400).filter(|n| n % 4 != 0).sum();
    assert_eq!(found, json!([[300, 300, sum, 100, 0]]));
    // An older change of a deleted document does not bring it back.
    job.reads(&[message(4, "u", 1500)]);
    let found = job.ask(&["_id", "name", "n"], "SELECT count(*) FROM t");
    assert_eq!(found, json!([[300]]));
}

/// A change with the schema of its row: names, Connect's types, values.
fn with_schema(op: &str, scn: u64, columns: &[(&str, Value, Value)]) -> Value {
    let field = |name: &str, of: &Value| {
        let mut field = of.clone();
        field["field"] = json!(name);
        field
    };
    let fields: Vec<Value> = columns
        .iter()
        .map(|(name, of, _)| field(name, of))
        .collect();
    let row: serde_json::Map<String, Value> = columns
        .iter()
        .map(|(name, _, value)| ((*name).to_owned(), value.clone()))
        .collect();
    let image = |name| json!({ "type": "struct", "field": name, "fields": fields });
    let (before, after) = match op {
        "d" => (json!(row), Value::Null),
        _ => (Value::Null, json!(row)),
    };
    // Oracle's numbers are text.
    let source = json!({ "connector": "oracle", "scn": scn.to_string() });
    json!({
        "schema": { "type": "struct", "fields": [image("before"), image("after")] },
        "payload": { "before": before, "after": after, "source": source, "op": op }
    })
}

#[test]
fn columns_become_wider_with_the_schema_of_the_changes() {
    let root = tempfile::tempdir().expect("a folder");
    let (int, long) = (json!({ "type": "int32" }), json!({ "type": "int64" }));
    let (float, double) = (json!({ "type": "float" }), json!({ "type": "double" }));
    let money = |digits: u8| {
        json!({
            "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal",
            "parameters": { "scale": "2", "connect.decimal.precision": digits.to_string() }
        })
    };
    let narrow = |id: u64| {
        with_schema(
            "c",
            id,
            &[
                ("id", int.clone(), json!(id)),
                ("n", int.clone(), json!(7)),
                ("f", float.clone(), json!(0.5)),
                ("d", money(5), json!("MDk=")),
            ],
        )
    };
    let wide = |id: u64| {
        with_schema(
            "c",
            id,
            &[
                ("id", int.clone(), json!(id)),
                ("n", long.clone(), json!(5_000_000_000_u64)),
                ("f", double.clone(), json!(0.1)),
                // 1234567.89
                ("d", money(12), json!("B1vNFQ==")),
                ("more", int.clone(), json!(1)),
            ],
        )
    };
    let mut job = Job::new(
        root.path().join("wider"),
        "key: [id], order_by: [source.scn]",
    );
    let mut lines: Vec<Value> = (0..50).map(narrow).collect();
    job.reads(&lines);
    // In the middle of a file, and old ones behind.
    lines = (50..60).map(narrow).collect();
    lines.extend((60..100).map(wide));
    lines.extend((100..110).map(narrow));
    job.reads(&lines);
    let found = job.ask(
        &["id", "n", "f", "d", "more"],
        "SELECT count(*), count(more), sum(n)::BIGINT, max(f), max(d)::VARCHAR, min(d)::VARCHAR, \
         typeof(max(n)), typeof(max(f)), typeof(max(d)) FROM t",
    );
    let sum = 70 * 7 + 40 * 5_000_000_000_u64;
    let types = ["BIGINT", "DOUBLE", "DECIMAL(12,2)"];
    assert_eq!(
        found,
        json!([[
            110,
            40,
            sum,
            0.5,
            "1234567.89",
            "123.45",
            types[0],
            types[1],
            types[2]
        ]])
    );

    // A key stays as it is: that is said, and one may go on without.
    let key = with_schema("c", 200, &[("id", long.clone(), json!(200))]);
    let large = with_schema("c", 201, &[("id", long, json!(5_000_000_000_u64))]);
    let (code, log) = job.read(&[key, large]);
    assert_ne!(code, Some(0), "{log}");
    assert!(
        log.contains("+ id long") && log.contains("evolve: add"),
        "{log}"
    );
    let file = job.dir.join("changes.yaml");
    let text = fs::read_to_string(&file).expect("the pipeline file");
    fs::write(&file, text + "schema: { evolve: add }\n").expect("the pipeline file");
    let (code, log) = job.read(&[]);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("rejected     1"), "{log}");
    let found = job.ask(&["id"], "SELECT count(*), max(id) FROM t");
    assert_eq!(found, json!([[111, 200]]));
}

#[test]
fn numbers_of_oracle_s_log_order_as_numbers() {
    let root = tempfile::tempdir().expect("a folder");
    let int = json!({ "type": "int32" });
    let change = |op: &str, scn: u64, id: u64| {
        let columns = [
            ("id", int.clone(), json!(id)),
            ("n", int.clone(), json!(scn)),
        ];
        with_schema(op, scn, &columns)
    };
    let mut job = Job::new(root.path().join("scn"), "key: [id], order_by: [source.scn]");
    job.reads(&[
        change("c", 998, 1),
        change("c", 999, 2),
        change("c", 998, 3),
    ]);
    // Later ones have more digits; an older one comes late.
    job.reads(&[
        change("u", 1000, 1),
        change("d", 1001, 2),
        change("u", 1002, 3),
        change("u", 999, 3),
    ]);
    job.reads(&[change("u", 10_000, 1), change("u", 1000, 2)]);
    let found = job.ask(&["id", "n"], "SELECT id, n FROM t ORDER BY id");
    assert_eq!(found, json!([[1, 10_000], [3, 1002]]));

    // What has no order is refused before anything is made.
    let mut job = Job::new(
        root.path().join("text"),
        "key: [id], order_by: [source.sequence]",
    );
    let (code, log) = job.read(&[change("c", 1, 1)]);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("source.lsn"), "{log}");
    assert!(!job.dir.join("lake").exists());
}

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
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let name = format!("in/{:05}.jsonl", self.files);
        self.files += 1;
        fs::write(self.dir.join(name), text).expect("changes");
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

//! The columns of key and order of a table of changes get other names: rows that were written before are
//! found, replaced and deleted, and an old change does not bring back a key that was deleted before.

use std::{fs, path::PathBuf};

use calve_e2e::{Running, python};
use serde_json::{Value, json};

struct Orders {
    dir: PathBuf,
    deletes: &'static str,
}

impl Orders {
    fn new(dir: PathBuf, deletes: &'static str) -> Self {
        fs::create_dir_all(dir.join("in")).expect("a folder");
        Self { dir, deletes }
    }

    fn add(&self, name: &str, changes: impl Iterator<Item = Value>) {
        let lines: Vec<String> = changes.map(|change| change.to_string()).collect();
        let text = lines.join("\n") + "\n";
        fs::write(self.dir.join("in").join(name), text).expect("changes");
    }

    fn write(&self, (key, order): (&str, &str), schema: &str) {
        let (root, deletes) = (self.dir.display(), self.deletes);
        let version = if deletes == "vector" { 3 } else { 2 };
        let text = format!(
            "name: orders\n\
             source: {{ file: {{ path: \"{root}/in/*\" }} }}\n\
             format: {{ json: {{ columns: {{ op: varchar, {key}: bigint, {order}: bigint, n: bigint }} }} }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{root}/lake/catalog.db\", warehouse: \"{root}/lake\" }}, \
             table: shop.orders, format_version: {version}, \
             changes: {{ key: [{key}], op_column: op, order_by: [{order}], deletes: {deletes} }} }} }}\n\
             {schema}\n\
             checkpoint: {{ path: \"{root}/checkpoints\" }}\n\
             rejects: {{ path: \"{root}/rejects\" }}\n"
        );
        fs::write(self.dir.join("orders.yaml"), text).expect("the pipeline file");
    }

    fn run(&self, args: &[&str]) -> Option<i32> {
        let file = self.dir.join("orders.yaml");
        Running::start(&self.dir, &file, "", args).wait().code()
    }

    fn runs(&self, args: &[&str]) {
        let code = self.run(args);
        assert_eq!(code, Some(0), "{}", self.log());
    }

    /// It is refused, and says this.
    fn refuses(&self, said: &str) {
        let before = self.log().len();
        assert_eq!(self.run(&[]), Some(2), "{}", self.log());
        let log = self.log().split_off(before);
        assert!(log.contains(said), "{said}: {log}");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

const OLD: (&str, &str) = ("id", "seq");
const NEW: (&str, &str) = ("order_id", "version");
const RENAME: &str = "schema: { rename: { id: order_id, seq: version } }";

#[test]
fn a_key_gets_another_name() {
    let root = tempfile::tempdir().expect("a folder");
    for deletes in ["position", "vector", "copy_on_write"] {
        let orders = Orders::new(root.path().join(deletes), deletes);
        let change = |names: (&str, &str), op: &str, id: u64, seq: u64| json!({ "op": op, names.0: id, names.1: seq, "n": seq });
        orders.add("1", (0..20).map(|id| change(OLD, "u", id, id)));
        orders.write(OLD, "");
        orders.runs(&[]);
        orders.add("2", (0..5).map(|id| change(OLD, "d", id, 50)));
        orders.runs(&[]);

        // Replaced, deleted, new; and older than what was deleted under the old name.
        let changes = (5..10)
            .map(|id| change(NEW, "u", id, 60))
            .chain((10..15).map(|id| change(NEW, "d", id, 60)))
            .chain((20..25).map(|id| change(NEW, "u", id, 60)))
            .chain((0..3).map(|id| change(NEW, "u", id, 40)))
            .chain([change(NEW, "u", 3, 60)]);
        orders.add("3", changes);
        orders.write(NEW, RENAME);
        orders.refuses("--drain");
        orders.write(OLD, "");
        orders.runs(&["--drain"]);
        // Nothing would have a key.
        orders.write(NEW, "");
        orders.refuses("schema: { rename: { OLD_NAME: order_id } }");
        orders.write(NEW, RENAME);
        orders.runs(&[]);

        let all = "SELECT order_id, n FROM t ORDER BY order_id";
        let columns = ["order_id", "version", "n"];
        let spec = json!({ "dir": orders.dir, "columns": columns, "queries": [all] });
        let found = python("changes.py", &[spec]).remove(0);
        let kept = (15..20).map(|id| (id, id));
        let new = [3, 5, 6, 7, 8, 9, 20, 21, 22, 23, 24].map(|id| (id, 60));
        let mut rows: Vec<(u64, u64)> = kept.chain(new).collect();
        rows.sort_unstable();
        assert_eq!(found["queries"][0], json!(rows), "{deletes}");
        let summaries = found["summaries"].as_array().expect("a list");
        let stale = summaries
            .iter()
            .filter_map(|of| of.get("calve.stale-changes"));
        assert_eq!(stale.collect::<Vec<_>>(), [&json!("3")], "{deletes}");
    }
}

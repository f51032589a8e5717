//! The log of changes in which no column orders them: `_order` is where a change stands in its file.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf, process::ExitStatus};

use calve_e2e::{Running, command, python};
use serde_json::{Value, json};

const OPS: [(&str, &str); 3] = [("c", "insert"), ("u", "update"), ("d", "delete")];

/// A pipeline over files of plain changes, whose columns are inferred.
struct Log(PathBuf);

impl Log {
    /// `source` and `more` are settings of the file source and sections of the file.
    fn new(dir: PathBuf, source: &str, more: &str) -> Self {
        fs::create_dir_all(dir.join("in")).expect("a folder");
        let root = dir.display();
        let text = format!(
            "name: log\n\
             source: {{ file: {{ path: \"{root}/in/*.jsonl\", {source} }} }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{root}/lake/catalog.db\", warehouse: \"{root}/lake\" }}, \
             table: shop.orders, changes: {{ key: [id], op_column: op, mode: append }} }} }}\n\
             checkpoint: {{ path: \"{root}/checkpoints\" }}\n\
             rejects: {{ path: \"{root}/rejects\" }}\n\
             {more}\n"
        );
        fs::write(dir.join("log.yaml"), text).expect("the pipeline file");
        Self(dir)
    }

    fn add(&self, name: &str, text: &str) {
        fs::write(self.0.join("in").join(name), text).expect("changes");
    }

    fn run(&self, fault: &str) -> ExitStatus {
        Running::start(&self.0, &self.0.join("log.yaml"), fault, &[]).wait()
    }

    /// What it has said so far.
    fn runs(&self) -> String {
        let status = self.run("");
        let said = fs::read_to_string(self.0.join("log")).expect("a log");
        assert!(status.success(), "{said}");
        said
    }

    fn check(&self) -> String {
        let file = self.0.join("log.yaml");
        let found = command(&["check", "--connect", &file.to_string_lossy()]);
        let (out, err) = (&found.stdout, &found.stderr);
        let said = [out.as_slice(), err.as_slice()].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(found.status.success(), "{said}");
        said
    }

    /// What a query of the table `t` gives, and how many commits there were.
    fn ask(&self, columns: &[&str], query: &str) -> (Value, usize) {
        let spec = json!({ "dir": self.0, "columns": columns, "queries": [query] });
        let found = python("changes.py", &[spec]).remove(0);
        let commits = found["summaries"].as_array().map_or(0, Vec::len);
        (found["queries"][0].clone(), commits)
    }
}

/// A file of changes from `first` on, and of each its key, what it does, and its byte in the file. Some lines
/// are blank, and some no changes; later ones have a field more.
fn file(first: u64) -> (String, Vec<Value>) {
    let (mut text, mut rows) = (String::new(), Vec::new());
    for id in first..first + 200 {
        if id % 13 == 0 {
            text += if id % 2 == 0 { "\n" } else { "  \r\n" };
        }
        if id % 17 == 0 {
            text += "{\"id\": nothing}\n";
        }
        let (op, does) = OPS[id as usize % 3];
        rows.push(json!([id, does, text.len()]));
        let name = "ä".repeat(id as usize % 7);
        let more = if id > first + 90 {
            ", \"more\": true"
        } else {
            ""
        };
        text += &format!("{{\"id\": {id}, \"op\": \"{op}\", \"name\": \"{name}\"{more}}}\n");
    }
    (text, rows)
}

#[test]
fn the_order_is_the_place_in_the_file_however_it_is_read() {
    let root = tempfile::tempdir().expect("a folder");
    let (a, mut rows) = file(0);
    let (b, others) = file(1000);
    rows.extend(others);
    let kills = [
        "commit.before=kill@2",
        "checkpoint.after_create=kill@3",
        "iceberg.commit.after_cas=kill@2",
    ];
    for (n, (source, more, kills)) in [
        ("", "", &[][..]),
        (
            "chunk_bytes: 100",
            "limits: { batchers: 1 }\ncommit: { every: 1h, min_interval: 0s, rows: 30 }",
            &[],
        ),
        (
            "chunk_bytes: 700",
            "limits: { batchers: 3 }\ncommit: { every: 1h, min_interval: 0s, rows: 10 }",
            &kills[..],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let log = Log::new(root.path().join(n.to_string()), source, more);
        log.add("a.jsonl", &a);
        log.add("b.jsonl", &b);
        for kill in kills {
            let status = log.run(kill);
            assert_eq!(status.signal(), Some(9), "{kill}");
        }
        log.runs();
        let columns = ["id", "_op", "_order", "name", "more"];
        let (found, commits) = log.ask(&columns, "SELECT id, _op, _order FROM t ORDER BY id");
        assert_eq!(found, Value::from(rows.clone()), "{source} {more}");
        assert!(n == 0 || commits > 10, "{source} {more}: {commits} commits");
        let (typed, _) = log.ask(&columns, "SELECT DISTINCT typeof(_order) FROM t");
        assert_eq!(typed, json!([["BIGINT"]]));
    }
}

#[test]
fn sql_carries_the_order_or_leaves_it_out_and_columns_of_the_events_stay() {
    let root = tempfile::tempdir().expect("a folder");
    let plain = "{\"id\": 1, \"op\": \"c\"}\n{\"id\": 2, \"op\": \"d\"}\n";
    let own = plain.replace("\"op\"", "\"_offset\": 70, \"op\"");
    let ordered = "in the order of their offsets";
    let sql = |select: &str| format!("transform: {{ sql: \"SELECT {select} FROM events\" }}");
    for (n, (text, more, columns, rows, said)) in [
        (
            plain,
            sql("*, id * 2 AS twice"),
            "id, _order",
            json!([[1, 0], [2, 21]]),
            ordered,
        ),
        (
            plain,
            sql("_offset, id + 10 AS id, op"),
            "id, _order",
            json!([[11, 0], [12, 21]]),
            ordered,
        ),
        (
            plain,
            sql("id, op"),
            "id, _op",
            json!([[1, "insert"], [2, "delete"]]),
            "add it to the SELECT",
        ),
        (
            &own,
            String::new(),
            "id, _offset",
            json!([[1, 70], [2, 70]]),
            "`order_by: [_offset]`",
        ),
        (
            plain,
            sql("id, op, 5 AS _order, _offset"),
            "id, _order",
            json!([[1, 5], [2, 5]]),
            "as they come",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let log = Log::new(root.path().join(n.to_string()), "", &more);
        log.add("a.jsonl", text);
        let checked = log.check();
        assert!(checked.contains(said), "{more}: {checked}");
        let ran = log.runs();
        let noted = "the log of changes gets no column _order";
        assert_eq!(
            ran.contains(noted),
            checked.contains(noted),
            "{more}: {ran}"
        );
        let names: Vec<&str> = columns.split(", ").collect();
        let (found, _) = log.ask(&names, &format!("SELECT {columns} FROM t ORDER BY id"));
        assert_eq!(found, rows, "{more}");
    }
}

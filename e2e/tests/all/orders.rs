//! A pipeline over Debezium's changes of a real table.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use calve_e2e::{Running, command, fixture, python};
use serde_json::{Value, json};

/// What the fixture's last state is: rows, sum of quantity, sum of price in cents.
pub(crate) const LAST: (u64, u64, u64) = (559, 1648, 58_869_985);

pub(crate) const COLUMNS: [&str; 7] = [
    "id",
    "customer_name",
    "product_name",
    "quantity",
    "price",
    "order_date",
    "status",
];

/// None, with a note, where the fixture is not there.
pub(crate) fn changes() -> Option<Vec<String>> {
    let text = fs::read_to_string(fixture("cdc/debezium-orders.jsonl")?).expect("the fixture");
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 830, "the fixture is another one");
    Some(lines)
}

/// Deletes stay when a run has ended, so that readers meet them.
const SETTLE_NOTHING: &str = "settle: 0";

/// A pipeline over files of changes.
pub(crate) struct Orders {
    pub(crate) dir: PathBuf,
    pub(crate) files: usize,
    /// PyIceberg refuses it.
    pub(crate) by_key: bool,
}

impl Orders {
    pub(crate) fn new(dir: PathBuf, changes: &str, table: &str) -> Self {
        fs::create_dir_all(dir.join("in")).expect("a folder");
        let root = dir.display();
        let text = format!(
            "name: orders\n\
             source: {{ file: {{ path: \"{root}/in/*.jsonl\" }} }}\n\
             format: {{ debezium: {{ columns: {{ id: bigint, customer_name: varchar, product_name: varchar, \
             quantity: int, price: double, order_date: bigint, status: varchar }} }} }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{root}/lake/catalog.db\", warehouse: \"{root}/lake\" }}, \
             table: shop.orders, {table} changes: {{ key: [id], {changes} }} }} }}\n\
             commit: {{ every: 1ms, min_interval: 0s }}\n\
             checkpoint: {{ path: \"{root}/checkpoints\" }}\n\
             rejects: {{ path: \"{root}/rejects\" }}\n\
             upkeep: {{ {SETTLE_NOTHING} }}\n"
        );
        fs::write(dir.join("orders.yaml"), text).expect("the pipeline file");
        let by_key = changes.contains("equality");
        Self {
            dir,
            files: 0,
            by_key,
        }
    }

    /// The pipeline file does not name the key.
    pub(crate) fn without_key(self) -> Self {
        self.edit("key: [id], ", "")
    }

    /// A file is read in batches of about so many bytes, a line at least, and an epoch ends with the batch
    /// that makes so many rows: so there are many commits, however slow they are.
    pub(crate) fn in_epochs_of(self, rows: usize, batch_bytes: usize) -> Self {
        let files = format!("*.jsonl\", chunk_bytes: {batch_bytes}");
        let ends = format!("every: 1h, rows: {rows}");
        self.edit("*.jsonl\"", &files).edit("every: 1ms", &ends)
    }

    pub(crate) fn edit(self, from: &str, to: &str) -> Self {
        let file = self.dir.join("orders.yaml");
        let text = fs::read_to_string(&file).expect("the pipeline file");
        let edited = text.replace(from, to);
        assert!(text.contains(from), "{from}: {text}");
        fs::write(file, edited).expect("the pipeline file");
        self
    }

    /// How the table is looked after.
    pub(crate) fn upkeep(self, upkeep: &str) -> Self {
        self.edit(SETTLE_NOTHING, upkeep)
    }

    /// One more file of changes; each file is a batch.
    pub(crate) fn add(&mut self, lines: &[String]) {
        let name = format!("in/{:05}.jsonl", self.files);
        fs::write(self.dir.join(name), lines.join("\n") + "\n").expect("changes");
        self.files += 1;
    }

    pub(crate) fn run(&self, fault: &str) -> ExitStatus {
        Running::start(&self.dir, &self.dir.join("orders.yaml"), fault, &[]).wait()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub(crate) fn runs(&self) {
        let status = self.run("");
        assert!(status.success(), "{}", self.log());
    }

    /// The lines of all rejects.
    pub(crate) fn rejects(&self) -> Vec<String> {
        let files = walk(&self.dir.join("rejects")).into_iter();
        let lines = |file| fs::read_to_string(file).expect("rejects");
        files
            .flat_map(|file| lines(file).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    pub(crate) fn lose_index(&self) {
        fs::remove_dir_all(self.dir.join("lake/.calve-index")).expect("there was an index");
    }

    pub(crate) fn read(&self, queries: &[&str]) -> Value {
        let by_key = self.by_key;
        let spec =
            json!({ "dir": self.dir, "columns": COLUMNS, "queries": queries, "by_key": by_key });
        python("changes.py", &[spec]).remove(0)
    }

    /// The table equals the source's last state; answers with the digest of its rows.
    pub(crate) fn is_last_state(&self, what: &str) -> Value {
        let sums = "SELECT sum(quantity)::BIGINT, round(sum(price) * 100)::BIGINT FROM t";
        let found = self.read(&[sums]);
        assert_eq!(found["rows"], LAST.0, "{what}: {found}\n{}", self.log());
        assert_eq!(found["keys"], LAST.0, "{what}: a key is there twice");
        assert_eq!(found["queries"][0], json!([[LAST.1, LAST.2]]), "{what}");
        found["digest"].clone()
    }

    /// Snapshots with changes; what is merged between them has others.
    pub(crate) fn commits(&self) -> usize {
        let found = self.read(&[]);
        let all = found["summaries"].as_array().expect("snapshots");
        let ours = all.iter().filter(|of| of.get("calve.epoch").is_some());
        ours.count()
    }

    /// Data files, and files of deletes, of the table now.
    pub(crate) fn live_files(&self) -> (usize, usize) {
        let found = self.read(&[]);
        let last = found["summaries"].as_array().and_then(|all| all.last());
        let last = last.expect("a snapshot");
        let count = |of: &str| {
            let files = last[of].as_str().and_then(|n| n.parse().ok());
            files.expect("a number of files")
        };
        (count("total-data-files"), count("total-delete-files"))
    }

    pub(crate) fn verify(&self) {
        let (catalog, checkpoints) = (
            self.dir.join("lake/catalog.db"),
            self.dir.join("checkpoints"),
        );
        let found = command(&[
            "table",
            "verify",
            "--catalog",
            &catalog.to_string_lossy(),
            "--checkpoint",
            &checkpoints.to_string_lossy(),
            "shop.orders",
        ]);
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(
            found.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&found.stderr)
        );
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else if path.extension().is_some_and(|end| end == "ndjson") {
            found.push(path);
        }
    }
    found
}

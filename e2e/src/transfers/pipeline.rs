//! Pipelines of token transfers in folders of their own, for the tests: written, run, and read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Generated, Ledgers};
use crate::{Running, Sink, calve, pause, python};

/// The first ledger that tests read: the real one.
pub const FIRST: u32 = 53_312_000;

/// A pipeline in a folder of its own.
pub struct Place {
    /// The folder.
    pub dir: PathBuf,
    sink: Sink,
}

impl Place {
    /// An empty one.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn new(dir: PathBuf, sink: Sink) -> Self {
        fs::create_dir_all(&dir).expect("a folder");
        Self { dir, sink }
    }

    /// The pipeline file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("transfers.yaml")
    }

    /// The pipeline file: what the source says beside the endpoint, and what else there is.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, endpoint: &str, source: &str, more: &str) {
        let dir = self.dir.display();
        let sink = match self.sink {
            Sink::Iceberg => format!(
                "iceberg: {{ catalog: {{ sqlite: \"{dir}/lake/catalog.db\", warehouse: \"{dir}/lake\" }}, \
                 table: stellar.token_transfers, partition_by: [ \"day(timestamp)\", event_type ] }}"
            ),
            Sink::Parquet => {
                format!(
                    "parquet: {{ path: \"{dir}/out\", layout: date_hour_type, keep_columns: true }}"
                )
            }
        };
        let text = format!(
            "name: transfers\n\
             source: {{ token_transfers: {{ endpoint: \"{endpoint}\", {source} }} }}\n\
             event_time: {{ column: timestamp }}\n\
             sink: {{ {sink} }}\n\
             commit: {{ every: 100ms, min_interval: 10ms }}\n\
             checkpoint: {{ path: \"{dir}/checkpoints\" }}\n\
             rejects: {{ path: \"{dir}/rejects\" }}\n{more}"
        );
        fs::write(self.file(), text).expect("write");
    }

    /// `calve run`, with `CALVE_FAULT` set to `fault` unless empty.
    pub fn start(&self, fault: &str) -> Running {
        Running::start(&self.dir, &self.file(), fault, &[])
    }

    /// What it said on stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Runs to the end, which must be a good one.
    ///
    /// # Panics
    /// When it is none.
    pub fn run(&self) {
        let status = self.start("").wait();
        assert!(status.success(), "{}", self.log());
    }

    /// The number of rows that the table has now, by a reader of its own process; 0 without a table.
    ///
    /// # Panics
    /// When calve cannot be started.
    pub fn rows(&self) -> u64 {
        let sql = "SELECT count(*) AS n FROM stellar.token_transfers";
        let catalog = self.dir.join("lake/catalog.db");
        let done = Command::new(calve())
            .args(["query", "--format", "json", "--catalog"])
            .arg(catalog)
            .arg(sql)
            .stdin(Stdio::null())
            .output()
            .expect("run calve");
        let text = String::from_utf8_lossy(&done.stdout);
        let row: Option<Value> = text
            .lines()
            .next()
            .and_then(|l| serde_json::from_str(l).ok());
        row.and_then(|row| row["n"].as_u64()).unwrap_or(0)
    }

    /// What `transfers.py` takes.
    pub fn spec(&self) -> Value {
        let kind = match self.sink {
            Sink::Iceberg => "iceberg",
            Sink::Parquet => "parquet",
        };
        json!({ "kind": kind, "dir": self.dir, "rejects": self.dir.join("rejects") })
    }

    /// That independent readers find these ledgers in the table, whole and in their order.
    ///
    /// # Panics
    /// When they do not.
    pub fn assert_holds(&self, expected: &Value) {
        let found = self.read();
        assert_eq!(found["ledgers"], *expected, "{found}");
        assert_eq!(
            (&found["torn"], &found["bad_indexes"]),
            (&json!([]), &json!(0)),
            "{found}"
        );
    }

    /// What independent readers find in the table.
    pub fn read(&self) -> Value {
        python("transfers.py", &[self.spec()]).remove(0)
    }
}

/// The settings of a bounded range.
pub fn range(first: u32, last: u32) -> String {
    format!("start_ledger: {first}, end_ledger: {last}")
}

/// calve in a folder; its environment has the server, and an end of the range.
fn command_here(dir: &Path, args: &[&str], endpoint: &str) -> Command {
    let mut command = Command::new(calve());
    command
        .args(args)
        .current_dir(dir)
        .env("TRANSFERS_ENDPOINT", endpoint)
        .env("END_LEDGER", FIRST.to_string())
        .stdin(Stdio::null());
    command
}

/// calve in a folder, to its end; its environment has the server, and an end of the range.
///
/// # Panics
/// When it cannot be started.
pub fn run_here(dir: &Path, args: &[&str], endpoint: &str) -> Output {
    let done = command_here(dir, args, endpoint).output();
    done.expect("run calve")
}

/// As [`run_here`], but it goes on; its stderr goes to `dir/log`.
///
/// # Panics
/// When it cannot be started.
pub fn start_here(dir: &Path, args: &[&str], endpoint: &str) -> Running {
    let log = fs::File::create(dir.join("log")).expect("a log");
    let mut command = command_here(dir, args, endpoint);
    let child = command.stdout(Stdio::null()).stderr(log).spawn();
    child.expect("start calve").into()
}

/// What the table must hold of generated ledgers.
pub fn whole(generated: &Generated, first: u32, last: u32) -> Value {
    let mut counts = serde_json::Map::new();
    for ledger in first..=last {
        let count = generated.events(ledger).len();
        if count > 0 {
            counts.insert(ledger.to_string(), count.into());
        }
    }
    Value::Object(counts)
}

/// Ledgers of about 40 events, of which every seventh is empty.
pub fn generated() -> Generated {
    let mut generated = Generated::new(7, 40);
    generated.empty_every = 7;
    generated
}

/// Waits until the table has so many rows.
///
/// # Panics
/// When it has more, or not so many after half a minute.
pub fn wait_for(place: &Place, rows: u64) {
    let begun = Instant::now();
    let mut found = 0;
    while begun.elapsed() < Duration::from_secs(30) {
        found = place.rows();
        if found == rows {
            return;
        }
        assert!(found < rows, "too many: {found}, not {rows}");
        pause(100);
    }
    panic!("{found} rows, not {rows}: {}", place.log());
}

/// Waits until something is so.
///
/// # Panics
/// When it is not after half a minute.
pub fn wait_until(place: &Place, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", place.log());
        pause(20);
    }
}

/// A file of `examples/`.
///
/// # Panics
/// When there is none of this name.
pub fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    fs::read_to_string(path).expect("an example")
}

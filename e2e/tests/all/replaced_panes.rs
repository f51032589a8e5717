//! Panes of aggregates that replace earlier ones in the table: whatever is killed, the table holds of
//! each window and group the last result, once.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf};

use calve_e2e::{Running, python};
use serde_json::{Value, json};

const EVENTS: u64 = 40_000;

struct Panes {
    dir: PathBuf,
}

impl Panes {
    /// One in 50 events is 3 minutes late; panes fire every 1,500 events, on time, and with each late one.
    fn new(dir: PathBuf, windows: &str, group: &str, key: &str) -> Self {
        fs::create_dir_all(&dir).expect("a folder");
        let root = dir.display();
        let text = format!(
            "name: panes\n\
             source: {{ generator: {{ kind: template, seed: 5, count: {EVENTS}, rate: 100000, density: 100, batch_bytes: 16KiB, \
             late: {{ fraction: 0.02, by: 3m }}, \
             fields: {{ id: {{ sequence: 0 }}, ts: {{ timestamp: s }}, region: {{ choice: [eu, us, apac] }}, \
             user: {{ integer: [1, 3000] }} }} }} }}\n\
             format: {{ json: {{ columns: {{ id: bigint, ts: bigint, region: varchar, user: bigint }} }} }}\n\
             event_time: {{ column: ts, unit: s, max_delay: 2s }}\n\
             transform: {{ sql: \"SELECT id, to_timestamp_seconds(ts) AS ts, region, user FROM events\" }}\n\
             window: {{ {windows}, allowed_lateness: 1h, trigger: {{ early: {{ count: 1500 }}, late: {{ count: 1 }} }} }}\n\
             aggregate: {{ sql: \"SELECT window_start, window_end, {group}, count(*) AS n, sum(id) AS ids FROM events \
             GROUP BY window_start, window_end, {group}\" }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{root}/lake/catalog.db\", warehouse: \"{root}/lake\" }}, \
             table: shop.orders, changes: {{ key: {key} }} }} }}\n\
             commit: {{ every: 40ms, min_interval: 10ms }}\n\
             checkpoint: {{ path: \"{root}/checkpoints\" }}\n"
        );
        fs::write(dir.join("panes.yaml"), text).expect("the pipeline file");
        Self { dir }
    }

    fn run(&self, fault: &str) -> std::process::ExitStatus {
        Running::start(&self.dir, &self.dir.join("panes.yaml"), fault, &[]).wait()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn read(&self, columns: &[&str], queries: &[&str]) -> Value {
        let spec = json!({ "dir": self.dir, "columns": columns, "queries": queries });
        python("changes.py", &[spec]).remove(0)
    }
}

#[test]
fn the_last_pane_of_each_window_stands() {
    let root = tempfile::tempdir().expect("a folder");
    let mut golden = None;
    let faults = [
        "",
        "windows.after_run=kill@3",
        "changes.resolved=kill@3",
        "iceberg.commit.before_cas=kill@2",
        "iceberg.commit.after_cas=kill@4",
    ];
    for (n, fault) in faults.iter().enumerate() {
        let mode = ["accumulating", "retracting"][n % 2];
        let windows = format!("fixed: 1m, accumulation: {mode}");
        let panes = Panes::new(
            root.path().join(n.to_string()),
            &windows,
            "region",
            "[window_start, region]",
        );
        let status = panes.run(fault);
        if fault.is_empty() {
            assert!(status.success(), "{}", panes.log());
        } else {
            assert_eq!(
                status.signal(),
                Some(9),
                "{fault}: not reached: {}",
                panes.log()
            );
            assert!(panes.run("").success(), "{fault}: {}", panes.log());
        }
        let columns = ["window_start", "window_end", "region", "n", "ids"];
        let found = panes.read(&columns, &["SELECT sum(n)::BIGINT, sum(ids)::BIGINT, count(DISTINCT (window_start, region)) FROM t"]);
        let rows = found["rows"].clone();
        assert_eq!(
            found["queries"][0],
            json!([[EVENTS, EVENTS * (EVENTS - 1) / 2, rows]]),
            "{fault}: each event is in one row of its window: {found}"
        );
        let digest = found["digest"].clone();
        assert_eq!(*golden.get_or_insert(digest.clone()), digest, "{fault}");
    }
}

#[test]
fn sessions_that_merge_take_their_rows_back() {
    let root = tempfile::tempdir().expect("a folder");
    let windows = "session: 20s, key: [user], accumulation: retracting";
    let panes = Panes::new(
        root.path().join("sessions"),
        windows,
        "user",
        "[window_start, user]",
    );
    assert!(panes.run("").success(), "{}", panes.log());
    let found = panes.read(
        &["window_start", "window_end", "user", "n", "ids"],
        &[
            "SELECT sum(n)::BIGINT, sum(ids)::BIGINT FROM t",
            "SELECT count(*) FROM t a JOIN t b ON a.user = b.user \
          AND a.window_start < b.window_start AND b.window_start < a.window_end",
        ],
    );
    assert_eq!(
        found["queries"][0],
        json!([[EVENTS, EVENTS * (EVENTS - 1) / 2]]),
        "{found}"
    );
    assert_eq!(
        found["queries"][1],
        json!([[0]]),
        "sessions of a user do not overlap"
    );
}

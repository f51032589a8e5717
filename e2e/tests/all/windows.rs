//! Windows end to end: panes are the same whatever is killed, wherever; a window is visible whole or
//! not at all; late events are accounted for; a drained pipeline may be changed.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf, process::ExitStatus};

use calve_e2e::{Running, python};
use serde_json::{Value, json};

/// 600 s of event time.
const EVENTS: u64 = 60_000;
const RATE: u64 = 120_000;

const AGGREGATE: &str = "SELECT window_start, window_end, region, count(*) AS n, sum(id) AS ids, \
     min(amount) AS low FROM events GROUP BY window_start, window_end, region";

/// A pipeline with windows, in a folder of its own.
struct Windows {
    dir: PathBuf,
}

impl Windows {
    fn new(dir: PathBuf, rate: u64, sections: &str) -> Self {
        fs::create_dir_all(&dir).expect("a folder");
        let windows = Self { dir };
        windows.write(EVENTS, rate, sections);
        windows
    }

    /// With other intervals between commits.
    fn commit(self, commit: &str) -> Self {
        let text = fs::read_to_string(self.file()).expect("read");
        let often = "every: 40ms, min_interval: 10ms";
        assert!(text.contains(often));
        fs::write(self.file(), text.replace(often, commit)).expect("write");
        self
    }

    /// `sections`: `window` and `aggregate`; 1 in 100 events is 5 minutes late.
    fn write(&self, count: u64, rate: u64, sections: &str) {
        let dir = self.dir.display();
        let rate = if rate > 0 {
            format!("rate: {rate}, ")
        } else {
            String::new()
        };
        let text = format!(
            "name: panes\n\
             source: {{ generator: {{ kind: template, seed: 5, count: {count}, {rate}density: 100, batch_bytes: 16KiB, \
             late: {{ fraction: 0.01, by: 5m }}, \
             fields: {{ id: {{ sequence: 0 }}, ts: {{ timestamp: s }}, region: {{ choice: [eu, us, apac, africa, latam] }}, \
             amount: {{ uniform: [0, 100] }} }} }} }}\n\
             format: {{ json: {{ columns: {{ id: bigint, ts: bigint, region: varchar, amount: double }} }} }}\n\
             event_time: {{ column: ts, unit: s, max_delay: 2s }}\n\
             transform: {{ sql: \"SELECT id, to_timestamp_seconds(ts) AS ts, region, amount FROM events\" }}\n\
             {sections}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{dir}/lake/catalog.db\", warehouse: \"{dir}/lake\" }}, \
             table: shop.orders, partition_by: [region] }} }}\n\
             commit: {{ every: 40ms, min_interval: 10ms }}\n\
             checkpoint: {{ path: \"{dir}/checkpoints\" }}\n"
        );
        fs::write(self.file(), text).expect("write the pipeline file");
    }

    fn file(&self) -> PathBuf {
        self.dir.join("panes.yaml")
    }

    fn run(&self, fault: &str, args: &[&str]) -> ExitStatus {
        self.start(fault, args).wait()
    }

    fn start(&self, fault: &str, args: &[&str]) -> Running {
        Running::start(&self.dir, &self.file(), fault, args)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// What the queries over `orders`, `late` and `snapshots` give.
    fn ask(&self, queries: &[&str]) -> Value {
        python(
            "windows.py",
            &[json!({ "dir": self.dir, "queries": queries })],
        )
        .remove(0)
    }

    fn runs(&self) -> Vec<PathBuf> {
        let folder = self.dir.join("checkpoints/panes/.runs/main");
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

const KILLS: &[&str] = &[
    "start.before_claim=kill",
    "start.after_claim=kill",
    "write.finish.before_fsync=kill@2",
    "windows.before_run=kill",
    "windows.before_run=kill@4",
    "windows.after_run=kill@2",
    "prepare.after_files=kill@3",
    "checkpoint.before_create=kill@3",
    "checkpoint.after_create=kill@3",
    "windows.each_dead_run=kill",
    "windows.each_dead_run=kill@3",
    "commit.before=kill@2",
    "commit.between_outputs=kill@2",
    "commit.between_outputs=kill@5",
    "iceberg.commit.before_manifest=kill@2",
    "iceberg.commit.before_metadata=kill@3",
    "iceberg.commit.before_cas=kill@3",
    "iceberg.commit.after_cas=kill@3",
    "commit.after=kill@4",
    "checkpoint.retire.after_floor=kill",
    "checkpoint.retire.each=kill",
];

/// Kills a pipeline at each point; what the queries give afterwards is what it is undisturbed.
fn same_whatever_is_killed(sections: &str, queries: &[&str]) -> Value {
    let root = tempfile::tempdir().expect("a folder");
    let golden = Windows::new(root.path().join("golden"), 0, sections);
    assert!(golden.run("", &[]).success(), "{}", golden.log());
    let expected = golden.ask(queries);
    for (n, fault) in KILLS.iter().enumerate() {
        let windows = Windows::new(root.path().join(n.to_string()), RATE, sections);
        let status = windows.run(fault, &[]);
        assert_eq!(
            status.signal(),
            Some(9),
            "{fault}: not reached: {}",
            windows.log()
        );
        let status = windows.run("", &[]);
        assert!(status.success(), "{fault}: {}", windows.log());
        assert_eq!(windows.ask(queries), expected, "{fault}: {}", windows.log());
        assert_eq!(
            windows.runs(),
            Vec::<PathBuf>::new(),
            "{fault}: runs are left"
        );
    }
    expected
}

#[test]
fn rows_are_in_their_window_s_pane_whatever_is_killed() {
    let found = same_whatever_is_killed(
        "window: { fixed: 1m, pane_columns: true }",
        &[
            "SELECT count(*), count(DISTINCT id), sum(hash(id, ts, region, amount)::HUGEINT)::VARCHAR FROM orders",
            "SELECT date_trunc('minute', ts)::VARCHAR AS w, _pane_index, _pane_timing, _pane_last, count(*) FROM orders \
             GROUP BY ALL ORDER BY ALL",
            "SELECT count(*), count(DISTINCT id), sum(hash(id, ts, region, amount)::HUGEINT)::VARCHAR FROM late",
            "SELECT count(*) FROM (SELECT id FROM orders UNION SELECT id FROM late)",
        ],
    );
    assert_eq!(
        found[3],
        json!([[EVENTS]]),
        "each event is there once: {found}"
    );
    let late = found[2][0][0].as_u64().expect("a number");
    assert!((200..700).contains(&late), "1 in 100 is late: {late}");
    let panes = found[1].as_array().expect("rows");
    assert!(
        (10..=11).contains(&panes.len()),
        "one pane a window: {found}"
    );
}

#[test]
fn aggregates_are_the_same_whatever_is_killed() {
    let sections = format!(
        "window: {{ fixed: 1m, allowed_lateness: 10m, pane_columns: true, accumulation: retracting, changelog: true, \
         trigger: {{ early: {{ count: 2500 }}, late: {{ count: 1 }} }} }}\naggregate: {{ sql: \"{AGGREGATE}\" }}"
    );
    let found = same_whatever_is_killed(
        &sections,
        &[
            "SELECT window_start::VARCHAR, region, n, ids, low, _pane_index, _pane_timing, _pane_last, _op, count(*) FROM orders \
             GROUP BY ALL ORDER BY ALL",
            "SELECT sum(CASE _op WHEN '+' THEN n ELSE -n END) FROM orders",
            "SELECT count(*) FROM late",
            "SELECT count(*) FROM orders WHERE _op = '-'",
        ],
    );
    assert_eq!(
        found[1],
        json!([[EVENTS]]),
        "what stands is every event: {found}"
    );
    assert_eq!(found[2], json!([[0]]), "nothing is later than is allowed");
    assert!(
        found[3][0][0].as_u64() > Some(50),
        "panes were taken back: {found}"
    );
}

#[test]
fn sessions_are_the_same_whatever_is_killed() {
    let sections = "window: { session: 2s, key: [region], allowed_lateness: 10m }\naggregate: { sql: \"SELECT region, window_start, \
         window_end, count(*) AS n, sum(id) AS ids FROM events GROUP BY region, window_start, window_end\" }";
    let found = same_whatever_is_killed(
        sections,
        &[
            "SELECT region, window_start::VARCHAR, window_end::VARCHAR, sum(n), sum(ids) FROM orders GROUP BY ALL ORDER BY ALL",
        ],
    );
    let sessions = found[0].as_array().expect("rows");
    let events: u64 = sessions.iter().map(|row| row[3].as_u64().expect("n")).sum();
    assert_eq!(events, EVENTS);
}

/// What the issue promises: an hour window of 5 regions is 5 files, however many commits there are.
#[test]
fn a_window_is_visible_at_once_and_makes_few_files() {
    let root = tempfile::tempdir().expect("a folder");
    let windows = Windows::new(
        root.path().join("rows"),
        RATE,
        "window: { fixed: 1m, late: drop }",
    );
    assert!(windows.run("", &[]).success(), "{}", windows.log());
    let found = windows.ask(&[
        "SELECT w::VARCHAR, count(DISTINCT snapshot), count(DISTINCT file) FROM orders_by_file GROUP BY ALL ORDER BY ALL",
        "SELECT count(DISTINCT snapshot) FROM orders_by_file",
    ]);
    let by_window = found[0].as_array().expect("rows");
    assert!(by_window.len() >= 10, "{found}");
    for row in by_window {
        assert_eq!(row[1], 1, "a window came in one snapshot: {row}");
        assert_eq!(row[2], 5, "a file a region: {row}");
    }
    let catalog = windows.dir.join("lake/catalog.db");
    let catalog = catalog.to_str().expect("UTF-8");
    let shown = calve_e2e::command(&["table", "show", "--catalog", catalog, "shop.orders"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(
        shown.contains("windows") && shown.contains("closed up to"),
        "{shown}"
    );
    let late = windows.log();
    assert!(
        late.lines().any(|line| line.starts_with("late ")),
        "the summary counts them: {late}"
    );
}

#[test]
fn a_stopped_pipeline_keeps_its_windows_and_a_drained_one_may_change() {
    let root = tempfile::tempdir().expect("a folder");
    let windows = Windows::new(
        root.path().join("stopped"),
        20_000,
        "window: { fixed: 10m, late: append }",
    );
    windows.write(1_000_000, 20_000, "window: { fixed: 10m, late: append }");
    let running = windows.start("", &[]);
    let saved = || -> u64 {
        // A run that is being written has a hidden name first, and both for a moment.
        let runs = windows.runs().into_iter();
        runs.filter(|run| run.extension() == Some("arrow".as_ref()))
            .map(|run| fs::metadata(run).map_or(0, |found| found.len()))
            .sum()
    };
    while saved() < 100_000 {
        calve_e2e::pause(5);
    }
    assert!(running.terminate().success(), "{}", windows.log());
    let visible = "SELECT count(*), count(DISTINCT id) FROM orders";
    let late = windows.ask(&[visible])[0][0][0].as_u64();
    assert!(
        late < Some(500),
        "the window is open, late rows are there: {late:?}"
    );
    assert!(saved() >= 100_000, "and its rows are durable");

    windows.write(1_000_000, 20_000, "window: { fixed: 1m, late: append }");
    assert_eq!(windows.run("", &[]).code(), Some(2));
    let log = windows.log();
    assert!(
        log.contains("changed=window") && log.contains("--drain"),
        "{log}"
    );

    windows.write(1_000_000, 20_000, "window: { fixed: 10m, late: append }");
    assert!(windows.run("", &["--drain"]).success(), "{}", windows.log());
    let drained = windows.ask(&[visible])[0][0][0].as_u64().expect("a count");
    assert!(
        drained > 0 && windows.runs().is_empty(),
        "{}",
        windows.log()
    );

    windows.write(drained + 30_000, 0, "window: { fixed: 1m, late: append }");
    assert!(windows.run("", &[]).success(), "{}", windows.log());
    let all = drained + 30_000;
    assert_eq!(
        windows.ask(&[visible])[0],
        json!([[all, all]]),
        "nothing lost, nothing twice"
    );
}

#[test]
fn rows_of_open_windows_that_are_gone_are_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let sections = "window: { fixed: 10m }";
    let windows = Windows::new(root.path().join("gone"), RATE, sections);
    assert_eq!(windows.run("commit.after=kill", &[]).signal(), Some(9)); // the first is of late rows
    for run in windows.runs() {
        fs::remove_file(run).expect("remove a run");
    }
    assert_eq!(windows.run("", &[]).code(), Some(1));
    let log = windows.log();
    assert!(
        log.contains("rows of open windows are gone from the checkpoint store"),
        "{log}"
    );
}

#[test]
fn late_panes_wait_for_the_next_commit() {
    let root = tempfile::tempdir().expect("a folder");
    let sections = "window: { fixed: 1m, allowed_lateness: 10m, trigger: { late: { count: 1 } } }";
    let windows = Windows::new(root.path().join("late"), 0, sections);
    windows.write(3_000, 1_000, sections);
    let windows = windows.commit("every: 10s, min_interval: 1s");
    let begun = std::time::Instant::now();
    assert!(windows.run("", &[]).success(), "{}", windows.log());
    let seconds = begun.elapsed().as_secs();
    let found = windows.ask(&[
        "SELECT count(DISTINCT snapshot) FROM orders_by_file",
        "SELECT count(*) FROM orders",
    ]);
    assert_eq!(found[1], json!([[3_000]]));
    let snapshots = found[0][0][0].as_u64().expect("a number");
    // About 30 late rows fire as many panes.
    assert!(
        (2..=seconds + 2).contains(&snapshots),
        "{snapshots} in {seconds} s: {}",
        windows.log()
    );
}

/// Rows of open windows are blobs of the database then.
#[test]
fn windows_with_checkpoints_in_sql() {
    let root = tempfile::tempdir().expect("a folder");
    let sections = "window: { fixed: 1m, late: append }";
    let windows = Windows::new(root.path().join("sql"), RATE, sections);
    let text = fs::read_to_string(windows.file()).expect("read");
    let dir = windows.dir.display();
    let sql = text.replace(
        &format!("path: \"{dir}/checkpoints\""),
        &format!("sql: \"sqlite:{dir}/checkpoints.db\""),
    );
    assert_ne!(sql, text);
    fs::write(windows.file(), sql).expect("write");
    assert_eq!(
        windows.run("windows.after_run=kill@3", &[]).signal(),
        Some(9)
    );
    assert!(windows.run("", &[]).success(), "{}", windows.log());
    let found = windows.ask(&["SELECT count(*), count(DISTINCT id) FROM orders"]);
    assert_eq!(found[0], json!([[EVENTS, EVENTS]]));
}

#[test]
fn aggregates_do_not_depend_on_the_number_of_batchers() {
    let root = tempfile::tempdir().expect("a folder");
    let sections = "window: { fixed: 1m, allowed_lateness: 10m }\naggregate: { sql: \"SELECT window_start, region, \
         count(*) AS n, avg(amount) AS mean, approx_percentile_cont(amount, 0.9) AS high FROM events \
         GROUP BY window_start, window_end, region\" }";
    let results = [1, 2, 8].map(|batchers| {
        let dir = root.path().join(batchers.to_string());
        let windows = Windows::new(
            dir,
            0,
            &format!("{sections}\nlimits: {{ batchers: {batchers} }}"),
        );
        assert!(windows.run("", &[]).success(), "{}", windows.log());
        windows.ask(&[
            "SELECT window_start::VARCHAR, region, n, round(mean, 9), high BETWEEN 40 AND 100 FROM orders WHERE n > 100 ORDER BY ALL",
            "SELECT sum(n) FROM orders",
        ])
    });
    assert_eq!(results[0][1], json!([[EVENTS]]));
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

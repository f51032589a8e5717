//! What the user sees: help, results, notes and errors, as snapshots. What differs from run to run
//! (times, rates, sizes, ids) is filtered. `INSTA_UPDATE=always` writes them anew; read the diff.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use calve_e2e::calve;

const ORDERS: &str = r#"name: orders
source: { file: { path: "data/*.ndjson" } }
format:
  json:
    columns: { ts: bigint, user_id: bigint, region: varchar, amount: double, sku: varchar }
event_time: { column: ts, unit: s, max_delay: 10s }
transform:
  sql: |
    SELECT to_timestamp_seconds(ts) AS ts, user_id, region, round(amount, 2) AS amount,
           CASE WHEN amount > 80 THEN 'high' WHEN amount > 30 THEN 'medium' ELSE 'low' END AS bucket
    FROM events
monitor:
  buckets: SELECT bucket, count(*) AS n, avg(amount) AS avg_amount FROM events GROUP BY bucket ORDER BY bucket
sink:
  iceberg:
    catalog: { sqlite: lake/catalog.db, warehouse: lake }
    table: shop.orders
    partition_by: [ "day(ts)", region ]
commit: { compression: zstd(1) }
limits: { batchers: 1 }
rejects: { path: rejects }
"#;

const ICEBERG: &str = "  iceberg:
    catalog: { sqlite: lake/catalog.db, warehouse: lake }
    table: shop.orders
    partition_by: [ \"day(ts)\", region ]
";
const PARQUET: &str = "  parquet: { path: out, layout: \"region={region}/orders-{seq}.parquet\" }
";

/// A folder with pipelines and events.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir(place.path().join("data")).expect("a folder");
        let regions = ["eu", "us", "apac"];
        let mut events = String::new();
        for n in 0..12 {
            events.push_str(&format!(
                "{{\"ts\":{},\"user_id\":{n},\"region\":\"{}\",\"amount\":{}.5,\"sku\":\"s{n}\"}}\n",
                1_767_225_600 + n * 3600,
                regions[n % 3],
                n * 9
            ));
            if n == 5 {
                events.push_str("{\"ts\":\"noon\",\"user_id\":1}\nnot JSON\n");
            }
        }
        place.write("data/a.ndjson", &events);
        place.write("orders.yaml", ORDERS);
        place.write(
            "parquet.yaml",
            &ORDERS
                .replace("name: orders", "name: orders-parquet")
                .replace(ICEBERG, PARQUET),
        );
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).expect("write a file");
    }

    fn calve(&self, args: &[&str]) -> Output {
        let mut command = Command::new(calve());
        for name in ["CALVE_LOG", "CALVE_FAULT", "COLUMNS", "LINES"] {
            command.env_remove(name);
        }
        let command = command.args(args).current_dir(self.path());
        command.stdin(Stdio::null()).output().expect("run calve")
    }

    /// A command line, its exit code, and what it said on either stream.
    fn shown(&self, args: &[&str]) -> String {
        let done = self.calve(args);
        let mut text = format!("$ calve {}\n", args.join(" "));
        for (name, stream) in [("stdout", &done.stdout), ("stderr", &done.stderr)] {
            if !stream.is_empty() {
                let stream = String::from_utf8(stream.clone()).expect("UTF-8");
                text.push_str(&format!("--- {name}\n{stream}"));
            }
        }
        let code = done.status.code().expect("no signal ended it");
        text.push_str(&format!("--- exit code {code}\n\n"));
        text
    }

    fn session(&self, commands: &[&[&str]]) -> String {
        commands.iter().map(|args| self.shown(args)).collect()
    }
}

fn code(done: &Output) -> Option<i32> {
    done.status.code()
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

fn snapshot(place: &Place, name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(true);
    settings.set_omit_expression(true);
    let folder = place.path().canonicalize().expect("a folder");
    for (pattern, instead) in [
        (folder.to_str().expect("UTF-8"), "[DIR]"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,6}Z", "[TIME]"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[UUID]"),
        (r"main-[0-9a-f]{32}", "main-[UUID]"),
        (r"\b\d{16,19}\b", "[ID]"),
        (r"\b(bytes|ms)=\d+", "$1=[N]"),
        (r"elapsed  +.*", "elapsed      [TIME]"),
        (r"rate  +.*", "rate         [RATE]"),
        (r"\b\d+(\.\d+)? ([kMG]|[KMG]i)?B\b", "[SIZE]"),
        // Columns are as wide as what they hold.
        (
            r" +(\[SIZE\]|\[ID\]|\[TIME\]|SIZE|SNAPSHOTS|UPDATED) +",
            "  $1  ",
        ),
    ] {
        settings.add_filter(pattern, instead);
    }
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn help_of_every_command() {
    let place = Place::new();
    let commands: [&[&str]; 22] = [
        &["--help"],
        &["demo", "--help"],
        &["run", "--help"],
        &["check", "--help"],
        &["explain", "--help"],
        &["tap", "--help"],
        &["query", "--help"],
        &["table", "--help"],
        &["table", "ls", "--help"],
        &["table", "show", "--help"],
        &["table", "compact", "--help"],
        &["table", "expire", "--help"],
        &["table", "clean", "--help"],
        &["table", "verify", "--help"],
        &["checkpoint", "--help"],
        &["checkpoint", "ls", "--help"],
        &["checkpoint", "show", "--help"],
        &["checkpoint", "reset", "--help"],
        &["checkpoint", "rebuild", "--help"],
        &["init", "--help"],
        &["schema", "--help"],
        &["nosuch"],
    ];
    snapshot(&place, "help", &place.session(&commands));
    assert_eq!(
        code(&place.calve(&[])),
        Some(2),
        "no command is wrong usage"
    );
}

#[test]
fn check_of_good_files() {
    let place = Place::new();
    let commands: [&[&str]; 3] = [
        &["check", "orders.yaml"],
        &["check", "orders.yaml", "--connect"],
        &["check", "parquet.yaml"],
    ];
    snapshot(&place, "check_good", &place.session(&commands));
    assert!(!place.path().join("lake").exists(), "check writes nothing");
}

/// Words and timelines: of the examples with windows, and of a pipeline without.
#[test]
fn explain_of_good_and_bad_files() {
    let place = Place::new();
    for name in ["hourly-aggregates.yaml", "sessions.yaml"] {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let text = fs::read_to_string(example.join(name)).expect("an example");
        place.write(name, &text);
    }
    let windows = "window: { fixed: 1h, allowed_lateness: 10m, trigger: { early: { every: 30s }, late: { count: 1 } } }\n";
    place.write("hours.yaml", &format!("{ORDERS}{windows}"));
    place.write("bad.yaml", &format!("{ORDERS}window: {{ session: 10m }}\n"));
    let commands: [&[&str]; 9] = [
        &["explain", "orders.yaml"],
        &["explain", "hours.yaml"],
        &["explain", "hourly-aggregates.yaml"],
        &["explain", "sessions.yaml"],
        &["explain", "bad.yaml"],
        &["explain", "nosuch.yaml"],
        &["check", "hours.yaml"],
        &["check", "hourly-aggregates.yaml"],
        &["check", "sessions.yaml"],
    ];
    snapshot(&place, "explain", &place.session(&commands));
    for (file, expected) in [("hours.yaml", 0), ("bad.yaml", 2), ("nosuch.yaml", 2)] {
        let done = place.calve(&["explain", file]);
        assert_eq!(code(&done), Some(expected), "{file}: {}", said(&done));
    }
    let lake = place.path().join("lake");
    assert!(!lake.exists(), "neither writes anything");
}

/// The commands around checkpoints know of windows, and of the table of late rows.
#[test]
fn checkpoints_of_windows() {
    let place = Place::new();
    // Several batches, so that event time passes within the file.
    let (path, chunked) = (
        r#""data/*.ndjson" }"#,
        r#""data/*.ndjson", chunk_bytes: 256 }"#,
    );
    let text = ORDERS.replace(path, chunked);
    assert_ne!(text, ORDERS);
    place.write("hours.yaml", &format!("{text}window: {{ fixed: 1h }}\n"));
    let calve = |args: &[&str], expected: i32| {
        let done = place.calve(args);
        assert_eq!(code(&done), Some(expected), "{args:?}: {}", said(&done));
        (
            String::from_utf8_lossy(&done.stdout).into_owned(),
            said(&done),
        )
    };
    calve(&["run", "hours.yaml"], 0);
    // It comes when its hour has closed.
    let late = r#"{"ts":1767225600,"user_id":99,"region":"eu","amount":1.5,"sku":"late"}"#;
    place.write("data/b.ndjson", &format!("{late}\n"));
    calve(&["run", "hours.yaml"], 0);
    let (listed, _) = calve(&["checkpoint", "ls", "hours.yaml"], 0);
    for title in ["LATE", "WINDOWS", "HELD", "RUNS"] {
        assert!(listed.contains(title), "{listed}");
    }
    let (record, notes) = calve(&["checkpoint", "show", "hours.yaml"], 0);
    assert!(
        notes.contains("windows: open=0 rows_held=0 runs=0"),
        "{notes}"
    );
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    assert!(record["outputs"]["late"].is_object(), "{record}");
    calve(&["checkpoint", "rebuild", "hours.yaml"], 0);

    // From the tables alone it is a loss, which the user must want.
    fs::remove_dir_all(place.path().join("lake/.calve-checkpoints")).expect("remove the store");
    let (_, notes) = calve(&["checkpoint", "rebuild", "hours.yaml"], 2);
    assert!(notes.contains("--lose-open-windows"), "{notes}");
    calve(
        &["checkpoint", "rebuild", "hours.yaml", "--lose-open-windows"],
        0,
    );
    let rows = || {
        let sql = "SELECT (SELECT count(*) FROM shop.orders) AS rows, (SELECT count(*) FROM shop.orders_late) AS late";
        calve(
            &[
                "query",
                "--catalog",
                "lake/catalog.db",
                "--format",
                "json",
                sql,
            ],
            0,
        )
        .0
    };
    let before = rows();
    calve(&["run", "hours.yaml"], 0);
    assert_eq!(
        rows(),
        before,
        "everything was read before, the late row too"
    );
    assert!(before.contains("\"late\":1"), "{before}");

    let (_, notes) = calve(&["checkpoint", "reset", "hours.yaml", "--yes"], 0);
    assert!(notes.contains("table=shop.orders_late"), "{notes}");
    calve(&["run", "hours.yaml"], 0);
    assert_ne!(rows(), before, "everything was read again");
}

#[test]
fn check_of_bad_files() {
    let place = Place::new();
    let wrong = [
        (
            "unknown-key",
            "commit: { compression",
            "commit: { compresion",
        ),
        ("unknown-section", "rejects:", "reject:"),
        ("unknown-source", "{ file: {", "{ fill: {"),
        ("missing-variable", "name: orders", "name: ${ORDERS_NAME}"),
        (
            "empty-variable",
            "name: orders",
            "name: ${ORDERS_NAME:?name the pipeline}",
        ),
        ("bad-name", "name: orders", "name: Our Orders"),
        ("wrong-type", "max_delay: 10s", "max_delay: soon"),
        ("wrong-kind", "path: rejects", "path: [ rejects ]"),
        ("wrong-column-type", "amount: double", "amount: money"),
        ("no-event-time", "column: ts", "column: time"),
        ("sql-syntax", "SELECT to_", "SELEC to_"),
        ("sql-column", "amount > 30", "amont > 30"),
        (
            "sql-grouped",
            "FROM events\nmonitor",
            "FROM events GROUP BY 1\nmonitor",
        ),
        ("monitor-column", "avg(amount)", "avg(price)"),
        ("partition-column", "region ]", "regin ]"),
        ("partition-transform", "day(ts)", "daily(ts)"),
        ("partition-type", "day(ts)", "day(region)"),
        ("compression", "zstd(1)", "zstd(99)"),
        ("yaml", "name: orders", "name: [ orders"),
        ("two-sinks", ICEBERG, &format!("{ICEBERG}{PARQUET}")),
    ];
    let mut text = String::new();
    let mut refused = |name: &str, from: &str, to: &str| {
        let file = format!("{name}.yaml");
        assert_eq!(ORDERS.matches(from).count(), 1, "{name}: {from}");
        place.write(&file, &ORDERS.replacen(from, to, 1));
        text.push_str(&place.shown(&["check", &file]));
        let done = place.calve(&["check", &file]);
        assert_eq!(code(&done), Some(2), "{name}: {}", said(&done));
        assert!(done.stdout.is_empty(), "{name}: results only on stdout");
    };
    for (name, from, to) in wrong {
        refused(name, from, to);
    }
    refused(
        "layout-column",
        ICEBERG,
        &PARQUET.replace("{region}", "{regio}"),
    );
    refused("layout-syntax", ICEBERG, &PARQUET.replace("{seq}", "{seq"));
    place.write("empty.yaml", "");
    for file in ["empty.yaml", "nosuch.yaml", "data"] {
        text.push_str(&place.shown(&["check", file]));
        assert_eq!(code(&place.calve(&["check", file])), Some(2), "{file}");
    }
    snapshot(&place, "check_bad", &text);
}

#[test]
fn run_into_iceberg_and_look_at_it() {
    let place = Place::new();
    let commands: [&[&str]; 7] = [
        &["run", "orders.yaml"],
        &["run", "orders.yaml"],
        &["table", "ls"],
        &["table", "show", "shop.orders"],
        &["table", "show", "shop.nosuch"],
        &["checkpoint", "ls", "orders.yaml"],
        &["checkpoint", "show", "orders.yaml", "99"],
    ];
    snapshot(&place, "run_iceberg", &place.session(&commands));

    let done = place.calve(&["checkpoint", "show", "orders.yaml"]);
    let record: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(record["pipeline"], "orders");
    assert!(done.stderr.is_empty(), "{}", said(&done));

    // The table that is there is compared with the pipeline, whatever differs.
    let changed = ORDERS
        .replace("day(ts)", "hour(ts)")
        .replace(
            "round(amount, 2) AS amount",
            "CAST(amount AS VARCHAR) AS amount",
        )
        .replace(", avg(amount) AS avg_amount", "");
    place.write("changed.yaml", &changed);
    let commands: [&[&str]; 3] = [
        &["check", "orders.yaml", "--connect"],
        &["check", "changed.yaml", "--connect"],
        &["run", "changed.yaml"],
    ];
    snapshot(&place, "existing_table", &place.session(&commands));
}

#[test]
fn run_into_parquet_and_clean() {
    let place = Place::new();
    let mut text = place.shown(&["run", "parquet.yaml"]);
    let folder = place.path().join("out/region=eu");
    let files = fs::read_dir(folder).expect("a folder of files").count();
    assert_eq!(files, 1);
    place.write("out/_calve/staged/leftover.parquet", "cut off");
    let commands: [&[&str]; 4] = [
        &["table", "clean", "out", "--dry-run", "--older-than", "0s"],
        &["table", "clean", "out", "--older-than", "59m"],
        &["table", "clean", "out"],
        &["table", "clean", "out", "--older-than", "0s", "--stopped"],
    ];
    text.push_str(&place.session(&commands));
    snapshot(&place, "run_parquet", &text);
    assert!(
        !place
            .path()
            .join("out/_calve/staged/leftover.parquet")
            .exists()
    );
}

#[test]
fn queries_and_taps_give_results_on_stdout() {
    let place = Place::new();
    assert_eq!(code(&place.calve(&["run", "orders.yaml"])), Some(0));
    let sql =
        "SELECT region, count(*) AS n, max(ts) AS last FROM shop.orders GROUP BY 1 ORDER BY 1";
    let commands: [&[&str]; 9] = [
        &["query", sql],
        &["query", "--format", "json", sql],
        &["query", "--format", "csv", sql],
        &["query", "SELECT nosuch FROM shop.orders"],
        &["query", "DROP TABLE shop.orders"],
        &["query", "--catalog", "nosuch.db", "SELECT 1"],
        &["query", "--file", "parquet.yaml", "SELECT 1"],
        &["tap", "orders.yaml"],
        &["tap", "orders.yaml", "--limit", "1"],
    ];
    snapshot(&place, "query_and_tap", &place.session(&commands));
    let done = place.calve(&["query", sql]);
    assert!(done.stderr.is_empty(), "{}", said(&done));
}

#[test]
fn what_init_prints_passes_check() {
    let place = Place::new();
    for kind in ["", "iceberg", "parquet", "generator", "csv"] {
        let args = ["init", kind];
        let done = place.calve(&args[..=usize::from(!kind.is_empty())]);
        assert!(done.status.success() && done.stderr.is_empty(), "{kind}");
        let text = String::from_utf8(done.stdout).expect("UTF-8");
        place.write("pipeline.yaml", &text);
        let done = place.calve(&["check", "pipeline.yaml"]);
        assert_eq!(code(&done), Some(0), "{kind}: {}", said(&done));
    }
    snapshot(&place, "init", &place.shown(&["init", "nosuch"]));
}

#[test]
fn a_json_log_is_json_to_its_last_line() {
    let place = Place::new();
    let lines = |done: &Output| -> Vec<serde_json::Value> {
        let text = said(done);
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().expect("each line is JSON")
    };
    let done = place.calve(&["--log", "json", "run", "orders.yaml"]);
    assert_eq!(code(&done), Some(0));
    assert!(done.stdout.is_empty());
    let log = lines(&done);
    let last = &log.last().expect("lines")["fields"];
    assert_eq!(last["message"], "done");
    assert_eq!(
        (&last["events"], &last["rejected"]),
        (&14.into(), &2.into())
    );
    let monitor = log
        .iter()
        .find(|line| line["fields"]["monitor"] == "buckets");
    let rows = monitor.expect("a figure")["fields"]["rows"].clone();
    let rows: serde_json::Value = serde_json::from_str(rows.as_str().expect("text")).expect("JSON");
    assert_eq!(rows.as_array().map(Vec::len), Some(3));

    place.write("wrong.yaml", &ORDERS.replace("sql:", "sqll:"));
    let done = place.calve(&["--log", "json", "run", "wrong.yaml"]);
    assert_eq!(code(&done), Some(2));
    let log = lines(&done);
    assert_eq!(log.len(), 1);
    assert_eq!(log[0]["level"], "ERROR");
    assert!(
        log[0]["fields"]["hint"]
            .as_str()
            .is_some_and(|h| h.contains("`sql`"))
    );
}

#[test]
fn a_taken_port_stops_the_start_before_anything_is_made() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    place.write(
        "served.yaml",
        &format!("{ORDERS}serve: {{ listen: \"{address}\" }}\n"),
    );
    let done = place.calve(&["run", "served.yaml"]);
    assert_eq!(code(&done), Some(2), "{}", said(&done));
    assert!(said(&done).contains("cannot listen") && said(&done).contains("hint:"));
    assert!(!place.path().join("lake").exists(), "nothing was made");
}

#[test]
fn paths_with_spaces_and_a_file_without_permission() {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new();
    let spaced = ORDERS
        .replace("data/", "my data/")
        .replace("lake", "my lake")
        .replace("path: rejects", "path: my rejects");
    fs::rename(place.path().join("data"), place.path().join("my data")).expect("rename");
    place.write("my orders.yaml", &spaced);
    let done = place.calve(&["run", "my orders.yaml"]);
    assert_eq!(code(&done), Some(0), "{}", said(&done));
    assert!(said(&done).contains("(see my rejects)"), "{}", said(&done));
    let count = [
        "query",
        "--file",
        "my orders.yaml",
        "--format",
        "csv",
        "SELECT count(*) AS n FROM shop.orders",
    ];
    assert_eq!(place.calve(&count).stdout, b"n\n12\n");

    let file = place.path().join("my orders.yaml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("forbid");
    // Root may read everything, and then there is nothing to see.
    if fs::read(&file).is_err() {
        let done = place.calve(&["check", "my orders.yaml"]);
        assert_eq!(code(&done), Some(2));
        assert!(said(&done).contains("cannot read the pipeline file"));
    }
}

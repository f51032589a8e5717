//! Token transfers over gRPC, from a server of our own to tables that independent readers read: every
//! field of the real ledger, and every failure of server and process.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use calve_e2e::{
    Running, calve, pause, python,
    transfers::{Fault, Generated, Ledgers, Real, Server, Settings, What},
};
use serde_json::{Value, json};
use tonic::Code;

const FIRST: u32 = 53_312_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    Iceberg,
    Parquet,
}

/// A pipeline in a folder of its own.
struct Place {
    dir: PathBuf,
    sink: Sink,
}

impl Place {
    fn new(dir: PathBuf, sink: Sink) -> Self {
        fs::create_dir_all(&dir).expect("a folder");
        Self { dir, sink }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("transfers.yaml")
    }

    /// The pipeline file: what the source says beside the endpoint, and what else there is.
    fn write(&self, endpoint: &str, source: &str, more: &str) {
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

    fn start(&self, fault: &str) -> Running {
        Running::start(&self.dir, &self.file(), fault, &[])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Runs to the end, which must be a good one.
    fn run(&self) {
        let status = self.start("").wait();
        assert!(status.success(), "{}", self.log());
    }

    /// The number of rows that the table has now, by a reader of its own process; 0 without a table.
    fn rows(&self) -> u64 {
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

    fn spec(&self) -> Value {
        let kind = match self.sink {
            Sink::Iceberg => "iceberg",
            Sink::Parquet => "parquet",
        };
        json!({ "kind": kind, "dir": self.dir, "rejects": self.dir.join("rejects") })
    }

    fn read(&self) -> Value {
        python("transfers.py", &[self.spec()]).remove(0)
    }
}

fn range(first: u32, last: u32) -> String {
    format!("start_ledger: {first}, end_ledger: {last}")
}

fn run_here(dir: &Path, args: &[&str], endpoint: &str) -> Output {
    Command::new(calve())
        .args(args)
        .current_dir(dir)
        .env("TRANSFERS_ENDPOINT", endpoint)
        .env("END_LEDGER", FIRST.to_string())
        .stdin(Stdio::null())
        .output()
        .expect("run calve")
}

/// What the table must hold of generated ledgers.
fn whole(generated: &Generated, first: u32, last: u32) -> Value {
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
fn generated() -> Generated {
    let mut generated = Generated::new(7, 40);
    generated.empty_every = 7;
    generated
}

#[test]
fn every_field_of_the_real_ledger_is_in_the_table() {
    let server = Server::start(Real::one(), Settings::default());
    let jsonl = calve_e2e::transfers::fixtures().join("token-transfers/ledger-53312000.jsonl");
    let root = tempfile::tempdir().expect("a folder");
    // The starter as it is, into Iceberg; and its Parquet layout.
    let dir = root.path().join("starter");
    fs::create_dir(&dir).expect("a folder");
    let text = run_here(&dir, &["init", "token-transfers"], "").stdout;
    fs::write(dir.join("t.yaml"), text).expect("write");
    let done = run_here(&dir, &["run", "t.yaml"], &server.endpoint());
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(
        said.contains("296"),
        "a summary at the end of the range: {said}"
    );
    let place = Place::new(root.path().join("parquet"), Sink::Parquet);
    place.write(&server.endpoint(), &range(FIRST, FIRST), "");
    place.run();
    let specs = [
        json!({ "kind": "iceberg", "dir": dir, "jsonl": jsonl }),
        json!({ "kind": "parquet", "dir": place.dir, "jsonl": jsonl, "rejects": place.dir.join("rejects") }),
    ];
    for found in python("transfers.py", &specs) {
        assert_eq!(found["wrong"], json!([]), "{found}");
        assert_eq!(found["rows"], 296, "{found}");
        assert_eq!(found["kinds"], json!({ "fee": 164, "transfer": 132 }));
        assert_eq!(found["duckdb"], found["fingerprint"], "{found}");
        assert_eq!(found["rejects"], json!([]));
    }
}

#[test]
fn every_kind_of_failure_of_the_server_is_survived_in_the_middle_of_a_ledger() {
    let (first, last) = (FIRST, FIRST + 60);
    let generated = generated();
    let expected = whole(&generated, first, last);
    let fault = |ledger: u32, after, what| Fault {
        ledger: first + ledger,
        after,
        what,
    };
    let settings = Settings {
        faults: vec![
            fault(3, 5, What::Status(Code::Unavailable)),
            fault(10, 17, What::Status(Code::Internal)),
            fault(20, 1, What::Cut),
            fault(30, 0, What::Status(Code::Unavailable)),
            fault(31, 9, What::Status(Code::Unknown)),
            fault(41, 3, What::Cut),
            // Behind all events of the last ledger, of which nobody knows that it is whole.
            fault(60, 1000, What::Status(Code::Internal)),
        ],
        ..Settings::default()
    };
    let server = Server::start(generated, settings);
    let root = tempfile::tempdir().expect("a folder");
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    place.write(&server.endpoint(), &range(first, last), "");
    place.run();
    let found = place.read();
    assert_eq!(found["ledgers"], expected, "{found}");
    assert_eq!(
        (&found["torn"], &found["bad_indexes"]),
        (&json!([]), &json!(0))
    );
    assert_eq!(server.asked().len(), 8, "{:?}", server.asked());
    assert_eq!(place.log().matches("the stream is interrupted").count(), 7);
}

#[test]
fn killed_anywhere_the_table_is_the_same_and_holds_whole_ledgers() {
    let (first, last) = (FIRST, FIRST + 150);
    let root = tempfile::tempdir().expect("a folder");
    let paced = || Settings {
        pause_ms: 8,
        ..Settings::default()
    };
    let server = Server::start(generated(), paced());
    let expected = whole(&generated(), first, last);
    let mut places = Vec::new();
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let golden = Place::new(root.path().join(format!("{sink:?}")), sink);
        golden.write(&server.endpoint(), &range(first, last), "");
        golden.run();
        places.push(golden);
        let own: &[&str] = match sink {
            Sink::Iceberg => &[
                "iceberg.commit.before_cas=kill@3",
                "iceberg.commit.after_cas=kill@2",
            ],
            Sink::Parquet => &[
                "parquet.publish.each=kill@4",
                "parquet.commit.before_entry=kill@2",
            ],
        };
        let both = [
            "checkpoint.before_create=kill@3",
            "checkpoint.after_create=kill@4",
            "prepare.after_files=kill@2",
            "commit.after=kill@3",
        ];
        for fault in both.iter().chain(own) {
            let place = Place::new(root.path().join(format!("{sink:?}-{fault}")), sink);
            place.write(&server.endpoint(), &range(first, last), "");
            let status = place.start(fault).wait();
            assert_eq!(
                status.signal(),
                Some(9),
                "{fault}: not reached: {}",
                place.log()
            );
            place.run();
            places.push(place);
        }
        // At moments that nobody chose, with a server that fails beside.
        let place = Place::new(root.path().join(format!("{sink:?}-random")), sink);
        place.write(&server.endpoint(), &range(first, last), "");
        for n in 0..6_u64 {
            let running = place.start("");
            pause(150 + 97 * n % 240);
            if n % 2 == 0 {
                server.cut();
                pause(40);
            }
            running.kill();
        }
        place.run();
        places.push(place);
    }
    let specs: Vec<Value> = places.iter().map(Place::spec).collect();
    let all = python("transfers.py", &specs);
    let fingerprint = all[0]["fingerprint"].clone();
    for (place, found) in places.iter().zip(all) {
        let what = place.dir.display();
        assert_eq!(found["ledgers"], expected, "{what}: {found}");
        assert_eq!(found["fingerprint"], fingerprint, "{what}");
        assert_eq!(found["duckdb"], fingerprint, "{what}");
        assert_eq!(
            found["torn"],
            json!([]),
            "{what}: a commit holds half a ledger"
        );
        assert_eq!(found["bad_indexes"], 0, "{what}");
        assert!(found["snapshots"].as_u64() > Some(3), "{what}: {found}");
    }
}

#[test]
fn a_live_ledger_becomes_visible_without_further_events() {
    let root = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        tip: Some(FIRST + 1),
        ..Settings::default()
    };
    let generated = Generated::new(3, 40);
    let counts: Vec<u64> = (0..4)
        .map(|n| generated.events(FIRST + n).len() as u64)
        .collect();
    let server = Server::start(generated, settings);
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    let source = format!("start_ledger: {FIRST}, idle: 1s");
    place.write(&server.endpoint(), &source, "");
    let running = place.start("");
    // The last ledger has no later one; silence ends it.
    wait_for(&place, counts[0] + counts[1]);
    server.set_tip(FIRST + 2);
    wait_for(&place, counts[..3].iter().sum());
    assert!(running.terminate().success(), "{}", place.log());
    // While nobody looked the network went on.
    server.set_tip(FIRST + 3);
    let running = place.start("");
    wait_for(&place, counts.iter().sum());
    assert!(running.terminate().success(), "{}", place.log());
    let found = place.read();
    assert_eq!(found["torn"], json!([]), "{found}");
    assert_eq!(found["bad_indexes"], 0);
}

fn wait_for(place: &Place, rows: u64) {
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

#[test]
fn a_range_may_be_made_longer_afterwards() {
    let generated = generated();
    let expected = whole(&generated, FIRST, FIRST + 20);
    let server = Server::start(generated, Settings::default());
    let root = tempfile::tempdir().expect("a folder");
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    for last in [9, 9, 5, 20] {
        place.write(&server.endpoint(), &range(FIRST, FIRST + last), "");
        place.run();
    }
    let found = place.read();
    assert_eq!(found["ledgers"], expected, "{found}");
    assert_eq!(
        (&found["torn"], &found["bad_indexes"]),
        (&json!([]), &json!(0))
    );
    let asked = server.asked();
    assert_eq!(
        asked.len(),
        2,
        "what was read is not asked for again: {asked:?}"
    );
}

#[test]
fn what_is_wrong_is_said_and_stops_or_is_rejected() {
    let root = tempfile::tempdir().expect("a folder");
    let mut bad = generated().decoded(FIRST + 2).remove(0);
    if let Some(meta) = &mut bad.meta {
        meta.tx_hash = "abc".to_owned();
    }
    let bad = Bytes::from(prost::Message::encode_to_vec(&bad));
    let fault = |what| Settings {
        faults: vec![Fault {
            ledger: FIRST + 2,
            after: 4,
            what,
        }],
        ..Settings::default()
    };
    let run = |name: &str, endpoint: &str, source: &str| {
        let place = Place::new(root.path().join(name), Sink::Iceberg);
        place.write(endpoint, source, "");
        let status = place.start("").wait();
        (status.code(), place)
    };
    let some = range(FIRST, FIRST + 4);

    // One that is no message at all, and one without the ledger that it is of.
    for (name, poison) in [("garbage", vec![0x0a, 0xff, 0xff]), ("empty", Vec::new())] {
        let server = Server::start(generated(), fault(What::Message(poison.into())));
        let (code, place) = run(name, &server.endpoint(), &some);
        assert_eq!(code, Some(0), "{name}: {}", place.log());
        let found = place.read();
        assert_eq!(
            found["rejects"].as_array().map(Vec::len),
            Some(1),
            "{name}: {found}"
        );
    }

    let server = Server::start(generated(), fault(What::Message(bad)));
    let (code, place) = run("hash", &server.endpoint(), &some);
    assert_eq!(code, Some(0), "{}", place.log());
    let found = place.read();
    let rejects = found["rejects"].as_array().expect("rejects");
    assert_eq!(rejects.len(), 1, "{found}");
    let error = rejects[0]["error"].as_str().expect("text");
    assert!(
        error.contains("tx_hash") && !error.contains("abc"),
        "{error}"
    );
    assert_eq!(rejects[0]["offset"], FIRST + 2);

    let server = Server::start(
        generated(),
        fault(What::Message(Bytes::from(vec![0; 9 << 20]))),
    );
    let (code, place) = run("large", &server.endpoint(), &some);
    assert_eq!(code, Some(2), "{}", place.log());
    assert!(
        place.log().contains("raise `max_message_size`"),
        "{}",
        place.log()
    );

    let settings = Settings {
        token: Some("letmein".to_owned()),
        ..Settings::default()
    };
    let server = Server::start(generated(), settings);
    let (code, place) = run("stranger", &server.endpoint(), &some);
    assert_eq!(code, Some(2), "{}", place.log());
    assert!(place.log().contains("UNAUTHENTICATED"), "{}", place.log());
    let (code, place) = run(
        "guest",
        &server.endpoint(),
        &format!("{some}, token: letmein"),
    );
    assert_eq!(code, Some(0), "{}", place.log());
    assert!(!place.log().contains("letmein"));

    // Before anything is connected: nobody listens there.
    for (source, why) in [
        (range(9, 8), "end_ledger is before start_ledger"),
        (range(0, 8), "start_ledger is 0"),
    ] {
        let (code, place) = run("range", "http://127.0.0.1:1", &source);
        assert_eq!(code, Some(2), "{}", place.log());
        assert!(place.log().contains(why), "{}", place.log());
    }
    let (code, place) = run("nobody", "http://127.0.0.1:1", &some);
    assert_eq!(code, Some(1), "{}", place.log());
    assert!(place.log().contains("cannot connect"), "{}", place.log());
    assert!(!place.dir.join("lake").exists(), "nothing is made");
}

#[test]
fn tls_needs_a_certificate_that_is_trusted() {
    let root = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["transfers.test".to_owned()]);
    let made = made.expect("a certificate");
    let pem = made.cert.pem();
    let settings = Settings {
        tls: Some((pem.clone(), made.signing_key.serialize_pem())),
        ..Settings::default()
    };
    let server = Server::start(generated(), settings);
    let endpoint = server.endpoint().replace("http://", "https://");
    let ca = root.path().join("ca.pem");
    fs::write(&ca, pem).expect("write");
    let some = range(FIRST, FIRST + 4);
    let place = Place::new(root.path().join("trusting"), Sink::Iceberg);
    let tls = format!(
        "{some}, tls: {{ ca: \"{}\", domain: transfers.test }}",
        ca.display()
    );
    place.write(&endpoint, &tls, "");
    place.run();
    assert_eq!(
        place.read()["ledgers"],
        whole(&generated(), FIRST, FIRST + 4)
    );
    let place = Place::new(root.path().join("careful"), Sink::Iceberg);
    place.write(
        &endpoint,
        &format!("{some}, tls: {{ domain: transfers.test }}"),
        "",
    );
    let status = place.start("").wait();
    assert_eq!(status.code(), Some(1), "{}", place.log());
    assert!(place.log().contains("certificate"), "{}", place.log());
}

#[test]
fn a_sink_that_stands_still_holds_the_server_back() {
    let root = tempfile::tempdir().expect("a folder");
    let (first, last) = (FIRST, FIRST + 3000);
    let server = Server::start(Generated::new(5, 400), Settings::default());
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    place.write(
        &server.endpoint(),
        &range(first, last),
        "limits: { memory: 64MiB }\n",
    );
    // However fast the machine is, an epoch has so many rows.
    let text = fs::read_to_string(place.file()).expect("read");
    let few = text.replace("min_interval: 10ms", "min_interval: 10ms, rows: 50000");
    assert_ne!(few, text);
    fs::write(place.file(), few).expect("write");
    // No commit succeeds, so that epochs pile up, up to their limit.
    let running = place.start("iceberg.commit.before_manifest=error@1+");
    let mut before = 0;
    let begun = Instant::now();
    loop {
        pause(700);
        let sent = server.sent();
        if sent > 0 && sent == before {
            break;
        }
        before = sent;
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "it is read on and on: {sent}"
        );
    }
    let expected = whole(&Generated::new(5, 400), first, last);
    let all: u64 = expected
        .as_object()
        .expect("a map")
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert!(
        before < all / 2,
        "the server was held back: {before} of {all}"
    );
    running.kill();
    place.run();
    let found = place.read();
    assert_eq!(found["ledgers"], expected);
    assert_eq!(
        (&found["torn"], &found["bad_indexes"]),
        (&json!([]), &json!(0))
    );
}

#[test]
fn any_service_is_read_by_its_descriptors_or_by_reflection() {
    let root = tempfile::tempdir().expect("a folder");
    let server = Server::start(generated(), Settings::default());
    let expected = whole(&generated(), FIRST, FIRST + 9);
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/connect/proto");
    let described = format!("proto: event_service.proto, include: \"{protos}\"");
    for (name, descriptors) in [
        ("files", described.as_str()),
        ("reflection", "reflection: true"),
    ] {
        let dir = root.path().join(name);
        fs::create_dir(&dir).expect("a folder");
        let lake = dir.join("lake").display().to_string();
        let text = format!(
            "name: any\n\
             source:\n  grpc:\n    endpoint: \"{}\"\n    method: token_transfer_service.EventService/GetTTPEvents\n    \
             request: {{ start_ledger: {FIRST}, end_ledger: {} }}\n    {}\n    \
             resume: {{ request_field: start_ledger, from_column: meta.ledger_sequence, until_field: end_ledger }}\n\
             format: {{ protobuf: {{ flatten: true }} }}\n\
             transform: {{ sql: 'SELECT meta_ledger_sequence AS ledger_sequence, event FROM events' }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{lake}/catalog.db\", warehouse: \"{lake}\" }}, table: a.b }} }}\n",
            server.endpoint(),
            FIRST + 9,
            descriptors.replace(", include", "\n    include"),
        );
        let file = dir.join("any.yaml");
        fs::write(&file, text).expect("write");
        let checked = run_here(&dir, &["check", "--connect", "any.yaml"], "");
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let status = Running::start(&dir, &file, "", &[]).wait();
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(status.success(), "{log}");
        let sql = "SELECT ledger_sequence AS l, count(*) AS n FROM a.b GROUP BY 1 ORDER BY 1";
        let catalog = format!("{lake}/catalog.db");
        let done = run_here(
            &dir,
            &["query", "--format", "json", "--catalog", &catalog, sql],
            "",
        );
        let mut counts = serde_json::Map::new();
        for line in String::from_utf8_lossy(&done.stdout).lines() {
            let row: Value = serde_json::from_str(line).expect("JSON");
            counts.insert(row["l"].to_string(), row["n"].clone());
        }
        assert_eq!(Value::Object(counts), expected, "{log}");
    }
}

/// A file of `examples/`, with other values in the place of some.
fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    fs::read_to_string(path).expect("an example")
}

#[test]
fn a_configuration_in_json_runs() {
    let server = Server::start(generated(), Settings::default());
    let root = tempfile::tempdir().expect("a folder");
    let mut config: Value = serde_json::from_str(&example("token-transfers.json")).expect("JSON");
    config["source"]["token_transfers"]["end_ledger"] = (FIRST + 9).into();
    for key in ["listen", "metrics_listen"] {
        assert!(config["serve"][key].is_string());
        config["serve"][key] = "127.0.0.1:0".into();
    }
    fs::write(root.path().join("config.json"), config.to_string()).expect("write");
    let done = run_here(root.path(), &["run", "config.json"], &server.endpoint());
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let spec = json!({ "kind": "parquet", "dir": root.path(), "out": "data/parquet" });
    let found = python("transfers.py", &[spec]).remove(0);
    assert_eq!(
        found["ledgers"],
        whole(&generated(), FIRST, FIRST + 9),
        "{found}"
    );
    let files = found["files"].as_array().expect("files");
    let hour = |file: &Value| {
        file.as_str()
            .is_some_and(|f| f.starts_with("year=") && f.contains("/hour="))
    };
    assert!(!files.is_empty() && files.iter().all(hour), "{files:?}");
}

#[test]
fn the_volume_of_each_minute_is_that_of_its_transfers() {
    let last = FIRST + 100;
    let server = Server::start(generated(), Settings::default());
    let root = tempfile::tempdir().expect("a folder");
    let text =
        example("token-volume.yaml").replace("end_ledger: 0", &format!("end_ledger: {last}"));
    fs::write(root.path().join("volume.yaml"), text).expect("write");
    let done = run_here(root.path(), &["run", "volume.yaml"], &server.endpoint());
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let generated = generated();
    let (mut transfers, mut volume) = (0_u64, 0_i128);
    for event in (FIRST..=last).flat_map(|ledger| generated.decoded(ledger)) {
        use calve_e2e::transfers::protocol::token_transfer::token_transfer_event::Event;
        // More than 38 digits do not fit, and are rejects.
        if let Some(Event::Transfer(transfer)) = event.event
            && transfer.amount.len() < 39
        {
            transfers += 1;
            volume += transfer.amount.parse::<i128>().expect("a number");
        }
    }
    let sql = "SELECT CAST(sum(transfers) AS varchar) AS transfers, CAST(sum(volume) AS varchar) AS volume, \
               CAST(count(DISTINCT window_start) AS varchar) AS minutes FROM stellar.token_volume";
    let done = run_here(root.path(), &["query", "--format", "json", sql], "");
    let found: Value = serde_json::from_slice(&done.stdout).expect("a row");
    // A ledger each five seconds.
    let minutes = (100 * 5) / 60 + 1;
    let expected = json!({
        "transfers": transfers.to_string(),
        "volume": volume.to_string(),
        "minutes": found["minutes"],
    });
    assert_eq!(found, expected);
    let found: u64 = found["minutes"]
        .as_str()
        .and_then(|n| n.parse().ok())
        .expect("minutes");
    assert!((minutes..=minutes + 1).contains(&found), "{found}");
}

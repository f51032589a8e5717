//! Token transfers over gRPC, from a server of our own to tables that independent readers read: every
//! field of the real ledger, any service by its descriptors, and the examples.

use std::fs;

use calve_e2e::{
    Running, Sink, python,
    transfers::{
        Real, Server, Settings,
        pipeline::{FIRST, Place, example, generated, range, run_here, whole},
    },
};
use serde_json::{Value, json};

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

//! Token transfers over gRPC, from a server of our own to tables that independent readers read: every
//! field of the real ledger, any service by its descriptors, and the examples.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use calve_e2e::{
    Running, Sink, fixture, pause, python,
    transfers::{
        Listed, Real, Server, Settings,
        pipeline::{FIRST, Place, example, generated, range, run_here, start_here, whole},
        protocol::{
            asset::{Asset, IssuedAsset, asset::AssetType},
            token_transfer::{
                EventMeta, TokenTransferEvent, Transfer, token_transfer_event::Event,
            },
        },
    },
};
use serde_json::{Value, json};

#[test]
fn every_field_of_the_real_ledger_is_in_the_table() {
    let jsonl = fixture("token-transfers/ledger-53312000.jsonl");
    let (Some(real), Some(jsonl)) = (Real::one(), jsonl) else {
        return;
    };
    let server = Server::start(real, Settings::default());
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
fn all_kinds_of_events_are_in_the_table_field_by_field() {
    let jsonl = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/all-kinds.jsonl");
    let server = Server::start(Listed::read(&jsonl), Settings::default());
    let root = tempfile::tempdir().expect("a folder");
    let mut specs = Vec::new();
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let place = Place::new(root.path().join(format!("{sink:?}")), sink);
        place.write(&server.endpoint(), &range(FIRST, FIRST + 3), "");
        place.run();
        let mut spec = place.spec();
        spec["jsonl"] = json!(jsonl);
        specs.push(spec);
    }
    for found in python("transfers.py", &specs) {
        assert_eq!(found["wrong"], json!([]), "{found}");
        assert_eq!(found["readers"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            found["kinds"],
            json!({ "transfer": 8, "mint": 3, "burn": 3, "clawback": 3, "fee": 5 }),
        );
        assert_eq!(found["rejects"], json!([]));
        assert_eq!(found["duckdb"], found["fingerprint"], "{found}");
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

/// A transfer in a ledger that closed so many seconds after 10:50.
fn transfer(ledger: u32, second: i64, code: Option<&str>, amount: &str) -> TokenTransferEvent {
    let asset_type = match code {
        None => AssetType::Native(true),
        Some(code) => AssetType::IssuedAsset(IssuedAsset {
            asset_code: code.to_owned(),
            issuer: format!("G{}", "I".repeat(55)),
        }),
    };
    TokenTransferEvent {
        meta: Some(EventMeta {
            ledger_sequence: FIRST + ledger,
            closed_at: Some(prost_types::Timestamp {
                // 2024-09-02 10:50:00
                seconds: 1_725_274_200 + second,
                nanos: 0,
            }),
            tx_hash: "0a".repeat(32),
            transaction_index: 1,
            operation_index: Some(1),
            contract_address: format!("C{}", "C".repeat(55)),
            to_muxed_info: None,
        }),
        event: Some(Event::Transfer(Transfer {
            from: format!("G{}", "A".repeat(55)),
            to: format!("G{}", "B".repeat(55)),
            asset: Some(Asset {
                asset_type: Some(asset_type),
            }),
            amount: amount.to_owned(),
        })),
    }
}

#[test]
fn the_volume_of_a_minute_is_taken_back_when_a_late_ledger_comes() {
    let ledgers = Listed::new([
        transfer(0, 5, None, "100"),
        transfer(0, 5, Some("USDC"), "40"),
        transfer(1, 30, None, "50"),
        transfer(2, 65, None, "7"),
        // It says that the minutes before are over.
        transfer(3, 125, None, "9"),
        transfer(4, 130, None, "9"),
        // Of the first minute, and of two assets that it has and one that it does not have.
        transfer(5, 20, None, "1000"),
        transfer(5, 20, None, "-1"),
        transfer(5, 20, Some("USDC"), "2"),
        transfer(5, 20, Some("AQUA"), "5"),
        transfer(6, 131, None, "9"),
    ]);
    let settings = Settings {
        tip: Some(FIRST + 4),
        ..Settings::default()
    };
    let server = Server::start(ledgers, settings);
    let root = tempfile::tempdir().expect("a folder");
    // As it is.
    fs::write(
        root.path().join("volume.yaml"),
        example("token-volume.yaml"),
    )
    .expect("write");
    let running = start_here(root.path(), &["run", "volume.yaml"], &server.endpoint());
    // The minutes that are over; of the one that is open there may be an early pane.
    let sql = "SELECT CAST(window_start AS varchar) AS minute, asset, transfers, CAST(volume AS varchar) AS volume \
               FROM stellar.token_volume WHERE window_start < '2024-09-02T10:52:00Z' ORDER BY minute, asset";
    let table = || -> Vec<Value> {
        let done = run_here(root.path(), &["query", "--format", "json", sql], "");
        let text = String::from_utf8_lossy(&done.stdout);
        let rows = text.lines().map(serde_json::from_str);
        rows.collect::<Result<_, _>>().unwrap_or_default()
    };
    let row = |minute: &str, asset: &str, transfers: u32, volume: &str| json!({ "minute": format!("2024-09-02T10:{minute}:00"), "asset": asset, "transfers": transfers, "volume": volume });
    let wait = |expected: &[Value]| {
        let begun = Instant::now();
        let mut found = table();
        while found != expected {
            let log = fs::read_to_string(root.path().join("log")).unwrap_or_default();
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{found:?}, not {expected:?}: {log}"
            );
            pause(100);
            found = table();
        }
    };
    wait(&[
        row("50", "USDC", 1, "40"),
        row("50", "XLM", 2, "150"),
        row("51", "XLM", 1, "7"),
    ]);
    server.set_tip(FIRST + 6);
    let corrected = [
        row("50", "AQUA", 1, "5"),
        row("50", "USDC", 2, "42"),
        row("50", "XLM", 4, "1149"),
        row("51", "XLM", 1, "7"),
    ];
    wait(&corrected);
    assert!(running.terminate().success());
    assert_eq!(table(), corrected, "nothing of it is there twice");
}

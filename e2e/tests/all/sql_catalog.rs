//! Tables that are registered in SQLite and in PostgreSQL, with their files in S3: killed at each step of
//! a commit, cleaned and verified. PyIceberg and DuckDB read what came out.

use std::os::unix::process::ExitStatusExt;

use calve_e2e::{
    rest::{OnRest, Who, ask},
    s3::S3,
};
use serde_json::{Value, json};

#[allow(dead_code, reason = "the tests of another crate use more of it")]
#[path = "../../../crates/lake/src/postgres_server.rs"]
mod postgres_server;

const SOURCE: &str = "{ generator: { kind: template, seed: 3, count: 20000, rate: 60000, malformed: 0.001, \
    batch_bytes: 16KiB, fields: { id: { sequence: 0 }, region: { choice: [eu, us, apac] }, \
    amount: { uniform: [0, 100] } } } }";
const MORE: &str = "format: { json: { columns: { id: bigint, region: varchar, amount: double } } }\n\
    commit: { every: 40ms, min_interval: 10ms }";

fn well(what: &str, done: &std::process::Output) -> String {
    let said = String::from_utf8_lossy(&done.stderr);
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{what}: {said}{out}");
    assert!(
        !said.contains("SEEN") && !said.contains("right"),
        "{what}: {said}"
    );
    out
}

#[test]
fn large_files_go_up_in_parts() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    let source = "{ generator: { kind: template, seed: 5, count: 250000, fields: { id: { sequence: 0 }, \
        region: { constant: eu }, amount: { uniform: [0, 100] }, a: uuid, b: uuid } } }";
    let more = "format: { json: { columns: { id: bigint, region: varchar, amount: double, a: varchar, b: varchar } } }\n\
        commit: { every: 1h, compression: none, target_file_size: 12MiB }\nlimits: { memory: 256MiB }";
    let text = (source, "", more);
    let nowhere = (server.catalog(), Who::OAuth);
    let pipeline = OnRest::new(&server, dir.path(), "large", nowhere, text);
    let catalog = format!(
        "{{ sqlite: \"{}/catalog.db\", warehouse: \"s3://data/lake\" }}",
        dir.path().display()
    );
    pipeline.write_with(&catalog, text);
    for fault in ["store.upload.part=kill@2", "store.upload.complete=kill"] {
        let (status, log) = (pipeline.run(fault), pipeline.log());
        assert_eq!(status.signal(), Some(9), "{fault}: not reached: {log}");
    }
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    let clean = &["clean", "--older-than", "0s", "--stopped"];
    let cleaned = well("clean", &pipeline.table_command(clean));
    assert!(
        cleaned.contains("(upload "),
        "what was begun is given up: {cleaned}"
    );
    assert_eq!(well("clean", &pipeline.table_command(clean)), "");
    well("verify", &pipeline.table_command(&["verify"]));
    let shown = well("show", &pipeline.table_command(&["show", "--json"]));
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let (names, location) = (["large"], [&shown["metadata_location"]]);
    let asked = json!({ "do": "summary", "names": names, "locations": location });
    let found = &ask(&server, &asked)[0];
    assert_eq!(
        (&found["rows"], &found["ids"]),
        (&json!(250_000), &json!(250_000)),
        "{found}"
    );
    assert!(found["files"].as_u64().is_some_and(|n| n >= 2), "{found}");
    assert_eq!(found["unreferenced"], 0, "{found}");
}

#[test]
fn files_lie_in_s3_and_tables_in_a_database() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    let postgres = postgres_server::Server::start();
    let database = postgres.url("right password");
    let faults = [
        "",
        "iceberg.commit.before_metadata=kill@2",
        "iceberg.commit.before_cas=kill@2",
        "iceberg.commit.after_cas=kill@2",
        "iceberg.commit.after_cas=lost@2",
    ];
    let mut names = Vec::new();
    let mut locations = Vec::new();
    for (kind, at) in [
        (
            "sqlite",
            format!("sqlite: \"{}/catalog.db\"", dir.path().display()),
        ),
        ("postgres", format!("sql: \"{database}\"")),
    ] {
        for (n, fault) in faults.iter().enumerate() {
            let name = format!("{kind}_{n}");
            let text = (SOURCE, ", partition_by: [region]", MORE);
            let nowhere = (server.catalog(), Who::OAuth);
            let pipeline = OnRest::new(&server, dir.path(), &name, nowhere, text);
            let catalog = format!("{{ {at}, warehouse: \"s3://data/lake\" }}");
            pipeline.write_with(&catalog, text);
            let status = pipeline.run(fault);
            if fault.contains("kill") {
                let log = pipeline.log();
                assert_eq!(status.signal(), Some(9), "{fault}: not reached: {log}");
                assert!(pipeline.run("").success(), "{fault}: {}", pipeline.log());
            } else {
                assert!(status.success(), "{kind} {fault}: {}", pipeline.log());
            }
            for args in [
                &["compact", "--min-files", "2"][..],
                &["expire", "--older-than", "0s", "--keep", "1"][..],
                &["clean", "--older-than", "0s", "--stopped"][..],
                &["verify"][..],
            ] {
                well(&format!("{name} {args:?}"), &pipeline.table_command(args));
            }
            let shown = well(&name, &pipeline.table_command(&["show", "--json"]));
            let shown: Value = serde_json::from_str(&shown).expect("JSON");
            locations.push(shown["metadata_location"].clone());
            names.push(name);
        }
    }
    let asked = json!({ "do": "summary", "names": names, "locations": locations });
    let found = ask(&server, &asked);
    let found = found.as_array().expect("a list");
    let golden = &found[0];
    let all = golden["rows"].as_u64().zip(golden["rejects"].as_u64());
    assert_eq!(all.map(|(rows, rejects)| rows + rejects), Some(20_000));
    for (name, found) in names.iter().zip(found) {
        assert_eq!(found["rows"], found["ids"], "{name}: {found}");
        for key in ["rows", "fingerprint", "rejects", "duckdb_rows"] {
            assert_eq!(found[key], golden[key], "{name}: {key}: {found}");
        }
        for key in ["doubled", "missing", "unreferenced"] {
            assert_eq!(found[key], 0, "{name}: {key}: {found}");
        }
    }
}

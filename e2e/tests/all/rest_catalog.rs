//! Tables of an Iceberg REST catalog with their files in S3: killed at every point, with answers that are
//! lost, late, doubled or refused, beside other writers, and with credentials that the catalog lends.
//! PyIceberg and DuckDB read what came out.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::Child,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use calve_e2e::{
    pause,
    proxy::{Fault, Proxy, troubles},
    rest::{OnRest, Who, found, python},
    s3::{KEY, S3, SECRET},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const EVENTS: u64 = 30_000;
const FORMAT: &str =
    "format: { json: { columns: { id: bigint, region: varchar, amount: double } } }\n";
const OFTEN: &str = "commit: { every: 40ms, min_interval: 10ms }";
const BY_REGION: &str = ", partition_by: [region]";

/// Made-up events, `rate` a second; 0: as fast as it goes.
fn events(rate: u64) -> String {
    let rate = match rate {
        0 => String::new(),
        rate => format!(" rate: {rate},"),
    };
    format!(
        "{{ generator: {{ kind: template, seed: 3, count: {EVENTS},{rate} malformed: 0.001, \
         batch_bytes: 16KiB, fields: {{ id: {{ sequence: 0 }}, region: {{ choice: [eu, \"u/s%\", apac] }}, \
         amount: {{ uniform: [0, 100] }} }} }} }}"
    )
}

struct Shared {
    server: S3,
    dir: tempfile::TempDir,
    golden: Value,
}

/// One server for the tests that leave it alone, and what a run that nobody disturbs makes of the events.
static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    let at = (server.catalog(), Who::OAuth);
    let golden = pipeline(&server, &dir, "golden", at, 0);
    assert!(golden.run("").success(), "{}", golden.log());
    let golden = found(&server, &["golden"]).remove(0);
    assert_eq!(golden["rows"], golden["ids"], "{golden}");
    let all = golden["rows"].as_u64().zip(golden["rejects"].as_u64());
    assert_eq!(all.map(|(rows, rejects)| rows + rejects), Some(EVENTS));
    Shared {
        server,
        dir,
        golden,
    }
});

fn pipeline(server: &S3, dir: &tempfile::TempDir, name: &str, at: (u16, Who), rate: u64) -> OnRest {
    let more = format!("{FORMAT}{OFTEN}");
    let text = (events(rate), BY_REGION, more);
    OnRest::new(server, dir.path(), name, at, (&text.0, text.1, &text.2))
}

fn assert_same(what: &str, found: &Value, golden: &Value) {
    for key in [
        "rows",
        "ids",
        "fingerprint",
        "rejects",
        "reject_ids",
        "duckdb_rows",
    ] {
        assert_eq!(
            found[key], golden[key],
            "{what}: {key} differs: {found} against {golden}"
        );
    }
    for key in ["doubled", "missing"] {
        assert_eq!(found[key], 0, "{what}: {key}: {found}");
    }
}

/// Cleans everything that nothing refers to, however young; then verifies.
fn clean_and_verify(what: &str, pipeline: &OnRest) {
    for args in [
        &["clean", "--stopped", "--older-than", "0s"][..],
        &["verify"][..],
    ] {
        let done = pipeline.table_command(args);
        let said = String::from_utf8_lossy(&done.stderr);
        let listed = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{what}: {args:?}: {said}{listed}");
        assert!(!said.contains("SEEN"), "a secret is shown: {said}");
    }
}

#[test]
fn killed_at_each_point_and_cleaned() {
    let faults = [
        "start.after_claim=kill",
        "store.upload.part=kill@3",
        "store.upload.after_part=kill@4",
        "write.finish.before_fsync=kill@2",
        "prepare.after_files=kill@2",
        "checkpoint.before_create=kill@3",
        "checkpoint.after_create=kill@3",
        "commit.before=kill@2",
        "iceberg.commit.before_manifest=kill@2",
        "iceberg.commit.before_metadata=kill@2",
        "iceberg.commit.before_cas=kill@2",
        "iceberg.commit.after_cas=kill@2",
        "commit.after=kill@2",
        "commit.between_outputs=kill@3",
        "rejects.after_publish=kill@2",
        "checkpoint.retire.each=kill",
    ];
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let names: Vec<String> = (0..faults.len()).map(|n| format!("killed_{n}")).collect();
    let one = |fault: &str, name: &str, who: Who| {
        let pipeline = pipeline(server, dir, name, (server.catalog(), who), 100_000);
        let status = pipeline.run(fault);
        assert_eq!(
            status.signal(),
            Some(9),
            "{fault}: not reached: {}",
            pipeline.log()
        );
        let status = pipeline.run("");
        assert!(
            status.success(),
            "{fault}: the next start failed: {}",
            pipeline.log()
        );
        clean_and_verify(fault, &pipeline);
    };
    // Some at a time: they wait for the server more than they compute.
    let work: Vec<_> = faults.iter().zip(&names).collect();
    std::thread::scope(|scope| {
        let one = &one;
        let turns = work.chunks(faults.len().div_ceil(3)).enumerate();
        let threads: Vec<_> = turns
            .map(|(n, turn)| {
                let who = if n == 0 { Who::Signed } else { Who::OAuth };
                scope.spawn(move || turn.iter().for_each(|(fault, name)| one(fault, name, who)))
            })
            .collect();
        for thread in threads {
            thread.join().expect("a fault");
        }
    });
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (fault, found) in faults.iter().zip(found(server, &names)) {
        assert_same(fault, &found, golden);
        assert_eq!(found["unreferenced"], 0, "{fault}: {found}");
    }
}

#[test]
fn answers_that_are_lost_or_doubled_are_looked_up() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let proxy = Proxy::start(server.catalog(), troubles);
    let pipeline = pipeline(server, dir, "lost", (proxy.port(), Who::OAuth), 10_000);
    let lost = "iceberg.commit.after_cas=lost@3";
    assert!(pipeline.run(lost).success(), "{}", pipeline.log());
    let commits = proxy.seen().iter().filter(|r| r.is_commit()).count();
    assert!(commits > 9, "each trouble came: commits={commits}");
    let done = pipeline.table_command(&["compact", "--min-files", "2"]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    clean_and_verify("lost", &pipeline);
    let found = found(server, &["lost"]).remove(0);
    assert_same("lost", &found, golden);
    assert_eq!(found["unreferenced"], 0, "{found}");
}

#[test]
fn a_token_that_ends_is_renewed_once() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refused);
    let proxy = Proxy::start(server.catalog(), move |request| {
        let due = request.is_commit() && request.before % 5 == 2;
        if due {
            counted.fetch_add(1, Ordering::Relaxed);
            return Fault::Refuse(if request.before % 2 == 0 { 401 } else { 419 }, "");
        }
        Fault::None
    });
    let pipeline = pipeline(server, dir, "renewed", (proxy.port(), Who::OAuth), 60_000);
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    let seen = proxy.seen();
    let tokens = seen.iter().filter(|r| r.path.contains("/oauth/tokens"));
    let refused = refused.load(Ordering::Relaxed);
    assert!(refused > 0, "a commit was refused");
    assert_eq!(tokens.count(), refused + 1, "one token for each that ended");
    assert_same("renewed", &found(server, &["renewed"]).remove(0), golden);
}

#[test]
fn wrong_credentials_are_told_and_never_shown() {
    let Shared { server, dir, .. } = &*SHARED;
    for (name, from, to) in [
        ("wrong_secret", "${S3_SECRET}\" }", "WRONGSEEN\" }"),
        (
            "wrong_token",
            "credential: \"AKIDSEENKEY:${S3_SECRET}\"",
            "token: TOKENSEEN",
        ),
        (
            "wrong_house",
            "warehouse: \"s3://ice\"",
            "warehouse: \"s3://nowhere\"",
        ),
    ] {
        let pipeline = pipeline(server, dir, name, (server.catalog(), Who::OAuth), 0);
        let text = fs::read_to_string(pipeline.file()).expect("the file");
        let wrong = text.replacen(from, to, 1);
        assert_ne!(text, wrong, "{name}");
        fs::write(pipeline.file(), wrong).expect("written");
        assert_eq!(
            pipeline.run("").code(),
            Some(2),
            "{name}: {}",
            pipeline.log()
        );
        let check = pipeline.command(&["check", "--connect", "FILE"]);
        let said = String::from_utf8_lossy(&check.stderr);
        assert!(!said.contains("SEEN"), "{name}: {said}");
        assert!(
            pipeline.log().contains("status=40"),
            "{name}: {}",
            pipeline.log()
        );
    }
}

/// A prefix that the user names counts more than what the server has by default, and less than what it
/// insists on.
#[test]
fn the_prefix_of_paths_is_the_user_s_or_the_server_s() {
    const PREFIX: &str = "ice";
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let cases = [
        // By default, insisted on, named by the user.
        ("named", None, None, Some(PREFIX)),
        ("named_first", Some("nowhere"), None, Some(PREFIX)),
        ("insisted", Some("nowhere"), Some(PREFIX), Some("nowhere")),
        ("by_default", Some(PREFIX), None, None),
    ];
    for (name, default, insisted, named) in cases {
        let proxy = Proxy::start(server.catalog(), move |request| {
            if !request.path.starts_with("/v1/config") {
                return Fault::None;
            }
            Fault::Change(Box::new(move |body| {
                let mut config: Value = serde_json::from_str(body).expect("what it says");
                for (part, prefix) in [("defaults", default), ("overrides", insisted)] {
                    let part = config[part].as_object_mut().expect("settings");
                    part.remove("prefix");
                    part.extend(prefix.map(|prefix| ("prefix".to_owned(), json!(prefix))));
                }
                config.to_string()
            }))
        });
        let pipeline = pipeline(server, dir, name, (proxy.port(), Who::OAuth), 0);
        let text = fs::read_to_string(pipeline.file()).expect("the file");
        let warehouse = "warehouse: \"s3://ice\"";
        let more = named.map_or(String::new(), |prefix| format!(", prefix: {prefix}"));
        assert!(text.contains(warehouse), "{text}");
        let text = text.replacen(warehouse, &format!("{warehouse}{more}"), 1);
        fs::write(pipeline.file(), text).expect("written");
        if name == "named" {
            assert!(pipeline.run("").success(), "{}", pipeline.log());
            assert_same(name, &found(server, &[name]).remove(0), golden);
        } else {
            let listed = pipeline.command(&["table", "ls", "--file", "FILE"]);
            let said = String::from_utf8_lossy(&listed.stdout).into_owned();
            let log = String::from_utf8_lossy(&listed.stderr);
            assert!(listed.status.success(), "{name}: {log}");
            assert!(said.contains("golden.orders"), "{name}: {said}");
        }
        let seen = proxy.seen();
        let asked = seen.iter().map(|request| request.path.as_str());
        let own = |path: &&str| !path.starts_with("/v1/config") && !path.contains("/oauth/");
        let asked: Vec<&str> = asked.filter(own).collect();
        assert!(!asked.is_empty(), "{name}");
        let below = |path: &&str| path.starts_with(&format!("/v1/{PREFIX}/namespaces"));
        assert!(asked.iter().all(below), "{name}: {asked:?}");
    }
}

fn is_stopped(child: &Child) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('T'))
}

#[test]
fn a_process_that_was_asleep_stops_and_harms_nothing() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let points = [
        "checkpoint.after_create=stop@3",
        "iceberg.commit.before_cas=stop@3",
        "iceberg.commit.after_cas=stop@2",
    ];
    let names: Vec<String> = (0..points.len()).map(|n| format!("asleep_{n}")).collect();
    for (point, name) in points.iter().zip(&names) {
        // Slow enough for it to be in the middle, also where commits take long.
        let pipeline = pipeline(server, dir, name, (server.catalog(), Who::OAuth), 15_000);
        let mut old = pipeline.start(point);
        let stopped = (0..2000).any(|_| {
            pause(10);
            is_stopped(&old)
        });
        assert!(stopped, "{point}: not reached: {}", pipeline.log());
        assert!(pipeline.run("").success(), "{point}: {}", pipeline.log());
        kill_process(Pid::from_child(&old), Signal::CONT).expect("wake it");
        let status = old.wait().expect("wait");
        assert_eq!(status.code(), Some(1), "{point}: {}", pipeline.log());
        clean_and_verify(point, &pipeline);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (point, found) in points.iter().zip(found(server, &names)) {
        assert_same(point, &found, golden);
    }
}

#[test]
fn other_writers_cost_retries_and_no_data() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let pipeline = pipeline(server, dir, "others", (server.catalog(), Who::OAuth), 1_500);
    let text = fs::read_to_string(pipeline.file()).expect("the file");
    let text = text.replace(OFTEN, "commit: { every: 700ms, min_interval: 100ms }");
    fs::write(
        pipeline.file(),
        text + "upkeep: { compact_every: 1500ms }\n",
    )
    .expect("written");
    let stop = pipeline.dir.join("stop");
    let run = pipeline.start("");
    let write = json!({ "do": "write", "name": "others", "stop": stop });
    let mut writer = python(server, &write);
    let writer = writer.stdout(std::process::Stdio::piped()).spawn();
    let writer = writer.expect("another writer");
    let status = { run }.wait().expect("wait for calve");
    fs::write(&stop, "").expect("stopped");
    let done = writer.wait_with_output().expect("its end");
    assert!(status.success(), "{}", pipeline.log());
    let done: Value = serde_json::from_slice(&done.stdout).expect("what it did");
    let count = |kind: &str| done[kind].as_u64().unwrap_or(0);
    for kind in ["appended", "expired", "evolved"] {
        assert!(count(kind) > 0, "{kind}: {done}");
    }
    // It refuses to overwrite what a compaction has replaced meanwhile.
    let overwrites = count("overwritten") + count("ValidationException");
    assert!(overwrites > 0, "{done}");
    clean_and_verify("others", &pipeline);
    let found = found(server, &["others"]).remove(0);
    assert_same("others", &found, golden);
    let columns = found["columns"].as_array().expect("columns");
    assert!(columns.contains(&json!("more")), "{found}");
}

#[test]
fn credentials_that_the_catalog_lends_are_enough() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let end_ms = |in_s: u64| {
        let now = std::process::Command::new("date").arg("+%s").output();
        let now = String::from_utf8(now.expect("date").stdout).expect("a number");
        (now.trim().parse::<u64>().expect("a number") + in_s) * 1000
    };
    let endpoint = server.endpoint();
    let proxy = Proxy::start(server.catalog(), move |request| {
        let is_table = request.path.contains("/tables");
        if !is_table || request.is_commit() {
            return Fault::None;
        }
        let (endpoint, end_ms) = (endpoint.clone(), end_ms(2));
        Fault::Change(Box::new(move |body| {
            let Ok(mut json) = serde_json::from_str::<Value>(body) else {
                return body.to_owned();
            };
            if json.get("metadata").is_some() {
                json["config"] = json!({ "s3.endpoint": endpoint, "s3.region": "us-east-1" });
                let keys = json!({ "s3.access-key-id": KEY, "s3.secret-access-key": SECRET,
                    "s3.session-token-expires-at-ms": end_ms.to_string() });
                json["storage-credentials"] = json!([{ "prefix": "s3://ice", "config": keys }]);
            }
            json.to_string()
        }))
    });
    let at = (proxy.port(), Who::OAuth);
    let pipeline = pipeline(server, dir, "lent", at, 10_000).with_stores(server.stores());
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    clean_and_verify("lent", &pipeline);
    let query = "SELECT count(*) AS n FROM lent.orders";
    let asked = pipeline.command(&["query", "--file", "FILE", "--format", "csv", query]);
    let said = String::from_utf8_lossy(&asked.stdout);
    let rows = golden["rows"].as_u64().expect("rows");
    assert_eq!(
        said.trim(),
        format!("n\n{rows}"),
        "{}",
        String::from_utf8_lossy(&asked.stderr)
    );
    assert_same("lent", &found(server, &["lent"]).remove(0), golden);
}

#[test]
fn commands_look_at_and_after_its_tables() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let pipeline = pipeline(
        server,
        dir,
        "commands",
        (server.catalog(), Who::Signed),
        20_000,
    );
    let check = pipeline.command(&["check", "--connect", "FILE"]);
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stderr)
    );
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    let before = found(server, &["commands"]).remove(0);
    let table = "commands.orders";
    for (args, says) in [
        (&["ls"][..], table),
        (&["show", table][..], "pipeline orders"),
        (&["compact", "--min-files", "2", table][..], ""),
        (
            &["expire", "--older-than", "0s", "--keep", "1", table][..],
            "metadata/",
        ),
        (&["clean", "--older-than", "0s", "--stopped", table][..], ""),
        (&["verify", table][..], ""),
    ] {
        let mut all = vec!["table", args[0], "--file", "FILE"];
        all.extend(&args[1..]);
        let done = pipeline.command(&all);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let log = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            done.status.success() && said.contains(says),
            "{args:?}: {said}{log}"
        );
    }
    let after = found(server, &["commands"]).remove(0);
    assert_same("commands", &after, golden);
    let count = |found: &Value, key: &str| found[key].as_u64().expect("a number");
    assert!(
        count(&after, "files") < count(&before, "files"),
        "{after} {before}"
    );
    assert!(count(&after, "snapshots") <= 2, "{after}");
    // A run goes on from there, and a reset lets go of the pipeline.
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    let reset = pipeline.command(&["checkpoint", "reset", "--yes", "FILE"]);
    let said = String::from_utf8_lossy(&reset.stderr).into_owned();
    assert!(reset.status.success(), "{said}");
    let shown = pipeline.command(&["table", "show", "--file", "FILE", table]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(!shown.contains("pipeline orders"), "{shown}");
}

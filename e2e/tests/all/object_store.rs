//! From S3 to S3: killed at every point of the path, fenced, with a server that stops for a while,
//! sources that are replaced, and files of plain HTTP servers. DuckDB and pyarrow read what came out.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use calve_e2e::{
    pause,
    s3::{OnS3, S3, found},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const EVENTS: u64 = 60_000;
const FILES: u64 = 3;
const IN: &str = "{ file: { path: \"s3://data/in/*.ndjson\", chunk_bytes: 16KiB } }";
/// Made-up events, so slowly that there is always more to read.
const SLOWLY: &str = "{ generator: { kind: template, seed: 3, count: 30000, rate: 15000, malformed: 0.001, \
    batch_bytes: 16KiB, fields: { id: { sequence: 0 }, region: { choice: [eu, us, apac] }, \
    amount: { uniform: [0, 100] } } } }";
const OFTEN: &str = "commit: { every: 1ms, min_interval: 1ms }";

struct Shared {
    server: S3,
    dir: tempfile::TempDir,
    golden: Value,
}

/// One server for the tests that leave it alone, with events in it, and what a run that nobody
/// disturbs makes of them.
static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    put_events(&server);
    let golden = golden(&server, dir.path());
    Shared {
        server,
        dir,
        golden,
    }
});

fn put_events(server: &S3) {
    for n in 0..FILES {
        let (path, count) = (format!("data/in/part-{n}.ndjson"), EVENTS / FILES);
        server.python(&json!({ "do": "put", "path": path, "from": n * count, "count": count }));
    }
}

fn golden(server: &S3, dir: &Path) -> Value {
    let pipeline = OnS3::new(server, dir, "golden", IN, "");
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    let golden = found(server, &["golden"]).remove(0);
    assert_eq!(golden["rows"], EVENTS - EVENTS / 1000, "{golden}");
    assert_eq!(golden["rejects"], EVENTS / 1000, "{golden}");
    golden
}

fn assert_same(what: &str, found: &Value, golden: &Value) {
    for key in ["rows", "ids", "fingerprint", "rejects", "reject_ids"] {
        assert_eq!(
            found[key], golden[key],
            "{what}: {key} differs: {found} against {golden}"
        );
    }
    assert_eq!(found["rows"], found["ids"], "{what}: {found}");
    for key in ["doubled", "missing"] {
        assert_eq!(found[key], 0, "{what}: {key}: {found}");
    }
}

fn assert_clean(what: &str, found: &Value) {
    for key in ["unreferenced", "uploads"] {
        assert_eq!(found[key], 0, "{what}: {key} are left: {found}");
    }
}

#[test]
fn killed_at_each_point_and_cleaned() {
    let faults = [
        "start.after_claim=kill",
        "store.upload.part=kill",
        "store.upload.part=kill@5",
        "store.upload.after_part=kill@2",
        "store.upload.after_part=kill@7",
        "write.finish.before_fsync=kill@2",
        "prepare.after_files=kill@2",
        "checkpoint.before_create=kill@3",
        "checkpoint.after_create=kill@2",
        "checkpoint.after_create=kill@3",
        "commit.before=kill@2",
        "parquet.publish.each=kill@2",
        "parquet.publish.each=kill@4",
        "parquet.publish.after_complete=kill@1",
        "parquet.publish.after_complete=kill@5",
        "parquet.commit.before_entry=kill@2",
        "parquet.commit.after_entry=kill@2",
        "rejects.before_publish=kill@2",
        "rejects.after_publish=kill@2",
        "commit.between_outputs=kill@3",
        "checkpoint.retire.after_floor=kill",
        "checkpoint.retire.each=kill",
    ];
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let names: Vec<String> = (0..faults.len()).map(|n| format!("killed-{n}")).collect();
    let one = |fault: &str, name: &str| {
        let pipeline = OnS3::new(server, dir.path(), name, IN, OFTEN);
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
        let cleaned = pipeline.clean();
        let said = String::from_utf8_lossy(&cleaned.stderr);
        assert!(cleaned.status.success(), "{fault}: {said}");
    };
    // Some at a time: they wait for the server more than they compute.
    let work: Vec<_> = faults.iter().zip(&names).collect();
    std::thread::scope(|scope| {
        let one = &one;
        let turns = work.chunks(faults.len().div_ceil(3));
        let threads: Vec<_> = turns
            .map(|turn| scope.spawn(move || turn.iter().for_each(|(fault, name)| one(fault, name))))
            .collect();
        for thread in threads {
            thread.join().expect("a fault");
        }
    });
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (fault, found) in faults.iter().zip(found(server, &names)) {
        assert_same(fault, &found, golden);
        assert_clean(fault, &found);
    }
}

#[test]
fn rows_of_open_windows_lie_in_the_bucket() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let windows = format!(
        "{OFTEN}\nwindow: {{ global: {{}}, trigger: {{ repeat: {{ count: 25000 }} }}, late: drop }}"
    );
    for (n, fault) in [
        "windows.before_run=kill",
        "windows.after_run=kill",
        "windows.each_dead_run=kill",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("windows-{n}");
        let pipeline = OnS3::new(server, dir.path(), &name, IN, &windows);
        assert_eq!(pipeline.run(fault).signal(), Some(9), "{fault}");
        assert!(pipeline.run("").success(), "{fault}: {}", pipeline.log());
        assert!(pipeline.clean().status.success(), "{fault}");
        let found = found(server, &[&name]).remove(0);
        assert_same(fault, &found, golden);
        assert_clean(fault, &found);
    }
}

#[test]
fn lost_answers_are_looked_up() {
    let Shared {
        server,
        dir,
        golden,
    } = &*SHARED;
    let pipeline = OnS3::new(server, dir.path(), "lost", IN, OFTEN);
    let faults = "parquet.publish.answer=lost@2,parquet.commit.answer=lost@2";
    assert!(pipeline.run(faults).success(), "{}", pipeline.log());
    let found = found(server, &["lost"]).remove(0);
    assert_same("lost", &found, golden);
    assert_clean("lost", &found);
}

#[test]
fn prepared_uploads_that_somebody_aborted_are_refused() {
    let Shared { server, dir, .. } = &*SHARED;
    let pipeline = OnS3::new(
        server,
        dir.path(),
        "aborted",
        &SLOWLY.replace("malformed: 0.001, ", ""),
        OFTEN,
    );
    let status = pipeline.run("commit.before=kill@1");
    assert_eq!(status.signal(), Some(9), "{}", pipeline.log());
    // Says that there are no checkpoints, which is not true.
    let file = pipeline.file();
    let lie = Command::new(calve_e2e::calve())
        .args([
            "table",
            "clean",
            "--stopped",
            "--older-than",
            "0s",
            "--checkpoint",
            "none",
            "--file",
        ])
        .arg(&file)
        .arg("s3://data/aborted/out")
        .env("S3_SECRET", calve_e2e::s3::SECRET)
        .output()
        .expect("run calve");
    assert!(
        lie.status.success(),
        "{}",
        String::from_utf8_lossy(&lie.stderr)
    );
    assert_eq!(pipeline.run("").code(), Some(1), "{}", pipeline.log());
    let log = pipeline.log();
    assert!(
        log.contains("a prepared file is gone") && log.contains("checkpoint reset"),
        "{log}"
    );
    let reset = Command::new(calve_e2e::calve())
        .args(["checkpoint", "reset", "--yes"])
        .arg(&file)
        .env("S3_SECRET", calve_e2e::s3::SECRET)
        .output()
        .expect("run calve");
    assert!(
        reset.status.success(),
        "{}",
        String::from_utf8_lossy(&reset.stderr)
    );
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    let found = found(server, &["aborted"]).remove(0);
    assert_eq!(
        found["rows"], found["ids"],
        "nothing had been published before: {found}"
    );
    assert_eq!(found["rows"], 30_000, "{found}");
}

#[test]
fn a_process_that_was_asleep_stops_and_harms_nothing() {
    let Shared { server, dir, .. } = &*SHARED;
    let points = [
        "store.upload.part=stop@2",
        "checkpoint.before_create=stop@3",
        "checkpoint.after_create=stop@3",
        "parquet.publish.each=stop@4",
        "parquet.publish.after_complete=stop@4",
        "parquet.commit.before_entry=stop@2",
        "rejects.before_publish=stop@2",
    ];
    let names: Vec<String> = (0..points.len()).map(|n| format!("asleep-{n}")).collect();
    for (point, name) in points.iter().zip(&names) {
        let pipeline = OnS3::new(
            server,
            dir.path(),
            name,
            SLOWLY,
            "commit: { every: 40ms, min_interval: 10ms }",
        );
        let mut old = pipeline.start(point);
        let stopped = (0..1000).any(|_| {
            pause(10);
            is_stopped(&old)
        });
        assert!(stopped, "{point}: not reached: {}", pipeline.log());
        assert!(pipeline.run("").success(), "{point}: {}", pipeline.log());
        kill_process(Pid::from_child(&old), Signal::CONT).expect("wake it");
        let status = old.wait().expect("wait");
        assert_eq!(status.code(), Some(1), "{point}: {}", pipeline.log());
        assert!(pipeline.clean().status.success(), "{point}");
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (point, found) in points.iter().zip(found(server, &names)) {
        let all = found["rows"].as_u64().zip(found["rejects"].as_u64());
        assert_eq!(all.map(|(a, b)| a + b), Some(30_000), "{point}: {found}");
        assert_eq!(found["rows"], found["ids"], "{point}: {found}");
        assert_eq!(found["doubled"], 0, "{point}: {found}");
        assert_clean(point, &found);
    }
}

fn is_stopped(child: &Child) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('T'))
}

#[test]
fn large_files_go_up_in_parts() {
    let Shared { server, dir, .. } = &*SHARED;
    let source = "{ generator: { kind: template, seed: 5, count: 600000, fields: { id: { sequence: 0 }, \
                  region: { constant: eu }, amount: { uniform: [0, 100] }, a: uuid, b: uuid } } }";
    let more = "commit: { every: 1h, compression: none, target_file_size: 24MiB }\n\
                limits: { memory: 256MiB }\ntransform: { sql: \"SELECT * FROM events\" }";
    let columns = "columns: { id: bigint, region: varchar, amount: double";
    let pipeline = OnS3::new(server, dir.path(), "large", source, more);
    let text = fs::read_to_string(pipeline.file()).expect("read");
    let text = text.replace(columns, &format!("{columns}, a: varchar, b: varchar"));
    fs::write(pipeline.file(), text).expect("write");
    for fault in ["store.upload.part=kill@3", "store.upload.after_part=kill@4"] {
        assert_eq!(
            pipeline.run(fault).signal(),
            Some(9),
            "{fault}: {}",
            pipeline.log()
        );
    }
    assert!(pipeline.run("").success(), "{}", pipeline.log());
    let before = found(server, &["large"]).remove(0);
    assert_eq!(before["rows"], 600_000, "{before}");
    assert_eq!(before["ids"], 600_000, "{before}");
    assert!(
        before["largest"].as_u64() > Some(16 << 20),
        "more than two parts: {before}"
    );
    assert_ne!(
        before["uploads"], 0,
        "the killed runs left uploads: {before}"
    );
    assert!(pipeline.clean().status.success());
    let after = found(server, &["large"]).remove(0);
    assert_eq!(after["fingerprint"], before["fingerprint"]);
    assert_clean("large", &after);
}

#[test]
fn a_server_that_stops_for_a_while_is_waited_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = S3::start(dir.path());
    put_events(&server);
    let pipeline = OnS3::new(&server, dir.path(), "golden", IN, "");
    // Stopped by itself where uploads have begun; the server is stopped meanwhile.
    let mut child = pipeline.start("store.upload.after_part=stop@1");
    assert!(
        (0..1000).any(|_| {
            pause(10);
            is_stopped(&child)
        }),
        "{}",
        pipeline.log()
    );
    let weed = Pid::from_raw(server.pid).expect("a process id");
    kill_process(weed, Signal::STOP).expect("stop the server");
    kill_process(Pid::from_child(&child), Signal::CONT).expect("go on");
    pause(3000);
    assert!(
        child.try_wait().expect("wait").is_none(),
        "it waits: {}",
        pipeline.log()
    );
    kill_process(weed, Signal::CONT).expect("wake the server");
    assert!(child.wait().expect("wait").success(), "{}", pipeline.log());
    let found = found(&server, &["golden"]).remove(0);
    assert_eq!(found["rows"], EVENTS - EVENTS / 1000, "{found}");
    assert_eq!(found["rows"], found["ids"], "{found}");
    assert_clean("stopped", &found);
}

#[test]
fn reading_goes_on_in_an_object_and_notices_another() {
    let Shared { server, dir, .. } = &*SHARED;
    let put = |path: &str, from: u64, count: u64, pad: u64| {
        let path = format!("data/{path}");
        server.python(
            &json!({ "do": "put", "path": path, "from": from, "count": count, "pad": pad }),
        );
    };
    put("grow/a.ndjson", 0, 20_000, 200);
    let follow = "{ file: { path: \"s3://data/grow/*.ndjson\", follow: true, poll_interval: 50ms, chunk_bytes: 64KiB } }";
    let pipeline = OnS3::new(server, dir.path(), "follow", follow, OFTEN);
    assert_eq!(
        pipeline.run("commit.after=kill@2").signal(),
        Some(9),
        "{}",
        pipeline.log()
    );
    let mut child = pipeline.start("");
    put("grow/b.ndjson", 20_000, 20_000, 0);
    let all = |rows: u64| {
        (0..200).any(|_| {
            pause(50);
            found(server, &["follow"])[0]["rows"].as_u64() >= Some(rows)
        })
    };
    assert!(all(39_960), "both objects are read: {}", pipeline.log());
    let seen = found(server, &["follow"]).remove(0);
    assert_eq!(
        (&seen["rows"], &seen["ids"]),
        (&json!(39_960), &json!(39_960)),
        "{seen}"
    );
    // The same head, size and end; something else in the middle.
    put("grow/b.ndjson", 20_000, 20_001, 0);
    let status = child.wait().expect("wait");
    assert_eq!(status.code(), Some(2), "{}", pipeline.log());
    let log = pipeline.log();
    assert!(
        log.contains("was replaced since it was read: file=s3://data/grow/b.ndjson"),
        "{log}"
    );
}

/// A file server of Python's: with or without range requests.
struct Http(Child, u16);

impl Http {
    fn start(dir: &Path, ranges: bool) -> Self {
        let python =
            std::env::var("CALVE_PYTHON").expect("CALVE_PYTHON: run the tests by `make test`");
        let mut child = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("py/http_files.py"))
            .arg(dir)
            .arg(if ranges { "ranges" } else { "plain" })
            .stdout(Stdio::piped())
            .spawn()
            .expect("run Python");
        let mut port = String::new();
        let out = child.stdout.as_mut().expect("its output");
        BufReader::new(out).read_line(&mut port).expect("a port");
        let port = port.trim().parse().expect("a port");
        Self(child, port)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn files_of_an_http_server_are_read() {
    let Shared { server, dir, .. } = &*SHARED;
    let web = dir.path().join("web");
    fs::create_dir_all(&web).expect("a folder");
    let line = |n| format!("{{\"id\": {n}, \"region\": \"eu\", \"amount\": 1.5}}");
    let events: Vec<String> = (0..100_000).map(line).collect();
    fs::write(web.join("events.ndjson"), events.join("\n") + "\n").expect("write");
    for ranges in [true, false] {
        let http = Http::start(&web, ranges);
        let name = if ranges { "ranges" } else { "plain" };
        // The server wants the query: a signed link.
        let source = format!(
            "{{ file: {{ path: \"http://127.0.0.1:{}/events.ndjson?sig=SEENSIGNATURE\", chunk_bytes: 16KiB }} }}",
            http.1
        );
        let pipeline = OnS3::new(server, dir.path(), name, &source, OFTEN);
        assert_eq!(
            pipeline.run("checkpoint.after_create=kill@2").signal(),
            Some(9),
            "{}",
            pipeline.log()
        );
        let status = pipeline.run("");
        let log = pipeline.log();
        if ranges {
            assert!(status.success(), "{log}");
        } else {
            assert_eq!(status.code(), Some(2), "{log}");
            assert!(log.contains("no range requests"), "{log}");
            let whole = OnS3::new(server, dir.path(), "whole", &source, "");
            assert!(whole.run("").success(), "{}", whole.log());
        }
    }
    for found in found(server, &["ranges", "whole"]) {
        assert_eq!(
            (&found["rows"], &found["ids"]),
            (&json!(100_000), &json!(100_000)),
            "{found}"
        );
    }
}

#[test]
fn an_unknown_option_of_a_store_is_named() {
    let Shared { server, dir, .. } = &*SHARED;
    let pipeline = OnS3::new(server, dir.path(), "wrong", IN, "");
    let text = fs::read_to_string(pipeline.file()).expect("read");
    let text = text.replace("access_key_id:", "acess_key_id:");
    fs::write(pipeline.file(), text).expect("write");
    assert_eq!(pipeline.run("").code(), Some(2));
    let log = pipeline.log();
    assert!(
        log.contains("option=acess_key_id") && log.contains("did you mean `access_key_id`"),
        "{log}"
    );
}

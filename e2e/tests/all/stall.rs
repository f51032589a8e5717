//! A sink that stalls stops the source, whatever it is: nothing more is read, the memory stays, and the status
//! names what is waited for. When it goes on, so does the source, at once; nothing is lost, nothing comes
//! twice. `CALVE_STALL_SECONDS=60` makes the stalls as long as that (default: 4).

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use calve_e2e::{
    Running, calve,
    http::{Client, free_port, wait_for},
    pause,
    transfers::{
        Server, Settings,
        pipeline::{FIRST, generated, range, whole},
    },
};
use serde_json::Value;

/// Small batches and epochs, and little memory: what is under way is far less than there is.
const SMALL: &str = "commit: { every: 50ms, min_interval: 1ms, rows: 20000 }\n\
     limits: { memory: 64MiB, batch_rows: 2000 }\n";
const ORDERS: &str = "format: { json: { columns: { id: bigint, ts: bigint, region: varchar } } }\n";

fn seconds() -> f64 {
    let given = std::env::var("CALVE_STALL_SECONDS").ok();
    given.map_or(4.0, |text| text.parse().expect("seconds"))
}

/// A pipeline in a folder of its own, which serves its status.
struct Place {
    dir: PathBuf,
    serve: u16,
    table: &'static str,
}

impl Place {
    fn new(dir: &Path, text: &str) -> Self {
        let place = Self {
            dir: dir.to_owned(),
            serve: free_port(),
            table: "a.b",
        };
        let at = dir.display();
        let text = format!(
            "name: stall\n{text}\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{at}/lake/catalog.db\", warehouse: \"{at}/lake\" }}, \
             table: a.b }} }}\n\
             checkpoint: {{ path: \"{at}/checkpoints\" }}\nrejects: {{ path: \"{at}/rejects\" }}\n\
             serve: {{ listen: \"127.0.0.1:{}\" }}\n",
            place.serve
        );
        fs::write(place.file(), text).expect("write the pipeline file");
        place
    }

    fn file(&self) -> PathBuf {
        self.dir.join("p.yaml")
    }

    /// The third pass through a point takes as long as a stall.
    fn start(&self, point: &str) -> (Running, Instant) {
        let fault = format!("{point}=stall={}@3", seconds());
        let running = Running::start(&self.dir, &self.file(), &fault, &[]);
        (running, Instant::now())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.serve)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/api/status")?).ok()
    }

    fn memory(&self) -> f64 {
        let metrics = self.get("/metrics").expect("metrics");
        let name = "calve_process_anonymous_memory_bytes{";
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no memory: {metrics}"))
    }

    /// Count, count of different ones, least and greatest of what the SQL gives as `id`.
    fn found(&self, id: &str) -> [u64; 4] {
        let sql = format!(
            "SELECT count(*) AS a, count(DISTINCT {id}) AS b, min({id}) AS c, max({id}) AS d FROM {}",
            self.table
        );
        let done = Command::new(calve())
            .args(["query", "--format", "json", "--catalog"])
            .arg(self.dir.join("lake/catalog.db"))
            .arg(sql)
            .output()
            .expect("run calve");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let row: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{said}"));
        ["a", "b", "c", "d"].map(|name| row[name].as_u64().expect("a number"))
    }
}

fn share(status: &Value, stage: &str, condition: &str) -> f64 {
    let stages = status["stages"].as_array().expect("stages");
    let found = stages.iter().find(|one| one["stage"] == stage);
    found
        .and_then(|one| one[condition].as_f64())
        .expect("a share")
}

/// What stays while the sink stalls.
fn still(status: &Value) -> [u64; 2] {
    ["events", "bytes"].map(|name| status[name].as_u64().expect("a number"))
}

/// Follows a stall: `sent` is what the source was given, or how far it is, and must stay, too.
fn follow(
    place: &Place,
    running: &mut (Running, Instant),
    stage: &str,
    mut sent: impl FnMut() -> u64,
) {
    let begun = Instant::now();
    // Until nothing has moved for a while, and the status says why.
    let mut last = (Instant::now(), Value::Null, 0);
    let stopped = loop {
        pause(50);
        assert!(running.0.ended().is_none(), "too early: {}", place.log());
        assert!(begun.elapsed() < Duration::from_mins(2), "{}", last.1);
        let (Some(status), given) = (place.status(), sent()) else {
            continue;
        };
        let same = |name: &str| last.1[name] == status[name];
        if !(same("events") && same("rows_committed") && given == last.2) {
            last = (Instant::now(), status, given);
        } else if status["bottleneck"] == stage
            && status["events"] != 0
            && last.0.elapsed() > Duration::from_millis(700)
        {
            break status;
        }
    };
    let (held, given, memory) = (still(&stopped), sent(), place.memory());
    let mut most_blocked: f64 = 0.0;
    let (recovered, status) = loop {
        let now_given = sent();
        let Some(status) = place.status() else {
            panic!("it ended: {}", place.log());
        };
        if status["rows_committed"] != stopped["rows_committed"] || still(&status) != held {
            break (Instant::now(), status);
        }
        assert_eq!(status["bottleneck"], stage, "{status}");
        assert_eq!(now_given, given, "{status}");
        assert_eq!(status["source_lag"], stopped["source_lag"]);
        let blocked = share(&status, "source", "blocked");
        assert!(blocked >= most_blocked - 0.02, "it only grows: {status}");
        most_blocked = most_blocked.max(blocked);
        let now = place.memory();
        assert!(now < memory + 8e6, "memory={now} before={memory}");
        assert!(begun.elapsed().as_secs_f64() < seconds() + 120.0);
        pause(100);
    };
    assert!(most_blocked > 0.15, "{most_blocked}");
    assert!(
        running.1.elapsed().as_secs_f64() > seconds(),
        "that was no stall"
    );
    // The rate is back at once. A bounded source may have come to its end.
    let mut events = still(&status)[0];
    while events <= held[0] && running.0.ended().is_none() {
        assert!(recovered.elapsed() < Duration::from_secs(2), "{events}");
        pause(20);
        events = place.status().map_or(events, |status| still(&status)[0]);
    }
}

fn lines(from: u64, count: u64) -> String {
    let mut text = String::new();
    for id in from..from + count {
        let region = ["eu", "us", "apac"][id as usize % 3];
        let _ = writeln!(
            text,
            "{{\"id\":{id},\"ts\":{},\"region\":\"{region}\"}}",
            id / 1000
        );
    }
    text
}

fn of_a_file(dir: &Path, count: u64, more: &str) -> Place {
    let input = dir.join("in.ndjson");
    fs::write(&input, lines(0, count)).expect("write");
    let source = format!("source: {{ file: {{ path: \"{}\" }} }}\n", input.display());
    Place::new(dir, &format!("{source}{ORDERS}{SMALL}{more}"))
}

#[test]
fn a_file_is_not_read_while_commits_stall() {
    const EVENTS: u64 = 900_000;
    let dir = tempfile::tempdir().expect("a folder");
    let place = of_a_file(dir.path(), EVENTS, "");
    let mut running = place.start("commit.before");
    follow(&place, &mut running, "commit", || 0);
    assert!(running.0.wait().success(), "{}", place.log());
    assert_eq!(place.found("id"), [EVENTS, EVENTS, 0, EVENTS - 1]);
}

#[test]
fn a_file_is_not_read_while_files_are_not_written() {
    const EVENTS: u64 = 900_000;
    let dir = tempfile::tempdir().expect("a folder");
    let place = of_a_file(dir.path(), EVENTS, "");
    let mut running = place.start("write.finish.before_fsync");
    follow(&place, &mut running, "files", || 0);
    assert!(running.0.wait().success(), "{}", place.log());
    assert_eq!(place.found("id"), [EVENTS, EVENTS, 0, EVENTS - 1]);
}

#[test]
fn windows_wait_for_commits_that_stall() {
    const EVENTS: u64 = 900_000;
    let dir = tempfile::tempdir().expect("a folder");
    let windows = "event_time: { column: ts, unit: s, max_delay: 0s }\nwindow: { fixed: 10s }\n\
         transform: { sql: \"SELECT id, to_timestamp_seconds(ts) AS ts, region FROM events\" }\n";
    let place = of_a_file(dir.path(), EVENTS, windows);
    let mut running = place.start("commit.before");
    follow(&place, &mut running, "commit", || 0);
    assert!(running.0.wait().success(), "{}", place.log());
    assert_eq!(place.found("id"), [EVENTS, EVENTS, 0, EVENTS - 1]);
}

#[test]
fn a_generator_makes_nothing_while_commits_stall() {
    const EVENTS: u64 = 900_000;
    let dir = tempfile::tempdir().expect("a folder");
    let source = format!(
        "source: {{ generator: {{ kind: template, seed: 3, count: {EVENTS}, \
         fields: {{ id: {{ sequence: 0 }}, ts: {{ integer: [1, 6] }}, region: {{ choice: [eu, us] }} }} }} }}\n"
    );
    let place = Place::new(dir.path(), &format!("{source}{ORDERS}{SMALL}"));
    let mut running = place.start("commit.before");
    follow(&place, &mut running, "commit", || 0);
    assert!(running.0.wait().success(), "{}", place.log());
    assert_eq!(place.found("id"), [EVENTS, EVENTS, 0, EVENTS - 1]);
}

#[test]
fn a_grpc_server_cannot_send_while_commits_stall() {
    const LEDGERS: u32 = 12_000;
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(generated(), Settings::default());
    let last = FIRST + LEDGERS - 1;
    let source = format!(
        "source: {{ token_transfers: {{ endpoint: \"{}\", {} }} }}\n",
        server.endpoint(),
        range(FIRST, last)
    );
    let place = Place::new(dir.path(), &format!("{source}{SMALL}"));
    let mut running = place.start("commit.before");
    follow(&place, &mut running, "commit", || server.sent());
    assert!(running.0.wait().success(), "{}", place.log());
    let counts = whole(&generated(), FIRST, last);
    let counts = counts.as_object().expect("counts");
    let events: u64 = counts.values().filter_map(Value::as_u64).sum();
    let found = place.found("ledger_sequence");
    assert_eq!(found[..2], [events, counts.len() as u64]);
    assert_eq!(server.sent(), events, "nothing was asked for twice");
}

#[test]
fn http_answers_429_while_commits_stall() {
    let dir = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let at = dir.path().display();
    let source = format!(
        "source: {{ http: {{ listen: \"127.0.0.1:{port}\", max_pending: 256KiB, wal: {{ path: \"{at}/wal\" }} }} }}\n"
    );
    let place = Place::new(dir.path(), &format!("{source}{ORDERS}{SMALL}"));
    let mut running = place.start("commit.before");
    wait_for(port);
    let mut client = Client::new(port);
    let mut taken = 0;
    let mut post = || {
        let body = lines(taken, 500);
        let answer = client.post("", body.as_bytes()).expect("an answer");
        match answer.status {
            200 => taken += 500,
            429 => assert!(answer.retry_after, "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
        (answer.status, taken)
    };
    // Requests until it has stopped for good: many in a row are refused.
    let (begun, mut refused) = (Instant::now(), 0);
    while refused < 60 {
        assert!(begun.elapsed() < Duration::from_mins(2));
        let (status, taken) = post();
        refused = if status == 429 && taken > 0 {
            refused + 1
        } else {
            0
        };
        if refused > 0 {
            pause(10);
        }
    }
    follow(&place, &mut running, "commit", || {
        // While it is still, each further request is refused.
        let (_, taken) = post();
        taken
    });
    let back = Instant::now();
    while post().0 != 200 {
        assert!(back.elapsed() < Duration::from_secs(2), "it takes nothing");
        pause(20);
    }
    assert!(running.0.terminate().success(), "{}", place.log());
    assert_eq!(place.found("id"), [taken, taken, 0, taken - 1]);
}

//! Events that are posted: whatever was answered 200 is in the table, once, however the process ends.

mod bodies;
mod disk;
mod stdin;

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use calve_e2e::{
    Running, Sink, calve,
    http::{Client, free_port, wait_for},
    pause, python, readers,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// A pipeline in a folder of its own, at a port of its own.
struct Place {
    dir: PathBuf,
    sink: Sink,
    port: u16,
}

impl Place {
    /// `source` are settings of the source, `more` of the pipeline.
    fn new(dir: &Path, sink: Sink, source: &str, more: &str) -> Self {
        let place = Self {
            dir: dir.to_owned(),
            sink,
            port: free_port(),
        };
        place.write("json", source, more);
        place
    }

    fn write(&self, format: &str, source: &str, more: &str) {
        let dir = self.dir.display();
        let sink = match self.sink {
            Sink::Iceberg => format!(
                "iceberg: {{ catalog: {{ sqlite: \"{dir}/lake/catalog.db\", warehouse: \"{dir}/lake\" }}, \
                 table: shop.orders, partition_by: [region] }}"
            ),
            Sink::Parquet => format!(
                "parquet: {{ path: \"{dir}/out\", layout: \"region={{region}}/orders-{{seq}}.parquet\" }}"
            ),
        };
        let text = format!(
            "name: orders\n\
             source: {{ http: {{ listen: \"127.0.0.1:{}\", wal: {{ path: \"{dir}/wal\", segment_size: 64KiB }}{source} }} }}\n\
             format: {{ {format}: {{ columns: {{ id: bigint, region: varchar, amount: double }} }} }}\n\
             sink: {{ {sink} }}\n\
             checkpoint: {{ path: \"{dir}/checkpoints\" }}\n\
             rejects: {{ path: \"{dir}/rejects\" }}\n\
             {more}\n",
            self.port
        );
        fs::create_dir_all(&self.dir).expect("a folder");
        fs::write(self.file(), text).expect("write the pipeline file");
    }

    fn file(&self) -> PathBuf {
        self.dir.join("orders.yaml")
    }

    fn start(&self, fault: &str) -> Running {
        let running = Running::start(&self.dir, &self.file(), fault, &[]);
        wait_for(self.port);
        running
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn kind(&self) -> &'static str {
        match self.sink {
            Sink::Iceberg => "iceberg",
            Sink::Parquet => "parquet",
        }
    }

    /// The ids of the table, in order, as DuckDB reads them.
    fn ids(&self) -> Vec<u64> {
        let spec = json!({ "do": "read", "kind": self.kind(), "dir": self.dir });
        let found = python("http_source.py", &[spec]);
        serde_json::from_value(found[0].clone()).expect("ids")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.join("wal")).expect("the log");
        let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "log"));
        paths.sort();
        paths
    }
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(1);
const FAST: &str = "commit: { every: 60ms, min_interval: 10ms }";
/// Nothing is committed before the end.
const NEVER: &str = "commit: { every: 1h }";

fn events(from: u64, count: u64) -> Vec<u8> {
    let event = |id: u64| {
        let region = ["eu", "us", "apac"][id as usize % 3];
        format!(
            "{{\"id\":{id},\"region\":\"{region}\",\"amount\":{}.5}}\n",
            id % 100
        )
    };
    (from..from + count)
        .map(event)
        .collect::<String>()
        .into_bytes()
}

/// Thousands of requests from many connections, each with a key and sent again until it is answered
/// 200, while the process is killed at random times.
fn killed_at_random(sink: Sink, seed: u64) {
    const CLIENTS: u64 = 24;
    const KILLS: usize = 12;
    const EVENTS: u64 = 8;
    /// Ids of each client.
    const EACH: u64 = 10_000_000;
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), sink, "", FAST);
    let mut running = place.start("");
    let enough = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (port, enough, done) = (place.port, Arc::clone(&enough), Arc::clone(&done));
            thread::spawn(move || {
                let mut connection = Client::new(port);
                let mut random = ChaCha8Rng::seed_from_u64(seed * 1000 + client);
                let mut requests = 0;
                while !enough.load(Ordering::Relaxed) {
                    let (key, first) = (
                        format!("{client}-{requests}"),
                        client * EACH + requests * EVENTS,
                    );
                    let body = events(first, EVENTS);
                    let answer = connection.post_until_taken(&key, &body);
                    assert_eq!(answer.body["accepted"], EVENTS);
                    if random.random_bool(0.05) {
                        // Its answer was lost, for all that the client knows.
                        let again = connection.post_until_taken(&key, &body);
                        assert_eq!(again.body["repeated"], true);
                    }
                    requests += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                requests
            })
        })
        .collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..KILLS {
        let before = done.load(Ordering::Relaxed);
        // A client that has panicked says why when it is joined.
        let alive = || clients.iter().all(|client| !client.is_finished());
        let begun = Instant::now();
        while done.load(Ordering::Relaxed) < before + 100 && alive() {
            assert!(begun.elapsed() < PATIENCE, "{}", place.log());
            pause(1);
        }
        pause(random.random_range(0..150));
        running.kill();
        running = place.start("");
    }
    enough.store(true, Ordering::Relaxed);
    let mut expected: Vec<u64> = Vec::new();
    for (client, thread) in clients.into_iter().enumerate() {
        let first = client as u64 * EACH;
        let requests = thread.join().expect("a client");
        expected.extend(first..first + requests * EVENTS);
    }
    assert!(expected.len() >= KILLS * 100 * EVENTS as usize);
    assert!(running.terminate().success(), "{}", place.log());
    assert!(place.ids() == expected, "seed={seed} requests={done:?}");
    let found = readers(&[json!({ "kind": place.kind(), "dir": place.dir })]);
    assert_eq!(found[0]["rejects"], 0);
    assert_eq!(found[0]["doubled"], 0);
    let log = place.dir.join("wal");
    assert!(place.segments().len() < 40, "{}", log.display());
}

#[test]
fn killed_at_random_times_all_that_was_answered_is_in_the_iceberg_table_once() {
    killed_at_random(Sink::Iceberg, 1);
}

#[test]
fn killed_at_random_times_all_that_was_answered_is_in_the_parquet_files_once() {
    killed_at_random(Sink::Parquet, 2);
}

#[test]
fn told_to_stop_in_mid_traffic_it_writes_all_that_it_answered() {
    const CLIENTS: u64 = 8;
    let dir = tempfile::tempdir().expect("a folder");
    // Without a commit before the end: it is the stop that brings everything into the table.
    let place = Place::new(dir.path(), Sink::Iceberg, "", NEVER);
    let running = place.start("");
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (port, answered) = (place.port, Arc::clone(&answered));
            thread::spawn(move || {
                let mut connection = Client::new(port);
                let (mut taken, mut in_doubt) = (Vec::new(), None);
                for first in (0..).map(|n| client * 1_000_000 + n * 10) {
                    match connection.post("", &events(first, 10)) {
                        Ok(answer) if answer.status == 200 => taken.push(first),
                        Ok(answer) => {
                            assert_eq!(answer.status, 503, "{answer:?}");
                            assert!(answer.retry_after);
                            break;
                        }
                        Err(_) => {
                            in_doubt = Some(first);
                            break;
                        }
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                (taken, in_doubt)
            })
        })
        .collect();
    let begun = Instant::now();
    while answered.load(Ordering::Relaxed) < 500 {
        assert!(begun.elapsed() < PATIENCE, "{}", place.log());
        pause(5);
    }
    assert!(running.terminate().success(), "{}", place.log());
    let ids = place.ids();
    let mut found = ids.clone();
    found.dedup();
    assert_eq!(found.len(), ids.len(), "nothing twice");
    let mut expected = 0;
    for client in clients {
        let (taken, in_doubt) = client.join().expect("a client");
        for first in &taken {
            for id in *first..first + 10 {
                assert!(ids.binary_search(&id).is_ok(), "id={id}");
            }
        }
        expected += taken.len() * 10;
        if let Some(first) = in_doubt
            && ids.binary_search(&first).is_ok()
        {
            expected += 10;
        }
    }
    assert_eq!(ids.len(), expected);
}

#[test]
fn a_slow_sink_stops_the_clients_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = ", max_pending: 40KB, batch_bytes: 8KiB";
    let serve = free_port();
    let more = format!(
        "commit: {{ every: 20ms, min_interval: 10ms, rows: 100 }}\nlimits: {{ memory: 32MiB }}\n\
         serve: {{ listen: \"127.0.0.1:{serve}\" }}"
    );
    let place = Place::new(dir.path(), Sink::Iceberg, source, &more);
    // Commits fail until it gives up after a minute; long before that the log is full.
    let running = place.start("iceberg.commit.before_cas=error@1+");
    let mut connection = Client::new(place.port);
    let (mut taken, mut busy) = (0, 0);
    for round in 0..60_000 {
        let answer = connection.post("", &events(taken * 100, 100));
        let answer = answer.expect("an answer");
        match answer.status {
            200 => taken += 1,
            429 => {
                assert!(answer.retry_after);
                busy += 1;
                pause(10);
            }
            _ => panic!("{answer:?} round={round}"),
        }
        if busy >= 20 {
            break;
        }
    }
    assert!(busy >= 20 && taken > 3, "busy={busy} taken={taken}");
    // Figures follow in their time.
    let counted = format!("status=\"429\"}} {busy}");
    let metrics = (0..600).find_map(|_| {
        pause(50);
        Some(get(serve, "/metrics")).filter(|metrics| metrics.contains(&counted))
    });
    let metrics = metrics.unwrap_or_else(|| get(serve, "/metrics"));
    let figure = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next());
        let value: f64 = value.and_then(|v| v.parse().ok()).unwrap_or(-1.0);
        assert!(value >= 0.0, "{name}: {metrics}");
        value
    };
    assert_eq!(
        figure("calve_http_events_accepted_total") as u64,
        taken * 100
    );
    assert!(figure("calve_http_pending_bytes") > 30e3);
    assert!(figure("calve_http_oldest_unread_seconds") < 60.0);
    for (status, count) in [("200", taken), ("429", busy)] {
        let label = format!("status=\"{status}\"}} {count}");
        assert!(metrics.contains(&label), "{label}: {metrics}");
    }
    running.kill();
    // The same without a fault: it takes on at once.
    let running = place.start("");
    let begun = Instant::now();
    while busy > 0 {
        assert!(begun.elapsed() < PATIENCE, "{}", place.log());
        let answer = connection.post("", &events(taken * 100, 100));
        match answer.map(|answer| answer.status) {
            Ok(200) => (taken, busy) = (taken + 1, busy - 1),
            Ok(429) | Err(_) => pause(10),
            other => panic!("{other:?}"),
        }
    }
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), (0..taken * 100).collect::<Vec<_>>());
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("receive");
    answer
}

#[test]
fn an_append_that_is_killed_or_fails_at_any_step_is_written_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Parquet, "", FAST);
    let mut first = 0;
    for step in ["wal.write", "wal.sync"] {
        let running = place.start(&format!("{step}=kill@3"));
        let port = place.port;
        let client = thread::spawn(move || {
            let mut connection = Client::new(port);
            for from in (first..first + 50).step_by(10) {
                connection.post_until_taken(&format!("{step}-{from}"), &events(from, 10));
            }
        });
        assert!(!running.wait().success());
        let running = place.start("");
        client.join().expect("a client");
        assert!(running.terminate().success(), "{}", place.log());
        first += 50;

        let running = place.start(&format!("{step}=error@3"));
        let mut connection = Client::new(place.port);
        let mut answers = Vec::new();
        for at in [0, 1, 2, 2, 3] {
            let key = format!("Idempotency-Key: {step}-error-{at}\r\n");
            let answer = connection.post(&key, &events(first + at * 10, 10));
            let answer = answer.expect("an answer");
            assert_eq!(answer.body["repeated"], Value::Null, "{answer:?}");
            answers.push(answer.status);
        }
        assert_eq!(answers, [200, 200, 503, 200, 200], "{step}");
        assert!(running.terminate().success(), "{}", place.log());
        first += 40;
    }
    assert_eq!(place.ids(), (0..first).collect::<Vec<_>>());
}

/// The schema is not declared.
fn infer_schema(place: &Place) {
    let text = fs::read_to_string(place.file()).expect("read");
    let columns = text.lines().find(|line| line.starts_with("format:"));
    let inferred = text.replace(columns.expect("a format"), "format: json");
    fs::write(place.file(), inferred).expect("write");
}

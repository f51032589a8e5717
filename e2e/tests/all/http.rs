//! Events that are posted: whatever was answered 200 is in the table, once, however the process ends.

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

/// A pipeline that reads its standard input through a log.
fn of_stdin(place: &Place) {
    let text = fs::read_to_string(place.file()).expect("read");
    let (from, to) = (text.find("source:"), text.find("format:"));
    let (from, to) = (from.expect("a source"), to.expect("a format"));
    let source = format!(
        "source: {{ stdin: {{ wal: {{ path: \"{}\", segment_size: 64KiB }} }} }}\n",
        place.dir.join("wal").display()
    );
    let text = format!("{}{source}{}", &text[..from], &text[to..]);
    fs::write(place.file(), text).expect("write");
}

/// calve with this input, of which the end comes when the pipe is dropped.
fn piped(place: &Place, input: &[u8]) -> (Child, ChildStdin) {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(place.dir.join("log"));
    let mut command = Command::new(calve());
    command.arg("run").arg(place.file());
    let command = command.stdin(Stdio::piped()).stderr(log.expect("a log"));
    let mut child = command.spawn().expect("start calve");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input).expect("write");
    (child, pipe)
}

#[test]
fn standard_input_with_a_log_goes_on_where_its_schema_evolves() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", FAST);
    of_stdin(&place);
    infer_schema(&place);
    // Behind what is looked at to infer the schema.
    let mut input = events(0, 150_000);
    input.extend(b"{\"id\":150000,\"region\":\"eu\",\"amount\":1.5,\"sku\":\"new\"}\n");
    input.extend(events(150_001, 150_000));
    let (mut child, pipe) = piped(&place, &input);
    drop(pipe);
    assert!(child.wait().expect("wait").success(), "{}", place.log());
    assert!(place.log().contains("evolves"), "{}", place.log());
    let ids = place.ids();
    assert_eq!(ids.len(), 300_001);
    assert!(ids.iter().copied().eq(0..300_001));
}

/// The schema is not declared.
fn infer_schema(place: &Place) {
    let text = fs::read_to_string(place.file()).expect("read");
    let columns = text.lines().find(|line| line.starts_with("format:"));
    let inferred = text.replace(columns.expect("a format"), "format: json");
    fs::write(place.file(), inferred).expect("write");
}

#[test]
fn standard_input_with_a_log_survives_a_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", NEVER);
    of_stdin(&place);
    let wal = place.dir.join("wal");
    let logged = || -> u64 {
        let sizes = place.segments().into_iter().map(fs::metadata);
        sizes
            .map(|found| found.map_or(0, |found| found.len()))
            .sum()
    };
    for round in 0..3 {
        let input = events(round * 5000, 5000);
        let before = if round == 0 { 0 } else { logged() };
        let (mut child, _pipe) = piped(&place, &input);
        let appended = (0..1200).find(|_| {
            pause(20);
            wal.exists() && logged() >= before + input.len() as u64
        });
        // Nothing is committed by then.
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(appended.is_some(), "{}", place.log());
    }
    let (mut child, pipe) = piped(&place, &events(15_000, 10));
    drop(pipe);
    assert!(child.wait().expect("wait").success(), "{}", place.log());
    assert_eq!(place.ids(), (0..15_010).collect::<Vec<_>>());
}

#[test]
fn a_torn_tail_is_cut_and_damage_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", NEVER);
    let running = place.start("");
    let mut connection = Client::new(place.port);
    for n in 0..60 {
        let answer = connection
            .post("", &events(n * 100, 100))
            .expect("an answer");
        assert_eq!(answer.status, 200);
    }
    running.kill();
    let segments = place.segments();
    assert!(segments.len() >= 3, "{segments:?}");
    let append = |bytes: &[u8]| {
        let file = fs::File::options()
            .append(true)
            .open(&segments[segments.len() - 1]);
        file.and_then(|mut file| file.write_all(bytes))
            .expect("append");
    };
    let flip = |byte: u8| {
        let mut file = fs::File::options()
            .write(true)
            .open(&segments[1])
            .expect("open");
        file.seek(SeekFrom::Start(5000)).expect("seek");
        file.write_all(&[byte]).expect("write");
    };
    let kept = fs::read(&segments[1]).expect("read")[5000];
    flip(kept ^ 1);
    let mut running = Running::start(&place.dir, &place.file(), "", &[]);
    let ended = (0..600).find_map(|_| {
        pause(50);
        running.ended()
    });
    assert_eq!(ended.expect("it ends").code(), Some(1), "{}", place.log());
    assert!(
        place.log().contains("a record is damaged"),
        "{}",
        place.log()
    );
    flip(kept);
    // What a crash leaves in the middle of a write was not acknowledged.
    append(&[0; 1000]);
    append(b"whatever");
    let running = place.start("");
    assert!(place.log().contains("torn tail"), "{}", place.log());
    let answer = Client::new(place.port).post("", &events(6000, 100));
    assert_eq!(answer.expect("an answer").status, 200);
    // A second process neither takes the log nor disturbs the first one.
    let mut second = Running::start(&place.dir, &place.file(), "", &[]);
    let ended = (0..600).find_map(|_| {
        pause(50);
        second.ended()
    });
    assert_eq!(ended.expect("it ends").code(), Some(2), "{}", place.log());
    assert!(place.log().contains("another process has the log"));
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), (0..6100).collect::<Vec<_>>());
    // Without its log the pipeline does not go on.
    fs::remove_dir_all(place.dir.join("wal")).expect("remove");
    let ended = Running::start(&place.dir, &place.file(), "", &[]).wait();
    assert_eq!(ended.code(), Some(2), "{}", place.log());
    assert!(place.log().contains("the log does not hold what follows"));
}

#[test]
fn limits_tokens_and_tls_by_another_client() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.expect("a certificate");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert, made.cert.pem()).expect("write");
    fs::write(&key, made.signing_key.serialize_pem()).expect("write");
    let source = format!(
        ", tokens: [\"first\", \"s3cret\"], tls: {{ cert: \"{}\", key: \"{}\" }}, max_body: 1MiB, max_decompressed: 32MiB",
        cert.display(),
        key.display()
    );
    let place = Place::new(dir.path(), Sink::Parquet, &source, FAST);
    let running = place.start("");
    let spec = json!({ "do": "talk", "port": place.port, "ca": cert, "token": "s3cret" });
    let found = python("http_source.py", &[spec]).remove(0);
    let none = Value::Null;
    let refused = |status: u16, lines: &[u32]| json!([status, none, lines]);
    assert_eq!(
        found,
        json!({
            "lines": [200, 2, []],
            "array": [200, 2, []],
            "object": [200, 1, []],
            "gzip": [200, 1, []],
            "zstd": [200, 1, []],
            "bad": refused(400, &[2, 4]),
            "no token": refused(401, &[]),
            "bad token": refused(401, &[]),
            "type": refused(415, &[]),
            "encoding": refused(415, &[]),
            "gzip bomb": refused(413, &[]),
            "zstd bomb": refused(413, &[]),
            "too large": refused(413, &[]),
            "too deep": refused(400, &[1]),
            "no gzip": refused(400, &[]),
            "without tls": "closed",
        })
    );
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), (1..=7).collect::<Vec<_>>());
    assert!(!place.log().contains("s3cret"));
}

#[test]
fn arrow_streams_and_requests_of_which_the_rest_is_taken() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Parquet, "", FAST);
    place.write("arrow", ", on_bad_event: accept_rest", FAST);
    let running = place.start("");
    let spec = json!({ "do": "arrow", "port": place.port });
    let found = python("http_source.py", &[spec]).remove(0);
    assert_eq!(found["good"], json!([200, 3, []]));
    assert_eq!(found["narrow"], json!([200, 2, []]));
    assert_eq!(found["some bad"], json!([200, 2, [2]]));
    for wrong in ["packed", "cut", "nothing"] {
        assert_eq!(found[wrong], json!([400, null, []]), "{wrong}");
    }
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), [1, 2, 3, 4, 5, 6, 8]);
}

#[test]
fn a_schema_is_inferred_from_the_first_requests_and_evolves() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", FAST);
    infer_schema(&place);
    let running = place.start("");
    let mut connection = Client::new(place.port);
    // The schema is not known: what is no object is refused all the same.
    assert_eq!(
        connection.post("", b"[1]\n").expect("an answer").status,
        400
    );
    let answer = connection.post("", &events(0, 100)).expect("an answer");
    assert_eq!(answer.status, 200);
    let inferred = (0..1200).find(|_| {
        pause(50);
        place.log().contains("inferred schema")
    });
    assert!(inferred.is_some(), "{}", place.log());
    // Once the schema is known, a text is no id.
    let refused = (0..1200).find(|_| {
        pause(50);
        let bad = connection.post("", b"{\"id\":\"none\",\"region\":\"eu\"}\n");
        bad.is_ok_and(|answer| answer.status == 400)
    });
    assert!(refused.is_some(), "{}", place.log());
    let more = b"{\"id\":100,\"region\":\"eu\",\"amount\":1.5,\"sku\":\"new\"}\n";
    connection.post_until_taken("more", more);
    for n in 1..50 {
        connection.post_until_taken(&format!("k{n}"), &events(100 + n, 1));
    }
    // A stop does not wait for the schema to evolve: the next start would do it.
    let expected: Vec<u64> = (0..150).collect();
    let written = (0..120).find(|_| {
        pause(200);
        place.log().contains("committed") && place.ids() == expected
    });
    assert!(written.is_some(), "{}", place.log());
    assert!(running.terminate().success(), "{}", place.log());
    assert!(place.log().contains("evolves"), "{}", place.log());
    assert_eq!(place.ids(), expected, "{}", place.log());
}

fn varint(mut n: u64, into: &mut Vec<u8>) {
    while n >= 0x80 {
        into.push(n as u8 | 0x80);
        n >>= 7;
    }
    into.push(n as u8);
}

/// A message of `shop.Order`, as its encoding is defined.
fn message(id: u64) -> Vec<u8> {
    let mut bytes = vec![0x08];
    varint(id, &mut bytes);
    bytes.extend([0x12, 2]);
    bytes.extend(b"eu");
    bytes.push(0x19);
    bytes.extend(1.5_f64.to_le_bytes());
    bytes
}

#[test]
fn messages_of_protobuf_behind_their_lengths_or_one_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", FAST);
    let proto = place.dir.join("shop.proto");
    let text = "syntax = \"proto3\"; package shop;\n\
         message Order { int64 id = 1; string region = 2; double amount = 3; }\n";
    fs::write(&proto, text).expect("write");
    let text = fs::read_to_string(place.file()).expect("read");
    let json = text.lines().find(|line| line.starts_with("format:"));
    let format = format!(
        "format: {{ protobuf: {{ message: shop.Order, proto: \"{}\" }} }}",
        proto.display()
    );
    let text = text.replace(json.expect("a format"), &format);
    fs::write(place.file(), text).expect("write");
    let running = place.start("");
    let mut client = Client::new(place.port);
    let mut post = |kind: &str, body: &[u8]| {
        let answer = client.post_as(kind, "", body).expect("an answer");
        (answer.status, answer.body["accepted"].as_u64())
    };
    let (single, many) = (
        "application/x-protobuf",
        "application/x-protobuf; encoding=delimited",
    );
    let mut delimited = Vec::new();
    for id in 1..=1000 {
        let one = message(id);
        varint(one.len() as u64, &mut delimited);
        delimited.extend(one);
    }
    assert_eq!(post(many, &delimited), (200, Some(1000)));
    assert_eq!(post(single, &message(0)), (200, Some(1)));
    assert_eq!(post("application/protobuf", &message(1001)), (200, Some(1)));
    // Cut in the middle of a message; no message at all; lines.
    let cut = &delimited[..delimited.len() - 3];
    assert_eq!(post(many, cut).0, 400);
    assert_eq!(post(single, b"\x08").0, 400);
    assert_eq!(post("application/x-ndjson", &events(5, 1)).0, 415);
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), (0..=1001).collect::<Vec<_>>());
}

/// Mounts need a namespace of their own: the test runs again inside of one.
#[test]
fn a_full_disk_below_the_log_refuses_requests_until_there_is_room() {
    let root = tempfile::tempdir().expect("a folder");
    let this = thread::current();
    let this = this.name().expect("a test's name");
    let at = this.rfind("a_full_disk").expect("its own name");
    let inside = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().expect("the test's own path"))
        .arg("--exact")
        .arg(format!("{}a_log_within_a_small_file_system", &this[..at]))
        .args(["--ignored", "--nocapture"])
        .env("CALVE_SMALL", root.path())
        .output()
        .expect("unshare (util-linux) makes a mount namespace for this test");
    let said = String::from_utf8_lossy(&inside.stdout);
    let failed = String::from_utf8_lossy(&inside.stderr);
    assert!(
        inside.status.success() && said.contains("1 passed"),
        "{said}{failed}\nthis test needs user namespaces (kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)"
    );
}

#[test]
#[ignore = "run by a_full_disk_below_the_log_refuses_requests_until_there_is_room, in a mount namespace"]
fn a_log_within_a_small_file_system() {
    let root = std::env::var_os("CALVE_SMALL").expect("set by the test that runs this one");
    let place = Place::new(&Path::new(&root).join("p"), Sink::Iceberg, "", NEVER);
    let wal = place.dir.join("wal");
    fs::create_dir_all(&wal).expect("a folder");
    let mount = |options: &[&str]| {
        let mut mount = Command::new("mount");
        let status = mount.args(options).arg(&wal).status().expect("mount");
        assert!(status.success(), "cannot mount a small file system");
    };
    mount(&["-t", "tmpfs", "-o", "size=512k", "tmpfs"]);
    let running = place.start("");
    let mut client = Client::new(place.port);
    let mut taken = 0;
    let mut post = |events_of: u64| {
        let answer = client.post("", &events(taken, events_of));
        let answer = answer.expect("an answer");
        if answer.status == 200 {
            taken += events_of;
        }
        answer
    };
    let full = (0..1000)
        .map(|_| post(100))
        .find(|answer| answer.status != 200);
    let full = full.expect("the disk is full");
    assert_eq!(full.status, 507, "{full:?}");
    assert!(full.retry_after, "{full:?}");
    let why = full.body["error"].as_str().expect("a reason");
    assert!(why.contains("the log cannot be written"), "{full:?}");
    for _ in 0..20 {
        let again = post(400);
        assert_eq!(again.status, 507, "{again:?}");
    }
    // Smaller ones may still fit behind what was cut off; then those do not, either.
    while post(1).status == 200 {}
    // Killed while it is full: what was answered 200 is there, and nothing else.
    running.kill();
    let running = place.start("");
    let mut client = Client::new(place.port);
    let answer = client.post("", &events(taken, 400)).expect("an answer");
    assert_eq!(answer.status, 507, "{answer:?}");
    mount(&["-o", "remount,size=100m"]);
    for n in 0..50 {
        let first = taken + n * 100;
        let answer = client.post("", &events(first, 100)).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let expected: Vec<u64> = (0..taken + 5000).collect();
    assert!(running.terminate().success(), "{}", place.log());
    assert!(place.ids() == expected, "{}", place.log());
}

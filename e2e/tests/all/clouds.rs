//! Azure Blob Storage, as Azurite speaks it: tables, checkpoints and rejects in a container, killed on the
//! way, and two processes of one pipeline. pyarrow, PyIceberg and DuckDB read what came out.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use calve_e2e::{Running, command, http::free_port, pause, py};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const EVENTS: u64 = 60_000;
const ACCOUNT: &str = "calve";
/// "a key for a test of calve", as base64.
const KEY: &str = "YSBrZXkgZm9yIGEgdGVzdCBvZiBjYWx2ZQ==";

/// A server with the container `lake`; it ends with the test process, however that ends.
struct Azurite {
    guard: Child,
    port: u16,
}

impl Drop for Azurite {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

impl Azurite {
    fn start(dir: &Path) -> Self {
        let port = free_port();
        let bin = "../clouds/node_modules/.bin/azurite-blob";
        let server = Path::new(&py::interpreter()).with_file_name(bin);
        assert!(server.exists(), "run it by `make test-clouds`");
        // The shell ends the server when its standard input ends: when this process does.
        let script = "\"$@\" >\"$DIR/azurite.log\" 2>&1 & pid=$!; read end; kill $pid; wait; rm -rf \"$DIR\"";
        let guard = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(server)
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .args(["--inMemoryPersistence", "--skipApiVersionCheck", "--silent"])
            .arg("--disableTelemetry")
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"))
            .env("DIR", dir)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .spawn()
            .expect("start a shell");
        let server = Self { guard, port };
        let create = json!({ "do": "create", "container": "lake" });
        for _ in 0..200 {
            pause(100);
            if server.ask(&create).is_ok() {
                return server;
            }
        }
        panic!("Azurite does not start: {:?}", server.ask(&create));
    }

    fn ask(&self, what: &Value) -> Result<Value, String> {
        let place = json!({ "port": self.port, "account": ACCOUNT, "key": KEY });
        let done = py::run("azure.py", &[place.to_string(), what.to_string()]);
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        serde_json::from_slice(&done.stdout).map_err(|e| e.to_string())
    }
}

/// A pipeline with everything below `<url>/<name>`.
struct Events {
    dir: PathBuf,
    url: String,
    iceberg: bool,
}

impl Events {
    fn new(server: &Azurite, dir: &Path, name: &str, url: &str, rate: u64) -> Self {
        let (dir, iceberg) = (dir.join(name), name.starts_with("iceberg"));
        fs::create_dir_all(&dir).expect("a folder");
        let (place, catalog) = (format!("{url}/{name}"), dir.join("catalog.db"));
        let sink = if iceberg {
            format!(
                "iceberg: {{ catalog: {{ sqlite: \"{}\", warehouse: \"{place}\" }}, table: shop.orders, \
                 partition_by: [region] }}",
                catalog.display()
            )
        } else {
            format!(
                "parquet: {{ path: \"{place}/out\", layout: \"region={{region}}/orders-{{seq}}.parquet\" }}"
            )
        };
        let text = format!(
            "name: orders\n\
             source: {{ generator: {{ kind: template, seed: 3, count: {EVENTS}, rate: {rate}, batch_bytes: 16KiB, \
             fields: {{ id: {{ sequence: 0 }}, region: {{ choice: [eu, \"u/s%\", apac] }}, \
             amount: {{ uniform: [0, 100] }} }} }} }}\n\
             format: {{ json: {{ columns: {{ id: bigint, region: varchar, amount: double }} }} }}\n\
             sink: {{ {sink} }}\n\
             commit: {{ every: 100ms, min_interval: 10ms }}\n\
             checkpoint: {{ path: \"{place}/checkpoints\" }}\n\
             rejects: {{ path: \"{place}/rejects\" }}\n\
             stores:\n  \"{url}\": {{ account_name: {ACCOUNT}, account_key: \"{KEY}\", \
             endpoint: \"http://127.0.0.1:{}/{ACCOUNT}\", allow_http: true }}\n",
            server.port
        );
        fs::write(dir.join("orders.yaml"), text).expect("the pipeline file");
        Self {
            dir,
            url: place,
            iceberg,
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("orders.yaml")
    }

    fn start(&self, fault: &str) -> Running {
        Running::start(&self.dir, &self.file(), fault, &[])
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        assert!(!log.contains(KEY), "a secret is in the log: {log}");
        log
    }

    fn table(&self, args: &[&str]) -> String {
        let file = self.file().display().to_string();
        let out = format!("{}/out", self.url);
        let table = if self.iceberg { "shop.orders" } else { &out };
        let all = [&["table", args[0], "--file", &file], &args[1..], &[table]].concat();
        let done = command(&all);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{args:?}: {said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Every event is there once; answers with a fingerprint of the rows.
    fn is_whole(&self, server: &Azurite) -> Value {
        self.table(&["clean", "--stopped", "--older-than", "0s"]);
        let what = if self.iceberg {
            self.table(&["verify"]);
            let shown: Value =
                serde_json::from_str(&self.table(&["show", "--json"])).expect("JSON");
            json!({ "do": "iceberg", "location": format!("{}/shop/orders", self.url),
                "metadata": shown["metadata_location"], "to": self.dir.join("copy") })
        } else {
            let path = self.url.split_once("://").expect("a URL").1;
            json!({ "do": "parquet", "path": format!("{path}/out") })
        };
        fs::create_dir_all(self.dir.join("copy")).expect("a folder");
        let found = server.ask(&what).expect("py/azure.py");
        assert_eq!(found["rows"], EVENTS, "{found}: {}", self.log());
        assert_eq!(found["ids"], EVENTS, "{found}: {}", self.log());
        found["fingerprint"].clone()
    }
}

#[test]
#[ignore = "needs Node.js and a download: make test-clouds"]
fn azure_keeps_every_event_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Azurite::start(dir.path());
    let hosted = format!("abfss://lake@{ACCOUNT}.dfs.core.windows.net");
    let mut fingerprints = Vec::new();
    for (name, url) in [
        ("parquet", "az://lake"),
        ("iceberg", "az://lake"),
        ("iceberg_hosted", hosted.as_str()),
    ] {
        let events = Events::new(&server, dir.path(), name, url, 50_000);
        let commit = if events.iceberg {
            "iceberg.commit.after_cas=kill@2"
        } else {
            "commit.after=kill@2"
        };
        for fault in [
            "store.upload.part=kill@4",
            "prepare.after_files=kill@2",
            "checkpoint.after_create=kill@3",
            "commit.before=kill@2",
            commit,
        ] {
            let status = events.start(fault).wait();
            assert_eq!(status.signal(), Some(9), "{fault}: {}", events.log());
        }
        let status = events.start("").wait();
        assert!(status.success(), "{name}: {}", events.log());
        fingerprints.push(events.is_whole(&server));
    }
    assert_eq!(fingerprints[0], fingerprints[1]);
    assert_eq!(fingerprints[0], fingerprints[2]);
}

#[test]
#[ignore = "needs Node.js and a download: make test-clouds"]
fn azure_refuses_a_name_that_another_process_has_taken() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Azurite::start(dir.path());
    let events = Events::new(&server, dir.path(), "iceberg", "az://lake", 30_000);
    // Asleep before it creates a record, until another has gone on from the one before.
    let mut asleep = events.start("checkpoint.before_create=stop@3");
    let stat = format!("/proc/{}/stat", asleep.id());
    let stopped = (0..2000).any(|_| {
        pause(10);
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
    });
    assert!(stopped && asleep.ended().is_none(), "{}", events.log());
    let status = events.start("").wait();
    assert!(status.success(), "{}", events.log());
    let pid = i32::try_from(asleep.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), Signal::CONT).expect("wake it");
    assert_eq!(asleep.wait().code(), Some(1), "{}", events.log());
    let taken = "another process has taken over this pipeline";
    assert!(events.log().contains(taken), "{}", events.log());
    events.is_whole(&server);
}

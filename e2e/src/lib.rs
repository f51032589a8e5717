//! What the end-to-end tests share: the real binary, pipeline files, and independent readers.

pub mod http;
pub mod proxy;
pub mod py;
pub mod rest;
pub mod s3;
pub mod transfers;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

/// The binary under test, built beside the tests with the same profile.
///
/// # Panics
/// When it was not built: `make test` builds it first.
pub fn calve() -> PathBuf {
    let exe = std::env::current_exe().expect("the test's own path");
    let dir = exe
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps");
    let binary = dir.join("calve");
    assert!(
        binary.exists(),
        "build it first: cargo build --release ({})",
        binary.display()
    );
    binary
}

/// Which table a scenario writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Iceberg, SQLite catalog, partitioned by region.
    Iceberg,
    /// Plain Parquet by region.
    Parquet,
}

/// A pipeline in a folder of its own.
#[derive(Debug)]
pub struct Scenario {
    /// The folder.
    pub dir: PathBuf,
    sink: Sink,
}

impl Scenario {
    /// `count` generated events, one in a thousand malformed; `rate` events a second, 0 for flat out.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn new(dir: PathBuf, sink: Sink, count: u64, rate: u64) -> Self {
        fs::create_dir_all(&dir).expect("a folder");
        let scenario = Self { dir, sink };
        scenario.write(count, rate, "SELECT * FROM events");
        scenario
    }

    /// Writes the pipeline file again, with another rate or SQL.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, count: u64, rate: u64, sql: &str) {
        let dir = self.dir.display();
        let rate = if rate == 0 {
            String::new()
        } else {
            format!(", rate: {rate}")
        };
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
             source:\n  generator:\n    kind: template\n    seed: 3\n    count: {count}{}\n    malformed: 0.001\n    \
             batch_bytes: 32KiB\n    fields: {{ id: {{ sequence: 0 }}, region: {{ choice: [eu, us, apac] }}, \
             amount: {{ uniform: [0, 100] }} }}\n\
             format: {{ json: {{ columns: {{ id: bigint, region: varchar, amount: double }} }} }}\n\
             transform: {{ sql: \"{sql}\" }}\n\
             sink: {{ {sink} }}\n\
             commit: {{ every: 40ms, min_interval: 10ms }}\n\
             checkpoint: {{ path: \"{dir}/checkpoints\" }}\n\
             rejects: {{ path: \"{dir}/rejects\" }}\n",
            rate.replace(", ", "\n    ")
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
        start(Command::new(calve()), &self.dir, &self.file(), fault, &[])
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
        let (checkpoints, catalog) = (
            self.dir.join("checkpoints"),
            self.dir.join("lake/catalog.db"),
        );
        let mut command = Command::new(calve());
        command.args([
            "table",
            "clean",
            "--older-than",
            "0s",
            "--stopped",
            "--checkpoint",
        ]);
        command.arg(checkpoints);
        match self.sink {
            Sink::Iceberg => command.arg("--catalog").arg(catalog).arg("shop.orders"),
            Sink::Parquet => command.arg(self.dir.join("out")),
        };
        command.output().expect("run calve")
    }

    /// A PyIceberg process that appends to, overwrites and expires the table (`py/second_writer.py`)
    /// until the file `stop` is there.
    ///
    /// # Panics
    /// When Python is missing.
    pub fn second_writer(&self) -> Child {
        beside("second_writer.py", &self.dir, &[])
    }

    /// What it said on stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// What the readers find, with `leftovers`: every file of table and rejects that nothing refers to,
    /// metadata too.
    ///
    /// # Panics
    /// As [`readers`].
    pub fn with_leftovers(&self) -> serde_json::Value {
        let mut spec = self.spec();
        spec["leftovers"] = true.into();
        readers(&[spec]).remove(0)
    }

    /// What `readers` takes.
    pub fn spec(&self) -> serde_json::Value {
        let kind = match self.sink {
            Sink::Iceberg => "iceberg",
            Sink::Parquet => "parquet",
        };
        serde_json::json!({ "kind": kind, "dir": self.dir })
    }
}

/// `calve run` of some file; ended with this value.
#[derive(Debug)]
pub struct Running(Child);

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Running {
    /// `calve run file args…`, with `CALVE_FAULT` set to `fault` unless empty; its stderr goes to
    /// `dir/log`.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn start(dir: &Path, file: &Path, fault: &str, args: &[&str]) -> Self {
        Self(start(Command::new(calve()), dir, file, fault, args))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When the process cannot be waited for.
    pub fn wait(mut self) -> ExitStatus {
        self.wait_for_end()
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        self.0.wait().expect("wait for calve")
    }

    /// Kills it, and waits for its end.
    ///
    /// # Panics
    /// When the process cannot be waited for.
    pub fn kill(mut self) -> ExitStatus {
        let _ = self.0.kill();
        self.wait_for_end()
    }

    /// How it ended; none: it has not.
    ///
    /// # Panics
    /// When the process cannot be looked at.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("look at calve")
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Panics
    /// When the process cannot be signalled.
    pub fn terminate(self) -> ExitStatus {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").arg(pid).status().expect("run kill");
        assert!(sent.success(), "SIGTERM was not sent");
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `command run file args…`, with `CALVE_FAULT` set to `fault` unless empty; its stderr goes to `dir/log`.
fn start(mut command: Command, dir: &Path, file: &Path, fault: &str, args: &[&str]) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"));
    command
        .arg("run")
        .arg(file)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("a log"));
    if !fault.is_empty() {
        command.env("CALVE_FAULT", fault);
    }
    command.spawn().expect("start calve")
}

/// Any calve command, to its end.
///
/// # Panics
/// When the process cannot be started.
pub fn command(args: &[&str]) -> Output {
    Command::new(calve())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("run calve")
}

/// Reads tables by PyIceberg and DuckDB (`py/readers.py`): per table, row count, a sum over the
/// rows' hashes, the rejects, and the files.
///
/// # Panics
/// When Python or a reader is missing or fails; a test never passes by being skipped.
pub fn readers(specs: &[serde_json::Value]) -> Vec<serde_json::Value> {
    python("readers.py", specs)
}

/// A script of `py/` with a folder and more arguments, as another process.
///
/// # Panics
/// When Python is missing.
pub fn beside(script: &str, dir: &Path, args: &[&str]) -> Child {
    Command::new(py::interpreter())
        .arg(py::script(script))
        .arg(dir)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run Python")
}

/// What a script of `py/` prints about tables, one JSON value for each.
///
/// # Panics
/// When Python is missing or the script fails.
pub fn python(script: &str, specs: &[serde_json::Value]) -> Vec<serde_json::Value> {
    let specs = serde_json::to_string(specs).expect("plain data");
    let done = py::run(script, &[specs]);
    assert!(
        done.status.success(),
        "the readers failed: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    serde_json::from_slice(&done.stdout).expect("the readers print JSON")
}

/// A recorded file below `CALVE_FIXTURES` (default: `shared/fixtures` beside the repository); none, with
/// a note, where it is not there: then a test that uses it ends.
#[expect(clippy::print_stderr, reason = "a test says why it did not run")]
pub fn fixture(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CALVE_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures"),
        PathBuf::from,
    );
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("not run: no fixture at {}", path.display());
    None
}

/// Waits a moment between two looks at another process; never what makes a test right.
#[allow(
    clippy::disallowed_methods,
    reason = "looks at a process from outside, again and again"
)]
pub fn pause(millis: u64) {
    std::thread::sleep(std::time::Duration::from_millis(millis));
}

/// Whether something comes true, within twenty seconds or so.
pub fn within(what: impl Fn() -> bool) -> bool {
    (0..800).any(|_| {
        pause(25);
        what()
    })
}

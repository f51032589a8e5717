//! Scripts of `py/`, run by one process that has imported already what they share (`py/served.py`).

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::LazyLock,
};

use serde_json::Value;

/// The process; it ends with this one, which holds its standard input.
struct Server {
    _process: Child,
    socket: PathBuf,
}

static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

impl Server {
    fn start() -> Self {
        let mut process = Command::new(interpreter())
            .arg(script("served.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run Python");
        let mut socket = String::new();
        let said = process.stdout.take().expect("a pipe");
        let read = BufReader::new(said).read_line(&mut socket);
        assert!(
            read.is_ok_and(|bytes| bytes > 0),
            "py/served.py did not start: what it says is above"
        );
        Self {
            _process: process,
            socket: socket.trim_end().into(),
        }
    }
}

/// The interpreter with the readers' packages.
///
/// # Panics
/// Without `CALVE_PYTHON`.
pub fn interpreter() -> String {
    std::env::var("CALVE_PYTHON").expect("CALVE_PYTHON: run the tests by `make test`")
}

/// A file of `py/`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("py").join(name)
}

/// Runs a script of `py/` to its end, in a process of its own.
///
/// # Panics
/// When Python is missing, or the process died; a test never passes by being skipped.
pub fn run(script: &str, args: &[String]) -> Output {
    let mut request: Vec<Value> = vec![script.into()];
    request.extend(args.iter().map(|arg| arg.as_str().into()));
    let mut stream = UnixStream::connect(&SERVER.socket).expect("py/served.py listens");
    let mut answer = Vec::new();
    writeln!(stream, "{}", Value::Array(request))
        .and_then(|()| stream.read_to_end(&mut answer))
        .expect("py/served.py answers");
    let answer: Value = serde_json::from_slice(&answer)
        .unwrap_or_else(|e| panic!("{script} died, or py/served.py did: {e}"));
    let text = |name: &str| answer[name].as_str().expect("a text").as_bytes().to_vec();
    let code = answer["code"].as_i64().expect("a code") as i32;
    Output {
        // As `wait` gives it.
        status: ExitStatus::from_raw((code & 0xff) << 8),
        stdout: text("stdout"),
        stderr: text("stderr"),
    }
}

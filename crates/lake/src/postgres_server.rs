//! A PostgreSQL of the test's own, from the binaries of the tests' Python environment.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The user and group `nobody`: a server of root's does not start.
const NOBODY: u32 = 65534;

pub(crate) struct Server {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        let password = dir.path().join("password");
        fs::File::create(&password)
            .and_then(|mut file| file.write_all(b"right password"))
            .expect("a file");
        if is_root() {
            for path in [dir.path(), &password] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
            }
        }
        let made = as_nobody("initdb")
            .args(["--username=calve", "--auth=scram-sha-256", "--no-sync"])
            .arg(format!("--pwfile={}", password.display()))
            .arg(format!("--pgdata={}", data.display()))
            .output()
            .expect("initdb starts");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb failed: {said}");

        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let process = as_nobody("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1"])
            .args([
                "-c",
                "unix_socket_directories=",
                "-c",
                "shared_buffers=16MB",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        let mut started = Self { process, port, dir };
        started.wait();
        started
    }

    pub(crate) fn url(&self, password: &str) -> String {
        let password = password.replace(' ', "%20");
        format!(
            "postgres://calve:{password}@127.0.0.1:{}/postgres",
            self.port
        )
    }

    fn wait(&mut self) {
        for _ in 0..600 {
            let said = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            if said.contains("ready to accept connections")
                && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
            {
                return;
            }
            let ended = self.process.try_wait().expect("wait");
            assert!(ended.is_none(), "postgres ended: {said}");
            pause();
        }
        panic!("postgres does not answer");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A fast shutdown: connections are closed, and no shared memory is left behind.
        let server = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(server, rustix::process::Signal::INT);
        let _ = self.process.wait();
    }
}

/// Between two looks at a server that starts.
#[allow(
    clippy::disallowed_methods,
    reason = "looks at a process from outside, again and again"
)]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(50));
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn as_nobody(program: &str) -> Command {
    let program = binaries().join(program);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .arg("--clear-groups")
        .arg(program);
    command
}

fn binaries() -> PathBuf {
    let python = std::env::var("CALVE_PYTHON").expect("CALVE_PYTHON: run the tests by `make test`");
    let lib = Path::new(&python)
        .parent()
        .and_then(Path::parent)
        .expect("<venv>/bin/python")
        .join("lib");
    let found = fs::read_dir(lib)
        .expect("the venv's libraries")
        .filter_map(|entry| {
            Some(
                entry
                    .ok()?
                    .path()
                    .join("site-packages/pgserver/pginstall/bin"),
            )
        })
        .find(|bin| bin.is_dir());
    found.expect("pgserver in the tests' Python environment: run `make setup`")
}

//! Where a pipeline starts (`run --from`), and what a start clears away.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use calve_e2e::{Scenario, Sink, calve, command, pause};
use rustix::process::{Pid, Signal, kill_process};

/// A pipeline that follows the files of a folder.
struct Followed(tempfile::TempDir);

impl Followed {
    fn new(format: &str) -> Self {
        let followed = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir(followed.path("in")).expect("a folder");
        let dir = followed.0.path().display();
        let text = format!(
            "name: followed\n\
             source: {{ file: {{ path: \"{dir}/in/*\", follow: true, poll_interval: 50ms }} }}\n\
             format: {{ {format}: {{ columns: {{ id: bigint }} }} }}\n\
             sink: {{ iceberg: {{ catalog: {{ sqlite: \"{dir}/lake/catalog.db\", warehouse: \"{dir}/lake\" }}, \
             table: a.b }} }}\n\
             commit: {{ every: 100ms, min_interval: 10ms }}\n\
             rejects: {{ path: \"{dir}/rejects\" }}\n"
        );
        fs::write(followed.path("p.yaml"), text).expect("write");
        followed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Adds text to a file of the source.
    fn add(&self, name: &str, text: &str) {
        let mut options = fs::File::options();
        let file = options.create(true).append(true);
        let mut file = file.open(self.path("in").join(name)).expect("open");
        file.write_all(text.as_bytes()).expect("write");
    }

    fn start(&self, from: &[&str]) -> Child {
        let log = fs::File::create(self.path("log")).expect("a log");
        let mut command = Command::new(calve());
        command.arg("run").arg(self.path("p.yaml")).stderr(log);
        command.args(from.iter().flat_map(|from| ["--from", from]));
        command.stdin(Stdio::null()).spawn().expect("start calve")
    }

    /// Runs until the table holds `rows`, then stops it.
    fn run_until(&self, from: &[&str], rows: &[i64], meanwhile: impl FnOnce()) {
        let mut child = self.start(from);
        let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
        let within = |what: &dyn Fn() -> bool| {
            (0..400).any(|_| {
                pause(25);
                what()
            })
        };
        assert!(
            within(&|| log().contains("took the pipeline over")),
            "{}",
            log()
        );
        meanwhile();
        let enough = within(&|| self.ids().len() >= rows.len());
        kill_process(Pid::from_child(&child), Signal::TERM).expect("stop");
        let status = child.wait().expect("wait");
        assert!(enough && status.success(), "{:?} {}", self.ids(), log());
        assert_eq!(self.ids(), rows, "{}", log());
    }

    fn ids(&self) -> Vec<i64> {
        let catalog = self.path("lake/catalog.db");
        let catalog = catalog.to_str().expect("UTF-8");
        let sql = "SELECT id FROM a.b ORDER BY id";
        let done = command(&["query", "--catalog", catalog, "--format", "csv", sql]);
        let text = String::from_utf8(done.stdout).expect("UTF-8");
        let ids = text.lines().filter_map(|line| line.parse().ok());
        ids.collect()
    }

    fn refused(&self, from: &[&str]) -> Output {
        let file = self.path("p.yaml");
        let mut args = vec!["run", file.to_str().expect("UTF-8")];
        args.extend(from.iter().flat_map(|from| ["--from", from]));
        let done = command(&args);
        assert_eq!(done.status.code(), Some(2), "{}", said(&done));
        done
    }
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

fn line(id: i64) -> String {
    format!("{{\"id\":{id}}}\n")
}

#[test]
fn from_latest_takes_only_what_comes_then() {
    let pipeline = Followed::new("json");
    pipeline.add("a.ndjson", &(line(1) + &line(2) + "{\"id\":"));
    pipeline.add("b.ndjson", &line(3));
    // The line that was begun is finished later, and so comes later.
    pipeline.run_until(&["latest"], &[4, 5, 6], || {
        pipeline.add("a.ndjson", "4}\n");
        pipeline.add("b.ndjson", &line(5));
        pipeline.add("c.ndjson", &line(6));
    });
    let done = pipeline.refused(&["latest"]);
    assert!(said(&done).contains("has checkpoints"), "{}", said(&done));
    assert!(
        said(&done).contains("calve checkpoint reset"),
        "{}",
        said(&done)
    );
    // Without it the pipeline goes on.
    pipeline.run_until(&[], &[4, 5, 6, 7], || pipeline.add("a.ndjson", &line(7)));

    // After a reset a start may be chosen again.
    let file = pipeline.path("p.yaml");
    let done = command(&[
        "checkpoint",
        "reset",
        file.to_str().expect("UTF-8"),
        "--yes",
    ]);
    assert!(done.status.success(), "{}", said(&done));
    pipeline.run_until(&["latest"], &[4, 5, 6, 7, 8], || {
        pipeline.add("b.ndjson", &line(8));
    });
}

#[test]
fn from_latest_knows_the_header_of_csv() {
    let pipeline = Followed::new("csv");
    pipeline.add("a.csv", "id\n1\n2\n");
    pipeline.run_until(&["latest"], &[3], || pipeline.add("a.csv", "3\n"));
}

#[test]
fn from_offsets_and_from_earliest() {
    let pipeline = Followed::new("json");
    let text = line(1) + &line(2);
    pipeline.add("a.ndjson", &text);
    pipeline.add("b.ndjson", &text);
    let a = pipeline.path("in/a.ndjson").display().to_string();
    let behind_the_first = format!("{a}={}", line(1).len());
    // Nothing is written down of a start that cannot be.
    for wrong in [
        "nosuch=5",
        &format!("{a}=9999"),
        "newest",
        &format!("{a}=x"),
    ] {
        pipeline.refused(&[wrong]);
    }
    pipeline.run_until(&[&behind_the_first], &[1, 2, 2], || {});

    let pipeline = Followed::new("json");
    pipeline.add("a.ndjson", &text);
    pipeline.run_until(&["earliest"], &[1, 2], || {});
}

#[test]
fn a_source_without_a_latest_position_says_so() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Parquet, 10, 0);
    let file = scenario.file();
    let done = command(&["run", file.to_str().expect("UTF-8"), "--from", "latest"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(
        said(&done).contains("no latest position"),
        "{}",
        said(&done)
    );
    assert!(scenario.run("").success(), "nothing was written down");
}

#[test]
fn a_pipeline_that_has_read_nothing_may_be_changed() {
    let pipeline = Followed::new("json");
    // A path where nothing is yet, an SQL that is not what was meant.
    let file = pipeline.path("p.yaml");
    let meant = fs::read_to_string(&file).expect("read");
    let wrong = meant
        .replace("/in/*", "/inn/*")
        .replace("table: a.b", "table: a.wrong");
    fs::write(&file, wrong).expect("write");
    pipeline.run_until(&[], &[], || {});
    fs::write(&file, &meant).expect("write");
    pipeline.add("a.ndjson", &line(1));
    pipeline.run_until(&[], &[1], || {});
    // Now it has read something.
    fs::write(&file, meant.replace("/in/*", "/inn/*")).expect("write");
    let done = pipeline.refused(&[]);
    assert!(said(&done).contains("changed=source"), "{}", said(&done));
}

#[test]
fn nothing_is_left_of_a_start_with_a_wrong_path_or_column() {
    for (right, wrong) in [
        ("follow: true", "follow: false"),
        ("sink:", "event_time: { column: nosuch }\nsink:"),
    ] {
        let pipeline = Followed::new("json");
        let file = pipeline.path("p.yaml");
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, text.replace(right, wrong)).expect("write");
        pipeline.refused(&[]);
        assert!(
            !pipeline.path("lake/a").exists(),
            "{wrong}: no table was made"
        );
    }
}

fn staged(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a folder of rejects");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "tmp"));
    paths
}

#[test]
fn a_start_removes_rejects_of_a_killed_run() {
    let root = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::new(root.path().join("p"), Sink::Iceberg, 60_000, 150_000);
    assert!(!scenario.run("prepare.after_files=kill@3").success());
    let dir = scenario.dir.join("rejects/orders/main");
    assert!(
        !staged(&dir).is_empty(),
        "it was killed while rejects were staged"
    );
    assert!(scenario.run("").success(), "{}", scenario.log());
    assert_eq!(staged(&dir), Vec::<PathBuf>::new());
}

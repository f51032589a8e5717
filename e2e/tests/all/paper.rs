//! The worked example of the Dataflow paper (Akidau et al., VLDB 2015, section 2.4) as pipelines: the
//! files of examples/paper give the paper's panes in Iceberg tables, also when they are killed in the
//! middle, at each of their checkpoints.
//!
//! Asserted are the values of a window's panes, their order (the index), what is taken back, and the
//! timing where the figures leave no doubt about it.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use calve_e2e::{calve, python};
use serde_json::{Value, json};

/// Noon of the example's day, in milliseconds since 1970.
const NOON: i64 = 1_441_022_400_000;

/// Window in milliseconds after noon (0 to 0 for the global one), index, timing where it is asserted,
/// total; a negative one is taken back.
type Pane = (i64, i64, i64, Option<&'static str>, i64);

const EARLY: Option<&str> = Some("early");
const ON_TIME: Option<&str> = Some("on_time");
const LATE: Option<&str> = Some("late");

const FIG06: &[Pane] = &[(0, 0, 0, ON_TIME, 51)];
const FIG07: &[Pane] = &[
    (0, 0, 0, EARLY, 12),
    (0, 0, 1, EARLY, 22),
    (0, 0, 2, EARLY, 33),
    (0, 0, 3, EARLY, 51),
];
const FIG08: &[Pane] = &[
    (0, 0, 0, EARLY, 12),
    (0, 0, 1, EARLY, 10),
    (0, 0, 2, EARLY, 11),
    (0, 0, 3, EARLY, 18),
];
const FIG09: &[Pane] = &[
    (0, 0, 0, EARLY, 12),
    (0, 0, 1, EARLY, 7),
    (0, 0, 2, EARLY, 11),
    (0, 0, 3, EARLY, 12),
    (0, 0, 4, EARLY, 9),
];
const FIG10: &[Pane] = &[
    (0, 120_000, 0, ON_TIME, 14),
    (120_000, 240_000, 0, ON_TIME, 22),
    (240_000, 360_000, 0, ON_TIME, 3),
    (360_000, 480_000, 0, ON_TIME, 12),
];
const FIG11: &[Pane] = &[
    (0, 120_000, 0, None, 5),
    (0, 120_000, 1, None, 14),
    (120_000, 240_000, 0, None, 7),
    (120_000, 240_000, 1, None, 14),
    (120_000, 240_000, 2, None, 22),
    (240_000, 360_000, 0, None, 3),
    (360_000, 480_000, 0, None, 3),
    (360_000, 480_000, 1, None, 12),
];
const FIG12: &[Pane] = &[
    (0, 120_000, 0, ON_TIME, 5),
    (0, 120_000, 1, LATE, 14),
    (120_000, 240_000, 0, ON_TIME, 22),
    (240_000, 360_000, 0, ON_TIME, 3),
    (360_000, 480_000, 0, ON_TIME, 12),
];
/// The figure draws the first 5 at a full minute; whether it is early or on time is not asserted.
const FIG13: &[Pane] = &[
    (0, 120_000, 0, None, 5),
    (0, 120_000, 1, LATE, 14),
    (120_000, 240_000, 0, EARLY, 7),
    (120_000, 240_000, 1, EARLY, 14),
    (120_000, 240_000, 2, ON_TIME, 22),
    (240_000, 360_000, 0, EARLY, 3),
    (360_000, 480_000, 0, EARLY, 3),
    (360_000, 480_000, 1, EARLY, 12),
];
const FIG13_DISCARDING: &[Pane] = &[
    (0, 120_000, 0, None, 5),
    (0, 120_000, 1, LATE, 9),
    (120_000, 240_000, 0, EARLY, 7),
    (120_000, 240_000, 1, EARLY, 7),
    (120_000, 240_000, 2, ON_TIME, 8),
    (240_000, 360_000, 0, EARLY, 3),
    (360_000, 480_000, 0, EARLY, 3),
    (360_000, 480_000, 1, EARLY, 9),
];
const FIG13_RETRACTING: &[Pane] = &[
    (0, 120_000, 0, None, -5),
    (0, 120_000, 0, None, 5),
    (0, 120_000, 1, LATE, 14),
    (120_000, 240_000, 0, None, -7),
    (120_000, 240_000, 0, EARLY, 7),
    (120_000, 240_000, 1, None, -14),
    (120_000, 240_000, 1, EARLY, 14),
    (120_000, 240_000, 2, ON_TIME, 22),
    (240_000, 360_000, 0, EARLY, 3),
    (360_000, 480_000, 0, None, -3),
    (360_000, 480_000, 0, EARLY, 3),
    (360_000, 480_000, 1, EARLY, 12),
];
/// A merged session's index goes on from the highest of those that it absorbed.
const FIG14: &[Pane] = &[
    (26_667, 86_667, 0, None, -5),
    (26_667, 86_667, 0, None, 5),
    (26_667, 320_000, 2, LATE, 39),
    (144_000, 204_000, 0, None, -7),
    (144_000, 204_000, 0, EARLY, 7),
    (144_000, 320_000, 1, None, -25),
    (144_000, 320_000, 1, ON_TIME, 25),
    (220_000, 320_000, 0, None, -10),
    (220_000, 320_000, 0, EARLY, 10),
    (400_000, 460_000, 0, None, -3),
    (400_000, 460_000, 0, EARLY, 3),
    (400_000, 526_667, 1, EARLY, 12),
];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("the workspace").to_owned()
}

fn example(name: &str) -> PathBuf {
    root().join("examples/paper").join(format!("{name}.yaml"))
}

/// Runs a pipeline file as the README says, into `dir`.
fn run(file: &Path, dir: &Path, fault: &str) -> Output {
    let mut command = Command::new(calve());
    command
        .arg("run")
        .arg(file)
        .current_dir(root())
        .env("OUT", dir.join("lake"));
    if !fault.is_empty() {
        command.env("CALVE_FAULT", fault);
    }
    command.output().expect("run calve")
}

fn well(done: &Output, what: &str) {
    let log = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{what}: {log}");
}

/// What PyIceberg reads of a figure's table in each folder.
fn panes(name: &str, dirs: &[PathBuf]) -> Vec<Value> {
    let text = fs::read_to_string(example(name)).expect("an example");
    let window = if text.contains("global:") {
        "0, 0".to_owned()
    } else {
        format!("epoch_ms(window_start) - {NOON}, epoch_ms(window_end) - {NOON}")
    };
    let total = if text.contains("changelog: true") {
        "CASE _op WHEN '+' THEN total WHEN '-' THEN -total END::BIGINT"
    } else {
        "total::BIGINT"
    };
    let query =
        format!("SELECT {window}, _pane_index, _pane_timing, {total} FROM orders ORDER BY ALL");
    let table = format!("paper.{}", name.replace('-', "_"));
    let spec = |dir: &PathBuf| json!({ "dir": dir, "table": table, "queries": [query] });
    let specs: Vec<Value> = dirs.iter().map(spec).collect();
    let answers = python("windows.py", &specs);
    answers
        .into_iter()
        .map(|answer| answer[0].clone())
        .collect()
}

fn compare(what: &str, found: &Value, expected: &[Pane]) {
    let rows = found.as_array().expect("rows").iter();
    let mut found: Vec<_> = rows
        .map(|row| {
            let number = |at: usize| row[at].as_i64().expect("a number");
            let timing = row[3].as_str().expect("a timing").to_owned();
            ((number(0), number(1), number(2), number(4)), timing)
        })
        .collect();
    found.sort();
    let mut expected: Vec<_> = expected
        .iter()
        .map(|(start, end, index, timing, total)| ((*start, *end, *index, *total), timing))
        .collect();
    expected.sort();
    let values: Vec<_> = found.iter().map(|(row, _)| *row).collect();
    let wanted: Vec<_> = expected.iter().map(|(row, _)| *row).collect();
    assert_eq!(values, wanted, "{what}");
    for ((row, timing), (_, wanted)) in found.iter().zip(&expected) {
        assert!(
            wanted.is_none_or(|wanted| wanted == timing),
            "{what}: {row:?} is {timing}"
        );
    }
}

/// Runs `file` undisturbed, then once for each of its checkpoints with a kill behind it and a second
/// run, and compares all of them. Answers how often it was killed.
fn kill_and_compare(name: &str, file: &Path, expected: &[Pane]) -> usize {
    let place = tempfile::tempdir().expect("a folder");
    let dir = |n: usize| place.path().join(n.to_string());
    well(&run(file, &dir(0), ""), name);
    let mut dirs = vec![dir(0)];
    loop {
        let n = dirs.len();
        let fault = format!("checkpoint.after_create=kill@{n}");
        let done = run(file, &dir(n), &fault);
        if done.status.signal() != Some(9) {
            // It has no more checkpoints than that.
            well(&done, &fault);
            break;
        }
        well(&run(file, &dir(n), ""), &format!("{name} after {fault}"));
        dirs.push(dir(n));
    }
    let found = panes(name, &dirs);
    for (n, found) in found.iter().enumerate() {
        compare(
            &format!("{name}, killed at checkpoint {n}"),
            found,
            expected,
        );
    }
    // Also the timing that the paper does not say.
    assert!(
        found.iter().all(|one| *one == found[0]),
        "{name}: {found:?}"
    );
    dirs.len() - 1
}

#[test]
fn one_window_fired_by_processing_time_and_by_count() {
    for (name, expected) in [
        ("fig06", FIG06),
        ("fig07", FIG07),
        ("fig08", FIG08),
        ("fig09", FIG09),
    ] {
        let kills = kill_and_compare(name, &example(name), expected);
        assert!(kills >= expected.len(), "{name}: {kills}");
    }
}

#[test]
fn fixed_windows_fired_by_processing_time_and_at_the_watermark() {
    for (name, expected, firings) in [("fig11", FIG11, 4), ("fig12", FIG12, 5)] {
        let kills = kill_and_compare(name, &example(name), expected);
        assert!(kills >= firings, "{name}: {kills}");
    }
}

#[test]
fn fixed_windows_with_early_and_late_panes() {
    for (name, expected) in [
        ("fig13", FIG13),
        ("fig13-discarding", FIG13_DISCARDING),
        ("fig13-retracting", FIG13_RETRACTING),
    ] {
        let kills = kill_and_compare(name, &example(name), expected);
        assert!(kills >= 6, "{name}: {kills}");
    }
}

#[test]
fn sessions_that_merge() {
    let kills = kill_and_compare("fig14", &example("fig14"), FIG14);
    assert!(kills >= 6, "{kills}");
}

/// An example with some of its text replaced, in a folder.
fn changed(name: &str, dir: &Path, changes: &[(&str, &str)]) -> PathBuf {
    let mut text = fs::read_to_string(example(name)).expect("an example");
    for (from, to) in changes {
        assert!(text.contains(from), "{from}: {text}");
        text = text.replace(from, to);
    }
    let file = dir.join(format!("{name}.yaml"));
    fs::write(&file, text).expect("write");
    file
}

/// Slowly, so that epochs end between panes too: what is killed then has open windows with rows of
/// many epochs.
#[test]
fn killed_between_panes() {
    let place = tempfile::tempdir().expect("a folder");
    let slowly = [
        ("events.ndjson }", "events.ndjson, speed: 1000 }"),
        ("min_interval: 0s", "every: 1ms, min_interval: 0s"),
    ];
    for (name, expected) in [("fig13-retracting", FIG13_RETRACTING), ("fig14", FIG14)] {
        let file = changed(name, place.path(), &slowly);
        let kills = kill_and_compare(name, &file, expected);
        assert!(kills >= 10, "{name}: {kills}");
    }
}

/// Figure 10, the classic batch: nobody knows of a watermark, and all fires at the end.
#[test]
fn fixed_windows_at_the_end() {
    let place = tempfile::tempdir().expect("a folder");
    let events = fs::read_to_string(root().join("examples/paper/events.ndjson")).expect("events");
    let events: Vec<&str> = events
        .lines()
        .filter(|line| line.contains("event"))
        .collect();
    assert_eq!(events.len(), 10);
    let path = place.path().join("events.ndjson");
    fs::write(&path, events.join("\n") + "\n").expect("write");
    let path = path.display().to_string();
    let changes = [
        ("examples/paper/events.ndjson", path.as_str()),
        ("{ column: ts }", "{ column: ts, max_delay: 1h }"),
    ];
    let file = changed("fig12", place.path(), &changes);
    well(&run(&file, place.path(), ""), "figure 10");
    let found = panes("fig12", &[place.path().to_owned()]);
    compare("figure 10", &found[0], FIG10);
}

/// The README's commands print what it says.
#[test]
fn the_readme_is_true() {
    let place = tempfile::tempdir().expect("a folder");
    let readme = fs::read_to_string(root().join("examples/paper/README.md")).expect("a README");
    let block = |language: &str| -> String {
        let rest = readme.split(&format!("```{language}\n")).nth(1);
        let block = rest.expect("a block").split("```").next();
        block.expect("a first part").to_owned()
    };
    let bin = calve().parent().expect("a folder").display().to_string();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
    let done = Command::new("sh")
        .args(["-euc", &block("sh")])
        .env("PATH", path)
        .env("OUT", place.path().join("lake"))
        .current_dir(root())
        .output()
        .expect("run the README");
    well(&done, "the README");
    assert_eq!(String::from_utf8_lossy(&done.stdout), block("text"));
}

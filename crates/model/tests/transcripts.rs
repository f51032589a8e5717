//! Runs the transcripts in `tests/transcripts/`: each as it is, and once more with a restart
//! between any two steps. Those that are wrong on purpose must fail, with a message that helps.
//! How they are written: `common/script.rs`.

mod common;

use std::path::Path;

use common::script::{Case, parse};

fn cases_in(file: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let text = std::fs::read_to_string(folder.join(file)).expect(file);
    let cases = parse(&text);
    assert!(!cases.is_empty(), "no cases in {file}");
    cases
}

fn run_all(file: &str) {
    let mut failures = Vec::new();
    for case in cases_in(file) {
        for restarts in [false, true] {
            match (case.run(restarts), &case.wrong) {
                (Ok(()), None) => {}
                (Err(e), None) => failures.push(e),
                (Ok(()), Some(_)) => failures.push(format!("case `{}` should fail", case.name)),
                (Err(e), Some(text)) if e.contains(text) => {}
                (Err(e), Some(text)) => failures.push(format!("no `{text}` in: {e}")),
            }
        }
    }
    assert!(failures.is_empty(), "{file}:\n{}", failures.join("\n"));
}

#[test]
fn paper() {
    run_all("paper.txt");
}

#[test]
fn windowings() {
    run_all("windows.txt");
}

#[test]
fn triggers() {
    run_all("triggers.txt");
}

#[test]
fn compositions() {
    run_all("compositions.txt");
}

#[test]
fn sessions() {
    run_all("sessions.txt");
}

#[test]
fn lateness_and_closing() {
    run_all("lateness.txt");
}

#[test]
fn accumulation() {
    run_all("accumulation.txt");
}

#[test]
fn wrong_ones_fail() {
    let cases = cases_in("wrong.txt");
    assert!(cases.iter().all(|case| case.wrong.is_some()));
    run_all("wrong.txt");
}

//! Sizes that a pipeline finds by itself, and sizes that are fixed.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use calve_e2e::{calve, command};

/// Runs events of a source through a pipeline that says so much more; answers with its log.
fn run(dir: &Path, source: &str, events: u64, more: &str) -> String {
    let at = dir.display();
    let text = format!(
        "name: sizes\nsource: {source}\n\
         sink: {{ iceberg: {{ catalog: {{ sqlite: \"{at}/lake/catalog.db\", warehouse: \"{at}/lake\" }}, \
         table: a.b }} }}\n\
         rejects: {{ path: \"{at}/rejects\" }}\n{more}"
    );
    let file = dir.join("p.yaml");
    fs::write(&file, text).expect("write");
    let done = Command::new(calve())
        .args(["run", &file.to_string_lossy(), "--log", "json"])
        .env("CALVE_LOG", "calve_engine=trace,info")
        .output()
        .expect("run calve");
    let log = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{log}");
    let sum: u64 = rows_of(&log, "committed").iter().sum();
    assert_eq!(sum, events, "{log}");
    log
}

/// The rows that each line with this message names.
fn rows_of(log: &str, message: &str) -> Vec<u64> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &serde_json::Value| line["fields"]["message"] == message)
        .map(|line| line["fields"]["rows"].as_u64().expect("rows"))
        .collect()
}

#[test]
fn commits_come_as_seldom_as_freshness_allows() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = "{ generator: { kind: template, seed: 3, count: 60000, rate: 10000, \
        fields: { id: { sequence: 0 }, region: { choice: [eu, us] } } } }";
    let more = "commit: { freshness: 2s, min_interval: 50ms }\n";
    let commits = rows_of(&run(dir.path(), source, 60_000, more), "committed");
    // The first epoch lasts for half of the freshness; those after it for nearly all of it.
    assert!((3..=6).contains(&commits.len()), "{commits:?}");
    let most = commits.iter().max().expect("commits");
    assert!(*most > 3 * commits[0] / 2, "{commits:?}");
}

#[test]
fn batches_have_about_the_size_that_is_asked_for() {
    let events = 300_000;
    let mut lines = String::new();
    for id in 0..events {
        let _ = writeln!(lines, "{{\"id\":{id},\"region\":\"eu\"}}");
    }
    for rows in [300, 3_000, 10_000] {
        let dir = tempfile::tempdir().expect("a folder");
        let input = dir.path().join("in.ndjson");
        fs::write(&input, &lines).expect("write");
        let source = format!("{{ file: {{ path: \"{}\" }} }}", input.display());
        let more = format!("limits: {{ batch_rows: {rows} }}\n");
        let sizes = rows_of(&run(dir.path(), &source, events, &more), "batch");
        // The first are as the source gives them: how large an event is is not known yet.
        let after = &sizes[sizes.len() / 2..sizes.len() - 1];
        let off = after
            .iter()
            .filter(|size| !(rows / 10 * 8..=rows / 10 * 12).contains(*size));
        assert!(
            off.count() * 10 <= after.len(),
            "batch_rows={rows}: {sizes:?}"
        );
    }
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("p.yaml");
    for (more, says) in [
        (
            "commit: { every: 5s, freshness: 10s }",
            "commit.freshness is given",
        ),
        ("commit: { freshness: 0s }", "is zero"),
        ("commit: { freshness: 500ms }", "min_interval"),
        ("limits: { batch_rows: 0 }", "limits.batch_rows"),
        ("commit: { every: often }", "commit.every"),
    ] {
        let text =
            format!("name: p\nsource: stdin\nsink: {{ parquet: {{ path: out }} }}\n{more}\n");
        fs::write(&file, text).expect("write");
        let done = command(&["check", &file.to_string_lossy()]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            !done.status.success() && said.contains(says),
            "{more}: {said}"
        );
    }
}

//! What a person sees on a terminal: the live line, the monitors' tables, the summary, and the end of the
//! demo, whose commands are run.

use std::{fs, path::Path};

use calve_e2e::{calve, py};
use serde_json::Value;

/// What was on a terminal.
struct Seen {
    code: i64,
    /// What was written over.
    lives: Vec<String>,
    /// What stands there in the end.
    screen: Vec<String>,
}

/// Runs a command on a terminal; ^C is pressed once all of what it wrote matches the pattern `interrupt`.
fn on_a_terminal(dir: &Path, interrupt: &str, command: &[&str]) -> Seen {
    let dir = dir.display().to_string();
    let args = [dir.as_str(), interrupt];
    let args: Vec<String> = args.iter().chain(command).map(|&arg| arg.into()).collect();
    let done = py::run("terminal.py", &args);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "terminal.py: {said}");
    let found: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let lines = |name: &str| {
        let all = found[name].as_array().expect("lines").iter();
        all.map(|line| line.as_str().expect("a line").to_owned())
            .collect()
    };
    Seen {
        code: found["code"].as_i64().expect("a code"),
        lives: lines("lives"),
        screen: lines("screen"),
    }
}

impl Seen {
    fn all(&self) -> String {
        let (lives, screen) = (self.lives.join("\n"), self.screen.join("\n"));
        format!("{lives}\n---\n{screen}")
    }

    /// The figures of each live line, which are two spaces apart.
    fn figures(&self) -> Vec<Vec<&str>> {
        let lines = self.lives.iter().filter(|line| line.contains(" events/s"));
        lines.map(|line| line.split("  ").collect()).collect()
    }

    /// Some live line has a figure that begins and ends so, and says more than nothing.
    fn has_figure(&self, begins: &str, ends: &str) {
        let fits = |figure: &&str| {
            let number = figure
                .strip_prefix(begins)
                .and_then(|f| f.strip_suffix(ends));
            number.is_some_and(|n| n.contains(|c: char| ('1'..='9').contains(&c)))
        };
        let found = self.figures().iter().flatten().any(fits);
        assert!(found, "no `{begins}…{ends}`: {}", self.all());
    }

    /// What stands behind a name in the summary, without thousands' commas and what comes after.
    fn summary(&self, name: &str) -> u64 {
        let line = self.screen.iter().find_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(' ').then(|| rest.trim_start())
        });
        let line = line.unwrap_or_else(|| panic!("no `{name}`: {}", self.all()));
        let number = line.split(' ').next().unwrap_or_default().replace(',', "");
        number.parse().unwrap_or_else(|_| panic!("{name}: {line}"))
    }

    /// The numbers in a column of the tables below such a header, one list a table.
    fn tables(&self, header: &[&str], column: usize) -> Vec<Vec<u64>> {
        let words = |line: &str| {
            line.split(|c: char| c.is_whitespace() || c == '|')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let mut found = Vec::new();
        for (at, line) in self.screen.iter().enumerate() {
            if words(line) == header {
                let rows = self.screen[at + 1..].iter();
                let rows = rows
                    .filter(|line| !line.starts_with('+'))
                    .map_while(|line| {
                        let of = words(line);
                        (of.len() == header.len()).then(|| of[column].parse().ok())?
                    });
                found.push(rows.collect());
            }
        }
        found
    }
}

const SHOWN: &str = r#"name: shown
source:
  generator:
    kind: template
    seed: 3
    rate: 2000
    malformed: 0.01
    fields: { id: { sequence: 0 }, region: { choice: [eu, us, apac] }, amount: { uniform: [0, 100] } }
format: { json: { columns: { id: bigint, region: varchar, amount: double } } }
monitor: { regions: "SELECT region, count(*) AS n FROM events GROUP BY region ORDER BY region" }
sink: { parquet: { path: out, layout: "region={region}/orders-{seq}.parquet" } }
commit: { every: 200ms, min_interval: 10ms }
"#;

#[test]
fn a_run_shows_a_live_line_tables_and_a_summary() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("shown.yaml"), SHOWN).expect("the pipeline file");
    // When a table has come, and a live line behind a commit.
    let calve = calve().display().to_string();
    let until = r"regions\r\n.*rejected  [^\n]*commit [0-9]";
    let seen = on_a_terminal(dir.path(), until, &[&calve, "run", "shown.yaml"]);
    assert_eq!(seen.code, 0, "{}", seen.all());
    for (begins, ends) in [
        ("", " events/s"),
        ("", "B/s"),
        ("", " events"),
        ("", " rejected"),
        ("", " files"),
        ("commit ", " ago"),
        ("", "B held"),
    ] {
        seen.has_figure(begins, ends);
    }
    // It is gone when something else is written, and in the end.
    let left = seen.screen.iter().filter(|line| line.contains(" held"));
    assert_eq!(left.count(), 0, "{}", seen.all());

    let (read, written, rejected) = (
        seen.summary("events read"),
        seen.summary("written"),
        seen.summary("rejected"),
    );
    assert!(written > 0 && rejected > 0, "{}", seen.all());
    assert_eq!(written + rejected, read, "{}", seen.all());
    // One while it ran, of three regions, and one of everything.
    let tables = seen.tables(&["region", "n"], 1);
    assert!(tables.len() >= 2, "{}", seen.all());
    assert!(tables.iter().all(|rows| rows.len() == 3), "{tables:?}");
    let sums: Vec<u64> = tables.iter().map(|rows| rows.iter().sum()).collect();
    assert!(sums[0] > 0 && sums.is_sorted(), "{tables:?}");
    assert_eq!(sums.last(), Some(&written), "{}", seen.all());
    // The terminal's own echo of ^C may stand before it.
    let says = |line: &String| line.contains("stopping: what was read is committed");
    assert!(seen.screen.iter().any(says), "{}", seen.all());
}

#[test]
fn the_demo_ends_with_its_results_and_commands_that_work() {
    let dir = tempfile::tempdir().expect("a folder");
    let calve = calve().display().to_string();
    let demo = [&calve, "demo", "--seconds", "2", "--rate", "20000"];
    let seen = on_a_terminal(dir.path(), "", &demo);
    assert_eq!(seen.code, 0, "{}", seen.all());
    seen.has_figure("", " events/s");
    seen.has_figure("watermark lag ", "");
    let buckets = seen.tables(&["bucket", "n", "avg_amount"], 1);
    let rows = seen.summary("  rows");
    assert!(rows > 0, "{}", seen.all());
    assert_eq!(
        buckets.last().map(|of| of.iter().sum::<u64>()),
        Some(rows),
        "{}",
        seen.all()
    );
    assert_eq!(rows, seen.summary("written"));
    assert_eq!(seen.summary("  rejects"), seen.summary("rejected"));
    assert_eq!(seen.summary("  files"), seen.summary("files"));
    assert!(seen.summary("  snapshots") > 0);
    let rate = seen.screen.iter().find(|line| line.starts_with("  rate "));
    assert!(
        rate.is_some_and(|line| line.ends_with(" events/s")),
        "{}",
        seen.all()
    );

    let next = seen.screen.iter().skip_while(|line| *line != "Try next:");
    let next: Vec<&String> = next.skip(1).filter(|line| !line.is_empty()).collect();
    assert_eq!(next.len(), 4, "{}", seen.all());
    for line in next {
        // The last one goes on for ever.
        let goes_on = line.contains(" run ");
        let interrupt = if goes_on { "resumed.*committed" } else { "" };
        let command = format!("exec {}", line.trim());
        let tried = on_a_terminal(dir.path(), interrupt, &["sh", "-c", &command]);
        assert_eq!(tried.code, 0, "{line}: {}", tried.all());
        if line.contains(" query ") {
            let header = ["region", "bucket", "n", "avg(shop.orders.amount)"];
            let counts = tried.tables(&header, 2);
            let sum = counts.first().map(|of| of.iter().sum::<u64>());
            assert_eq!(sum, Some(rows), "{}", tried.all());
        } else if line.contains(" show ") {
            assert!(tried.all().contains(&format!("{rows}")), "{}", tried.all());
        } else if line.contains(" ls ") {
            assert!(tried.all().contains("main"), "{}", tried.all());
        } else {
            assert!(tried.summary("written") > 0, "{}", tried.all());
        }
    }
}

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::Prepared;

/// A sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Takes the text apart as strictly as `promtool check metrics` does: every sample below the head of
/// its family, names and units as the type wants them, no series twice, buckets that only rise.
fn parse(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    assert!(text.ends_with("# EOF\n"), "the end is marked");
    let (mut types, mut samples) = (BTreeMap::new(), Vec::<Sample>::new());
    let (mut family, mut helped) = (String::new(), BTreeSet::new());
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(!help.trim().is_empty() && helped.insert(name.to_owned()));
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, family);
            assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None);
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').expect("a unit");
            assert!(name == family && name.ends_with(&format!("_{unit}")));
        } else {
            samples.push(sample(line));
            let ends: &[&str] = match types[&family].as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("type {other}"),
            };
            let name = &samples.last().expect("just pushed").0;
            assert!(
                ends.iter().any(|end| *name == format!("{family}{end}")),
                "{name} below {family}"
            );
        }
    }
    let series: BTreeSet<String> = samples
        .iter()
        .map(|s| format!("{}{:?}", s.0, s.1))
        .collect();
    assert_eq!(series.len(), samples.len(), "no series comes twice");
    (types, samples)
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.split_once('{').expect("labels");
    let labels = labels.strip_suffix('}').expect("closed labels");
    let pairs = labels.split("\",").map(|pair| {
        let (name, value) = pair.split_once("=\"").expect("a label");
        (name.to_owned(), value.trim_end_matches('"').to_owned())
    });
    let pairs: Vec<_> = pairs.collect();
    let count = pairs.len();
    let labels: BTreeMap<_, _> = pairs.into_iter().collect();
    assert_eq!(labels.len(), count, "no label comes twice: {line}");
    (name.to_owned(), labels, value.parse().expect("a number"))
}

fn names<'a>(samples: &'a [Sample], name: &str) -> Vec<&'a Sample> {
    samples.iter().filter(|(n, ..)| n == name).collect()
}

fn worked() -> Metrics {
    let metrics = Metrics::of_table("orders", "main", "shop.orders");
    metrics.received(100, 5_000, 3);
    metrics.set_sizes(Some(16_000), std::time::Duration::from_secs(30), 8);
    metrics.set_process(ProcessMemory {
        resident: 60 << 20,
        anonymous: 6 << 20,
        committed: 13 << 20,
        ..ProcessMemory::default()
    });
    for stage in [
        Stage::Read,
        Stage::Decode,
        Stage::Transform,
        Stage::Split,
        Stage::Prepare,
        Stage::Checkpoint,
    ] {
        metrics.stage(stage, 0.002);
        metrics.stage(stage, 3_000.0);
    }
    metrics.set_watermark(1_700_000_000_000_000);
    metrics.set_source_lag(Some(17));
    metrics.set_levels(
        [("batches", 1 << 19), ("windows", 0), ("files", 1 << 19)],
        4,
    );
    for output in [TABLE, REJECTS] {
        metrics.commit_tried(output, "conflict", 0.01);
        metrics.commit_tried(output, "committed", 0.02);
        let prepared = Prepared {
            rows: 97,
            files: 2,
            ..Prepared::default()
        };
        metrics.committed(output, &prepared, Some("1".to_owned()));
    }
    metrics
}

#[test]
fn every_metric_is_there_with_its_labels() {
    let everywhere: [(&str, &str, &[&str]); 30] = [
        ("calve_up", "gauge", &[]),
        ("calve_events_received", "counter", &[]),
        ("calve_bytes_received", "counter", &[]),
        ("calve_events_rejected", "counter", &[]),
        ("calve_events_late", "counter", &[]),
        ("calve_events_written", "counter", &["output", "table"]),
        ("calve_files_written", "counter", &["output", "table"]),
        ("calve_commits", "counter", &["outcome", "output", "table"]),
        (
            "calve_commit_duration_seconds",
            "histogram",
            &["output", "table"],
        ),
        ("calve_stage_duration_seconds", "histogram", &["stage"]),
        ("calve_stage_busy_seconds", "counter", &["stage"]),
        ("calve_stage_starved_seconds", "counter", &["stage"]),
        ("calve_stage_blocked_seconds", "counter", &["stage"]),
        ("calve_stage_busy_ratio", "gauge", &["stage"]),
        ("calve_stage_starved_ratio", "gauge", &["stage"]),
        ("calve_stage_blocked_ratio", "gauge", &["stage"]),
        ("calve_bottleneck", "gauge", &["stage"]),
        ("calve_watermark_lag_seconds", "gauge", &[]),
        ("calve_source_lag", "gauge", &[]),
        ("calve_memory_bytes", "gauge", &[]),
        ("calve_memory_held_bytes", "gauge", &["part"]),
        ("calve_memory_limit_bytes", "gauge", &[]),
        ("calve_process_resident_memory_bytes", "gauge", &[]),
        ("calve_process_anonymous_memory_bytes", "gauge", &[]),
        ("calve_allocator_bytes", "gauge", &["figure"]),
        ("calve_batch_rows", "gauge", &[]),
        ("calve_batch_rows_wanted", "gauge", &[]),
        ("calve_commit_interval_seconds", "gauge", &[]),
        ("calve_files_in_flight", "gauge", &[]),
        ("calve_open_files", "gauge", &[]),
    ];
    let (types, samples) = parse(&worked().encode());
    assert_eq!(types.len(), everywhere.len(), "{:?}", types.keys());
    for (name, kind, own) in everywhere {
        assert_eq!(types.get(name).map(String::as_str), Some(kind), "{name}");
        let mut wanted: BTreeSet<&str> = own.iter().copied().collect();
        wanted.extend(["pipeline", "shard"]);
        let of_family = samples.iter().filter(|(n, ..)| {
            n.strip_prefix(name)
                .is_some_and(|end| ["", "_total", "_sum", "_count", "_bucket"].contains(&end))
        });
        let mut some = false;
        for (_, labels, value) in of_family {
            let found: BTreeSet<&str> = labels
                .keys()
                .map(String::as_str)
                .filter(|l| *l != "le")
                .collect();
            assert_eq!(found, wanted, "{name}");
            assert!(value.is_finite() && *value >= 0.0, "{name} {value}");
            some = true;
        }
        assert!(some, "{name} has no sample");
    }
    let written = names(&samples, "calve_events_written_total");
    assert!(written.iter().all(|(_, labels, value)| {
        labels["table"] == "shop.orders" && (value - 97.0).abs() < f64::EPSILON
    }));
}

#[test]
fn buckets_only_rise_and_end_with_the_count() {
    let (_, samples) = parse(&worked().encode());
    let mut last: BTreeMap<String, f64> = BTreeMap::new();
    for (name, labels, value) in &samples {
        let Some(family) = name.strip_suffix("_bucket") else {
            continue;
        };
        let mut series = labels.clone();
        let le = series.remove("le").expect("a bound");
        let key = format!("{family}{series:?}");
        let before = last.insert(key, *value).unwrap_or(0.0);
        assert!(*value >= before, "{name} {labels:?}");
        if le == "+Inf" {
            let counts = names(&samples, &format!("{family}_count"));
            let count = counts.iter().find(|(_, labels, _)| *labels == series);
            assert!(count.is_some_and(|(.., count)| count.to_bits() == value.to_bits()));
        }
    }
    assert!(!last.is_empty());
}

#[test]
fn what_is_not_known_is_left_out() {
    let metrics = Metrics::of_table("orders", "main", "shop.orders");
    let (_, samples) = parse(&metrics.encode());
    for name in ["calve_source_lag", "calve_watermark_lag_seconds"] {
        assert!(names(&samples, name).is_empty(), "{name}");
    }
    assert_eq!(metrics.status().source_lag, None);
    // Counters are there from the beginning.
    for name in ["calve_events_written_total", "calve_commits_total"] {
        let found = names(&samples, name);
        assert_eq!(found.len(), 2, "{name}");
        assert!(found.iter().all(|(.., value)| value.abs() < f64::EPSILON));
    }

    metrics.set_source_lag(Some(0));
    let (_, samples) = parse(&metrics.encode());
    assert_eq!(names(&samples, "calve_source_lag").len(), 1, "0 is known");
    assert_eq!(metrics.status().source_lag, Some(0));
    metrics.set_source_lag(None);
    let (_, samples) = parse(&metrics.encode());
    assert!(names(&samples, "calve_source_lag").is_empty());
}

#[test]
fn labels_are_escaped() {
    let metrics = Metrics::of_table("orders", "main", "a \"quoted\\ path\nof lines");
    let text = metrics.encode();
    assert!(
        text.contains("table=\"a \\\"quoted\\\\ path\\nof lines\""),
        "{text}"
    );
}

#[test]
fn late_rows_are_counted() {
    let metrics = Metrics::new("orders", "main");
    metrics.late(3);
    metrics.late(0);
    metrics.late(4);
    let (_, samples) = parse(&metrics.encode());
    let late = samples
        .iter()
        .find(|(name, ..)| name == "calve_events_late_total");
    assert!((late.expect("a series").2 - 7.0).abs() < f64::EPSILON);
    assert_eq!(metrics.status().late, 7);
}

#[test]
fn a_source_s_connection_is_looked_at() {
    let metrics = Metrics::new("a", "main");
    assert!(!metrics.encode().contains("calve_source_reconnects_total{"));
    metrics.set_connected(true);
    assert!(
        metrics.status().connected,
        "a source without a connection is there"
    );
    let link = Arc::new(Link::default());
    metrics.set_link(Some(Arc::clone(&link)));
    assert!(!metrics.status().connected);
    link.set_connected(true);
    link.reconnected();
    link.reconnected();
    assert!(metrics.status().connected);
    for _ in 0..2 {
        let text = metrics.encode();
        assert!(
            text.contains("calve_source_reconnects_total{pipeline=\"a\",shard=\"main\"} 2"),
            "{text}"
        );
    }
}

//! Errors of `window` and `aggregate` explain: each says what is wrong, and most what to do.

use super::{super::parse, *};

const TIMED: &str = "event_time: { column: ts, unit: s }\n";
const AGGREGATE: &str =
    "aggregate: { sql: \"SELECT count(*) AS n FROM events GROUP BY window_start, window_end\" }\n";

fn strategy(window: &str) -> Strategy {
    let window = window_of(&format!("{TIMED}window: {window}\n"));
    window.strategy().unwrap_or_else(|error| panic!("{error}"))
}

fn window_of(sections: &str) -> WindowConfig {
    let file = parsed(sections).unwrap_or_else(|error| panic!("{sections}: {error}"));
    file.window.expect("windows")
}

fn parsed(sections: &str) -> Result<super::super::PipelineFile> {
    let text =
        format!("name: a\nsource: generator\nsink: {{ parquet: {{ path: out }} }}\n{sections}");
    parse(&text, &|_| None)
}

/// The message says `says`, and the hint `helps`.
fn refused(sections: &str, says: &str, helps: &str) {
    let Err(error) = parsed(sections) else {
        panic!("it was taken: {sections}");
    };
    let hint = error.hint_text().unwrap_or_default();
    assert!(error.to_string().contains(says), "{sections}: {error}");
    assert!(hint.contains(helps), "{sections}: {error}; {hint}");
    assert_eq!(error.kind(), calve_engine::ErrorKind::Config, "{sections}");
}

/// As [`refused`], of a `window` beside `event_time`.
fn wrong(window: &str, says: &str, helps: &str) {
    refused(&format!("{TIMED}window: {window}\n"), says, helps);
}

#[test]
fn the_shortest_window_is_a_fixed_one() {
    let minute = 60_000_000;
    assert_eq!(
        strategy("{ fixed: 1m }"),
        Strategy {
            windowing: Windowing::Fixed {
                size: minute,
                offset: 0
            },
            ..Strategy::default()
        }
    );
    let whole = strategy(
        "{ sliding: { size: 1h, period: 5m }, offset: 1m, allowed_lateness: 10m, closing: always,
           trigger: { early: { every: 30s, aligned: true }, on_time: always, late: { count: 1 } } }",
    );
    assert_eq!(
        whole,
        Strategy {
            windowing: Windowing::Sliding {
                size: 60 * minute,
                period: 5 * minute,
                offset: minute
            },
            trigger: Trigger::phases(
                Some(Trigger::Period {
                    every: minute / 2,
                    aligned: true
                }),
                Some(Trigger::Count(1))
            ),
            allowed_lateness: 10 * minute,
            accumulation: Accumulation::Discarding,
            closing: Closing::FireAlways,
            empty_on_time: true,
        }
    );
}

#[test]
fn triggers_are_composed_as_written() {
    let trigger = |text: &str| strategy(&format!("{{ fixed: 1m, trigger: {text} }}")).trigger;
    assert_eq!(trigger("at_watermark"), Trigger::AtWatermark);
    assert_eq!(
        trigger("{ repeat: { any: [ { count: 5 }, { bytes: 1MiB } ] }, until: at_watermark }"),
        Trigger::Until {
            repeat: Box::new(Trigger::Any(vec![
                Trigger::Count(5),
                Trigger::Bytes(1 << 20)
            ])),
            until: Box::new(Trigger::AtWatermark),
        }
    );
    assert_eq!(
        trigger("{ sequence: [ { count: 2 }, { repeat: at_watermark } ] }"),
        Trigger::Sequence(vec![Trigger::Count(2), Trigger::AtWatermark.repeated()])
    );
    let all = trigger("{ all: [ { every: 1s }, { count: 2 } ] }");
    assert!(
        matches!(&all, Trigger::All(parts) if parts.len() == 2),
        "{all}"
    );
}

#[test]
fn windows_are_of_one_kind() {
    let one = "exactly one of fixed, sliding, session, global";
    wrong("{}", one, "fixed: 1h");
    wrong("{ fixed: 1m, global: {} }", one, "fixed: 1h");
    wrong("{ fixed: 1m, session: 1m, key: [a] }", one, "fixed: 1h");
    wrong(
        "{ session: 1m }",
        "session needs window.key",
        "key: [user_id]",
    );
    wrong("{ session: 1m, key: [a], offset: 1s }", "window.offset", "");
    wrong("{ fixed: 0s }", "must be above 0", "");
    wrong("{ sliding: { size: 1m, period: 2m } }", "gaps", "");
    wrong("{ fixd: 1m }", "path=window.fixd", "`fixed`");
    wrong(
        "{ fixed: 1m, late: sidetable }",
        "path=window.late",
        "side, drop, append",
    );
}

#[test]
fn event_time_is_asked_for_where_it_matters() {
    let helps = "event_time: {";
    refused("window: { fixed: 1m }", "there is no event_time", helps);
    refused(
        "window: { global: {}, allowed_lateness: 1m }",
        "window.allowed_lateness needs event_time",
        helps,
    );
    window_of("window: { global: {}, trigger: { repeat: { count: 5 } } }");
}

#[test]
fn accumulation_is_for_aggregates_that_are_written_as_changes() {
    let retracting = "{ fixed: 1m, accumulation: retracting }";
    wrong(retracting, "is for aggregates", "aggregate: { sql");
    let both = format!("{TIMED}window: {retracting}\n{AGGREGATE}");
    refused(&both, "has no key to find them by", "changelog: true");
    wrong(
        "{ fixed: 1m, changelog: true }",
        "window.changelog is for",
        "",
    );
    let changes = "{ fixed: 1m, accumulation: accumulating, changelog: true }";
    let changes = window_of(&format!("{TIMED}window: {changes}\n{AGGREGATE}"));
    assert!(changes.changelog);

    refused(AGGREGATE, "aggregate needs window", "window: { fixed: 1m }");
    let append = format!("{TIMED}window: {{ fixed: 1m, late: append }}\n{AGGREGATE}");
    refused(&append, "late: append is for rows", "late: side");
    let empty = format!("{TIMED}window: {{ fixed: 1m }}\naggregate: {{ sql: \"  \" }}");
    refused(&empty, "aggregate.sql is empty", "");
}

#[test]
fn triggers_say_which_part_is_wrong() {
    let trigger = |text: &str, says: &str, helps: &str| {
        wrong(&format!("{{ fixed: 1m, trigger: {text} }}"), says, helps);
    };
    trigger("{}", "window.trigger is empty", "give one of every");
    trigger(
        "{ every: 1s, count: 2 }",
        "window.trigger has several: every; count",
        "any: [ … ]",
    );
    trigger(
        "{ early: { all: [ { count: 1 }, { every: 1s, bytes: 9 } ] } }",
        "window.trigger.early.all[1] has several: every; bytes",
        "",
    );
    trigger(
        "{ count: 2, early: { count: 1 } }",
        "early, on_time, late",
        "",
    );
    trigger(
        "{ count: 2, aligned: true }",
        "aligned is given without every",
        "",
    );
    trigger(
        "{ count: 2, until: at_watermark }",
        "until is given without repeat",
        "",
    );
    trigger("{ count: 0 }", "cannot wait for nothing", "");
    trigger("{ any: [] }", "at least one part", "");
    trigger("{ early: at_watermark }", "waits for the watermark", "");
    trigger(
        "{ evry: 1s }",
        "unknown key: path=window.trigger.evry",
        "`every`",
    );
    trigger(
        "{ early: { cuont: 1 } }",
        "path=window.trigger.early.cuont",
        "`count`",
    );
    trigger("at_watermrk", "path=window.trigger", "`at_watermark`");
}

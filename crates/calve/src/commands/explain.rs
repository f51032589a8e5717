//! `calve explain FILE`: what a pipeline's windows, triggers and modes mean, in words, and a small
//! timeline of what would fire when. Reads the file and nothing else.

mod scene;
mod timeline;

use std::path::PathBuf;

use calve_engine::{Result, windows::LateRows};
use calve_model::{
    Micros,
    windows::{Accumulation, Closing, Strategy, Trigger, Windowing, in_words},
};

use crate::{
    config::{self, PipelineFile, SinkConfig},
    out, windows,
};

/// Explains a pipeline's windows.
#[derive(clap::Args)]
pub(crate) struct ExplainArgs {
    /// The pipeline file
    file: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// `Config` for what is wrong with the file.
pub(crate) fn run(args: &ExplainArgs) -> Result<()> {
    let file = config::load(&args.file)?;
    out::line(explain(&file)?);
    Ok(())
}

/// Lines with a title each.
#[derive(Default)]
struct Text(String);

impl Text {
    /// The title is written once for lines that follow each other.
    fn line(&mut self, title: &str, text: impl AsRef<str>) {
        let text = text.as_ref();
        self.0.push_str(format!("{title:<11} {text}").trim_end());
        self.0.push('\n');
    }
}

fn explain(file: &PipelineFile) -> Result<String> {
    let mut text = Text::default();
    text.line("pipeline", &file.name);
    text.line("table", file.sink.table());
    let Some(window) = &file.window else {
        without_windows(file, &mut text);
        return Ok(text.0.trim_end().to_owned());
    };
    let strategy = window.strategy()?;
    let max_delay = max_delay(file);
    what(file, &strategy, &mut text);
    place(file, &strategy, &mut text);
    when(file, &strategy, &mut text);
    how(file, &strategy, &mut text);
    let late_table = windows::late_sink(file);
    late(file, &strategy, late_table.as_ref(), &mut text);
    visible(file, &mut text);
    text.line("", "");
    text.line(
        "timeline",
        "made-up events of one source partition; processing time goes down the page",
    );
    let drawn = timeline::draw(&timeline::Timeline {
        strategy: &strategy,
        max_delay,
        commit_every: file.commit.longest().0.as_micros() as Micros,
        min_interval: file.commit.min_interval.0.as_micros() as Micros,
        late: window.late(),
        late_table: late_table.as_ref().map(SinkConfig::table),
        aggregate: file.aggregate.is_some(),
    });
    Ok(format!("{}{drawn}", text.0))
}

fn max_delay(file: &PipelineFile) -> Micros {
    let time = file.event_time.as_ref();
    time.map_or(0, |time| time.max_delay.0.as_micros() as Micros)
}

fn without_windows(file: &PipelineFile, text: &mut Text) {
    text.line(
        "what",
        "rows as they are, as soon as they come: there are no windows",
    );
    text.line(
        "when",
        format!(
            "rows become visible with each commit: an epoch ends {}, and when the source ends or the \
             run is stopped",
            file.commit.words()
        ),
    );
    text.line("durable", DURABLE);
    text.line(
        "",
        "an event is read again until its epoch is durable, and never after that",
    );
    if file.event_time.is_some() {
        text.line(
            "watermark",
            "says in each snapshot's summary how complete event time is; it holds nothing back",
        );
    }
    text.line(
        "windows",
        "`window: { fixed: 1h }` would make the rows of an hour visible together, when it is complete",
    );
}

const DURABLE: &str = "at the end of each epoch: its checkpoint record is the point of no return";

fn what(file: &PipelineFile, strategy: &Strategy, text: &mut Text) {
    match &file.aggregate {
        None => text.line(
            "what",
            "rows as they are: each is in one pane of its window",
        ),
        Some(aggregate) => {
            text.line(
                "what",
                "results of aggregate.sql, one row for each group in a window:",
            );
            for line in aggregate.sql.lines().filter(|line| !line.trim().is_empty()) {
                text.line("", format!("  {}", line.trim_end()));
            }
            text.line("", "an open window keeps partial states, not rows");
        }
    }
    if let Windowing::Sliding { size, period, .. } = strategy.windowing {
        let windows = size.div_euclid(period.max(1)).max(1);
        let each = match &file.aggregate {
            None => "a row comes into the table once for each of its windows",
            Some(_) => "an event counts in each of its windows",
        };
        text.line("", format!("{each}: about {windows}"));
    }
}

fn place(file: &PipelineFile, strategy: &Strategy, text: &mut Text) {
    text.line("where", strategy.windowing.describe());
    let Some(window) = &file.window else { return };
    if !window.key.is_empty() {
        let key = window.key.join(", ");
        text.line("", format!("each value of {key} has windows of its own"));
    }
    let Some(time) = &file.event_time else {
        text.line(
            "",
            "without event_time there is no watermark: nothing is late, and nothing is complete",
        );
        return;
    };
    if strategy.windowing != Windowing::Global {
        let column = window.column.as_deref().unwrap_or(&time.column);
        text.line(
            "",
            format!("an event's place is its event time, column {column}"),
        );
    }
    text.line(
        "watermark",
        format!(
            "the highest event time seen less {}, in the source partition where that is least",
            time.max_delay
        ),
    );
    text.line(
        "",
        format!(
            "a source partition that is empty for {} is left out",
            time.idle_timeout
        ),
    );
}

fn when(file: &PipelineFile, strategy: &Strategy, text: &mut Text) {
    match &strategy.trigger {
        Trigger::Phases { early, late } => {
            match early {
                Some(early) => {
                    text.line(
                        "when",
                        format!("early: again and again, {}", early.describe()),
                    );
                }
                None => text.line("when", "early: nothing"),
            }
            let empty = if strategy.empty_on_time {
                ", also when nothing is new"
            } else {
                ""
            };
            text.line(
                "",
                format!("on time: when the watermark passes the window's end{empty}"),
            );
            match late {
                _ if strategy.allowed_lateness == 0 => {}
                Some(late) => {
                    text.line("", format!("late: again and again, {}", late.describe()));
                }
                None => text.line("", "late: when the window closes"),
            }
        }
        Trigger::Repeat(part) if **part == Trigger::AtWatermark => {
            let global = strategy.windowing == Windowing::Global;
            let end = if global {
                "when all input has ended"
            } else {
                "when the watermark passes the window's end"
            };
            text.line("when", end);
            if strategy.allowed_lateness > 0 {
                text.line(
                    "",
                    "after that, with each batch that has late events of the window",
                );
            }
        }
        trigger => text.line("when", trigger.describe()),
    }
    if strategy.windowing == Windowing::Global {
        text.line(
            "",
            "the global window ends with the source (or `calve run --drain`), and fires what is left then",
        );
    } else {
        text.line(
            "",
            "when the source ends, or with `calve run --drain`, every open window fires and closes",
        );
    }
    if file.window.as_ref().is_some_and(|w| w.pane_columns) {
        text.line(
            "",
            "rows say which pane they belong to: _pane_index, _pane_timing, _pane_last",
        );
    }
}

fn how(file: &PipelineFile, strategy: &Strategy, text: &mut Text) {
    if file.aggregate.is_none() {
        text.line(
            "how",
            "each pane brings the rows that are new since the last one",
        );
    } else {
        text.line("how", strategy.accumulation.describe());
        text.line(
            "",
            match strategy.accumulation {
                Accumulation::Discarding => "readers add the panes of a window up",
                Accumulation::Accumulating => {
                    "rows are added with _op `+`; of a window and group the row of the last pane counts"
                }
                Accumulation::Retracting => {
                    "rows are added with _op `+` and taken back with `-`: what is left is the result"
                }
            },
        );
    }
    if strategy.closing == Closing::FireAlways {
        text.line(
            "",
            "a window fires a last time when it closes, also when nothing is new",
        );
    }
}

fn late(file: &PipelineFile, strategy: &Strategy, table: Option<&SinkConfig>, text: &mut Text) {
    let Some(window) = &file.window else { return };
    if file.event_time.is_none() || strategy.windowing == Windowing::Global {
        text.line("late", "nothing is ever late");
        return;
    }
    if strategy.allowed_lateness > 0 {
        text.line(
            "late",
            format!(
                "a window stays open for late events until the watermark is {} past its end; then it closes",
                in_words(strategy.allowed_lateness)
            ),
        );
    } else {
        text.line("late", "a window closes when the watermark passes its end");
    }
    let place = match (window.late(), table) {
        (LateRows::Side, Some(table)) => {
            let table = table.table();
            format!("go to {table}, as rows of the transform, with the next commit")
        }
        (LateRows::Side, None) => "go to the table of late rows".to_owned(),
        (LateRows::Drop, _) => "are left out".to_owned(),
        (LateRows::Append, _) => "go to the table with the next commit, in no pane".to_owned(),
    };
    text.line("", format!("events of closed windows {place}"));
    text.line(
        "",
        "they are counted: in the run's summary, and as calve_events_late_total",
    );
    if let Windowing::Session { .. } = strategy.windowing {
        text.line(
            "",
            "an event that reaches into a session that is still open is never late",
        );
    }
}

fn visible(file: &PipelineFile, text: &mut Text) {
    let commit = &file.commit;
    text.line(
        "visible",
        format!(
            "a firing ends the epoch, but not sooner than {} (commit.min_interval) after the last;",
            commit.min_interval
        ),
    );
    text.line(
        "",
        match &file.sink {
            SinkConfig::Iceberg(_) => {
                "the panes of an epoch become visible with one snapshot: a pane is seen whole or not at all"
            }
            SinkConfig::Parquet(_) => {
                "the files of an epoch become visible one by one; _calve/commits says which belong together"
            }
        },
    );
    text.line("durable", DURABLE);
    text.line(
        "",
        format!("an epoch ends {}, if nothing fires before", commit.words()),
    );
    text.line(
        "",
        "what open windows hold is durable with it, in the checkpoint store: a restart gives the same panes",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_windows_rows_come_with_each_commit() {
        let text =
            "name: a\nsource: generator\nsink: { parquet: { path: out } }\ncommit: { every: 7s }";
        let text = explain(&config::parse(text, &|_| None).expect("a file")).expect("words");
        assert!(
            text.contains("an epoch ends 7s (commit.every) after its first event, and when"),
            "{text}"
        );
        assert!(!text.contains("timeline"), "{text}");
    }

    #[test]
    fn each_answer_is_there() {
        let text = "
name: a
source: generator
event_time: { column: ts, unit: s, max_delay: 10s }
window: { session: 5m, key: [user_id], allowed_lateness: 10m, accumulation: retracting, changelog: true,
          trigger: { early: { every: 30s }, late: { count: 1 } } }
aggregate: { sql: \"SELECT user_id, count(*) AS n FROM events GROUP BY user_id, window_start, window_end\" }
sink: { iceberg: { catalog: { sqlite: c.db, warehouse: lake }, table: shop.sessions } }
";
        let text = explain(&config::parse(text, &|_| None).expect("a file")).expect("words");
        for part in [
            "sessions that end after a gap of 5m",
            "each value of user_id",
            "early: again and again, 30s after the first new element",
            "on time: when the watermark",
            "late: again and again, at each new element",
            "taken back with `-`",
            "until the watermark is 10m past its end",
            "shop.sessions_late",
            "commit.min_interval",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest < Some(122), "{text}");
    }
}

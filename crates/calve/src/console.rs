//! What a person sees while a pipeline runs: one live line on a terminal, the monitors' tables, and
//! the summary at the end.
//!
//! It only looks at the metrics and never holds up the engine. Where standard error is not a terminal
//! there is no live line: the log says what happens.

use std::{
    collections::VecDeque,
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use calve_engine::{
    clock,
    metrics::{Metrics, Status},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{human, out};

/// How often the live line is written anew.
const LINE_INTERVAL: Duration = Duration::from_millis(250);

/// Rates are taken over this long.
const RATE_SPAN: Duration = Duration::from_secs(2);

/// The live line is on the screen; who logs clears it first.
static LIVE: AtomicBool = AtomicBool::new(false);

/// Tables to show: name, and text of several lines. Called on a thread that may block.
pub(crate) type Tables = Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>;

/// The live line and the monitors' tables.
pub(crate) struct Console {
    /// What is shown.
    pub(crate) metrics: Metrics,
    /// The monitors' tables.
    pub(crate) figures: Option<Tables>,
    /// How often the tables are shown on a terminal.
    pub(crate) every: Duration,
}

impl Console {
    /// Shows until `stop`, then shows the tables once more.
    pub(crate) async fn run(self, stop: CancellationToken) {
        if std::io::stderr().is_terminal() && !dumb_terminal() && !out::is_json() {
            self.live(&stop).await;
        } else {
            stop.cancelled().await;
        }
        self.tables().await;
    }

    async fn live(&self, stop: &CancellationToken) {
        let mut rate = Rate::default();
        let mut ticks = tokio::time::interval(LINE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut shown = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            if self.figures.is_some() && shown.elapsed() >= self.every {
                self.tables().await;
                shown = Instant::now();
            }
            let status = self.metrics.status();
            let (events, bytes) = rate.sample(Instant::now(), status.events, status.bytes);
            draw(&live_line(&status, clock::now_ms(), events, bytes));
        }
        clear();
    }

    async fn tables(&self) {
        let Some(figures) = self.figures.clone() else {
            return;
        };
        // Before the first event there is nothing to see.
        if self.metrics.status().events == 0 {
            return;
        }
        // Merging what the batchers saw is work, not waiting.
        match tokio::task::spawn_blocking(move || figures()).await {
            Ok(tables) => {
                for (name, table) in tables {
                    if out::is_json() {
                        tracing::info!(monitor = name, rows = table);
                    } else {
                        out::note(format!("{name}\n{}", table.trim_end()));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "monitors cannot be shown"),
        }
    }
}

/// Standard error with the live line out of the way; for the log, too.
pub(crate) fn log_writer() -> impl Write {
    LogWriter
}

struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let mut terminal = std::io::stderr().lock();
        clear_line(&mut terminal);
        terminal.write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}

/// A terminal that cannot move its cursor.
pub(crate) fn dumb_terminal() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Writes the line over the last one. Wrapping is off meanwhile: a line that is too long for the
/// terminal is cut there, and can still be written over. The cursor waits at its beginning, so that
/// what the terminal echoes (^C) does not wrap.
fn draw(line: &str) {
    let mut terminal = std::io::stderr().lock();
    LIVE.store(true, Ordering::Relaxed);
    let _ = write!(terminal, "\r\x1b[?7l{line}\x1b[K\x1b[?7h\r");
}

/// Takes the live line away, if it is there.
fn clear() {
    clear_line(&mut std::io::stderr().lock());
}

/// The flag changes only under the lock of the terminal, so that nobody writes behind a line that
/// has just come.
fn clear_line(terminal: &mut std::io::StderrLock<'_>) {
    if LIVE.swap(false, Ordering::Relaxed) {
        let _ = write!(terminal, "\r\x1b[K");
    }
}

/// Events and bytes a second, over the last [`RATE_SPAN`].
#[derive(Default)]
struct Rate(VecDeque<(Instant, u64, u64)>);

impl Rate {
    /// Takes totals, and gives events and bytes per second; 0 as long as there is one sample only.
    fn sample(&mut self, now: Instant, events: u64, bytes: u64) -> (f64, f64) {
        self.0.push_back((now, events, bytes));
        // The oldest sample is the one that is a whole span old, so that the span is covered.
        while self.0.len() > 2 && now.duration_since(self.0[1].0) >= RATE_SPAN {
            self.0.pop_front();
        }
        let (then, events_then, bytes_then) = self.0[0];
        let elapsed = now.duration_since(then);
        (
            per_second(events.saturating_sub(events_then), elapsed),
            per_second(bytes.saturating_sub(bytes_then), elapsed),
        )
    }
}

fn per_second(number: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() {
        0.0
    } else {
        number as f64 / elapsed.as_secs_f64()
    }
}

fn live_line(status: &Status, now_ms: i64, events: f64, bytes: f64) -> String {
    let mut parts = Vec::with_capacity(10);
    if status.state != "running" {
        parts.push(status.state.to_owned());
    }
    parts.push(format!("{} events/s", human::count(events)));
    parts.push(format!("{}/s", human::bytes(bytes as u64)));
    parts.push(format!("{} events", human::count(status.events as f64)));
    if status.rejected > 0 {
        parts.push(format!("{} rejected", human::count(status.rejected as f64)));
    }
    if status.late > 0 {
        parts.push(format!("{} late", human::count(status.late as f64)));
    }
    parts.push(format!("{} files", human::exact(status.files_committed)));
    parts.push(if status.last_commit_ms > 0 {
        let age = Duration::from_millis(now_ms.saturating_sub(status.last_commit_ms).max(0) as u64);
        format!("commit {} ago", human::duration(age))
    } else {
        "no commit yet".to_owned()
    });
    if let Some(lag) = watermark_lag(status, now_ms) {
        parts.push(format!("watermark lag {}", human::duration(lag)));
    }
    parts.push(format!("{} held", human::bytes(status.memory_bytes)));
    if let Some((stage, busy)) = status.waits_for() {
        parts.push(format!("waits for {stage} {:.0} %", busy * 100.0));
    }
    if status.behind {
        parts.push("commits behind".to_owned());
    }
    parts.join("  ")
}

/// Processing time less watermark; none without a watermark, and when event time is complete.
fn watermark_lag(status: &Status, now_ms: i64) -> Option<Duration> {
    let watermark = status
        .watermark
        .filter(|w| *w != calve_model::watermark::END_OF_TIME)?;
    let lag = now_ms.saturating_sub(watermark.div_euclid(1000));
    Some(Duration::from_millis(lag.max(0) as u64))
}

/// What a run did, as lines; `rejects` is where rejects went.
pub(crate) fn summary(status: &Status, elapsed: Duration, rejects: &str) -> String {
    let rejected = match status.rejected {
        0 => "0".to_owned(),
        some => format!("{}  (see {rejects})", human::exact(some)),
    };
    let late = (status.late > 0).then(|| ("late", human::exact(status.late)));
    let lines = [
        (
            "events read",
            format!(
                "{}  ({})",
                human::exact(status.events),
                human::bytes(status.bytes)
            ),
        ),
        ("written", human::exact(status.rows_committed)),
        ("rejected", rejected),
    ];
    let more = [
        (
            "files",
            format!(
                "{}  ({})",
                human::exact(status.files_committed),
                human::bytes(status.bytes_committed)
            ),
        ),
        ("snapshots", human::exact(status.snapshots)),
        ("elapsed", human::duration(elapsed)),
        (
            "rate",
            format!(
                "{} events/s  ({}/s)",
                human::count(per_second(status.events, elapsed)),
                human::bytes(per_second(status.bytes, elapsed) as u64)
            ),
        ),
    ];
    lines
        .into_iter()
        .chain(late)
        .chain(more)
        .map(|(name, value)| format!("{name:<12} {value}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let mut status = Metrics::new("orders", "main").status();
        status.state = "running";
        status
    }

    #[test]
    fn a_rate_covers_the_last_span_only() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let close =
            |(a, b): (f64, f64), (c, d): (f64, f64)| (a - c).abs() < 1e-6 && (b - d).abs() < 1e-6;
        let mut rate = Rate::default();
        assert!(
            close(rate.sample(at(0), 500, 5000), (0.0, 0.0)),
            "one sample is no rate"
        );
        assert!(close(
            rate.sample(at(1000), 1500, 15_000),
            (1000.0, 10_000.0)
        ));
        for ms in (1250..=5000).step_by(250) {
            rate.sample(at(ms), 1500, 15_000);
        }
        assert!(
            close(rate.sample(at(5250), 1500, 15_000), (0.0, 0.0)),
            "a source that stopped comes down to zero"
        );
        assert!(rate.0.len() <= 10, "old samples go: {}", rate.0.len());
        // After a long gap the last sample before it still counts.
        assert!(close(rate.sample(at(15_250), 2500, 15_000), (100.0, 0.0)));
    }

    #[test]
    fn the_live_line_says_what_is_and_leaves_out_what_is_not() {
        let mut status = status();
        assert_eq!(
            live_line(&status, 60_000, 0.0, 0.0),
            "0 events/s  0 B/s  0 events  0 files  no commit yet  0 B held"
        );
        status.events = 12_400_000;
        status.rejected = 3;
        status.files_committed = 1024;
        status.last_commit_ms = 57_900;
        status.watermark = Some(56_000_000);
        status.memory_bytes = 120_000_000;
        status.behind = true;
        status.stages[4].busy = 0.828;
        status.bottleneck = Some("commit");
        status.state = "stopping";
        assert_eq!(
            live_line(&status, 60_000, 1_250_000.0, 98_300_000.0),
            "stopping  1.25 M events/s  98.3 MB/s  12.4 M events  3 rejected  1,024 files  \
             commit 2.1 s ago  watermark lag 4.0 s  120 MB held  waits for commit 83 %  commits behind"
        );
    }

    #[test]
    fn a_watermark_at_either_end_of_time_does_no_harm() {
        let mut status = status();
        status.watermark = Some(calve_model::watermark::END_OF_TIME);
        assert_eq!(watermark_lag(&status, 60_000), None);
        status.watermark = Some(i64::MIN + 1);
        assert!(watermark_lag(&status, i64::MAX).is_some());
        status.watermark = Some(70_000_000);
        assert_eq!(
            watermark_lag(&status, 60_000),
            Some(Duration::ZERO),
            "event time may be ahead"
        );
        status.last_commit_ms = 70_000;
        assert!(live_line(&status, 60_000, 0.0, 0.0).contains("commit 0 ms ago"));
    }

    #[test]
    fn the_summary_has_exact_figures() {
        let mut status = status();
        status.events = 2_000_000;
        status.bytes = 198_200_000;
        status.rows_committed = 1_999_990;
        status.rejected = 10;
        status.files_committed = 24;
        status.bytes_committed = 12_300_000;
        status.snapshots = 2;
        let text = summary(&status, Duration::from_secs(2), "lake/rejects");
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "events read  2,000,000  (198 MB)",
                "written      1,999,990",
                "rejected     10  (see lake/rejects)",
                "files        24  (12.3 MB)",
                "snapshots    2",
                "elapsed      2.0 s",
                "rate         1.00 M events/s  (99.1 MB/s)",
            ]
        );
        status.rejected = 0;
        let text = summary(&status, Duration::ZERO, "lake/rejects");
        assert!(
            !text.contains("lake/rejects"),
            "nothing to see there: {text}"
        );
        assert!(text.contains("rate         0 events/s"), "{text}");
    }
}

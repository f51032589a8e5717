//! What a pipeline's windows would do with a few made-up events: the model itself is asked, and its
//! answers are drawn, processing time from top to bottom. Epochs end as in the shard's loop.

use std::fmt::Write as _;

use calve_engine::windows::LateRows;
use calve_model::{
    Micros,
    windows::{
        Accumulation, Effect, OpenWindow, PaneInfo, Panes, Placement, Seen, Strategy, Timing,
        Window, Windowing,
    },
};

use super::scene::{self, Arrival};

/// Lines of one kind at one moment.
const AT_ONCE: usize = 3;

/// What the timeline depends on.
pub(super) struct Timeline<'a> {
    pub(super) strategy: &'a Strategy,
    pub(super) max_delay: Micros,
    pub(super) commit_every: Micros,
    pub(super) min_interval: Micros,
    pub(super) late: LateRows,
    /// The table of late rows.
    pub(super) late_table: Option<&'a str>,
    /// Panes hold results, not rows.
    pub(super) aggregate: bool,
}

/// What a line is about.
const MARKS: [(char, &str); 8] = [
    ('+', "events come"),
    ('~', "a session grows, or sessions merge"),
    ('|', "the watermark"),
    ('>', "a pane fires"),
    ('<', "a pane is taken back"),
    ('x', "a window closes"),
    ('!', "late"),
    (
        '#',
        "a checkpoint, and a commit where there is something to see",
    ),
];

struct Line {
    at: Micros,
    mark: char,
    text: String,
}

/// Draws it.
pub(super) fn draw(of: &Timeline) -> String {
    let arrivals = scene::arrivals(of.strategy, of.max_delay);
    let mut times = arrivals.iter().flat_map(|a| [a.at, a.event_time]);
    let first = times.clone().min().unwrap_or_default();
    let fine = times.any(|at| at % 1_000_000 != 0);
    let last = arrivals.last().map_or(first, |a| a.at);
    let run = Run {
        of,
        panes: Panes::new(of.strategy.clone()),
        effects: Vec::new(),
        lines: Vec::new(),
        clock: Clock {
            days: last.div_euclid(DAY) != first.div_euclid(DAY) || of.windows_of_days(),
            fine,
        },
        now: Micros::MIN,
        highest: None,
        opened: None,
        last_cut: None,
        fired: false,
        visible: 0,
        late: 0,
    };
    run.play(&arrivals)
}

const DAY: Micros = 86_400_000_000;

impl Timeline<'_> {
    fn windows_of_days(&self) -> bool {
        match self.strategy.windowing {
            Windowing::Fixed { size, .. } | Windowing::Sliding { size, .. } => size >= DAY,
            Windowing::Session { gap } => gap >= DAY,
            Windowing::Global => false,
        }
    }
}

/// How times are written.
#[derive(Clone, Copy)]
struct Clock {
    days: bool,
    fine: bool,
}

impl Clock {
    fn time(self, at: Micros) -> String {
        let format = match (self.days, self.fine) {
            (false, false) => "%H:%M:%S",
            (false, true) => "%H:%M:%S%.3f",
            (true, false) => "%m-%d %H:%M:%S",
            (true, true) => "%m-%d %H:%M:%S%.3f",
        };
        chrono::DateTime::from_timestamp_micros(at)
            .map_or_else(|| format!("{at} us"), |at| at.format(format).to_string())
    }

    fn window(self, window: Window) -> String {
        if window == Window::GLOBAL {
            return "the global window".to_owned();
        }
        format!("[{}, {})", self.time(window.start), self.time(window.end))
    }
}

/// The shard's loop, in small.
struct Run<'a> {
    of: &'a Timeline<'a>,
    panes: Panes<()>,
    effects: Vec<Effect<()>>,
    lines: Vec<Line>,
    clock: Clock,
    now: Micros,
    /// Highest event time seen.
    highest: Option<Micros>,
    /// When the open epoch began.
    opened: Option<Micros>,
    last_cut: Option<Micros>,
    fired: bool,
    /// Panes of the open epoch.
    visible: usize,
    /// Late events of the open epoch.
    late: u64,
}

impl Run<'_> {
    fn play(mut self, arrivals: &[Arrival]) -> String {
        for arrival in arrivals {
            self.until(arrival.at);
            self.take(arrival);
        }
        // What was seen last is committed; what else would fire is left out.
        let end = self.deadline().unwrap_or(self.now);
        self.until(end);
        if self.of.strategy.windowing == Windowing::Global {
            let then = self.now.saturating_add(1_000_000);
            self.until(then);
            self.now = then;
            self.say('|', "the source ends, or `calve run --drain`".to_owned());
            let mut effects = std::mem::take(&mut self.effects);
            self.panes.drain(then, &mut effects);
            self.effects = effects;
            self.carry_out();
            if let Some(end) = self.deadline() {
                self.until(end);
            }
        }
        self.drawn()
    }

    fn say(&mut self, mark: char, text: String) {
        let at = self.now;
        self.lines.push(Line { at, mark, text });
    }

    /// When the open epoch ends, if nothing comes.
    fn deadline(&self) -> Option<Micros> {
        let wait = if self.fired { 0 } else { self.of.commit_every };
        let due = self.opened?.saturating_add(wait);
        let last = self.last_cut;
        let soonest = last.map_or(due, |at| at.saturating_add(self.of.min_interval));
        Some(due.max(soonest).max(self.now))
    }

    /// Lets processing time pass.
    fn until(&mut self, to: Micros) {
        loop {
            let cut = self.deadline().filter(|at| *at <= to);
            let tick = self.panes.next_tick().filter(|at| *at <= to);
            match (cut, tick) {
                (Some(cut), Some(tick)) if tick < cut => self.tick(tick),
                (Some(cut), _) => self.cut(cut),
                (None, Some(tick)) => self.tick(tick),
                (None, None) => return,
            }
        }
    }

    fn tick(&mut self, at: Micros) {
        self.now = self.now.max(at);
        self.panes.tick(at, &mut self.effects);
        self.carry_out();
    }

    fn take(&mut self, arrival: &Arrival) {
        self.now = arrival.at;
        self.opened.get_or_insert(arrival.at);
        let mut windows = Vec::new();
        self.of
            .strategy
            .windowing
            .assign(arrival.event_time, &mut windows);
        let (mut into, mut late) = (Vec::new(), Vec::new());
        for window in windows {
            let seen = Seen {
                key: (),
                window,
                count: arrival.count,
                bytes: arrival.bytes,
            };
            match self.panes.seen(arrival.at, seen, &mut self.effects) {
                Placement::Into(of) => into.push(of),
                Placement::Late => late.push(window),
            }
        }
        let global = self.of.strategy.windowing == Windowing::Global;
        let mut what = plural(arrival.count, "event");
        if !global {
            let _ = write!(what, " of {}", self.clock.time(arrival.event_time));
        }
        let have = if late.len() == 1 { "has" } else { "have" };
        let closed = format!("{} {have} closed", self.all(&late));
        // An event in several windows is late when the last of them has closed.
        if into.is_empty() {
            let place = match (self.of.late, self.of.late_table) {
                (LateRows::Side, Some(table)) => format!("to {table}"),
                (LateRows::Side, None) => "to the table of late rows".to_owned(),
                (LateRows::Drop, _) => "counted and dropped".to_owned(),
                (LateRows::Append, _) => "to the table at once, in no pane".to_owned(),
            };
            self.late += arrival.count;
            self.say('!', format!("{what}: {closed}; {place}"));
        } else {
            let into = self.all(&into);
            let but = if late.is_empty() {
                String::new()
            } else {
                format!("; {closed}")
            };
            self.say('+', format!("{what}, into {into}{but}"));
        }
        self.carry_out();
        self.panes.settle(arrival.at, &mut self.effects);
        self.carry_out();
        let highest = self.highest.unwrap_or(Micros::MIN).max(arrival.event_time);
        self.highest = Some(highest);
        let watermark = highest.saturating_sub(self.of.max_delay);
        if !global
            && self
                .panes
                .watermark_now()
                .is_none_or(|before| before < watermark)
        {
            let text = self.clock.time(watermark);
            self.say('|', text);
            self.panes
                .watermark(arrival.at, watermark, &mut self.effects);
            self.carry_out();
        }
    }

    /// Names windows; of many the first and the last.
    fn all(&self, windows: &[Window]) -> String {
        match windows {
            [first, _, .., last] => format!(
                "{} windows, {} to {}",
                windows.len(),
                self.clock.window(*first),
                self.clock.window(*last)
            ),
            few => {
                let few: Vec<String> = few.iter().map(|w| self.clock.window(*w)).collect();
                few.join(" and ")
            }
        }
    }

    fn carry_out(&mut self) {
        let effects = std::mem::take(&mut self.effects);
        let mut lines: Vec<(char, String)> = Vec::new();
        for effect in effects {
            lines.push(match effect {
                Effect::Merge { from, into, .. } => {
                    let grows = if from.len() == 1 {
                        "grows to"
                    } else {
                        "become"
                    };
                    let (from, into) = (self.all(&from), self.clock.window(into));
                    ('~', format!("{from} {grows} {into}"))
                }
                Effect::Retract { window, pane, .. } => {
                    let window = self.clock.window(window);
                    (
                        '<',
                        format!("pane {} of {window} is taken back", pane.index),
                    )
                }
                Effect::Fire { window, pane, .. } => {
                    self.fired = true;
                    self.visible += 1;
                    ('>', self.pane(window, pane))
                }
                Effect::Close { window, .. } => ('x', self.clock.window(window)),
            });
        }
        if self.fired {
            self.opened.get_or_insert(self.now);
        }
        // Of many windows at once the first few say enough.
        for (n, (mark, text)) in lines.iter().enumerate() {
            let same = |of: &[(char, String)]| of.iter().filter(|(m, _)| m == mark).count();
            let (before, all) = (same(&lines[..n]), same(&lines));
            if before < AT_ONCE || all <= AT_ONCE + 1 {
                self.say(*mark, text.clone());
            } else if before == AT_ONCE {
                self.say(*mark, format!("and so for {} more", all - AT_ONCE));
            }
        }
    }

    fn pane(&self, window: Window, pane: PaneInfo) -> String {
        let timing = match pane.timing {
            Timing::Early => "early",
            Timing::OnTime => "on time",
            Timing::Late => "late",
        };
        let new = if self.of.strategy.accumulation == Accumulation::Discarding {
            "new "
        } else {
            ""
        };
        let rows = plural(pane.count, &format!("{new}row"));
        let holds = if self.of.aggregate {
            format!("the result of {rows}")
        } else {
            rows
        };
        let last = if pane.last { "; the last" } else { "" };
        let window = self.clock.window(window);
        format!("pane {} of {window}, {timing}: {holds}{last}", pane.index)
    }

    fn cut(&mut self, at: Micros) {
        self.now = self.now.max(at);
        let keeps = self.of.strategy.accumulation != Accumulation::Discarding;
        let held = |open: &OpenWindow| if keeps { open.count } else { open.fresh };
        let held: u64 = self.panes.windows().map(|((), open)| held(&open)).sum();
        let mut parts = Vec::new();
        if self.visible > 0 {
            parts.push(format!("{} visible", plural(self.visible as u64, "pane")));
        }
        if self.late > 0 && self.of.late != LateRows::Drop {
            parts.push(format!("{} visible", plural(self.late, "late row")));
        }
        if parts.is_empty() {
            parts.push("nothing new to see".to_owned());
        }
        if held > 0 {
            let what = if self.of.aggregate { "states" } else { "rows" };
            parts.push(format!("{what} of open windows are durable"));
        }
        self.say('#', parts.join("; "));
        (self.opened, self.fired, self.visible, self.late) = (None, false, 0, 0);
        self.last_cut = Some(self.now);
    }

    fn drawn(self) -> String {
        let used = |mark: char| self.lines.iter().any(|line| line.mark == mark);
        let legend = MARKS.iter().filter(|(mark, _)| used(*mark));
        let legend: Vec<String> = legend
            .map(|(mark, text)| format!("  {mark}  {text}"))
            .collect();
        let mut text = legend.join("\n");
        text.push('\n');
        let mut before = None;
        let width = self.clock.time(0).len();
        for line in &self.lines {
            let clock = self.clock.time(line.at);
            let shown = if before == Some(line.at) { "" } else { &clock };
            before = Some(line.at);
            let _ = write!(text, "\n{shown:<width$}  {}  {}", line.mark, line.text);
        }
        text
    }
}

fn plural(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;

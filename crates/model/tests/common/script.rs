//! Transcripts: what goes in and what must come out, as lines of text.
//!
//! ```text
//! case NAME                                       a new case
//! wrong TEXT                                      it must fail, with TEXT in the message
//! windows global | fixed 10 [offset 3] | sliding 10 every 5 [offset 3] | sessions 5
//! trigger repeat(any(count(3), period(60)))       names as in `trigger` below
//! lateness 20 · discarding | accumulating | retracting · close always · empty on time
//! @0 a@3=5 b@7=1                                  one batch at processing time 0: key@event_time=value
//! @1 watermark 10 · @2 tick · @3 drain · @4 restart · play NAME
//!   early a [0,10) #0 n=2 sum=6 first             what comes out of the step above it
//!   on_time a [0,10) #1/0 n=1 sum=4 last          #index/on-time index
//!   retract a [0,10) #0 sum=6 · merge a [0,5) [3,9) into [0,9) · close a [0,10) · late a@3=5
//! ```
//! `script NAME` begins steps to be played in cases; what comes out then bears its time, `@3 close …`.
//! Times have no unit. `#` after a blank at the start of a line begins a comment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use calve_model::Micros;
use calve_model::windows::{Accumulation, Closing, Strategy, Trigger, Window, Windowing};

use super::{Caller, Element, Out, sum};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Batch(Vec<Element>),
    Watermark(Micros),
    Tick,
    Drain,
    Restart,
}

/// Steps with their times, and the lines that must come out of them.
#[derive(Clone, Debug)]
pub(crate) struct Passage {
    line: usize,
    steps: Vec<(Micros, Step)>,
    played: bool,
    expected: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) wrong: Option<String>,
    pub(crate) strategy: Strategy,
    passages: Vec<Passage>,
}

impl Case {
    /// # Errors
    /// Where it came out otherwise, with both.
    pub(crate) fn run(&self, restarts: bool) -> Result<(), String> {
        let mistake = |e| format!("case `{}`: {e}", self.name);
        self.strategy.check().map_err(|e| mistake(e.to_string()))?;
        let mut caller = Caller::new(self.strategy.clone());
        caller.restarts = restarts;
        for passage in &self.passages {
            let before = caller.out.len();
            for (now, step) in &passage.steps {
                match step {
                    Step::Batch(elements) => caller.batch(*now, elements),
                    Step::Watermark(to) => caller.watermark(*now, *to),
                    Step::Tick => caller.tick(*now),
                    Step::Drain => caller.drain(*now),
                    Step::Restart => caller.restart(),
                }
            }
            let came: Vec<String> = caller.out[before..]
                .iter()
                .map(|(at, out)| {
                    let line = show(out);
                    if passage.played {
                        format!("@{at} {line}")
                    } else {
                        line
                    }
                })
                .collect();
            if came != passage.expected {
                let list = |lines: &[String]| match lines {
                    [] => "\n  (nothing)".to_owned(),
                    lines => format!("\n  {}", lines.join("\n  ")),
                };
                return Err(mistake(format!(
                    "after line {}: expected:{}\nbut came:{}",
                    passage.line,
                    list(&passage.expected),
                    list(&came)
                )));
            }
        }
        Ok(())
    }
}

fn show(out: &Out) -> String {
    let window = |w: &Window| {
        if *w == Window::GLOBAL {
            "global".to_owned()
        } else {
            format!("[{},{})", w.start, w.end)
        }
    };
    match out {
        Out::Late(e) => format!("late {}@{}={}", e.key, e.at, e.value),
        Out::Merge(key, from, into) => {
            let from: Vec<_> = from.iter().map(window).collect();
            format!("merge {key} {} into {}", from.join(" "), window(into))
        }
        Out::Retract(key, w, pane, elements) => format!(
            "retract {key} {} #{} sum={}",
            window(w),
            pane.index,
            sum(elements)
        ),
        Out::Fire(key, w, pane, elements) => {
            let timing = pane.timing.as_str();
            let mut line = format!("{timing} {key} {} #{}", window(w), pane.index);
            if let Some(index) = pane.on_time_index {
                let _ = write!(line, "/{index}");
            }
            let _ = write!(line, " n={} sum={}", pane.count, sum(elements));
            line.push_str(if pane.first { " first" } else { "" });
            line.push_str(if pane.last { " last" } else { "" });
            line
        }
        Out::Close(key, w) => format!("close {key} {}", window(w)),
    }
}

/// # Panics
/// If the text is not a transcript: the line, and what is wrong with it.
pub(crate) fn parse(text: &str) -> Vec<Case> {
    let mut scripts: BTreeMap<String, Vec<(Micros, Step)>> = BTreeMap::new();
    let mut script: Option<String> = None;
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line_number = number + 1;
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with("# ") {
            continue;
        }
        let (word, rest) = bare.split_once(' ').unwrap_or((bare, ""));
        if word == "script" {
            script = Some(rest.to_owned());
            continue;
        }
        if word == "case" {
            script = None;
            cases.push(Case {
                name: rest.to_owned(),
                wrong: None,
                strategy: Strategy::default(),
                passages: Vec::new(),
            });
            continue;
        }
        if let Some(name) = &script {
            let step = step(bare).unwrap_or_else(|| panic!("line {line_number}: not a step"));
            scripts.entry(name.clone()).or_default().push(step);
            continue;
        }
        let case = cases.last_mut().expect("a case begins the file");
        if line.starts_with(' ') && !case.passages.is_empty() {
            let passage = case.passages.last_mut().expect("one");
            passage.expected.push(bare.to_owned());
        } else if word == "play" {
            case.passages.push(Passage {
                line: line_number,
                steps: scripts[rest].clone(),
                played: true,
                expected: Vec::new(),
            });
        } else if let Some(step) = step(bare) {
            case.passages.push(Passage {
                line: line_number,
                steps: vec![step],
                played: false,
                expected: Vec::new(),
            });
        } else {
            setting(case, word, rest)
                .unwrap_or_else(|| panic!("line {line_number}: not understood: {bare}"));
        }
    }
    cases
}

fn setting(case: &mut Case, word: &str, rest: &str) -> Option<()> {
    let strategy = &mut case.strategy;
    match (word, rest) {
        ("wrong", text) => case.wrong = Some(text.to_owned()),
        ("windows", text) => strategy.windowing = windowing(text)?,
        ("trigger", text) => strategy.trigger = trigger(text)?,
        ("lateness", text) => strategy.allowed_lateness = text.parse().ok()?,
        ("discarding", "") => strategy.accumulation = Accumulation::Discarding,
        ("accumulating", "") => strategy.accumulation = Accumulation::Accumulating,
        ("retracting", "") => strategy.accumulation = Accumulation::Retracting,
        ("close", "always") => strategy.closing = Closing::FireAlways,
        ("empty", "on time") => strategy.empty_on_time = true,
        _ => return None,
    }
    Some(())
}

fn windowing(text: &str) -> Option<Windowing> {
    let words: Vec<_> = text.split(' ').collect();
    let number = |at: usize| words.get(at)?.parse::<Micros>().ok();
    let offset = words.iter().position(|word| *word == "offset");
    let offset = offset.map_or(Some(0), |at| number(at + 1))?;
    Some(match words[0] {
        "global" => Windowing::Global,
        "fixed" => Windowing::Fixed {
            size: number(1)?,
            offset,
        },
        "sliding" => Windowing::Sliding {
            size: number(1)?,
            period: number(3)?,
            offset,
        },
        "sessions" => Windowing::Session { gap: number(1)? },
        _ => return None,
    })
}

fn step(bare: &str) -> Option<(Micros, Step)> {
    let (now, what) = bare.strip_prefix('@')?.split_once(' ')?;
    let now = now.parse().ok()?;
    let step = match what.split_once(' ').unwrap_or((what, "")) {
        ("watermark", to) => Step::Watermark(to.parse().ok()?),
        ("tick", "") => Step::Tick,
        ("drain", "") => Step::Drain,
        ("restart", "") => Step::Restart,
        _ => Step::Batch(what.split(' ').map(element).collect::<Option<_>>()?),
    };
    Some((now, step))
}

fn element(text: &str) -> Option<Element> {
    let (key, rest) = text.split_once('@')?;
    let (at, value) = rest.split_once('=')?;
    Some(Element {
        key: key.to_owned(),
        at: at.parse().ok()?,
        value: value.parse().ok()?,
    })
}

/// `watermark`, `period(60)`, `aligned(60)`, `count(3)`, `bytes(9)`, `all(…)`, `any(…)`,
/// `sequence(…)`, `repeat(…)`, `until(repeat, until)`, `phases(early, late)` with `-` for none.
pub(crate) fn trigger(text: &str) -> Option<Trigger> {
    let text = text.trim();
    if text == "watermark" {
        return Some(Trigger::AtWatermark);
    }
    let (name, inside) = text.strip_suffix(')')?.split_once('(')?;
    let mut parts = Vec::new();
    let (mut depth, mut from) = (0, 0);
    for (at, letter) in inside.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(inside[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(inside[from..].trim());
    let all = || match inside {
        "" => Some(Vec::new()),
        _ => parts.iter().map(|part| trigger(part)).collect(),
    };
    let phase = |at: usize| match *parts.get(at)? {
        "-" => Some(None),
        part => Some(Some(trigger(part)?)),
    };
    Some(match name {
        "period" | "aligned" => Trigger::Period {
            every: inside.parse().ok()?,
            aligned: name == "aligned",
        },
        "count" => Trigger::Count(inside.parse().ok()?),
        "bytes" => Trigger::Bytes(inside.parse().ok()?),
        "all" => Trigger::All(all()?),
        "any" => Trigger::Any(all()?),
        "sequence" => Trigger::Sequence(all()?),
        "repeat" => Trigger::Repeat(Box::new(trigger(inside)?)),
        "until" => Trigger::Until {
            repeat: Box::new(trigger(parts.first()?)?),
            until: Box::new(trigger(parts.get(1)?)?),
        },
        "phases" => Trigger::phases(phase(0)?, phase(1)?),
        _ => return None,
    })
}

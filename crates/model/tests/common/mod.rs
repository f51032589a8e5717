//! A caller of `Panes` as the engine is one, with elements for contents: it carries effects out,
//! and checks on the way that they can be carried out.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod memory;
pub(crate) mod script;

use std::collections::BTreeMap;

use calve_model::Micros;
use calve_model::windows::{
    Accumulation, Effect, PaneInfo, Panes, Placement, Seen, Strategy, Window,
};

pub(crate) type Key = String;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) key: Key,
    pub(crate) at: Micros,
    /// What is summed; its magnitude is also the element's size in bytes.
    pub(crate) value: i64,
}

/// What came out, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Out {
    Late(Element),
    Merge(Key, Vec<Window>, Window),
    Retract(Key, Window, PaneInfo, Vec<Element>),
    Fire(Key, Window, PaneInfo, Vec<Element>),
    Close(Key, Window),
}

#[derive(Clone, Default, PartialEq)]
struct Contents {
    fired: Vec<Element>,
    fresh: Vec<Element>,
}

#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) panes: Panes<Key>,
    pub(crate) now: Micros,
    contents: BTreeMap<(Key, Window), Contents>,
    standing: BTreeMap<(Key, Window), (PaneInfo, Vec<Element>)>,
    /// Save, write, read and restore before each step.
    pub(crate) restarts: bool,
    /// Sessions: merge the windows of a batch before they are seen, as the engine does.
    pub(crate) spans: bool,
    pub(crate) out: Vec<(Micros, Out)>,
}

impl Caller {
    pub(crate) fn new(strategy: Strategy) -> Self {
        Self {
            panes: Panes::new(strategy),
            now: 0,
            contents: BTreeMap::new(),
            standing: BTreeMap::new(),
            restarts: false,
            spans: false,
            out: Vec::new(),
        }
    }

    fn strategy(&self) -> &Strategy {
        self.panes.strategy()
    }

    pub(crate) fn restart(&mut self) {
        let text = serde_json::to_string(&self.panes.save()).expect("written");
        let saved = serde_json::from_str(&text).expect("read");
        let restored = Panes::restore(self.strategy().clone(), saved);
        assert_eq!(restored, self.panes, "restored from {text}");
        self.panes = restored;
    }

    fn step(&mut self, now: Micros) {
        self.now = now;
        if self.restarts {
            self.restart();
        }
    }

    /// One batch, and then `settle`.
    pub(crate) fn batch(&mut self, now: Micros, elements: &[Element]) {
        self.step(now);
        let mut of: BTreeMap<(Key, Window), Vec<Element>> = BTreeMap::new();
        let mut windows = Vec::new();
        for element in elements {
            windows.clear();
            self.strategy()
                .windowing
                .clone()
                .assign(element.at, &mut windows);
            for window in &windows {
                of.entry((element.key.clone(), *window))
                    .or_default()
                    .push(element.clone());
            }
        }
        if self.spans && self.strategy().windowing.merges() {
            of = spans(of);
        }
        for ((key, window), elements) in of {
            self.seen(now, key, window, elements);
        }
        if self.restarts {
            self.restart();
        }
        let mut effects = Vec::new();
        self.panes.settle(now, &mut effects);
        self.carry_out(effects);
    }

    pub(crate) fn seen(&mut self, now: Micros, key: Key, window: Window, elements: Vec<Element>) {
        let seen = Seen {
            key: key.clone(),
            window,
            count: elements.len() as u64,
            bytes: elements.iter().map(|e| e.value.unsigned_abs()).sum(),
        };
        let mut effects = Vec::new();
        let placement = self.panes.seen(now, seen, &mut effects);
        assert!(
            effects.iter().all(|e| matches!(e, Effect::Merge { .. })),
            "seen only merges"
        );
        self.carry_out(effects);
        match placement {
            Placement::Into(into) => {
                assert_eq!(into.span(&window), into, "placed where it belongs");
                self.contents
                    .entry((key, into))
                    .or_default()
                    .fresh
                    .extend(elements);
            }
            Placement::Late => {
                for element in elements {
                    self.out.push((now, Out::Late(element)));
                }
            }
        }
    }

    pub(crate) fn watermark(&mut self, now: Micros, to: Micros) {
        self.step(now);
        let mut effects = Vec::new();
        self.panes.watermark(now, to, &mut effects);
        self.carry_out(effects);
    }

    pub(crate) fn tick(&mut self, now: Micros) {
        self.step(now);
        let due = self.panes.next_tick().is_some_and(|at| at <= now);
        let mut effects = Vec::new();
        self.panes.tick(now, &mut effects);
        assert!(due || effects.is_empty(), "next_tick was after {now}");
        assert!(
            self.panes.next_tick().is_none_or(|at| at > now),
            "ticked at {now}, and would again at {:?}",
            self.panes.next_tick()
        );
        self.carry_out(effects);
    }

    pub(crate) fn drain(&mut self, now: Micros) {
        self.step(now);
        let mut effects = Vec::new();
        self.panes.drain(now, &mut effects);
        self.carry_out(effects);
        assert_eq!(self.panes.open(), 0);
        assert_eq!(self.panes.next_tick(), None);
        assert!(self.contents.is_empty(), "contents were left behind");
    }

    fn carry_out(&mut self, effects: Vec<Effect<Key>>) {
        let accumulation = self.strategy().accumulation;
        for effect in effects {
            let out = match effect {
                Effect::Merge { key, from, into } => {
                    let mut merged = Contents::default();
                    for window in &from {
                        let old = self.contents.remove(&(key.clone(), *window));
                        let old = old.expect("an open window is merged");
                        merged.fired.extend(old.fired);
                        merged.fresh.extend(old.fresh);
                    }
                    self.contents.insert((key.clone(), into), merged);
                    Out::Merge(key, from, into)
                }
                Effect::Retract { key, window, pane } => {
                    let place = (key.clone(), window);
                    let (stood, elements) = self.standing.remove(&place).expect("a pane stands");
                    assert_eq!(stood, pane, "taken back as it was emitted");
                    Out::Retract(key, window, pane, elements)
                }
                Effect::Fire { key, window, pane } => {
                    let place = (key.clone(), window);
                    let contents = self.contents.get_mut(&place).expect("an open window fires");
                    let fresh = std::mem::take(&mut contents.fresh);
                    contents.fired.extend(fresh.iter().cloned());
                    let mut elements = match accumulation {
                        Accumulation::Discarding => fresh,
                        _ => contents.fired.clone(),
                    };
                    elements.sort();
                    assert_eq!(elements.len() as u64, pane.count, "{window} {pane:?}");
                    if accumulation == Accumulation::Retracting {
                        let before = self.standing.insert(place, (pane, elements.clone()));
                        assert_eq!(before, None, "a pane was not taken back");
                    }
                    Out::Fire(key, window, pane, elements)
                }
                Effect::Close { key, window } => {
                    let left = self.contents.remove(&(key.clone(), window));
                    let left = left.expect("an open window closes");
                    assert!(left.fresh.is_empty(), "{key} {window} closed with elements");
                    Out::Close(key, window)
                }
            };
            self.out.push((self.now, out));
        }
    }
}

/// The windows of each key that overlap, as one.
fn spans(of: BTreeMap<(Key, Window), Vec<Element>>) -> BTreeMap<(Key, Window), Vec<Element>> {
    let mut by_start: Vec<_> = of.into_iter().collect();
    by_start.sort_by_key(|((key, window), _)| (key.clone(), window.start));
    let mut merged: Vec<((Key, Window), Vec<Element>)> = Vec::new();
    for ((key, window), elements) in by_start {
        match merged.last_mut() {
            Some(((of, span), inside)) if *of == key && span.overlaps(&window) => {
                *span = span.span(&window);
                inside.extend(elements);
            }
            _ => merged.push(((key, window), elements)),
        }
    }
    merged.into_iter().collect()
}

pub(crate) fn sum(elements: &[Element]) -> i64 {
    elements.iter().map(|element| element.value).sum()
}

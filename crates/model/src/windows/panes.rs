//! The panes of a shard: which windows are open, and what to do with them when something happens.
//!
//! Open windows are in two maps ordered by end, start and key: those whose end is above the
//! watermark wait in `waiting`, those that it has passed are kept in `passed` until they close. So
//! the watermark touches only the windows that end or close. `timers` holds, for each window whose
//! trigger waits for processing time, when; it follows from the windows, as `sessions` does.
//!
//! Costs: `seen` and `settle` O(log windows) for each window touched (a session also for each that
//! it absorbs); `watermark` for each window that ends or closes; `tick` for each that is due.

use std::collections::{BTreeMap, BTreeSet};

use super::machine::{Arrival, Machine, Progress};
use super::pane::{Effect, OpenWindow, PaneInfo, Placement, Seen, Timing};
use super::strategy::{Accumulation, Closing, Strategy};
use super::window::Window;
use crate::watermark::{END_OF_TIME, Micros};

/// Where an open window is in its life, as against the watermark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its end is above the watermark: panes are early.
    #[default]
    Before,
    /// The watermark has passed, and elements from before that have not fired: the next pane is
    /// on time.
    Due,
    /// Panes are late.
    After,
}

/// A pane that was emitted and not taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) window: Window,
    pub(super) pane: PaneInfo,
}

/// What is remembered of an open window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) total: u64,
    /// Of these, since the last firing.
    pub(super) fresh: u64,
    /// The next pane's.
    pub(super) index: u64,
    pub(super) on_time_index: u64,
    pub(super) phase: Phase,
    pub(super) progress: Progress,
    /// When retracting: what the next pane takes back.
    pub(super) standing: Vec<Standing>,
}

impl State {
    /// Of a window without elements. `passed`: the watermark has reached its end.
    pub(super) fn new(passed: bool, progress: Progress) -> Self {
        Self {
            total: 0,
            fresh: 0,
            index: 0,
            on_time_index: 0,
            phase: if passed { Phase::After } else { Phase::Before },
            progress,
            standing: Vec::new(),
        }
    }
}

/// An open window: ordered by end, start, key.
pub(super) type Place<K> = (Window, K);

/// The open windows of a shard. `K` is what windows are kept per: cheap to clone, short when
/// serialized (`Arc<str>`, say; bytes would be a list of numbers in JSON), `()` if nothing.
///
/// A batch goes in as: [`Panes::seen`] for each key and window in it, contents stored where it
/// says, then [`Panes::settle`]; then the watermark, then the clock ([`Panes::tick`]). Effects are
/// appended to `effects`, in the order in which they must be carried out.
///
/// `now` is processing time in microseconds. `seen` starts periods by it, and only `tick` ends them:
/// a batch at the very instant in which a period ends is still in the pane, whatever the order
/// within the batch. The others take `now` so that all facts look alike. It may jump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panes<K> {
    pub(super) strategy: Strategy,
    pub(super) machine: Machine,
    pub(super) watermark: Option<Micros>,
    /// Windows that end here or before have closed. The watermark less lateness, but for a lateness
    /// that became longer in a restart: it opens no window again.
    pub(super) edge: Option<Micros>,
    pub(super) waiting: BTreeMap<Place<K>, State>,
    pub(super) passed: BTreeMap<Place<K>, State>,
    /// Where windows merge: key and start of each open window, to its end.
    pub(super) sessions: BTreeMap<(K, Micros), Micros>,
    pub(super) timers: BTreeSet<(Micros, Window, K)>,
    /// Where elements came since the last `settle`.
    pub(super) touched: Vec<Place<K>>,
}

impl<K: Ord + Clone> Panes<K> {
    /// No window open, no watermark. The strategy must have passed [`Strategy::check`].
    pub fn new(strategy: Strategy) -> Self {
        let machine = Machine::new(&strategy.trigger, strategy.windowing.merges());
        Self {
            strategy,
            machine,
            watermark: None,
            edge: None,
            waiting: BTreeMap::new(),
            passed: BTreeMap::new(),
            sessions: BTreeMap::new(),
            timers: BTreeSet::new(),
            touched: Vec::new(),
        }
    }

    /// Elements came. Store them where the answer says before any later effect is carried out, and
    /// after a [`Effect::Merge`] from this call, the only effect that can come from it.
    ///
    /// They are late when their window's end is `allowed_lateness` or more below the watermark. For
    /// sessions: unless they merge into a session that is still open.
    pub fn seen(&mut self, now: Micros, seen: Seen<K>, effects: &mut Vec<Effect<K>>) -> Placement {
        let Seen {
            key,
            window,
            count,
            bytes,
        } = seen;
        let merges = self.strategy.windowing.merges();
        let absorbed = merges.then(|| self.absorb(&key, window, effects));
        let window = absorbed.flatten().unwrap_or(window);
        let place = (window, key);
        if self.is_over(window) {
            return Placement::Late;
        }
        let is_passed = self.is_passed(window);
        let Self {
            machine,
            waiting,
            passed,
            sessions,
            timers,
            touched,
            ..
        } = self;
        let windows = if is_passed { passed } else { waiting };
        let state = windows.entry(place.clone()).or_insert_with(|| {
            if merges {
                sessions.insert((place.1.clone(), window.start), window.end);
            }
            State::new(is_passed, machine.start())
        });
        let before = machine.wake(&state.progress);
        state.total = state.total.saturating_add(count);
        state.fresh = state.fresh.saturating_add(count);
        machine.arrive(&mut state.progress, Arrival { count, bytes, now });
        rearm(timers, &place, before, machine.wake(&state.progress));
        if touched.last() != Some(&place) {
            touched.push(place);
        }
        Placement::Into(window)
    }

    /// The elements of a batch are all in: fires the windows that they made ready, in the order of
    /// end, start, key.
    pub fn settle(&mut self, _now: Micros, effects: &mut Vec<Effect<K>>) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for place in touched {
            self.consider(&place, None, effects);
        }
    }

    /// The watermark is `to`: fires the windows whose end it reached, and closes those for which
    /// lateness is over, in the order of end, start, key. A watermark that is not above the last is
    /// ignored.
    pub fn watermark(&mut self, _now: Micros, to: Micros, effects: &mut Vec<Effect<K>>) {
        if self.watermark.is_some_and(|before| to <= before) {
            return;
        }
        self.watermark = Some(to);
        let edge = self.edge.max(Some(edge(&self.strategy, to)));
        self.edge = edge;
        // All windows here end below all that wait.
        while let Some(first) = self.passed.first_entry() {
            if Some(first.key().0.end) > edge {
                break;
            }
            let (place, state) = first.remove_entry();
            self.close(place, state, effects);
        }
        while let Some(first) = self.waiting.first_entry() {
            if first.key().0.end > to {
                break;
            }
            let (place, mut state) = first.remove_entry();
            if self.is_over(place.0) {
                self.close(place, state, effects);
                continue;
            }
            let fresh = state.fresh > 0;
            state.phase = if fresh { Phase::Due } else { Phase::After };
            let before = self.machine.wake(&state.progress);
            if self.machine.ready(&state.progress, true) {
                self.machine.fire(&mut state.progress, true);
                if !fresh && self.strategy.empty_on_time {
                    state.phase = Phase::Due;
                }
                if state.phase == Phase::Due {
                    emit(&self.strategy, &place, &mut state, false, effects);
                }
            }
            let after = self.machine.wake(&state.progress);
            rearm(&mut self.timers, &place, before, after);
            self.passed.insert(place, state);
        }
    }

    /// Processing time has passed: fires the windows whose periods are over.
    pub fn tick(&mut self, now: Micros, effects: &mut Vec<Effect<K>>) {
        let mut due = Vec::new();
        while let Some(first) = self.timers.first() {
            if first.0 > now {
                break;
            }
            let place = (first.1, first.2.clone());
            self.timers.pop_first();
            due.push(place);
        }
        due.sort_unstable();
        for place in due {
            self.consider(&place, Some(now), effects);
        }
    }

    /// The earliest processing time at which [`Panes::tick`] has something to look at.
    pub fn next_tick(&self) -> Option<Micros> {
        self.timers.first().map(|timer| timer.0)
    }

    /// Nothing comes any more: the watermark goes to the end of time, and all windows fire what they
    /// have and close.
    pub fn drain(&mut self, now: Micros, effects: &mut Vec<Effect<K>>) {
        self.touched.clear();
        self.watermark(now, END_OF_TIME, effects);
    }

    /// The watermark so far.
    pub fn watermark_now(&self) -> Option<Micros> {
        self.watermark
    }

    /// How many windows are open.
    pub fn open(&self) -> usize {
        self.waiting.len() + self.passed.len()
    }

    /// The strategy it was made with.
    pub fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    /// The open windows, in the order of end, start, key.
    pub fn windows(&self) -> impl Iterator<Item = (&K, OpenWindow)> {
        self.passed
            .iter()
            .chain(&self.waiting)
            .map(|((window, key), state)| {
                let open = OpenWindow {
                    window: *window,
                    count: state.total,
                    fresh: state.fresh,
                    panes: state.index,
                    passed: state.phase != Phase::Before,
                };
                (key, open)
            })
    }

    /// What is complete, for good: with fixed and sliding windows the event time below which every
    /// event's windows have closed; with sessions the edge at or below which every session that
    /// ends there has closed; with the global window nothing, until the end of time. Never goes
    /// back; none while there is no watermark.
    pub fn complete_below(&self) -> Option<Micros> {
        let edge = self.edge?;
        self.strategy.windowing.complete_below(edge)
    }

    pub(super) fn is_passed(&self, window: Window) -> bool {
        self.watermark.is_some_and(|mark| window.end <= mark)
    }

    /// Lateness is over for a window: it has closed, or never was.
    fn is_over(&self, window: Window) -> bool {
        self.edge.is_some_and(|edge| window.end <= edge)
    }

    /// Fires a window if it is open and its trigger is ready. `tick`: processing time is that now.
    fn consider(&mut self, place: &Place<K>, tick: Option<Micros>, effects: &mut Vec<Effect<K>>) {
        let is_passed = self.is_passed(place.0);
        let windows = if is_passed {
            &mut self.passed
        } else {
            &mut self.waiting
        };
        let Some(state) = windows.get_mut(place) else {
            return; // absorbed by another, or closed, since
        };
        let before = self.machine.wake(&state.progress);
        if let Some(now) = tick {
            self.machine.pass_time(&mut state.progress, now);
        }
        if self.machine.ready(&state.progress, is_passed) {
            self.machine.fire(&mut state.progress, is_passed);
            if state.fresh > 0 {
                emit(&self.strategy, place, state, false, effects);
            }
        }
        let after = self.machine.wake(&state.progress);
        rearm(&mut self.timers, place, before, after);
    }

    /// Emits what is left of a window that was taken out, and forgets it.
    fn close(&mut self, place: Place<K>, mut state: State, effects: &mut Vec<Effect<K>>) {
        rearm(
            &mut self.timers,
            &place,
            self.machine.wake(&state.progress),
            None,
        );
        let ends_now = state.phase == Phase::Before;
        let wanted = state.fresh > 0
            || self.strategy.closing == Closing::FireAlways
            || ends_now && self.strategy.empty_on_time;
        if wanted {
            if ends_now {
                state.phase = Phase::Due;
            }
            emit(&self.strategy, &place, &mut state, true, effects);
        }
        let (window, key) = place;
        if self.strategy.windowing.merges() {
            self.sessions.remove(&(key.clone(), window.start));
        }
        effects.push(Effect::Close { key, window });
    }
}

/// The end up to which windows close by a watermark.
pub(super) fn edge(strategy: &Strategy, watermark: Micros) -> Micros {
    if watermark == END_OF_TIME {
        END_OF_TIME
    } else {
        watermark.saturating_sub(strategy.allowed_lateness)
    }
}

/// Moves a window's timer, if it moved.
pub(super) fn rearm<K: Ord + Clone>(
    timers: &mut BTreeSet<(Micros, Window, K)>,
    place: &Place<K>,
    before: Option<Micros>,
    after: Option<Micros>,
) {
    if before == after {
        return;
    }
    if let Some(at) = before {
        timers.remove(&(at, place.0, place.1.clone()));
    }
    if let Some(at) = after {
        timers.insert((at, place.0, place.1.clone()));
    }
}

/// A pane of a window: takes back what stands, when retracting, and fires.
fn emit<K: Clone>(
    strategy: &Strategy,
    place: &Place<K>,
    state: &mut State,
    last: bool,
    effects: &mut Vec<Effect<K>>,
) {
    let timing = match state.phase {
        Phase::Before => Timing::Early,
        Phase::Due => Timing::OnTime,
        Phase::After => Timing::Late,
    };
    let pane = PaneInfo {
        index: state.index,
        timing,
        on_time_index: (timing != Timing::Early).then_some(state.on_time_index),
        first: state.index == 0,
        last,
        count: match strategy.accumulation {
            Accumulation::Discarding => state.fresh,
            Accumulation::Accumulating | Accumulation::Retracting => state.total,
        },
    };
    state.index += 1;
    state.fresh = 0;
    if timing != Timing::Early {
        state.on_time_index += 1;
        state.phase = Phase::After;
    }
    let (window, key) = place;
    if strategy.accumulation == Accumulation::Retracting {
        for old in std::mem::take(&mut state.standing) {
            effects.push(Effect::Retract {
                key: key.clone(),
                window: old.window,
                pane: old.pane,
            });
        }
        if !last {
            let window = *window;
            // Exactly one: there may be a million of these.
            state.standing = vec![Standing { window, pane }];
        }
    }
    effects.push(Effect::Fire {
        key: key.clone(),
        window: *window,
        pane,
    });
}

//! What of [`Panes`] goes into a checkpoint, and back. Short names, and nothing that is as in a new
//! window: a checkpoint may hold a hundred thousand windows. For self-describing formats (JSON).

use serde::{Deserialize, Serialize};

use super::machine::{Arrival, Progress};
use super::pane::PaneInfo;
use super::panes::{Panes, Phase, Standing, State, edge, rearm};
use super::strategy::Strategy;
use super::trigger::Trigger;
use super::window::Window;
use crate::watermark::Micros;

/// [`Panes`] as values, to be stored. Restored under the strategy that it was saved under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Deserialize<'de>"))]
pub struct Saved<K> {
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    watermark: Option<Micros>,
    /// Windows that end here or before have closed.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    edge: Option<Micros>,
    /// What the windows' `finished` and `slots` are of.
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    trigger: Option<Trigger>,
    /// In the order of end, start, key.
    #[serde(
        rename = "w",
        default = "Vec::new",
        skip_serializing_if = "Vec::is_empty"
    )]
    windows: Vec<SavedWindow<K>>,
    #[serde(
        rename = "t",
        default = "Vec::new",
        skip_serializing_if = "Vec::is_empty"
    )]
    touched: Vec<(Micros, Micros, K)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedWindow<K> {
    #[serde(rename = "k")]
    key: K,
    #[serde(rename = "s")]
    start: Micros,
    #[serde(rename = "e")]
    end: Micros,
    /// All elements.
    #[serde(rename = "n")]
    total: u64,
    /// Of these, those that have fired.
    #[serde(rename = "d", default, skip_serializing_if = "is_zero")]
    fired: u64,
    #[serde(rename = "i", default, skip_serializing_if = "is_zero")]
    index: u64,
    #[serde(rename = "o", default, skip_serializing_if = "is_zero")]
    on_time_index: u64,
    /// The on-time pane is due. (The other phases follow from the watermark.)
    #[serde(rename = "u", default, skip_serializing_if = "is_zero")]
    due: u64,
    #[serde(rename = "f", default, skip_serializing_if = "is_zero")]
    finished: u64,
    #[serde(rename = "c", default, skip_serializing_if = "Vec::is_empty")]
    slots: Vec<i64>,
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    standing: Vec<(Micros, Micros, PaneInfo)>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl<K> Saved<K> {
    /// No window open; the watermark, if there is one, has come this far.
    pub fn at(watermark: Option<Micros>) -> Self {
        Self {
            watermark,
            edge: None,
            trigger: None,
            windows: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// How many windows were open.
    pub fn open(&self) -> usize {
        self.windows.len()
    }

    /// The watermark then.
    pub fn watermark(&self) -> Option<Micros> {
        self.watermark
    }
}

impl<K: Ord + Clone> Panes<K> {
    /// All that is needed to go on elsewhere as if nothing had happened.
    pub fn save(&self) -> Saved<K> {
        let windows = self
            .passed
            .iter()
            .chain(&self.waiting)
            .map(|((window, key), state)| SavedWindow {
                key: key.clone(),
                start: window.start,
                end: window.end,
                total: state.total,
                fired: state.total - state.fresh,
                index: state.index,
                on_time_index: state.on_time_index,
                due: u64::from(state.phase == Phase::Due),
                finished: state.progress.finished,
                slots: if self.machine.is_start(&state.progress.slots) {
                    Vec::new()
                } else {
                    state.progress.slots.to_vec()
                },
                standing: state
                    .standing
                    .iter()
                    .map(|old| (old.window.start, old.window.end, old.pane))
                    .collect(),
            })
            .collect();
        let touched = self.touched.iter();
        Saved {
            watermark: self.watermark,
            edge: self.edge,
            trigger: (self.open() > 0).then(|| self.strategy.trigger.clone()),
            windows,
            touched: touched
                .map(|(window, key)| (window.start, window.end, key.clone()))
                .collect(),
        }
    }

    /// What was saved, again. Windowing and accumulation of `strategy` must be those that it was
    /// saved under. Lateness may differ: it counts from the next watermark, and a longer one opens
    /// no window again that has closed. Another trigger begins anew in each window, as if what has
    /// not fired had just come, and its periods were over.
    pub fn restore(strategy: Strategy, saved: Saved<K>) -> Self {
        let same_trigger = saved.trigger.is_none_or(|was| was == strategy.trigger);
        let mut panes = Self::new(strategy);
        panes.watermark = saved.watermark;
        let by_watermark = saved.watermark.map(|mark| edge(&panes.strategy, mark));
        panes.edge = saved.edge.or(by_watermark);
        panes.touched = saved
            .touched
            .into_iter()
            .map(|(start, end, key)| (Window::new(start, end), key))
            .collect();
        for one in saved.windows {
            let place = (Window::new(one.start, one.end), one.key);
            let passed = panes.is_passed(place.0);
            let fresh = one.total.saturating_sub(one.fired);
            let mut progress = panes.machine.start();
            if !same_trigger {
                panes.begin_anew(&mut progress, fresh, passed);
                if fresh > 0 {
                    panes.touched.push(place.clone());
                }
            } else if one.slots.len() == progress.slots.len() {
                progress.slots = one.slots.into();
                progress.finished = one.finished;
            } else {
                progress.finished = one.finished;
            }
            rearm(
                &mut panes.timers,
                &place,
                None,
                panes.machine.wake(&progress),
            );
            if panes.strategy.windowing.merges() {
                let (window, key) = &place;
                let session = (key.clone(), window.start);
                panes.sessions.insert(session, window.end);
            }
            let standing = one.standing.into_iter();
            let mut state = State {
                total: one.total,
                fresh,
                index: one.index,
                on_time_index: one.on_time_index,
                standing: standing
                    .map(|(start, end, pane)| Standing {
                        window: Window::new(start, end),
                        pane,
                    })
                    .collect(),
                ..State::new(passed, progress)
            };
            if passed && one.due > 0 {
                state.phase = Phase::Due;
            }
            if passed {
                panes.passed.insert(place, state);
            } else {
                panes.waiting.insert(place, state);
            }
        }
        panes
    }

    /// Another trigger than before takes over a window with so many elements that have not fired.
    fn begin_anew(&self, progress: &mut Progress, fresh: u64, passed: bool) {
        if fresh > 0 {
            let arrival = Arrival {
                count: fresh,
                bytes: 0,
                now: Micros::MIN,
            };
            self.machine.arrive(progress, arrival);
        } else if passed && self.machine.ready(progress, true) {
            // The firing at the watermark has been.
            self.machine.fire(progress, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Accumulation, Effect, Placement, Seen, Timing, Windowing};
    use super::*;

    /// Checkpoints outlive the program that wrote them: this text must stay readable.
    #[test]
    fn what_is_written_stays_as_it_is() {
        let every = 60;
        let period = Trigger::Period {
            every,
            aligned: false,
        };
        let strategy = Strategy {
            windowing: Windowing::Session { gap: 10 },
            trigger: Trigger::phases(Some(period), Some(Trigger::Count(2))),
            allowed_lateness: 100,
            accumulation: Accumulation::Retracting,
            ..Strategy::default()
        };
        let mut panes = Panes::new(strategy.clone());
        let mut effects = Vec::new();
        for (now, at, count) in [(0, 5, 3), (70, 30, 1), (90, 50, 2)] {
            panes.tick(now, &mut effects);
            let window = Window::new(at, at + 10);
            let seen = Seen {
                key: "a".to_owned(),
                window,
                count,
                bytes: 8,
            };
            panes.seen(now, seen, &mut effects);
            panes.settle(now, &mut effects);
        }
        panes.watermark(100, 40, &mut effects);
        let written = r#"{"m":40,"e":-60,"g":{"phases":{"early":{"period":{"every":60,"aligned":false}},"late":{"count":2}}},"w":[{"k":"a","s":5,"e":15,"n":3,"d":3,"i":1,"f":8,"x":[[5,15,{"i":0,"t":"early","f":true,"n":3}]]},{"k":"a","s":30,"e":40,"n":1,"d":1,"i":1,"o":1,"f":8,"x":[[30,40,{"i":0,"t":"on_time","o":0,"f":true,"n":1}]]},{"k":"a","s":50,"e":60,"n":2,"c":[150,2]}]}"#;
        assert_eq!(serde_json::to_string(&panes.save()).unwrap(), written);
        let saved: Saved<String> = serde_json::from_str(written).unwrap();
        assert_eq!(saved.open(), 3);
        assert_eq!(saved.watermark(), Some(40));
        assert_eq!(Panes::restore(strategy, saved), panes);
    }

    fn fixed(trigger: Trigger, allowed_lateness: Micros) -> Strategy {
        Strategy {
            windowing: Windowing::Fixed {
                size: 10,
                offset: 0,
            },
            trigger,
            allowed_lateness,
            ..Strategy::default()
        }
    }

    fn one(start: Micros) -> Seen<()> {
        Seen {
            key: (),
            window: Window::new(start, start + 10),
            count: 1,
            bytes: 1,
        }
    }

    fn fired(effects: &mut Vec<Effect<()>>) -> Vec<(Micros, u64, Timing)> {
        let fired = effects.drain(..).filter_map(|effect| match effect {
            Effect::Fire { window, pane, .. } => Some((window.start, pane.count, pane.timing)),
            _ => None,
        });
        fired.collect()
    }

    #[test]
    fn lateness_that_changes_counts_from_the_next_watermark() {
        let mut effects = Vec::new();
        let mut panes = Panes::new(fixed(Trigger::default(), 20));
        panes.seen(0, one(0), &mut effects);
        panes.seen(0, one(20), &mut effects);
        panes.watermark(0, 30, &mut effects);
        assert_eq!(panes.open(), 1);

        let mut shorter = Panes::restore(fixed(Trigger::default(), 0), panes.save());
        let placed = shorter.seen(0, one(20), &mut effects);
        assert_eq!(placed, Placement::Into(Window::new(20, 30)));
        shorter.watermark(0, 31, &mut effects);
        assert_eq!(shorter.open(), 0);
        assert_eq!(shorter.seen(0, one(20), &mut effects), Placement::Late);

        let mut longer = Panes::restore(fixed(Trigger::default(), 1000), panes.save());
        assert_eq!(longer.seen(0, one(0), &mut effects), Placement::Late);
        longer.watermark(0, 31, &mut effects);
        assert_eq!(longer.seen(0, one(0), &mut effects), Placement::Late);
        assert_eq!(longer.complete_below(), Some(10));
        let placed = longer.seen(0, one(10), &mut effects);
        assert_eq!(placed, Placement::Into(Window::new(10, 20)));
    }

    #[test]
    fn another_trigger_begins_anew_with_what_has_not_fired() {
        let mut effects = Vec::new();
        let late = |least| Trigger::phases(None, Some(Trigger::Count(least)));
        let mut panes = Panes::new(fixed(late(9), 100));
        panes.seen(0, one(0), &mut effects);
        panes.watermark(0, 10, &mut effects);
        panes.seen(0, one(10), &mut effects);
        panes.settle(0, &mut effects);
        assert_eq!(fired(&mut effects), [(0, 1, Timing::OnTime)]);
        let saved = panes.save();

        // The first window's firing at the watermark has been: it waits for two late elements.
        let mut other = Panes::restore(fixed(late(2), 100), saved.clone());
        other.seen(0, one(0), &mut effects);
        other.settle(0, &mut effects);
        assert_eq!(fired(&mut effects), []);
        other.seen(0, one(0), &mut effects);
        other.settle(0, &mut effects);
        assert_eq!(fired(&mut effects), [(0, 2, Timing::Late)]);

        // The second window has an element that counts, and whose period is over.
        let mut other = Panes::restore(fixed(Trigger::Count(1).repeated(), 100), saved.clone());
        other.settle(0, &mut effects);
        assert_eq!(fired(&mut effects), [(10, 1, Timing::Early)]);
        let (every, aligned) = (60, false);
        let period = Trigger::Period { every, aligned }.repeated();
        let mut other = Panes::restore(fixed(period, 100), saved);
        assert!(other.next_tick().is_some_and(|at| at < 0));
        other.tick(0, &mut effects);
        assert_eq!(fired(&mut effects), [(10, 1, Timing::Early)]);
        other.settle(0, &mut effects);
        assert_eq!(fired(&mut effects), []);
        assert_eq!(other.next_tick(), None);
    }
}

//! What of [`Panes`] goes into a checkpoint, and back. Short names, and nothing that is as in a new
//! window: a checkpoint may hold a hundred thousand windows. For self-describing formats (JSON).

use serde::{Deserialize, Serialize};

use super::machine::Progress;
use super::pane::PaneInfo;
use super::panes::{Panes, Phase, Standing, State, rearm};
use super::strategy::Strategy;
use super::window::Window;
use crate::watermark::Micros;

/// [`Panes`] as values, to be stored. Restored under the strategy that it was saved under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Deserialize<'de>"))]
pub struct Saved<K> {
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    watermark: Option<Micros>,
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
            windows,
            touched: touched
                .map(|(window, key)| (window.start, window.end, key.clone()))
                .collect(),
        }
    }

    /// What was saved, again. `strategy` must be the one it was saved under: what a window remembers
    /// of its trigger means nothing to another. Less lateness alone does no harm: windows for which
    /// it is over by then close with the next watermark. More does: windows that have closed would
    /// open again, and begin at index 0.
    pub fn restore(strategy: Strategy, saved: Saved<K>) -> Self {
        let mut panes = Self::new(strategy);
        panes.watermark = saved.watermark;
        panes.touched = saved
            .touched
            .into_iter()
            .map(|(start, end, key)| (Window::new(start, end), key))
            .collect();
        for one in saved.windows {
            let place = (Window::new(one.start, one.end), one.key);
            let passed = panes.is_passed(place.0);
            let mut progress = panes.machine.start();
            if one.slots.is_empty() {
                progress.finished = one.finished;
            } else if one.slots.len() == progress.slots.len() {
                progress = Progress {
                    finished: one.finished,
                    slots: one.slots.into(),
                };
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
                fresh: one.total.saturating_sub(one.fired),
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
}

#[cfg(test)]
mod tests {
    use super::super::{Accumulation, Effect, Placement, Seen, Trigger, Windowing};
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
        let written = r#"{"m":40,"w":[{"k":"a","s":5,"e":15,"n":3,"d":3,"i":1,"f":8,"x":[[5,15,{"i":0,"t":"early","f":true,"n":3}]]},{"k":"a","s":30,"e":40,"n":1,"d":1,"i":1,"o":1,"f":8,"x":[[30,40,{"i":0,"t":"on_time","o":0,"f":true,"n":1}]]},{"k":"a","s":50,"e":60,"n":2,"c":[150,2]}]}"#;
        assert_eq!(serde_json::to_string(&panes.save()).unwrap(), written);
        let saved: Saved<String> = serde_json::from_str(written).unwrap();
        assert_eq!(saved.open(), 3);
        assert_eq!(saved.watermark(), Some(40));
        assert_eq!(Panes::restore(strategy, saved), panes);
    }

    #[test]
    fn windows_restored_under_less_lateness_take_elements_until_they_close() {
        let mut strategy = Strategy {
            windowing: Windowing::Session { gap: 10 },
            allowed_lateness: 100,
            ..Strategy::default()
        };
        let mut panes = Panes::new(strategy.clone());
        let mut effects = Vec::new();
        let seen = |at| Seen {
            key: (),
            window: Window::new(at, at + 10),
            count: 1,
            bytes: 1,
        };
        panes.seen(0, seen(0), &mut effects);
        panes.watermark(0, 50, &mut effects);
        strategy.allowed_lateness = 0;
        let mut panes = Panes::restore(strategy, panes.save());
        effects.clear();
        let placed = panes.seen(0, seen(5), &mut effects);
        assert_eq!(placed, Placement::Into(Window::new(0, 15)));
        assert_eq!(panes.seen(0, seen(30), &mut effects), Placement::Late);
        panes.settle(0, &mut effects);
        panes.watermark(0, 51, &mut effects);
        assert!(matches!(
            effects[..],
            [
                Effect::Merge { .. },
                Effect::Fire { .. },
                Effect::Close { .. }
            ]
        ));
        assert_eq!(panes.open(), 0);
    }
}

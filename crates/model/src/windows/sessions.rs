//! Sessions: how windows of a key that overlap become one (the paper's `MergeWindows`).
//!
//! Open sessions of a key never overlap. A new window absorbs those that it overlaps; the merged
//! one covers them all, remembers the sum of what they did, and takes back all their panes.

use super::machine::Progress;
use super::pane::Effect;
use super::panes::{Panes, Phase, Place, State, rearm};
use super::window::Window;
use crate::watermark::Micros;

impl<K: Ord + Clone> Panes<K> {
    /// Merges a key's new `window` with the open sessions that it overlaps. The session it belongs
    /// to, which is open then; none: it overlaps none.
    pub(super) fn absorb(
        &mut self,
        key: &K,
        window: Window,
        effects: &mut Vec<Effect<K>>,
    ) -> Option<Window> {
        let overlapping = self.overlapping(key, window);
        let into = overlapping
            .iter()
            .fold(window, |into, session| into.span(session));
        if overlapping.is_empty() {
            return None;
        }
        if overlapping == [into] {
            return Some(into);
        }
        let mut absorbed = Vec::with_capacity(overlapping.len());
        for session in &overlapping {
            let place = (*session, key.clone());
            let state = if self.is_passed(*session) {
                self.passed.remove(&place)
            } else {
                self.waiting.remove(&place)
            };
            if let Some(state) = state {
                let armed = self.machine.wake(&state.progress);
                rearm(&mut self.timers, &place, armed, None);
                absorbed.push(state);
            }
            self.sessions.remove(&(place.1, session.start));
        }
        let passed = self.is_passed(into);
        let progress: Vec<&Progress> = absorbed.iter().map(|state| &state.progress).collect();
        let progress = self.machine.merge(&progress, passed);
        let state = merged(absorbed, progress, passed);
        let place: Place<K> = (into, key.clone());
        rearm(
            &mut self.timers,
            &place,
            None,
            self.machine.wake(&state.progress),
        );
        self.sessions.insert((key.clone(), into.start), into.end);
        if passed {
            self.passed.insert(place, state);
        } else {
            self.waiting.insert(place, state);
        }
        effects.push(Effect::Merge {
            key: key.clone(),
            from: overlapping,
            into,
        });
        Some(into)
    }

    /// The open sessions of a key that overlap a window, by end.
    fn overlapping(&self, key: &K, window: Window) -> Vec<Window> {
        let below: (K, Micros) = (key.clone(), window.end);
        let mut found: Vec<Window> = self
            .sessions
            .range(..below)
            .rev()
            .take_while(|((of, _), end)| of == key && **end > window.start)
            .map(|((_, start), end)| Window::new(*start, *end))
            .collect();
        found.reverse();
        found
    }
}

/// What sessions that become one have done together.
fn merged(absorbed: Vec<State>, progress: Progress, passed: bool) -> State {
    let mut state = State::new(passed, progress);
    for one in absorbed {
        state.total = state.total.saturating_add(one.total);
        state.fresh = state.fresh.saturating_add(one.fresh);
        state.index = state.index.max(one.index);
        state.on_time_index = state.on_time_index.max(one.on_time_index);
        if passed && one.phase == Phase::Due {
            state.phase = Phase::Due;
        }
        state.standing.extend(one.standing);
    }
    state
}

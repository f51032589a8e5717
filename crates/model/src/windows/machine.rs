//! Triggers as a machine: what each part remembers, when it is ready, what firing does to it.
//!
//! The trigger, a tree, is laid out flat once; what one window remembers of it ([`Progress`]) is a
//! set of finished parts and one number per counting part, so that a million windows stay small.
//! Semantics after Beam's trigger state machines (`org.apache.beam.runners.core.triggers`). Start
//! with [`Machine::ready`].
//!
//! Where windows merge, parts that are not active count along: a merge may bring them back.

use super::layout::{Part, UNSET, lay_out};
use super::trigger::Trigger;
use crate::watermark::Micros;

/// A period that is over.
const OVER: i64 = i64::MIN;

/// What one window remembers of its trigger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// A bit per part: it has finished.
    pub(super) finished: u64,
    /// Elements or bytes since the last firing; for a period when it is over.
    pub(super) slots: Box<[i64]>,
}

impl Progress {
    fn has(&self, part: usize) -> bool {
        self.finished >> part & 1 == 1
    }

    fn set(&mut self, part: usize, finished: bool) {
        self.finished = self.finished & !(1 << part) | u64::from(finished) << part;
    }
}

/// Elements that came into a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) count: u64,
    pub(super) bytes: u64,
    pub(super) now: Micros,
}

/// A trigger, laid out. Part 0 is the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    parts: Vec<Part>,
    unset: Box<[i64]>,
    merges: bool,
}

const ROOT: usize = 0;

impl Machine {
    pub(super) fn new(trigger: &Trigger, merges: bool) -> Self {
        let mut parts = Vec::new();
        let mut unset = Vec::new();
        lay_out(trigger, &mut parts, &mut unset);
        Self {
            parts,
            unset: unset.into(),
            merges,
        }
    }

    /// Of a new window.
    pub(super) fn start(&self) -> Progress {
        Progress {
            finished: 0,
            slots: self.unset.clone(),
        }
    }

    /// Whether this is what a new window has.
    pub(super) fn is_start(&self, slots: &[i64]) -> bool {
        *slots == *self.unset
    }

    /// Elements came in.
    pub(super) fn arrive(&self, progress: &mut Progress, arrival: Arrival) {
        self.on_arrival(ROOT, progress, arrival);
    }

    /// Processing time is `now`: periods that are over are over for good.
    pub(super) fn pass_time(&self, progress: &mut Progress, now: Micros) {
        for part in &self.parts {
            if let Part::Period { slot, .. } = part
                && progress.slots[*slot] != UNSET
                && progress.slots[*slot] <= now
            {
                progress.slots[*slot] = OVER;
            }
        }
    }

    /// Whether it fires. `passed`: the watermark has reached the window's end.
    pub(super) fn ready(&self, progress: &Progress, passed: bool) -> bool {
        self.is_ready(ROOT, progress, passed)
    }

    /// It was ready and fires.
    pub(super) fn fire(&self, progress: &mut Progress, passed: bool) {
        self.on_fire(ROOT, progress, passed);
    }

    /// Windows merge into one: what that remembers. `passed` is about the merged window.
    pub(super) fn merge(&self, from: &[&Progress], passed: bool) -> Progress {
        let mut into = self.start();
        self.on_merge(ROOT, &mut into, from, passed);
        into
    }

    /// When processing time alone may next make it ready; none: never.
    pub(super) fn wake(&self, progress: &Progress) -> Option<Micros> {
        Some(self.next_wake(ROOT, progress)).filter(|at| *at != UNSET)
    }

    fn on_arrival(&self, id: usize, progress: &mut Progress, arrival: Arrival) {
        if progress.has(id) && !self.merges {
            return;
        }
        match &self.parts[id] {
            Part::AtWatermark | Part::Bit => {}
            Part::Period {
                every,
                aligned,
                slot,
            } => {
                if !progress.has(id) && progress.slots[*slot] == UNSET {
                    progress.slots[*slot] = over_at(arrival.now, *every, *aligned);
                }
            }
            Part::Count { slot, .. } => add(&mut progress.slots[*slot], arrival.count),
            Part::Bytes { slot, .. } => add(&mut progress.slots[*slot], arrival.bytes),
            Part::All(parts) | Part::Any(parts) => {
                for part in parts {
                    self.on_arrival(*part, progress, arrival);
                }
            }
            Part::Sequence(parts) => {
                if self.merges {
                    for part in parts {
                        self.on_arrival(*part, progress, arrival);
                    }
                } else if let Some(part) = first_unfinished(parts, progress) {
                    self.on_arrival(part, progress, arrival);
                }
            }
            Part::Repeat(part) => self.on_arrival(*part, progress, arrival),
            Part::Until { repeat, until } => {
                self.on_arrival(*repeat, progress, arrival);
                self.on_arrival(*until, progress, arrival);
            }
            Part::Phases {
                early,
                late,
                passed,
            } => {
                let is_late = progress.has(*passed);
                for (part, active) in [(early, !is_late), (late, is_late)] {
                    if let Some(part) = part
                        && (active || self.merges)
                    {
                        self.on_arrival(*part, progress, arrival);
                    }
                }
            }
        }
    }

    fn is_ready(&self, id: usize, progress: &Progress, passed: bool) -> bool {
        if progress.has(id) {
            return false;
        }
        let ready = |part: &usize| self.is_ready(*part, progress, passed);
        match &self.parts[id] {
            Part::AtWatermark => passed,
            Part::Period { slot, .. } => progress.slots[*slot] == OVER,
            Part::Count { least, slot } | Part::Bytes { least, slot } => {
                progress.slots[*slot].unsigned_abs() >= *least
            }
            Part::All(parts) => parts.iter().all(|part| progress.has(*part) || ready(part)),
            Part::Any(parts) => parts.iter().any(ready),
            Part::Sequence(parts) => first_unfinished(parts, progress).is_some_and(|p| ready(&p)),
            Part::Repeat(part) => ready(part),
            Part::Until { repeat, until } => ready(repeat) || ready(until),
            Part::Phases {
                early,
                late,
                passed: was,
            } => {
                if progress.has(*was) {
                    late.as_ref().is_some_and(ready)
                } else {
                    passed || early.as_ref().is_some_and(ready)
                }
            }
            Part::Bit => false,
        }
    }

    fn on_fire(&self, id: usize, progress: &mut Progress, passed: bool) {
        match &self.parts[id] {
            Part::AtWatermark | Part::Bit => progress.set(id, true),
            Part::Period { .. } | Part::Count { .. } | Part::Bytes { .. } => {
                self.clear(id, progress);
                progress.set(id, true);
            }
            Part::All(parts) | Part::Any(parts) => {
                for part in parts {
                    if self.is_ready(*part, progress, passed) {
                        self.on_fire(*part, progress, passed);
                    } else {
                        self.clear(*part, progress);
                    }
                }
                progress.set(id, true);
            }
            Part::Sequence(parts) => {
                if let Some(part) = first_unfinished(parts, progress) {
                    self.on_fire(part, progress, passed);
                }
                if self.merges {
                    for part in parts {
                        self.clear(*part, progress);
                    }
                }
                let finished = first_unfinished(parts, progress).is_none();
                progress.set(id, finished);
            }
            Part::Repeat(part) => self.fire_again(*part, progress, passed),
            Part::Until { repeat, until } => {
                if self.is_ready(*until, progress, passed) {
                    self.on_fire(*until, progress, passed);
                    self.reset(*repeat, progress);
                    progress.set(id, true);
                } else {
                    self.fire_again(*repeat, progress, passed);
                }
            }
            Part::Phases {
                early,
                late,
                passed: was,
            } => {
                if progress.has(*was) {
                    if let Some(late) = late {
                        self.fire_again(*late, progress, passed);
                    }
                    // What it counted along has fired.
                    early.inspect(|early| self.reset(*early, progress));
                } else if passed {
                    progress.set(*was, true);
                    early.inspect(|early| self.reset(*early, progress));
                    late.inspect(|late| self.reset(*late, progress));
                    progress.set(id, late.is_none());
                } else if let Some(early) = early {
                    self.fire_again(*early, progress, passed);
                }
            }
        }
    }

    /// Fires a part that begins anew when it has finished.
    fn fire_again(&self, id: usize, progress: &mut Progress, passed: bool) {
        self.on_fire(id, progress, passed);
        if progress.has(id) {
            self.reset(id, progress);
        }
    }

    fn on_merge(&self, id: usize, into: &mut Progress, from: &[&Progress], passed: bool) {
        let in_all = |part: usize| from.iter().all(|one| one.has(part));
        let in_any = |part: usize| from.iter().any(|one| one.has(part));
        match &self.parts[id] {
            // Still to come, if it is in one of them, or if the merged window ends later.
            Part::AtWatermark | Part::Bit => into.set(id, in_all(id) && passed),
            Part::Period { slot, .. } => {
                into.set(id, in_any(id));
                if !in_any(id) {
                    let first = from.iter().map(|one| one.slots[*slot]).min();
                    into.slots[*slot] = first.unwrap_or(UNSET);
                }
            }
            Part::Count { slot, .. } | Part::Bytes { slot, .. } => {
                into.set(id, in_any(id));
                if !in_any(id) {
                    let sum = from.iter().map(|one| one.slots[*slot]);
                    into.slots[*slot] = sum.fold(0, i64::saturating_add);
                }
            }
            Part::All(parts) => {
                for part in parts {
                    self.on_merge(*part, into, from, passed);
                }
                let finished = parts.iter().all(|part| into.has(*part));
                into.set(id, finished);
            }
            Part::Any(parts) => {
                for part in parts {
                    self.on_merge(*part, into, from, passed);
                }
                let finished = parts.iter().any(|part| into.has(*part));
                into.set(id, finished);
            }
            Part::Sequence(parts) => {
                // Up to the first that is not finished; those after it have not begun.
                let mut before_finished = true;
                for part in parts {
                    if before_finished {
                        self.on_merge(*part, into, from, passed);
                        before_finished = into.has(*part);
                    }
                }
                into.set(id, before_finished);
            }
            Part::Repeat(part) => {
                self.on_merge(*part, into, from, passed);
                if into.has(*part) {
                    self.reset(*part, into);
                }
            }
            Part::Until { repeat, until } => {
                self.on_merge(*repeat, into, from, passed);
                if into.has(*repeat) {
                    self.reset(*repeat, into);
                }
                self.on_merge(*until, into, from, passed);
                let finished = into.has(*until);
                into.set(id, finished);
            }
            Part::Phases {
                early,
                late,
                passed: was,
            } => {
                self.on_merge(*was, into, from, passed);
                let is_late = into.has(*was);
                if let Some(part) = if is_late { late } else { early } {
                    self.on_merge(*part, into, from, passed);
                    if into.has(*part) {
                        self.reset(*part, into);
                    }
                }
                into.set(id, is_late && late.is_none());
            }
        }
    }

    fn next_wake(&self, id: usize, progress: &Progress) -> Micros {
        if progress.has(id) {
            return UNSET;
        }
        let wake = |part: usize| self.next_wake(part, progress);
        match &self.parts[id] {
            Part::Period { slot, .. } if progress.slots[*slot] != OVER => progress.slots[*slot],
            Part::AtWatermark
            | Part::Bit
            | Part::Period { .. }
            | Part::Count { .. }
            | Part::Bytes { .. } => UNSET,
            Part::All(parts) | Part::Any(parts) => {
                parts.iter().map(|part| wake(*part)).min().unwrap_or(UNSET)
            }
            Part::Sequence(parts) => first_unfinished(parts, progress).map_or(UNSET, wake),
            Part::Repeat(part) => wake(*part),
            Part::Until { repeat, until } => wake(*repeat).min(wake(*until)),
            Part::Phases {
                early,
                late,
                passed,
            } => {
                let active = if progress.has(*passed) { late } else { early };
                active.map_or(UNSET, wake)
            }
        }
    }

    /// Forgets what a part and those below it counted, not what has finished.
    fn clear(&self, id: usize, progress: &mut Progress) {
        self.each_below(id, &mut |part| {
            if let Part::Period { slot, .. } | Part::Count { slot, .. } | Part::Bytes { slot, .. } =
                &self.parts[part]
            {
                progress.slots[*slot] = self.unset[*slot];
            }
        });
    }

    /// As new.
    fn reset(&self, id: usize, progress: &mut Progress) {
        self.clear(id, progress);
        self.each_below(id, &mut |part| progress.set(part, false));
    }

    fn each_below(&self, id: usize, act: &mut impl FnMut(usize)) {
        act(id);
        match &self.parts[id] {
            Part::All(parts) | Part::Any(parts) | Part::Sequence(parts) => {
                for part in parts {
                    self.each_below(*part, act);
                }
            }
            Part::Repeat(part) => self.each_below(*part, act),
            Part::Until { repeat, until } => {
                self.each_below(*repeat, act);
                self.each_below(*until, act);
            }
            Part::Phases {
                early,
                late,
                passed,
            } => {
                for part in early.iter().chain(late).chain([passed]) {
                    self.each_below(*part, act);
                }
            }
            Part::AtWatermark
            | Part::Bit
            | Part::Period { .. }
            | Part::Count { .. }
            | Part::Bytes { .. } => {}
        }
    }
}

fn first_unfinished(parts: &[usize], progress: &Progress) -> Option<usize> {
    parts.iter().copied().find(|part| !progress.has(*part))
}

fn add(slot: &mut i64, more: u64) {
    *slot = slot.saturating_add(i64::try_from(more).unwrap_or(i64::MAX));
}

/// When a period that begins at `now` is over; never [`UNSET`] or [`OVER`].
fn over_at(now: Micros, every: Micros, aligned: bool) -> Micros {
    let (now, every) = (i128::from(now), i128::from(every.max(1)));
    let over = if aligned {
        now - now.rem_euclid(every) + every
    } else {
        now + every
    };
    over.clamp(i128::from(i64::MIN) + 1, i128::from(i64::MAX) - 1) as Micros
}

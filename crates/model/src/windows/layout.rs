//! A trigger laid out flat: its parts by number, the whole first, and a slot for each that counts.
//! `machine` says what the parts do.

use super::trigger::Trigger;
use crate::watermark::Micros;

/// A period that no element has started.
pub(super) const UNSET: i64 = i64::MAX;
/// A part of a trigger; others are named by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    AtWatermark,
    Period {
        every: Micros,
        aligned: bool,
        slot: usize,
    },
    Count {
        least: u64,
        slot: usize,
    },
    Bytes {
        least: u64,
        slot: usize,
    },
    All(Vec<usize>),
    Any(Vec<usize>),
    Sequence(Vec<usize>),
    Repeat(usize),
    Until {
        repeat: usize,
        until: usize,
    },
    /// `passed`: a part that is only a bit, for whether the firing at the watermark has been.
    Phases {
        early: Option<usize>,
        late: Option<usize>,
        passed: usize,
    },
    Bit,
}

/// Lays a trigger out, the whole before its parts; returns its number.
pub(super) fn lay_out(trigger: &Trigger, parts: &mut Vec<Part>, unset: &mut Vec<i64>) -> usize {
    let id = parts.len();
    parts.push(Part::Bit);
    let mut slot = |value| {
        unset.push(value);
        unset.len() - 1
    };
    let part = match trigger {
        Trigger::AtWatermark => Part::AtWatermark,
        Trigger::Period { every, aligned } => Part::Period {
            every: *every,
            aligned: *aligned,
            slot: slot(UNSET),
        },
        Trigger::Count(least) => Part::Count {
            least: *least,
            slot: slot(0),
        },
        Trigger::Bytes(least) => Part::Bytes {
            least: *least,
            slot: slot(0),
        },
        Trigger::All(below) => Part::All(lay_out_all(below, parts, unset)),
        Trigger::Any(below) => Part::Any(lay_out_all(below, parts, unset)),
        Trigger::Sequence(below) => Part::Sequence(lay_out_all(below, parts, unset)),
        Trigger::Repeat(below) => Part::Repeat(lay_out(below, parts, unset)),
        Trigger::Until { repeat, until } => Part::Until {
            repeat: lay_out(repeat, parts, unset),
            until: lay_out(until, parts, unset),
        },
        Trigger::Phases { early, late } => {
            let early = early.as_ref().map(|early| lay_out(early, parts, unset));
            let late = late.as_ref().map(|late| lay_out(late, parts, unset));
            parts.push(Part::Bit);
            Part::Phases {
                early,
                late,
                passed: parts.len() - 1,
            }
        }
    };
    parts[id] = part;
    id
}

fn lay_out_all(below: &[Trigger], parts: &mut Vec<Part>, unset: &mut Vec<i64>) -> Vec<usize> {
    let lay = |trigger| lay_out(trigger, parts, unset);
    below.iter().map(lay).collect()
}

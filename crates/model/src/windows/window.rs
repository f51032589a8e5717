//! Windows of event time, and how an event gets its windows (the paper's `AssignWindows`).
//!
//! Windows are half-open. All arithmetic is done wide and cut off at the ends of time, so that no
//! event time, however odd, overflows or falls out of its windows.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::units::in_words;
use crate::watermark::{END_OF_TIME, Micros};

/// A half-open interval `[start, end)` of event time, in microseconds. Ordered by end, then start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// First event time inside.
    pub start: Micros,
    /// First event time after it; the window is complete when the watermark is here.
    pub end: Micros,
}

impl Window {
    /// The one window that holds everything.
    pub const GLOBAL: Self = Self {
        start: Micros::MIN,
        end: END_OF_TIME,
    };

    /// The window `[start, end)`.
    pub const fn new(start: Micros, end: Micros) -> Self {
        Self { start, end }
    }

    /// Whether the two have an instant in common. Windows that only touch have none.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The smallest window that covers both.
    #[must_use]
    pub fn span(&self, other: &Self) -> Self {
        Self::new(self.start.min(other.start), self.end.max(other.end))
    }
}

impl Ord for Window {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.end, self.start).cmp(&(other.end, other.start))
    }
}

impl PartialOrd for Window {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::GLOBAL {
            f.write_str("global")
        } else {
            write!(f, "[{}, {})", self.start, self.end)
        }
    }
}

/// How events are put into windows. Lengths are microseconds and positive (`Strategy::check`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Windowing {
    /// One window for all of event time.
    #[default]
    Global,
    /// Windows side by side.
    Fixed {
        /// Length of a window.
        size: Micros,
        /// Windows begin at `offset`, `offset + size`, … ; any value, taken modulo `size`.
        offset: Micros,
    },
    /// Windows of `size` that begin every `period`; an event is in `size / period` of them.
    Sliding {
        /// Length of a window.
        size: Micros,
        /// From one start to the next; not longer than `size`.
        period: Micros,
        /// Windows begin at `offset`, `offset + period`, …; any value, taken modulo `period`.
        offset: Micros,
    },
    /// Bursts of activity of one key: events less than `gap` apart share a window.
    Session {
        /// A session ends this long after its last event.
        gap: Micros,
    },
}

impl Windowing {
    /// Adds the windows of an event at `at` to `out`, the earliest first. A session's window is the
    /// event's own, `[at, at + gap)`, which [`Panes`](super::Panes) merges.
    pub fn assign(&self, at: Micros, out: &mut Vec<Window>) {
        match *self {
            Self::Global => out.push(Window::GLOBAL),
            Self::Fixed { size, offset } => {
                let start = last_start(at, size, offset);
                out.push(window_at(start, size));
            }
            Self::Sliding {
                size,
                period,
                offset,
            } => {
                let (wide, step) = (i128::from(at), i128::from(period.max(1)));
                let last = last_start(at, period, offset);
                // The earliest start above `at - size`, counted in steps back from the last.
                let back = (last - (wide - i128::from(size)) - 1).div_euclid(step);
                let mut start = last - back.max(0) * step;
                while start <= last {
                    out.push(window_at(start, size));
                    start += step;
                }
            }
            Self::Session { gap } => out.push(Window::new(at, at.saturating_add(gap))),
        }
    }

    /// Whether windows of a key may merge.
    pub fn merges(&self) -> bool {
        matches!(self, Self::Session { .. })
    }

    /// In plain words: `fixed windows of 1h`.
    pub fn describe(&self) -> String {
        let from = |offset: Micros| match offset {
            0 => String::new(),
            offset => format!(", offset {}", in_words(offset)),
        };
        match *self {
            Self::Global => "one global window".into(),
            Self::Fixed { size, offset } => {
                format!("fixed windows of {}{}", in_words(size), from(offset))
            }
            Self::Sliding {
                size,
                period,
                offset,
            } => format!(
                "sliding windows of {}, one every {}{}",
                in_words(size),
                in_words(period),
                from(offset)
            ),
            Self::Session { gap } => {
                format!("sessions that end after a gap of {}", in_words(gap))
            }
        }
    }

    /// The event time below which all windows of an event end at or before `edge`: events below it
    /// are complete once everything that ends by `edge` is. For sessions, whose ends are not known
    /// beforehand, `edge` itself; for the global window nothing before the end of time.
    pub(super) fn complete_below(&self, edge: Micros) -> Option<Micros> {
        if edge == END_OF_TIME {
            return Some(END_OF_TIME);
        }
        match *self {
            Self::Global => None,
            Self::Session { .. } => Some(edge),
            Self::Fixed { size, offset } => Some(narrow(last_start(edge, size, offset))),
            Self::Sliding {
                size,
                period,
                offset,
            } => {
                let closed = last_start_wide(i128::from(edge) - i128::from(size), period, offset);
                Some(narrow(closed + i128::from(period)))
            }
        }
    }
}

impl fmt::Display for Windowing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// The last of the starts `offset + n * step` that is at or before `at`.
fn last_start(at: Micros, step: Micros, offset: Micros) -> i128 {
    last_start_wide(i128::from(at), step, offset)
}

fn last_start_wide(at: i128, step: Micros, offset: Micros) -> i128 {
    let step = i128::from(step.max(1));
    at - (at - i128::from(offset)).rem_euclid(step)
}

fn window_at(start: i128, size: Micros) -> Window {
    Window::new(narrow(start), narrow(start + i128::from(size)))
}

fn narrow(wide: i128) -> Micros {
    wide.clamp(i128::from(Micros::MIN), i128::from(Micros::MAX)) as Micros
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assigned(windowing: &Windowing, at: Micros) -> Vec<Window> {
        let mut out = Vec::new();
        windowing.assign(at, &mut out);
        out
    }

    #[test]
    fn fixed_windows_hold_their_start_and_not_their_end() {
        let fixed = Windowing::Fixed {
            size: 10,
            offset: 3,
        };
        assert_eq!(assigned(&fixed, 3), [Window::new(3, 13)]);
        assert_eq!(assigned(&fixed, 2), [Window::new(-7, 3)]);
        assert_eq!(assigned(&fixed, -7), [Window::new(-7, 3)]);
        assert_eq!(assigned(&fixed, -8), [Window::new(-17, -7)]);
    }

    #[test]
    fn sliding_windows_come_earliest_first() {
        let sliding = Windowing::Sliding {
            size: 10,
            period: 4,
            offset: 0,
        };
        let starts = |at| {
            assigned(&sliding, at)
                .iter()
                .map(|w| w.start)
                .collect::<Vec<_>>()
        };
        assert_eq!(starts(9), [0, 4, 8]);
        assert_eq!(starts(10), [4, 8]);
        assert_eq!(starts(-1), [-8, -4]);
    }

    #[test]
    fn the_ends_of_time_overflow_nothing() {
        let size = i64::MAX / 2;
        for at in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX - 1, i64::MAX] {
            for windowing in [
                Windowing::Fixed { size, offset: 7 },
                Windowing::Sliding {
                    size,
                    period: size / 3,
                    offset: i64::MIN,
                },
                Windowing::Session { gap: size },
            ] {
                for window in assigned(&windowing, at) {
                    assert!(window.start <= at, "{window} {at}");
                    assert!(at < window.end || at == i64::MAX, "{window} {at}");
                }
            }
        }
    }

    #[test]
    fn complete_below_names_only_closed_windows() {
        let fixed = Windowing::Fixed {
            size: 10,
            offset: 0,
        };
        assert_eq!(fixed.complete_below(29), Some(20));
        assert_eq!(fixed.complete_below(30), Some(30));
        assert_eq!(Windowing::Global.complete_below(30), None);
        assert_eq!(
            Windowing::Global.complete_below(END_OF_TIME),
            Some(END_OF_TIME)
        );
    }

    proptest! {
        #[test]
        fn an_event_is_in_exactly_the_windows_that_contain_it(
            at in -1000i64..1000, period in 1i64..20, more in 0i64..50, offset in -40i64..40,
        ) {
            let size = period + more;
            let sliding = Windowing::Sliding { size, period, offset };
            let expected: Vec<_> = (-200..200)
                .map(|n| offset + n * period)
                .chain((-3000..-200).map(|n| offset + n * period))
                .chain((200..3000).map(|n| offset + n * period))
                .filter(|start| *start <= at && at < start + size)
                .map(|start| Window::new(start, start + size))
                .collect();
            let mut expected = expected;
            expected.sort_unstable();
            prop_assert_eq!(assigned(&sliding, at), expected);
        }

        #[test]
        fn events_below_the_complete_edge_have_closed_windows_only(
            edge in -200i64..200, period in 1i64..20, more in 0i64..50, offset in -40i64..40,
        ) {
            let sliding = Windowing::Sliding { size: period + more, period, offset };
            let below = sliding.complete_below(edge).unwrap();
            let closed = |at| assigned(&sliding, at).iter().all(|w| w.end <= edge);
            prop_assert!(closed(below - 1), "below={below}");
            prop_assert!(!closed(below), "below={below} could be higher");
        }
    }
}

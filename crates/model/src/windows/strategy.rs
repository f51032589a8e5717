//! The answers to where, when and how, in one value: windowing, trigger, lateness, accumulation.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::trigger::Trigger;
use super::units::in_words;
use super::window::Windowing;
use crate::watermark::Micros;

/// An event may be in at most so many sliding windows.
const MOST_SLIDING: Micros = 100_000;

/// How the panes of a window relate to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accumulation {
    /// A pane holds what came since the last; readers add up.
    #[default]
    Discarding,
    /// A pane holds all of its window so far, and replaces the one before.
    Accumulating,
    /// As accumulating, and the pane before is taken back first.
    Retracting,
}

impl Accumulation {
    /// In plain words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Discarding => "each pane holds what is new (discarding)",
            Self::Accumulating => "each pane holds the whole window so far (accumulating)",
            Self::Retracting => {
                "each pane holds the whole window so far, and takes the one before back (retracting)"
            }
        }
    }
}

impl fmt::Display for Accumulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// Whether a window that closes emits a last pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closing {
    /// Only if elements came since the last firing.
    #[default]
    FireIfNonEmpty,
    /// Always, so that every window has a pane with `last`.
    FireAlways,
}

/// How windows are cut, when they fire and how their panes add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strategy {
    /// Where in event time.
    pub windowing: Windowing,
    /// When in processing time.
    pub trigger: Trigger,
    /// How far the watermark may pass a window's end, in microseconds, before the window closes
    /// and its elements are late. 0: the window closes when the watermark reaches its end.
    pub allowed_lateness: Micros,
    /// How panes relate.
    pub accumulation: Accumulation,
    /// The last pane.
    pub closing: Closing,
    /// An on-time pane even if nothing came since the last one, where the trigger fires at the
    /// watermark. (Windows in which no element ever was do not exist, and emit nothing.)
    pub empty_on_time: bool,
}

impl Strategy {
    /// # Errors
    /// The first mistake in it, for the user to read.
    pub fn check(&self) -> Result<(), StrategyError> {
        let positive = |what, value: Micros| {
            if value > 0 {
                Ok(())
            } else {
                Err(StrategyError::NotPositive { what, value })
            }
        };
        match self.windowing {
            Windowing::Global => {}
            Windowing::Fixed { size, .. } => positive("window size", size)?,
            Windowing::Sliding { size, period, .. } => {
                positive("window size", size)?;
                positive("window period", period)?;
                if period > size {
                    return Err(StrategyError::Gaps { size, period });
                }
                if size / period > MOST_SLIDING {
                    return Err(StrategyError::TooManyWindows {
                        windows: size / period,
                        most: MOST_SLIDING,
                    });
                }
            }
            Windowing::Session { gap } => positive("session gap", gap)?,
        }
        if self.allowed_lateness < 0 {
            return Err(StrategyError::NegativeLateness {
                value: self.allowed_lateness,
            });
        }
        self.trigger.check()
    }

    /// In plain words, in one line.
    pub fn describe(&self) -> String {
        let lateness = match self.allowed_lateness {
            0 => "no late elements".into(),
            lateness => format!("late elements up to {} after the end", in_words(lateness)),
        };
        let mut extras = String::new();
        if self.empty_on_time {
            extras.push_str("; on time also when empty");
        }
        if self.closing == Closing::FireAlways {
            extras.push_str("; a last pane always");
        }
        format!(
            "{}; fires {}; {lateness}; {}{extras}",
            self.windowing, self.trigger, self.accumulation
        )
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Why a strategy makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StrategyError {
    /// A length of time must be above 0.
    NotPositive {
        /// Which length.
        what: &'static str,
        /// Microseconds.
        value: Micros,
    },
    /// A count or size must be above 0.
    Zero {
        /// Which trigger.
        what: &'static str,
    },
    /// Sliding windows with gaps between them: elements would be in none.
    Gaps {
        /// Microseconds.
        size: Micros,
        /// Microseconds.
        period: Micros,
    },
    /// Each element would be in too many sliding windows.
    TooManyWindows {
        /// How many.
        windows: Micros,
        /// The most that is allowed.
        most: Micros,
    },
    /// Allowed lateness below 0.
    NegativeLateness {
        /// Microseconds.
        value: Micros,
    },
    /// A composition of no triggers.
    NoParts {
        /// Which composition.
        what: &'static str,
    },
    /// A trigger of too many parts.
    TooManyParts {
        /// How many.
        parts: usize,
        /// The most that is allowed.
        most: usize,
    },
    /// A part of a sequence comes after one that never ends.
    Unreachable {
        /// Which part, counted from 1.
        part: usize,
    },
    /// The `until` of a trigger never ends.
    EndlessUntil,
    /// An early or late trigger that waits for the watermark.
    WatermarkInPhase {
        /// `early` or `late`.
        what: &'static str,
    },
}

impl fmt::Display for StrategyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPositive { what, value } => {
                write!(f, "{what} must be above 0: value={}", in_words(*value))
            }
            Self::Zero { what } => write!(f, "a trigger cannot wait for nothing: {what}=0"),
            Self::Gaps { size, period } => write!(
                f,
                "sliding windows would leave gaps, and elements in no window: size={} period={}; \
                 make the period at most the size",
                in_words(*size),
                in_words(*period)
            ),
            Self::TooManyWindows { windows, most } => write!(
                f,
                "each element would be in too many sliding windows: windows={windows} most={most}; \
                 make the period longer"
            ),
            Self::NegativeLateness { value } => write!(
                f,
                "allowed lateness must not be below 0: value={}",
                in_words(*value)
            ),
            Self::NoParts { what } => write!(f, "a trigger `{what}` needs at least one part"),
            Self::TooManyParts { parts, most } => {
                write!(
                    f,
                    "the trigger has too many parts: parts={parts} most={most}"
                )
            }
            Self::Unreachable { part } => write!(
                f,
                "part {part} of a trigger `sequence` is never reached: the part before it never ends"
            ),
            Self::EndlessUntil => {
                f.write_str("the `until` of a trigger must fire once, and not repeat")
            }
            Self::WatermarkInPhase { what } => write!(
                f,
                "the `{what}` trigger waits for the watermark, which has a firing of its own: use a \
                 period, a count or bytes"
            ),
        }
    }
}

impl std::error::Error for StrategyError {}

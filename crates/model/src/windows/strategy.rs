//! The answers to where, when and how, in one value: windowing, trigger, lateness, accumulation.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::trigger::{AT_END, Trigger};
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
        let mut fires = self.trigger.describe();
        if self.windowing == Windowing::Global {
            fires = fires.replace(AT_END, "when all input has ended");
        }
        format!(
            "{}; fires {fires}; {lateness}; {}{extras}",
            self.windowing, self.accumulation
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watermark::Micros;

    const MINUTE: Micros = 60_000_000;

    fn with(trigger: Trigger) -> Strategy {
        Strategy {
            windowing: Windowing::Fixed {
                size: 60 * MINUTE,
                offset: 15 * MINUTE,
            },
            trigger,
            ..Strategy::default()
        }
    }

    #[test]
    fn words_say_where_when_and_how() {
        let every = MINUTE / 2;
        let period = Trigger::Period {
            every,
            aligned: true,
        };
        let mut strategy = with(Trigger::phases(Some(period), Some(Trigger::Count(1))));
        strategy.allowed_lateness = 90 * MINUTE;
        strategy.accumulation = Accumulation::Accumulating;
        assert_eq!(
            strategy.to_string(),
            "fixed windows of 1h, offset 15m; fires early, again and again at the next full 30s of \
             processing time; on time, when the watermark passes the window's end; late, again and \
             again at each new element; late elements up to 1h30m after the end; each pane holds \
             the whole window so far (accumulating)"
        );
        assert_eq!(
            Strategy::default().to_string(),
            "one global window; fires when all input has ended, and then with each batch of late \
             elements; no late elements; each pane holds what is new (discarding)"
        );
        let mixed = Trigger::Until {
            repeat: Box::new(Trigger::Any(vec![
                Trigger::Bytes(1 << 20),
                Trigger::Count(9),
            ])),
            until: Box::new(Trigger::AtWatermark),
        };
        assert_eq!(
            mixed.to_string(),
            "again and again once, when one holds: (after 1MiB of new elements; or after 9 new \
             elements), until it fires when the watermark passes the window's end and no more"
        );
    }

    #[test]
    fn mistakes_are_named() {
        let sliding = Strategy {
            windowing: Windowing::Sliding {
                size: 86_400_000_000,
                period: 1000,
                offset: 0,
            },
            ..Strategy::default()
        };
        let zero = Trigger::Period {
            every: 0,
            aligned: false,
        };
        let mut many = Trigger::Count(1);
        for _ in 0..70 {
            many = many.repeated();
        }
        for (strategy, said) in [
            (sliding, "windows=86400000 most=100000"),
            (
                with(zero),
                "period of the trigger must be above 0: value=0s",
            ),
            (with(Trigger::Bytes(0)), "bytes=0"),
            (with(Trigger::All(vec![])), "`all` needs"),
            (with(Trigger::Sequence(vec![])), "`sequence` needs"),
            (with(many), "parts=71 most=60"),
            (
                with(Trigger::Any(vec![Trigger::Count(1), Trigger::Count(0)])),
                "count=0",
            ),
        ] {
            let error = strategy.check().map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|e| e.contains(said)), "{error:?}");
        }
        assert_eq!(Strategy::default().check(), Ok(()));
    }
}

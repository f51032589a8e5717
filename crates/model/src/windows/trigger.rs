//! Triggers: when a window's contents are emitted as a pane. What each does exactly is in `machine`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::strategy::StrategyError;
use super::units::{in_bytes, in_words};
use crate::watermark::Micros;

/// What [`Trigger::AtWatermark`] is in words.
pub(super) const AT_END: &str = "when the watermark passes the window's end";

/// More parts than this in one trigger are refused.
const MOST_PARTS: usize = 60;

/// When a window fires. Without [`Trigger::Repeat`] a trigger fires once; what comes after it has
/// finished waits until the window closes.
///
/// Elements count in batches: `Count(2)` fires once for a batch of five, with all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// When the watermark reaches the window's end; from then on it is ready whenever asked.
    AtWatermark,
    /// Some processing time after the first element since the last firing.
    Period {
        /// How long after, in microseconds.
        every: Micros,
        /// At the next full multiple of `every` (counted from the epoch) after that element,
        /// instead of `every` after it; then windows fire together.
        aligned: bool,
    },
    /// When at least so many elements came since the last firing.
    Count(u64),
    /// When at least so many bytes came since the last firing.
    Bytes(u64),
    /// Once, when all parts are ready. Beam: `AfterAll`.
    All(Vec<Trigger>),
    /// Once, when one part is ready. Beam: `AfterFirst`.
    Any(Vec<Trigger>),
    /// As the first part until that has finished, then as the second, … Beam: `AfterEach`.
    Sequence(Vec<Trigger>),
    /// Over and over. Beam: `Repeatedly.forever`.
    Repeat(Box<Trigger>),
    /// `repeat` over and over, until `until` is ready, which fires and ends it. A count in `until`
    /// is over all firings.
    /// Beam: `Repeatedly.forever(repeat).orFinally(until)`.
    Until {
        /// Fires over and over.
        repeat: Box<Trigger>,
        /// Fires once, and ends it.
        until: Box<Trigger>,
    },
    /// `early` over and over until the watermark reaches the window's end, then once, then `late`
    /// over and over. Beam: `AfterWatermark.pastEndOfWindow` with early and late firings.
    Phases {
        /// None: nothing before the watermark.
        early: Option<Box<Trigger>>,
        /// None: late elements wait until the window closes.
        late: Option<Box<Trigger>>,
    },
}

impl Default for Trigger {
    /// When the watermark reaches the end, and then for every batch of late elements.
    fn default() -> Self {
        Self::Repeat(Box::new(Self::AtWatermark))
    }
}

impl Trigger {
    /// [`Trigger::Phases`] without the boxes.
    pub fn phases(early: Option<Self>, late: Option<Self>) -> Self {
        Self::Phases {
            early: early.map(Box::new),
            late: late.map(Box::new),
        }
    }

    /// [`Trigger::Repeat`] without the box.
    #[must_use]
    pub fn repeated(self) -> Self {
        Self::Repeat(Box::new(self))
    }

    /// In plain words.
    pub fn describe(&self) -> String {
        let list = |parts: &[Self], glue: &str| {
            let words: Vec<_> = parts.iter().map(Self::describe).collect();
            format!("({})", words.join(glue))
        };
        match self {
            Self::AtWatermark => AT_END.into(),
            Self::Period {
                every,
                aligned: false,
            } => format!("{} after the first new element", in_words(*every)),
            Self::Period { every, .. } => {
                format!("at the next full {} of processing time", in_words(*every))
            }
            Self::Count(1) => "at each new element".into(),
            Self::Count(least) => format!("after {least} new elements"),
            Self::Bytes(least) => format!("after {} of new elements", in_bytes(*least)),
            Self::All(parts) => format!("once, when all hold: {}", list(parts, "; and ")),
            Self::Any(parts) => format!("once, when one holds: {}", list(parts, "; or ")),
            Self::Sequence(parts) => format!("one after the other: {}", list(parts, "; then ")),
            Self::Repeat(part) if **part == Self::AtWatermark => {
                format!("{AT_END}, and then with each batch of late elements")
            }
            Self::Repeat(part) => format!("again and again {}", part.describe()),
            Self::Until { repeat, until } => format!(
                "again and again {}, until it fires {} and no more",
                repeat.describe(),
                until.describe()
            ),
            Self::Phases { early, late } => {
                let early = early.as_ref().map_or(String::new(), |early| {
                    format!("early, again and again {}; ", early.describe())
                });
                let late = late
                    .as_ref()
                    .map_or("late elements when the window closes".into(), |late| {
                        format!("late, again and again {}", late.describe())
                    });
                format!("{early}on time, {AT_END}; {late}")
            }
        }
    }

    /// # Errors
    /// The first mistake in it or its parts.
    pub(super) fn check(&self) -> Result<(), StrategyError> {
        let parts = self.parts();
        if parts > MOST_PARTS {
            return Err(StrategyError::TooManyParts {
                parts,
                most: MOST_PARTS,
            });
        }
        self.check_part()
    }

    fn check_part(&self) -> Result<(), StrategyError> {
        match self {
            Self::Period { every, .. } if *every <= 0 => Err(StrategyError::NotPositive {
                what: "period of the trigger",
                value: *every,
            }),
            Self::Count(0) => Err(StrategyError::Zero { what: "count" }),
            Self::Bytes(0) => Err(StrategyError::Zero { what: "bytes" }),
            Self::AtWatermark | Self::Period { .. } | Self::Count(_) | Self::Bytes(_) => Ok(()),
            Self::All(parts) if parts.is_empty() => Err(StrategyError::NoParts { what: "all" }),
            Self::Any(parts) if parts.is_empty() => Err(StrategyError::NoParts { what: "any" }),
            Self::Sequence(parts) if parts.is_empty() => {
                Err(StrategyError::NoParts { what: "sequence" })
            }
            Self::Sequence(parts) => {
                let endless = parts.iter().position(Self::endless);
                match endless {
                    Some(at) if at + 1 < parts.len() => {
                        Err(StrategyError::Unreachable { part: at + 2 })
                    }
                    _ => parts.iter().try_for_each(Self::check_part),
                }
            }
            Self::All(parts) | Self::Any(parts) => parts.iter().try_for_each(Self::check_part),
            Self::Repeat(part) => part.check_part(),
            Self::Until { repeat, until } => {
                if until.endless() {
                    return Err(StrategyError::EndlessUntil);
                }
                repeat.check_part()?;
                until.check_part()
            }
            Self::Phases { early, late } => {
                for (what, part) in [("early", early), ("late", late)] {
                    let Some(part) = part else { continue };
                    if part.waits_for_watermark() {
                        return Err(StrategyError::WatermarkInPhase { what });
                    }
                    part.check_part()?;
                }
                Ok(())
            }
        }
    }

    /// Never finishes by itself.
    fn endless(&self) -> bool {
        match self {
            Self::Repeat(_) | Self::Phases { late: Some(_), .. } => true,
            Self::Sequence(parts) => parts.iter().any(Self::endless),
            _ => false,
        }
    }

    /// Cannot fire before the watermark reaches the window's end, whatever comes.
    fn waits_for_watermark(&self) -> bool {
        match self {
            Self::AtWatermark | Self::Phases { .. } => true,
            Self::Period { .. } | Self::Count(_) | Self::Bytes(_) => false,
            Self::All(parts) => parts.iter().any(Self::waits_for_watermark),
            Self::Any(parts) => !parts.is_empty() && parts.iter().all(Self::waits_for_watermark),
            Self::Sequence(parts) => parts.first().is_some_and(Self::waits_for_watermark),
            Self::Repeat(part) => part.waits_for_watermark(),
            Self::Until { repeat, until } => {
                repeat.waits_for_watermark() && until.waits_for_watermark()
            }
        }
    }

    fn parts(&self) -> usize {
        match self {
            Self::AtWatermark | Self::Period { .. } | Self::Count(_) | Self::Bytes(_) => 1,
            Self::All(parts) | Self::Any(parts) | Self::Sequence(parts) => {
                1 + parts.iter().map(Self::parts).sum::<usize>()
            }
            Self::Repeat(part) => 1 + part.parts(),
            Self::Until { repeat, until } => 1 + repeat.parts() + until.parts(),
            // Two: one more for where it is.
            Self::Phases { early, late } => {
                2 + early.as_ref().map_or(0, |part| part.parts())
                    + late.as_ref().map_or(0, |part| part.parts())
            }
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

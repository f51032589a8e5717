//! The sections `window` and `aggregate`: what they look like in the file, and what the engine makes
//! of them.

use std::fmt;

use calve_connect::units::{ByteSize, Span};
use calve_engine::{Error, Result, windows::LateRows};
use calve_model::{
    Micros,
    windows::{Accumulation, Closing, Strategy, Trigger, Windowing},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, value::MapAccessDeserializer},
};

/// How rows are grouped in event time, and when a group becomes visible. Exactly one of `fixed`,
/// `sliding`, `session` and `global`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WindowConfig {
    /// Windows of this size, one after the other: `1h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fixed: Option<Span>,
    /// Windows of a size that begin once in a period, and overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sliding: Option<SlidingConfig>,
    /// Sessions of a key: events nearer to each other than this are in one window. Needs `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<Span>,
    /// One window for all time; what fires it is `trigger`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) global: Option<GlobalConfig>,
    /// Fixed and sliding windows begin this much after a multiple of their size or period, counted
    /// from 1970-01-01T00:00:00Z.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<Span>,
    /// Columns of the rows: each value has windows of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) key: Vec<String>,
    /// The column of the rows (after the transform) that holds event time. Default: the one named
    /// as `event_time.column`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) column: Option<String>,
    /// A window closes this long after the watermark has reached its end; what comes then is late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_lateness: Option<Span>,
    /// How the panes of a window add up. Rows as they are: always `discarding`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accumulation: Option<AccumulationConfig>,
    /// Accumulating and retracting panes are appended as changes with a column `_op`: `+` adds a
    /// row, `-` takes it back. Without it they replace earlier panes, which needs `changes` with a key
    /// in an Iceberg table.
    pub(crate) changelog: bool,
    /// When a window fires. Default: at the watermark, and then for late events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trigger: Option<TriggerConfig>,
    /// A last pane when a window closes: only if something is new (the default), or always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) closing: Option<ClosingConfig>,
    /// What becomes of late events: a table of their own named `…_late` (`side`, the default),
    /// nothing (`drop`), or rows of the table (`append`). They are counted in each case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) late: Option<LateConfig>,
    /// Rows say which pane they belong to: `_pane_index`, `_pane_timing`, `_pane_last`.
    pub(crate) pane_columns: bool,
}

/// Windows that overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlidingConfig {
    /// How long a window is.
    pub(crate) size: Span,
    /// How often one begins.
    pub(crate) period: Span,
}

/// No options yet: `global: {}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GlobalConfig {}

/// How the panes of a window add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AccumulationConfig {
    /// A pane holds what is new; readers add up.
    Discarding,
    /// A pane holds all of the window so far.
    Accumulating,
    /// As accumulating, and the pane before is taken back.
    Retracting,
}

/// The last pane of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClosingConfig {
    /// Only if something is new.
    IfNotEmpty,
    /// Always.
    Always,
}

/// What becomes of late events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LateConfig {
    /// A table of their own.
    Side,
    /// Counted and left out.
    Drop,
    /// Rows of the table, of no pane.
    Append,
}

/// When a window fires: `at_watermark`, or a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum TriggerConfig {
    /// When the watermark reaches the window's end.
    AtWatermark(AtWatermark),
    /// Everything else.
    Of(Box<TriggerMap>),
}

/// The word `at_watermark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AtWatermark {
    /// The only word.
    AtWatermark,
}

/// One of `every`, `count`, `bytes`, `all`, `any`, `sequence`, `repeat` (with `until`); or the
/// shorthand of `early`, `on_time` and `late`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TriggerMap {
    /// So much processing time after the first event since the last firing.
    #[serde(skip_serializing_if = "Option::is_none")]
    every: Option<Span>,
    /// With `every`: at full multiples of it, so that windows fire together.
    #[serde(skip_serializing_if = "Option::is_none")]
    aligned: Option<bool>,
    /// After so many events since the last firing (counted at the end of a batch).
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// After so many bytes since the last firing (measured at the end of a batch).
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<ByteSize>,
    /// Once, when all of these are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<Vec<TriggerConfig>>,
    /// Once, when one of these is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    any: Option<Vec<TriggerConfig>>,
    /// One after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<Vec<TriggerConfig>>,
    /// Again and again.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat: Option<TriggerConfig>,
    /// With `repeat`: fires once more, and ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<TriggerConfig>,
    /// Again and again before the watermark reaches the window's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    early: Option<TriggerConfig>,
    /// When the watermark reaches the window's end: a pane if there is something new (the default),
    /// or always.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_time: Option<ClosingConfig>,
    /// Again and again for late events.
    #[serde(skip_serializing_if = "Option::is_none")]
    late: Option<TriggerConfig>,
}

impl<'de> Deserialize<'de> for TriggerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TriggerConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("at_watermark, or a map such as {every: 30s} or {early: {every: 30s}, late: {count: 1}}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TriggerConfig, E> {
                match text {
                    "at_watermark" => Ok(TriggerConfig::AtWatermark(AtWatermark::AtWatermark)),
                    _ => Err(E::unknown_variant(text, &["at_watermark"])),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TriggerConfig, A::Error> {
                TriggerMap::deserialize(MapAccessDeserializer::new(map))
                    .map(|map| TriggerConfig::Of(Box::new(map)))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for TriggerConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TriggerConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let word = generator.subschema_for::<AtWatermark>();
        let map = generator.subschema_for::<TriggerMap>();
        schemars::json_schema!({
            "description": "When a window fires: `at_watermark`, or a map.",
            "anyOf": [word, map]
        })
    }
}

impl TriggerConfig {
    fn resolve(&self, path: &str) -> Result<Trigger> {
        match self {
            Self::AtWatermark(_) => Ok(Trigger::AtWatermark),
            Self::Of(map) => map.resolve(path),
        }
    }
}

impl TriggerMap {
    fn resolve(&self, path: &str) -> Result<Trigger> {
        let phases = self.early.is_some() || self.on_time.is_some() || self.late.is_some();
        let given = [
            ("every", self.every.is_some()),
            ("count", self.count.is_some()),
            ("bytes", self.bytes.is_some()),
            ("all", self.all.is_some()),
            ("any", self.any.is_some()),
            ("sequence", self.sequence.is_some()),
            ("repeat", self.repeat.is_some()),
            ("early, on_time, late", phases),
        ];
        let given: Vec<&str> = given
            .iter()
            .filter(|(_, is)| *is)
            .map(|(n, _)| *n)
            .collect();
        if given.len() != 1 {
            let what = if given.is_empty() {
                "is empty".to_owned()
            } else {
                format!("has several: {}", given.join("; "))
            };
            return Err(Error::config(format!("{path} {what}")).hint(
                "give one of every, count, bytes, all, any, sequence, repeat, or early/on_time/late; \
                 several make one with `any: [ … ]` or `all: [ … ]`",
            ));
        }
        if self.aligned.is_some() && self.every.is_none() {
            return Err(Error::config(format!(
                "{path}.aligned is given without every"
            )));
        }
        if self.until.is_some() && self.repeat.is_none() {
            return Err(Error::config(format!(
                "{path}.until is given without repeat"
            )));
        }
        let parts = |name: &str, parts: &[TriggerConfig]| -> Result<Vec<Trigger>> {
            let parts = parts.iter().enumerate();
            parts
                .map(|(n, part)| part.resolve(&format!("{path}.{name}[{n}]")))
                .collect()
        };
        let one = |name: &str, part: &Option<TriggerConfig>| -> Result<Option<Box<Trigger>>> {
            let part = part.as_ref();
            part.map(|part| part.resolve(&format!("{path}.{name}")).map(Box::new))
                .transpose()
        };
        if let Some(every) = self.every {
            let aligned = self.aligned.unwrap_or(false);
            return Ok(Trigger::Period {
                every: micros(every),
                aligned,
            });
        }
        if let Some(count) = self.count {
            return Ok(Trigger::Count(count));
        }
        if let Some(bytes) = self.bytes {
            return Ok(Trigger::Bytes(bytes.0));
        }
        if let Some(all) = &self.all {
            return Ok(Trigger::All(parts("all", all)?));
        }
        if let Some(any) = &self.any {
            return Ok(Trigger::Any(parts("any", any)?));
        }
        if let Some(sequence) = &self.sequence {
            return Ok(Trigger::Sequence(parts("sequence", sequence)?));
        }
        if let Some(repeat) = one("repeat", &self.repeat)? {
            return Ok(match one("until", &self.until)? {
                None => Trigger::Repeat(repeat),
                Some(until) => Trigger::Until { repeat, until },
            });
        }
        Ok(Trigger::Phases {
            early: one("early", &self.early)?,
            late: one("late", &self.late)?,
        })
    }
}

fn micros(span: Span) -> Micros {
    i64::try_from(span.0.as_micros()).unwrap_or(i64::MAX)
}

impl WindowConfig {
    /// Windows, trigger, lateness and accumulation.
    ///
    /// # Errors
    /// `Config`, with the key and what to do.
    pub(crate) fn strategy(&self) -> Result<Strategy> {
        let offset = self.offset.map_or(0, micros);
        let kinds = [
            self.fixed.map(|size| Windowing::Fixed {
                size: micros(size),
                offset,
            }),
            self.sliding.as_ref().map(|sliding| Windowing::Sliding {
                size: micros(sliding.size),
                period: micros(sliding.period),
                offset,
            }),
            self.session
                .map(|gap| Windowing::Session { gap: micros(gap) }),
            self.global.as_ref().map(|_| Windowing::Global),
        ];
        let mut kinds = kinds.into_iter().flatten();
        let (Some(windowing), None) = (kinds.next(), kinds.next()) else {
            return Err(Error::config(
                "window needs exactly one of fixed, sliding, session, global",
            )
            .hint("for example `window: { fixed: 1h }`"));
        };
        let aligned = matches!(
            windowing,
            Windowing::Fixed { .. } | Windowing::Sliding { .. }
        );
        if self.offset.is_some() && !aligned {
            return Err(Error::config(
                "window.offset is for fixed and sliding windows",
            ));
        }
        if matches!(windowing, Windowing::Session { .. }) && self.key.is_empty() {
            return Err(
                Error::config("window.session needs window.key: a session is one key's").hint(
                    "name the columns whose values have sessions of their own: `key: [user_id]`",
                ),
            );
        }
        let trigger = self.trigger.as_ref();
        let on_time = match trigger {
            Some(TriggerConfig::Of(map)) => map.on_time,
            _ => None,
        };
        let strategy = Strategy {
            windowing,
            trigger: trigger
                .map(|trigger| trigger.resolve("window.trigger"))
                .transpose()?
                .unwrap_or_default(),
            allowed_lateness: self.allowed_lateness.map_or(0, micros),
            accumulation: match self.accumulation {
                None | Some(AccumulationConfig::Discarding) => Accumulation::Discarding,
                Some(AccumulationConfig::Accumulating) => Accumulation::Accumulating,
                Some(AccumulationConfig::Retracting) => Accumulation::Retracting,
            },
            closing: match self.closing {
                None | Some(ClosingConfig::IfNotEmpty) => Closing::FireIfNonEmpty,
                Some(ClosingConfig::Always) => Closing::FireAlways,
            },
            empty_on_time: on_time == Some(ClosingConfig::Always),
        };
        strategy
            .check()
            .map_err(|error| Error::config(format!("window: {error}")))?;
        Ok(strategy)
    }

    /// What becomes of late rows.
    pub(crate) fn late(&self) -> LateRows {
        match self.late {
            None | Some(LateConfig::Side) => LateRows::Side,
            Some(LateConfig::Drop) => LateRows::Drop,
            Some(LateConfig::Append) => LateRows::Append,
        }
    }

    /// Checks it beside the other sections: `event_time` (its column) and `aggregate`.
    ///
    /// # Errors
    /// `Config`, with the key and what to do.
    pub(crate) fn validate(
        &self,
        event_time: Option<&str>,
        aggregate: bool,
        changes: bool,
    ) -> Result<()> {
        let strategy = self.strategy()?;
        if event_time.is_none() {
            let what = if strategy.windowing != Windowing::Global {
                Some("windows are cut in event time, and there is no event_time")
            } else if self.allowed_lateness.is_some() {
                Some(
                    "window.allowed_lateness needs event_time: without it there is no watermark, and nothing is late",
                )
            } else {
                None
            };
            if let Some(what) = what {
                return Err(Error::config(what).hint(
                    "say which column holds it: `event_time: { column: ts, unit: s, max_delay: 10s }`",
                ));
            }
        }
        let replaces = strategy.accumulation != Accumulation::Discarding;
        if replaces && !aggregate {
            return Err(Error::config(
                "window.accumulation is for aggregates: rows as they are are appended once, in one pane",
            )
            .hint("leave `accumulation` out, or add `aggregate: { sql: … }`"));
        }
        if replaces && !self.changelog && !changes {
            return Err(Error::config(
                "window.accumulation replaces rows of the table, which has no key to find them by",
            )
            .hint(
                "name what groups the aggregate in an Iceberg table: `changes: { key: [window_start, …] }`; or \
                 append the panes as changes, with a column `_op`: `changelog: true`; or let readers add up: \
                 `accumulation: discarding`",
            ));
        }
        if changes && (self.changelog || !replaces) {
            return Err(Error::config(
                "sink.iceberg.changes with windows replaces the earlier panes of an aggregate, and here there is \
                 nothing to replace",
            )
            .hint(
                "write `accumulation: retracting` (or accumulating) without `changelog`; or leave `changes` out",
            ));
        }
        let sessions = matches!(strategy.windowing, Windowing::Session { .. });
        if changes && sessions && strategy.accumulation == Accumulation::Accumulating {
            return Err(Error::config(
                "accumulating sessions leave the rows of sessions that were merged into others",
            )
            .hint("write `accumulation: retracting`, which takes them back"));
        }
        if self.changelog && !replaces {
            return Err(Error::config(
                "window.changelog is for accumulation: accumulating or retracting",
            ));
        }
        if aggregate && self.late() == LateRows::Append {
            return Err(
                Error::config("window.late: append is for rows as they are: an aggregate's table has other columns")
                    .hint("take `late: side`, or raise `allowed_lateness`"),
            );
        }
        Ok(())
    }
}

/// What is made of the rows of a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AggregateConfig {
    /// One SELECT over the table `events` (the rows after the transform, with `window_start` and
    /// `window_end`), which groups by both and by whatever else.
    pub(crate) sql: String,
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;

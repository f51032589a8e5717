//! Sizes and durations as people write them: `1MiB`, `64KB`, `500ms`, `10s`, `1h`; units of numbers that
//! are times.

use std::{borrow::Cow, fmt, time::Duration};

use calve_engine::event_time::Unit;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes: an integer, or a number with KB, MB, GB (powers of 1000) or KiB, MiB, GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of processing time: a number with ms, s, m, h or d.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Unit of times that are numbers, since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

impl From<TimeUnit> for Unit {
    fn from(unit: TimeUnit) -> Self {
        match unit {
            TimeUnit::S => Self::Seconds,
            TimeUnit::Ms => Self::Millis,
            TimeUnit::Us => Self::Micros,
            TimeUnit::Ns => Self::Nanos,
        }
    }
}

const SIZES: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];
const SPANS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Number and unit of `text`, the unit looked up in `units`; rounded down.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*factor);
    }
    let value = number.parse::<f64>().ok()? * *factor as f64;
    (value.is_finite() && value < 1e18).then_some(value as u64)
}

/// The largest unit that divides `value`.
fn print(value: u64, units: &[(&str, u64)]) -> String {
    let best = units
        .iter()
        .filter(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor)
        .unwrap_or(&units[0]);
    format!("{}{}", value / best.1, best.0)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = [
            ("", 1),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
        ];
        f.write_str(&print(self.0, &binary))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self.0.as_millis() as u64, &SPANS))
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = parse(text, &SIZES).map(Self);
        size.ok_or_else(|| format!("`{text}` is not a size; write for example 64KiB, 1MiB, 2GB"))
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = parse(text, &SPANS).map(|ms| Self(Duration::from_millis(ms)));
        span.ok_or_else(|| format!("`{text}` is not a duration; write for example 500ms, 10s, 1h"))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 1MiB")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: bytes, or a number with KB, MB, GB, KiB, MiB or GiB.",
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": "^[0-9.]+ *([KkMmGg]?i?[Bb])?$"
        })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration: a number with ms, s, m, h or d.",
            "type": "string",
            "pattern": "^[0-9.]+ *(ms|s|m|h|d)$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_and_print() {
        let size = |text: &str| text.parse::<ByteSize>().map(|s| s.0);
        assert_eq!(size("1MiB"), Ok(1 << 20));
        assert_eq!(size("1.5 KiB"), Ok(1536));
        assert_eq!(size("2kb"), Ok(2000));
        assert_eq!(size("17"), Ok(17));
        assert!(size("1 parsec").is_err() && size("").is_err() && size("-1").is_err());
        assert_eq!(ByteSize(1 << 20).to_string(), "1MiB");
        assert_eq!(ByteSize(0).to_string(), "0");
        let span = |text: &str| text.parse::<Span>().map(|s| s.0);
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("1.5h"), Ok(Duration::from_mins(90)));
        assert!(
            span("10").is_err(),
            "a duration without a unit is ambiguous"
        );
        assert_eq!(Span(Duration::from_secs(90)).to_string(), "90s");
        for (text, bytes) in [("\"1MiB\"", 1 << 20), ("77", 77)] {
            let read: ByteSize = serde_json::from_str(text).expect(text);
            assert_eq!(read.0, bytes);
        }
    }
}

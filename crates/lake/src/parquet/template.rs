//! Parses a layout: literal text and `{fields}`, with presets.

use calve_engine::error::{Error, Result};
use chrono::format::{Fixed, Item, Numeric, StrftimeItems};

use super::config::ParquetConfig;

/// A piece of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Column(String),
    Time {
        column: String,
        format: String,
        unit: Granularity,
    },
    Seq,
    Epoch,
    Shard,
}

/// The finest thing that a time format shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Granularity {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Year,
}

/// The parts of a configuration's layout, ending in a file name with `Part::Seq`.
pub(crate) fn parse(config: &ParquetConfig) -> Result<Vec<Part>> {
    let layout = config.layout.as_deref().unwrap_or_default();
    let time = || {
        config.time_column.as_deref().ok_or_else(|| {
            Error::config(format!("layout needs a time column: layout={layout}"))
                .hint("set event_time.column, or time_column beside the layout")
        })
    };
    let date = |t: &str| format!("year={{{t}:%Y}}/month={{{t}:%m}}/day={{{t}:%d}}");
    let template = match layout {
        "date" => date(time()?),
        "date_hour" => format!("{}/hour={{{}:%H}}", date(time()?), time()?),
        "date_hour_type" => {
            let kind = config.type_column.as_deref().unwrap_or("event_type");
            format!(
                "{}/hour={{{}:%H}}/event_type={{{kind}}}",
                date(time()?),
                time()?
            )
        }
        other => other.to_owned(),
    };
    let bad = |why: &str| {
        Error::config(format!("layout does not parse: {why}: layout={layout}"))
            .hint("for example region={region}/events-{ts:%Y-%m-%d-%H}-{seq}.parquet")
    };
    let mut parts = Vec::new();
    let mut rest = template.as_str();
    while let Some(open) = rest.find(['{', '}']) {
        let (text, from) = rest.split_at(open);
        if from.starts_with('}') {
            return Err(bad("`}` without `{`"));
        }
        let (field, behind) = from[1..]
            .split_once('}')
            .ok_or_else(|| bad("`{` without `}`"))?;
        push_text(&mut parts, text);
        parts.push(match field.split_once(':') {
            _ if field.is_empty() || field.contains('{') => return Err(bad("empty field")),
            Some((column, format)) => {
                let unit = granularity(format).ok_or_else(|| bad("unknown time format"))?;
                Part::Time {
                    column: column.to_owned(),
                    format: format.to_owned(),
                    unit,
                }
            }
            None => match field {
                "seq" => Part::Seq,
                "epoch" => Part::Epoch,
                "shard" => Part::Shard,
                column => Part::Column(column.to_owned()),
            },
        });
        rest = behind;
    }
    push_text(&mut parts, rest);

    let literal = |text: &str| {
        text.split('/')
            .any(|s| s == "." || s == ".." || s.starts_with("_calve"))
            || text.chars().any(char::is_control)
    };
    if template.starts_with('/') || template.contains("//") {
        return Err(bad("empty folder name"));
    }
    if parts
        .iter()
        .any(|part| matches!(part, Part::Text(text) if literal(text)))
    {
        return Err(bad("folder names `.`, `..` and `_calve` are not allowed"));
    }
    if parts.iter().filter(|part| **part == Part::Seq).count() > 1 {
        return Err(bad("`{seq}` twice"));
    }
    complete(&mut parts);
    Ok(parts)
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

/// Adds what a template may leave out: a file name, and `{seq}`.
fn complete(parts: &mut Vec<Part>) {
    const ENDING: &str = ".parquet";
    let is_file = matches!(parts.last(), Some(Part::Text(text)) if text.ends_with(ENDING));
    if !is_file {
        match parts.last_mut() {
            None => {}
            Some(Part::Text(text)) if text.ends_with('/') => {}
            Some(_) => push_text(parts, "/"),
        }
        let named = parts.contains(&Part::Seq);
        push_text(parts, if named { "part" } else { "part-" });
        if !named {
            parts.push(Part::Seq);
        }
        push_text(parts, ENDING);
    } else if !parts.contains(&Part::Seq) {
        if let Some(Part::Text(text)) = parts.last_mut() {
            text.truncate(text.len() - ENDING.len());
            let dash = if text.is_empty() || !text.ends_with('/') {
                "-"
            } else {
                ""
            };
            text.push_str(dash);
        }
        parts.push(Part::Seq);
        push_text(parts, ENDING);
    }
}

/// The finest unit in a time format; none when it does not parse or shows parts of a second.
fn granularity(format: &str) -> Option<Granularity> {
    let mut finest = Granularity::Year;
    for item in StrftimeItems::new(format) {
        let unit = match item {
            Item::Literal(_) | Item::OwnedLiteral(_) | Item::Space(_) | Item::OwnedSpace(_) => {
                continue;
            }
            Item::Numeric(numeric, _) => match numeric {
                Numeric::Year | Numeric::YearDiv100 | Numeric::YearMod100 => Granularity::Year,
                Numeric::Month | Numeric::Quarter => Granularity::Month,
                Numeric::Hour | Numeric::Hour12 => Granularity::Hour,
                Numeric::Minute => Granularity::Minute,
                Numeric::Second | Numeric::Timestamp => Granularity::Second,
                Numeric::Nanosecond => return None,
                _ => Granularity::Day,
            },
            Item::Fixed(fixed) => match fixed {
                Fixed::ShortMonthName | Fixed::LongMonthName => Granularity::Month,
                Fixed::ShortWeekdayName | Fixed::LongWeekdayName => Granularity::Day,
                Fixed::LowerAmPm | Fixed::UpperAmPm => Granularity::Hour,
                Fixed::TimezoneName
                | Fixed::TimezoneOffset
                | Fixed::TimezoneOffsetColon
                | Fixed::TimezoneOffsetZ => continue,
                _ => return None,
            },
            Item::Error => return None,
        };
        finest = finest.min(unit);
    }
    (!format.is_empty()).then_some(finest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(layout: &str) -> ParquetConfig {
        ParquetConfig {
            path: "out".into(),
            layout: Some(layout.into()),
            time_column: Some("ts".into()),
            type_column: None,
            keep_columns: false,
        }
    }

    #[test]
    fn the_unit_is_the_finest_shown() {
        for (format, unit) in [
            ("%Y", Some(Granularity::Year)),
            ("%Y-%m", Some(Granularity::Month)),
            ("%Y/%b", Some(Granularity::Month)),
            ("%j", Some(Granularity::Day)),
            ("%Y-%m-%d-%H", Some(Granularity::Hour)),
            ("%F %T", Some(Granularity::Second)),
            ("%H:%M", Some(Granularity::Minute)),
            ("%f", None),
            ("%Q", None),
            ("", None),
        ] {
            assert_eq!(granularity(format), unit, "{format}");
        }
    }

    #[test]
    fn hostile_templates_are_refused() {
        for bad in [
            "../{a}",
            "a/../{b}",
            "/etc/{a}",
            "a//{b}",
            "{a",
            "a}",
            "{}",
            "{ts:%Q}",
            "_calve/{a}",
            "{seq}-{seq}",
            "./{a}",
        ] {
            assert!(parse(&config(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_name_and_seq_are_added() {
        let ends = |layout: &str| {
            let parts = parse(&config(layout)).expect(layout);
            parts[parts.len().saturating_sub(3)..].to_vec()
        };
        let text = |text: &str| Part::Text(text.into());
        assert_eq!(ends(""), [text("part-"), Part::Seq, text(".parquet")]);
        assert_eq!(ends("r={r}"), [text("part-"), Part::Seq, text(".parquet")]);
        assert_eq!(
            ends("r={r}/x.parquet"),
            [text("/x-"), Part::Seq, text(".parquet")]
        );
        assert_eq!(
            ends("x{seq}.parquet"),
            [text("x"), Part::Seq, text(".parquet")]
        );
    }
}

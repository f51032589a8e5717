//! Values as text in paths. Whatever a value is, its text stays one folder name of the table: no
//! separator, no `..`, no hidden name, no control character, at most [`LONGEST`] bytes.

use arrow::datatypes::{DataType, TimeUnit};
use chrono::{DateTime, Days, NaiveDate, Utc};

use super::template::Granularity;
use crate::write::KeyValue;

/// What readers of Hive layouts take for NULL.
pub(crate) const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
/// Longer text is cut, and ends in a hash of the whole.
const LONGEST: usize = 200;

/// The text of a value, as Hive and Spark write it, before [`escape`]; none for null.
pub(crate) fn text(value: &KeyValue, data_type: &DataType) -> Option<String> {
    let time = |seconds: i64, nanos: u32| {
        DateTime::<Utc>::from_timestamp(seconds, nanos)
            .map(|at| at.format("%Y-%m-%d %H:%M:%S%.f").to_string())
    };
    let split = |value: i64, per_second: i64| {
        let nanos = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
        time(value.div_euclid(per_second), nanos as u32)
    };
    Some(match value {
        KeyValue::Null => return None,
        KeyValue::Bool(value) => value.to_string(),
        KeyValue::Int(value) => {
            let known = match data_type {
                DataType::Date32 => date(*value).map(|date| date.to_string()),
                DataType::Date64 => date(value.div_euclid(86_400_000)).map(|date| date.to_string()),
                DataType::Timestamp(TimeUnit::Second, _) => split(*value, 1),
                DataType::Timestamp(TimeUnit::Millisecond, _) => split(*value, 1_000),
                DataType::Timestamp(TimeUnit::Microsecond, _) => split(*value, 1_000_000),
                DataType::Timestamp(TimeUnit::Nanosecond, _) => split(*value, 1_000_000_000),
                _ => None,
            };
            known.unwrap_or_else(|| value.to_string())
        }
        KeyValue::UInt(value) => value.to_string(),
        KeyValue::Decimal(value) => match data_type {
            DataType::Decimal128(_, scale) => decimal(*value, *scale),
            _ => value.to_string(),
        },
        KeyValue::Float(bits) => f64::from_bits(*bits).to_string(),
        KeyValue::Text(text) => text.to_string(),
        KeyValue::Bytes(bytes) => bytes
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}")),
    })
}

fn decimal(value: i128, scale: i8) -> String {
    let Ok(scale) = usize::try_from(scale) else {
        return format!("{value}e{}", -i32::from(scale));
    };
    if scale == 0 {
        return value.to_string();
    }
    let digits = format!("{:0width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{}{whole}.{fraction}", if value < 0 { "-" } else { "" })
}

fn date(days: i64) -> Option<NaiveDate> {
    let epoch = NaiveDate::default();
    match u64::try_from(days) {
        Ok(days) => epoch.checked_add_days(Days::new(days)),
        Err(_) => epoch.checked_sub_days(Days::new(days.unsigned_abs())),
    }
}

/// A count of units since 1970 in a time format, in UTC.
pub(crate) fn time(count: i64, unit: Granularity, format: &str) -> String {
    let seconds = match unit {
        Granularity::Second => Some(count),
        Granularity::Minute => count.checked_mul(60),
        Granularity::Hour => count.checked_mul(3_600),
        Granularity::Day => count.checked_mul(86_400),
        Granularity::Month => month(count),
        Granularity::Year => count.checked_mul(12).and_then(month),
    };
    match seconds.and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0)) {
        Some(at) => at.format(format).to_string(),
        None => format!("out-of-range-{count}"),
    }
}

fn month(count: i64) -> Option<i64> {
    let year = i32::try_from(1970 + count.div_euclid(12)).ok()?;
    let date = NaiveDate::from_ymd_opt(year, count.rem_euclid(12) as u32 + 1, 1)?;
    Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp())
}

/// Whether [`escape`] keeps all of a text, and does not make it look like null.
pub(crate) fn is_whole(text: &str) -> bool {
    !text.is_empty() && encoded(text, true).len() <= LONGEST
}

/// Text as (a part of) one folder or file name. `first`: it begins the name. Percent-encodes what
/// Hive does, and what could leave the folder or hide in it.
pub(crate) fn escape(text: &str, first: bool) -> String {
    if text.is_empty() {
        return NULL.to_owned();
    }
    let name = encoded(text, first);
    if name.len() <= LONGEST {
        return name;
    }
    let mut cut = LONGEST - 17;
    while !name.is_char_boundary(cut) || name[..cut].ends_with('%') {
        cut -= 1;
    }
    if name.as_bytes()[cut - 2] == b'%' {
        cut -= 2;
    }
    // Not keyed, not secret: only tells long values apart. FNV-1a, which is stable for ever.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}-{hash:016x}", &name[..cut])
}

fn encoded(text: &str, first: bool) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let hostile = c.is_control() || "\"#%'*/:<=>?[\\]^`{|}".contains(c);
        let hides = at == 0 && first && (c == '.' || c == '_');
        if hostile || hides || (at == 0 && text == NULL) || is_dots(text) {
            let mut utf8 = [0; 4];
            for byte in c.encode_utf8(&mut utf8).bytes() {
                name.push_str(&format!("%{byte:02X}"));
            }
        } else {
            name.push(c);
        }
    }
    name
}

fn is_dots(text: &str) -> bool {
    text == "." || text == ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_values_stay_one_name() {
        let long = "x/".repeat(400);
        let wide = "ä%".repeat(300);
        for hostile in [
            "/",
            "..",
            ".",
            "../../etc",
            "a/b",
            "a=b",
            "%2F",
            "\0",
            "\n",
            "",
            NULL,
            &long,
            &wide,
        ] {
            for first in [true, false] {
                let name = escape(hostile, first);
                assert!(!name.contains(['/', '\\', '\0', '\n']), "{name}");
                assert!(name != "." && name != ".." && !name.is_empty(), "{name}");
                assert!(name.len() <= LONGEST, "{}", name.len());
                assert!(name != NULL || hostile.is_empty());
            }
        }
        assert!(!escape("_calve", true).starts_with('_'));
        assert_ne!(escape(&long, false), escape(&format!("{long}/"), false));
        assert!(is_whole("eu/west") && !is_whole("") && !is_whole(&long));
        assert_eq!(escape("eu-west", false), "eu-west");
        assert_eq!(escape("10:00", false), "10%3A00");
    }

    #[test]
    fn values_read_as_hive_writes_them() {
        let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
        assert_eq!(
            text(&KeyValue::Int(-1), &DataType::Date32).as_deref(),
            Some("1969-12-31")
        );
        assert_eq!(
            text(&KeyValue::Int(-1), &micros).as_deref(),
            Some("1969-12-31 23:59:59.999999")
        );
        let decimals = DataType::Decimal128(10, 2);
        assert_eq!(
            text(&KeyValue::Decimal(-5), &decimals).as_deref(),
            Some("-0.05")
        );
        assert_eq!(
            text(&KeyValue::float(f64::NAN), &DataType::Float64).as_deref(),
            Some("NaN")
        );
        // Beyond the calendar: the number itself.
        assert_eq!(
            text(&KeyValue::Int(i64::MAX), &micros),
            Some(i64::MAX.to_string())
        );
        assert_eq!(time(-1, Granularity::Hour, "%Y-%m-%d-%H"), "1969-12-31-23");
        assert_eq!(time(-1, Granularity::Month, "%Y-%m"), "1969-12");
        assert_eq!(
            time(i64::MAX, Granularity::Hour, "%Y"),
            format!("out-of-range-{}", i64::MAX)
        );
    }
}

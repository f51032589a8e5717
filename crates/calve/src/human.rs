//! Numbers for people: counts, rates, bytes and durations, short enough for one line.
//!
//! Bytes are decimal (1 kB = 1000 bytes). What a program should read is in the metrics, not here.

use std::time::Duration;

const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// A whole number in groups of three: `1,234,567`.
pub(crate) fn exact(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits and the prefix of a unit that the caller puts behind it: `1.25 M`, `98.3 k`, `999 `.
fn scaled(number: f64) -> String {
    let mut number = if number.is_finite() {
        number.max(0.0)
    } else {
        0.0
    };
    let mut prefix = 0;
    // 999.5 would be shown as 1000: the next prefix says it in three digits.
    while number >= 999.5 && prefix + 1 < PREFIXES.len() {
        number /= 1000.0;
        prefix += 1;
    }
    let decimals = match number {
        _ if prefix == 0 && number.fract() == 0.0 => 0,
        n if n < 9.995 => 2,
        n if n < 99.95 => 1,
        _ => 0,
    };
    format!("{number:.decimals$} {}", PREFIXES[prefix])
}

/// A number in three digits: `1.25 M`; negative and infinite ones are 0.
pub(crate) fn count(number: f64) -> String {
    scaled(number).trim_end().to_owned()
}

/// A size: `1.25 MB`. Takes bytes, or bytes per second where the caller adds `/s`.
pub(crate) fn bytes(number: u64) -> String {
    format!("{}B", scaled(number as f64))
}

/// A duration: `250 ms`, `2.1 s`, `42 s`, `3m 20s`, `2h 5m`, `3d 4h`.
pub(crate) fn duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms < 1000 {
        return format!("{ms} ms");
    }
    if ms < 9_950 {
        return format!("{:.1} s", ms as f64 / 1e3);
    }
    let seconds = (ms + 500) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_numbers_are_grouped_from_the_right() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(exact(number), text);
        }
    }

    #[test]
    fn numbers_keep_three_digits_also_where_rounding_carries() {
        for (number, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (0.25, "0.25"),
            (9.996, "10.0"),
            (42.26, "42.3"),
            (99.96, "100"),
            (999.0, "999"),
            (999.6, "1.00 k"),
            (1_254_000.0, "1.25 M"),
            (999_499.0, "999 k"),
            (999_600.0, "1.00 M"),
            (u64::MAX as f64, "18.4 E"),
            (f64::NAN, "0"),
            (f64::INFINITY, "0"),
            (-5.0, "0"),
        ] {
            assert_eq!(count(number), text, "{number}");
        }
    }

    #[test]
    fn bytes_have_their_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(98_300_000), "98.3 MB");
    }

    #[test]
    fn durations_never_show_sixty_seconds() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (9_949, "9.9 s"),
            (9_950, "10 s"),
            (59_499, "59 s"),
            (59_500, "1m 0s"),
            (3_599_499, "59m 59s"),
            (3_599_500, "1h 0m"),
            (86_399_499, "23h 59m"),
            (86_399_500, "1d 0h"),
            (273_600_000, "3d 4h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text, "{ms}");
        }
    }
}

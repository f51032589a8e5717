//! Times and sizes in words a person would use: `1h30m`, `250ms`, `64MiB`.

use std::fmt::Write as _;

use crate::watermark::Micros;

const STEPS: [(Micros, &str); 6] = [
    (86_400_000_000, "d"),
    (3_600_000_000, "h"),
    (60_000_000, "m"),
    (1_000_000, "s"),
    (1_000, "ms"),
    (1, "us"),
];

/// A length of time in words, exactly: 5,400,000,000 microseconds are `1h30m`.
pub fn in_words(length: Micros) -> String {
    if length == 0 {
        return "0s".into();
    }
    let mut words = if length < 0 { "-" } else { "" }.to_owned();
    let mut left = length.unsigned_abs();
    for (step, name) in STEPS {
        let whole = left / step.unsigned_abs();
        left %= step.unsigned_abs();
        if whole > 0 {
            let _ = write!(words, "{whole}{name}");
        }
    }
    words
}

/// A size in bytes, in the largest binary unit that gives a whole number.
pub fn in_bytes(size: u64) -> String {
    for (shift, name) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if size >= 1 << shift && size.trailing_zeros() >= shift {
            return format!("{}{name}", size >> shift);
        }
    }
    format!("{size}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_sizes_read_well() {
        assert_eq!(in_words(5_400_000_000), "1h30m");
        assert_eq!(in_words(-250_000), "-250ms");
        assert_eq!(in_words(0), "0s");
        assert!(in_words(i64::MIN).starts_with("-106751991d"));
        assert_eq!(in_bytes(64 << 20), "64MiB");
        assert_eq!(in_bytes(1500), "1500B");
        assert_eq!(in_bytes(0), "0B");
    }
}

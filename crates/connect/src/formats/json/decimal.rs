//! Decimals from text, digit by digit: exact, truncated to the scale as arrow-json truncates; and
//! integers, which are not truncated.

use arrow::datatypes::i256;

/// The value of `text` times ten to the `scale`, fraction dropped. None where the text is no number
/// or the result has more than `precision` digits (at most 76).
pub(super) fn decimal(text: &str, precision: u8, scale: i8) -> Option<i256> {
    let parts = Parts::of(text)?;
    let keep = parts.count + i64::from(scale);
    if parts.leading == parts.digits || keep <= 0 {
        return Some(i256::ZERO);
    }
    if keep > i64::from(precision) {
        return None;
    }
    let digits = parts.significant();
    let ten = i256::from(10_i64);
    let mut value = i256::ZERO;
    for digit in digits.chain(std::iter::repeat(b'0')).take(keep as usize) {
        value = value
            .wrapping_mul(ten)
            .wrapping_add(i256::from(i64::from(digit - b'0')));
    }
    Some(if parts.negative {
        value.wrapping_neg()
    } else {
        value
    })
}

/// The integer that `text` is: `1e3` and `2.0` are integers, `1.5` is none, and none has more than 38
/// digits.
pub(super) fn integer(text: &str) -> Option<i128> {
    let parts = Parts::of(text)?;
    let whole = parts.count.clamp(0, 1 << 32) as usize;
    let cut_off = parts.significant().skip(whole).any(|digit| digit != b'0');
    (!cut_off).then(|| decimal(text, 38, 0)?.to_i128())?
}

/// A number's text, taken apart.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    /// Digits in both, and zeros that they begin with.
    digits: usize,
    leading: usize,
    /// How many digits behind those zeros stand before the point, once the exponent has moved it;
    /// below zero, as many zeros stand behind it.
    count: i64,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(n) => (&rest[..n], exponent(&rest[n + 1..])?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut all = whole.bytes().chain(fraction.bytes());
        let digits = whole.len() + fraction.len();
        if digits == 0 || !all.all(|b| b.is_ascii_digit()) {
            return None;
        }
        let all = whole.bytes().chain(fraction.bytes());
        let leading = all.take_while(|&b| b == b'0').count();
        Some(Self {
            negative,
            whole,
            fraction,
            digits,
            leading,
            count: (whole.len() as i64 - leading as i64) + exponent,
        })
    }

    /// The digits behind the zeros that it begins with.
    fn significant(&self) -> impl Iterator<Item = u8> + '_ {
        let all = self.whole.bytes().chain(self.fraction.bytes());
        all.skip(self.leading)
    }
}

/// The exponent's value; one far outside every precision stands for those that are larger.
fn exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse::<i64>().unwrap_or(i64::MAX).min(1 << 40);
    Some(if text.starts_with('-') { -size } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_move_to_the_scale() {
        let of = |text: &str| decimal(text, 10, 2).map(|v| v.to_i128().expect("small"));
        assert_eq!(of("1.239"), Some(123), "truncated, not rounded");
        assert_eq!(of("-0.05"), Some(-5));
        assert_eq!(of("12e3"), Some(1_200_000));
        assert_eq!(of("12345e-4"), Some(123));
        assert_eq!(of("00000000000000001"), Some(100));
        assert_eq!(of("99999999.99"), Some(9_999_999_999));
        assert_eq!(of("100000000"), None, "eleven digits");
        assert_eq!(of("1e99999999999999999999"), None);
        assert_eq!(of("0e99999999999999999999"), Some(0));
        assert_eq!(of("1e-99999999999999999999"), Some(0));
        assert_eq!(of(&"9".repeat(400)), None);
        for bad in ["", "-", ".", "1.2.3", "1e", "e5", "1e+", "x", "1 ", "0x1"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn integers_are_whole_and_exact() {
        for (text, expected) in [
            ("1.0", Some(1)),
            ("1e3", Some(1000)),
            ("-12.50e1", Some(-125)),
            ("1200e-2", Some(12)),
            ("-0.0", Some(0)),
            ("0.000e99", Some(0)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("1.5", None),
            ("-0.001", None),
            ("1e-400", None),
            ("1.0000000000000000000000001", None),
            ("125e-2", None),
            ("1e38", None),
            ("1e99999999999", None),
            ("1e-99999999999", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
        }
    }
}

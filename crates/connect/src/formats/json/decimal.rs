//! Decimals from text, digit by digit: exact, truncated to the scale as arrow-json truncates.

use arrow::datatypes::i256;

/// The value of `text` times ten to the `scale`, fraction dropped. None where the text is no number
/// or the result has more than `precision` digits (at most 76).
pub(super) fn decimal(text: &str, precision: u8, scale: i8) -> Option<i256> {
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
    let mut digits = whole.bytes().chain(fraction.bytes());
    if whole.len() + fraction.len() == 0 || !digits.all(|b| b.is_ascii_digit()) {
        return None;
    }
    let leading = whole
        .bytes()
        .chain(fraction.bytes())
        .take_while(|&b| b == b'0')
        .count();
    let digits = whole.bytes().chain(fraction.bytes()).skip(leading);
    let count = (whole.len() + fraction.len() - leading) as i64;
    // How many digits the result has: those of the text, moved by exponent and scale.
    let keep = count - fraction.len() as i64 + exponent + i64::from(scale);
    if count == 0 || keep <= 0 {
        return Some(i256::ZERO);
    }
    if keep > i64::from(precision) {
        return None;
    }
    let ten = i256::from(10_i64);
    let mut value = i256::ZERO;
    for digit in digits.chain(std::iter::repeat(b'0')).take(keep as usize) {
        value = value
            .wrapping_mul(ten)
            .wrapping_add(i256::from(i64::from(digit - b'0')));
    }
    Some(if negative {
        value.wrapping_neg()
    } else {
        value
    })
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
}

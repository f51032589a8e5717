//! Values from text: hexadecimal digits, decimals, integers. Exact, or nothing.

use arrow::datatypes::i256;

/// The value of a hexadecimal digit; above 15 where it is none. Without a branch, so that loops over
/// it become vector instructions.
#[inline]
fn nibble(digit: u8) -> u8 {
    let number = digit.wrapping_sub(b'0');
    let letter = (digit | 0x20).wrapping_sub(b'a');
    let of_letter = if letter < 6 { letter + 10 } else { 0x80 };
    if number < 10 { number } else { of_letter }
}

/// Appends the bytes that hexadecimal digits stand for, upper or lower case. False, and nothing is
/// appended, where something else is among them or their number is odd.
#[inline]
pub(super) fn unhex(digits: &[u8], out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let (blocks, rest) = digits.as_chunks::<64>();
    let mut wrong = 0;
    for block in blocks {
        let mut bytes = [0; 32];
        wrong |= unhex_block(block, &mut bytes);
        out.extend_from_slice(&bytes);
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    for [high, low] in pairs {
        let (high, low) = (nibble(*high), nibble(*low));
        wrong |= high | low;
        out.push(high << 4 | low & 0x0f);
    }
    let right = wrong < 16 && odd.is_empty();
    if !right {
        out.truncate(before);
    }
    right
}

/// Answers 16 or more when something else than digits is among them.
#[inline]
fn unhex_block(digits: &[u8; 64], bytes: &mut [u8; 32]) -> u8 {
    let mut nibbles = [0; 64];
    let mut wrong = 0;
    for (nibbled, digit) in nibbles.iter_mut().zip(digits) {
        *nibbled = nibble(*digit);
        wrong |= *nibbled;
    }
    for (byte, pair) in bytes.iter_mut().zip(nibbles.as_chunks::<2>().0) {
        let pair = u16::from_le_bytes(*pair);
        *byte = (pair << 4 | pair >> 8) as u8;
    }
    wrong
}

/// Appends bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 0x0f)]);
    }
}

/// The number that digits with an optional sign and point are, times ten to the `scale`. None where
/// they are no number, have digits other than 0 behind the scale, or more than `precision` (at most
/// 76) before the end.
pub(super) fn decimal(text: &[u8], precision: u8, scale: i8) -> Option<i256> {
    let (negative, digits) = match text.first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let point = digits.iter().position(|b| *b == b'.');
    let (whole, fraction) = match point {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &digits[..0]),
    };
    if whole.is_empty() || point.is_some() && fraction.is_empty() {
        return None;
    }
    // Digits that count: the whole ones, then as many of the fraction as the scale says.
    let keep = i64::try_from(whole.len()).ok()? + i64::from(scale);
    let mut small = 0_u128;
    let mut large: Option<i256> = None;
    let mut count = 0_i64;
    for (at, digit) in whole.iter().chain(fraction).enumerate() {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = digit - b'0';
        if at as i64 >= keep {
            if digit != 0 {
                return None;
            }
            continue;
        }
        push(&mut small, &mut large, digit, &mut count);
    }
    for _ in (whole.len() + fraction.len()) as i64..keep {
        push(&mut small, &mut large, 0, &mut count);
    }
    if count > i64::from(precision) {
        return None;
    }
    let value = large.unwrap_or_else(|| i256::from_parts(small, 0));
    Some(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}

/// Appends a digit to a number, which becomes a large one where it must; counts digits that are not
/// leading zeros.
#[inline]
fn push(small: &mut u128, large: &mut Option<i256>, digit: u8, count: &mut i64) {
    if *count > 0 || digit != 0 {
        *count += 1;
    }
    if *count <= 38 {
        *small = *small * 10 + u128::from(digit);
        return;
    }
    let ten = i256::from_parts(10, 0);
    let so_far = large.unwrap_or_else(|| i256::from_parts(*small, 0));
    let digit = i256::from_parts(u128::from(digit), 0);
    *large = Some(so_far.wrapping_mul(ten).wrapping_add(digit));
}

/// [`decimal`] of at most 38 digits.
#[inline]
pub(super) fn decimal128(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    // Most are short integers.
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        _ => (false, text),
    };
    if scale == 0 && !digits.is_empty() && digits.len() <= 18.min(usize::from(precision)) {
        let mut value = 0_i64;
        let mut wrong = false;
        for digit in digits {
            let digit = digit.wrapping_sub(b'0');
            wrong |= digit > 9;
            value = value.wrapping_mul(10).wrapping_add(i64::from(digit));
        }
        if wrong {
            return None;
        }
        return Some(i128::from(if negative { -value } else { value }));
    }
    decimal(text, precision, scale)?.to_i128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_of_any_number_and_case() {
        for len in [0, 1, 2, 15, 31, 32, 33, 64, 65, 200] {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 37 % 256) as u8).collect();
            let mut digits = Vec::new();
            hex(&bytes, &mut digits);
            let mut again = vec![7];
            assert!(unhex(&digits, &mut again));
            assert_eq!(again[1..], bytes);
            assert!(unhex(&digits.to_ascii_uppercase(), &mut again));
            for at in 0..digits.len() {
                for wrong in *b"g/:@`G \x80\xb0\0" {
                    let mut digits = digits.clone();
                    digits[at] = wrong;
                    let before = again.len();
                    assert!(!unhex(&digits, &mut again), "at={at} wrong={wrong}");
                    assert_eq!(again.len(), before);
                }
            }
            digits.push(b'0');
            assert!(!unhex(&digits, &mut again), "odd");
        }
    }

    #[test]
    fn decimals_fit_exactly_or_not_at_all() {
        let of = |text: &str, precision, scale| {
            let wide = decimal(text.as_bytes(), precision, scale).map(|v| v.to_string());
            if precision <= 38 {
                let narrow = decimal128(text.as_bytes(), precision, scale);
                assert_eq!(narrow.map(|v| v.to_string()), wide, "{text}");
            }
            wide
        };
        let i128_min = "-170141183460469231731687303715884105728";
        assert_eq!(of("100", 38, 0).as_deref(), Some("100"));
        assert_eq!(of("-30211", 38, 0).as_deref(), Some("-30211"));
        assert_eq!(of("0007", 1, 0).as_deref(), Some("7"));
        assert_eq!(of("1.50", 5, 2).as_deref(), Some("150"));
        assert_eq!(of("1.500", 5, 2).as_deref(), Some("150"));
        assert_eq!(of("1.505", 5, 2), None, "would lose a digit");
        assert_eq!(of("1200", 5, -2).as_deref(), Some("12"));
        assert_eq!(of("1000", 5, 2), None, "six digits");
        assert_eq!(of(i128_min, 38, 0), None, "39 digits");
        assert_eq!(of(i128_min, 39, 0).as_deref(), Some(i128_min));
        let nines = "9".repeat(76);
        assert_eq!(of(&nines, 76, 0).as_deref(), Some(nines.as_str()));
        assert_eq!(of(&nines, 75, 0), None);
        assert_eq!(of(&"9".repeat(38), 38, 0), Some("9".repeat(38)));
        for bad in [
            "", "-", "+", ".", "1.", ".5", "1e3", "x", "1 ", "--1", "1.2.3", "-x",
        ] {
            assert_eq!(of(bad, 38, 0), None, "{bad}");
        }
    }
}

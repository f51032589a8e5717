//! Short strings as numbers, so that they are compared and hashed without a call.

use std::ops::Range;

/// Strings below this many bytes have a [`key`].
pub(super) const SHORT: usize = 16;

/// A number that tells strings below [`SHORT`] bytes apart: their bytes, and their length on top.
/// `range` is within `values`.
#[inline]
pub(super) fn key(values: &[u8], range: Range<usize>) -> u128 {
    let Range { start, end } = range;
    let length = end - start;
    debug_assert!(length < SHORT, "a short string");
    // What follows the string is masked off: one load costs less than a copy of its length.
    let block = values.get(start..).and_then(|rest| rest.first_chunk());
    let bytes = if let Some(block) = block {
        u128::from_le_bytes(*block) & !(u128::MAX << (8 * length))
    } else {
        let mut block = [0; SHORT];
        block[..length].copy_from_slice(&values[start..end]);
        u128::from_le_bytes(block)
    };
    bytes | (length as u128) << 120
}

/// Spreads a number over all bits.
#[inline]
pub(super) fn mix(value: u64) -> u64 {
    let wide = u128::from(value ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    (wide >> 64) as u64 ^ wide as u64
}

/// Spreads a [`key`] over all bits.
#[inline]
pub(super) fn mix_key(key: u128) -> u64 {
    let (low, high) = (key as u64, (key >> 64) as u64);
    let wide = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xd6e8_feb8_6659_fd93);
    (wide >> 64) as u64 ^ wide as u64
}

/// A hash of bytes of any length.
pub(super) fn mix_bytes(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = mix(hash.rotate_left(17) ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash.rotate_left(17) ^ u64::from_le_bytes(last))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn keys_tell_short_strings_apart_whatever_surrounds_them() {
        let strings = [
            "",
            "\0",
            "\0\0",
            "a",
            "a\0",
            "ab",
            "eu-west",
            "fifteen bytes..",
            "fifteen bytes.,",
        ];
        let mut keys = HashMap::new();
        for string in strings {
            for (before, after) in [
                ("", ""),
                ("xyz", ""),
                ("", "what follows it in memory"),
                ("é", "\0"),
            ] {
                let values = format!("{before}{string}{after}");
                let key = key(values.as_bytes(), before.len()..before.len() + string.len());
                assert_eq!(*keys.entry(key).or_insert(string), string);
            }
        }
        assert_eq!(keys.len(), strings.len());
    }
}

//! Short strings as numbers, so that they are compared and hashed without a call.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::LazyLock,
};

/// Strings below this many bytes have a [`key`].
pub const SHORT: usize = 16;

/// A number that tells strings below [`SHORT`] bytes apart: their bytes, and their length on top.
/// `range` is within `values`.
#[inline]
pub fn key(values: &[u8], range: Range<usize>) -> u128 {
    let Range { start, end } = range;
    let length = end - start;
    debug_assert!(length < SHORT, "a short string");
    // What follows the string is masked off: one load costs less than a copy of its length.
    let block = values.get(start..).and_then(|rest| rest.first_chunk());
    if let Some(block) = block {
        return key_at(block, length);
    }
    let mut block = [0; SHORT];
    block[..length].copy_from_slice(&values[start..end]);
    key_at(&block, length)
}

/// The [`key`] of the first `length` bytes of a block, which are fewer than all.
#[inline]
pub fn key_at(block: &[u8; SHORT], length: usize) -> u128 {
    let length = length % SHORT;
    u128::from_le_bytes(*block) & MASKS[length] | (length as u128) << 120
}

/// By length: the bytes of a block that belong to a string.
const MASKS: [u128; SHORT] = {
    let mut masks = [0; SHORT];
    let mut length = 0;
    while length < SHORT {
        masks[length] = !(u128::MAX << (8 * length));
        length += 1;
    }
    masks
};

/// Hashes that nobody outside of the process can foresee: texts come from everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Mixer(u64);

impl Mixer {
    /// That of this process.
    #[expect(
        clippy::new_without_default,
        reason = "every one is the same, and none is a default"
    )]
    pub fn new() -> Self {
        static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
        Self(*SEED)
    }

    /// Of a number.
    #[inline]
    pub fn number(self, value: u64) -> u64 {
        fold(value ^ self.0, 0xd6e8_feb8_6659_fd93)
    }

    /// Of a [`key`].
    #[inline]
    pub fn key(self, key: u128) -> u64 {
        let (low, high) = (key as u64, (key >> 64) as u64);
        fold(
            low ^ self.0,
            high ^ self.0.rotate_left(32) ^ 0xd6e8_feb8_6659_fd93,
        )
    }

    /// Of bytes of any length.
    pub fn bytes(self, bytes: &[u8]) -> u64 {
        let mut hash = bytes.len() as u64;
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            hash = self.number(hash.rotate_left(17) ^ u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.number(hash.rotate_left(17) ^ u64::from_le_bytes(last))
    }
}

/// Both halves of a product, so that every bit reaches every other.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide >> 64) as u64 ^ wide as u64
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

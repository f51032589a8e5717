//! The hash of keys, stable between versions because filters and shards on disk depend on it.
//!
//! It multiplies to 128 bits and folds the halves. The seed is the store's own and random, so that
//! nobody who chooses keys can choose where they collide. Not cryptographic.

use std::hash::{BuildHasher, Hasher, RandomState};

const MIX: [u64; 3] = [
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
    0xa24b_aed4_963e_e407,
];

/// Shards of a store; a power of two, told by the top bits of the hash.
pub(super) const SHARDS: usize = 16;

/// The shard that owns a key of this hash.
pub(super) fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARDS.trailing_zeros())) as usize
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// The hash of `key` in the store that has this `seed`.
#[inline]
pub(super) fn hash_key(seed: u64, key: &[u8]) -> u64 {
    let mut state = seed ^ (key.len() as u64).wrapping_mul(MIX[0]);
    let mut rest = key;
    while rest.len() > 16 {
        let (head, tail) = rest.split_at(16);
        state = fold(
            word(&head[..8]) ^ MIX[1] ^ state,
            word(&head[8..]) ^ state.rotate_left(29),
        );
        rest = tail;
    }
    let (a, b) = if rest.len() >= 8 {
        // The two words overlap where there are fewer than 16 bytes.
        (word(rest), word(&rest[rest.len() - 8..]))
    } else {
        (short_word(rest), 0)
    };
    fold(
        fold(a ^ MIX[1] ^ state, b ^ MIX[2] ^ state.rotate_left(32)) ^ state,
        MIX[0],
    )
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk::<8>()
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

#[inline]
fn short_word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

/// The first eight bytes of a key as a number that sorts as the bytes do; equal numbers say nothing.
#[inline]
pub(super) fn sort_word(bytes: &[u8]) -> u64 {
    if let Some(chunk) = bytes.first_chunk::<8>() {
        return u64::from_be_bytes(*chunk);
    }
    let mut padded = [0; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(padded)
}

/// How many bytes two keys share at their beginning.
pub(super) fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A number that nobody can guess; from the seeds that the standard library draws for its hash maps.
pub(super) fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(MIX[0]);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_in_one_bit_or_in_length_spread_over_shards_and_halves() {
        let mut seen = std::collections::HashSet::new();
        let mut per_shard = [0_usize; SHARDS];
        for length in 0..40_usize {
            for bit in 0..length * 8 {
                let mut key = vec![0; length];
                key[bit / 8] |= 1 << (bit % 8);
                let hash = hash_key(7, &key);
                assert!(
                    seen.insert(hash >> 32) && seen.insert((hash << 32) | 1),
                    "{length} {bit}"
                );
                per_shard[shard_of(hash)] += 1;
            }
        }
        let keys: usize = per_shard.iter().sum();
        for count in per_shard {
            assert!(
                count > keys / SHARDS * 3 / 4 && count < keys / SHARDS * 5 / 4,
                "{per_shard:?}"
            );
        }
    }

    #[test]
    fn the_hash_does_not_change_between_versions() {
        let keys: [&[u8]; 4] = [
            b"",
            b"calve",
            b"nine byte",
            b"a key of thirty and three bytes..",
        ];
        let hashes = [
            16_138_525_571_687_096_684,
            7_993_787_316_833_261_602,
            4_497_910_766_795_682_488,
            10_030_688_628_372_549_133,
        ];
        assert_eq!(keys.map(|key| hash_key(1, key)), hashes);
    }
}

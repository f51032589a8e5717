//! Short strings as numbers, so that they are compared and hashed without a call, and numbers for what is
//! distinct.

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

/// What a [`Numbering`] tells apart.
pub trait Key: Copy + PartialEq {
    /// Its highest bits are as good as random, by factors that nobody can foresee: multiply-shift
    /// (Dietzfelbinger and others, "A reliable randomized algorithm for the closest-pair problem", 1997).
    fn hash(self, factors: [u64; 2]) -> u64;
}

impl Key for u64 {
    #[inline]
    fn hash(self, [factor, _]: [u64; 2]) -> u64 {
        self.wrapping_mul(factor)
    }
}

impl Key for u128 {
    #[inline]
    fn hash(self, [low, high]: [u64; 2]) -> u64 {
        let of_low = (self as u64).wrapping_mul(low);
        of_low.wrapping_add(((self >> 64) as u64).wrapping_mul(high))
    }
}

/// Distinct keys, numbered in the order in which they came. Most look-ups compare one key or two, and
/// make no call.
#[derive(Debug)]
pub struct Numbering<K> {
    factors: [u64; 2],
    /// From a hash to its slot.
    shift: u32,
    keys: Vec<K>,
    /// Open addressing: the number of a key, or [`NONE`].
    slots: Vec<u32>,
}

const NONE: u32 = u32::MAX;
/// Slots behind those that a hash can name, for keys that meet there; more are added as need be.
const BEHIND: usize = 32;

impl<K: Key> Numbering<K> {
    /// No keys, and `2^bits` slots, which are doubled whenever a quarter of them are taken: with few
    /// keys in many slots keys seldom meet.
    pub fn new(bits: u32) -> Self {
        let mix = Mixer::new();
        Self {
            factors: [mix.number(1) | 1, mix.number(2) | 1],
            shift: 64 - bits,
            keys: Vec::new(),
            slots: vec![NONE; (1 << bits) + BEHIND],
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All of them, by their numbers.
    pub fn keys(&self) -> &[K] {
        &self.keys
    }

    /// Memory held, in bytes.
    pub fn memory(&self) -> usize {
        self.keys.capacity() * size_of::<K>() + self.slots.capacity() * 4
    }

    #[inline]
    fn slot(&self, key: K) -> usize {
        (key.hash(self.factors) >> self.shift) as usize
    }

    /// The number of a key.
    #[inline]
    pub fn find(&self, key: K) -> Option<u32> {
        let slot = self.slot(key);
        let [first, second] = *self.slots.get(slot..)?.first_chunk()?;
        if *self.keys.get(first as usize)? == key {
            return Some(first);
        }
        if *self.keys.get(second as usize)? == key {
            return Some(second);
        }
        self.find_behind(key, slot + 2, |_| true)
    }

    /// The number of a key that stands for several things, of which `same` knows the one.
    pub fn find_same(&self, key: K, same: impl Fn(u32) -> bool) -> Option<u32> {
        self.find_behind(key, self.slot(key), same)
    }

    #[inline(never)]
    fn find_behind(&self, key: K, slot: usize, same: impl Fn(u32) -> bool) -> Option<u32> {
        for id in &self.slots[slot..] {
            if *self.keys.get(*id as usize)? == key && same(*id) {
                return Some(*id);
            }
        }
        None
    }

    /// The number of a key that is not there yet; there are fewer than 2^32 - 1.
    pub fn insert(&mut self, key: K) -> u32 {
        let id = self.keys.len() as u32;
        self.keys.push(key);
        if self.keys.len() * 4 > self.slots.len() {
            self.grow();
        } else {
            self.put(id);
        }
        id
    }

    fn put(&mut self, id: u32) {
        let slot = self.slot(self.keys[id as usize]);
        let free = self.slots[slot..].iter_mut().find(|slot| **slot == NONE);
        match free {
            Some(slot) => *slot = id,
            // All slots from there to the end are taken, and one more is found behind them.
            None => self.slots.push(id),
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.shift -= 1;
        self.slots.clear();
        self.slots.resize((1 << (64 - self.shift)) + BEHIND, NONE);
        (0..self.keys.len() as u32).for_each(|id| self.put(id));
    }
}

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

    /// Finds or adds each key, as a map does.
    fn number<K: Key + std::hash::Hash + Eq>(keys: impl Iterator<Item = K>) {
        let (mut numbers, mut map) = (Numbering::new(2), HashMap::new());
        for key in keys {
            let next = map.len() as u32;
            let expected = map.get(&key).copied();
            assert_eq!(numbers.find(key), expected);
            if expected.is_none() {
                assert_eq!(numbers.insert(key), next);
                map.insert(key, next);
            }
        }
        assert!(
            numbers
                .keys()
                .iter()
                .enumerate()
                .all(|(id, key)| map[key] == id as u32)
        );
        assert!(
            numbers.memory() < 80 * map.len() + 4096,
            "{} {}",
            numbers.memory(),
            map.len()
        );
    }

    #[test]
    fn keys_are_numbered_in_the_order_in_which_they_came() {
        // What differs in its highest bits alone, as floats do, in its lowest, and everywhere.
        for spread in [1, 1 << 32, 1 << 45, 0x9e37_79b9_7f4a_7c15_u64] {
            let keys = (0..40_000_u64).map(|n| (n % 30_000).wrapping_mul(spread));
            number(keys.clone());
            number(keys.clone().map(u128::from));
            number(keys.map(|key| u128::from(key) << 64 | 7));
        }
    }

    #[test]
    fn things_of_one_key_are_told_apart() {
        let mut numbers = Numbering::new(4);
        let ids: Vec<_> = (0..99).map(|_| numbers.insert(5_u64)).collect();
        assert_eq!(numbers.find_same(5, |id| id == ids[7]), Some(ids[7]));
        assert_eq!(numbers.find_same(5, |_| false), None);
        assert_eq!(numbers.find_same(6, |_| true), None);
    }

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

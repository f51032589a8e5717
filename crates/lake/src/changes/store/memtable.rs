//! What was put since the last run was written: a byte arena, and a hash table of offsets into it.
//!
//! An entry is: length of the key, length of the value (two bytes each, little end first; a value's
//! length of 65535 marks a deleted key), key, value. A value is replaced in place when the new one is
//! as long; otherwise a new entry is appended and the old one is dead until [`Memtable::compact`].
//!
//! A slot of the table holds the upper half of the key's hash and the offset plus one; zero is an
//! empty slot. The home of a hash is its share of the table, so slots stand in the order of hashes
//! (but for collisions) and a shard's entries stand together.

use super::hash::{SHARDS, hash_key, shard_of, shared_prefix, sort_word};

const HEADER: usize = 4;
const DELETED: u16 = u16::MAX;
/// The arena's offsets are 32 bits wide.
const ARENA_MAX: usize = 3 << 30;
const FIRST_SLOTS: usize = 64;

/// A key's value: `None` for a key that is deleted here, whatever older runs say.
pub(super) type Value<'a> = Option<&'a [u8]>;

#[derive(Debug)]
pub(super) struct Memtable {
    seed: u64,
    arena: Vec<u8>,
    slots: Vec<u64>,
    used: usize,
    /// Bytes of dead entries.
    dead: usize,
    /// How many of the used slots mark a deleted key, and the bytes of their entries.
    deleted: usize,
    deleted_bytes: usize,
    /// Bytes that arena and slots may take together.
    limit: usize,
}

impl Memtable {
    /// `limit`: bytes it may take now; `most`: bytes it may ever take.
    pub(super) fn new(seed: u64, limit: usize, most: usize) -> Self {
        // All of the arena at once: pages that are never touched cost nothing, and growing would copy.
        let arena = Vec::with_capacity(most.min(ARENA_MAX));
        Self {
            seed,
            arena,
            slots: vec![0; FIRST_SLOTS],
            used: 0,
            dead: 0,
            deleted: 0,
            deleted_bytes: 0,
            limit,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) fn bytes(&self) -> usize {
        self.arena.len() + self.slots.len() * 8
    }

    /// Bytes of the entries that count.
    pub(super) fn live_bytes(&self) -> usize {
        self.arena.len() - self.dead
    }

    /// Keys, deleted ones included.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Keys that are marked as deleted.
    pub(super) fn deleted(&self) -> usize {
        self.deleted
    }

    fn crowded(&self) -> bool {
        (self.used + 1) * 5 > self.slots.len() * 4
    }

    fn grown(slots: usize) -> usize {
        slots + slots / 2
    }

    /// Whether another entry fits into the limit. An empty table takes any entry.
    #[inline]
    pub(super) fn fits(&self, key: &[u8], value: Value<'_>) -> bool {
        let arena = self.arena.len() + HEADER + key.len() + value.map_or(0, <[u8]>::len);
        // Old and new table stand side by side while it grows.
        let slots = if self.crowded() {
            self.slots.len() + Self::grown(self.slots.len())
        } else {
            self.slots.len()
        };
        self.used == 0 || (arena + slots * 8 <= self.limit && arena <= ARENA_MAX)
    }

    /// Whether compacting would give back a third of the arena or more.
    pub(super) fn worth_compacting(&self, drop_deleted: bool) -> bool {
        let garbage = self.dead + if drop_deleted { self.deleted_bytes } else { 0 };
        garbage * 3 > self.arena.len()
    }

    fn home(&self, hash: u64) -> usize {
        (((hash >> 32) * self.slots.len() as u64) >> 32) as usize
    }

    fn entry(&self, offset: usize) -> (&[u8], Value<'_>) {
        let (key_length, value_length) = self.lengths(offset);
        let rest = &self.arena[offset + HEADER..];
        let (key, rest) = rest.split_at(key_length);
        (
            key,
            (value_length != DELETED).then(|| &rest[..value_length as usize]),
        )
    }

    fn lengths(&self, offset: usize) -> (usize, u16) {
        let header = &self.arena[offset..offset + HEADER];
        (
            u16::from_le_bytes([header[0], header[1]]) as usize,
            u16::from_le_bytes([header[2], header[3]]),
        )
    }

    fn entry_bytes(&self, offset: usize) -> usize {
        let (key, value) = self.lengths(offset);
        HEADER + key + if value == DELETED { 0 } else { value as usize }
    }

    /// The slot of `key`, or the empty one where it belongs.
    #[inline]
    fn slot(&self, hash: u64, key: &[u8]) -> (usize, Option<usize>) {
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return (at, None);
            }
            if (slot ^ hash) >> 32 == 0 {
                let offset = slot as u32 as usize - 1;
                let (key_length, _) = self.lengths(offset);
                if self.arena[offset + HEADER..].get(..key_length) == Some(key) {
                    return (at, Some(offset));
                }
            }
            at += 1;
            if at == self.slots.len() {
                at = 0;
            }
        }
    }

    /// Asks memory for what looking up these hashes will need, all at once instead of one by one.
    #[inline]
    pub(super) fn warm(&self, hashes: &[u64]) {
        let mut seen = 0;
        for hash in hashes {
            let slot = self.slots[self.home(*hash)];
            if slot != 0 {
                seen ^= self.arena[slot as u32 as usize - 1];
            }
        }
        std::hint::black_box(seen);
    }

    /// `None`: nothing was put for this key.
    #[inline]
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<Value<'_>> {
        let (_, offset) = self.slot(hash, key);
        offset.map(|offset| self.entry(offset).1)
    }

    /// Puts a value or marks the key as deleted. Lengths are the caller's to check.
    pub(super) fn put(&mut self, hash: u64, key: &[u8], value: Value<'_>) {
        let (at, old) = self.slot(hash, key);
        if let Some(offset) = old {
            let (key_length, old_length) = self.lengths(offset);
            if let Some(value) = value
                && old_length as usize == value.len()
                && old_length != DELETED
            {
                let start = offset + HEADER + key_length;
                self.arena[start..start + value.len()].copy_from_slice(value);
                return;
            }
            if old_length == DELETED {
                if value.is_none() {
                    return;
                }
                self.deleted -= 1;
                self.deleted_bytes -= HEADER + key_length;
            }
            self.dead += self.entry_bytes(offset);
        }
        if value.is_none() {
            self.deleted += 1;
            self.deleted_bytes += HEADER + key.len();
        }
        let offset = self.arena.len();
        self.arena
            .extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.arena.extend_from_slice(
            &value
                .map_or(DELETED, |value| value.len() as u16)
                .to_le_bytes(),
        );
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value.unwrap_or_default());
        self.slots[at] = (hash >> 32 << 32) | (offset as u64 + 1);
        if old.is_none() {
            if self.crowded() {
                self.grow();
            }
            self.used += 1;
        }
    }

    fn grow(&mut self) {
        let wider = vec![0; Self::grown(self.slots.len())];
        let old = std::mem::replace(&mut self.slots, wider);
        for slot in old.into_iter().filter(|slot| *slot != 0) {
            self.place(slot);
        }
    }

    fn place(&mut self, slot: u64) {
        let mut at = self.home(slot);
        while self.slots[at] != 0 {
            at = (at + 1) % self.slots.len();
        }
        self.slots[at] = slot;
    }

    /// Slides the entries that count together, and leaves out deleted keys when nothing older exists.
    pub(super) fn compact(&mut self, drop_deleted: bool) {
        let (mut from, mut to) = (0, 0);
        while from < self.arena.len() {
            let bytes = self.entry_bytes(from);
            let (key, value) = self.entry(from);
            let hash = hash_key(self.seed, key);
            // Slots still hold the old offsets, and entries move only to where they have been read.
            let live = self.has_slot(hash, from) && !(drop_deleted && value.is_none());
            if live {
                self.arena.copy_within(from..from + bytes, to);
                to += bytes;
            }
            from += bytes;
        }
        self.arena.truncate(to);
        self.slots.fill(0);
        (self.used, self.dead) = (0, 0);
        if drop_deleted {
            (self.deleted, self.deleted_bytes) = (0, 0);
        }
        let mut offset = 0;
        while offset < to {
            let hash = hash_key(self.seed, self.entry(offset).0);
            self.place((hash >> 32 << 32) | (offset as u64 + 1));
            self.used += 1;
            offset += self.entry_bytes(offset);
        }
    }

    fn has_slot(&self, hash: u64, offset: usize) -> bool {
        let wanted = (hash >> 32 << 32) | (offset as u64 + 1);
        let mut at = self.home(hash);
        while self.slots[at] != 0 {
            if self.slots[at] == wanted {
                return true;
            }
            at = (at + 1) % self.slots.len();
        }
        false
    }

    pub(super) fn clear(&mut self) {
        self.arena.clear();
        self.slots.fill(0);
        (self.used, self.dead, self.deleted, self.deleted_bytes) = (0, 0, 0, 0);
    }

    /// Every key, in the order of putting. (In the order of slots, that is of hashes, all would crowd
    /// at the beginning of a small table that takes them up again.)
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Value<'_>)> {
        let mut next = 0;
        let offsets = std::iter::from_fn(move || {
            let offset = next;
            (offset < self.arena.len()).then(|| {
                next += self.entry_bytes(offset);
                offset
            })
        });
        offsets.filter_map(|offset| {
            let (key, value) = self.entry(offset);
            self.has_slot(hash_key(self.seed, key), offset)
                .then_some((key, value))
        })
    }

    /// The keys of a shard in order.
    pub(super) fn sorted(&self, shard: usize) -> Sorted<'_> {
        let shard_bits = SHARDS.trailing_zeros();
        let first = self.home((shard as u64) << (64 - shard_bits));
        let count = self.slots.len();
        let home_end = if shard + 1 == SHARDS {
            count
        } else {
            self.home((shard as u64 + 1) << (64 - shard_bits)) + 1
        };
        let mut order = Vec::with_capacity(self.used / SHARDS * 5 / 4);
        for step in 0..count {
            let slot = self.slots[(first + step) % count];
            // Past the shard's share stand those of its entries that found it crowded, until a gap.
            if slot == 0 && first + step >= home_end {
                break;
            }
            if slot != 0 && shard_of(slot) == shard {
                order.push((0_u64, slot as u32 - 1));
            }
        }
        let mut shared = usize::MAX;
        if let Some((_, first)) = order.first() {
            let first = self.entry(*first as usize).0;
            for (_, offset) in &order {
                let key = self.entry(*offset as usize).0;
                shared = shared.min(shared_prefix(&first[..first.len().min(shared)], key));
            }
        }
        for (word, offset) in &mut order {
            *word = sort_word(&self.entry(*offset as usize).0[shared..]);
        }
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0)
                .then_with(|| self.entry(a.1 as usize).0.cmp(self.entry(b.1 as usize).0))
        });
        Sorted {
            table: self,
            order,
            at: 0,
        }
    }
}

/// A shard's entries of a memtable, in the order of their keys.
#[derive(Debug)]
pub(super) struct Sorted<'a> {
    table: &'a Memtable,
    order: Vec<(u64, u32)>,
    at: usize,
}

impl<'a> Sorted<'a> {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// The entry at the cursor; `None` past the last.
    pub(super) fn current(&self) -> Option<(&'a [u8], Value<'a>)> {
        self.order
            .get(self.at)
            .map(|(_, offset)| self.table.entry(*offset as usize))
    }

    pub(super) fn advance(&mut self) {
        self.at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_equals_a_map_through_growth_replacement_and_compaction() {
        let mut table = Memtable::new(5, 1 << 20, 1 << 20);
        let mut model: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for n in 0..30_000_u32 {
            let mixed = n.wrapping_mul(2_654_435_761);
            let key = (mixed % 3_000).to_string().into_bytes();
            let value = (mixed % 7 != 0).then(|| vec![n as u8; (mixed >> 8) as usize % 5]);
            table.put(hash_key(5, &key), &key, value.as_deref());
            model.insert(key, value);
            if n % 9_000 == 8_999 {
                let drop_deleted = n > 20_000;
                table.compact(drop_deleted);
                if drop_deleted {
                    model.retain(|_, value| value.is_some());
                }
                assert_eq!(table.live_bytes(), table.arena.len());
            }
        }
        assert_eq!(table.len(), model.len());
        assert_eq!(
            table.deleted(),
            model.values().filter(|value| value.is_none()).count()
        );
        for (key, value) in &model {
            assert_eq!(table.get(hash_key(5, key), key), Some(value.as_deref()));
        }
        assert_eq!(table.get(hash_key(5, b"x"), b"x"), None);
        let mut seen = BTreeMap::new();
        for shard in 0..SHARDS {
            let mut sorted = table.sorted(shard);
            let mut last = None;
            while let Some((key, value)) = sorted.current() {
                assert!(last < Some(key) && shard_of(hash_key(5, key)) == shard);
                last = Some(key);
                seen.insert(key.to_vec(), value.map(<[u8]>::to_vec));
                sorted.advance();
            }
        }
        assert_eq!(seen, model);
        let live: usize = model
            .iter()
            .map(|(key, value)| HEADER + key.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        assert_eq!(table.live_bytes(), live);
        let all: BTreeMap<_, _> = table
            .iter()
            .map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec)))
            .collect();
        assert_eq!((all, table.iter().count()), (model, table.len()));
    }
}

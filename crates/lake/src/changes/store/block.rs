//! A block: some tens of sorted entries in columns, so that a key is found by bisection without
//! decoding, and numbers in values compress well.
//!
//! Payload, numbers with the little end first:
//! - entries (2), flags (1), length of the prefix that all keys share (2)
//! - with `KEYS_EQUAL`: length of what follows the prefix in each key (2)
//! - with `VALUES_EQUAL`: length of each value (2)
//! - the prefix; the keys without it: one after another, before them their ends unless `KEYS_EQUAL`
//! - the values: with `VALUES_EQUAL` all first bytes, then all second bytes and so on; otherwise a bit
//!   per entry (set: the key is deleted), their ends, and the values one after another
//!
//! Ends take two bytes each, or four with `WIDE`. On disk a block is its checksum (4) over the rest,
//! the packing (1: plain or LZ4), for LZ4 the payload's length (4), and the payload.

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use super::hash::shared_prefix;
use super::memtable::Value;

const KEYS_EQUAL: u8 = 1;
const VALUES_EQUAL: u8 = 2;
const WIDE: u8 = 4;
const PLAIN: u8 = 0;
const LZ4: u8 = 1;
/// Bytes of keys and values at which a block is closed.
const BLOCK_BYTES: usize = 2 << 10;
/// No payload is longer: the last entry of a block may have a key and a value of 64 KiB each.
const PAYLOAD_MAX: usize = 1 << 20;

/// Collects sorted entries until there are enough for a block.
pub(super) struct BlockBuilder {
    keys: Vec<u8>,
    key_ends: Vec<u32>,
    values: Vec<u8>,
    value_ends: Vec<u32>,
    deleted: Vec<bool>,
    payload: Vec<u8>,
    packed: Vec<u8>,
    table: CompressTable,
    /// Blocks since packing last helped: data that does not compress is tried only now and then.
    stubborn: u32,
}

impl BlockBuilder {
    pub(super) fn new() -> Self {
        Self {
            keys: Vec::new(),
            key_ends: Vec::new(),
            values: Vec::new(),
            value_ends: Vec::new(),
            deleted: Vec::new(),
            payload: Vec::new(),
            packed: Vec::new(),
            table: CompressTable::small(),
            stubborn: 0,
        }
    }

    pub(super) fn push(&mut self, key: &[u8], value: Value<'_>) {
        self.keys.extend_from_slice(key);
        self.key_ends.push(self.keys.len() as u32);
        self.values.extend_from_slice(value.unwrap_or_default());
        self.value_ends.push(self.values.len() as u32);
        self.deleted.push(value.is_none());
    }

    pub(super) fn is_full(&self) -> bool {
        self.keys.len() + self.values.len() >= BLOCK_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.key_ends.is_empty()
    }

    pub(super) fn first_key(&self) -> &[u8] {
        &self.keys[..self.key_ends.first().map_or(0, |end| *end as usize)]
    }

    pub(super) fn last_key(&self) -> &[u8] {
        let entries = self.key_ends.len();
        &self.keys[if entries < 2 {
            0
        } else {
            self.key_ends[entries - 2] as usize
        }..]
    }

    /// Appends the block as it stands on disk to `out`, and starts another.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        self.build_payload();
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        if self.pack() {
            out.push(LZ4);
            out.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
            out.extend_from_slice(&self.packed);
        } else {
            out.push(PLAIN);
            out.extend_from_slice(&self.payload);
        }
        let check = crc32fast::hash(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&check.to_le_bytes());
        self.keys.clear();
        self.key_ends.clear();
        self.values.clear();
        self.value_ends.clear();
        self.deleted.clear();
    }

    /// Packs the payload; false when that saves less than an eighth.
    fn pack(&mut self) -> bool {
        if self.stubborn >= 4 && !self.stubborn.is_multiple_of(32) {
            self.stubborn += 1;
            return false;
        }
        self.packed
            .resize(get_maximum_output_size(self.payload.len()), 0);
        let packed = compress_into_with_table(&self.payload, &mut self.packed, &mut self.table);
        match packed {
            Ok(bytes) if bytes < self.payload.len() / 8 * 7 => {
                self.packed.truncate(bytes);
                self.stubborn = 0;
                true
            }
            _ => {
                self.stubborn += 1;
                false
            }
        }
    }

    fn build_payload(&mut self) {
        let entries = self.key_ends.len();
        let prefix = shared_prefix(self.first_key(), self.last_key());
        let equal_keys = all_equal(&self.key_ends);
        let equal_values = all_equal(&self.value_ends).filter(|_| !self.deleted.contains(&true));
        let wide =
            self.keys.len() > usize::from(u16::MAX) || self.values.len() > usize::from(u16::MAX);
        let out = &mut self.payload;
        out.clear();
        out.extend_from_slice(&(entries as u16).to_le_bytes());
        out.push(
            equal_keys.map_or(0, |_| KEYS_EQUAL)
                | equal_values.map_or(0, |_| VALUES_EQUAL)
                | if wide { WIDE } else { 0 },
        );
        out.extend_from_slice(&(prefix as u16).to_le_bytes());
        if let Some(length) = equal_keys {
            out.extend_from_slice(&((length - prefix) as u16).to_le_bytes());
        }
        if let Some(length) = equal_values {
            out.extend_from_slice(&(length as u16).to_le_bytes());
        }
        out.extend_from_slice(&self.keys[..prefix]);
        if equal_keys.is_none() {
            for (index, end) in self.key_ends.iter().enumerate() {
                push_end(out, *end - (prefix * (index + 1)) as u32, wide);
            }
        }
        let mut start = 0;
        for end in &self.key_ends {
            out.extend_from_slice(&self.keys[start + prefix..*end as usize]);
            start = *end as usize;
        }
        if let Some(length) = equal_values {
            for column in 0..length {
                out.extend(self.values[column..].iter().step_by(length));
            }
        } else {
            let bits = out.len();
            out.resize(bits + entries.div_ceil(8), 0);
            for (index, deleted) in self.deleted.iter().enumerate() {
                out[bits + index / 8] |= u8::from(*deleted) << (index % 8);
            }
            for end in &self.value_ends {
                push_end(out, *end, wide);
            }
            out.extend_from_slice(&self.values);
        }
    }
}

fn push_end(out: &mut Vec<u8>, end: u32, wide: bool) {
    out.extend_from_slice(&end.to_le_bytes()[..if wide { 4 } else { 2 }]);
}

/// The length of all, if they have one length.
fn all_equal(ends: &[u32]) -> Option<usize> {
    let length = *ends.first()?;
    ends.windows(2)
        .all(|pair| pair[1] - pair[0] == length)
        .then_some(length as usize)
}

/// Checks a block as it stands on disk and unpacks its payload, into `buffer` if it is packed; `None`
/// when it is damaged.
pub(super) fn unpack<'a>(stored: &'a [u8], buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let (check, rest) = stored.split_first_chunk::<4>()?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*check) {
        return None;
    }
    let (packing, rest) = rest.split_first()?;
    match *packing {
        PLAIN => Some(rest),
        LZ4 => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*length) as usize;
            if length > PAYLOAD_MAX {
                return None;
            }
            buffer.resize(length, 0);
            (decompress_into(rest, buffer).ok()? == length).then_some(&buffer[..])
        }
        _ => None,
    }
}

/// Where things stand in a payload.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Layout {
    pub(super) entries: usize,
    wide: bool,
    prefix_at: usize,
    /// Also where the ends of the keys are, or the keys, if they are equally long.
    prefix_end: usize,
    key_length: Option<usize>,
    keys_at: usize,
    value_length: Option<usize>,
    /// Bits of the deleted keys.
    deleted_at: usize,
    value_ends_at: usize,
    values_at: usize,
}

impl Layout {
    /// `None` when the payload is shorter than it says.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let mut at = 5;
        let number = |at: &mut usize| {
            let bytes = payload.get(*at..)?.first_chunk::<2>()?;
            *at += 2;
            Some(u16::from_le_bytes(*bytes) as usize)
        };
        let entries = number(&mut 0)?;
        let flags = *payload.get(2)?;
        let prefix = number(&mut 3)?;
        let key_length = if flags & KEYS_EQUAL == 0 {
            None
        } else {
            Some(number(&mut at)?)
        };
        let value_length = if flags & VALUES_EQUAL == 0 {
            None
        } else {
            Some(number(&mut at)?)
        };
        let wide = flags & WIDE != 0;
        let end_bytes = if wide { 4 } else { 2 };
        let mut layout = Self {
            entries,
            wide,
            prefix_at: at,
            prefix_end: at + prefix,
            key_length,
            value_length,
            ..Self::default()
        };
        layout.keys_at = layout.prefix_end
            + if key_length.is_none() {
                entries * end_bytes
            } else {
                0
            };
        let keys = match key_length {
            Some(length) => entries * length,
            None => layout.end(payload, layout.prefix_end, entries)?,
        };
        let after_keys = layout.keys_at + keys;
        let end = if let Some(length) = value_length {
            layout.values_at = after_keys;
            after_keys + entries * length
        } else {
            layout.deleted_at = after_keys;
            layout.value_ends_at = after_keys + entries.div_ceil(8);
            layout.values_at = layout.value_ends_at + entries * end_bytes;
            layout.values_at + layout.end(payload, layout.value_ends_at, entries)?
        };
        (end == payload.len() && entries > 0).then_some(layout)
    }

    /// Where the first `count` of something end; the ends stand at `at`.
    fn end(&self, payload: &[u8], at: usize, count: usize) -> Option<usize> {
        if count == 0 {
            return Some(0);
        }
        if self.wide {
            let bytes = payload.get(at + (count - 1) * 4..)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*bytes) as usize)
        } else {
            let bytes = payload.get(at + (count - 1) * 2..)?.first_chunk::<2>()?;
            Some(u16::from_le_bytes(*bytes) as usize)
        }
    }

    pub(super) fn prefix<'a>(&self, payload: &'a [u8]) -> &'a [u8] {
        &payload[self.prefix_at..self.prefix_end]
    }

    /// What follows the prefix in the key at `index`.
    #[inline]
    pub(super) fn suffix<'a>(&self, payload: &'a [u8], index: usize) -> &'a [u8] {
        let (start, end) = match self.key_length {
            Some(length) => (index * length, (index + 1) * length),
            None => (
                self.end(payload, self.prefix_end, index).unwrap_or(0),
                self.end(payload, self.prefix_end, index + 1).unwrap_or(0),
            ),
        };
        payload
            .get(self.keys_at + start..self.keys_at + end)
            .unwrap_or_default()
    }

    /// The entry of `key`.
    #[inline]
    pub(super) fn find(&self, payload: &[u8], key: &[u8]) -> Option<usize> {
        let suffix = key.strip_prefix(self.prefix(payload))?;
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.suffix(payload, middle).cmp(suffix) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Whether the key at `index` is marked as deleted.
    #[inline]
    pub(super) fn is_deleted(&self, payload: &[u8], index: usize) -> bool {
        self.value_length.is_none() && payload[self.deleted_at + index / 8] >> (index % 8) & 1 == 1
    }

    /// Appends the value at `index` to `out`.
    #[inline]
    pub(super) fn value(&self, payload: &[u8], index: usize, out: &mut Vec<u8>) {
        let values = &payload[self.values_at..];
        if let Some(length) = self.value_length {
            // Empty values have no columns.
            out.extend(
                values
                    .get(index..)
                    .unwrap_or_default()
                    .iter()
                    .step_by(self.entries)
                    .take(length),
            );
        } else {
            let start = self.end(payload, self.value_ends_at, index).unwrap_or(0);
            let end = self
                .end(payload, self.value_ends_at, index + 1)
                .unwrap_or(0);
            out.extend_from_slice(values.get(start..end).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(entries: &[(Vec<u8>, Option<Vec<u8>>)]) {
        let mut builder = BlockBuilder::new();
        for (key, value) in entries {
            builder.push(key, value.as_deref());
        }
        assert_eq!(
            (builder.first_key(), builder.last_key()),
            (&entries[0].0[..], &entries[entries.len() - 1].0[..])
        );
        let (mut stored, mut payload) = (Vec::new(), Vec::new());
        builder.finish(&mut stored);
        let payload = unpack(&stored, &mut payload).unwrap().to_vec();
        let layout = Layout::parse(&payload).unwrap();
        assert_eq!(layout.entries, entries.len());
        for (index, (key, value)) in entries.iter().enumerate() {
            assert_eq!(layout.find(&payload, key), Some(index));
            let mut longer = key.clone();
            longer.push(0);
            assert!(layout.find(&payload, &longer).is_none() || entries[index + 1].0 == longer);
            assert_eq!(
                [layout.prefix(&payload), layout.suffix(&payload, index)].concat(),
                *key
            );
            let mut found = Vec::new();
            layout.value(&payload, index, &mut found);
            assert_eq!(
                (!layout.is_deleted(&payload, index)).then_some(found),
                *value
            );
        }
        for at in 0..stored.len().min(400) {
            stored[at] ^= 4;
            assert!(unpack(&stored, &mut Vec::new()).is_none(), "{at}");
            stored[at] ^= 4;
        }
        for length in 0..payload.len().min(400) {
            assert!(Layout::parse(&payload[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn blocks_of_all_shapes_read_back() {
        let number = |n: u64| n.to_be_bytes().to_vec();
        round_trip(&[(Vec::new(), Some(Vec::new()))]);
        round_trip(&[(b"k".to_vec(), None)]);
        round_trip(
            &(0..80)
                .map(|n| (number(n * 7), Some(number(n))))
                .collect::<Vec<_>>(),
        );
        round_trip(
            &(0..80)
                .map(|n| (number(n * 7), Some(Vec::new())))
                .collect::<Vec<_>>(),
        );
        round_trip(
            &(0..80)
                .map(|n| (number(n), (n % 3 > 0).then(|| number(n))))
                .collect::<Vec<_>>(),
        );
        round_trip(
            &(10..99_u64)
                .map(|n| (vec![7; n as usize], Some(vec![1; n as usize % 5])))
                .collect::<Vec<_>>(),
        );
        let mixed = |n: u64| number(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20));
        let mut random = (0..300)
            .map(|n| (mixed(n), Some(mixed(n + 1_000))))
            .collect::<Vec<_>>();
        random.sort();
        round_trip(&random);
        round_trip(&[
            (vec![1; 65_535], Some(vec![2; 65_534])),
            (vec![2; 65_535], None),
            (vec![3; 9], Some(vec![4])),
        ]);
    }
}

//! A bloom filter in blocks of 256 bits: one look-up touches one half of a cache line, and sets or
//! asks one bit in each of its eight words. With ten bits a key about 1.2 % of absent keys pass.

/// Odd numbers, one per word, that pick its bit from the low half of the hash.
const PICK: [u32; 8] = [
    0x9e37_79b1,
    0x85eb_ca77,
    0xc2b2_ae3d,
    0x27d4_eb2f,
    0x1656_67b1,
    0xb529_7a4d,
    0x68e3_1da5,
    0x1b56_c4e9,
];

/// Which keys a run may hold.
#[derive(Debug)]
pub(super) struct Filter {
    blocks: Vec<[u32; 8]>,
}

impl Filter {
    /// An empty filter for `keys` keys.
    pub(super) fn new(keys: u64, bits_per_key: u64) -> Self {
        let blocks = (keys * bits_per_key).div_ceil(256).max(1);
        Self {
            blocks: vec![[0; 8]; blocks as usize],
        }
    }

    /// The block of a hash: from its upper half without the bits that chose the shard.
    #[inline]
    fn block(&self, hash: u64) -> usize {
        ((((hash << 4) >> 32) * self.blocks.len() as u64) >> 32) as usize
    }

    #[inline]
    pub(super) fn insert(&mut self, hash: u64) {
        let at = self.block(hash);
        let low = hash as u32;
        for (word, pick) in self.blocks[at].iter_mut().zip(PICK) {
            *word |= 1 << (low.wrapping_mul(pick) >> 27);
        }
    }

    /// False: the key is not there.
    #[inline]
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        let low = hash as u32;
        let mut missing = 0;
        for (word, pick) in self.blocks[self.block(hash)].iter().zip(PICK) {
            missing |= !word & (1 << (low.wrapping_mul(pick) >> 27));
        }
        missing == 0
    }

    pub(super) fn bytes(&self) -> usize {
        self.blocks.len() * 32
    }

    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.bytes());
        for word in self.blocks.iter().flatten() {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// The filter that [`Filter::write_to`] wrote; `None` when the length cannot be one.
    pub(super) fn read_from(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(32) {
            return None;
        }
        let blocks = bytes
            .chunks_exact(32)
            .map(|block| {
                let mut words = [0; 8];
                for (word, chunk) in words.iter_mut().zip(block.as_chunks::<4>().0) {
                    *word = u32::from_le_bytes(*chunk);
                }
                words
            })
            .collect();
        Some(Self { blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash::hash_key;
    use super::*;

    #[test]
    fn every_inserted_key_passes_and_few_others_do_also_after_a_round_trip() {
        let hash = |n: u64| hash_key(3, &n.to_be_bytes());
        let mut filter = Filter::new(20_000, 10);
        (0..20_000).for_each(|n| filter.insert(hash(n)));
        let mut bytes = Vec::new();
        filter.write_to(&mut bytes);
        let filter = Filter::read_from(&bytes).unwrap();
        assert!((0..20_000).all(|n| filter.may_contain(hash(n))));
        let passed = (20_000..120_000)
            .filter(|n| filter.may_contain(hash(*n)))
            .count();
        assert!(passed < 2_500, "{passed} of 100,000 absent keys passed");
        assert!(Filter::read_from(&bytes[1..]).is_none());
    }
}

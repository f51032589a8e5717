//! Keys to look up and values found, each as one arena with offsets: a batch of a million costs a
//! handful of allocations.

/// A batch of keys to look up, in any order; a key may be there twice.
#[derive(Debug, Default, Clone)]
pub(crate) struct Keys {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Keys {
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Room for `keys` keys of `bytes` bytes together.
    pub(crate) fn with_capacity(keys: usize, bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(keys),
        }
    }

    /// Adds a key at the end.
    ///
    /// # Panics
    /// When the keys of the batch pass 4 GiB together.
    pub(crate) fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends
            .push(u32::try_from(self.bytes.len()).expect("a batch of keys holds at most 4 GiB"));
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The key at `index`.
    ///
    /// # Panics
    /// When `index` is not below [`Keys::len`].
    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] as usize
        };
        &self.bytes[start..self.ends[index] as usize]
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// What was found for a batch of keys, in the order of the batch.
#[derive(Debug, Default, Clone)]
pub(crate) struct Values {
    /// Each value after its length (two bytes, little end first), in the order of finding.
    arena: Vec<u8>,
    /// Where the value of each key begins in the arena, or `NONE`.
    starts: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Values {
    pub(super) fn none(keys: usize) -> Self {
        Self {
            arena: Vec::new(),
            starts: vec![NONE; keys],
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The value of the key at `index` of the batch; `None` when the store has no such key.
    ///
    /// # Panics
    /// When `index` is not below [`Values::len`].
    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        let start = self.starts[index];
        if start == NONE {
            return None;
        }
        let rest = &self.arena[start as usize..];
        let (length, rest) = rest.split_first_chunk::<2>()?;
        rest.get(..u16::from_le_bytes(*length) as usize)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Sets the value of a key by letting `fill` append it.
    pub(super) fn set(
        &mut self,
        index: usize,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> std::io::Result<()> {
        let start = self.arena.len();
        if start >= NONE as usize - 0x2_0000 {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the values of one batch of keys pass 4 GiB: look up fewer keys at a time",
            ));
        }
        self.arena.extend_from_slice(&[0; 2]);
        fill(&mut self.arena);
        let length = (self.arena.len() - start - 2) as u16;
        self.arena[start..start + 2].copy_from_slice(&length.to_le_bytes());
        self.starts[index] = start as u32;
        Ok(())
    }
}

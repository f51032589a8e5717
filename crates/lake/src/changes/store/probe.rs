//! Keys that are looked for in runs, sorted so that each block is read once for all of them.

use super::batch::Keys;
use super::hash::{shared_prefix, sort_word};

/// A key that is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    /// Sorts as the key does where the word of another key differs.
    pub(super) word: u64,
    pub(super) hash: u64,
    /// Its place in the batch.
    pub(super) index: u32,
}

/// Sorts probes of one shard by key.
pub(super) fn sort_probes(keys: &Keys, probes: &mut [Probe]) {
    let Some(first) = probes.first().map(|probe| keys.get(probe.index as usize)) else {
        return;
    };
    // Words begin where keys begin to differ: then few of them are equal.
    let shared = probes.iter().fold(first.len(), |shared, probe| {
        shared_prefix(&first[..shared], keys.get(probe.index as usize))
    });
    for probe in &mut *probes {
        probe.word = sort_word(&keys.get(probe.index as usize)[shared..]);
    }
    probes.sort_unstable_by(|a, b| {
        a.word
            .cmp(&b.word)
            .then_with(|| keys.get(a.index as usize).cmp(keys.get(b.index as usize)))
    });
}

//! Which runs of a shard to merge: a pure function of their sizes.
//!
//! Two rules. Runs of similar size are merged when there are four of them, so that there are few and
//! a key is rewritten a logarithmic number of times. And all are merged when too many of the keys are
//! overwritten or deleted, so that the disk holds little more than what counts; a first load, which
//! overwrites nothing, does not pay for that.

use std::ops::Range;

/// Overwritten or deleted keys per key that counts, at which all runs are merged: one in this many.
const GARBAGE_SHARE: u64 = 6;
const SIMILAR: usize = 4;

#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) keys: u64,
    /// Keys marked as deleted, and keys that probably overwrite one in an older run.
    pub(super) garbage: u64,
}

/// What to merge next of `runs`, oldest first.
pub(super) fn next_merge(runs: &[Size]) -> Option<Range<usize>> {
    let keys: u64 = runs.iter().map(|run| run.keys).sum();
    let garbage: u64 = runs.iter().map(|run| run.garbage).sum();
    if runs.len() > 1 && garbage * GARBAGE_SHARE > keys.saturating_sub(garbage) {
        return Some(0..runs.len());
    }
    next_similar(runs)
}

/// What to merge of `runs` when the older ones must stay.
pub(super) fn next_similar(runs: &[Size]) -> Option<Range<usize>> {
    let mut start = runs.len();
    let mut bytes = 0;
    while start > 0 && (start == runs.len() || runs[start - 1].bytes <= bytes) {
        start -= 1;
        bytes += runs[start].bytes;
    }
    (runs.len() - start >= SIMILAR).then_some(start..runs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_of_new_keys_is_rewritten_seldom_and_leaves_few_runs() {
        let mut runs: Vec<Size> = Vec::new();
        let (mut rewritten, mut most) = (0, 0);
        for _ in 0..1_000 {
            runs.push(Size {
                bytes: 10,
                keys: 10,
                garbage: 0,
            });
            while let Some(range) = next_merge(&runs) {
                let bytes = runs.drain(range.clone()).map(|run| run.bytes).sum();
                rewritten += bytes;
                runs.insert(
                    range.start,
                    Size {
                        bytes,
                        keys: bytes,
                        garbage: 0,
                    },
                );
            }
            most = most.max(runs.len());
        }
        assert!(most <= 12, "{most} runs");
        assert!(
            rewritten <= 7 * 10_000,
            "{rewritten} bytes rewritten of 10000"
        );
    }

    #[test]
    fn garbage_is_merged_away_before_it_passes_its_share() {
        let old = Size {
            bytes: 1_000,
            keys: 1_000,
            garbage: 0,
        };
        let fresh = |keys| Size {
            bytes: keys,
            keys,
            garbage: keys,
        };
        assert_eq!(next_merge(&[old, fresh(100)]), None);
        assert_eq!(next_merge(&[old, fresh(100), fresh(90)]), Some(0..3));
        assert_eq!(
            next_merge(&[Size {
                garbage: 900,
                ..old
            }]),
            None
        );
        assert_eq!(next_merge(&[]), None);
    }
}

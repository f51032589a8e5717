//! Which files a pipeline merges by itself, after a commit: few at a time, and none again and again.
//!
//! In a table partition the smallest files are merged, as many as the largest of them is not larger than
//! the others together: so whatever is written again goes into a file of at least twice the size, and a
//! row is written again at most as often as the file target can be halved down to its first file. What
//! is left grows twofold from file to file, so there are few. A file that has lost a share of its rows is
//! written again too, with all smaller ones.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::live::{DeleteKind, LiveFile, LiveFiles, widest},
    plan::{Group, Planned, deleted_rows},
};

/// When files are merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiers {
    /// What is made has at most about this size, in bytes; files of half of it are not merged.
    pub target_file_size: u64,
    /// Fewer files of a table partition are not merged; at least 2.
    pub min_files: usize,
    /// A file is written again when deletes take this share of its rows, above 0 to 1.
    pub deleted_share: f64,
}

/// Files smaller than this part of the target count as that: what they cost a reader is the same.
const SMALLEST: u64 = 4096;

/// A file, as the rule sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sized {
    /// Of the rows that are left, in bytes.
    live_bytes: u64,
    due: bool,
}

impl Tiers {
    /// Whether deletes have taken the share.
    fn is_due(&self, deleted: u64, rows: u64) -> bool {
        deleted > 0 && deleted as f64 >= self.deleted_share * rows as f64
    }

    /// How many of the files, smallest first, are written again.
    fn chosen(&self, files: &[Sized]) -> usize {
        let mut together = 0_u64;
        let mut chosen = 0;
        for (n, file) in files.iter().enumerate() {
            let largest = file.live_bytes;
            let full = n + 1 >= self.min_files.max(2) && largest <= together;
            if file.due || full {
                chosen = n + 1;
            }
            together = together.saturating_add(largest);
        }
        chosen
    }

    fn sized(&self, file: &LiveFile, deleted: u64) -> Sized {
        let deleted = deleted.min(file.rows);
        let left = file.bytes as f64 * (file.rows - deleted) as f64 / file.rows.max(1) as f64;
        Sized {
            live_bytes: (left as u64).max(self.target_file_size / SMALLEST),
            due: self.is_due(deleted, file.rows),
        }
    }
}

/// The groups that are due among the files that `counts`, those of most files first.
pub(super) fn groups(
    live: &LiveFiles,
    tiers: &Tiers,
    counts: impl Fn(&LiveFile) -> bool,
) -> Vec<Group> {
    let mut partitions: HashMap<_, Vec<(Sized, Planned)>> = HashMap::new();
    let mut groups = Vec::new();
    let mut rows_of: HashMap<_, u64> = HashMap::new();
    if !live.by_values().is_empty() {
        for file in live.files() {
            *rows_of
                .entry((file.spec, widest(&file.partition)))
                .or_default() += file.rows;
        }
    }
    for file in live.files().filter(|file| counts(file)) {
        let deletes = live.deletes_of(file);
        // Values are in any file of the table partition that is older.
        let values = deletes
            .iter()
            .filter(|delete| delete.kind == DeleteKind::Equality);
        let values: u64 = values.map(|delete| delete.rows).sum();
        let all = rows_of.get(&(file.spec, widest(&file.partition)));
        let deleted =
            deleted_rows(&deletes) + all.map_or(0, |all| values * file.rows / (*all).max(1));
        let sized = tiers.sized(file, deleted);
        let planned = Planned {
            file: Arc::clone(file),
            due: sized.due,
            deletes,
        };
        if sized.live_bytes >= tiers.target_file_size / 2 {
            if sized.due {
                let files = vec![planned];
                groups.push(Group { files });
            }
            continue;
        }
        let partition = (file.spec, widest(&file.partition));
        partitions
            .entry(partition)
            .or_default()
            .push((sized, planned));
    }
    for mut files in partitions.into_values() {
        files.sort_by(|(a, x), (b, y)| (a, &x.file.path).cmp(&(b, &y.file.path)));
        let sizes: Vec<Sized> = files.iter().map(|(sized, _)| *sized).collect();
        files.truncate(tiers.chosen(&sizes));
        let mut group = Group { files: Vec::new() };
        let mut bytes = 0;
        for (sized, planned) in files {
            if bytes + sized.live_bytes > tiers.target_file_size && !group.files.is_empty() {
                groups.push(std::mem::replace(&mut group, Group { files: Vec::new() }));
                bytes = 0;
            }
            bytes += sized.live_bytes;
            group.files.push(planned);
        }
        groups.push(group);
    }
    groups.retain(|group| group.files.len() > 1 || group.files.iter().any(|file| file.due));
    for group in &mut groups {
        // Rows keep their order.
        let files = &mut group.files;
        files.sort_by(|a, b| (a.file.sequence, &a.file.path).cmp(&(b.file.sequence, &b.file.path)));
    }
    groups.sort_by(|a, b| {
        let key = |group: &Group| {
            (
                usize::MAX - group.files.len(),
                group.files[0].file.path.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIERS: Tiers = Tiers {
        target_file_size: 128 << 20,
        min_files: 4,
        deleted_share: 0.2,
    };

    fn sizes(of: &[u64]) -> Vec<Sized> {
        let due = false;
        of.iter()
            .map(|&live_bytes| Sized { live_bytes, due })
            .collect()
    }

    #[test]
    fn small_files_are_merged_and_a_big_one_is_left_for_its_equals() {
        assert_eq!(TIERS.chosen(&sizes(&[10, 10, 10])), 0);
        assert_eq!(TIERS.chosen(&sizes(&[10, 10, 10, 10])), 4);
        assert_eq!(TIERS.chosen(&sizes(&[10, 10, 10, 10, 1000])), 4);
        assert_eq!(TIERS.chosen(&sizes(&[10, 10, 10, 1000])), 0);
        assert_eq!(TIERS.chosen(&sizes(&[10, 10, 10, 30])), 4);
        assert_eq!(TIERS.chosen(&sizes(&[10, 10, 10, 31])), 0);
        let mut files = sizes(&[10, 20, 1000, 5000]);
        files[2].due = true;
        assert_eq!(TIERS.chosen(&files), 3);
    }

    #[test]
    fn a_share_of_deleted_rows_makes_a_file_due() {
        for (deleted, rows, due) in [
            (0, 0, false),
            (0, 9, false),
            (1, 5, true),
            (199, 1000, false),
        ] {
            assert_eq!(TIERS.is_due(deleted, rows), due, "{deleted} of {rows}");
        }
    }

    proptest! {
        /// Commits of files of about one size: how often each byte is written again, and how many
        /// files there are, both logarithmic.
        #[test]
        fn amplification_and_files_are_logarithmic(
            commits in prop::collection::vec(50_u64..200, 1..600),
            min_files in 2_usize..9,
        ) {
            let tiers = Tiers { min_files, ..TIERS };
            // Size, and how often the oldest of its bytes was written again.
            let mut files: Vec<(u64, u32)> = Vec::new();
            for size in &commits {
                files.push((*size, 0));
                files.sort_unstable();
                let sized: Vec<u64> = files.iter().map(|(size, _)| *size).collect();
                let chosen = tiers.chosen(&sizes(&sized));
                if chosen > 0 {
                    let gone: Vec<_> = files.drain(..chosen).collect();
                    let bytes = gone.iter().map(|(bytes, _)| bytes).sum();
                    let times = gone.iter().map(|(_, times)| times).max().copied();
                    files.push((bytes, times.unwrap_or(0) + 1));
                }
            }
            let total: u64 = commits.iter().sum();
            let halvings = (total as f64 / 50.0).log2();
            let most = files.iter().map(|(_, times)| *times).max().unwrap_or(0);
            prop_assert!(f64::from(most) <= halvings + 1.0, "{most} of {halvings}");
            prop_assert!(files.len() as f64 <= min_files as f64 + halvings, "{files:?}");
        }
    }
}

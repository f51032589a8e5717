//! Which small manifests are merged in a commit: a pure function of their sizes.
//!
//! Manifests are merged with others of about their size, so that each entry is written again a few
//! times in its life and not with every merge, and one group in a commit, so that no commit waits
//! for long.

use std::collections::HashMap;

use iceberg::spec::ManifestFile;

/// The table's limits for manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::iceberg) struct Limits {
    /// `commit.manifest-merge.enabled`.
    pub(in crate::iceberg) merge: bool,
    /// `commit.manifest.min-count-to-merge`: so many of a size are merged into one.
    pub(in crate::iceberg) min_count: usize,
    /// `commit.manifest.target-size-bytes`: no manifest is made larger.
    pub(in crate::iceberg) target_bytes: u64,
}

impl Limits {
    /// From the table's properties; what cannot be read counts as absent.
    pub(in crate::iceberg) fn of(properties: &HashMap<String, String>) -> Self {
        fn read<T: std::str::FromStr>(
            properties: &HashMap<String, String>,
            key: &str,
            default: T,
        ) -> T {
            let value = properties.get(key).and_then(|text| text.parse().ok());
            value.unwrap_or(default)
        }
        Self {
            merge: read(properties, "commit.manifest-merge.enabled", true),
            min_count: read(properties, "commit.manifest.min-count-to-merge", 100).max(2),
            target_bytes: read(properties, "commit.manifest.target-size-bytes", 8 << 20),
        }
    }
}

/// Manifests below this size are of one size class; each further class spans a factor of 16.
const SMALLEST_CLASS: u64 = 64 << 10;

fn class(bytes: u64) -> u32 {
    (bytes / SMALLEST_CLASS)
        .checked_ilog(16)
        .map_or(0, |n| n + 1)
}

/// The manifests, by index, that are to become one; empty: none. They have one spec and one content,
/// and stand in the order of the list.
pub(in crate::iceberg) fn group_to_merge(
    manifests: &[&ManifestFile],
    limits: Limits,
) -> Vec<usize> {
    if !limits.merge || manifests.len() < limits.min_count {
        return Vec::new();
    }
    let mut groups: HashMap<_, Vec<usize>> = HashMap::new();
    for (at, manifest) in manifests.iter().enumerate() {
        let bytes = manifest.manifest_length.unsigned_abs();
        if bytes < limits.target_bytes {
            groups
                .entry((
                    class(bytes),
                    manifest.content as u8,
                    manifest.partition_spec_id,
                ))
                .or_default()
                .push(at);
        }
    }
    let mut full: Vec<_> = groups
        .into_iter()
        .filter(|(_, group)| group.len() >= limits.min_count)
        .collect();
    full.sort_unstable();
    let Some((_, mut group)) = full.into_iter().next() else {
        return Vec::new();
    };
    let mut bytes = 0;
    let fits = group.iter().take_while(|at| {
        bytes += manifests[**at].manifest_length.unsigned_abs();
        bytes <= limits.target_bytes
    });
    let fits = fits.count();
    group.truncate(fits);
    if group.len() < 2 {
        group.clear();
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use iceberg::spec::ManifestContentType;

    fn manifest(bytes: i64, spec: i32, content: ManifestContentType) -> ManifestFile {
        ManifestFile {
            manifest_path: String::new(),
            manifest_length: bytes,
            partition_spec_id: spec,
            content,
            sequence_number: 1,
            min_sequence_number: 1,
            added_snapshot_id: 1,
            added_files_count: Some(1),
            existing_files_count: Some(0),
            deleted_files_count: Some(0),
            added_rows_count: Some(1),
            existing_rows_count: Some(0),
            deleted_rows_count: Some(0),
            partitions: None,
            key_metadata: None,
            first_row_id: None,
        }
    }

    const LIMITS: Limits = Limits {
        merge: true,
        min_count: 4,
        target_bytes: 8 << 20,
    };

    #[test]
    fn the_smallest_of_a_kind_are_merged_first_when_they_are_enough() {
        use ManifestContentType::{Data, Deletes};
        let all: Vec<ManifestFile> = [
            (3 << 20, 0, Data),
            (5000, 0, Data),
            (5000, 1, Data),
            (6000, 0, Deletes),
            (5000, 0, Data),
            (9000, 0, Data),
            (500_000, 0, Data),
        ]
        .into_iter()
        .map(|(bytes, spec, content)| manifest(bytes, spec, content))
        .collect();
        let refs: Vec<&ManifestFile> = all.iter().collect();
        assert_eq!(group_to_merge(&refs, LIMITS), Vec::<usize>::new(), "three");
        let more = manifest(4000, 0, Data);
        let refs: Vec<&ManifestFile> = all.iter().chain([&more]).collect();
        assert_eq!(group_to_merge(&refs, LIMITS), [1, 4, 5, 7]);
        let off = Limits {
            merge: false,
            ..LIMITS
        };
        assert_eq!(group_to_merge(&refs, off), Vec::<usize>::new());
    }

    #[test]
    fn a_merged_manifest_stays_within_the_target() {
        let all: Vec<ManifestFile> = (0..5)
            .map(|_| manifest(3 << 20, 0, ManifestContentType::Data))
            .collect();
        let refs: Vec<&ManifestFile> = all.iter().collect();
        assert_eq!(group_to_merge(&refs, LIMITS), [0, 1]);
    }

    /// The number of manifests stays low, and so does what is written again.
    #[test]
    fn a_thousand_commits_leave_few_manifests() {
        let limits = Limits {
            min_count: 100,
            ..LIMITS
        };
        let mut list: Vec<ManifestFile> = Vec::new();
        let (mut most, mut rewritten) = (0, 0);
        for _ in 0..10_000 {
            let refs: Vec<&ManifestFile> = list.iter().collect();
            let group = group_to_merge(&refs, limits);
            if !group.is_empty() {
                let bytes: i64 = group.iter().map(|at| list[*at].manifest_length).sum();
                rewritten += bytes;
                let mut at = 0;
                list.retain(|_| {
                    at += 1;
                    !group.contains(&(at - 1))
                });
                list.push(manifest(bytes, 0, ManifestContentType::Data));
            }
            list.push(manifest(6000, 0, ManifestContentType::Data));
            most = most.max(list.len());
        }
        assert!(most <= 200, "{most}");
        assert!(rewritten <= 3 * 10_000 * 6000, "{rewritten}");
    }
}

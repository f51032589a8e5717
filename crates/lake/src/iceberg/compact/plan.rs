//! Which files are rewritten together: a function of what is live.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use super::{
    super::live::{DeleteFile, DeleteKind, LiveFile, LiveFiles, widest},
    CompactOptions,
};

/// A file is rewritten when deletes take a share of its rows: one in so many.
const DELETED_SHARE: u64 = 3;

/// Files of one table partition that become one or few.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) files: Vec<Planned>,
}

/// A file, and the deletes that apply to it.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) file: Arc<LiveFile>,
    pub(super) deletes: Vec<Arc<DeleteFile>>,
    /// For the sake of its deletes, however few files there are.
    pub(super) due: bool,
}

impl Group {
    /// Size of its files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|planned| planned.file.bytes).sum()
    }

    fn pays(&self, options: &CompactOptions) -> bool {
        let full = self.files.len() > 1 && self.bytes() >= options.target_file_size;
        full || self.files.len() >= options.min_files.max(2)
            || self.files.iter().any(|planned| planned.due)
    }
}

/// The groups, in the order of their first files' names. Within a group the oldest files come first,
/// so that rows keep their order.
pub(super) fn groups(live: &LiveFiles, options: &CompactOptions) -> Vec<Group> {
    groups_of(live, options, |_| true)
}

/// The same among the files that `counts`.
pub(super) fn groups_of(
    live: &LiveFiles,
    options: &CompactOptions,
    counts: impl Fn(&LiveFile) -> bool,
) -> Vec<Group> {
    let mut planned = Vec::new();
    for file in live.files().filter(|file| counts(file)) {
        let deletes = live.deletes_of(file);
        let due = due(file, &deletes, options.all_deletes);
        if due || file.bytes < options.target_file_size / 4 * 3 {
            planned.push(Planned {
                file: file.clone(),
                deletes,
                due,
            });
        }
    }
    let mut groups = together(planned, options.target_file_size);
    groups.retain(|group| group.pays(options));
    groups.sort_by(|a, b| a.files[0].file.path.cmp(&b.files[0].file.path));
    groups
}

/// Groups of those files that `counts` and from which rows are deleted, of at most so many `bytes` together:
/// those that lose most rows for a byte. Deletes about several files go when these all are written again: where
/// not all fit, files with no others are left alone.
pub(super) fn groups_without_deletes(
    live: &LiveFiles,
    target_file_size: u64,
    bytes: u64,
    counts: impl Fn(&LiveFile) -> bool,
) -> Vec<Group> {
    let files = live.files().filter(|file| counts(file));
    let planned = files.map(|file| Planned {
        file: file.clone(),
        deletes: live.deletes_of(file),
        due: true,
    });
    let planned = planned.filter(|planned| !planned.deletes.is_empty());
    let mut planned: Vec<Planned> = planned.collect();
    let all: u64 = planned.iter().map(|planned| planned.file.bytes).sum();
    if all > bytes {
        planned.retain(|planned| planned.deletes.iter().any(|of| of.referenced.is_some()));
        planned.sort_by_cached_key(|planned| {
            let lost = u128::from(deleted_rows(&planned.deletes)) << 64;
            let each = lost / u128::from(planned.file.bytes.max(1));
            (Reverse(each), planned.file.path.clone())
        });
        let mut left = bytes;
        planned.retain(|planned| match left.checked_sub(planned.file.bytes) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        });
    }
    let mut groups = together(planned, target_file_size);
    groups.sort_by(|a, b| a.files[0].file.path.cmp(&b.files[0].file.path));
    groups
}

/// Groups of at most about so many bytes, each of one table partition.
fn together(files: Vec<Planned>, target_file_size: u64) -> Vec<Group> {
    let mut partitions: HashMap<_, Vec<Planned>> = HashMap::new();
    for planned in files {
        let of = (planned.file.spec, widest(&planned.file.partition));
        partitions.entry(of).or_default().push(planned);
    }
    let mut groups = Vec::new();
    for mut files in partitions.into_values() {
        files.sort_by(|a, b| (a.file.sequence, &a.file.path).cmp(&(b.file.sequence, &b.file.path)));
        let mut group = Group { files: Vec::new() };
        for planned in files {
            if group.bytes() + planned.file.bytes > target_file_size && !group.files.is_empty() {
                groups.push(std::mem::replace(&mut group, Group { files: Vec::new() }));
            }
            group.files.push(planned);
        }
        groups.push(group);
    }
    groups
}

/// Rows that deletes take from a file, as far as they say: those about several files do not.
pub(super) fn deleted_rows(deletes: &[Arc<DeleteFile>]) -> u64 {
    let mut own = deletes.iter().filter(|delete| delete.referenced.is_some());
    // Where there is a vector, it holds everything.
    match own.clone().find(|delete| delete.is_vector()) {
        Some(vector) => vector.rows,
        None => own.by_ref().map(|delete| delete.rows).sum(),
    }
}

fn due(file: &LiveFile, deletes: &[Arc<DeleteFile>], all: bool) -> bool {
    if all {
        return !deletes.is_empty();
    }
    // Deletes of positions in several files do not say how many rows of this one they take; those by
    // values say at least how many there may be.
    let counts = |delete: &&Arc<DeleteFile>| {
        delete.referenced.is_some() || delete.kind == DeleteKind::Equality
    };
    let own = deletes.iter().filter(counts);
    let rows: u64 = own.map(|delete| delete.rows).sum();
    rows > 0 && rows * DELETED_SHARE >= file.rows
}

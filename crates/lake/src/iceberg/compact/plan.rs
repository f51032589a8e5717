//! Which files are rewritten together: a function of what is live.

use std::{collections::HashMap, sync::Arc};

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
    let mut partitions: HashMap<_, Vec<Planned>> = HashMap::new();
    for file in live.files().filter(|file| counts(file)) {
        let deletes = live.deletes_of(file);
        let due = due(file, &deletes, options.all_deletes);
        if due || file.bytes < options.target_file_size / 4 * 3 {
            partitions
                .entry((file.spec, widest(&file.partition)))
                .or_default()
                .push(Planned {
                    file: file.clone(),
                    deletes,
                    due,
                });
        }
    }
    let mut groups = Vec::new();
    for mut files in partitions.into_values() {
        files.sort_by(|a, b| (a.file.sequence, &a.file.path).cmp(&(b.file.sequence, &b.file.path)));
        let mut group = Group { files: Vec::new() };
        for planned in files {
            if group.bytes() + planned.file.bytes > options.target_file_size
                && !group.files.is_empty()
            {
                groups.push(std::mem::replace(&mut group, Group { files: Vec::new() }));
            }
            group.files.push(planned);
        }
        groups.push(group);
    }
    groups.retain(|group| !group.files.is_empty() && group.pays(options));
    groups.sort_by(|a, b| a.files[0].file.path.cmp(&b.files[0].file.path));
    groups
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

//! One step of the upkeep that a pipeline does between its commits: bounded, and told in detail, so that
//! an index of rows can follow.

use std::sync::Arc;

use calve_engine::error::{Error, Result};
use iceberg::spec::FormatVersion;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    super::{
        handle::{Known, TableHandle},
        live::{LiveFile, LiveFiles},
    },
    CompactOptions, Compacted, Rewriter, Rewritten, commit,
    plan::{self, Group},
    tiers::{self, Tiers},
};

/// The files that a turn of several steps is about: those that were there when it began. It comes to an
/// end, whatever is committed meanwhile.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Files of commits after this one are for the next turn …
    up_to: i64,
    /// … and so are those that this one has made, which keep the numbers of those that they replace,
    /// and those that it could not read.
    others: FxHashSet<String>,
}

impl Turn {
    /// A turn that begins with the table as it is.
    pub(crate) fn new(known: &Known) -> Self {
        Self {
            up_to: known.metadata.last_sequence_number(),
            others: FxHashSet::default(),
        }
    }

    /// Leaves files to the next turn.
    pub(crate) fn leave(&mut self, files: &[String]) {
        self.others.extend(files.iter().cloned());
    }

    fn is_about(&self, file: &LiveFile) -> bool {
        file.sequence <= self.up_to && !self.others.contains(&*file.path)
    }
}

/// So many steps go by before files that could not be merged are tried again.
const SPARED_STEPS: u64 = 16;

/// Files that are left alone for a while, since they could not be merged: others have their turn.
#[derive(Debug, Default)]
pub(crate) struct Spared {
    steps: u64,
    /// The last step that leaves each alone. It stays known afterwards, until the file is gone.
    files: FxHashMap<String, u64>,
}

impl Spared {
    /// A step begins, with these files in the table.
    pub(crate) fn begin(&mut self, live: &LiveFiles) {
        self.steps += 1;
        self.files.retain(|path, _| live.get(path).is_some());
    }

    /// Leaves files alone from now on; answers whether that is new of all of them.
    pub(crate) fn leave(&mut self, files: &[String]) -> bool {
        let until = self.steps + SPARED_STEPS;
        let mut new = true;
        for file in files {
            new &= self.files.insert(file.clone(), until).is_none();
        }
        new
    }

    fn is_spared(&self, file: &LiveFile) -> bool {
        let until = self.files.get(&*file.path);
        until.is_some_and(|until| self.steps <= *until)
    }
}

/// Which files are due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due<'a> {
    /// Few at a time, and none again and again.
    ByTiers(&'a Tiers, &'a Spared),
    /// What [`super::compact`] would rewrite, in a turn.
    Whole(&'a CompactOptions, &'a Turn),
    /// Those from which rows are deleted, in a turn; where they have more than so many bytes, those that have
    /// lost most for what they cost.
    Deleted {
        target_file_size: u64,
        bytes: u64,
        turn: &'a Turn,
    },
}

impl Due<'_> {
    fn groups(self, live: &LiveFiles) -> Vec<Group> {
        match self {
            Self::ByTiers(tiers, spared) => {
                tiers::groups(live, tiers, |file| !spared.is_spared(file))
            }
            Self::Whole(options, turn) => {
                plan::groups_of(live, options, |file| turn.is_about(file))
            }
            Self::Deleted {
                target_file_size,
                bytes,
                turn,
            } => plan::groups_without_deletes(live, target_file_size, bytes, |file| {
                turn.is_about(file)
            }),
        }
    }

    fn target_file_size(self) -> u64 {
        match self {
            Self::ByTiers(tiers, _) => tiers.target_file_size,
            Self::Whole(options, _) => options.target_file_size,
            Self::Deleted {
                target_file_size, ..
            } => target_file_size,
        }
    }
}

/// What a step did.
#[derive(Debug)]
pub(crate) struct Merged {
    /// The snapshot that it made.
    pub(crate) snapshot: Option<i64>,
    /// Locations of the data files that came.
    pub(crate) files: Vec<String>,
    pub(crate) done: Compacted,
}

/// Nothing was merged.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// The data files that could not become others, where it is about some; others may be merged.
    pub(crate) files: Vec<String>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            files: Vec::new(),
        }
    }
}

/// Merges the files of a table that are due, until about a target's worth of bytes was read;
/// the rest waits for the next step. None: nothing is due. `live` are the files of `known`; afterwards
/// those that the commit was made upon.
///
/// # Errors
/// As [`super::compact`]. What was written is not referred to then, unless the commit is what failed.
pub(crate) async fn merge(
    handle: &TableHandle,
    known: &Known,
    live: &mut LiveFiles,
    due: Due<'_>,
    options: &CompactOptions,
    pool: Arc<rayon::ThreadPool>,
) -> Result<Option<Merged>, Failed> {
    let mut groups = due.groups(live);
    let mut bytes = 0;
    let fit = groups.iter().position(|group| {
        bytes += group.bytes();
        bytes >= due.target_file_size()
    });
    groups.truncate(fit.map_or(groups.len(), |last| last + 1));
    if groups.is_empty() {
        return Ok(None);
    }
    let metadata = &known.metadata;
    let lineage = metadata.format_version() == FormatVersion::V3;
    let mut rewriter = Rewriter::new(handle, metadata, lineage, options, pool)?;
    // It decodes and filters, which is nothing for the threads of the I/O.
    let runtime = tokio::runtime::Handle::current();
    let rewritten = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let mut batch: Vec<Rewritten> = Vec::new();
            for group in groups {
                let paths = group.files.iter().map(|of| of.file.path.to_string());
                let files = paths.collect();
                match rewriter.rewrite(group).await {
                    Ok(one) => batch.push(one),
                    Err(error) if batch.is_empty() => return Err(Failed { error, files }),
                    // What came before it is merged; it is the first of the next step.
                    Err(_) => break,
                }
            }
            Ok(batch)
        })
    });
    let batch = rewritten
        .await
        .map_err(|e| Error::internal("a task that compacts has died").because(e))??;
    let mut done = Compacted::default();
    let fits = commit(handle, live, &batch, &mut done).await?;
    let files = batch
        .iter()
        .zip(&fits)
        .filter(|(_, fits)| **fits)
        .flat_map(|(one, _)| one.locations())
        .collect();
    Ok(Some(Merged {
        snapshot: done.snapshots.last().and_then(|id| id.parse().ok()),
        files,
        done,
    }))
}

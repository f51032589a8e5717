//! Compaction: many small files of a table partition become few, and rows that are deleted are left
//! out. Rows are the same before and after, and so is everything else of them.
//!
//! Files are grouped by table partition (each of the spec that it was written with) and written into
//! the table's current spec and schema, by the shared writer and so within its memory. A group is
//! committed only if its files are live still and nothing was deleted from them meanwhile; else it is
//! planned again. What is written keeps the sequence number of the state that was read, so that
//! deletes by values which others commit meanwhile apply to it. With format version 3 rows keep their
//! ids. Start with [`compact`].

mod adapt;
mod manifests;
mod plan;
mod read;
mod sort;
mod step;
#[cfg(test)]
mod tests;
mod tiers;

use std::{collections::HashMap, sync::Arc};

use arrow::array::RecordBatch;
use calve_engine::{
    error::{Error, Result},
    fault,
    seams::{Splitter as _, TableWriter as _},
};
use calve_model::Epoch;
use futures::TryStreamExt;
use iceberg::spec::{FormatVersion, Operation, TableMetadata};
use roaring::RoaringTreemap;
use serde::Serialize;

pub(crate) use self::manifests::without_dead_manifests;
pub(super) use self::read::Reader;
pub(crate) use self::step::{Due, Failed, Merged, Spared, Turn, merge};
pub use self::tiers::Tiers;
use self::{plan::Group, read::target_schema};
use super::{
    access::FileAccess,
    catalog::Catalog,
    config::CatalogConfig,
    edit::{AddedFile, Edit, RemovedFile},
    files::Content,
    handle::{TableHandle, Tries},
    live::{DeleteFile, LiveFile, LiveFiles, widest},
    place::IcebergPlacement,
};
use crate::write::{Compression, FanoutSplitter, FanoutWriter, Placement, WriteOptions};

/// What [`compact`] does.
#[derive(Clone, Copy, Debug)]
pub struct CompactOptions {
    /// Files that reach three quarters of it are left alone; new ones have about this size, in bytes.
    pub target_file_size: u64,
    /// Fewer small files of a table partition are left alone.
    pub min_files: usize,
    /// Rewrites every file from which rows are deleted, not only those that lost many.
    pub all_deletes: bool,
    /// Sorts the rows of each new file by the table's sort order; a file's rows are in memory then.
    pub sort: bool,
    /// Rows on their way into files stay within so many bytes, about.
    pub memory_bytes: usize,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// Groups of files that were rewritten.
    pub groups: u64,
    /// Data files that went, and their size.
    pub files_before: u64,
    /// In bytes.
    pub bytes_before: u64,
    /// Data files that came, and their size. Zero with `dry_run`.
    pub files_after: u64,
    /// In bytes.
    pub bytes_after: u64,
    /// Delete files and vectors that went with them.
    pub deletes_removed: u64,
    /// Rows that were left out, since they are deleted. Zero with `dry_run`.
    pub rows_deleted: u64,
    /// Groups that others deleted from, or replaced, each time before they were committed.
    pub groups_left: u64,
    /// The snapshots that were made.
    pub snapshots: Vec<String>,
}

/// Groups that others changed are planned again so often.
const ROUNDS: usize = 5;
/// A commit is made when the groups read since the last one have so many bytes …
const COMMIT_BYTES: u64 = 4 << 30;
/// … or are so many.
const COMMIT_GROUPS: usize = 500;

/// Compacts a table. `pool` encodes. A running pipeline is not disturbed, but for a commit that it has
/// to try again.
///
/// # Errors
/// `Config` for no such table, files without field ids, or no sort order to sort by;
/// `Conflict` when others commit all the time. What was committed before stays.
pub async fn compact(
    config: &CatalogConfig,
    table: &str,
    options: &CompactOptions,
    pool: Arc<rayon::ThreadPool>,
) -> Result<Compacted> {
    let handle = TableHandle::open(Catalog::open(config).await?, table).await?;
    let mut live = LiveFiles::default();
    let mut done = Compacted::default();
    for _ in 0..ROUNDS {
        let known = handle.load_existing().await?;
        handle.live(&known, &mut live).await?;
        let groups = plan::groups(&live, options);
        if options.dry_run {
            for group in &groups {
                done.planned(group);
            }
            return Ok(done);
        }
        if groups.is_empty() {
            done.groups_left = 0;
            break;
        }
        let lineage = known.metadata.format_version() == FormatVersion::V3;
        let mut rewriter = Rewriter::new(&handle, &known.metadata, lineage, options, pool.clone())?;
        let mut waiting: Vec<Rewritten> = Vec::new();
        let mut changed = 0;
        let groups_left = groups.len();
        for (n, group) in groups.into_iter().enumerate() {
            waiting.push(rewriter.rewrite(group).await?);
            let bytes: u64 = waiting.iter().map(|one| one.group.bytes()).sum();
            let last = n + 1 == groups_left;
            if last || bytes >= COMMIT_BYTES || waiting.len() >= COMMIT_GROUPS {
                let batch = std::mem::take(&mut waiting);
                let fits = commit(&handle, &mut live, &batch, &mut done).await?;
                changed += fits.iter().filter(|fits| !**fits).count();
            }
        }
        done.groups_left = changed as u64;
        if changed == 0 {
            break;
        }
    }
    match without_dead_manifests(&handle).await {
        Ok(snapshot) => done.snapshots.extend(snapshot),
        Err(error) => tracing::warn!(%error, "manifests of deletes that are gone stay for now"),
    }
    Ok(done)
}

impl Compacted {
    fn planned(&mut self, group: &Group) {
        self.groups += 1;
        self.files_before += group.files.len() as u64;
        self.bytes_before += group.bytes();
    }
}

/// A group, and the files that take its place.
struct Rewritten {
    group: Group,
    /// None: every row is deleted.
    content: Option<Content>,
    rows: u64,
    /// Data sequence number of the new files.
    sequence: i64,
}

impl Rewritten {
    /// Whether its files are as they were read.
    fn holds(&self, live: &LiveFiles) -> bool {
        self.group.files.iter().all(|planned| {
            let same = |now: &Arc<LiveFile>| now.sequence == planned.file.sequence;
            live.get(&planned.file.path).is_some_and(same)
                && live
                    .deletes_of(&planned.file)
                    .iter()
                    .map(identity)
                    .eq(planned.deletes.iter().map(identity))
        })
    }

    fn locations(&self) -> impl Iterator<Item = String> {
        self.content.iter().flat_map(Content::locations)
    }
}

fn identity(delete: &Arc<DeleteFile>) -> (&str, super::live::DeleteKind) {
    (&delete.path, delete.kind)
}

/// Commits groups in one snapshot; answers which of them, since others may have changed some.
async fn commit(
    handle: &TableHandle,
    live: &mut LiveFiles,
    batch: &[Rewritten],
    done: &mut Compacted,
) -> Result<Vec<bool>> {
    fault::point("iceberg.compact.before_commit")?;
    let mut tries = Tries::new(handle);
    let (fits, deletes, snapshot) = loop {
        let known = tries.load().await?;
        handle.live(&known, live).await?;
        let fits: Vec<bool> = batch.iter().map(|one| one.holds(live)).collect();
        let (edit, deletes) = plan_edit(live, batch, &fits, &known.metadata)?;
        check_written(&handle.access, batch, &fits).await?;
        if edit.removed.is_empty() {
            break (fits, 0, None);
        }
        if let Some(snapshot) = tries.commit(&known, edit).await? {
            break (fits, deletes, Some(snapshot));
        }
    };
    for (one, fits) in batch.iter().zip(&fits) {
        if *fits {
            let (before, content) = (&one.group.files, one.content.as_ref());
            let rows: u64 = before.iter().map(|planned| planned.file.rows).sum();
            done.planned(&one.group);
            done.files_after += content.map_or(0, |content| content.files.len() as u64);
            done.bytes_after += content.map_or(0, Content::bytes);
            done.rows_deleted += rows.saturating_sub(one.rows);
        } else {
            // They were left out of the commit; but one whose answer was lost may have had them, and
            // have come late.
            let files: Vec<String> = one.locations().collect();
            if files.iter().all(|file| live.get(file).is_none()) {
                handle.access.discard(&files).await;
            }
        }
    }
    done.deletes_removed += deletes;
    done.snapshots.extend(snapshot);
    Ok(fits)
}

/// Replaces the files of those groups that fit still. Answers also how many deletes go with them.
fn plan_edit(
    live: &LiveFiles,
    batch: &[Rewritten],
    fits: &[bool],
    metadata: &TableMetadata,
) -> Result<(Edit, u64)> {
    let valid = || {
        let both = batch.iter().zip(fits);
        both.filter_map(|(one, fits)| fits.then_some(one))
    };
    let mut edit = Edit::new(Operation::Replace);
    edit.summary
        .insert("calve.upkeep".to_owned(), "compact".to_owned());
    for one in valid() {
        add(&mut edit, one, metadata)?;
    }
    let files: Vec<&Arc<LiveFile>> = valid()
        .flat_map(|one| one.group.files.iter().map(|planned| &planned.file))
        .collect();
    let kept = valid().map(|one| one.sequence).min().unwrap_or(i64::MAX);
    let gone = deletes_without(live, &files, kept);
    edit.removed
        .extend(files.iter().map(|file| RemovedFile::data(file)));
    edit.removed
        .extend(gone.iter().map(|delete| RemovedFile::delete(delete)));
    Ok((edit, gone.len() as u64))
}

fn add(edit: &mut Edit, one: &Rewritten, metadata: &TableMetadata) -> Result<()> {
    let Some(content) = &one.content else {
        return Ok(());
    };
    for file in content.data_files(metadata)? {
        edit.added.push(AddedFile {
            file,
            spec: content.spec,
            schema: content.schema,
            sequence: Some(one.sequence),
        });
    }
    Ok(())
}

/// That what is about to be committed is there.
async fn check_written(access: &FileAccess, batch: &[Rewritten], fits: &[bool]) -> Result<()> {
    let both = batch.iter().zip(fits).filter(|(_, fits)| **fits);
    let locations = both.flat_map(|(one, _)| one.locations()).collect();
    match access.missing(locations).await? {
        None => Ok(()),
        Some(location) => Err(Error::corrupt(format!(
            "a file that was just written is gone: file={location}"
        ))
        .hint("something removes files that nothing refers to yet: let it spare young ones")),
    }
}

/// Deletes that are about nothing once these files are gone; those that come have the sequence number
/// `new`.
fn deletes_without(live: &LiveFiles, gone: &[&Arc<LiveFile>], new: i64) -> Vec<Arc<DeleteFile>> {
    let mut deletes: Vec<Arc<DeleteFile>> = gone
        .iter()
        .flat_map(|file| live.scoped_to(&file.path).iter().cloned())
        .chain(live.dangling().cloned())
        .collect();
    // The oldest file that stays, of each table partition that loses some.
    let mut oldest: HashMap<_, i64> = gone
        .iter()
        .map(|file| ((file.spec, widest(&file.partition)), i64::MAX))
        .collect();
    let paths: std::collections::HashSet<&str> = gone.iter().map(|file| &*file.path).collect();
    let mut oldest_of_all = new;
    for file in live.files().filter(|file| !paths.contains(&*file.path)) {
        oldest_of_all = oldest_of_all.min(file.sequence);
        if let Some(sequence) = oldest.get_mut(&(file.spec, widest(&file.partition))) {
            *sequence = file.sequence.min(*sequence);
        }
    }
    deletes.extend(live.wide().filter_map(|delete| {
        let stays = oldest.get(&(delete.spec, widest(&delete.partition)))?;
        (delete.sequence < *stays).then(|| delete.clone())
    }));
    // Deletes by values are about older files alone.
    deletes.extend(live.by_values().iter().filter_map(|delete| {
        let stays = if delete.is_global() {
            oldest_of_all
        } else {
            *oldest
                .get(&(delete.spec, widest(&delete.partition)))?
                .min(&new)
        };
        (delete.sequence <= stays).then(|| delete.clone())
    }));
    deletes
}

/// Files that take the place of others without some of their rows: copy on write. `lineage`: rows keep
/// the ids that they have, in format version 3. What is written is durable, and nothing refers to it.
///
/// # Errors
/// Those of reading and writing.
pub(crate) async fn without_rows(
    handle: &TableHandle,
    metadata: &TableMetadata,
    files: Vec<(Arc<LiveFile>, RoaringTreemap)>,
    lineage: bool,
    options: &CompactOptions,
    pool: Arc<rayon::ThreadPool>,
) -> Result<Vec<AddedFile>> {
    let lineage = lineage && metadata.format_version() == FormatVersion::V3;
    let mut rewriter = Rewriter::new(handle, metadata, lineage, options, pool)?;
    for (file, deleted) in files {
        let mut rows = rewriter.reader.rows_without(&file, deleted).await?;
        while let Some(batch) = rows.try_next().await? {
            rewriter.append(batch).await?;
        }
    }
    rewriter.added(metadata).await
}

/// New files of some rows of others, which `change` gets in the order of the files and of their rows.
/// They are rows of their own: they do not keep their ids. What is written is durable, and nothing refers
/// to it.
///
/// # Errors
/// Those of reading and writing, and those of `change`.
pub(crate) async fn some_rows(
    handle: &TableHandle,
    metadata: &TableMetadata,
    files: Vec<(Arc<LiveFile>, RoaringTreemap)>,
    mut change: impl FnMut(&RecordBatch) -> Result<RecordBatch> + Send,
    options: &CompactOptions,
    pool: Arc<rayon::ThreadPool>,
) -> Result<Vec<AddedFile>> {
    let mut rewriter = Rewriter::new(handle, metadata, false, options, pool)?;
    for (file, wanted) in files {
        let mut rows = rewriter.reader.only(&file, &wanted).await?;
        while let Some(batch) = rows.try_next().await? {
            rewriter.append(change(&batch)?).await?;
        }
    }
    rewriter.added(metadata).await
}

/// Reads groups and writes their rows.
struct Rewriter {
    reader: Reader,
    splitter: FanoutSplitter,
    writer: FanoutWriter,
    sort: Option<sort::Sort>,
    sequence: i64,
}

impl Rewriter {
    fn new(
        handle: &TableHandle,
        metadata: &TableMetadata,
        lineage: bool,
        options: &CompactOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self> {
        let schema = target_schema(metadata, lineage)?;
        let reader = Reader::new(handle.access.clone(), &schema, lineage)?;
        let placement =
            IcebergPlacement::with_schema(metadata, schema.clone(), &reader.arrow_schema())?;
        let root = placement.root().to_owned();
        let placement: Arc<dyn Placement> = Arc::new(placement);
        let properties = metadata.properties();
        let codec = properties.get("write.parquet.compression-codec");
        let write = WriteOptions {
            target_file_size: options.target_file_size,
            memory_bytes: options.memory_bytes,
            compression: codec
                .and_then(|codec| codec.parse::<Compression>().ok())
                .unwrap_or_default(),
            bloom_filters: super::bloom_filters(properties).collect(),
            ..WriteOptions::default()
        };
        Ok(Self {
            reader,
            splitter: FanoutSplitter::new(placement.clone()),
            writer: handle
                .access
                .writer(&root, "compact", placement, &write, pool)?,
            sort: options
                .sort
                .then(|| sort::Sort::new(metadata, &handle.table))
                .transpose()?,
            sequence: metadata.last_sequence_number(),
        })
    }

    async fn rewrite(&mut self, group: Group) -> Result<Rewritten> {
        let mut whole = Vec::new();
        for planned in &group.files {
            let mut rows = self.reader.rows(&planned.file, &planned.deletes).await?;
            while let Some(batch) = rows.try_next().await? {
                if self.sort.is_some() {
                    whole.push(batch);
                } else {
                    self.append(batch).await?;
                }
            }
        }
        if let Some(sort) = &self.sort
            && let Some(sorted) = sort.apply(&whole)?
        {
            drop(whole);
            self.append(sorted).await?;
        }
        let prepared = self.writer.seal(Epoch::NONE).finish().await?;
        let content = (prepared.files > 0).then(|| Content::from_json(&prepared.content));
        Ok(Rewritten {
            group,
            content: content.transpose()?,
            rows: prepared.rows,
            sequence: self.sequence,
        })
    }

    /// The files that it has written, for a commit.
    async fn added(mut self, metadata: &TableMetadata) -> Result<Vec<AddedFile>> {
        let prepared = self.writer.seal(Epoch::NONE).finish().await?;
        if prepared.files == 0 {
            return Ok(Vec::new());
        }
        let content = Content::from_json(&prepared.content)?;
        let (spec, schema) = (content.spec, content.schema);
        let added = content
            .data_files(metadata)?
            .into_iter()
            .map(|file| AddedFile {
                file,
                spec,
                schema,
                sequence: None,
            });
        Ok(added.collect())
    }

    async fn append(&mut self, batch: RecordBatch) -> Result<()> {
        let split = self.splitter.split(batch)?;
        self.writer.append(split).await
    }
}

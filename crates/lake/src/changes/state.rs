//! The table and the index of keys, brought to one snapshot: by what foreign commits have added, or
//! from the beginning.

use std::{path::PathBuf, sync::Arc, time::Instant};

use arrow::array::RecordBatch;
use calve_engine::{
    checkpoint::Checkpoints,
    error::{Error, Result},
    seams::Commit,
};
use calve_model::Epoch;
use iceberg::spec::TableMetadata;
use roaring::RoaringTreemap;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    index::{FileId, KeyIndex, Reflects},
    keys::KeyCodec,
    resolve::{Indexer, Positions},
    stored::StoredColumns,
    tombstones::{self, RunName},
};
use crate::iceberg::{
    deletes::deleted_rows,
    evolve::Evolved,
    files::from_hex,
    handle::{Known, TableHandle},
    held::{self, Held, ancestors, of_shard, summary},
    live::{LiveFile, LiveFiles},
    unite::moved_ids,
};

/// Summary: a TRUNCATE removed rows up to this order.
pub(crate) const TRUNCATED: &str = "calve.truncated";

/// What is needed to read keys.
#[derive(Clone)]
pub(crate) struct Reading {
    /// What the table's schema is to become: until it has, others may take the ids of new columns.
    pub(crate) evolved: Option<Arc<Evolved>>,
    pub(crate) codec: Arc<KeyCodec>,
    pub(crate) columns: Arc<StoredColumns>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) folder: PathBuf,
    pub(crate) memory_bytes: usize,
}

/// The table's files and the index, at one snapshot.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) index: Option<KeyIndex>,
    /// What the index reflects; none: nothing known.
    at: Option<Reflects>,
    pub(crate) live: LiveFiles,
    pub(crate) files: FxHashMap<FileId, Arc<LiveFile>>,
    pub(crate) ids: FxHashSet<FileId>,
    /// The files that the index has seen at a snapshot; unknown in an index that was just opened.
    seen: Option<Seen>,
    /// Files that come with the next commit, and hold rows that were in others.
    written: Vec<FileId>,
    /// Rows that the next commit deletes, since another row has their key.
    pub(crate) lost: Positions,
}

/// The files that were live at a snapshot, perhaps with some that are not any more.
struct Seen {
    at: Option<i64>,
    files: FxHashSet<FileId>,
}

/// Files to be put into the index, with the rows of them that are deleted.
type Added = Vec<(Arc<LiveFile>, RoaringTreemap)>;

impl State {
    /// Forgets what the index says: something failed on the way.
    pub(crate) fn forget(&mut self) {
        if let Some(index) = self.index.take() {
            index.close();
        }
        self.at = None;
        self.lost.clear();
        self.written.clear();
    }

    /// The index reflects the table after a commit that made this snapshot (none: it made none) of
    /// the files that were there and `new` ones.
    pub(crate) fn committed(
        &mut self,
        snapshot: Option<i64>,
        new: impl Iterator<Item = FileId>,
    ) -> Result<()> {
        let Some(at) = &mut self.at else {
            return Ok(());
        };
        at.snapshot = snapshot.or(at.snapshot);
        let mut files = self.ids.clone();
        files.extend(new.chain(self.written.drain(..)));
        self.seen = Some(Seen {
            at: at.snapshot,
            files,
        });
        self.lost.clear();
        match &mut self.index {
            Some(index) => index.commit(at.clone()),
            None => Ok(()),
        }
    }

    /// Brings files and index to the state of the table in `known`.
    ///
    /// # Errors
    /// `Corrupt` when the table cannot be read, `Config` when it has what calve does not apply, or
    /// two rows of one key before the first commit; those of disk and checkpoint store.
    pub(crate) async fn reach(
        &mut self,
        handle: &TableHandle,
        known: &Known,
        held: Option<&Held>,
        commit: &Commit,
        reading: &Reading,
    ) -> Result<()> {
        let metadata = &known.metadata;
        if let Some(evolved) = &reading.evolved {
            reading.codec.readdress(&moved_ids(metadata, evolved)?);
        }
        let wanted = Reflects {
            table: metadata.uuid().to_string(),
            fingerprint: reading.codec.fingerprint(),
            snapshot: metadata.current_snapshot_id(),
            floor: None,
        };
        if self.index.is_none() {
            let reading = reading.clone();
            let (index, reflects) =
                blocking(move || KeyIndex::open(&reading.folder, reading.memory_bytes)).await??;
            self.index = Some(index);
            self.at =
                reflects.filter(|r| r.table == wanted.table && r.fingerprint == wanted.fingerprint);
        }
        handle.live(known, &mut self.live).await?;
        self.files = by_id(&self.live)?;
        self.ids = self.files.keys().copied().collect();
        // One that starts over knows nothing of the orders of deleted keys, and of no TRUNCATE.
        let first = held.is_none() && commit.previous == Epoch::NONE;
        let at = self.at.as_ref().map(|at| at.snapshot);
        if at == Some(wanted.snapshot) && !first {
            // Killed behind a TRUNCATE that made no snapshot, the index does not know of it.
            if let (Some(index), Some(floor)) = (&mut self.index, told_floor(metadata, commit)) {
                index.raise_floor(&floor);
            }
            self.see_all(wanted.snapshot);
            return Ok(());
        }
        // Since what the index has seen, only others have committed: what they added is enough.
        let seen = self
            .seen
            .take()
            .filter(|seen| at == Some(seen.at) && only_others(metadata, seen.at, commit));
        let others = seen.is_some();
        let is_new = |id: &FileId| seen.as_ref().is_none_or(|seen| !seen.files.contains(id));
        let files = self.files.iter().filter(|(id, _)| is_new(id));
        let files: Vec<Arc<LiveFile>> = files.map(|(_, file)| file.clone()).collect();
        let added = self.with_deletes(handle, files).await?;
        let buried = if others {
            None
        } else {
            let held = held.map_or(Epoch::NONE, |held| held.epoch);
            Some(buried(&reading.checkpoints, held).await?)
        };
        let mut index = self.take_index()?;
        // Older versions left it to a snapshot.
        let mut ours =
            ancestors(metadata).filter(|s| !first && of_shard(s, &commit.pipeline, &commit.shard));
        let truncated = ours.find_map(|s| summary(s, TRUNCATED)).and_then(from_hex);
        // What the index knew holds still, wherever it was said.
        let known = self.at.as_ref().filter(|_| !first);
        let known = known.and_then(|_| index.floor().map(<[u8]>::to_vec));
        let floor = told_floor(metadata, commit).max(truncated).max(known);
        let key = reading.codec.key_names();
        let (ids, reading) = (std::mem::take(&mut self.ids), reading.clone());
        let (index, ids, done) = blocking(move || {
            let done = fill(&mut index, &ids, added, buried, floor, &reading);
            (index, ids, done)
        })
        .await?;
        (self.index, self.ids) = (Some(index), ids);
        let lost = done?;
        if first && !lost.is_empty() {
            let rows: u64 = lost.values().map(RoaringTreemap::len).sum();
            return Err(Error::config(format!(
                "rows of the table have the same key: table={} key={} rows={rows}",
                handle.table,
                key.join(",")
            ))
            .hint("remove the duplicates, or name more columns in `changes.key`"));
        }
        for (file, rows) in lost {
            *self.lost.entry(file).or_default() |= rows;
        }
        // Kept, so that a conflict does not make it read the same files again. What lost its key must be
        // found again until it is deleted.
        if self.lost.is_empty()
            && let Some(index) = &mut self.index
        {
            index.commit(wanted.clone())?;
        }
        self.see_all(wanted.snapshot);
        self.at = Some(wanted);
        Ok(())
    }

    /// Whether the index knows the table at this snapshot, and nothing is left to be deleted.
    pub(crate) fn is_at(&self, snapshot: Option<i64>) -> bool {
        let at = self.at.as_ref().map(|at| at.snapshot);
        self.index.is_some() && at == Some(snapshot) && self.lost.is_empty()
    }

    /// # Errors
    /// `Internal` when it is not open.
    pub(crate) fn take_index(&mut self) -> Result<KeyIndex> {
        let index = self.index.take();
        index.ok_or_else(|| Error::internal("the index is not open"))
    }

    /// The index follows a snapshot in which rows have moved; `live` are its files.
    ///
    /// # Errors
    /// Those of the index.
    pub(crate) fn merged(&mut self, snapshot: i64) -> Result<()> {
        self.files = by_id(&self.live)?;
        self.ids = self.files.keys().copied().collect();
        self.see_all(Some(snapshot));
        match (&mut self.at, &mut self.index) {
            (Some(at), Some(index)) => {
                at.snapshot = Some(snapshot);
                index.commit(at.clone())
            }
            _ => Ok(()),
        }
    }

    /// The index knows these files of a later snapshot, too, of which it does not know all.
    pub(crate) fn wrote(&mut self, files: &[String]) {
        if let Some(seen) = &mut self.seen {
            seen.files.extend(files.iter().map(|path| FileId::of(path)));
        }
    }

    /// These files come with the next commit, and hold rows that were in others.
    pub(crate) fn brings(&mut self, paths: &[String]) {
        let files = paths.iter().map(|path| FileId::of(path));
        self.written.extend(files);
    }

    fn see_all(&mut self, at: Option<i64>) {
        let files = self.ids.clone();
        self.seen = Some(Seen { at, files });
    }

    /// Rows have moved to files that come with this commit; `live` are the files after it but these.
    ///
    /// # Errors
    /// Those of reading and of the index; the index is of no use then.
    pub(crate) async fn moved(
        &mut self,
        paths: Vec<String>,
        live: FxHashSet<FileId>,
        reading: &Reading,
    ) -> Result<()> {
        let mut index = self.take_index()?;
        let reading = reading.clone();
        self.brings(&paths);
        let (index, done) = blocking(move || {
            let mut indexer = Indexer {
                index: &mut index,
                codec: &reading.codec,
                columns: &reading.columns,
                live: &live,
            };
            let none = RoaringTreemap::new();
            let mut lost = Positions::default();
            let mut done = Ok(());
            for path in paths {
                done = done.and_then(|()| indexer.add(&path, &none, &mut lost));
            }
            if done.is_ok() && !lost.is_empty() {
                done = Err(Error::internal(
                    "a row that was moved has the key of another",
                ));
            }
            (index, done)
        })
        .await?;
        self.index = Some(index);
        done
    }

    async fn with_deletes(&self, handle: &TableHandle, files: Vec<Arc<LiveFile>>) -> Result<Added> {
        let mut added = Vec::with_capacity(files.len());
        for file in files {
            let deletes = self.live.deletes_of(&file);
            let rows = deleted_rows(handle.access.io(), &file, &deletes).await?;
            added.push((file, rows));
        }
        // Of two rows of one key the one that was written later counts.
        added.sort_by(|(a, _), (b, _)| (a.sequence, &a.path).cmp(&(b.sequence, &b.path)));
        Ok(added)
    }
}

fn by_id(live: &LiveFiles) -> Result<FxHashMap<FileId, Arc<LiveFile>>> {
    let mut files = FxHashMap::default();
    for file in live.files() {
        if let Some(other) = files.insert(FileId::of(&file.path), file.clone()) {
            let other: Arc<LiveFile> = other;
            return Err(Error::internal(format!(
                "two files have one hash: file={} file={}",
                file.path, other.path
            ))
            .hint("compact the table: its files get other names"));
        }
    }
    Ok(files)
}

/// Changes below this order came too late, as the table says.
fn told_floor(metadata: &TableMetadata, commit: &Commit) -> Option<Vec<u8>> {
    let name = held::truncated_property(&commit.pipeline, &commit.shard);
    metadata
        .properties()
        .get(&name)
        .and_then(|hex| from_hex(hex))
}

/// Since `from` nobody of this shard has committed.
fn only_others(metadata: &TableMetadata, from: Option<i64>, commit: &Commit) -> bool {
    for snapshot in ancestors(metadata) {
        if Some(snapshot.snapshot_id()) == from {
            return true;
        }
        if of_shard(snapshot, &commit.pipeline, &commit.shard) {
            return false;
        }
    }
    from.is_none()
}

/// The keys that committed epochs deleted, with the time of each run, oldest first.
async fn buried(checkpoints: &Checkpoints, held: Epoch) -> Result<Vec<(u32, Vec<RecordBatch>)>> {
    let mut runs: Vec<RunName> = checkpoints
        .runs()
        .await?
        .iter()
        .filter_map(|name| RunName::parse(name))
        .filter(|run| run.epoch <= held)
        .collect();
    runs.sort_by(|a, b| (a.epoch, &a.name).cmp(&(b.epoch, &b.name)));
    let mut buried = Vec::new();
    for run in runs {
        let rows = tombstones::read(checkpoints, &run.name).await?;
        buried.push((u32::try_from(run.written).unwrap_or(u32::MAX), rows));
    }
    Ok(buried)
}

/// Puts files into the index; with `buried`, makes it anew.
fn fill(
    index: &mut KeyIndex,
    ids: &FxHashSet<FileId>,
    added: Added,
    buried: Option<Vec<(u32, Vec<RecordBatch>)>>,
    floor: Option<Vec<u8>>,
    reading: &Reading,
) -> Result<Positions> {
    let begun = Instant::now();
    let anew = buried.is_some();
    if anew {
        index.clear()?;
    }
    if let Some(floor) = floor {
        index.raise_floor(&floor);
    }
    let mut indexer = Indexer {
        index,
        codec: &reading.codec,
        columns: &reading.columns,
        live: ids,
    };
    if reading.codec.ordered() {
        for (at, batches) in buried.into_iter().flatten() {
            for rows in batches {
                indexer.bury(&rows, at)?;
            }
        }
    }
    let mut lost = Positions::default();
    let (files, mut rows) = (added.len(), 0);
    for (file, deleted) in added {
        indexer.add(&file.path, &deleted, &mut lost)?;
        rows += file.rows;
    }
    if rows > 0 {
        let ms = begun.elapsed().as_millis() as u64;
        tracing::info!(
            files,
            rows,
            anew,
            ms,
            "read keys of the table into the index"
        );
    }
    Ok(lost)
}

/// Runs what blocks away from the threads of the I/O.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("a blocking task died").because(e))
}

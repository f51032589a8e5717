//! Makes changes visible: settles them against the snapshot that the table has now, and commits data
//! files and deletes as one. Positions are found anew at each try, since somebody's compaction may have
//! moved the rows.

use std::sync::Arc;

use async_trait::async_trait;
use calve_engine::{
    clock::now_ms,
    error::{Error, ErrorKind, Result},
    fault,
    seams::{Commit, Outcome, Output, OutputState},
};
use iceberg::spec::{FormatVersion, Operation, Schema};
use rayon::ThreadPool;
use tokio::sync::Mutex;

use super::{
    by_value,
    config::Deletes,
    content::ChangesContent,
    deletes::{self, Deleted, Marked},
    index::FileId,
    resolve::{Positions, ReadChunk, Resolved, Resolver},
    state::{Reading, State, TRUNCATED, blocking},
    tombstones,
    upkeep::{Turns, Upkeep},
};
use crate::iceberg::{
    commit::{check_files, fit_schema, state_of},
    compact::{CompactOptions, without_rows},
    edit::{AddedFile, Edit, RemovedFile},
    epochs::{self, EpochMark, Step},
    files::{Content, from_hex, to_hex},
    handle::{Known, TableHandle},
    held::{self, CHANGES, Held},
    unite,
};

/// Summary: changes of the epoch that were older than what the table held.
const STALE: &str = "calve.stale-changes";

/// A table of changes, as the place where epochs become visible.
pub(crate) struct ChangesOutput {
    pub(crate) handle: TableHandle,
    pub(crate) reading: Reading,
    deletes: Deletes,
    /// For data files that are written again.
    pub(crate) rewrite: CompactOptions,
    pub(super) turns: Turns,
    pub(crate) pool: Arc<ThreadPool>,
    pub(crate) state: Mutex<State>,
}

impl ChangesOutput {
    pub(crate) fn new(
        handle: TableHandle,
        reading: Reading,
        deletes: Deletes,
        rewrite: CompactOptions,
        upkeep: Upkeep,
        pool: Arc<ThreadPool>,
    ) -> Self {
        Self {
            handle,
            reading,
            deletes,
            rewrite,
            turns: Turns::new(upkeep),
            pool,
            state: Mutex::default(),
        }
    }

    /// The chunks with what they delete, the data files of each, and the schema that the table gets.
    async fn read(
        &self,
        known: &Known,
        content: &ChangesContent,
    ) -> Result<(Vec<ReadChunk>, Vec<Vec<AddedFile>>, Option<Schema>)> {
        let mut becomes = None;
        let mut chunks = Vec::new();
        let mut files = Vec::new();
        for chunk in &content.chunks {
            let mut added = Vec::new();
            if !chunk.files.is_null() {
                let content = Content::from_json(&chunk.files)?;
                check_files(&self.handle.access, &content).await?;
                let access = &self.handle.access;
                let (content, evolved) = fit_schema(access, &known.metadata, content).await?;
                becomes = becomes.or(evolved);
                let (spec, schema) = (content.spec, content.schema);
                added.extend(
                    content
                        .data_files(&known.metadata)?
                        .into_iter()
                        .map(|file| AddedFile {
                            file,
                            spec,
                            schema,
                            sequence: None,
                        }),
                );
            }
            let truncate = match &chunk.truncate {
                Some(hex) => Some(from_hex(hex).ok_or_else(|| {
                    Error::corrupt("the checkpoint holds no order of a truncate")
                })?),
                None => None,
            };
            let deletes = match &chunk.deletes {
                Some(run) => tombstones::read(&self.reading.checkpoints, run).await?,
                None => Vec::new(),
            };
            chunks.push(ReadChunk {
                truncate,
                files: added
                    .iter()
                    .map(|file| file.file.file_path().into())
                    .collect(),
                deletes,
            });
            files.push(added);
        }
        Ok((chunks, files, becomes))
    }

    async fn resolve(&self, state: &mut State, chunks: Vec<ReadChunk>) -> Result<Resolved> {
        let mut index = state.take_index()?;
        let (reading, ids) = (self.reading.clone(), std::mem::take(&mut state.ids));
        let by_value = self.deletes == Deletes::Equality;
        let (index, ids, resolved) = blocking(move || {
            let mut resolver = Resolver {
                index: &mut index,
                codec: &reading.codec,
                columns: &reading.columns,
                live: &ids,
                by_value,
                now: u32::try_from(now_ms() / 1000).unwrap_or(u32::MAX),
            };
            let resolved = resolver.resolve(&chunks);
            (index, ids, resolved)
        })
        .await?;
        (state.index, state.ids) = (Some(index), ids);
        resolved
    }

    /// One try, with the state of the table reached. `new` gets the data files of the epoch.
    async fn try_commit(
        &self,
        state: &mut State,
        known: &Known,
        held: Option<&Held>,
        commit: &Commit,
        content: &ChangesContent,
        new: &mut Vec<FileId>,
    ) -> Result<Outcome> {
        state
            .reach(&self.handle, known, held, commit, &self.reading)
            .await?;
        let (chunks, files, mut becomes) = self.read(known, content).await?;
        let paths = files.iter().flatten().map(|file| file.file.file_path());
        new.extend(paths.map(FileId::of));
        let truncated = chunks.iter().any(|chunk| chunk.truncate.is_some());
        let mut resolved = self.resolve(state, chunks).await?;
        // Rows that are flagged have the columns of the flag and of the order, though no file came with them.
        if becomes.is_none()
            && !resolved.flags.is_empty()
            && let Some(evolved) = &self.reading.evolved
        {
            becomes = unite::becomes(&known.metadata, evolved)?;
        }
        fault::point("changes.resolved")?;

        let mut edit = Edit::new(Operation::Overwrite);
        edit.epoch = Some(EpochMark::new(commit, held));
        // Files that are written again along with the others have the columns that come with them.
        let then = match &becomes {
            Some(schema) => &known.with_schema(schema.clone())?,
            None => known,
        };
        edit.schema = becomes;
        let first = resolved.truncated.unwrap_or(0);
        let mut added: Vec<AddedFile> = files.into_iter().skip(first).flatten().collect();
        if resolved.truncated.is_some() {
            // Nothing that was in the table stays.
            edit.removed
                .extend(state.live.files().map(|file| RemovedFile::data(file)));
            edit.removed.extend(
                state
                    .live
                    .deletes()
                    .map(|delete| RemovedFile::delete(delete)),
            );
            resolved
                .positions
                .retain(|id, _| !state.files.contains_key(id));
        } else {
            // What has moved since was found again where it is.
            let lost = state
                .lost
                .iter()
                .filter(|(id, _)| state.files.contains_key(id));
            for (file, rows) in lost {
                *resolved.positions.entry(*file).or_default() |= rows;
            }
        }
        let flags = std::mem::take(&mut resolved.flags);
        let flagged = self.flag(state, then, &added, flags).await?;
        let paths = flagged.iter().map(|file| file.file.file_path().to_owned());
        let mut written: Vec<String> = paths.collect();
        added.extend(flagged);
        let marked = self
            .mark(state, then, &mut added, resolved.positions)
            .await?
            .and(by_value::mark(
                state,
                &self.reading,
                &resolved.keys,
                &folder_of(then),
            )?);
        edit.added = added;
        edit.added.extend(marked.added);
        edit.removed.extend(marked.removed);
        // Without files there is no snapshot that says it, but where the catalog wants one.
        edit.summary = epochs::describe(commit)?;
        edit.summary.insert(CHANGES.to_owned(), "true".to_owned());
        if resolved.stale > 0 {
            edit.summary
                .insert(STALE.to_owned(), resolved.stale.to_string());
        }
        if let Some(floor) = state.index.as_ref().and_then(|index| index.floor()) {
            let floor = to_hex(floor);
            if truncated {
                edit.summary.insert(TRUNCATED.to_owned(), floor.clone());
            }
            // Snapshots expire, and one that truncates what is empty makes none: the property stays.
            let name = held::truncated_property(&commit.pipeline, &commit.shard);
            if known.metadata.properties().get(&name) != Some(&floor) {
                edit.properties.insert(name, floor);
            }
        }
        let data =
            |file: &AddedFile| file.file.content_type() == iceberg::spec::DataContentType::Data;
        if edit.removed.is_empty() && edit.added.iter().all(data) {
            edit.operation = Operation::Append;
        } else if !edit.added.iter().any(data) {
            edit.operation = Operation::Delete;
        }
        let folder = folder_of(known);
        written.extend(marked.written);
        if !marked.files.is_empty() {
            let deletes = self.handle.access.write_all(marked.files, &folder).await;
            written.extend(deletes.map_err(|error| self.refused(error))?);
        }
        fault::point("changes.deletes_written")?;
        let done = self.apply(known, edit).await;
        // Where a request may be made twice on its way, something may refer to them still.
        if matches!(done, Ok(Outcome::Conflict)) && !self.handle.catalog.writes_metadata() {
            self.handle.access.discard(&written).await;
        }
        let (stale, replaced) = (resolved.stale, resolved.replaced);
        tracing::debug!(epoch = commit.epoch.0, stale, replaced, "settled changes");
        if stale > 0 && matches!(done, Ok(Outcome::Committed { .. })) {
            tracing::info!(
                epoch = commit.epoch.0,
                changes = stale,
                "dropped changes that are older than what the table holds"
            );
        }
        done
    }

    /// Deletes rows of files that are in the table, and of those that come now.
    async fn mark(
        &self,
        state: &mut State,
        known: &Known,
        added: &mut Vec<AddedFile>,
        positions: Positions,
    ) -> Result<Marked> {
        let new = deletes::by_id(added);
        let deleted = deletes::collect(&self.handle, state, &new, positions).await?;
        // A file of which no row is left does not come at all.
        let (none_left, deleted): (Vec<_>, Vec<_>) = deleted
            .into_iter()
            .partition(|d| d.new && d.rows.len() >= d.file.rows);
        let leave_out = |added: &mut Vec<AddedFile>, gone: &[Deleted]| {
            added.retain(|file| gone.iter().all(|d| *d.file.path != *file.file.file_path()));
        };
        leave_out(added, &none_left);
        let vectors = match self.deletes {
            Deletes::Position => false,
            Deletes::Vector => true,
            // Rows that come with this commit cannot be deleted by value.
            Deletes::Equality => known.metadata.format_version() == FormatVersion::V3,
            Deletes::CopyOnWrite => {
                let (new, old): (Vec<_>, Vec<_>) = deleted.into_iter().partition(|d| d.new);
                leave_out(added, &new);
                return self.write_again(state, known, old, new, added).await;
            }
        };
        deletes::mark(deleted, vectors, &folder_of(known))
    }

    /// Writes the data files anew that lose rows, and tells the index where the rows are then.
    async fn write_again(
        &self,
        state: &mut State,
        known: &Known,
        old: Vec<Deleted>,
        new: Vec<Deleted>,
        added: &mut Vec<AddedFile>,
    ) -> Result<Marked> {
        let mut marked = Marked::default();
        let mut live = state.ids.clone();
        for Deleted { file, before, .. } in &old {
            marked.removed.push(RemovedFile::data(file));
            marked.removed.extend(before.iter().cloned());
            live.remove(&FileId::of(&file.path));
        }
        let mut written = Vec::new();
        for (deleted, lineage) in [(old, true), (new, false)] {
            if deleted.is_empty() {
                continue;
            }
            let files = deleted.into_iter().map(|d| (d.file, d.rows)).collect();
            let (metadata, pool) = (&known.metadata, self.pool.clone());
            written.extend(
                without_rows(&self.handle, metadata, files, lineage, &self.rewrite, pool).await?,
            );
        }
        live.extend(added.iter().map(|file| FileId::of(file.file.file_path())));
        let paths = written.iter().map(|file| file.file.file_path().to_owned());
        marked.written = paths.collect();
        let paths = marked.written.clone();
        state.moved(paths, live, &self.reading).await?;
        added.extend(written);
        Ok(marked)
    }

    /// Stores that are made for tables may look at the names of files.
    fn refused(&self, error: Error) -> Error {
        if self.deletes != Deletes::Vector || error.kind() != ErrorKind::Config {
            return error;
        }
        error.hint(
            "data files of this table were written before: if the credentials are right, the store takes no \
             Puffin files, which deletion vectors need (table buckets of SeaweedFS are such); write \
             `deletes: copy_on_write`, and the pipeline goes on",
        )
    }

    async fn apply(&self, known: &Known, edit: Edit) -> Result<Outcome> {
        fault::point("iceberg.commit.before_manifest")?;
        let built = match self.handle.build(known, edit).await {
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(Outcome::Conflict),
            built => built?,
        };
        fault::point("iceberg.commit.before_metadata")?;
        self.handle.apply(known, built).await
    }
}

/// Where files of deletes go.
fn folder_of(known: &Known) -> String {
    format!("{}/data", known.metadata.location().trim_end_matches('/'))
}

#[async_trait]
impl Output for ChangesOutput {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        state_of(&self.handle, pipeline, shard).await
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        let handle = &self.handle;
        let known = handle.load_existing().await?;
        let held = match epochs::decide(&handle.table, handle.uuid, &known.metadata, commit)? {
            Step::Stop(outcome) => return Ok(outcome),
            Step::Go(held) => held,
        };
        let content = ChangesContent::from_json(&commit.prepared.content)?;
        let mut state = self.state.lock().await;
        // Dropped or failed on the way, the index holds half of an epoch.
        let mut taken = std::mem::take(&mut *state);
        let mut new = Vec::new();
        let done = self
            .try_commit(
                &mut taken,
                &known,
                held.as_ref(),
                commit,
                &content,
                &mut new,
            )
            .await;
        let kept = if let Ok(Outcome::Committed { snapshot }) = &done {
            // One that made no snapshot says none: what the index reflects stays the same.
            taken.committed(snapshot.parse().ok(), new.into_iter())
        } else {
            taken.forget();
            Ok(())
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the index of keys cannot be kept");
            taken.forget();
        }
        *state = taken;
        drop(state);
        if matches!(done, Ok(Outcome::Committed { .. })) {
            self.turns.committed(commit.prepared.bytes).await;
        }
        done
    }

    async fn tend(&self) -> Result<()> {
        self.look_after().await
    }

    async fn settle(&self) -> Result<bool> {
        self.settle_some().await
    }
}

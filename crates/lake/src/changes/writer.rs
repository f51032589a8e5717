//! Writes the data files of changes: collects an epoch in memory, of each key the last change, and
//! gives what is left to the writer that tables without changes have. Deletes become a run in the
//! checkpoint store.
//!
//! An epoch that does not fit into memory is written in chunks, one after the other.

use std::{sync::Arc, time::Duration};

use arrow::array::{ArrayRef, RecordBatch};
use async_trait::async_trait;
use calve_engine::{
    checkpoint::Checkpoints,
    clock::now_ms,
    error::{Error, Result},
    fault,
    opaque::Opaque,
    seams::{Prepared, Sealed, Split, Splitter, TableWriter},
};
use calve_model::Epoch;
use futures::future::try_join_all;
use rayon::ThreadPool;

use super::{
    chunk::{ClosedChunk, OpenChunk},
    config::Operation,
    content::{ChangesContent, Chunk},
    keys::KeyCodec,
    plan::ChangePlan,
    split::{ChangeRows, ChangeSplitter},
    tombstones::{self, RunName, Tombstones},
};

/// What the writer and its splitters share.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) plan: Arc<ChangePlan>,
    pub(crate) codec: Arc<KeyCodec>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) pool: Arc<ThreadPool>,
    /// How long orders of deleted keys are kept.
    pub(crate) retention: Duration,
    /// Bytes of changes that make a chunk.
    pub(crate) chunk_bytes: usize,
}

pub(crate) struct ChangesWriter {
    parts: Parts,
    /// Writes rows.
    table: Box<dyn TableWriter>,
    open: OpenChunk,
    /// Chunks of the open epoch that are on their way to the disk.
    written: Vec<WrittenChunk>,
    kept: Tombstones,
}

struct WrittenChunk {
    truncate: Option<String>,
    files: Box<dyn Sealed>,
    deletes: Vec<ArrayRef>,
}

impl ChangesWriter {
    pub(crate) fn new(parts: Parts, table: Box<dyn TableWriter>) -> Self {
        Self {
            open: OpenChunk::new(parts.codec.soft()),
            parts,
            table,
            written: Vec::new(),
            kept: Tombstones::default(),
        }
    }

    /// Ends the open chunk, and gives its rows to the table's writer.
    async fn end_chunk(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let ClosedChunk {
            truncate,
            rows,
            deletes,
        } = self.open.close()?;
        let splits = rows
            .into_iter()
            .map(|rows| split(&self.parts.pool, self.table.splitter(), rows));
        // Made before anything is awaited.
        let splits: Vec<_> = splits.collect();
        for split in try_join_all(splits).await? {
            self.table.append(split).await?;
        }
        self.written.push(WrittenChunk {
            truncate: truncate.as_deref().map(crate::iceberg::files::to_hex),
            // The content of an Iceberg table's epoch does not depend on its number.
            files: self.table.seal(Epoch::NONE),
            deletes,
        });
        Ok(())
    }
}

/// Splits on the pool: the loop has other things to do.
fn split(
    pool: &ThreadPool,
    mut splitter: Box<dyn Splitter>,
    rows: RecordBatch,
) -> impl Future<Output = Result<Split>> + use<> {
    let (done, result) = tokio::sync::oneshot::channel();
    pool.spawn_fifo(move || {
        let _ = done.send(splitter.split(rows));
    });
    async {
        result
            .await
            .map_err(|_| Error::internal("a task of the pool was dropped"))?
    }
}

#[async_trait]
impl TableWriter for ChangesWriter {
    fn splitter(&self) -> Box<dyn Splitter> {
        let Parts { plan, codec, .. } = &self.parts;
        let inner = self.table.splitter();
        Box::new(ChangeSplitter::new(plan.clone(), codec.clone(), inner))
    }

    fn resume(&mut self, runs: &[String]) {
        self.kept.resume(runs);
    }

    async fn append(&mut self, split: Split) -> Result<()> {
        let changes = split
            .downcast::<ChangeRows>()
            .map_err(|_| Error::internal("changes were split by another table's splitter"))?;
        let (changes, mut next) = (Arc::new(*changes), 0);
        if self.parts.codec.soft() {
            // What is there before a TRUNCATE gets its flag by the commit: a chunk begins with it.
            let truncates = |row: &usize| changes.ops[*row] == Operation::Truncate;
            for row in (0..changes.ops.len()).filter(truncates) {
                self.open.take(&changes, next..row);
                self.end_chunk().await?;
                next = row;
            }
        }
        self.open.take(&changes, next..changes.ops.len());
        if self.open.bytes() > self.parts.chunk_bytes {
            self.end_chunk().await?;
        }
        Ok(())
    }

    fn buffered_bytes(&self) -> usize {
        self.open.bytes() + self.table.buffered_bytes()
    }

    fn written_bytes(&self) -> u64 {
        self.table.written_bytes()
    }

    fn open_files(&self) -> usize {
        self.table.open_files()
    }

    async fn before_seal(&mut self) -> Result<()> {
        self.end_chunk().await?;
        self.open = OpenChunk::new(self.parts.codec.soft());
        Ok(())
    }

    fn files_in_flight(&mut self, files: usize) {
        self.table.files_in_flight(files);
    }

    fn seal(&mut self, epoch: Epoch) -> Box<dyn Sealed> {
        let now = now_ms() / 1000;
        let ordered = self.parts.codec.ordered();
        let retention = if ordered {
            self.parts.retention
        } else {
            Duration::ZERO
        };
        self.kept.expire(epoch, now, retention);
        let merge = self.kept.merge(epoch);
        let chunks = std::mem::take(&mut self.written).into_iter().map(|chunk| {
            let keys = chunk.deletes.first().map_or(0, |column| column.len());
            let run = (keys > 0).then(|| RunName::new(epoch, now, keys as u64));
            if let Some(run) = &run {
                self.kept.add(run.clone());
            }
            (chunk, run)
        });
        Box::new(SealedChanges {
            chunks: chunks.collect(),
            merge,
            runs: self.kept.names(),
            codec: self.parts.codec.clone(),
            checkpoints: self.parts.checkpoints.clone(),
        })
    }
}

struct SealedChanges {
    chunks: Vec<(WrittenChunk, Option<RunName>)>,
    merge: Option<(Vec<String>, RunName)>,
    runs: Vec<String>,
    codec: Arc<KeyCodec>,
    checkpoints: Checkpoints,
}

#[async_trait]
impl Sealed for SealedChanges {
    async fn finish(self: Box<Self>) -> Result<Prepared> {
        if let Some((from, to)) = &self.merge {
            tombstones::merge_runs(&self.checkpoints, from, to).await?;
        }
        let mut prepared = Prepared {
            runs: self.runs,
            ..Prepared::default()
        };
        let mut content = ChangesContent::default();
        for (chunk, run) in self.chunks {
            let files = chunk.files.finish().await?;
            prepared.rows += files.rows;
            prepared.bytes += files.bytes;
            prepared.files += files.files;
            if let Some(run) = &run {
                fault::point("changes.before_run")?;
                let bytes = tombstones::encode(&self.codec, chunk.deletes)?;
                self.checkpoints.create_run(&run.name, bytes).await?;
                fault::point("changes.after_run")?;
            }
            let chunk = Chunk {
                truncate: chunk.truncate,
                files: files.content,
                deletes: run.map(|run| run.name),
            };
            if chunk != Chunk::default() {
                content.chunks.push(chunk);
            }
        }
        if !content.chunks.is_empty() {
            prepared.content = Opaque::of(&content)?;
        }
        Ok(prepared)
    }
}

//! From a cut to durable files: the rest is encoded on the pool, files and folders are fsynced on
//! threads that may block, and the placement says what goes into the checkpoint.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use calve_engine::{
    error::{Error, Result},
    fault,
    seams::{Prepared, Sealed},
    stores::upload::Pending,
};
use calve_model::Epoch;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    placement::DescribedFile,
    queue::{Generation, PartitionWriter},
    sync::{self, Unsynced},
};

/// What was appended before a cut.
pub(crate) struct FanoutSealed {
    generation: Arc<Generation>,
    partitions: Vec<Arc<PartitionWriter>>,
    epoch: Epoch,
}

impl FanoutSealed {
    pub(crate) fn new(
        generation: Arc<Generation>,
        mut partitions: Vec<Arc<PartitionWriter>>,
        epoch: Epoch,
    ) -> Self {
        partitions.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Self {
            generation,
            partitions,
            epoch,
        }
    }

    /// Closes all files. As many tasks as threads, however many table partitions there are.
    async fn close_files(&self) -> Result<()> {
        let generation = &self.generation;
        let pool = &generation.shared.pool;
        if !self.partitions.is_empty() {
            generation
                .left
                .store(self.partitions.len(), Ordering::Release);
            let next = Arc::new(AtomicUsize::new(0));
            let partitions = Arc::new(self.partitions.clone());
            for _ in 0..pool.current_num_threads().min(partitions.len()) {
                let (next, partitions) = (next.clone(), partitions.clone());
                let generation = generation.clone();
                pool.spawn(move || {
                    while let Some(one) = partitions.get(next.fetch_add(1, Ordering::Relaxed)) {
                        one.finish(&generation);
                    }
                });
            }
            generation.closed.notified().await;
        }
        generation.check()
    }
}

#[async_trait]
impl Sealed for FanoutSealed {
    async fn finish(self: Box<Self>) -> Result<Prepared> {
        self.close_files().await?;
        let shared = &self.generation.shared;
        let at_once = shared.files_in_flight.load(Ordering::Relaxed);
        let (mut files, mut pending, mut unsynced) = (Vec::new(), Vec::new(), Vec::new());
        for partition in &self.partitions {
            for (sequence, done) in (0..).zip(partition.take_done()) {
                if let Some(upload) = done.upload {
                    pending.push(upload);
                } else {
                    unsynced.push(Unsynced {
                        path: shared.root.join(&done.path),
                        file: done.file,
                    });
                }
                files.push(DescribedFile {
                    path: done.path,
                    partition: partition.key.clone(),
                    sequence,
                    rows: done.rows,
                    bytes: done.bytes,
                    described: done.described,
                    upload: None,
                });
            }
        }
        if !pending.is_empty() {
            // A writer's files all go to the same place: there is an upload for each.
            let finished = stream::iter(pending.into_iter().map(Pending::finish));
            let finished: Vec<_> = finished.buffered(at_once).try_collect().await?;
            for (file, upload) in files.iter_mut().zip(finished) {
                file.upload = upload;
            }
        }
        fault::passed("write.finish.before_fsync").await?;
        let blocking = shared.clone();
        let root: PathBuf = shared.root.clone();
        let synced = move || sync::files(&root, unsynced, &blocking.durable_dirs, at_once);
        tokio::task::spawn_blocking(synced)
            .await
            .map_err(|error| Error::internal("the task that syncs files died").because(error))??;

        let mut prepared = Prepared {
            files: files.len() as u64,
            ..Prepared::default()
        };
        for file in &files {
            prepared.rows += file.rows;
            prepared.bytes += file.bytes;
        }
        if !files.is_empty() {
            prepared.content = shared.placement.content(self.epoch, files)?;
        }
        self.generation.keep();
        Ok(prepared)
    }
}

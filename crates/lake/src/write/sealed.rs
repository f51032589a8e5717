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
};
use calve_model::Epoch;

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
        let mut files = Vec::new();
        let mut unsynced = Vec::new();
        for partition in &self.partitions {
            for (sequence, done) in (0..).zip(partition.take_done()) {
                let upload = if let Some(pending) = done.upload {
                    pending.finish().await?
                } else {
                    unsynced.push(Unsynced {
                        path: shared.root.join(&done.path),
                        file: done.file,
                    });
                    None
                };
                files.push(DescribedFile {
                    path: done.path,
                    partition: partition.key.clone(),
                    sequence,
                    rows: done.rows,
                    bytes: done.bytes,
                    described: done.described,
                    upload,
                });
            }
        }
        fault::point("write.finish.before_fsync")?;
        let blocking = shared.clone();
        let root: PathBuf = shared.root.clone();
        tokio::task::spawn_blocking(move || sync::files(&root, unsynced, &blocking.durable_dirs))
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

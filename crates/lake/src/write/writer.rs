//! The writer: takes split rows in source order, gives them to the table partitions they belong to,
//! and keeps all of it within the memory budget.
//!
//! Over the budget, in this order: small pieces that pin large batches are moved together; then the
//! largest table partitions give up their memory first (row group out, small files closed); and
//! append waits until that is done.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arrow::compute::concat_batches;
use async_trait::async_trait;
use calve_engine::{
    durable,
    error::{Error, Result},
    seams::{Sealed, Split, Splitter, TableWriter},
    stores::upload::Uploads,
};
use calve_model::Epoch;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::{
    arrow_failed,
    budget::{Budget, Loaded, Piece},
    encoding::FileLayout,
    options::WriteOptions,
    partition::PartitionRef,
    placement::Placement,
    queue::{Ask, Generation, PartitionWriter, Shared, task_rows},
    sealed::FanoutSealed,
    split::{FanoutSplitter, SplitRows},
    sync,
};

/// An open file that holds less than this is closed rather than given another small row group.
pub(super) const SMALL_FILE: usize = 1 << 20;
/// Moved-together pieces lie in batches of this size.
const MOVED_BYTES: usize = 2 << 20;

/// Writes the data files of one output, below a folder of the local file system or in an object store.
pub struct FanoutWriter {
    shared: Arc<Shared>,
    generation: Arc<Generation>,
    partitions: FxHashMap<PartitionRef, Arc<PartitionWriter>>,
    appends: u64,
}

impl FanoutWriter {
    /// A writer of files below `root`, encoding on `pool`. `shard` goes into file names.
    ///
    /// # Errors
    /// `Config` or `Schema` when the schema or an option does not fit.
    pub fn open(
        root: PathBuf,
        shard: &str,
        placement: Arc<dyn Placement>,
        options: &WriteOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self> {
        durable::create_dirs(&root).map_err(|error| {
            Error::io(
                format!("cannot make the table's folder: path={}", root.display()),
                error,
            )
        })?;
        Self::new(root, None, shard, placement, options, pool)
    }

    /// A writer of objects; their uploads are left to be completed by who commits them.
    ///
    /// # Errors
    /// `Config` or `Schema` when the schema or an option does not fit.
    pub fn remote(
        uploads: Uploads,
        shard: &str,
        placement: Arc<dyn Placement>,
        options: &WriteOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self> {
        let root = PathBuf::from(uploads.folder().shown());
        Self::new(root, Some(uploads), shard, placement, options, pool)
    }

    fn new(
        root: PathBuf,
        uploads: Option<Uploads>,
        shard: &str,
        placement: Arc<dyn Placement>,
        options: &WriteOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self> {
        let layout = FileLayout::new(placement.file_schema(), options)?;
        let shard: String = shard
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let shared = Arc::new(Shared {
            root,
            uploads,
            placement,
            options: options.clone(),
            layout,
            pool,
            budget: Arc::new(Budget::new(options.memory_bytes)),
            prefix: format!("{shard}-{}", uuid::Uuid::now_v7().simple()),
            counter: AtomicU64::new(0),
            open_files: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            task_rows: AtomicUsize::new(task_rows(1)),
            files_in_flight: AtomicUsize::new(sync::WAITING),
            durable_dirs: Mutex::default(),
        });
        let generation = Generation::new(shared.clone());
        Ok(Self {
            shared,
            generation,
            partitions: FxHashMap::default(),
            appends: 0,
        })
    }

    /// Brings the memory in use below the limit, or as near as it gets.
    async fn relieve(&self) -> Result<()> {
        let budget = &self.shared.budget;
        while budget.exceeded() {
            self.generation.check()?;
            let queued: usize = self.partitions.values().map(|p| p.queue.lock().bytes).sum();
            let held: usize = self
                .partitions
                .values()
                .map(|p| p.held.load(Ordering::Relaxed))
                .sum();
            let idle = self.shared.running.load(Ordering::Relaxed) == 0;
            let pinned = budget.used().saturating_sub(queued + held);
            if pinned > budget.limit() / 4 {
                if !idle {
                    // Tasks hold some of it, and show what is left when they end.
                    budget.changed.notified().await;
                    continue;
                }
                self.move_together().await?;
                if !budget.exceeded() {
                    break;
                }
            }
            let excess = budget.used().saturating_sub(budget.limit() / 4 * 3);
            if !self.ask_largest(excess) && idle {
                break;
            }
            while budget.exceeded() && self.shared.running.load(Ordering::Relaxed) > 0 {
                budget.changed.notified().await;
            }
        }
        Ok(())
    }

    /// Asks the table partitions that hold most to free `bytes` together.
    fn ask_largest(&self, bytes: usize) -> bool {
        let mut all: Vec<(usize, &Arc<PartitionWriter>)> = self
            .partitions
            .values()
            .map(|p| (p.queue.lock().bytes + p.held.load(Ordering::Relaxed), p))
            .filter(|(held, _)| *held > 0)
            .collect();
        all.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.key.cmp(&b.1.key)));
        let mut freed = 0;
        for (held, partition) in &all {
            if freed >= bytes {
                break;
            }
            let ask = if *held < SMALL_FILE {
                Ask::Close
            } else {
                Ask::EndGroup
            };
            partition.ask(&self.generation, ask);
            freed += held;
        }
        freed > 0
    }

    /// Copies queued pieces into batches of their own, side by side, so that nothing else of the
    /// batches that they came in is held. Only called while no task runs.
    async fn move_together(&self) -> Result<()> {
        let (send, receive) = tokio::sync::oneshot::channel();
        let partitions: Vec<_> = self.partitions.values().cloned().collect();
        let shared = self.shared.clone();
        self.shared.pool.spawn(move || {
            let _ = send.send(move_pieces(&shared, &partitions));
        });
        receive
            .await
            .unwrap_or_else(|_| Err(Error::internal("a task of the pool was dropped")))
    }

    /// Closes the files that were not used for longest, where too many are open; waits while twice
    /// as many as wanted are, or may be soon: every task that runs or waits can open one.
    async fn limit_open_files(&self) {
        loop {
            self.close_least_used();
            let open = self.shared.open_files.load(Ordering::Relaxed);
            let tasks = self.shared.running.load(Ordering::Relaxed);
            if tasks == 0 || open + tasks <= 2 * self.shared.options.open_files {
                return;
            }
            // Every task tells when it ends.
            self.shared.budget.changed.notified().await;
        }
    }

    fn close_least_used(&self) {
        let open = self.shared.open_files.load(Ordering::Relaxed);
        let limit = self.shared.options.open_files;
        if open <= limit {
            return;
        }
        let mut all: Vec<_> = self
            .partitions
            .values()
            .filter(|p| p.held.load(Ordering::Relaxed) > 0)
            .collect();
        all.sort_unstable_by_key(|p| (p.last_append.load(Ordering::Relaxed), p.key.clone()));
        for partition in all.into_iter().take(open - limit + limit / 8) {
            partition.ask(&self.generation, Ask::Close);
        }
    }
}

fn move_pieces(shared: &Shared, partitions: &[Arc<PartitionWriter>]) -> Result<()> {
    let mut at = 0;
    while at < partitions.len() {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let mut slices = Vec::new();
        let mut bytes = 0;
        while at < partitions.len() && bytes < MOVED_BYTES {
            let mut queue = partitions[at].queue.lock();
            if queue.rows > 0 {
                taken.push((at, queue.rows));
                bytes += queue.bytes;
                for piece in queue.take() {
                    slices.push(piece.batch().map_err(arrow_failed)?);
                }
            }
            at += 1;
        }
        if slices.is_empty() {
            continue;
        }
        let rows = concat_batches(&slices[0].schema(), &slices).map_err(arrow_failed)?;
        drop(slices);
        let batch = Loaded::new(rows, &shared.budget);
        let mut start = 0;
        for (index, rows) in taken {
            let piece = Piece {
                batch: batch.clone(),
                start,
                rows,
            };
            start += rows;
            let mut queue = partitions[index].queue.lock();
            (queue.rows, queue.bytes) = (rows, piece.bytes());
            queue.pieces.push(piece);
        }
    }
    Ok(())
}

#[async_trait]
impl TableWriter for FanoutWriter {
    fn splitter(&self) -> Box<dyn Splitter> {
        Box::new(FanoutSplitter::new(self.shared.placement.clone()))
    }

    async fn append(&mut self, split: Split) -> Result<()> {
        self.generation.check()?;
        let split = split
            .downcast::<SplitRows>()
            .map_err(|_| Error::internal("rows were split by another table's splitter"))?;
        let SplitRows { rows, groups } = *split;
        self.appends += 1;
        let expected = task_rows(self.partitions.len().max(groups.len()));
        self.shared.task_rows.store(expected, Ordering::Relaxed);
        let batch = Loaded::new(rows, &self.shared.budget);
        for (key, range) in groups {
            let partition = self
                .partitions
                .entry(key)
                .or_insert_with_key(|key| PartitionWriter::new(key.clone()));
            partition.last_append.store(self.appends, Ordering::Relaxed);
            let piece = Piece {
                batch: batch.clone(),
                start: range.start,
                rows: range.len(),
            };
            partition.push(&self.generation, piece);
        }
        drop(batch);
        self.limit_open_files().await;
        if self.shared.budget.exceeded() {
            self.relieve().await?;
        }
        Ok(())
    }

    fn buffered_bytes(&self) -> usize {
        self.shared.budget.used()
    }

    fn written_bytes(&self) -> u64 {
        let open: usize = self
            .partitions
            .values()
            .map(|p| p.held.load(Ordering::Relaxed))
            .sum();
        self.generation.written.load(Ordering::Relaxed) + open as u64
    }

    fn open_files(&self) -> usize {
        self.shared.open_files.load(Ordering::Relaxed)
    }

    fn files_in_flight(&mut self, files: usize) {
        self.shared
            .files_in_flight
            .store(files.max(1), Ordering::Relaxed);
    }

    fn seal(&mut self, epoch: Epoch) -> Box<dyn Sealed> {
        let next = Generation::new(self.shared.clone());
        let generation = std::mem::replace(&mut self.generation, next);
        let partitions = std::mem::take(&mut self.partitions).into_values().collect();
        Box::new(FanoutSealed::new(generation, partitions, epoch))
    }
}

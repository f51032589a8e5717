//! The rows and the open file of one table partition, and the task that brings the one into the
//! other. At most one task of a table partition runs at a time, so its rows keep their order.
//!
//! Decisions (end of a row group, end of a file) are taken every [`CHECK_ROWS`] rows of the table
//! partition, from what was encoded up to there: files are the same whatever the number of threads,
//! unless the memory budget forces a row group out early.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use calve_engine::{
    error::{Error, Result},
    opaque::Opaque,
    stores::upload::{Pending, Uploads},
};
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use tokio::sync::Notify;

use super::{
    arrow_failed,
    budget::{Budget, Piece},
    encoding::{FileLayout, FilePlan, SAMPLE},
    file::OpenFile,
    options::WriteOptions,
    partition::PartitionRef,
    placement::{FinishedFile, Placement},
    writer::SMALL_FILE,
};

/// A task starts when so many rows of its table partition wait …
const ENCODE_ROWS: usize = 1 << 16;
/// … where few table partitions are written, rather when this many wait in all of them together:
/// rows that wait are memory, and are out of the processor's caches when their turn comes …
const WAITING_ROWS: usize = 1 << 17;
/// … but not fewer in one.
const FEWEST_ROWS: usize = 1 << 12;
/// … or so many bytes.
const ENCODE_BYTES: usize = 4 << 20;
/// Rows between two looks at the size of row group and file.
const CHECK_ROWS: usize = 1 << 15;
/// What an open file costs besides its pages: footer in the making, buffers, column writers.
const OPEN_BYTES: usize = 32 << 10;

/// What all epochs of a writer share.
pub(crate) struct Shared {
    /// A folder; in an object store the URL, for messages.
    pub(crate) root: PathBuf,
    /// Where files go in an object store; none: below `root` on the local file system.
    pub(crate) uploads: Option<Uploads>,
    pub(crate) placement: Arc<dyn Placement>,
    pub(crate) options: WriteOptions,
    pub(crate) layout: FileLayout,
    pub(crate) pool: Arc<rayon::ThreadPool>,
    pub(crate) budget: Arc<Budget>,
    /// Begins the names of all files of this writer.
    pub(crate) prefix: String,
    pub(crate) counter: AtomicU64,
    pub(crate) open_files: AtomicUsize,
    /// Tasks that run or are about to.
    pub(crate) running: AtomicUsize,
    /// Rows that start a task; see [`task_rows`].
    pub(crate) task_rows: AtomicUsize,
    /// Files that are made durable at once.
    pub(crate) files_in_flight: AtomicUsize,
    /// Folders whose name is durable in the folder above.
    pub(crate) durable_dirs: Mutex<FxHashSet<PathBuf>>,
}

/// The files between two cuts.
pub(crate) struct Generation {
    pub(crate) shared: Arc<Shared>,
    /// The first failure; the rest follow from it.
    failed: Mutex<Option<Error>>,
    stop: AtomicBool,
    created: Mutex<Vec<PathBuf>>,
    kept: AtomicBool,
    /// Bytes in complete row groups.
    pub(crate) written: AtomicU64,
    /// Table partitions that are sealed and not closed yet.
    pub(crate) left: AtomicUsize,
    pub(crate) closed: Notify,
}

impl Generation {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            failed: Mutex::new(None),
            stop: AtomicBool::new(false),
            created: Mutex::new(Vec::new()),
            kept: AtomicBool::new(false),
            written: AtomicU64::new(0),
            left: AtomicUsize::new(0),
            closed: Notify::new(),
        })
    }

    /// The first failure, once; after that a reminder of it.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let first = self.failed.lock().take();
        Err(first.unwrap_or_else(|| Error::unavailable("the writer of data files failed before")))
    }

    fn fail(&self, error: Error) {
        self.failed.lock().get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    /// The files are durable and belong to somebody else from now on.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Acquire) {
            for path in self.created.get_mut().drain(..) {
                // What cannot be removed is found by `clean`: nothing refers to it.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// One table partition between two cuts.
pub(crate) struct PartitionWriter {
    pub(crate) key: PartitionRef,
    pub(crate) queue: Mutex<Queue>,
    files: Mutex<Files>,
    /// Bytes of its open file that are held in memory.
    pub(crate) held: AtomicUsize,
    /// Number of the last append that reached it.
    pub(crate) last_append: AtomicU64,
}

/// Rows that wait, and what is asked of the task.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    pub(crate) running: bool,
    pub(crate) ask: Ask,
    sealed: bool,
}

/// Beyond encoding what waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    #[default]
    Nothing,
    /// End the row group, to free its memory.
    EndGroup,
    /// Close the file.
    Close,
}

#[derive(Default)]
struct Files {
    open: Option<OpenFile>,
    /// Chosen at the first file of the table partition and kept for those that follow.
    plan: Option<Arc<FilePlan>>,
    since_check: usize,
    done: Vec<DoneFile>,
}

/// A closed file.
pub(crate) struct DoneFile {
    pub(crate) path: String,
    /// Kept open for the fsync while not too many are.
    pub(crate) file: Option<Arc<std::fs::File>>,
    /// In an object store.
    pub(crate) upload: Option<Pending>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) described: Opaque,
}

impl PartitionWriter {
    pub(crate) fn new(key: PartitionRef) -> Arc<Self> {
        Arc::new(Self {
            key,
            queue: Mutex::default(),
            files: Mutex::default(),
            held: AtomicUsize::new(0),
            last_append: AtomicU64::new(0),
        })
    }

    /// Queues rows; starts a task when enough wait.
    pub(crate) fn push(self: &Arc<Self>, generation: &Arc<Generation>, piece: Piece) {
        let mut queue = self.queue.lock();
        queue.rows += piece.rows;
        queue.bytes += piece.bytes();
        queue.pieces.push(piece);
        if queue.enough(&generation.shared) {
            self.start(&mut queue, generation);
        }
    }

    /// Asks the task for more than encoding; starts it.
    pub(crate) fn ask(self: &Arc<Self>, generation: &Arc<Generation>, ask: Ask) {
        let mut queue = self.queue.lock();
        queue.ask = queue.ask.max(ask);
        self.start(&mut queue, generation);
    }

    fn start(self: &Arc<Self>, queue: &mut Queue, generation: &Arc<Generation>) {
        if queue.running {
            return;
        }
        queue.running = true;
        let shared = &generation.shared;
        shared.running.fetch_add(1, Ordering::Relaxed);
        let (this, generation) = (self.clone(), generation.clone());
        shared.pool.spawn(move || this.run(&generation));
    }

    /// After the last append: encodes the rest here, unless a task runs, which will then do it.
    pub(crate) fn finish(&self, generation: &Arc<Generation>) {
        {
            let mut queue = self.queue.lock();
            queue.ask = Ask::Close;
            queue.sealed = true;
            if queue.running {
                return;
            }
            queue.running = true;
            generation.shared.running.fetch_add(1, Ordering::Relaxed);
        }
        self.run(generation);
    }

    /// The task: until nothing is left that would be worth one.
    fn run(&self, generation: &Arc<Generation>) {
        let shared = &generation.shared;
        let sealed = loop {
            let (pieces, ask) = {
                let mut queue = self.queue.lock();
                if generation.stop.load(Ordering::Acquire) {
                    queue.clear();
                }
                if queue.ask == Ask::Nothing && !queue.enough(shared) {
                    queue.running = false;
                    break std::mem::take(&mut queue.sealed);
                }
                (queue.take(), std::mem::take(&mut queue.ask))
            };
            if let Err(error) = self.encode(generation, pieces, ask) {
                generation.fail(error);
            }
        };
        shared.running.fetch_sub(1, Ordering::Relaxed);
        shared.budget.changed.notify_one();
        if sealed && generation.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            generation.closed.notify_one();
        }
    }

    fn encode(&self, generation: &Generation, pieces: Vec<Piece>, ask: Ask) -> Result<()> {
        let shared = &generation.shared;
        // With fewer tasks than threads, the columns are encoded side by side. Not otherwise: a
        // thread that waits for its columns would take up other tasks, one on top of the other.
        let threads = shared.pool.current_num_threads();
        let parallel = threads > 1 && shared.running.load(Ordering::Relaxed) < threads;
        let mut files = self.files.lock();
        let mut chunk: Vec<Piece> = Vec::new();
        for mut piece in pieces {
            while piece.rows > 0 {
                let room = CHECK_ROWS - files.since_check;
                let part = piece.split_off_front(piece.rows.min(room));
                files.since_check += part.rows;
                chunk.push(part);
                if files.since_check == CHECK_ROWS {
                    files.since_check = 0;
                    self.write(generation, &mut files, std::mem::take(&mut chunk), parallel)?;
                    self.look(generation, &mut files, parallel)?;
                }
            }
        }
        if !chunk.is_empty() {
            self.write(generation, &mut files, chunk, parallel)?;
        }
        match ask {
            Ask::Nothing => Ok(()),
            Ask::EndGroup => {
                self.end_group(generation, &mut files, parallel)?;
                // What a part still lacks to be full stays in memory until the file ends.
                match &files.open {
                    Some(file) if file.unsent() >= SMALL_FILE => {
                        self.close(generation, &mut files, parallel)
                    }
                    _ => Ok(()),
                }
            }
            Ask::Close => self.close(generation, &mut files, parallel),
        }
    }

    fn write(
        &self,
        generation: &Generation,
        files: &mut Files,
        chunk: Vec<Piece>,
        parallel: bool,
    ) -> Result<()> {
        let shared = &generation.shared;
        let layout = &shared.layout;
        let Files { open, plan, .. } = files;
        let file = if let Some(file) = open {
            file
        } else {
            let plan = if let Some(plan) = plan {
                plan
            } else {
                let mut rows = 0;
                let sample = chunk.iter().take_while(|piece| {
                    let before = rows;
                    rows += piece.rows;
                    before < SAMPLE
                });
                let sample = sample.map(Piece::batch).collect::<Result<Vec<_>, _>>();
                plan.insert(layout.plan(&sample.map_err(arrow_failed)?))
            };
            let number = shared.counter.fetch_add(1, Ordering::Relaxed);
            let unique = format!("{}-{number:05}", shared.prefix);
            let path = shared.placement.path(&self.key, &unique);
            let uploads = shared.uploads.as_ref();
            let file = OpenFile::create(&shared.root, uploads, path, layout, plan.clone())?;
            if uploads.is_none() {
                generation.created.lock().push(shared.root.join(&file.path));
            }
            shared.open_files.fetch_add(1, Ordering::Relaxed);
            open.insert(file)
        };
        file.write(&chunk, layout, parallel)?;
        self.count(generation, files.open.as_ref());
        Ok(())
    }

    /// Ends the row group or the file where that is due.
    fn look(&self, generation: &Generation, files: &mut Files, parallel: bool) -> Result<()> {
        let Some(file) = &mut files.open else {
            return Ok(());
        };
        let options = &generation.shared.options;
        let full = file.dictionary_full();
        let bytes = file.group_bytes();
        if file.written() + bytes as u64 >= options.target_file_size {
            self.close(generation, files, parallel)
        } else if full
            || file.group_rows >= options.row_group_rows
            || bytes >= options.row_group_bytes
        {
            self.end_group(generation, files, parallel)
        } else {
            Ok(())
        }
    }

    fn end_group(&self, generation: &Generation, files: &mut Files, parallel: bool) -> Result<()> {
        if let Some(file) = &mut files.open {
            let before = file.written();
            file.end_group(parallel)?;
            generation
                .written
                .fetch_add(file.written() - before, Ordering::Relaxed);
        }
        self.count(generation, files.open.as_ref());
        Ok(())
    }

    fn close(&self, generation: &Generation, files: &mut Files, parallel: bool) -> Result<()> {
        let Some(file) = files.open.take() else {
            return Ok(());
        };
        let shared = &generation.shared;
        let (path, rows, before) = (file.path.clone(), file.rows, file.written());
        let closed = file.close(parallel);
        shared.open_files.fetch_sub(1, Ordering::Relaxed);
        self.count(generation, None);
        let closed = closed?;
        generation
            .written
            .fetch_add(closed.bytes - before, Ordering::Relaxed);
        let described = shared.placement.describe(&FinishedFile {
            path: &path,
            partition: &self.key,
            rows,
            bytes: closed.bytes,
            metadata: &closed.metadata,
            schema: &shared.layout.schema,
        })?;
        let keep = generation.created.lock().len() <= shared.options.open_files / 2;
        let file = closed.file.filter(|_| keep);
        files.done.push(DoneFile {
            path,
            file,
            upload: closed.upload,
            rows,
            bytes: closed.bytes,
            described,
        });
        Ok(())
    }

    fn count(&self, generation: &Generation, open: Option<&OpenFile>) {
        let now = open.map_or(0, |file| file.memory() + OPEN_BYTES);
        let before = self.held.swap(now, Ordering::Relaxed);
        generation.shared.budget.recount(before, now);
    }

    /// The closed files, in row order.
    pub(crate) fn take_done(&self) -> Vec<DoneFile> {
        std::mem::take(&mut self.files.lock().done)
    }
}

impl Drop for PartitionWriter {
    fn drop(&mut self) {
        debug_assert!(
            !self.queue.get_mut().running,
            "a task holds its table partition"
        );
    }
}

/// How many rows start a task where `partitions` table partitions are written. With many of them a
/// file is worth opening only for many rows.
pub(crate) fn task_rows(partitions: usize) -> usize {
    let share = WAITING_ROWS / partitions.max(1);
    if share < FEWEST_ROWS / 4 {
        ENCODE_ROWS
    } else {
        share.clamp(FEWEST_ROWS, ENCODE_ROWS)
    }
}

impl Queue {
    fn enough(&self, shared: &Shared) -> bool {
        self.rows >= shared.task_rows.load(Ordering::Relaxed) || self.bytes >= ENCODE_BYTES
    }

    pub(crate) fn take(&mut self) -> Vec<Piece> {
        (self.rows, self.bytes) = (0, 0);
        std::mem::take(&mut self.pieces)
    }

    fn clear(&mut self) {
        self.take();
        self.ask = Ask::Nothing;
    }
}

//! A shard: one owner of source partitions, one watermark, one chain of checkpoints.
//!
//! One reader thread numbers raw batches; a pool of batchers decodes, transforms and splits them in
//! any order; the loop takes the results in the order of their numbers, so that a cut is a place in
//! that order and the result does not depend on the number of batchers. A cut goes to the preparer
//! (files complete, record created: the point of no return), then to the committer. Every channel is
//! bounded; the first error wins and stops everything. Start with [`run`].

mod batcher;
mod committer;
mod cut;
mod flow;
mod ground;
mod in_flight;
mod panes;
mod preparer;
mod reader;
mod start;
mod watched;

#[cfg(test)]
mod simulation;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arrow::datatypes::SchemaRef;
use calve_model::{Epoch, Micros, Offsets, Watermarks};
use rayon::ThreadPool;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use flow::{BatchRows, CommitEvery};
use ground::Task;
pub(crate) use ground::{blocking, now as moment};

use crate::{
    checkpoint::{Checkpoints, Totals},
    error::{Error, Result},
    event_time::EventTime,
    metrics::{Change, Metrics},
    rejects::{self, RejectsWriter},
    seams::{BatcherFactory, Output, Source, TableWriter},
    windows::Windowed,
};

/// Name of the output that holds the rows.
pub const TABLE: &str = "table";
/// Name of the output that holds the rejects.
pub const REJECTS: &str = "rejects";
/// Name of the output that holds late rows, where they have a table of their own.
pub const LATE: &str = "late";

/// What a shard is made of.
pub struct Shard {
    /// Its checkpoints, under a new owner id.
    pub checkpoints: Checkpoints,
    /// What it reads.
    pub source: Box<dyn Source>,
    /// Makes decoders and transforms.
    pub factory: Arc<dyn BatcherFactory>,
    /// The event-time column of the decoded rows.
    pub event_time: Option<EventTime>,
    /// How rows are grouped in time; none: they go to the table as they come.
    pub windowed: Option<Windowed>,
    /// Writes the table's files.
    pub table: Box<dyn TableWriter>,
    /// Writes the files of late rows, where they have a table of their own.
    pub late: Option<Box<dyn TableWriter>>,
    /// Writes the rejects.
    pub rejects: RejectsWriter,
    /// Makes files visible, by name: [`TABLE`], [`REJECTS`], and [`LATE`] with `late`.
    pub outputs: BTreeMap<String, Arc<dyn Output>>,
    /// The batchers' threads.
    pub pool: Arc<ThreadPool>,
    /// Counters.
    pub metrics: Metrics,
    /// What must not change from run to run, by name.
    pub fingerprints: BTreeMap<String, String>,
    /// Former fingerprints from which the present ones are a change that does no harm, by name.
    pub harmless: BTreeMap<String, String>,
    /// Settings that may change.
    pub options: ShardOptions,
}

/// Settings of a shard that may change from run to run.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// How often an epoch ends.
    pub commit_every: CommitEvery,
    /// How large a batch is.
    pub batch_rows: BatchRows,
    /// What batches, windows and writers may hold together, bytes.
    pub memory_bytes: u64,
    /// But not sooner than this after the last.
    pub min_interval: Duration,
    /// And when it has so many rows.
    pub commit_rows: Option<u64>,
    /// How late an event may come, microseconds of event time.
    pub max_delay: Micros,
    /// A source that was empty for so long does not hold the watermark.
    pub idle_timeout: Duration,
    /// What batches may hold between reader and writer, bytes: as they were read, and as rows.
    pub in_flight_bytes: usize,
    /// Read nothing; fire and close every open window, commit, and end.
    pub drain: bool,
    /// How long an unavailable catalog, store or disk is tried again before the run fails.
    pub retry_for: Duration,
    /// When nothing has come to commit for so long, there is time to look after the outputs.
    pub settle_after: Duration,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Counted in this run.
    pub run: Totals,
    /// Counted since the pipeline's first start.
    pub since_start: Totals,
    /// The last epoch.
    pub epoch: Epoch,
    /// The source ended (as against: the run was stopped).
    pub ended: bool,
    /// The source goes on with events that need this schema: the shard is to be started again with it.
    pub evolve: Option<SchemaRef>,
}

/// Epochs that are prepared and not committed, at the most; past it the source stops.
const PREPARED_EPOCHS: usize = 4;

/// Runs a shard until its source ends, `stop` is cancelled (stop reading, commit, return), or
/// something fails (everything is dropped; the next start recovers).
///
/// # Errors
/// What stopped it; `Fenced` when another process took the shard over.
pub async fn run(shard: Shard, stop: CancellationToken) -> Result<Summary> {
    let metrics = shard.metrics.clone();
    let abort = CancellationToken::new();
    // The reader ends with this call, also when the call is dropped.
    let reader = abort.clone().drop_guard();
    let result = run_until(shard, stop, abort).await;
    drop(reader);
    metrics.set_connected(false);
    metrics.change(Change::Ended);
    metrics.set_state(if result.is_ok() { "done" } else { "failed" });
    result
}

async fn run_until(
    shard: Shard,
    stop: CancellationToken,
    abort: CancellationToken,
) -> Result<Summary> {
    let Shard {
        checkpoints,
        source,
        factory,
        event_time,
        windowed,
        mut table,
        mut late,
        rejects,
        outputs,
        pool,
        metrics,
        ..
    } = shard;
    let options = shard.options;
    // Cancelled by the caller, and where the source is to be opened anew.
    let stop = stop.child_token();
    if options.drain {
        stop.cancel();
    }
    let watermarks = Watermarks::new(options.max_delay);
    let leftovers = rejects.leftovers();
    let started = start::start(
        &checkpoints,
        &outputs,
        &shard.fingerprints,
        &shard.harmless,
        &watermarks,
    )
    .await?;
    let mut claim = started.claim;
    let open_windows = claim.windows.take();
    for (name, writer) in [(TABLE, Some(&mut table)), (LATE, late.as_mut())] {
        if let (Some(writer), Some(output)) = (writer, claim.outputs.get(name)) {
            writer.resume(&output.runs);
        }
    }

    let flow = flow::Flow::new(&options, metrics.clone());
    let in_flight = in_flight::InFlight::new(options.in_flight_bytes);
    let slots = pool.current_num_threads() * 4;
    let (items, incoming) = mpsc::channel(slots);
    let (cuts, cut_queue) = mpsc::channel(1);
    let (prepared, prepared_queue) = mpsc::channel(PREPARED_EPOCHS);
    let (acks, newest_ack) = watch::channel(Offsets::default());

    metrics.change(Change::Started(pool.current_num_threads() as u32));
    // What earlier owners prepared comes first, in epoch order, before anything is read.
    let committer = committer::Committer {
        checkpoints: checkpoints.clone(),
        outputs: outputs.clone(),
        metrics: metrics.clone(),
        acks,
        flow: flow.clone(),
        retry_for: options.retry_for,
        settle_after: options.settle_after,
    };
    committer.recover(started.commit).await?;
    rejects::remove(&leftovers);

    let windowed = windowed.map(Arc::new);
    let windows = match &windowed {
        Some(plan) => Some(panes::OpenWindows::new(
            Arc::clone(plan),
            open_windows,
            checkpoints.clone(),
            table.splitter(),
            Arc::clone(&pool),
        )?),
        None => None,
    };
    let batchers = Arc::new(batcher::Batchers::new(
        factory,
        table.splitter(),
        event_time,
        windowed,
        metrics.clone(),
    )?);
    let reader = reader::Reader {
        source,
        hands: reader::Hands {
            batchers,
            pool,
            slots: Arc::new(Semaphore::new(slots)),
            items,
            in_flight: in_flight.clone(),
            metrics: metrics.clone(),
        },
        flow: flow.clone(),
        acks: newest_ack,
        stop: stop.clone(),
    };
    let reading = ground::spawn_reader(reader, claim.offsets.clone(), abort)?;
    metrics.set_state("running");

    let preparer = preparer::Preparer {
        checkpoints: checkpoints.clone(),
        base: claim.clone(),
        metrics: metrics.clone(),
        flow: flow.clone(),
        retry_for: options.retry_for,
    };
    let mut preparing = Task::spawn(preparer.run(cut_queue, prepared));
    let mut committing = Task::spawn(committer.run(prepared_queue));
    let watched = |table| watched::watched_table(table, metrics.clone());
    let tables = cut::Tables {
        table: watched(table),
        late: late.map(watched),
        rejects,
    };
    let cutter = cut::Cutter::new(
        claim,
        windows,
        tables,
        metrics,
        options,
        (in_flight, flow),
        checkpoints,
    );
    let mut cutting = Task::spawn(cutter.run(incoming, cuts));

    // Each ends when the one before it has; whichever fails first decides.
    let mut summary = Summary::default();
    let (mut cut_done, mut prepare_done, mut commit_done) = (false, false, false);
    while !(cut_done && prepare_done && commit_done) {
        tokio::select! {
            biased;
            done = committing.ended(), if !commit_done => { joined(done)?; commit_done = true; }
            done = preparing.ended(), if !prepare_done => { summary.epoch = joined(done)?; prepare_done = true; }
            done = cutting.ended(), if !cut_done => {
                summary = joined(done)?;
                cut_done = true;
                if summary.evolve.is_some() {
                    stop.cancel();
                }
            }
        }
    }
    reading
        .await
        .map_err(|_| Error::internal("the reader thread died"))??;
    if summary.ended {
        committer::settle(&outputs, || stop.is_cancelled()).await;
    }
    Ok(summary)
}

fn joined<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.map_err(|e| Error::internal("a task of the shard died").because(e))?
}

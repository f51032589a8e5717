//! `calve run`: runs a pipeline until its source ends or it is told to stop.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use calve_engine::{Error, Result, shard};
use tokio_util::sync::CancellationToken;

use super::from;
use crate::{
    config::{self, PipelineFile},
    console::{self, Console},
    figures, memory, out,
    pipeline::{self, Before},
    serve::{Bound, Serve},
    upkeep,
};

/// Arguments of `calve run`.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    /// The pipeline file
    file: PathBuf,
    /// Where a pipeline without checkpoints starts: `earliest` (the default), `latest` (files that are
    /// followed: only what comes from now on), or PARTITION=OFFSET, once for each source partition
    #[arg(long, value_name = "START")]
    from: Vec<String>,
    /// Read nothing: commit what is prepared, fire and close every open window, and end. After that the
    /// pipeline's schema, SQL and windows may be changed
    #[arg(long, conflicts_with = "from")]
    drain: bool,
}

pub(crate) async fn run(args: RunArgs) -> Result<()> {
    let file = config::load(&args.file)?;
    if !args.from.is_empty() {
        from::set(&file, &from::Start::parse(&args.from)?).await?;
    }
    let done = supervise(&file, None, args.drain).await?;
    done.summarize(&file);
    Ok(())
}

/// What a run did.
pub(crate) struct Done {
    pub(crate) summary: shard::Summary,
    pub(crate) elapsed: Duration,
    pub(crate) metrics: calve_engine::metrics::Metrics,
}

impl Done {
    /// Says what the run did: lines for people, one object in a log of JSON.
    pub(crate) fn summarize(&self, file: &PipelineFile) {
        let status = self.metrics.status();
        if out::is_json() {
            tracing::info!(
                events = status.events,
                bytes = status.bytes,
                written = status.rows_committed,
                late = status.late,
                rejected = status.rejected,
                files = status.files_committed,
                file_bytes = status.bytes_committed,
                snapshots = status.snapshots,
                elapsed_ms = self.elapsed.as_millis() as u64,
                "done"
            );
            return;
        }
        let rejects = file.rejects_location();
        out::note(console::summary(&status, self.elapsed, &rejects));
    }
}

/// Runs a pipeline with server and console until the source ends, a signal comes, or `limit` is over.
/// With `drain` nothing is read, and open windows fire and close.
pub(crate) async fn supervise(
    file: &PipelineFile,
    limit: Option<Duration>,
    drain: bool,
) -> Result<Done> {
    let stop = CancellationToken::new();
    on_signal(stop.clone())?;
    let bound = match &file.serve {
        Some(serve) => {
            let token = serve.token.as_ref().map(config::Secret::expose);
            let bound = Bound::to(serve.listen, token).await?;
            Some(match serve.metrics_listen {
                Some(listen) => bound.and_metrics(Bound::to(listen, token).await?),
                None => bound,
            })
        }
        None => None,
    };
    let mut pipeline = pipeline::open(file, drain, None).await?;
    let (metrics, monitors) = (pipeline.metrics, pipeline.monitors);
    let around = CancellationToken::new();
    let _ended = around.clone().drop_guard();

    if let Some(bound) = bound {
        let monitors = monitors.clone();
        let figures: Arc<dyn Fn() -> serde_json::Value + Send + Sync> =
            Arc::new(move || figures::json(&monitors.result()));
        let server = Serve {
            metrics: metrics.clone(),
            figures: Some(figures),
            overdue_after: file.commit.longest().0 * 3 + Duration::from_secs(30),
        };
        let address = server.start(bound, around.clone());
        tracing::info!(%address, "serving /health, /ready, /metrics and /api/status");
    }
    let tables: Option<console::Tables> = (!monitors.is_empty()).then(|| {
        let monitors = monitors.clone();
        Arc::new(move || figures::text(&monitors.result(), out::is_json())) as _
    });
    let console = Console {
        metrics: metrics.clone(),
        figures: tables,
        every: Duration::from_secs(5),
    };
    let showing = tokio::spawn(console.run(around.clone()));

    tokio::spawn(memory::give_back_when_idle(metrics.clone(), around.clone()));
    upkeep::start(file, around.clone())?;
    let begun = Instant::now();
    if let Some(limit) = limit {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            stop.cancel();
        });
    }
    let summary = loop {
        let ran = tokio::spawn(shard::run(pipeline.shard, stop.clone())).await;
        let ran = ran.map_err(|e| Error::internal("the shard died").because(e))?;
        match ran {
            Ok(shard::Summary {
                evolve: Some(schema),
                ..
            }) if !stop.is_cancelled() => {
                tracing::info!("events have more than the schema: it evolves");
                let before = Before {
                    metrics: metrics.clone(),
                    monitors: monitors.clone(),
                    schema,
                };
                pipeline = match pipeline::open(file, drain, Some(before)).await {
                    Ok(pipeline) => pipeline,
                    Err(error) => break Err(error),
                };
            }
            ran => break ran,
        }
    };
    let elapsed = begun.elapsed();
    around.cancel();
    let _ = showing.await;
    let summary = summary?;
    Ok(Done {
        summary,
        elapsed,
        metrics,
    })
}

/// SIGINT and SIGTERM stop reading and commit; a second one ends the process at once.
#[allow(
    clippy::disallowed_methods,
    reason = "the user asked twice; what is on the disk is consistent at any moment"
)]
fn on_signal(stop: CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |e| Error::internal("cannot listen for signals").because(e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_cancelled() {
                out::note(
                    "stopped at once; what was not committed is read again at the next start",
                );
                std::process::exit(1);
            }
            out::note("stopping: what was read is committed; once more to stop at once");
            stop.cancel();
        }
    });
    Ok(())
}

//! Tells the metrics what a stage does: changes are told of where they happen, once a batch or call.

use std::{future::Future, pin::pin};

use async_trait::async_trait;
use calve_model::Epoch;

use crate::{
    error::Result,
    metrics::{Change, Metrics},
    seams::{Sealed, Split, Splitter, TableWriter},
};

/// Awaits, and tells before each poll that the work goes on (false), behind one that did not end it that
/// it waits (true).
pub(super) async fn watched<F: Future>(work: F, mut tell: impl FnMut(bool)) -> F::Output {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        tell(false);
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            tell(true);
        }
        polled
    })
    .await
}

/// A table's writer that tells: while an append waits, the loop is blocked.
pub(super) fn watched_table(table: Box<dyn TableWriter>, metrics: Metrics) -> Box<dyn TableWriter> {
    Box::new(WatchedTable { table, metrics })
}

struct WatchedTable {
    table: Box<dyn TableWriter>,
    metrics: Metrics,
}

/// Every method is passed on, those with a default, too.
#[async_trait]
impl TableWriter for WatchedTable {
    fn splitter(&self) -> Box<dyn Splitter> {
        self.table.splitter()
    }

    fn resume(&mut self, runs: &[String]) {
        self.table.resume(runs);
    }

    async fn append(&mut self, split: Split) -> Result<()> {
        let mut waits = false;
        let metrics = &self.metrics;
        let appended = watched(self.table.append(split), |now| {
            if now != waits {
                metrics.change(Change::Writing(now));
                waits = now;
            }
        });
        appended.await
    }

    fn buffered_bytes(&self) -> usize {
        self.table.buffered_bytes()
    }

    fn written_bytes(&self) -> u64 {
        self.table.written_bytes()
    }

    fn open_files(&self) -> usize {
        self.table.open_files()
    }

    async fn before_seal(&mut self) -> Result<()> {
        self.table.before_seal().await
    }

    fn files_in_flight(&mut self, files: usize) {
        self.table.files_in_flight(files);
    }

    fn seal(&mut self, epoch: Epoch) -> Box<dyn Sealed> {
        self.table.seal(epoch)
    }
}

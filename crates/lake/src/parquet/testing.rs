//! What the tests of both kinds of Parquet table share.

use arrow::array::RecordBatch;
use calve_engine::seams::{Commit, Prepared, TableWriter};
use calve_model::{Epoch, Offsets};

use super::PublishedFile;

/// Writes a batch as an epoch's only one.
pub(super) async fn prepare(
    table: &mut Box<dyn TableWriter>,
    batch: RecordBatch,
    epoch: u64,
) -> Prepared {
    let split = table.splitter().split(batch).expect("a split");
    table.append(split).await.expect("append");
    table.seal(Epoch(epoch)).finish().await.expect("finish")
}

/// The commit of an epoch.
pub(super) fn commit(epoch: u64, previous: u64, prepared: &Prepared) -> Commit {
    Commit {
        pipeline: "orders".into(),
        shard: "main".into(),
        epoch: Epoch(epoch),
        digest: format!("digest{epoch}"),
        record: String::new(),
        previous: Epoch(previous),
        offsets_from: String::new(),
        offsets_to: String::new(),
        offsets: Offsets::default(),
        watermark: None,
        complete: None,
        prepared: prepared.clone(),
    }
}

/// The files of an epoch.
pub(super) fn published(prepared: &Prepared) -> Vec<PublishedFile> {
    prepared.content.parse().expect("files")
}

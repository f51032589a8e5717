//! Checks that a table is what it says: files, counts, bounds, deletes, totals, history, and the
//! checkpoints that it was written from. Changes nothing; what is wrong is told, one line for each
//! finding. Start with [`verify`].

mod deletes;
mod files;
mod history;

use std::{collections::HashMap, fmt::Display};

use calve_engine::{
    error::{Error, Result},
    opaque::Opaque,
};
use iceberg::spec::TableMetadata;
use serde::Serialize;

use super::{
    catalog::Catalog,
    config::CatalogConfig,
    handle::{Known, TableHandle},
    live::LiveFiles,
};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing: `file`, `manifest`, `metrics`, `deletes`, `summary`, `sequence`, `history`,
    /// `checkpoint`.
    pub kind: &'static str,
    /// What is wrong, and where.
    pub what: String,
}

/// A table's part of a checkpoint record.
#[derive(Clone, Debug)]
pub struct RecordPart {
    /// The pipeline's id.
    pub pipeline: String,
    /// The shard.
    pub shard: String,
    /// The record's epoch.
    pub epoch: u64,
    /// Digest of the record.
    pub digest: String,
    /// What it holds for a table; also for other tables, which are told by their location.
    pub content: Opaque,
    /// Runs that the record refers to and that are not in its store.
    pub missing_runs: Vec<String>,
}

/// Checks a table. `records` are the parts of all records of the table's pipelines.
///
/// # Errors
/// `Config` when there is no such table; `Corrupt` when its metadata cannot be read; `Conflict` when it
/// changes all the time.
pub async fn verify(
    config: &CatalogConfig,
    table: &str,
    records: &[RecordPart],
) -> Result<Vec<Finding>> {
    let handle = TableHandle::open(Catalog::open(config).await?, table).await?;
    let mut known = handle.load_existing().await?;
    for _ in 0..TRIES {
        let found = check(&handle, &known, records).await;
        let now = handle.load_existing().await?;
        // A table that moves on may rightly have lost what its older state refers to.
        if found.is_empty() || now.location == known.location {
            return Ok(found);
        }
        known = now;
    }
    Err(Error::conflict(format!(
        "the table moves on faster than it can be checked: table={table}"
    ))
    .hint("check it when it is written to less often"))
}

/// How often a table that others commit to is looked at.
const TRIES: usize = 5;

async fn check(handle: &TableHandle, known: &Known, records: &[RecordPart]) -> Vec<Finding> {
    let mut check = Check {
        handle,
        metadata: &known.metadata,
        found: Vec::new(),
        sizes: HashMap::new(),
    };
    check.metadata_files().await;
    let current = check.snapshots().await;
    check.history();
    check.records(records).await;
    if let Some(manifests) = current {
        let mut live = LiveFiles::default();
        if let Err(error) = handle.live(known, &mut live).await {
            check.tell("manifest", error);
        } else {
            check.row_ids(&live);
            check.deletes(&live).await;
        }
        check.totals(&manifests).await;
    }
    check.found
}

/// A check in progress.
struct Check<'a> {
    handle: &'a TableHandle,
    metadata: &'a TableMetadata,
    found: Vec<Finding>,
    /// Files that were looked at, and whether they were there.
    sizes: HashMap<String, Option<u64>>,
}

impl Check<'_> {
    fn tell(&mut self, kind: &'static str, what: impl Display) {
        self.found.push(Finding {
            kind,
            what: what.to_string(),
        });
    }

    /// Size of a file; none: it is missing, which is told once.
    async fn size(&mut self, location: &str) -> Option<u64> {
        if let Some(size) = self.sizes.get(location) {
            return *size;
        }
        let found = self.handle.access.size(location).await;
        let size = found.as_ref().ok().copied().flatten();
        match found {
            Ok(Some(_)) => {}
            Ok(None) => self.tell("file", format!("a file is missing: file={location}")),
            Err(error) => self.tell("file", error),
        }
        self.sizes.insert(location.to_owned(), size);
        size
    }

    async fn metadata_files(&mut self) {
        let metadata = self.metadata;
        let logged = metadata.metadata_log().iter().map(|log| &log.metadata_file);
        let statistics = metadata.statistics_iter().map(|file| &file.statistics_path);
        let partitions = metadata
            .partition_statistics_iter()
            .map(|file| &file.statistics_path);
        for location in logged.chain(statistics).chain(partitions) {
            self.size(location).await;
        }
    }
}

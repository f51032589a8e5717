//! An epoch of a shard against the table: whether it is to be committed, and what a commit says of it.

use std::collections::HashMap;

use calve_engine::{
    error::{Error, Result},
    seams::{Commit, Outcome},
};
use calve_model::Epoch;
use iceberg::spec::{FormatVersion, TableMetadata};
use uuid::Uuid;

use super::{
    config::TableName,
    held::{self, Held, ancestors, of_shard, summary},
};

/// What to do about a commit.
pub(crate) enum Step {
    /// Commit it; what the table holds of the shard now.
    Go(Option<Held>),
    /// There is nothing to commit, or not by us.
    Stop(Outcome),
}

/// The property that an edit sets for a shard's epoch; it names the snapshot, which is known when the
/// edit is built.
#[derive(Clone, Debug)]
pub(crate) struct EpochMark {
    property: String,
    held: Held,
}

impl EpochMark {
    /// For a commit, after what the table held before.
    pub(crate) fn new(commit: &Commit, before: Option<&Held>) -> Self {
        Self {
            property: held::property(&commit.pipeline, &commit.shard),
            held: Held {
                epoch: commit.epoch,
                digest: commit.digest.clone(),
                offsets: commit.offsets_to.clone(),
                snapshot: before.and_then(|held| held.snapshot),
                sequence: before.and_then(|held| held.sequence),
            },
        }
    }

    /// Name and value. A commit that makes no snapshot leaves the last one the shard's.
    pub(super) fn property(mut self, made: Option<(i64, i64)>) -> (String, String) {
        if let Some((snapshot, sequence)) = made {
            self.held.snapshot = Some(snapshot);
            self.held.sequence = Some(sequence);
        }
        (self.property, self.held.to_value())
    }
}

/// What the table says about an epoch that is to be committed into the table of this identity.
///
/// # Errors
/// `Corrupt` when it is another table, or was rolled back; `Config` for format version 1.
pub(crate) fn decide(
    table: &TableName,
    uuid: Uuid,
    metadata: &TableMetadata,
    commit: &Commit,
) -> Result<Step> {
    check_identity(table, uuid, metadata)?;
    let held = Held::of(metadata, &commit.pipeline, &commit.shard)?;
    let epoch = held.as_ref().map_or(Epoch::NONE, |h| h.epoch);
    if epoch == commit.epoch {
        let same = held.is_some_and(|h| h.digest == commit.digest);
        return Ok(Step::Stop(if same {
            Outcome::AlreadyCommitted
        } else {
            Outcome::Fenced
        }));
    }
    if epoch > commit.epoch {
        let text = commit.epoch.to_string();
        let ours = ancestors(metadata)
            .filter(|s| of_shard(s, &commit.pipeline, &commit.shard))
            .find(|s| summary(s, held::EPOCH) == Some(&text));
        let same = ours.is_some_and(|s| summary(s, held::DIGEST) == Some(&commit.digest));
        return Ok(Step::Stop(if same {
            Outcome::AlreadyCommitted
        } else {
            Outcome::Fenced
        }));
    }
    if epoch > commit.previous {
        // Below our epoch and above the last that our chain knows: another chain's.
        return Ok(Step::Stop(Outcome::Fenced));
    }
    let refuse = |why: String| {
        Err(Error::corrupt(format!("{why}: table={table}")).hint(
            "the table was rolled back or restored, or its property was removed; put it back, \
             or start over with `calve checkpoint reset`",
        ))
    };
    if epoch < commit.previous {
        return refuse(format!(
            "the table lacks an epoch that it had: held_epoch={epoch} needed_epoch={}",
            commit.previous
        ));
    }
    if held
        .as_ref()
        .is_some_and(|h| h.offsets != commit.offsets_from)
    {
        return refuse(format!(
            "the offsets of epoch={} do not begin where the table's last end",
            commit.epoch
        ));
    }
    Ok(Step::Go(held))
}

/// That it is the table which was opened, of a format version that can be written.
pub(super) fn check_identity(
    table: &TableName,
    uuid: Uuid,
    metadata: &TableMetadata,
) -> Result<()> {
    if metadata.uuid() != uuid {
        return Err(Error::corrupt(format!(
            "the table was dropped and created again meanwhile: table={table} uuid={}",
            metadata.uuid()
        ))
        .hint("restore the old table, or start over with `calve checkpoint reset`"));
    }
    if metadata.format_version() == FormatVersion::V1 {
        return Err(
            Error::config(format!("the table has format version 1: table={table}"))
                .hint("upgrade the table to format version 2"),
        );
    }
    Ok(())
}

fn chain(commit: &Commit) -> String {
    let (from, to) = (&commit.offsets_from, &commit.offsets_to);
    format!("{}:{from}:{to}", commit.previous.0)
}

/// The entries of a snapshot's summary that tell of the epoch.
///
/// # Errors
/// `Internal` when the offsets cannot be written.
pub(crate) fn describe(commit: &Commit) -> Result<HashMap<String, String>> {
    let offsets = serde_json::to_string(&commit.offsets)
        .map_err(|e| Error::internal("cannot write the offsets").because(e))?;
    let mut entries = HashMap::from([
        (held::PIPELINE.to_owned(), commit.pipeline.to_string()),
        (held::SHARD.to_owned(), commit.shard.to_string()),
        (held::EPOCH.to_owned(), commit.epoch.to_string()),
        (held::DIGEST.to_owned(), commit.digest.clone()),
        (held::OFFSETS.to_owned(), offsets),
        (held::RECORD.to_owned(), commit.record.clone()),
        (held::CHAIN.to_owned(), chain(commit)),
    ]);
    if let Some(watermark) = commit.watermark {
        entries.insert(held::WATERMARK.to_owned(), watermark.to_string());
    }
    if let Some(complete) = commit.complete {
        entries.insert(held::WINDOWS_COMPLETE.to_owned(), complete.to_string());
    }
    Ok(entries)
}

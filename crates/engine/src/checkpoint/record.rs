//! The checkpoint record and its digest. JSON, since people will read it when something is wrong.

use std::collections::BTreeMap;

use calve_model::{
    Epoch, Offsets, Watermarks,
    recovery::{RecordFacts, RecordOutputFacts},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Checkpoints, RecordBase};
use crate::{
    clock,
    error::{Error, Result},
    seams::Prepared,
    windows::SavedWindows,
};

/// Version of the format of records and meta.
const FORMAT: u32 = 1;

/// What is fixed at a pipeline's first start, before any table is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the format.
    pub format: u32,
    /// The pipeline's id.
    pub pipeline: String,
    /// `single`: one shard that owns every source partition.
    pub shard_mode: String,
    /// The schema that was inferred, as the format wrote it; none when it was declared.
    pub inferred_schema: Option<serde_json::Value>,
    /// The columns that identify a row, where the first events told them; none when they were declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inferred_key: Option<Vec<String>>,
}

impl Meta {
    /// Meta of a pipeline in one process.
    pub fn single(pipeline: &str, inferred_schema: Option<serde_json::Value>) -> Self {
        Self {
            format: FORMAT,
            pipeline: pipeline.to_owned(),
            shard_mode: "single".to_owned(),
            inferred_schema,
            inferred_key: None,
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let meta: Self = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt("the pipeline's meta is unreadable").because(e))?;
        check_format(meta.format)?;
        Ok(meta)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("meta is plain data")
    }
}

/// Whether a record prepares something or only takes the shard over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// Takes the shard over; holds nothing for any output.
    Claim,
    /// The record of an epoch that was read.
    Checkpoint,
}

/// What a shard has counted since its pipeline's first start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Events read from the source.
    pub events: u64,
    /// Rows for the table, after the transform.
    pub rows: u64,
    /// Events that went to the rejects.
    pub rejects: u64,
    /// Rows behind the watermark and the allowed lateness.
    #[serde(default)]
    pub late: u64,
}

/// The durable record of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub format: u32,
    /// The pipeline's id.
    pub pipeline: String,
    /// The shard.
    pub shard: String,
    /// Its number.
    pub epoch: Epoch,
    /// Claim or checkpoint.
    pub kind: RecordKind,
    /// Who wrote it.
    pub owner: Uuid,
    /// Unique to this attempt to write it.
    pub nonce: Uuid,
    /// Processing time in ms; for people.
    pub written_ms: i64,
    /// Digest of the offsets at the beginning of the epoch.
    pub offsets_from: String,
    /// How far the source is accounted for, at the end of the epoch.
    pub offsets: Offsets,
    /// The watermarks at the end of the epoch.
    pub watermarks: Watermarks,
    /// What must not change: name to value.
    pub fingerprints: BTreeMap<String, String>,
    /// The part of each output.
    pub outputs: BTreeMap<String, RecordOutput>,
    /// Counts since the first start.
    pub totals: Totals,
    /// The windows that are open at the end of the epoch; none where the pipeline has no windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<SavedWindows>,
    /// Every window was fired and closed (`run --drain`): the pipeline may be changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
}

/// An output's part of a record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordOutput {
    /// Identity of the output when the record was written.
    pub identity: Option<String>,
    /// The last epoch before this one that held something for this output.
    pub previous: Epoch,
    /// Digest of the offsets at the end of that epoch; empty when there was none.
    #[serde(default)]
    pub previous_offsets: String,
    /// What is prepared; none: nothing for this output.
    pub prepared: Option<Prepared>,
    /// Runs in the checkpoint store that the output needs from this epoch on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<String>,
}

impl Record {
    pub(super) fn claim(by: &Checkpoints, newest: Option<&Self>, base: RecordBase) -> Self {
        let mut outputs: BTreeMap<String, RecordOutput> = BTreeMap::new();
        for (name, identity) in base.identities {
            let before = newest.and_then(|r| r.outputs.get(&name).map(|o| (r, o)));
            let mut part = before.map_or_else(
                || RecordOutput {
                    previous: base.previous.get(&name).copied().unwrap_or_default(),
                    ..RecordOutput::default()
                },
                |(record, output)| output.after(record),
            );
            part.identity = identity;
            outputs.insert(name, part);
        }
        let offsets = newest.map_or(base.offsets, |r| r.offsets.clone());
        Self {
            format: FORMAT,
            pipeline: by.pipeline.to_string(),
            shard: by.shard.to_string(),
            epoch: newest.map_or(base.floor, |r| r.epoch).next(),
            kind: RecordKind::Claim,
            owner: by.owner,
            nonce: Uuid::new_v4(),
            written_ms: clock::now_ms(),
            offsets_from: offsets_digest(&offsets),
            offsets,
            watermarks: newest.map_or(base.watermarks, |r| r.watermarks.clone()),
            fingerprints: base.fingerprints,
            outputs,
            totals: newest.map(|r| r.totals).unwrap_or_default(),
            windows: newest.and_then(|r| r.windows.clone()),
            drained: newest.is_some_and(|r| r.drained),
        }
    }

    /// The record of the epoch that follows this one, with nothing in it yet for any output.
    #[must_use]
    pub fn following(&self) -> Self {
        Self {
            epoch: self.epoch.next(),
            kind: RecordKind::Checkpoint,
            nonce: Uuid::new_v4(),
            written_ms: clock::now_ms(),
            offsets_from: offsets_digest(&self.offsets),
            outputs: self
                .outputs
                .iter()
                .map(|(name, output)| (name.clone(), output.after(self)))
                .collect(),
            ..self.clone()
        }
    }

    /// Event time up to which every window is closed; see [`crate::seams::Commit::complete`].
    pub fn complete(&self) -> Option<i64> {
        self.windows.as_ref().and_then(SavedWindows::complete)
    }

    /// The record's facts for recovery; `digest` is that of its bytes.
    pub fn facts(&self, digest: &str) -> RecordFacts {
        let outputs = self.outputs.iter().map(|(name, output)| {
            let facts = RecordOutputFacts {
                identity: output.identity.clone(),
                previous: output.previous,
                has_content: output.prepared.is_some(),
            };
            (name.clone(), facts)
        });
        RecordFacts {
            epoch: self.epoch,
            digest: digest.to_owned(),
            fingerprints: self.fingerprints.clone(),
            outputs: outputs.collect(),
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// `Corrupt` when it is none; `Config` when a newer calve wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt("a checkpoint record is unreadable").because(e))?;
        check_format(record.format)?;
        Ok(record)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is plain data")
    }
}

impl RecordOutput {
    /// What the record after `record` says about this output.
    fn after(&self, record: &Record) -> Self {
        let held = self.prepared.is_some();
        Self {
            identity: self.identity.clone(),
            previous: if held { record.epoch } else { self.previous },
            previous_offsets: if held {
                offsets_digest(&record.offsets)
            } else {
                self.previous_offsets.clone()
            },
            prepared: None,
            runs: self.runs.clone(),
        }
    }
}

fn check_format(format: u32) -> Result<()> {
    if format > FORMAT {
        return Err(Error::config(format!(
            "the checkpoints were written by a newer calve: format={format}"
        ))
        .hint("use that version, or a newer one"));
    }
    Ok(())
}

/// SHA-256 of a record's bytes, its first 128 bits in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..16])
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect()
}

/// Digest of how far a shard has read.
pub fn offsets_digest(offsets: &Offsets) -> String {
    digest(&serde_json::to_vec(offsets).expect("offsets are plain data"))
}

//! What to do with what was read at a start: a pure decision over the records of the checkpoint
//! store and the state of each output. The I/O around it is thin and decides nothing.
//!
//! Invariant: an epoch is committed to an output only when the output holds exactly the epoch before
//! it that had something for that output. Whatever does not fit is refused, with the reason.

use std::{collections::BTreeMap, fmt};

use crate::epoch::Epoch;

/// What a record says, as far as recovery needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// Its epoch.
    pub epoch: Epoch,
    /// Digest of its bytes.
    pub digest: String,
    /// Fingerprints of what must not change: name to value.
    pub fingerprints: BTreeMap<String, String>,
    /// Its part for each output, by name.
    pub outputs: BTreeMap<String, RecordOutputFacts>,
}

/// A record's part for one output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordOutputFacts {
    /// Identity of the output (a table's UUID) when the record was written.
    pub identity: Option<String>,
    /// The last epoch before this one that held something for this output.
    pub previous: Epoch,
    /// This record holds something for this output.
    pub has_content: bool,
}

/// What an output holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputFacts {
    /// Its identity now.
    pub identity: Option<String>,
    /// The last epoch that it holds, with the digest of that epoch's record.
    pub held: Option<(Epoch, String)>,
}

/// Everything that recovery looks at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// All records in the store, by epoch, lowest first.
    pub records: Vec<RecordFacts>,
    /// Epochs up to this one must not be used again.
    pub floor: Epoch,
    /// The outputs of the pipeline as it is configured now, by name.
    pub outputs: BTreeMap<String, OutputFacts>,
    /// The fingerprints of the pipeline as it is configured now.
    pub fingerprints: BTreeMap<String, String>,
}

/// What to do at a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is there: begin with epoch 1 at the beginning of the source.
    Start,
    /// Commit what is prepared and not held, in this order; then read on from the newest record.
    Resume {
        /// The newest record.
        newest: Epoch,
        /// Epoch and output, in epoch order.
        commit: Vec<(Epoch, String)>,
    },
    /// Go no further.
    Refuse(Refusal),
}

/// Why recovery refuses, and from where there is a way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The output holds an epoch that the checkpoint store does not know: the store was deleted, or
    /// an old copy of it was put back.
    StoreBehind {
        /// The output's name.
        output: String,
        /// What it holds.
        held: Epoch,
        /// The store's newest epoch; 0: the store is empty.
        newest: Epoch,
    },
    /// The output was rolled back or restored: the record it would need next is gone.
    OutputBehind {
        /// The output's name.
        output: String,
        /// What it holds; 0: nothing.
        held: Epoch,
        /// The epoch that it would have to hold.
        needed: Epoch,
    },
    /// A record between others is missing.
    MissingRecord(Epoch),
    /// The output is another one than before (dropped and created again).
    OtherIdentity {
        /// The output's name.
        output: String,
        /// Identity in the newest record.
        recorded: String,
        /// Identity now; none: it does not exist.
        now: Option<String>,
    },
    /// The output says that it holds an epoch, but of a record with another digest.
    DigestDiffers {
        /// The output's name.
        output: String,
        /// The epoch.
        epoch: Epoch,
    },
    /// A record holds something for an output that the pipeline, as it is configured now, does not
    /// have: it would be lost.
    OutputNotConfigured {
        /// The output's name.
        output: String,
        /// The record's epoch.
        epoch: Epoch,
    },
    /// The pipeline was changed in a way that its checkpoints do not fit any more.
    Changed {
        /// The fingerprints that differ: source, schema, sql, …
        what: Vec<String>,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreBehind {
                output,
                held,
                newest,
            } if newest.0 == 0 => write!(
                f,
                "the checkpoint store is empty, but the {output} holds this pipeline's epochs up to {held}"
            ),
            Self::StoreBehind {
                output,
                held,
                newest,
            } => write!(
                f,
                "the checkpoint store is behind the {output}: newest_epoch={newest} held_epoch={held}"
            ),
            Self::OutputBehind {
                output,
                held,
                needed,
            } => write!(
                f,
                "the {output} was rolled back or restored: held_epoch={held} needed_epoch={needed}, and \
                 the records in between are gone"
            ),
            Self::MissingRecord(epoch) => {
                write!(f, "a checkpoint record is missing: epoch={epoch}")
            }
            Self::OtherIdentity {
                output,
                recorded,
                now,
            } => write!(
                f,
                "the {output} is not the one of this pipeline's checkpoints (dropped and created again?): \
                 recorded={recorded} now={}",
                now.as_deref().unwrap_or("none")
            ),
            Self::DigestDiffers { output, epoch } => write!(
                f,
                "the {output} holds another process's result for an epoch of this pipeline: epoch={epoch}"
            ),
            Self::OutputNotConfigured { output, epoch } => write!(
                f,
                "a checkpoint record holds something for an output that the pipeline file does not name any \
                 more: output={output} epoch={epoch}"
            ),
            Self::Changed { what } => {
                write!(
                    f,
                    "the pipeline was changed since its last checkpoint: changed={}",
                    what.join(",")
                )
            }
        }
    }
}

impl Refusal {
    /// What the user can do.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::StoreBehind { .. } => {
                "put the checkpoint store back, or rebuild it from what the outputs hold: `calve checkpoint \
                 rebuild FILE`"
            }
            Self::OtherIdentity { .. } => {
                "put the old table back; or start over from the beginning of the source, into the table \
                 as it is now: `calve checkpoint reset FILE --yes`"
            }
            Self::OutputBehind { .. } => {
                "to start over from the beginning of the source, into the table as it is now: `calve \
                 checkpoint reset FILE --yes`; to go on where the outputs stand: `calve checkpoint rebuild FILE`"
            }
            Self::MissingRecord(_) | Self::DigestDiffers { .. } => {
                "look with `calve checkpoint ls FILE`; go on from what the outputs hold with `calve checkpoint \
                 rebuild FILE`"
            }
            Self::OutputNotConfigured { .. } => {
                "run the file as it was once more (`calve run OLD_FILE --drain`): it commits what is prepared"
            }
            Self::Changed { .. } => {
                "to go on at the same offsets: run the old file once more with `calve run OLD_FILE --drain`, which \
                 commits what is prepared and closes every window, then start this one; to start over: \
                 `calve checkpoint reset FILE --yes`"
            }
        }
    }
}

/// Decides what a start does. Total: every combination of facts has exactly one answer.
pub fn decide(facts: &Facts) -> Decision {
    let Some(newest) = facts.records.last() else {
        for (name, output) in &facts.outputs {
            if let Some((held, _)) = &output.held {
                return Decision::Refuse(Refusal::StoreBehind {
                    output: name.clone(),
                    held: *held,
                    newest: Epoch::NONE,
                });
            }
        }
        if facts.floor > Epoch::NONE {
            return Decision::Refuse(Refusal::MissingRecord(facts.floor.next()));
        }
        return Decision::Start;
    };
    for pair in facts.records.windows(2) {
        if pair[1].epoch != pair[0].epoch.next() {
            return Decision::Refuse(Refusal::MissingRecord(pair[0].epoch.next()));
        }
    }
    let changed: Vec<String> = facts
        .fingerprints
        .iter()
        .filter(|(name, value)| {
            newest
                .fingerprints
                .get(*name)
                .is_some_and(|old| old != *value)
        })
        .map(|(name, _)| name.clone())
        .collect();
    if !changed.is_empty() {
        return Decision::Refuse(Refusal::Changed { what: changed });
    }
    for record in &facts.records {
        let prepared = record.outputs.iter().filter(|(_, part)| part.has_content);
        for (name, _) in prepared {
            if !facts.outputs.contains_key(name) {
                return Decision::Refuse(Refusal::OutputNotConfigured {
                    output: name.clone(),
                    epoch: record.epoch,
                });
            }
        }
    }
    let mut commit = Vec::new();
    for (name, output) in &facts.outputs {
        match one_output(name, output, &facts.records) {
            Ok(epochs) => commit.extend(epochs.into_iter().map(|epoch| (epoch, name.clone()))),
            Err(refusal) => return Decision::Refuse(refusal),
        }
    }
    commit.sort();
    Decision::Resume {
        newest: newest.epoch,
        commit,
    }
}

fn one_output(
    name: &str,
    now: &OutputFacts,
    records: &[RecordFacts],
) -> Result<Vec<Epoch>, Refusal> {
    let newest = records.last().expect("called with at least one record");
    let recorded = newest.outputs.get(name).and_then(|o| o.identity.clone());
    if let Some(recorded) = recorded
        && now.identity.as_ref() != Some(&recorded)
    {
        return Err(Refusal::OtherIdentity {
            output: name.to_owned(),
            recorded,
            now: now.identity.clone(),
        });
    }
    let held = now.held.as_ref().map_or(Epoch::NONE, |(epoch, _)| *epoch);
    if held > newest.epoch {
        return Err(Refusal::StoreBehind {
            output: name.to_owned(),
            held,
            newest: newest.epoch,
        });
    }
    if let Some((epoch, digest)) = &now.held
        && records
            .iter()
            .any(|r| r.epoch == *epoch && r.digest != *digest)
    {
        return Err(Refusal::DigestDiffers {
            output: name.to_owned(),
            epoch: *epoch,
        });
    }
    let mut at = held;
    let mut missing = Vec::new();
    for record in records.iter().filter(|r| r.epoch > held) {
        let Some(part) = record.outputs.get(name) else {
            continue;
        };
        if part.previous != at {
            return Err(Refusal::OutputBehind {
                output: name.to_owned(),
                held,
                needed: part.previous,
            });
        }
        if part.has_content {
            missing.push(record.epoch);
            at = record.epoch;
        }
    }
    // Without a record above it, the newest record itself says what the output must hold.
    if held < newest.epoch
        && missing.is_empty()
        && let Some(part) = newest.outputs.get(name)
        && part.previous != held
    {
        return Err(Refusal::OutputBehind {
            output: name.to_owned(),
            held,
            needed: part.previous,
        });
    }
    Ok(missing)
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;

//! The history of snapshots, what it says of each shard, and the checkpoints beside it.

use std::{cmp::Ordering, collections::BTreeMap};

use calve_model::Offsets;
use iceberg::spec::SnapshotRef;

use crate::changes::content::ChangesContent;

use super::{
    super::{
        clean::contents,
        files::Content,
        held::{self, Held, ancestors, of_shard, parse_property, summary},
    },
    Check, RecordPart,
};

impl Check<'_> {
    /// That sequence numbers fall from the current snapshot back, and that epochs and offsets of each
    /// shard rise.
    pub(super) fn history(&mut self) {
        let metadata = self.metadata;
        let mut younger = metadata.last_sequence_number() + 1;
        for snapshot in ancestors(metadata) {
            if snapshot.sequence_number() >= younger {
                self.tell(
                    "sequence",
                    format!(
                        "a snapshot's sequence number does not rise: snapshot={}",
                        snapshot.snapshot_id()
                    ),
                );
            }
            younger = snapshot.sequence_number();
        }
        for (pipeline, shard) in self.shards() {
            if let Err(error) = Held::of(metadata, &pipeline, &shard) {
                self.tell("history", error);
            }
            let mut snapshots: Vec<&SnapshotRef> = ancestors(metadata)
                .filter(|s| of_shard(s, &pipeline, &shard))
                .collect();
            snapshots.reverse();
            for pair in snapshots.windows(2) {
                for what in steps(pair[0], pair[1]) {
                    self.tell(
                        "history",
                        format!(
                            "{what}: pipeline={pipeline} shard={shard} snapshot={}",
                            pair[1].snapshot_id()
                        ),
                    );
                }
            }
        }
    }

    fn shards(&self) -> Vec<(String, String)> {
        let names = self.metadata.properties().keys();
        let mut shards: Vec<_> = names.filter_map(|name| parse_property(name)).collect();
        shards.sort();
        shards
    }

    /// That what a record prepared is in the table, or still there to be committed.
    pub(super) async fn records(&mut self, records: &[RecordPart]) {
        let location = self.metadata.location().trim_end_matches('/').to_owned();
        for part in records {
            let Ok(contents) = contents(&part.content) else {
                continue;
            };
            let files = contents
                .iter()
                .filter(|content| content.location == location);
            let files: Vec<String> = files.flat_map(Content::locations).collect();
            if files.is_empty() {
                continue;
            }
            for run in &part.missing_runs {
                let (pipeline, epoch) = (&part.pipeline, part.epoch);
                let at = format!("pipeline={pipeline} epoch={epoch} run={run}");
                self.tell(
                    "checkpoint",
                    format!("a record refers to keys that are missing: {at}"),
                );
            }
            let RecordPart {
                pipeline,
                shard,
                epoch,
                digest,
                ..
            } = part;
            let at = format!("pipeline={pipeline} shard={shard} epoch={epoch}");
            let value = self
                .metadata
                .properties()
                .get(&held::property(pipeline, shard));
            let held = value.and_then(|value| Held::parse(value));
            if held.is_none_or(|held| held.epoch.0 < *epoch) {
                for location in files {
                    if self.size(&location).await.is_none() {
                        self.tell(
                            "checkpoint",
                            format!("a record refers to a file that is missing: {at}"),
                        );
                    }
                }
                continue;
            }
            let epochs: BTreeMap<u64, Option<&str>> = ancestors(self.metadata)
                .filter(|s| of_shard(s, pipeline, shard))
                .filter_map(|s| {
                    let epoch = summary(s, held::EPOCH)?.parse().ok()?;
                    Some((epoch, summary(s, held::DIGEST)))
                })
                .collect();
            // Where the history is cut, the property alone decides; and where changes were all older than
            // what the table held, there is no snapshot.
            let known = epochs.keys().next().is_some_and(|oldest| oldest <= epoch)
                && !ChangesContent::is(&part.content);
            let what = match epochs.get(epoch) {
                Some(said) if *said == Some(digest) => continue,
                Some(_) => "the table holds another record's epoch",
                None if known => "the table lacks an epoch that is prepared and below its last",
                None => continue,
            };
            self.tell("checkpoint", format!("{what}: {at}"));
        }
    }
}

/// What a commit says that it followed: the epoch before, and the digests of the offsets there and at
/// its end. None in what earlier builds wrote.
fn chain(snapshot: &SnapshotRef) -> Option<(u64, &str, &str)> {
    let (epoch, digests) = summary(snapshot, held::CHAIN)?.split_once(':')?;
    let (from, to) = digests.split_once(':')?;
    Some((epoch.parse().ok()?, from, to))
}

/// What is wrong between one commit of a shard and the next.
fn steps(older: &SnapshotRef, newer: &SnapshotRef) -> Vec<String> {
    let epoch = |s: &SnapshotRef| summary(s, held::EPOCH).and_then(|text| text.parse::<u64>().ok());
    let offsets = |s: &SnapshotRef| -> Option<Offsets> {
        serde_json::from_str(summary(s, held::OFFSETS)?).ok()
    };
    let mut found = Vec::new();
    let (chain_before, chain_now) = (chain(older), chain(newer));
    // The checkpoints were reset in between: another chain, which begins where it likes.
    if chain_now.is_some_and(|(previous, ..)| previous == 0) {
        return found;
    }
    match (epoch(older), epoch(newer)) {
        (Some(a), Some(b)) if a == b => found.push(format!("epoch={a} comes twice")),
        // As above, in what earlier builds wrote.
        (Some(a), Some(b)) if b < a && chain_now.is_none() => return found,
        (Some(a), Some(b)) if b < a => found.push(format!("the epoch goes back: from={a} to={b}")),
        (Some(a), Some(_)) => {
            if let (Some((_, _, ended)), Some((previous, begins, _))) = (chain_before, chain_now) {
                let changes = summary(newer, held::CHANGES).is_some();
                match previous.cmp(&a) {
                    Ordering::Equal if begins != ended => {
                        found.push("it does not begin where the offsets had ended".to_owned());
                    }
                    Ordering::Less => found.push(format!(
                        "it follows another epoch than the one before: epoch={previous} before={a}"
                    )),
                    Ordering::Greater if !changes => found.push(format!(
                        "the epoch that it follows is not in the history: epoch={previous} before={a}"
                    )),
                    Ordering::Equal | Ordering::Greater => {}
                }
            }
        }
        _ => found.push("a snapshot does not say its epoch".to_owned()),
    }
    let (Some(before), Some(after)) = (offsets(older), offsets(newer)) else {
        found.push("a snapshot does not say its offsets".to_owned());
        return found;
    };
    for (partition, at) in &before.0 {
        match after.0.get(partition) {
            None => found.push(format!("the offset is lost: partition={partition}")),
            Some(now) if now.offset < at.offset => found.push(format!(
                "the offset goes back: partition={partition} from={} to={}",
                at.offset, now.offset
            )),
            Some(_) => {}
        }
    }
    found
}

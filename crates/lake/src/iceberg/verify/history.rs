//! The history of snapshots, what it says of each shard, and the checkpoints beside it.

use std::collections::BTreeMap;

use calve_model::Offsets;
use iceberg::spec::SnapshotRef;

use super::{
    super::{
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
            let Ok(content) = Content::from_json(&part.content) else {
                continue;
            };
            if content.location != location || content.files.is_empty() {
                continue;
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
                for location in content.locations() {
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
            // Where the history is cut, the property alone decides.
            let known = epochs.keys().next().is_some_and(|oldest| oldest <= epoch);
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

/// What is wrong between one commit of a shard and the next.
fn steps(older: &SnapshotRef, newer: &SnapshotRef) -> Vec<String> {
    let epoch = |s: &SnapshotRef| summary(s, held::EPOCH).and_then(|text| text.parse::<u64>().ok());
    let offsets = |s: &SnapshotRef| -> Option<Offsets> {
        serde_json::from_str(summary(s, held::OFFSETS)?).ok()
    };
    let mut found = Vec::new();
    match (epoch(older), epoch(newer)) {
        (Some(a), Some(b)) if a == b => found.push(format!("epoch={a} comes twice")),
        // The checkpoints were reset in between: another chain, which begins where it likes.
        (Some(a), Some(b)) if b < a => return found,
        (Some(_), Some(_)) => {}
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

//! `calve checkpoint rebuild`: a new starting point from what the outputs hold. Where the records are
//! whole and every output holds them, the newest one says where to go on (the pipeline was changed);
//! else the Iceberg table's own history does (the store was lost, or the table rolled back).
//!
//! What to do is a pure function of what was read: [`plan`].

use std::collections::BTreeMap;

use calve_engine::{
    Error, ErrorKind, Result,
    checkpoint::{Loaded, Record, RecordOutput, offsets_digest},
    shard::{REJECTS, TABLE},
};
use calve_model::{
    Epoch, Micros, Offsets, Watermarks,
    recovery::{self, Decision, Facts},
};

use super::{
    Target,
    outputs::{Now, forget, set_rejects_aside},
    starting_point,
};
use crate::out;

/// Where to go on.
#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// Where the newest record stands: every output holds all that was prepared.
    Record(Box<Record>),
    /// Where the table's history stands.
    Table(FromTable),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FromTable {
    offsets: Offsets,
    watermark: Option<Micros>,
    /// The last epoch that the table has.
    epoch: Epoch,
    /// The table's property speaks of an epoch that is not in its history: it must go.
    forget: bool,
}

pub(super) async fn run(target: &Target) -> Result<()> {
    let name = &target.file.name;
    let loaded = match target.checkpoints.load().await {
        Ok(loaded) => loaded,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            out::note(format!("records that cannot be read are left out: {error}"));
            Loaded::default()
        }
        Err(error) => return Err(error),
    };
    let now = Now::of(&target.file).await?;
    let plan = plan(&loaded, &now)?;
    let used = target.newest().await?.max(loaded.floor).max(now.highest());
    let record = match &plan {
        Plan::Record(newest) => {
            let after = newest.following();
            let mut record = starting_point(
                name,
                used.next(),
                after.offsets,
                after.watermarks,
                after.outputs,
            );
            record.totals = after.totals;
            record
        }
        Plan::Table(from) => {
            if let Some(to) = set_rejects_aside(&target.file, from.epoch, "rebuild").await? {
                out::note(format!(
                    "moved aside rejects of events that are read again: to={to}"
                ));
            }
            let now = Now::of(&target.file).await?;
            from_table(name, used.next(), from, &now, target.max_delay())
        }
    };
    target.checkpoints.create(&record).await?;
    target.checkpoints.retire(record.epoch).await?;
    if let Plan::Table(FromTable { forget: true, .. }) = plan
        && let Some(done) = forget(&target.file).await?
    {
        out::note(done);
    }
    let from = match &plan {
        Plan::Record(newest) => format!("record epoch={}", newest.epoch),
        Plan::Table(from) => format!("table epoch={}", from.epoch),
    };
    out::line(format!(
        "rebuilt pipeline={name} epoch={} from {from}, source_partitions={}",
        record.epoch,
        record.offsets.0.len()
    ));
    Ok(())
}

/// Decides from what was read where to go on.
fn plan(loaded: &Loaded, now: &Now) -> Result<Plan> {
    let trouble = now.shard.as_ref().and_then(|shard| shard.trouble.as_ref());
    if let Some(newest) = loaded.newest()
        && trouble.is_none()
    {
        let facts = Facts {
            records: loaded.facts(),
            floor: loaded.floor,
            outputs: BTreeMap::from([
                (TABLE.to_owned(), now.table.clone()),
                (REJECTS.to_owned(), now.rejects.clone()),
            ]),
            // What was changed since is what this command accepts.
            fingerprints: BTreeMap::new(),
        };
        match recovery::decide(&facts) {
            Decision::Resume { commit, .. } if commit.is_empty() => {
                return Ok(Plan::Record(Box::new(newest.clone())));
            }
            Decision::Resume { commit, .. } => {
                let (epoch, output) = &commit[0];
                return Err(Error::config(format!(
                    "an epoch is prepared and not committed yet: epoch={epoch} output={output}"
                ))
                .hint("run the pipeline once with the file as it was (`calve run OLD_FILE`): it commits what is prepared; then rebuild"));
            }
            // The records do not fit the outputs: the outputs decide.
            Decision::Refuse(_) | Decision::Start => {}
        }
    }
    from_history(now).map(Plan::Table)
}

fn from_history(now: &Now) -> Result<FromTable> {
    let over = "to read the source again from its beginning: `calve checkpoint reset FILE`";
    let Some(shard) = &now.shard else {
        return Err(match &now.table.held {
            Some((epoch, _)) => Error::config(format!(
                "plain Parquet does not keep offsets, so the checkpoints cannot be rebuilt from it: held_epoch={epoch}"
            ))
            .hint(format!("put the checkpoint store back from a copy; or, {over}")),
            None => Error::config("the table holds nothing of this pipeline to rebuild from")
                .hint(over),
        });
    };
    let Some(offsets) = &shard.offsets else {
        return Err(Error::config(format!(
            "the snapshots that kept the offsets were expired: held_epoch={}",
            shard.epoch
        ))
        .hint(format!(
            "put the checkpoint store back from a copy; or, {over}"
        )));
    };
    let forget = shard.trouble.is_some();
    if !forget && offsets_digest(offsets) != shard.offsets_digest {
        return Err(Error::corrupt(format!(
            "the offsets in the table's history are not those of the last epoch: held_epoch={}",
            shard.epoch
        ))
        .hint(format!(
            "put the checkpoint store back from a copy; or, {over}"
        )));
    }
    Ok(FromTable {
        offsets: offsets.clone(),
        watermark: shard.watermark,
        epoch: if forget {
            now.in_history
        } else {
            Epoch(shard.epoch)
        },
        forget,
    })
}

fn from_table(
    pipeline: &str,
    epoch: Epoch,
    from: &FromTable,
    now: &Now,
    max_delay: Micros,
) -> Record {
    let mut table = RecordOutput {
        identity: now.table.identity.clone(),
        ..RecordOutput::default()
    };
    if !from.forget {
        table.previous = from.epoch;
        table.previous_offsets = offsets_digest(&from.offsets);
    }
    let held = now.rejects.held.as_ref();
    let rejects = RecordOutput {
        previous: held.map_or(Epoch::NONE, |(epoch, _)| *epoch),
        ..RecordOutput::default()
    };
    let outputs = BTreeMap::from([(TABLE.to_owned(), table), (REJECTS.to_owned(), rejects)]);
    let marks = watermarks(max_delay, &from.offsets, from.watermark);
    starting_point(pipeline, epoch, from.offsets.clone(), marks, outputs)
}

/// Watermarks that stand where the shard's stood. Those of the source partitions are not known one by
/// one: each is taken to stand at the shard's, which is the least that they were.
fn watermarks(max_delay: Micros, offsets: &Offsets, shard: Option<Micros>) -> Watermarks {
    let mut marks = Watermarks::new(max_delay);
    for partition in offsets.0.keys() {
        match shard {
            Some(at) => marks.observe(partition, at.saturating_add(max_delay)),
            None => marks.discover(partition),
        }
    }
    marks.current();
    for (partition, _) in offsets.0.iter().filter(|(_, at)| at.done) {
        marks.done(partition);
    }
    marks
}

#[cfg(test)]
#[path = "rebuild_tests.rs"]
mod tests;

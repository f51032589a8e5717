//! `calve checkpoint rebuild`: a new starting point from what the outputs hold. Where the records are
//! whole and every output holds them, the newest one says where to go on (the pipeline was changed);
//! else the table's own history does (the store was lost, or an Iceberg table rolled back).
//!
//! Rows of open windows are in no table: from a record they go on, from a table's history they are lost,
//! which the user must want. What to do is a pure function of what was read: [`plan`].

use std::collections::BTreeMap;

use calve_engine::{
    Error, ErrorKind, Result,
    checkpoint::{Loaded, Record, RecordOutput, offsets_digest},
    shard::{LATE, REJECTS, TABLE},
    windows::SavedWindows,
};
use calve_model::{
    Epoch, Micros, Offsets, Watermarks,
    recovery::{self, Decision, Facts, Refusal},
    watermark::END_OF_TIME,
};

use super::{
    Target,
    outputs::{Now, TableNow, forget, refuse_uncommitted, set_rejects_aside},
    starting_point,
};
use crate::{out, windows};

/// What of a record's fingerprints must stay while its windows are open: their rows and states are as
/// these made them.
const OF_OPEN_WINDOWS: [&str; 3] = ["schema", "sql", "window"];

/// Where to go on.
#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// Where the newest record stands: every output holds all that was prepared.
    Record(Box<Record>),
    /// Where the tables' history stands.
    Table(Box<FromTable>),
}

#[derive(Clone, Debug, PartialEq)]
struct FromTable {
    offsets: Offsets,
    watermark: Option<Micros>,
    /// The last epoch that the table has; that of the table of late rows, where it has more.
    epoch: Epoch,
    /// A property speaks of an epoch that is not in its table's history: it must go.
    forget: bool,
    /// None of them open.
    windows: Option<SavedWindows>,
}

pub(super) async fn run(target: &Target, lose_open_windows: bool) -> Result<()> {
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
    let windows = Windows {
        allowed_lateness: match &target.file.window {
            Some(window) => Some(window.strategy()?.allowed_lateness),
            None => None,
        },
        lose: lose_open_windows,
    };
    let plan = plan(&loaded, &now, &windows)?;
    let used = target.newest().await?.max(loaded.floor).max(now.highest());
    let record = match &plan {
        Plan::Record(newest) => from_record(name, used.next(), newest, lose_open_windows),
        Plan::Table(from) => {
            let late = windows::late_sink(&target.file);
            for sink in late.iter().chain([&target.file.sink]) {
                refuse_uncommitted(&target.file, sink).await?;
            }
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
    if let Plan::Table(from) = &plan
        && from.forget
    {
        let late = windows::late_sink(&target.file);
        let late = late.filter(|_| now.late.as_ref().is_some_and(TableNow::must_forget));
        let table = Some(&target.file.sink).filter(|_| now.table.must_forget());
        for sink in late.iter().chain(table) {
            if let Some(done) = forget(&target.file, sink).await? {
                out::note(done);
            }
        }
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
    if let Some(windows) = record.windows.as_ref().filter(|windows| windows.open() > 0) {
        out::note(format!(
            "windows stay open, so schema, SQL and windows must stay as they are until they were drained: {}",
            super::in_words(windows)
        ));
    }
    Ok(())
}

/// What the user says of windows.
struct Windows {
    /// The pipeline file's; none: it has no windows.
    allowed_lateness: Option<Micros>,
    /// Rows of open windows may be lost.
    lose: bool,
}

/// Decides from what was read where to go on.
fn plan(loaded: &Loaded, now: &Now, windows: &Windows) -> Result<Plan> {
    if let Some(newest) = loaded.newest()
        && !now.table.must_forget()
        && !now.late.as_ref().is_some_and(TableNow::must_forget)
    {
        let facts = Facts {
            records: loaded.facts(),
            floor: loaded.floor,
            outputs: now.facts(),
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
            Decision::Refuse(refusal @ Refusal::OutputNotConfigured { .. }) => {
                return Err(Error::config(refusal.to_string()).hint(refusal.way_out()));
            }
            // The records do not fit the outputs: the outputs decide.
            Decision::Refuse(_) | Decision::Start => {}
        }
    }
    from_history(now, windows).map(Box::new).map(Plan::Table)
}

fn from_history(now: &Now, windows: &Windows) -> Result<FromTable> {
    let over = "to read the source again from its beginning: `calve checkpoint reset FILE`";
    let copy = format!("put the checkpoint store back from a copy; or, {over}");
    let Some(shard) = &now.table.shard else {
        return Err(
            Error::config("the table holds nothing of this pipeline to rebuild from").hint(over),
        );
    };
    let windowed = windows.allowed_lateness.is_some() || shard.windows_complete.is_some();
    if windowed && !windows.lose {
        return Err(Error::config(format!(
            "the table does not hold the rows of open windows, and events that it does not hold would not be \
             read again: held_epoch={}",
            shard.epoch
        ))
        .hint(format!(
            "{copy}; to go on and lose the rows of the windows that were open: `calve checkpoint rebuild FILE \
             --lose-open-windows`"
        )));
    }
    // Late rows may have been committed in later epochs, which had nothing for the table.
    let mut shard = shard;
    let mut epoch = now.table.epoch();
    if let Some(late) = &now.late
        && late.epoch() > epoch
    {
        if now.table.must_forget() || late.must_forget() {
            return Err(Error::config(format!(
                "the table of late rows holds rows of events that would be read again: held_epoch={} \
                 table_epoch={epoch}",
                late.epoch()
            ))
            .hint(format!(
                "roll it back too, to its last snapshot of an epoch up to {epoch}, or drop it; then rebuild"
            )));
        }
        epoch = late.epoch();
        shard = late.shard.as_ref().unwrap_or(shard);
    }
    let Some(offsets) = &shard.offsets else {
        return Err(Error::config(format!(
            "the table does not hold the offsets any more (its snapshots were expired), or not yet (an earlier \
             build wrote it): held_epoch={}",
            shard.epoch
        ))
        .hint(copy));
    };
    if shard.trouble.is_none() && offsets_digest(offsets) != shard.offsets_digest {
        return Err(Error::corrupt(format!(
            "the offsets in the table's history are not those of the last epoch: held_epoch={}",
            shard.epoch
        ))
        .hint(copy));
    }
    Ok(FromTable {
        offsets: offsets.clone(),
        watermark: shard.watermark,
        epoch,
        forget: now.table.must_forget() || now.late.as_ref().is_some_and(TableNow::must_forget),
        windows: windows.allowed_lateness.map(|lateness| {
            let complete = shard.windows_complete;
            // At the end of a source nothing says how far event time had come, but what is complete.
            let known = shard.watermark.filter(|at| *at != END_OF_TIME);
            let least = complete.filter(|at| *at != END_OF_TIME);
            let least = least.map(|at| at.saturating_add(lateness));
            SavedWindows::empty(known.or(least), complete)
        }),
    })
}

/// The record that goes on where `newest` stands. Open windows stay open, with what made their rows;
/// or they are lost.
fn from_record(pipeline: &str, epoch: Epoch, newest: &Record, lose_open_windows: bool) -> Record {
    let after = newest.following();
    let (offsets, marks) = (after.offsets, after.watermarks);
    let mut record = starting_point(pipeline, epoch, offsets, marks, after.outputs);
    record.totals = after.totals;
    record.windows = after.windows;
    if let Some(windows) = &mut record.windows {
        if lose_open_windows {
            *windows = windows.emptied();
        } else if windows.open() > 0 {
            let prints = after.fingerprints.into_iter();
            record.fingerprints = prints
                .filter(|(name, _)| OF_OPEN_WINDOWS.contains(&name.as_str()))
                .collect();
        }
    }
    record
}

fn from_table(
    pipeline: &str,
    epoch: Epoch,
    from: &FromTable,
    now: &Now,
    max_delay: Micros,
) -> Record {
    let part = |table: &TableNow| {
        let mut part = RecordOutput {
            identity: table.facts.identity.clone(),
            ..RecordOutput::default()
        };
        if let Some(shard) = table.shard.as_ref().filter(|_| !table.must_forget()) {
            part.previous = Epoch(shard.epoch);
            part.previous_offsets.clone_from(&shard.offsets_digest);
        }
        part
    };
    let held = now.rejects.held.as_ref();
    let rejects = RecordOutput {
        previous: held.map_or(Epoch::NONE, |(epoch, _)| *epoch),
        ..RecordOutput::default()
    };
    let mut outputs = BTreeMap::from([
        (TABLE.to_owned(), part(&now.table)),
        (REJECTS.to_owned(), rejects),
    ]);
    if let Some(late) = &now.late {
        outputs.insert(LATE.to_owned(), part(late));
    }
    let marks = watermarks(max_delay, &from.offsets, from.watermark);
    let mut record = starting_point(pipeline, epoch, from.offsets.clone(), marks, outputs);
    record.windows.clone_from(&from.windows);
    record
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

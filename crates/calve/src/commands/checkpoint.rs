//! `calve checkpoint`: looks at a pipeline's checkpoints, starts over, rebuilds them from what the
//! outputs hold. `ls` and `show` only read. `reset` and `rebuild` leave data files alone, and each
//! of their steps, cut short, leaves a state that the next start refuses rather than one in which
//! events would be lost or repeated in silence.

pub(super) mod outputs;
mod rebuild;
mod reset;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use calve_engine::{
    Error, Result,
    checkpoint::{
        Checkpoints, Meta, Record, RecordKind, RecordOutput, RecordStore, offsets_digest,
    },
    clock,
    shard::{LATE, REJECTS, TABLE},
    windows::SavedWindows,
};
use calve_model::{Epoch, Micros, Offsets, Watermarks};
use uuid::Uuid;

use super::table::{aligned, event_time, utc_ms};
use crate::{
    config::{self, PipelineFile},
    out,
    pipeline::{SHARD, stores},
};

/// Looks at a pipeline's checkpoints, starts over, or rebuilds them.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckpointArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lists the checkpoint records
    Ls(LsArgs),
    /// Shows a record as JSON
    Show(ShowArgs),
    /// Forgets the checkpoints: the next run starts at the beginning of the source
    Reset(ResetArgs),
    /// Makes a checkpoint anew from what the outputs hold, to go on from there
    Rebuild(RebuildArgs),
}

#[derive(Debug, clap::Args)]
struct LsArgs {
    /// The pipeline file
    file: PathBuf,
    /// One record a line, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The pipeline file
    file: PathBuf,
    /// The record's epoch [default: the newest]
    epoch: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct ResetArgs {
    /// The pipeline file
    file: PathBuf,
    /// Do it; without this it only says what would be done
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
struct RebuildArgs {
    /// The pipeline file
    file: PathBuf,
    /// Let go of the rows of windows that are open: they are in the checkpoints, and in no table yet
    #[arg(long)]
    lose_open_windows: bool,
}

/// Runs `calve checkpoint`.
pub(crate) async fn run(args: CheckpointArgs) -> Result<()> {
    match args.command {
        Command::Ls(args) => ls(args).await,
        Command::Show(args) => show(args).await,
        Command::Reset(args) => reset::run(&Target::open(&args.file).await?, args.yes).await,
        Command::Rebuild(args) => {
            let target = Target::open(&args.file).await?;
            rebuild::run(&target, args.lose_open_windows).await
        }
    }
}

/// A pipeline and its checkpoint store.
struct Target {
    file: PipelineFile,
    store: Arc<dyn RecordStore>,
    checkpoints: Checkpoints,
}

impl Target {
    async fn open(path: &std::path::Path) -> Result<Self> {
        let file = config::load(path)?;
        let stores = stores(&file);
        let store =
            calve_lake::checkpoints::open_store(&file.checkpoint_location(), &stores).await?;
        let checkpoints = Checkpoints::new(Arc::clone(&store), &file.name, SHARD);
        Ok(Self {
            file,
            store,
            checkpoints,
        })
    }

    /// How late an event may come, as the pipeline file says now.
    fn max_delay(&self) -> Micros {
        let event_time = self.file.event_time.as_ref();
        event_time.map_or(0, |e| e.max_delay.0.as_micros() as Micros)
    }

    /// The highest epoch of any record, by name: also of records that cannot be read.
    async fn newest(&self) -> Result<Epoch> {
        let folder = format!("{}/{SHARD}", self.file.name);
        let names = self.store.list(&folder).await?;
        let epochs = names
            .iter()
            .filter_map(|name| name.strip_suffix(".json")?.parse().ok().map(Epoch));
        Ok(epochs.max().unwrap_or_default())
    }
}

async fn ls(args: LsArgs) -> Result<()> {
    let target = Target::open(&args.file).await?;
    let loaded = target.checkpoints.load().await?;
    if args.json {
        for (record, _) in &loaded.records {
            let text = serde_json::to_string(record)
                .map_err(|e| Error::internal("cannot express a record as JSON").because(e))?;
            out::line(text);
        }
        return Ok(());
    }
    out::note(format!(
        "pipeline={} shard={SHARD} store={}",
        target.file.name,
        target.store.location()
    ));
    if loaded.records.is_empty() {
        out::note("there are no checkpoints");
        return Ok(());
    }
    let records = || loaded.records.iter().map(|(record, _)| record);
    let windows = records().any(|r| r.windows.is_some() || r.outputs.contains_key(LATE));
    let mut titles = vec!["EPOCH", "KIND", "WRITTEN", "ROWS", "FILES", "REJECTS"];
    if windows {
        titles.extend(["LATE", "WINDOWS", "HELD", "RUNS"]);
    }
    titles.push("OWNER");
    let mut rows = vec![titles.into_iter().map(str::to_owned).collect()];
    rows.extend(records().map(|record| row(record, windows)));
    out::line(aligned(&rows));
    Ok(())
}

/// The open windows of a record, for people.
fn in_words(windows: &SavedWindows) -> String {
    let complete = windows.complete().map(event_time);
    format!(
        "open={} rows_held={} runs={} closed_up_to={}",
        windows.open(),
        windows.rows(),
        windows.runs().count(),
        complete.as_deref().unwrap_or("none")
    )
}

fn row(record: &Record, windows: bool) -> Vec<String> {
    let kind = match record.kind {
        RecordKind::Claim => "claim",
        RecordKind::Checkpoint => "checkpoint",
    };
    let prepared = |name: &str| record.outputs.get(name).and_then(|o| o.prepared.as_ref());
    let (table, rejects) = (prepared(TABLE), prepared(REJECTS));
    let mut row = vec![
        record.epoch.to_string(),
        kind.to_owned(),
        utc_ms(record.written_ms),
        table.map_or(0, |p| p.rows).to_string(),
        table.map_or(0, |p| p.files).to_string(),
        rejects.map_or(0, |p| p.rows).to_string(),
    ];
    if windows {
        let open = record.windows.as_ref();
        row.extend([
            prepared(LATE).map_or(0, |p| p.rows).to_string(),
            open.map_or(0, SavedWindows::open).to_string(),
            open.map_or(0, SavedWindows::rows).to_string(),
            open.map_or(0, |w| w.runs().count()).to_string(),
        ]);
    }
    row.push(record.owner.to_string());
    row
}

async fn show(args: ShowArgs) -> Result<()> {
    let target = Target::open(&args.file).await?;
    let loaded = target.checkpoints.load().await?;
    let found = match args.epoch {
        None => loaded.newest(),
        Some(epoch) => {
            let mut records = loaded.records.iter().map(|(record, _)| record);
            records.find(|record| record.epoch.0 == epoch)
        }
    };
    let Some(record) = found else {
        let store = target.store.location();
        return Err(Error::config(format!(
            "there is no such checkpoint record: pipeline={} store={store}",
            target.file.name
        ))
        .hint("`calve checkpoint ls FILE` lists what is there; older ones are deleted once every output holds them"));
    };
    let text = serde_json::to_string_pretty(record)
        .map_err(|e| Error::internal("cannot express a record as JSON").because(e))?;
    if let Some(windows) = &record.windows {
        out::note(format!("windows: {}", in_words(windows)));
    }
    out::line(text);
    Ok(())
}

/// A record that only says where to go on. It holds no fingerprints: the pipeline as it is
/// configured at the next start is taken as it is.
pub(super) fn starting_point(
    pipeline: &str,
    epoch: Epoch,
    offsets: Offsets,
    watermarks: Watermarks,
    outputs: BTreeMap<String, RecordOutput>,
) -> Record {
    Record {
        format: Meta::single(pipeline, None).format,
        pipeline: pipeline.to_owned(),
        shard: SHARD.to_owned(),
        epoch,
        kind: RecordKind::Claim,
        owner: Uuid::new_v4(),
        nonce: Uuid::new_v4(),
        written_ms: clock::now_ms(),
        offsets_from: offsets_digest(&offsets),
        offsets,
        watermarks,
        fingerprints: BTreeMap::new(),
        outputs,
        totals: calve_engine::checkpoint::Totals::default(),
        windows: None,
        drained: false,
    }
}

//! What a pipeline's outputs hold now, and how they let go of it. Looking creates nothing.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use calve_engine::{
    Error, Output, OutputState, Result,
    checkpoint::offsets_digest,
    durable,
    rejects::{RejectsOutput, RejectsPlace},
    shard::{LATE, REJECTS, TABLE},
    stores::is_remote,
};
use calve_lake::{
    iceberg::{self, IcebergConfig, ShardInfo, TableDetails},
    parquet::{CommitEntry, ObjectOutput, ParquetOutput},
};
use calve_model::{Epoch, recovery::OutputFacts};

use crate::{
    config::{PipelineFile, SinkConfig},
    pipeline::{SHARD, stores},
    windows,
};

/// What the outputs hold.
#[derive(Clone, Debug, Default)]
pub(in crate::commands) struct Now {
    /// The table.
    pub(super) table: TableNow,
    /// The table of late rows, where the pipeline has one.
    pub(super) late: Option<TableNow>,
    /// The rejects.
    pub(super) rejects: OutputFacts,
}

/// What a table holds of the shard.
#[derive(Clone, Debug, Default)]
pub(super) struct TableNow {
    /// As recovery sees it.
    pub(super) facts: OutputFacts,
    /// What the table says of the shard.
    pub(super) shard: Option<ShardInfo>,
    /// The shard's last epoch in an Iceberg table's history.
    pub(super) in_history: Epoch,
}

impl Now {
    /// Looks at the outputs of a pipeline.
    pub(in crate::commands) async fn of(file: &PipelineFile) -> Result<Self> {
        let late = match windows::late_sink(file) {
            Some(sink) => Some(TableNow::of(file, &sink).await?),
            None => None,
        };
        let rejects = RejectsOutput::new(rejects_place(file)?);
        Ok(Self {
            table: TableNow::of(file, &file.sink).await?,
            late,
            rejects: OutputFacts {
                identity: None,
                held: rejects.state(&file.name, SHARD).await?.held,
            },
        })
    }

    /// The outputs by name, as recovery sees them.
    pub(in crate::commands) fn facts(&self) -> BTreeMap<String, OutputFacts> {
        let mut facts = BTreeMap::from([
            (TABLE.to_owned(), self.table.facts.clone()),
            (REJECTS.to_owned(), self.rejects.clone()),
        ]);
        if let Some(late) = &self.late {
            facts.insert(LATE.to_owned(), late.facts.clone());
        }
        facts
    }

    /// The highest epoch that any output holds.
    pub(in crate::commands) fn highest(&self) -> Epoch {
        let facts = self.facts().into_values();
        let held = facts.filter_map(|facts| facts.held.map(|(epoch, _)| epoch));
        held.max().unwrap_or_default()
    }
}

impl TableNow {
    async fn of(file: &PipelineFile, sink: &SinkConfig) -> Result<Self> {
        Ok(match sink {
            SinkConfig::Iceberg(sink) => match details(sink).await? {
                Some(details) => Self::of_iceberg(&file.name, details),
                None => Self::default(),
            },
            SinkConfig::Parquet(sink) if is_remote(&sink.path) => {
                let output = ObjectOutput::of(stores(file).open(&sink.path)?);
                let newest = output.newest(&file.name, SHARD).await?;
                Self::of_parquet(&file.name, output.state(&file.name, SHARD).await?, newest)
            }
            SinkConfig::Parquet(sink) => {
                let root = root(&sink.path);
                if root.join("_calve/id").exists() {
                    let output = ParquetOutput::open(root)?;
                    let newest = output.newest(&file.name, SHARD).await?;
                    Self::of_parquet(&file.name, output.state(&file.name, SHARD).await?, newest)
                } else {
                    Self::default()
                }
            }
        })
    }

    fn of_parquet(pipeline: &str, state: OutputState, newest: Option<CommitEntry>) -> Self {
        let shard = newest.map(|commit| ShardInfo {
            pipeline: pipeline.to_owned(),
            shard: SHARD.to_owned(),
            epoch: commit.epoch.0,
            digest: commit.digest,
            // The offsets are in what says that the epoch is there.
            offsets_digest: commit
                .offsets
                .as_ref()
                .map(offsets_digest)
                .unwrap_or_default(),
            watermark: commit.watermark,
            windows_complete: commit.windows_complete,
            offsets: commit.offsets,
            record: Some(commit.record),
            snapshot: None,
            trouble: None,
        });
        Self {
            facts: OutputFacts {
                identity: state.identity,
                held: state.held,
            },
            shard,
            ..Self::default()
        }
    }

    fn of_iceberg(pipeline: &str, details: TableDetails) -> Self {
        let mut epochs = details.snapshots.iter().filter_map(|s| s.epoch.as_ref());
        let last = epochs.find(|(p, shard, _)| p == pipeline && shard == SHARD);
        let in_history = last.map_or(Epoch::NONE, |(_, _, epoch)| Epoch(*epoch));
        let mut shards = details.shards.into_iter();
        let shard = shards.find(|s| s.pipeline == pipeline && s.shard == SHARD);
        Self {
            facts: OutputFacts {
                identity: Some(details.uuid),
                held: shard.as_ref().map(|s| (Epoch(s.epoch), s.digest.clone())),
            },
            shard,
            in_history,
        }
    }

    /// The last epoch that the table has, as its history tells it.
    pub(super) fn epoch(&self) -> Epoch {
        match &self.shard {
            Some(shard) if shard.trouble.is_some() => self.in_history,
            _ => {
                let held = self.facts.held.as_ref();
                held.map_or(Epoch::NONE, |(epoch, _)| *epoch)
            }
        }
    }

    /// The table's property speaks of an epoch that is not in its history: it must go.
    pub(super) fn must_forget(&self) -> bool {
        let mut shards = self.shard.iter();
        shards.any(|shard| shard.trouble.is_some())
    }
}

async fn details(sink: &IcebergConfig) -> Result<Option<TableDetails>> {
    iceberg::show_if_there(&sink.catalog, &sink.table).await
}

/// Refuses to go on from the commits of a plain Parquet table that shows more: files of an epoch that was
/// being committed when the process died, whose events will be read again.
pub(super) async fn refuse_uncommitted(file: &PipelineFile, sink: &SinkConfig) -> Result<()> {
    let SinkConfig::Parquet(sink) = sink else {
        return Ok(());
    };
    let names = if is_remote(&sink.path) {
        let output = ObjectOutput::of(stores(file).open(&sink.path)?);
        output.uncommitted().await?
    } else if root(&sink.path).join("_calve/id").exists() {
        let output = ParquetOutput::open(root(&sink.path))?;
        output.uncommitted().await?
    } else {
        Vec::new()
    };
    match names.first() {
        None => Ok(()),
        Some(first) => Err(Error::config(format!(
            "the table has files that no commit names, and their events may be read again: path={} files={} \
             first={first}",
            sink.path,
            names.len()
        ))
        .hint(
            "an epoch was being committed, or `_calve/commits` is not whole: put it back, or move these files \
             out of the table; then rebuild",
        )),
    }
}

/// Makes the table of late rows, where there is one, and the table forget the pipeline; their rows
/// stay. Answers what was done.
pub(super) async fn forget_all(file: &PipelineFile) -> Result<Vec<String>> {
    let mut done = Vec::new();
    if let Some(late) = windows::late_sink(file) {
        done.extend(forget(file, &late).await?);
    }
    done.extend(forget(file, &file.sink).await?);
    Ok(done)
}

/// Makes one table forget the pipeline; its rows stay. Answers what was done, if anything.
pub(super) async fn forget(file: &PipelineFile, sink: &SinkConfig) -> Result<Option<String>> {
    match sink {
        SinkConfig::Iceberg(sink) => {
            if details(sink).await?.is_none() {
                return Ok(None);
            }
            Ok(
                match iceberg::forget(&sink.catalog, &sink.table, &file.name).await? {
                    0 => None,
                    _ => Some(format!(
                        "the table forgot the pipeline: table={}",
                        sink.table
                    )),
                },
            )
        }
        SinkConfig::Parquet(sink) => {
            let commits = format!("_calve/commits/{}/{SHARD}", file.name);
            let aside = format!("_calve/before-reset/{}", file.name);
            let takes = |name: &str| name.strip_suffix(".json").is_some();
            let moved = if is_remote(&sink.path) {
                let folder = stores(file).open(&sink.path)?;
                let moved = folder.set_aside(&commits, &aside, takes).await?;
                moved.map(|to| format!("{}/{to}", folder.shown()))
            } else {
                let root = root(&sink.path);
                let moved = set_aside(&root.join(commits), &root.join(aside), takes)?;
                moved.map(|to| to.display().to_string())
            };
            let left = TableNow::of(file, &SinkConfig::Parquet(sink.clone()))
                .await?
                .facts
                .held;
            if let Some((epoch, _)) = left {
                return Err(Error::internal(format!(
                    "the table still holds an epoch of the pipeline: path={} epoch={epoch}",
                    sink.path
                )));
            }
            Ok(moved.map(|to| {
                format!("moved the table's commit entries aside; its files stay: to={to}")
            }))
        }
    }
}

/// Moves published rejects files aside whose epoch lies above `above`. Answers where they are now, if
/// there were any.
pub(super) async fn set_rejects_aside(
    file: &PipelineFile,
    above: Epoch,
    why: &str,
) -> Result<Option<String>> {
    let from = format!("{}/{SHARD}", file.name);
    let aside = format!("{from}/before-{why}");
    let takes = |name: &str| is_later_reject(name, above);
    match rejects_place(file)? {
        RejectsPlace::Local(dir) => {
            let moved = set_aside(&dir.join(from), &dir.join(aside), takes)?;
            Ok(moved.map(|to| to.display().to_string()))
        }
        RejectsPlace::Remote(folder) => {
            let moved = folder.set_aside(&from, &aside, takes).await?;
            Ok(moved.map(|to| format!("{}/{to}", folder.shown())))
        }
    }
}

fn rejects_place(file: &PipelineFile) -> Result<RejectsPlace> {
    RejectsPlace::open(&file.rejects_location(), &stores(file))
}

/// Whether a name is that of a published rejects file of a later epoch.
fn is_later_reject(name: &str, above: Epoch) -> bool {
    let parts = name.strip_suffix(".ndjson").and_then(|n| n.split_once('-'));
    parts
        .and_then(|(epoch, _)| epoch.parse().ok())
        .is_some_and(|epoch: u64| epoch > above.0)
}

/// Moves the files that `takes` into a new folder `<aside>-<n>`, durably.
fn set_aside(folder: &Path, aside: &Path, takes: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let failed = |e| {
        Error::io(
            format!("cannot move files aside: path={}", folder.display()),
            e,
        )
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_file = entry.file_type().map_err(failed)?.is_file();
        if is_file && entry.file_name().to_str().is_some_and(&takes) {
            names.push(entry.file_name());
        }
    }
    if names.is_empty() {
        return Ok(None);
    }
    let mut count = 1_u32;
    let mut to = PathBuf::from(format!("{}-{count}", aside.display()));
    while to.exists() {
        count += 1;
        to = PathBuf::from(format!("{}-{count}", aside.display()));
    }
    durable::create_dirs(&to).map_err(failed)?;
    for name in names {
        fs::rename(folder.join(&name), to.join(&name)).map_err(failed)?;
    }
    durable::sync_dir(&to).map_err(failed)?;
    durable::sync_dir(folder).map_err(failed)?;
    Ok(Some(to))
}

fn root(path: &str) -> PathBuf {
    PathBuf::from(path.strip_prefix("file://").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_later_rejects_are_moved() {
        assert!(is_later_reject("00000000000000000004-ab.ndjson", Epoch(3)));
        assert!(!is_later_reject("00000000000000000003-ab.ndjson", Epoch(3)));
        assert!(!is_later_reject(".1234.tmp", Epoch::NONE));
        assert!(!is_later_reject("notes-1.ndjson", Epoch::NONE));
    }

    #[test]
    fn each_move_has_a_folder_of_its_own() {
        let dir = tempfile::tempdir().expect("a folder");
        let (folder, aside) = (
            dir.path().join("main"),
            dir.path().join("main/before-reset"),
        );
        let all = |_: &str| true;
        assert_eq!(
            set_aside(&folder, &aside, all).expect("nothing is there"),
            None
        );
        for n in 1..3 {
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("1-a.ndjson"), n.to_string()).expect("a file");
            let to = set_aside(&folder, &aside, all)
                .expect("moved")
                .expect("a file was there");
            assert_eq!(to, dir.path().join(format!("main/before-reset-{n}")));
            let moved = fs::read_to_string(to.join("1-a.ndjson")).expect("the file");
            assert_eq!(moved, n.to_string());
        }
        assert_eq!(set_aside(&folder, &aside, all).expect("empty"), None);
    }
}

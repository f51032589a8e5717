//! The table as an output: what it holds of a shard, and one try to commit an epoch.
//!
//! A commit reads the table's row, decides, writes manifest, list and metadata side by side, makes
//! them durable, and swaps the row. Nothing refers to what was written before the swap. Metadata
//! files never change, so what was parsed is kept under its location. Protocol: design.md section 3.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use calve_engine::{
    durable,
    error::{Error, Result},
    fault,
    seams::{Commit, Outcome, Output, OutputState},
};
use calve_model::Epoch;
use iceberg::spec::{FormatVersion, ManifestFile, TableMetadata};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    catalog::{Catalog, local_path},
    config::TableName,
    files::Content,
    held::{self, Held, ancestors, of_shard, summary},
    snapshot::{self, Base},
};

/// One table of a catalog, as the place where epochs become visible.
pub struct IcebergOutput {
    catalog: Catalog,
    table: TableName,
    /// The table that was opened; another one under its name is refused.
    uuid: Uuid,
    known: Mutex<Option<Known>>,
}

/// What was read or written last.
#[derive(Clone)]
struct Known {
    location: String,
    metadata: Arc<TableMetadata>,
    /// Snapshot and its manifests.
    manifests: Option<(i64, Arc<Vec<ManifestFile>>)>,
}

/// What to do about a commit.
enum Step {
    Go(Option<Held>),
    Stop(Outcome),
}

impl IcebergOutput {
    pub(super) fn new(catalog: Catalog, table: TableName, uuid: Uuid) -> Self {
        Self {
            catalog,
            table,
            uuid,
            known: Mutex::new(None),
        }
    }

    /// The table as the catalog has it now; none: there is none.
    async fn load(&self) -> Result<Option<Known>> {
        let Some(location) = self.catalog.locate(&self.table).await? else {
            return Ok(None);
        };
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.location == location) {
            return Ok(Some(known.clone()));
        }
        let metadata = Arc::new(self.catalog.read(&location).await?);
        Ok(Some(
            known
                .insert(Known {
                    location,
                    metadata,
                    manifests: None,
                })
                .clone(),
        ))
    }

    /// What the table says about an epoch that is to be committed.
    fn decide(&self, metadata: &TableMetadata, commit: &Commit) -> Result<Step> {
        if metadata.uuid() != self.uuid {
            return Err(Error::corrupt(format!(
                "the table was dropped and created again meanwhile: table={} uuid={}",
                self.table,
                metadata.uuid()
            ))
            .hint("restore the old table, or start over with `calve checkpoint reset`"));
        }
        if metadata.format_version() == FormatVersion::V1 {
            return Err(Error::config(format!(
                "the table has format version 1: table={}",
                self.table
            ))
            .hint("upgrade the table to format version 2"));
        }
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
            Err(Error::corrupt(format!("{why}: table={}", self.table)).hint(
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

    /// Prepared files can have been removed by somebody else's cleaning.
    fn check_files(content: &Content) -> Result<()> {
        for location in content.locations() {
            let path = local_path(&location)?;
            if !path.exists() {
                return Err(
                    Error::corrupt(format!("a prepared file is gone: file={location}")).hint(
                        "something removed files that a checkpoint refers to; restore the file, or \
                         start over with `calve checkpoint reset`",
                    ),
                );
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Output for IcebergOutput {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        let Some(known) = self.load().await? else {
            return Ok(OutputState::default());
        };
        let held = if known.metadata.uuid() == self.uuid {
            Held::of(&known.metadata, pipeline, shard)?
        } else {
            None
        };
        Ok(OutputState {
            identity: Some(known.metadata.uuid().to_string()),
            held: held.map(|held| (held.epoch, held.digest)),
        })
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        let Some(known) = self.load().await? else {
            return Err(
                Error::corrupt(format!("the table is gone: table={}", self.table))
                    .hint("restore it, or start over with `calve checkpoint reset`"),
            );
        };
        let metadata = &known.metadata;
        let held = match self.decide(metadata, commit)? {
            Step::Stop(outcome) => return Ok(outcome),
            Step::Go(held) => held,
        };
        let content = Content::from_json(&commit.prepared.content)?;
        Self::check_files(&content)?;
        fault::point("iceberg.commit.before_manifest")?;

        let manifests = match &known.manifests {
            Some((id, manifests)) if Some(*id) == metadata.current_snapshot_id() => {
                manifests.clone()
            }
            _ => Arc::new(snapshot::manifests(&self.catalog, metadata).await?),
        };
        let (folder, next) = next_metadata(&known.location, metadata.location());
        let base = Base {
            metadata,
            location: &known.location,
            manifests: &manifests,
            held: held.as_ref(),
        };
        let built = snapshot::build(base, commit, &content, &folder, now_ms()).await?;
        fault::point("iceberg.commit.before_metadata")?;

        let json = serde_json::to_vec(&built.metadata)
            .map_err(|e| Error::internal("cannot write the table's metadata").because(e))?;
        let mut files = built.files;
        files.push((next.clone(), json));
        let written = write_all(files, &folder).await?;
        fault::point("iceberg.commit.before_cas")?;

        match self.catalog.swap(&self.table, &known.location, &next).await {
            Ok(true) => {}
            Ok(false) => {
                // The row was another's, so nothing can refer to what we wrote.
                for path in written {
                    let _ = fs::remove_file(path);
                }
                return Ok(Outcome::Conflict);
            }
            // The next try looks at the table again in any case.
            Err(error) if error.hint_text().is_some() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, table = %self.table, "no answer to a commit; looking");
                return Ok(Outcome::Unknown);
            }
        }
        fault::point("iceberg.commit.after_cas")?;
        if fault::lost("iceberg.commit.after_cas") {
            return Ok(Outcome::Unknown);
        }
        let id = built.snapshot.as_ref().map(|(id, _)| *id);
        let forget = built
            .metadata
            .properties()
            .get(DELETE_AFTER_COMMIT)
            .is_some_and(|v| v == "true");
        // With format version 3 the list has given the manifests row ids that we do not know.
        let cached = built
            .snapshot
            .filter(|_| metadata.format_version() < FormatVersion::V3);
        *self.known.lock().await = Some(Known {
            location: next,
            metadata: Arc::new(built.metadata),
            manifests: cached,
        });
        if forget {
            for path in built
                .expired
                .iter()
                .filter_map(|location| local_path(location).ok())
            {
                let _ = fs::remove_file(path);
            }
        }
        Ok(Outcome::Committed {
            snapshot: id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
        })
    }
}

/// Asks writers to remove the metadata files that the log no longer lists.
pub(super) const DELETE_AFTER_COMMIT: &str = "write.metadata.delete-after-commit.enabled";

/// The metadata folder and the next metadata file in it.
pub(super) fn next_metadata(current: &str, table: &str) -> (String, String) {
    let (folder, name) = match current.rsplit_once('/') {
        Some((folder, name)) => (folder.to_owned(), name),
        None => (format!("{table}/metadata"), current),
    };
    // `00012-<uuid>.metadata.json`, or `v12.metadata.json` by others.
    let digits: String = name
        .trim_start_matches('v')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let version = digits.parse::<u64>().unwrap_or(0) + 1;
    let next = format!("{folder}/{version:05}-{}.metadata.json", Uuid::new_v4());
    (folder, next)
}

/// Writes new files side by side; when it returns, they and their names are durable.
pub(super) async fn write_all(files: Vec<(String, Vec<u8>)>, folder: &str) -> Result<Vec<PathBuf>> {
    let folder = local_path(folder)?.to_owned();
    let failed = |path: &Path, e: io::Error| {
        Error::io(
            format!("cannot write the table's metadata: file={}", path.display()),
            e,
        )
    };
    let mut tasks = Vec::new();
    for (location, bytes) in files {
        let path = local_path(&location)?.to_owned();
        tasks.push(tokio::task::spawn_blocking(move || {
            let written = write_new(&path, &bytes);
            (path, written)
        }));
    }
    let mut written = Vec::new();
    let mut error = None;
    for task in tasks {
        let (path, result) = task
            .await
            .map_err(|e| Error::internal("a task that writes has died").because(e))?;
        match result {
            Ok(()) => written.push(path),
            Err(e) => error = Some(failed(&path, e)),
        }
    }
    if let Some(error) = error {
        for path in written {
            let _ = fs::remove_file(path);
        }
        return Err(error);
    }
    let sync = folder.clone();
    tokio::task::spawn_blocking(move || durable::sync_dir(&sync))
        .await
        .map_err(|e| Error::internal("a task that syncs has died").because(e))?
        .map_err(|e| failed(&folder, e))?;
    Ok(written)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Stamps snapshots for people; nothing is decided by it.
#[allow(clippy::disallowed_methods, reason = "the stamp of a snapshot")]
pub(super) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as i64)
}

//! Makes an epoch's uploads visible, exactly once, in an object store.
//!
//! Each file is a multipart upload with all of its parts; completing it gives it its name, which no
//! other upload has. Then `_calve/commits/<pipeline>/<shard>/<epoch>.json` is created if absent: that
//! entry is the commit. As on the local file system any step may have happened before, and is looked
//! at, never assumed: an upload that is gone was completed when its object is there.

use std::collections::HashSet;

use async_trait::async_trait;
use calve_engine::{
    clock,
    durable::Created,
    error::{Error, Result},
    fault,
    seams::{Commit, Outcome, Output, OutputState},
    stores::{
        ObjectFolder,
        upload::{Completed, Uploads},
    },
};
use calve_model::Epoch;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use super::{
    BEFORE_RESET, COMMITS, Cleaned, ID,
    output::{
        CommitEntry, PublishedFile, another_before, changed, commits, entry_name, files_of, gone,
    },
};

/// Requests at a time.
const AT_ONCE: usize = 16;

/// Parquet files in an object store as an output.
#[derive(Debug)]
pub struct ObjectOutput {
    folder: ObjectFolder,
    /// The last entry that was seen: its folder and epoch. Entries before it are not listed again.
    seen: Mutex<Option<(String, Epoch)>>,
}

/// What checkpoint records refer to: neither completed yet nor to be removed.
#[derive(Clone, Debug, Default)]
pub struct RemoteLive {
    /// Ids of uploads.
    pub uploads: HashSet<String>,
    /// Paths of their objects, relative to the table's.
    pub paths: HashSet<String>,
}

impl ObjectOutput {
    /// The table at this place, with its identity made when it has none.
    ///
    /// # Errors
    /// `Config` when the store cannot be written, or does not honour create-if-absent.
    pub async fn open(folder: ObjectFolder) -> Result<Self> {
        let id = format!("{}\n", uuid::Uuid::new_v4());
        folder.create_probed(ID, id).await?;
        Ok(Self::of(folder))
    }

    /// The table at this place, to be looked at: nothing is made.
    pub fn of(folder: ObjectFolder) -> Self {
        Self {
            folder,
            seen: Mutex::new(None),
        }
    }

    /// Pipelines and shards that have committed to the table.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn shards(&self) -> Result<Vec<(String, String)>> {
        let mut shards = Vec::new();
        for pipeline in self.folder.folders(COMMITS).await? {
            let within = format!("{COMMITS}/{pipeline}");
            for shard in self.folder.folders(&within).await? {
                shards.push((pipeline.clone(), shard));
            }
        }
        Ok(shards)
    }

    /// The commit of a shard's last epoch.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read, `Unavailable` when the store does not answer.
    pub async fn newest(&self, pipeline: &str, shard: &str) -> Result<Option<CommitEntry>> {
        let commits = commits(pipeline, shard);
        match self.held(&commits).await? {
            Some((epoch, _)) => {
                self.entry(&format!("{commits}/{}", entry_name(epoch)))
                    .await
            }
            None => Ok(None),
        }
    }

    /// The last epoch of a shard, with its record's digest.
    async fn held(&self, commits: &str) -> Result<Option<(Epoch, String)>> {
        let seen = self.seen.lock().clone();
        let seen = seen.filter(|(of, _)| of == commits).map(|(_, epoch)| epoch);
        if let Some(held) = self.held_from(commits, seen).await? {
            *self.seen.lock() = Some((commits.to_owned(), held.0));
            return Ok(Some(held));
        }
        // What was seen before is not there any more: look at everything.
        let held = match seen {
            Some(_) => self.held_from(commits, None).await?,
            None => None,
        };
        *self.seen.lock() = held.as_ref().map(|(epoch, _)| (commits.to_owned(), *epoch));
        Ok(held)
    }

    async fn held_from(
        &self,
        commits: &str,
        seen: Option<Epoch>,
    ) -> Result<Option<(Epoch, String)>> {
        let after = seen.map(|epoch| format!("{commits}/{}", entry_name(epoch)));
        let listed = self.folder.list(commits, after.as_deref()).await?;
        let epochs = listed.iter().filter_map(|one| {
            let name = one.name.strip_prefix(commits)?.strip_prefix('/')?;
            name.strip_suffix(".json")?.parse().ok().map(Epoch)
        });
        let Some(highest) = epochs.max().max(seen) else {
            return Ok(None);
        };
        let entry = self
            .entry(&format!("{commits}/{}", entry_name(highest)))
            .await?;
        Ok(entry.map(|entry| (entry.epoch, entry.digest)))
    }

    async fn entry(&self, name: &str) -> Result<Option<CommitEntry>> {
        let json = self.folder.get(name).await?;
        json.map(|json| CommitEntry::parse(&json, &name))
            .transpose()
    }

    async fn same_entry(&self, name: &str, commit: &Commit) -> Result<bool> {
        let entry = self.entry(name).await?;
        Ok(entry.is_some_and(|entry| entry.digest == commit.digest))
    }

    /// Gives an upload its name; completed before is fine.
    async fn publish(&self, file: &PublishedFile) -> Result<()> {
        fault::point("parquet.publish.each")?;
        let upload = file
            .upload
            .as_ref()
            .expect("files without upload are refused before");
        let completed = Uploads::complete(&self.folder, &file.path, upload).await;
        fault::point("parquet.publish.after_complete")?;
        let no_answer = fault::lost("parquet.publish.answer");
        if matches!(completed, Ok(Completed::Yes)) && !no_answer {
            return Ok(());
        }
        let at = format!("{}/{}", self.folder.shown(), file.path);
        match (self.folder.head(&file.path).await?, completed) {
            // No other upload has this name, so it is ours.
            (Some(there), _) if there.size == file.bytes => Ok(()),
            (Some(there), _) => Err(changed(&at, file.bytes, there.size)),
            (None, Ok(Completed::Yes)) => Err(Error::unavailable(format!(
                "an upload was completed, and its object is not there: path={at}"
            ))),
            (None, Ok(Completed::NoUpload)) => Err(gone(&at, &format!("upload {}", upload.id))),
            (None, Err(error)) => Err(error),
        }
    }

    /// Objects of the table that no commit names: of an epoch that was being committed, or whose commit is
    /// lost.
    ///
    /// # Errors
    /// `Corrupt` when a commit cannot be read, `Unavailable` when the store cannot.
    pub async fn uncommitted(&self) -> Result<Vec<String>> {
        let objects = self.folder.list("", None).await?;
        let referred = self.referred().await?;
        let names = objects.into_iter().map(|object| object.name);
        let ours = names.filter(|name| !name.starts_with("_calve/") && is_ours(name));
        Ok(ours.filter(|name| !referred.contains(name)).collect())
    }

    /// Removes uploads and objects of calve's that neither `live` nor any commit refers to, and that
    /// were begun or written `older_than` ago or earlier. With `dry_run` only says what it would
    /// remove.
    ///
    /// # Errors
    /// `Config` or `Unavailable` when the store cannot be read or changed.
    pub async fn clean(
        &self,
        older_than: std::time::Duration,
        live: &RemoteLive,
        dry_run: bool,
    ) -> Result<Cleaned> {
        let before_ms = clock::now_ms().saturating_sub(older_than.as_millis() as i64);
        let mut cleaned = Cleaned::default();
        // What could go is listed before what refers to it: a commit in between is seen.
        let uploads = self.folder.open_uploads().await?.unwrap_or_default();
        let objects = self.folder.list("", None).await?;
        let referred = self.referred().await?;
        for upload in uploads {
            // One that does not say when it was begun has no age: leave it.
            let old = upload.begun_ms.is_some_and(|begun| begun <= before_ms);
            if !old || live.uploads.contains(&upload.id) {
                continue;
            }
            if !dry_run {
                self.folder.abort(&upload).await?;
            }
            cleaned
                .files
                .push(format!("{} (upload {})", upload.path, upload.id));
        }
        for object in objects {
            let ours = !object.name.starts_with("_calve/") && is_ours(&object.name);
            let known = live.paths.contains(&object.name) || referred.contains(&object.name);
            if !ours || known || object.modified_ms > before_ms {
                continue;
            }
            if !dry_run {
                self.folder.delete(&object.name).await?;
            }
            cleaned.bytes += object.bytes;
            cleaned.files.push(object.name);
        }
        cleaned.files.sort();
        Ok(cleaned)
    }

    /// Paths of all files of all commits, also of those that a reset moved out of the way.
    async fn referred(&self) -> Result<HashSet<String>> {
        let mut entries = self.folder.list(COMMITS, None).await?;
        entries.extend(self.folder.list(BEFORE_RESET, None).await?);
        let names = entries.into_iter().map(|entry| entry.name);
        let read = stream::iter(names.filter(|name| name.strip_suffix(".json").is_some()))
            .map(|name| async move { self.entry(&name).await })
            .buffer_unordered(AT_ONCE);
        let add = |mut paths: HashSet<String>, entry: Option<CommitEntry>| async {
            let files = entry.map(|entry| entry.files).unwrap_or_default();
            paths.extend(files.into_iter().map(|file| file.path));
            Ok(paths)
        };
        read.try_fold(HashSet::new(), add).await
    }
}

/// Whether a name is one that the writer gives: `…-<32 hexadecimal digits>-<number>…`.
fn is_ours(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    let parts: Vec<&str> = name.split('-').collect();
    parts.windows(2).skip(1).any(|pair| {
        let nonce = pair[0].len() == 32 && pair[0].bytes().all(|b| b.is_ascii_hexdigit());
        let number = pair[1].bytes().take_while(u8::is_ascii_digit).count();
        nonce && number >= 5
    })
}

#[async_trait]
impl Output for ObjectOutput {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        let identity = self.folder.get(ID).await?;
        let identity = identity.map(|id| String::from_utf8_lossy(&id).trim().to_owned());
        let held = self.held(&commits(pipeline, shard)).await?;
        Ok(OutputState { identity, held })
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        let mut files = files_of(commit, |file| file.upload.is_some())?;
        let folder = commits(&commit.pipeline, &commit.shard);
        let entry = format!("{folder}/{}", entry_name(commit.epoch));
        let held = self.held(&folder).await?;
        let held = held.map_or(Epoch::NONE, |(epoch, _)| epoch);
        if held >= commit.epoch {
            return Ok(if self.same_entry(&entry, commit).await? {
                Outcome::AlreadyCommitted
            } else {
                Outcome::Fenced
            });
        }
        if held != commit.previous {
            return Err(another_before(held, commit));
        }
        let publishing: Vec<_> = files.iter().map(|file| self.publish(file)).collect();
        let mut published = stream::iter(publishing).buffer_unordered(AT_ONCE);
        while let Some(done) = published.next().await {
            done?;
        }
        drop(published);
        fault::point("parquet.commit.before_entry")?;
        for file in &mut files {
            file.upload = None;
        }
        let json = CommitEntry::of(commit, files).to_bytes()?;
        let created = self.folder.create(&entry, json).await?;
        if created == Created::Exists && !self.same_entry(&entry, commit).await? {
            return Ok(Outcome::Fenced);
        }
        fault::point("parquet.commit.after_entry")?;
        if fault::lost("parquet.commit.answer") {
            return Ok(Outcome::Unknown);
        }
        *self.seen.lock() = Some((folder, commit.epoch));
        Ok(match created {
            Created::Yes => Outcome::Committed {
                snapshot: format!("{}/{}", commit.shard, commit.epoch),
            },
            Created::Exists => Outcome::AlreadyCommitted,
        })
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;

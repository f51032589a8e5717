//! Makes an epoch's staged files visible, exactly once.
//!
//! Each file gets its destination name by a link that never replaces, then the folders are fsynced,
//! then `_calve/commits/<pipeline>/<shard>/<epoch>.json` is created: that entry is the commit. Any
//! step may have happened before; it is looked at, never assumed. Blocking work runs on threads that
//! may block.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use calve_engine::{
    durable::{self, Created},
    error::{Error, Result},
    fault,
    seams::{Commit, Outcome, Output, OutputState},
    stores::upload::Uploaded,
};
use calve_model::{Epoch, Offsets};
use serde::{Deserialize, Serialize};

use super::{BEFORE_RESET, COMMITS, ID, format};
use crate::write::sync;

/// A file of an epoch: where it waits and where it will be, relative to the table's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedFile {
    /// Where the writer left it; empty in an object store.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub staged: String,
    /// In an object store: the upload that becomes the file. Not in what is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Uploaded>,
    /// Its name for readers.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

/// What became visible together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitEntry {
    /// The shard's epoch.
    pub epoch: Epoch,
    /// Digest of its checkpoint record.
    pub digest: String,
    /// Path of the record in the checkpoint store.
    pub record: String,
    /// Event time up to which the shard was complete, microseconds.
    pub watermark: Option<i64>,
    /// Every window that ends at or before this event time is closed, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows_complete: Option<i64>,
    /// The shard's offsets at the epoch's end; none in commits of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Offsets>,
    /// The files.
    pub files: Vec<PublishedFile>,
}

impl CommitEntry {
    pub(super) fn of(commit: &Commit, files: Vec<PublishedFile>) -> Self {
        Self {
            epoch: commit.epoch,
            digest: commit.digest.clone(),
            record: commit.record.clone(),
            watermark: commit.watermark,
            windows_complete: commit.complete,
            offsets: Some(commit.offsets.clone()),
            files,
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::internal("cannot express a commit").because(error))
    }

    pub(super) fn parse(json: &[u8], path: &dyn fmt::Display) -> Result<Self> {
        serde_json::from_slice(json).map_err(|error| {
            Error::corrupt(format!("a commit does not parse: path={path}")).because(error)
        })
    }
}

/// The files of a commit, all of them inside of the table, and each as `also` wants it.
pub(super) fn files_of(
    commit: &Commit,
    also: impl Fn(&PublishedFile) -> bool,
) -> Result<Vec<PublishedFile>> {
    let content = &commit.prepared.content;
    let files: Vec<PublishedFile> = if content.is_null() {
        Vec::new()
    } else {
        content.parse().map_err(|error| {
            Error::corrupt(format!(
                "a record does not hold files: epoch={}",
                commit.epoch
            ))
            .because(error)
        })?
    };
    match files.iter().find(|f| !is_below(&f.path) || !also(f)) {
        Some(file) => Err(Error::corrupt(format!(
            "a record names a file that is not one of the table's: path={}",
            file.path
        ))),
        None => Ok(files),
    }
}

pub(super) fn another_before(held: Epoch, commit: &Commit) -> Error {
    Error::corrupt(format!(
        "the table does not hold the epoch before: held_epoch={held} needed_epoch={} epoch={}",
        commit.previous, commit.epoch
    ))
    .hint("its _calve/commits folder was restored or changed: look with `calve checkpoint ls`")
}

pub(super) fn gone(path: &dyn fmt::Display, waited: &dyn fmt::Display) -> Error {
    Error::corrupt(format!(
        "a prepared file is gone, waiting as well as published: path={path} waited={waited}"
    ))
    .hint(
        "somebody removed it; go on without it by `calve checkpoint reset`, which reads the source \
         again",
    )
}

/// Whether a file is a commit, also one that a reset moved out of the way.
fn is_commit(name: &str) -> bool {
    let commits = [COMMITS, BEFORE_RESET].iter();
    name.strip_suffix(".json").is_some() && commits.copied().any(|folder| name.starts_with(folder))
}

/// Whether a name is one that the writer gives on a disk: `…-<8 hexadecimal digits>…`.
fn is_ours(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    let mut parts = name.split(['-', '.']);
    parts.any(|part| part.len() == 8 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The folder of a shard's commits, and the name of an epoch's entry in it.
pub(super) fn commits(pipeline: &str, shard: &str) -> String {
    let name = |name| format::escape(name, true);
    format!("{COMMITS}/{}/{}", name(pipeline), name(shard))
}

pub(super) fn entry_name(epoch: Epoch) -> String {
    format!("{:020}.json", epoch.0)
}

/// A folder of Parquet files as an output.
#[derive(Clone, Debug)]
pub struct ParquetOutput {
    root: PathBuf,
}

impl ParquetOutput {
    /// The table below `root`, with its identity made when it has none.
    ///
    /// # Errors
    /// `Config` or `Unavailable` when the folder cannot be written.
    pub fn open(root: PathBuf) -> Result<Self> {
        let path = root.join(ID);
        let id = format!("{}\n", uuid::Uuid::new_v4());
        durable::create(&path, id.as_bytes())
            .map_err(|error| failed("cannot write the table's identity", &path, error))?;
        Ok(Self { root })
    }

    fn commits(&self, pipeline: &str, shard: &str) -> PathBuf {
        self.root.join(commits(pipeline, shard))
    }

    fn entry_path(&self, commit: &Commit) -> PathBuf {
        self.commits(&commit.pipeline, &commit.shard)
            .join(entry_name(commit.epoch))
    }

    fn read_state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        let path = self.root.join(ID);
        let identity = match fs::read_to_string(&path) {
            Ok(id) => Some(id.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("cannot read the table's identity", &path, error)),
        };
        let newest = self.read_newest(pipeline, shard)?;
        let held = newest.map(|entry| (entry.epoch, entry.digest));
        Ok(OutputState { identity, held })
    }

    /// The commit of a shard's last epoch.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read, `Unavailable` when the folder cannot.
    pub async fn newest(&self, pipeline: &str, shard: &str) -> Result<Option<CommitEntry>> {
        let (this, pipeline, shard) = (self.clone(), pipeline.to_owned(), shard.to_owned());
        blocking(move || this.read_newest(&pipeline, &shard)).await
    }

    /// Files of the table that no commit names, relative to its folder: of an epoch that was being
    /// committed, or whose commit is lost.
    ///
    /// # Errors
    /// `Corrupt` when a commit cannot be read, `Unavailable` when a folder cannot.
    pub async fn uncommitted(&self) -> Result<Vec<String>> {
        let this = self.clone();
        blocking(move || {
            let mut names = Vec::new();
            this.walk("", &mut names)?;
            let mut committed = HashSet::new();
            for name in names.iter().filter(|name| is_commit(name)) {
                let entry = read_entry(&this.root.join(name))?;
                committed.extend(
                    entry
                        .into_iter()
                        .flat_map(|entry| entry.files)
                        .map(|f| f.path),
                );
            }
            names.retain(|name| {
                !name.starts_with("_calve/") && is_ours(name) && !committed.contains(name)
            });
            Ok(names)
        })
        .await
    }

    /// All files below a folder of the table, relative to it.
    fn walk(&self, folder: &str, names: &mut Vec<String>) -> Result<()> {
        let at = self.root.join(folder);
        let unreadable = |error| failed("cannot list the table's files", &at, error);
        for entry in fs::read_dir(&at).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let name = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            if entry.file_type().map_err(unreadable)?.is_dir() {
                self.walk(&name, names)?;
            } else {
                names.push(name);
            }
        }
        Ok(())
    }

    fn read_newest(&self, pipeline: &str, shard: &str) -> Result<Option<CommitEntry>> {
        let folder = self.commits(pipeline, shard);
        let unreadable = |error| failed("cannot list the commits", &folder, error);
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let mut highest: Option<u64> = None;
        for name in listing {
            let name = name.map_err(unreadable)?.file_name();
            let epoch = name
                .to_str()
                .and_then(|name| name.strip_suffix(".json")?.parse().ok());
            highest = highest.max(epoch);
        }
        let Some(epoch) = highest else {
            return Ok(None);
        };
        let path = folder.join(entry_name(Epoch(epoch)));
        let gone = || Error::unavailable(format!("a commit has gone: path={}", path.display()));
        Ok(Some(read_entry(&path)?.ok_or_else(gone)?))
    }

    /// The files of an epoch were published as this entry says, if it is there.
    fn same_entry(&self, commit: &Commit) -> Result<Option<bool>> {
        let entry = read_entry(&self.entry_path(commit))?;
        Ok(entry.map(|entry| entry.digest == commit.digest))
    }

    fn try_commit(&self, commit: &Commit) -> Result<Outcome> {
        let files = files_of(commit, |file| is_below(&file.staged))?;
        let held = self.read_state(&commit.pipeline, &commit.shard)?.held;
        let held = held.map_or(Epoch::NONE, |(epoch, _)| epoch);
        if held >= commit.epoch {
            return Ok(match self.same_entry(commit)? {
                Some(true) => {
                    self.unstage(&files);
                    Outcome::AlreadyCommitted
                }
                Some(false) | None => Outcome::Fenced,
            });
        }
        if held != commit.previous {
            return Err(another_before(held, commit));
        }
        for file in &files {
            fault::point("parquet.publish.each")?;
            self.publish(file)?;
        }
        self.sync_folders(&files)?;
        fault::point("parquet.commit.before_entry")?;
        let entry = CommitEntry::of(commit, files);
        let json = entry.to_bytes()?;
        let path = self.entry_path(commit);
        let created = durable::create(&path, &json)
            .map_err(|error| failed("cannot write a commit", &path, error))?;
        if created == Created::Exists && self.same_entry(commit)? != Some(true) {
            return Ok(Outcome::Fenced);
        }
        fault::point("parquet.commit.after_entry")?;
        self.unstage(&entry.files);
        if fault::lost("parquet.commit.answer") {
            return Ok(Outcome::Unknown);
        }
        Ok(match created {
            Created::Yes => Outcome::Committed {
                snapshot: format!("{}/{}", commit.shard, commit.epoch),
            },
            Created::Exists => Outcome::AlreadyCommitted,
        })
    }

    /// Gives a staged file its name; published before is fine, another file of that name is not.
    fn publish(&self, file: &PublishedFile) -> Result<()> {
        let (from, to) = (self.root.join(&file.staged), self.root.join(&file.path));
        let (staged, there) = (look(&from)?, look(&to)?);
        match (staged, there) {
            (Some(staged), None) => {
                if staged.len() != file.bytes {
                    return Err(changed(&from.display(), file.bytes, staged.len()));
                }
                let linked = match link(&from, &to) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => to
                        .parent()
                        .map_or(Ok(()), fs::create_dir_all)
                        .and_then(|()| link(&from, &to)),
                    other => other,
                };
                match linked {
                    // Somebody was faster: it must have been with this very file.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        match look(&to)?.filter(|now| is_same(&staged, now)) {
                            Some(_) => Ok(()),
                            None => Err(taken(&to)),
                        }
                    }
                    other => other.map_err(|error| failed("cannot publish a file", &to, error)),
                }
            }
            (Some(staged), Some(there)) if is_same(&staged, &there) => Ok(()),
            (Some(_), Some(_)) => Err(taken(&to)),
            (None, Some(there)) if there.len() == file.bytes => Ok(()),
            (None, Some(there)) => Err(changed(&to.display(), file.bytes, there.len())),
            (None, None) => Err(gone(&to.display(), &from.display())),
        }
    }

    /// Makes the new names durable: the folders of the files, and all above them up to the table.
    fn sync_folders(&self, files: &[PublishedFile]) -> Result<()> {
        let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
        for file in files {
            let path = self.root.join(&file.path);
            for folder in path.ancestors().skip(1) {
                if !folders.insert(folder.to_owned()) || folder == self.root {
                    break;
                }
            }
        }
        let folders: Vec<PathBuf> = folders.into_iter().collect();
        if folders.len() > 256 {
            let whole = File::open(&self.root).and_then(|root| Ok(rustix::fs::syncfs(root)?));
            return whole.map_err(|error| failed("cannot sync the table", &self.root, error));
        }
        sync::each(&folders, sync::WAITING, |folder| {
            durable::sync_dir(folder).map_err(|error| failed("cannot sync a folder", folder, error))
        })
    }

    /// Removes the staged names; what stays is found by `clean`.
    fn unstage(&self, files: &[PublishedFile]) {
        for file in files {
            let _ = fs::remove_file(self.root.join(&file.staged));
        }
    }
}

#[async_trait]
impl Output for ParquetOutput {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        let (this, pipeline, shard) = (self.clone(), pipeline.to_owned(), shard.to_owned());
        blocking(move || this.read_state(&pipeline, &shard)).await
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        let (this, commit) = (self.clone(), commit.clone());
        blocking(move || this.try_commit(&commit)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("a task of the parquet output died").because(error))?
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        // File systems without hard links: a rename that never replaces does as well.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            let (at, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
            rustix::fs::renameat_with(at, from, at, to, flags).map_err(io::Error::from)
        }
        other => other,
    }
}

fn look(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("cannot look at a file", path, error)),
    }
}

fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    a.dev() == b.dev() && a.ino() == b.ino()
}

fn is_below(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

fn read_entry(path: &Path) -> Result<Option<CommitEntry>> {
    match fs::read(path) {
        Ok(json) => CommitEntry::parse(&json, &path.display()).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("cannot read a commit", path, error)),
    }
}

fn taken(path: &Path) -> Error {
    Error::corrupt(format!(
        "another file has the name of one of ours: path={}",
        path.display()
    ))
    .hint("move it away, then start again")
}

pub(super) fn changed(path: &dyn fmt::Display, recorded: u64, now: u64) -> Error {
    Error::corrupt(format!(
        "a prepared file was changed: path={path} recorded_bytes={recorded} bytes={now}"
    ))
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{what}: path={}", path.display()), error)
}

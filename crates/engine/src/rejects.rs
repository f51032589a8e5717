//! The rejects: an output like the table, of NDJSON files that hold the raw events and the reasons.
//!
//! A file is staged under a hidden name in the rejects folder, fsynced with its epoch, and published
//! by a link that never replaces. Its name holds epoch and record digest, so the folder itself says
//! what it holds.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use calve_model::{Epoch, SourcePartition};
use serde::{Deserialize, Serialize};

use crate::{
    batch::Reject,
    durable,
    error::{Error, Result},
    fault,
    seams::{Commit, Outcome, Output, OutputState, Prepared},
};

/// One line of a rejects file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectLine {
    /// The event as it came, when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The event's bytes in hexadecimal, when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_hex: Option<String>,
    /// Why it was rejected.
    pub error: String,
    /// Where it came from.
    pub source_partition: String,
    /// Where in there.
    pub offset: u64,
}

impl RejectLine {
    /// The line of a reject.
    pub fn new(partition: &SourcePartition, reject: &Reject) -> Self {
        let text = std::str::from_utf8(&reject.raw).ok().map(str::to_owned);
        let hex = text.is_none().then(|| crate::checkpoint::hex(&reject.raw));
        Self {
            event: text,
            event_hex: hex,
            error: reject.error.clone(),
            source_partition: partition.to_string(),
            offset: reject.offset,
        }
    }
}

/// Writes rejects, epoch by epoch. Keeps no event in memory beyond a small buffer.
pub struct RejectsWriter {
    dir: PathBuf,
    pipeline: Arc<str>,
    shard: Arc<str>,
    open: Option<OpenFile>,
}

struct OpenFile {
    path: PathBuf,
    file: BufWriter<File>,
    rows: u64,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Content {
    staged: PathBuf,
}

impl RejectsWriter {
    /// Into the folder `dir`, which is created with the first reject.
    pub fn new(dir: &Path, pipeline: &Arc<str>, shard: &Arc<str>) -> Self {
        Self {
            dir: dir.to_owned(),
            pipeline: Arc::clone(pipeline),
            shard: Arc::clone(shard),
            open: None,
        }
    }

    /// Staged files that are there now. Listed before the shard is claimed, they are of earlier owners:
    /// once what those prepared is published, nothing refers to them (see [`remove`]).
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let dir = self.dir.join(&*self.pipeline).join(&*self.shard);
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let staged = entries.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with('.') && name.ends_with(".tmp")
        });
        staged.collect()
    }

    /// Appends rejects of one source partition, in order.
    pub fn append(&mut self, partition: &SourcePartition, rejects: &[Reject]) -> Result<()> {
        for reject in rejects {
            let mut line =
                serde_json::to_vec(&RejectLine::new(partition, reject)).expect("plain data");
            line.push(b'\n');
            let open = self.file()?;
            open.file
                .write_all(&line)
                .map_err(|e| cannot_write(&open.path, e))?;
            open.rows += 1;
            open.bytes += line.len() as u64;
        }
        Ok(())
    }

    fn file(&mut self) -> Result<&mut OpenFile> {
        if self.open.is_none() {
            let dir = self.dir.join(&*self.pipeline).join(&*self.shard);
            let path = dir.join(format!(".{}.tmp", uuid::Uuid::new_v4()));
            durable::create_dirs(&dir).map_err(|e| cannot_write(&dir, e))?;
            let file = File::create(&path).map_err(|e| cannot_write(&path, e))?;
            self.open = Some(OpenFile {
                path,
                file: BufWriter::new(file),
                rows: 0,
                bytes: 0,
            });
        }
        Ok(self.open.as_mut().expect("opened above"))
    }

    /// Cuts: what was appended so far is one epoch's; none when nothing was.
    pub fn seal(&mut self) -> Option<SealedRejects> {
        self.open.take().map(SealedRejects)
    }
}

/// Removes leftovers. One that stays takes room and does no harm.
pub fn remove(leftovers: &[PathBuf]) {
    for path in leftovers {
        match std::fs::remove_file(path) {
            Ok(()) => tracing::debug!(path = %path.display(), "removed a killed run's rejects"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a killed run's rejects");
            }
        }
    }
}

/// An epoch's rejects on their way to the disk.
pub struct SealedRejects(OpenFile);

impl SealedRejects {
    /// Makes the file durable. Blocking.
    pub fn finish(self) -> Result<Prepared> {
        let OpenFile {
            path,
            file,
            rows,
            bytes,
        } = self.0;
        let file = file
            .into_inner()
            .map_err(|e| cannot_write(&path, e.into_error()))?;
        file.sync_all().map_err(|e| cannot_write(&path, e))?;
        let dir = path.parent().expect("a file in a folder");
        durable::sync_dir(dir).map_err(|e| cannot_write(dir, e))?;
        let content = serde_json::to_value(Content { staged: path }).expect("plain data");
        Ok(Prepared {
            rows,
            bytes,
            files: 1,
            content,
        })
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::io(
        format!("cannot write rejects: path={}", path.display()),
        error,
    )
    .hint("free space or mend the permissions; nothing is lost, start again then")
}

/// The folder of published rejects.
#[derive(Clone, Debug)]
pub struct RejectsOutput {
    dir: PathBuf,
}

impl RejectsOutput {
    /// The folder `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Published files of a pipeline's shard, by epoch: epoch, record digest, path.
    pub fn published(&self, pipeline: &str, shard: &str) -> Result<Vec<(Epoch, String, PathBuf)>> {
        let dir = self.dir.join(pipeline).join(shard);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => {
                return Err(Error::io(
                    format!("cannot list rejects: path={}", dir.display()),
                    e,
                ));
            }
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| {
                Error::io(format!("cannot list rejects: path={}", dir.display()), e)
            })?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let parsed = name.strip_suffix(".ndjson").and_then(|n| n.split_once('-'));
            if let Some((epoch, digest)) = parsed
                && let Ok(epoch) = epoch.parse()
            {
                found.push((Epoch(epoch), digest.to_owned(), entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }
}

#[async_trait]
impl Output for RejectsOutput {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        let held = self
            .published(pipeline, shard)?
            .pop()
            .map(|(epoch, digest, _)| (epoch, digest));
        Ok(OutputState {
            identity: None,
            held,
        })
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        let content: Content =
            serde_json::from_value(commit.prepared.content.clone()).map_err(|e| {
                Error::corrupt("the rejects' part of a record is unreadable").because(e)
            })?;
        let name = format!("{:020}-{}.ndjson", commit.epoch.0, commit.digest);
        let path = self
            .dir
            .join(&*commit.pipeline)
            .join(&*commit.shard)
            .join(&name);
        fault::point("rejects.before_publish")?;
        if path.exists() {
            let _ = std::fs::remove_file(&content.staged);
            return Ok(Outcome::AlreadyCommitted);
        }
        match durable::publish(&content.staged, &path) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::corrupt(format!(
                    "prepared rejects are gone, and not published either: path={}",
                    content.staged.display()
                ))
                .hint(
                    "restore the rejects folder, or start over with `calve checkpoint reset FILE`",
                ));
            }
            Err(e) => return Err(cannot_write(&path, e)),
        }
        fault::point("rejects.after_publish")?;
        let _ = std::fs::remove_file(&content.staged);
        Ok(Outcome::Committed { snapshot: name })
    }
}

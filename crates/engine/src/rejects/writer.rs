//! Writes an epoch's rejects to a staged file or object.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use calve_model::SourcePartition;

use super::{Content, RejectLine, RejectsPlace, STAGED_ENDING};
use crate::{
    batch::Reject,
    durable,
    error::{Error, Result},
    opaque::Opaque,
    seams::Prepared,
    shard::blocking,
    stores::upload::{PART_BYTES, Upload, Uploads},
};

/// Writes rejects, epoch by epoch. Keeps no event in memory beyond a small buffer.
pub struct RejectsWriter {
    place: RejectsPlace,
    pipeline: Arc<str>,
    shard: Arc<str>,
    open: Option<Open>,
}

struct Open {
    staged: PathBuf,
    sink: Sink,
    rows: u64,
    bytes: u64,
}

enum Sink {
    Local(BufWriter<File>),
    Remote(Box<Upload>),
}

impl RejectsWriter {
    /// Into a place, of which nothing is touched before the first reject.
    pub fn new(place: RejectsPlace, pipeline: &Arc<str>, shard: &Arc<str>) -> Self {
        Self {
            place,
            pipeline: Arc::clone(pipeline),
            shard: Arc::clone(shard),
            open: None,
        }
    }

    /// Staged files that are there now. Listed before the shard is claimed, they are of earlier owners:
    /// once what those prepared is published, nothing refers to them (see [`remove`]). None in an object
    /// store, where `clean` finds them.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let RejectsPlace::Local(dir) = &self.place else {
            return Vec::new();
        };
        let dir = dir.join(&*self.pipeline).join(&*self.shard);
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let staged = entries.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with('.') && name.ends_with(STAGED_ENDING)
        });
        staged.collect()
    }

    /// Appends rejects of one source partition, in order.
    ///
    /// # Errors
    /// `Config` or `Unavailable` when the place cannot be written.
    pub async fn append(&mut self, partition: &SourcePartition, rejects: &[Reject]) -> Result<()> {
        for reject in rejects {
            let mut line =
                serde_json::to_vec(&RejectLine::new(partition, reject)).expect("plain data");
            line.push(b'\n');
            let open = self.file()?;
            let written = match &mut open.sink {
                Sink::Local(file) => file.write_all(&line),
                Sink::Remote(upload) => upload.append(&line).await,
            };
            written.map_err(|e| cannot_write(&open.staged, e))?;
            open.rows += 1;
            open.bytes += line.len() as u64;
        }
        Ok(())
    }

    fn file(&mut self) -> Result<&mut Open> {
        if self.open.is_none() {
            let name = format!(".{}{STAGED_ENDING}", uuid::Uuid::new_v4());
            let (staged, sink) = match &self.place {
                RejectsPlace::Local(dir) => {
                    let dir = dir.join(&*self.pipeline).join(&*self.shard);
                    let path = dir.join(name);
                    durable::create_dirs(&dir).map_err(|e| cannot_write(&dir, e))?;
                    let file = File::create(&path).map_err(|e| cannot_write(&path, e))?;
                    (path, Sink::Local(BufWriter::new(file)))
                }
                RejectsPlace::Remote(folder) => {
                    let name = format!("{}/{}/{name}", self.pipeline, self.shard);
                    let upload = Uploads::new(folder, PART_BYTES)?.begin(&name)?;
                    (PathBuf::from(name), Sink::Remote(Box::new(upload)))
                }
            };
            self.open = Some(Open {
                staged,
                sink,
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

/// An epoch's rejects on their way to the disk or store.
pub struct SealedRejects(Open);

impl SealedRejects {
    /// Makes them durable under their staged name.
    ///
    /// # Errors
    /// `Config` or `Unavailable` when the place cannot be written.
    pub async fn finish(self) -> Result<Prepared> {
        let Open {
            staged,
            sink,
            rows,
            bytes,
        } = self.0;
        match sink {
            Sink::Local(file) => {
                let path = staged.clone();
                blocking(move || make_durable(&path, file)).await??;
            }
            Sink::Remote(upload) => upload.publish().await?,
        }
        let content = Opaque::of(&Content { staged })?;
        Ok(Prepared {
            rows,
            bytes,
            files: 1,
            content,
            runs: Vec::new(),
        })
    }
}

fn make_durable(path: &Path, file: BufWriter<File>) -> Result<()> {
    let file = file
        .into_inner()
        .map_err(|e| cannot_write(path, e.into_error()))?;
    file.sync_all().map_err(|e| cannot_write(path, e))?;
    let dir = path.parent().expect("a file in a folder");
    durable::sync_dir(dir).map_err(|e| cannot_write(dir, e))
}

pub(super) fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::io(
        format!("cannot write rejects: path={}", path.display()),
        error,
    )
    .hint("free space or mend the permissions; nothing is lost, start again then")
}

//! Publishes an epoch's rejects, and says which epochs were published.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use calve_model::Epoch;

use super::{Content, RejectsPlace, STAGED_ENDING, published_name, writer::cannot_write};
use crate::{
    durable,
    error::{Error, Result},
    fault,
    seams::{Commit, Outcome, Output, OutputState},
    stores::{Found, ObjectFolder},
};

/// The place of published rejects.
#[derive(Clone, Debug)]
pub struct RejectsOutput {
    place: RejectsPlace,
}

/// Epoch and record digest in the name of a published file.
fn parse(name: &str) -> Option<(Epoch, String)> {
    let (epoch, digest) = name.strip_suffix(".ndjson")?.split_once('-')?;
    Some((Epoch(epoch.parse().ok()?), digest.to_owned()))
}

impl RejectsOutput {
    /// At this place.
    pub fn new(place: RejectsPlace) -> Self {
        Self { place }
    }

    /// Names of the files and objects of a shard, within its folder.
    async fn names(&self, pipeline: &str, shard: &str) -> Result<Vec<String>> {
        match &self.place {
            RejectsPlace::Local(dir) => names_in(&dir.join(pipeline).join(shard)),
            RejectsPlace::Remote(folder) => {
                let within = format!("{pipeline}/{shard}");
                let found = folder.list(&within, None).await?;
                let names = found.iter().filter_map(|f| f.name.strip_prefix(&within));
                let names = names.map(|name| name.trim_start_matches('/').to_owned());
                Ok(names.filter(|name| !name.contains('/')).collect())
            }
        }
    }

    /// Removes staged objects of a shard in an object store that are older than `before_ms`
    /// (milliseconds since 1970), unless `live` has them with a published name that is not there yet
    /// (staged and published names, of all records). Answers what it removed. A local folder's staged
    /// files are left alone.
    ///
    /// # Errors
    /// `Config` or `Unavailable` when the store cannot be reached.
    pub async fn clean(
        &self,
        (pipeline, shard): (&str, &str),
        before_ms: i64,
        live: &HashMap<String, String>,
        dry_run: bool,
    ) -> Result<Vec<Found>> {
        let RejectsPlace::Remote(folder) = &self.place else {
            return Ok(Vec::new());
        };
        let within = format!("{pipeline}/{shard}");
        let mut found = folder.list(&within, None).await?;
        let published: HashSet<String> = found.iter().map(|one| one.name.clone()).collect();
        found.retain(|one| {
            let last = one.name.rsplit('/').next().unwrap_or_default();
            let staged = last.starts_with('.') && last.ends_with(STAGED_ENDING);
            let waits = |to: &String| !published.contains(&format!("{within}/{to}"));
            staged && one.modified_ms <= before_ms && !live.get(&one.name).is_some_and(waits)
        });
        for one in &found {
            if !dry_run {
                folder.delete(&one.name).await?;
            }
        }
        Ok(found)
    }
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(format!("cannot list rejects: path={}", dir.display()), e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
    names.collect::<std::io::Result<_>>().map_err(failed)
}

fn publish_local(staged: &Path, path: &Path) -> Result<Outcome> {
    fault::point("rejects.before_publish")?;
    if path.exists() {
        let _ = std::fs::remove_file(staged);
        return Ok(Outcome::AlreadyCommitted);
    }
    match durable::publish(staged, path) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(gone(&staged.display().to_string()));
        }
        Err(e) => return Err(cannot_write(path, e)),
    }
    fault::point("rejects.after_publish")?;
    let _ = std::fs::remove_file(staged);
    Ok(Outcome::Committed {
        snapshot: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    })
}

/// A copy is whole or not there, and what it would replace can only be the same: the name holds the
/// digest of the record that names the staged object.
async fn publish_remote(folder: &ObjectFolder, staged: &str, name: &str) -> Result<Outcome> {
    fault::point("rejects.before_publish")?;
    if folder.head(name).await?.is_some() {
        folder.delete(staged).await?;
        return Ok(Outcome::AlreadyCommitted);
    }
    if !folder.copy(staged, name).await? {
        // Another process may have published it in between.
        return match folder.head(name).await? {
            Some(_) => Ok(Outcome::AlreadyCommitted),
            None => Err(gone(staged)),
        };
    }
    fault::point("rejects.after_publish")?;
    folder.delete(staged).await?;
    Ok(Outcome::Committed {
        snapshot: name.rsplit('/').next().unwrap_or(name).to_owned(),
    })
}

fn gone(staged: &str) -> Error {
    Error::corrupt(format!(
        "prepared rejects are gone, and not published either: path={staged}"
    ))
    .hint("restore the rejects folder, or start over with `calve checkpoint reset FILE`")
}

#[async_trait]
impl Output for RejectsOutput {
    async fn state(&self, pipeline: &str, shard: &str) -> Result<OutputState> {
        let names = self.names(pipeline, shard).await?;
        Ok(OutputState {
            identity: None,
            held: names.iter().filter_map(|name| parse(name)).max(),
        })
    }

    async fn commit(&self, commit: &Commit) -> Result<Outcome> {
        let content: Content = commit.prepared.content.parse().map_err(|e| {
            Error::corrupt("the rejects' part of a record is unreadable").because(e)
        })?;
        let name = published_name(commit.epoch, &commit.digest);
        match &self.place {
            RejectsPlace::Local(dir) => {
                let dir: PathBuf = dir.join(&*commit.pipeline).join(&*commit.shard);
                publish_local(&content.staged, &dir.join(name))
            }
            RejectsPlace::Remote(folder) => {
                let name = format!("{}/{}/{name}", commit.pipeline, commit.shard);
                let staged = content.staged.to_string_lossy();
                publish_remote(folder, &staged, &name).await
            }
        }
    }
}

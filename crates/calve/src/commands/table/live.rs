//! What is alive because a checkpoint refers to it. A pipeline that the table names, but of which no
//! record is found, may have prepared files that nobody else knows of: then cleaning is refused.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use calve_engine::{
    Error, Opaque, Result,
    checkpoint::{Checkpoints, Record},
    rejects,
    shard::{LATE, TABLE},
    stores::{Stores, is_remote},
};
use calve_lake::{
    checkpoints::{open_store, shown},
    iceberg::{CatalogConfig, RecordPart, ShardInfo, TableDetails, content_files},
    parquet::{ObjectOutput, PublishedFile, RemoteLive},
};

use super::super::query::CatalogArgs;
use crate::{config, pipeline};

/// Name of the folder that pipelines keep their checkpoints in by default.
pub(super) const FOLDER: &str = ".calve-checkpoints";

/// Where the checkpoints of a table's pipelines are; shared by the commands that need to know.
#[derive(Debug, clap::Args)]
pub(super) struct CheckpointArgs {
    /// Where the checkpoints of the table's pipelines are; may be given more than once. `none`: there
    /// are none any more, and nothing of them needs to be kept [default: where pipelines put them]
    #[arg(long, value_name = "LOCATION")]
    pub(super) checkpoint: Vec<String>,
}

impl CheckpointArgs {
    /// The places for an Iceberg table.
    ///
    /// # Errors
    /// `Config` when the pipeline file that was named cannot be read.
    pub(super) fn given(
        &self,
        catalog: &CatalogArgs,
        config: &CatalogConfig,
        table: &TableDetails,
    ) -> Result<Given> {
        let file = catalog.file().map(config::load).transpose()?;
        let stores = match &file {
            Some(file) => pipeline::stores(file),
            None => Stores::new(pipeline::environment(), Vec::new()),
        };
        let mut defaults = in_warehouse(&table.info.location, config);
        defaults.extend(file.map(|file| file.checkpoint_location()));
        Ok(Given::new(&self.checkpoint, defaults, stores))
    }
}

/// Where to look for checkpoints, and whether their absence is known to be right.
pub(super) struct Given {
    locations: BTreeSet<String>,
    none: bool,
    stores: Stores,
}

/// What records refer to.
#[derive(Debug, Default)]
struct Contents {
    /// The parts of the records that are a table's: of rows, or of late rows.
    table: Vec<Opaque>,
    /// Rejects: staged name, and the name that they get when they are published.
    rejects: HashMap<String, String>,
}

impl Given {
    /// What the user named, or else the places where pipelines put them.
    pub(super) fn new(named: &[String], defaults: Vec<String>, stores: Stores) -> Self {
        let none = named.iter().any(|location| location == "none");
        let named: BTreeSet<String> = named.iter().filter(|l| *l != "none").cloned().collect();
        let locations = if named.is_empty() && !none {
            defaults.into_iter().collect()
        } else {
            named
        };
        Self {
            locations,
            none,
            stores,
        }
    }

    fn missing(&self, pipeline: &str, shard: &str) -> Error {
        let looked: Vec<String> = self.locations.iter().map(|l| shown(l)).collect();
        Error::config(format!(
            "the table holds epochs of a pipeline whose checkpoints are not found, and they may refer to \
             files that would be removed: pipeline={pipeline} shard={shard} looked_in={}",
            looked.join(",")
        ))
        .hint(
            "name every place where they are with `--checkpoint LOCATION`; if they are gone for good, \
             `--checkpoint none` says so",
        )
    }

    /// All records, of the shards that the table names, and of every other shard in these stores: what
    /// it prepared first is in no table yet.
    async fn records(&self, named: &[(String, String)]) -> Result<Vec<Found>> {
        let mut records = Vec::new();
        let mut found: BTreeSet<(String, String)> = BTreeSet::new();
        for location in &self.locations {
            let store = open_store(location, &self.stores).await?;
            let mut shards: BTreeSet<(String, String)> = named.iter().cloned().collect();
            for pipeline in store.folders("").await? {
                for shard in store.folders(&pipeline).await? {
                    shards.insert((pipeline.clone(), shard));
                }
            }
            for (pipeline, shard) in shards {
                let checkpoints = Checkpoints::new(store.clone(), &pipeline, &shard);
                // A pipeline that runs may make and remove some meanwhile.
                let mut runs = checkpoints.runs().await?;
                let loaded = checkpoints.load().await?;
                runs.extend(checkpoints.runs().await?);
                let newest = loaded.newest().map(|record| record.epoch);
                for (record, digest) in loaded.records {
                    found.insert((pipeline.clone(), shard.clone()));
                    // Those that only an older one names go before it does.
                    let is_newest = Some(record.epoch) == newest;
                    records.push(Found {
                        pipeline: pipeline.clone(),
                        shard: shard.clone(),
                        runs: is_newest.then(|| runs.clone()),
                        record,
                        digest,
                    });
                }
            }
        }
        let lost = named.iter().find(|shard| !found.contains(*shard));
        match lost {
            Some((pipeline, shard)) if !self.none => Err(self.missing(pipeline, shard)),
            _ => Ok(records),
        }
    }

    /// The parts of all records.
    async fn contents(&self, named: &[(String, String)]) -> Result<Contents> {
        let mut contents = Contents::default();
        for Found { record, digest, .. } in self.records(named).await? {
            for (name, output) in record.outputs {
                let Some(content) = output.prepared.map(|p| p.content) else {
                    continue;
                };
                if (name == TABLE || name == LATE) && !content.is_null() {
                    contents.table.push(content);
                } else if let Some(staged) = rejects::staged_in(&content) {
                    let published = rejects::published_name(record.epoch, &digest);
                    contents.rejects.insert(staged, published);
                }
            }
        }
        Ok(contents)
    }
}

/// Default places for an Iceberg table: its warehouse, and the folder of the catalog; none in a REST
/// catalog.
pub(super) fn in_warehouse(location: &str, catalog: &CatalogConfig) -> Vec<String> {
    if catalog.rest.is_some() {
        // Its tables' places say nothing of those of checkpoints.
        return Vec::new();
    }
    if is_remote(location) {
        let warehouse = location.trim_end_matches('/').rsplitn(3, '/').nth(2);
        let warehouse = warehouse.filter(|url| !url.ends_with('/'));
        return warehouse
            .map(|url| format!("{url}/{FOLDER}"))
            .into_iter()
            .collect();
    }
    let path = location
        .strip_prefix("file://")
        .or_else(|| location.strip_prefix("file:"))
        .unwrap_or(location);
    let warehouse = Path::new(path).ancestors().nth(2);
    let catalog = catalog.sqlite.as_deref().and_then(Path::parent);
    let folders = warehouse.into_iter().chain(catalog);
    let places: Vec<PathBuf> = folders.map(|folder| folder.join(FOLDER)).collect();
    those_there(&places)
}

/// Default places for a plain Parquet table: beside its folder.
pub(super) fn beside(folder: &Path) -> Vec<String> {
    let parent = std::path::absolute(folder)
        .ok()
        .and_then(|absolute| absolute.parent().map(Path::to_owned));
    those_there(&parent.map_or_else(Vec::new, |parent| vec![parent.join(FOLDER)]))
}

/// The places that exist; when none does, the first, to be named in the error.
fn those_there(places: &[PathBuf]) -> Vec<String> {
    let shown = |place: &PathBuf| {
        let absolute = std::path::absolute(place).unwrap_or_else(|_| place.clone());
        absolute.display().to_string()
    };
    let there: Vec<String> = places.iter().filter(|p| p.is_dir()).map(shown).collect();
    if there.is_empty() {
        places.iter().take(1).map(shown).collect()
    } else {
        there
    }
}

/// Data files of an Iceberg table that checkpoints refer to.
pub(super) async fn iceberg(given: &Given, table: &TableDetails) -> Result<HashSet<String>> {
    let mut live = HashSet::new();
    for content in given.contents(&named(table)).await?.table {
        // An array is a plain Parquet table's, which shares the store.
        if !content.is_array() {
            live.extend(content_files(&content)?);
        }
    }
    Ok(live)
}

/// A record of a shard.
struct Found {
    pipeline: String,
    shard: String,
    record: Record,
    digest: String,
    /// The runs that are in its store; none: it is not the newest.
    runs: Option<Vec<String>>,
}

/// What records of all pipelines hold for tables.
pub(super) async fn parts(given: &Given, table: &TableDetails) -> Result<Vec<RecordPart>> {
    let mut parts = Vec::new();
    for found in given.records(&named(table)).await? {
        for (name, output) in found.record.outputs {
            let there = found.runs.as_ref();
            let missing = output
                .runs
                .iter()
                .filter(|run| there.is_some_and(|there| !there.contains(run)));
            let missing_runs = missing.cloned().collect();
            let content = output.prepared.map(|p| p.content);
            let content = content.filter(|content| !content.is_null() && !content.is_array());
            if let Some(content) = content.filter(|_| name == TABLE || name == LATE) {
                parts.push(RecordPart {
                    pipeline: found.pipeline.clone(),
                    shard: found.shard.clone(),
                    epoch: found.record.epoch.0,
                    digest: found.digest.clone(),
                    content,
                    missing_runs,
                });
            }
        }
    }
    Ok(parts)
}

fn named(table: &TableDetails) -> Vec<(String, String)> {
    let name = |shard: &ShardInfo| (shard.pipeline.clone(), shard.shard.clone());
    table.shards.iter().map(name).collect()
}

/// Staged files of a plain Parquet table that checkpoints refer to, relative to its folder. Those of
/// other tables in the same store count too, which does no harm.
pub(super) async fn parquet(given: &Given, folder: &Path) -> Result<HashSet<String>> {
    let mut named = Vec::new();
    let commits = folder.join("_calve/commits");
    for pipeline in folders(&commits)? {
        for shard in folders(&commits.join(&pipeline))? {
            if pipeline.contains('%') || shard.contains('%') {
                return Err(Error::config(format!(
                    "a pipeline has a name that cannot be looked up: pipeline={pipeline} shard={shard}"
                )));
            }
            named.push((pipeline.clone(), shard));
        }
    }
    let mut live = HashSet::new();
    for content in given.contents(&named).await?.table {
        if content.is_array() {
            live.extend(files(&content)?.into_iter().map(|file| file.staged));
        }
    }
    Ok(live)
}

/// Uploads of a plain Parquet table in an object store that checkpoints refer to, and staged and
/// published names of rejects. Those of other tables in the same store count too, which does no harm.
pub(super) async fn remote(
    given: &Given,
    table: &ObjectOutput,
) -> Result<(RemoteLive, HashMap<String, String>)> {
    let contents = given.contents(&table.shards().await?).await?;
    let mut live = RemoteLive::default();
    for content in contents.table {
        if content.is_array() {
            for file in files(&content)? {
                live.uploads.extend(file.upload.map(|upload| upload.id));
                live.paths.insert(file.path);
            }
        }
    }
    Ok((live, contents.rejects))
}

fn files(content: &Opaque) -> Result<Vec<PublishedFile>> {
    content
        .parse()
        .map_err(|e| Error::corrupt("a checkpoint record does not hold files").because(e))
}

/// Names of the folders in a folder, hidden ones apart; none when it is not there.
fn folders(path: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(format!("cannot list folder={}", path.display()), e);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().map_err(failed)?.is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use calve_engine::{
        Prepared,
        checkpoint::{LocalRecords, RecordBase, RecordStore},
    };
    use calve_model::{Epoch, Offsets, Watermarks};

    use super::*;

    fn given(named: &[&str], defaults: &[&str]) -> Given {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        Given::new(&owned(named), owned(defaults), Stores::default())
    }

    #[tokio::test]
    async fn an_unknown_pipeline_is_refused_unless_its_checkpoints_are_gone() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = dir.path().display().to_string();
        let named = [("orders".to_owned(), "main".to_owned())];
        let error = given(&[], &[&place]).contents(&named).await;
        let error = error.expect_err("nothing is known of the pipeline");
        assert!(error.message().contains("pipeline=orders"), "{error}");
        assert!(
            error
                .hint_text()
                .is_some_and(|h| h.contains("--checkpoint none"))
        );
        assert!(given(&["none"], &[&place]).contents(&named).await.is_ok());
        assert!(given(&[], &[&place]).contents(&[]).await.is_ok());
    }

    #[tokio::test]
    async fn a_damaged_record_ends_the_cleaning() {
        let dir = tempfile::tempdir().expect("a folder");
        let store: Arc<dyn RecordStore> = Arc::new(LocalRecords::new(dir.path()));
        let name = "other/main/00000000000000000001.json";
        store.create(name, b"{".to_vec()).await.expect("create");
        let place = dir.path().display().to_string();
        let error = given(&[&place], &[]).contents(&[]).await;
        let error = error.expect_err("it may refer to anything");
        assert_eq!(error.kind(), calve_engine::ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn late_rows_that_are_prepared_are_alive() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = dir.path().join(FOLDER);
        let store: Arc<dyn RecordStore> = Arc::new(LocalRecords::new(&place));
        let checkpoints = Checkpoints::new(store, "orders", "main");
        let base = RecordBase {
            fingerprints: BTreeMap::new(),
            identities: BTreeMap::from([(TABLE.into(), None), (LATE.into(), None)]),
            offsets: Offsets::default(),
            watermarks: Watermarks::new(0),
            previous: BTreeMap::new(),
            floor: Epoch::NONE,
        };
        let (claim, _) = checkpoints.claim(None, base).await.expect("a claim");
        let mut record = claim.following();
        for (name, staged) in [(TABLE, ".t.tmp"), (LATE, ".l.tmp")] {
            let content = serde_json::json!([{ "staged": staged, "path": "a.parquet", "rows": 1, "bytes": 1 }]);
            let prepared = Prepared {
                content: Opaque::of(&content).expect("plain data"),
                ..Prepared::default()
            };
            record.outputs.get_mut(name).expect("an output").prepared = Some(prepared);
        }
        checkpoints.create(&record).await.expect("a record");
        let late = dir.path().join("orders_late");
        let live = parquet(&given(&[], &[&place.display().to_string()]), &late).await;
        let live = live.expect("they are found");
        assert!(
            live.contains(".l.tmp") && live.contains(".t.tmp"),
            "{live:?}"
        );
    }

    #[test]
    fn what_was_named_comes_before_the_defaults() {
        let both = given(&["a", "none"], &["b"]);
        assert!(both.none && both.locations.iter().eq(["a"]));
        let defaults = given(&[], &["b"]);
        assert!(!defaults.none && defaults.locations.iter().eq(["b"]));
        assert!(given(&["none"], &["b"]).locations.is_empty());
    }
}

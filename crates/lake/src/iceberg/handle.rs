//! A table that is committed to: its state as it was read last, and one try to change it.
//!
//! A change reads the table's row, is built against that state, is written and made durable, and
//! swaps the row. Nothing refers to what was written before the swap. Metadata files never change, so
//! what was parsed is kept under its location. Protocol: design.md section 3.

use std::{ops::Deref, sync::Arc, time::Duration};

use calve_engine::{
    clock::now_ms,
    error::{Error, ErrorKind, Result},
    fault,
    seams::Outcome,
};
use iceberg::spec::{ManifestFile, Schema, TableMetadataBuilder};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    access::FileAccess,
    catalog::{Catalog, Change, Loaded, Swapped, json},
    config::TableName,
    edit::Edit,
    epochs::check_identity,
    live::LiveFiles,
    manifests::{self, ManifestCache, Parsed},
    publish::DELETE_AFTER_COMMIT,
    snapshot::{self, Base, Built},
    tables::find,
};

/// A table of a catalog, as a place for commits.
pub(crate) struct TableHandle {
    pub(crate) catalog: Catalog,
    pub(crate) access: FileAccess,
    pub(crate) table: TableName,
    /// The table that was opened; another one under its name is refused.
    pub(crate) uuid: Uuid,
    known: Mutex<Option<Known>>,
    cache: ManifestCache,
}

/// What was read or written last.
#[derive(Clone)]
pub(crate) struct Known {
    loaded: Loaded,
    /// Snapshot and its manifests.
    manifests: Option<(i64, Arc<Vec<ManifestFile>>)>,
}

impl Deref for Known {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.loaded
    }
}

impl Known {
    /// The same, as it is with the schema that a commit brings: for what is written along with it.
    ///
    /// # Errors
    /// `Internal` when the schema does not fit the table.
    pub(crate) fn with_schema(&self, schema: Schema) -> Result<Self> {
        let metadata = self.metadata.as_ref().clone();
        let metadata = metadata.into_builder(None).add_current_schema(schema);
        let built = metadata.and_then(TableMetadataBuilder::build);
        let built =
            built.map_err(|e| Error::internal("a schema does not fit the table").because(e))?;
        let mut known = self.clone();
        known.loaded.metadata = Arc::new(built.metadata);
        Ok(known)
    }
}

impl TableHandle {
    pub(crate) fn new(catalog: Catalog, table: TableName, uuid: Uuid) -> Self {
        Self {
            access: catalog.access(&table),
            catalog,
            table,
            uuid,
            known: Mutex::new(None),
            cache: ManifestCache::default(),
        }
    }

    /// The table of this name (`namespace.name`), whichever it is.
    ///
    /// # Errors
    /// `Config` when there is no such table.
    pub(crate) async fn open(catalog: Catalog, table: &str) -> Result<Self> {
        let (name, found) = find(&catalog, table).await?;
        Ok(Self::new(catalog, name, found.metadata.uuid()))
    }

    /// The table as the catalog has it now; none: there is none.
    ///
    /// # Errors
    /// `Unavailable` when the catalog does not answer, `Corrupt` when the metadata cannot be read.
    pub(crate) async fn load(&self) -> Result<Option<Known>> {
        let mut known = self.known.lock().await;
        let before = known.as_ref().map(|known| &known.loaded);
        let Some(loaded) = self.catalog.load(&self.table, before).await? else {
            return Ok(None);
        };
        if let Some(known) = known.as_ref().filter(|k| k.location == loaded.location) {
            return Ok(Some(known.clone()));
        }
        let now = Known {
            loaded,
            manifests: None,
        };
        Ok(Some(known.insert(now).clone()))
    }

    /// [`TableHandle::load`] of a table that must be there.
    ///
    /// # Errors
    /// `Corrupt` when it is gone.
    pub(crate) async fn load_existing(&self) -> Result<Known> {
        self.load().await?.ok_or_else(|| {
            Error::corrupt(format!("the table is gone: table={}", self.table))
                .hint("restore it, or start over with `calve checkpoint reset`")
        })
    }

    /// Manifests of the current snapshot.
    pub(crate) async fn manifests(&self, known: &Known) -> Result<Arc<Vec<ManifestFile>>> {
        if let Some((id, manifests)) = &known.manifests
            && Some(*id) == known.metadata.current_snapshot_id()
        {
            return Ok(manifests.clone());
        }
        let read = Arc::new(manifests::manifests(&self.access, &known.metadata).await?);
        if let Some(id) = known.metadata.current_snapshot_id()
            && let Some(kept) = self.known.lock().await.as_mut()
            && kept.location == known.location
        {
            kept.manifests = Some((id, read.clone()));
        }
        Ok(read)
    }

    /// A manifest, parsed.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read.
    pub(crate) async fn parsed(&self, manifest: &ManifestFile) -> Result<Arc<Parsed>> {
        self.cache.load(&self.access, manifest).await
    }

    /// Brings `live` to the state of the table in `known`.
    ///
    /// # Errors
    /// `Corrupt` when a manifest cannot be read; `live` is as it was then.
    pub(crate) async fn live(&self, known: &Known, live: &mut LiveFiles) -> Result<()> {
        let manifests = self.manifests(known).await?;
        let id = known.metadata.current_snapshot_id();
        live.update(&self.access, id, &manifests, &self.cache).await
    }

    /// Builds the edit against the state in `known`; nothing is written.
    ///
    /// # Errors
    /// See [`snapshot::build`].
    pub(crate) async fn build(&self, known: &Known, mut edit: Edit) -> Result<Built> {
        let manifests = self.manifests(known).await?;
        let (folder, next) = self.catalog.next_place(known);
        // Where requirements are all that a catalog checks, only a new snapshot keeps a request that
        // comes late from setting an older epoch again.
        edit.always_snapshot |= edit.epoch.is_some() && self.catalog.writes_metadata();
        let base = Base {
            access: &self.access,
            metadata: &known.metadata,
            location: &known.location,
            manifests: &manifests,
            cache: &self.cache,
        };
        snapshot::build(&base, edit, (folder, next), now_ms()).await
    }

    /// Writes what was built, makes it durable, and swaps the table's row if it still is what `known`
    /// says. On a conflict nothing is left where that is certain to be of no use; on an unknown outcome
    /// everything is, since something may refer to it.
    ///
    /// # Errors
    /// When nothing can have been changed: `Unavailable` or `Full` of disk and catalog.
    pub(crate) async fn apply(&self, known: &Known, built: Built) -> Result<Outcome> {
        let mut files = built.files;
        if let Some(location) = &built.location {
            files.push((location.clone(), json(&built.metadata)?));
        }
        let written = self.access.write_all(files, &built.folder).await?;
        fault::point("iceberg.commit.before_cas")?;

        let id = built.snapshot.as_ref().map(|(id, _)| *id);
        let change = Change {
            base: known,
            metadata: &built.metadata,
            location: built.location.as_deref(),
            updates: &built.changes,
            snapshot: id,
        };
        let now = match self.catalog.commit(&self.table, &change).await? {
            Swapped::Yes(now) => now,
            Swapped::No { certain } => {
                if certain {
                    self.access.discard(&written).await;
                }
                return Ok(Outcome::Conflict);
            }
            Swapped::Unknown => return Ok(Outcome::Unknown),
        };
        fault::point("iceberg.commit.after_cas")?;
        if fault::lost("iceberg.commit.after_cas") {
            return Ok(Outcome::Unknown);
        }
        for (manifest, parsed) in &built.parsed {
            self.cache.put(manifest, parsed);
        }
        if let Some((_, manifests)) = &built.snapshot {
            self.cache.retain(manifests);
        }
        let forget = built
            .metadata
            .properties()
            .get(DELETE_AFTER_COMMIT)
            .is_some_and(|v| v == "true");
        *self.known.lock().await = now.map(|loaded| Known {
            loaded,
            // Without a new snapshot the manifests are what they were.
            manifests: built.snapshot.or_else(|| known.manifests.clone()),
        });
        if forget && !self.catalog.writes_metadata() {
            self.access.discard(&built.expired).await;
        }
        Ok(Outcome::Committed {
            snapshot: id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
        })
    }

    /// Whether a metadata file is in the table's history: how an unknown outcome is resolved.
    async fn has_landed(&self, location: Option<&str>, snapshot: Option<i64>) -> Result<bool> {
        let known = self.load_existing().await?;
        let metadata = &known.metadata;
        let is_logged = |location: &str| {
            let mut log = metadata.metadata_log().iter();
            known.location == location || log.any(|log| log.metadata_file == location)
        };
        Ok(location.is_some_and(is_logged)
            || snapshot.is_some_and(|id| metadata.snapshot_by_id(id).is_some()))
    }
}

/// How often a change for upkeep is planned again, when others are faster.
const TRIES: u32 = 40;

/// Tries to change a table until nobody else was faster: load, plan an edit of what was loaded, commit
/// it; if that answers none, the same again.
pub(crate) struct Tries<'a> {
    handle: &'a TableHandle,
    made: u32,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(handle: &'a TableHandle) -> Self {
        Self { handle, made: 0 }
    }

    /// The table as it is now; waits before it is loaded again.
    ///
    /// # Errors
    /// `Conflict` when others were faster too often; `Corrupt` when it is gone or another.
    pub(crate) async fn load(&mut self) -> Result<Known> {
        let handle = self.handle;
        if self.made == TRIES {
            return Err(Error::conflict(format!(
                "somebody else committed first, again and again: table={} tries={TRIES}",
                handle.table
            ))
            .hint("try again when the table is written to less often"));
        }
        if self.made > 0 {
            back_off(self.made).await;
        }
        self.made += 1;
        let known = handle.load_existing().await?;
        check_identity(&handle.table, handle.uuid, &known.metadata)?;
        Ok(known)
    }

    /// Commits an edit of what was loaded; answers the new snapshot (`none` where the edit has no
    /// files), or none: plan again. An unknown outcome is looked up.
    ///
    /// # Errors
    /// Whatever a step failed with.
    pub(crate) async fn commit(&mut self, known: &Known, edit: Edit) -> Result<Option<String>> {
        let handle = self.handle;
        fault::point("iceberg.commit.before_manifest")?;
        let built = match handle.build(known, edit).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tracing::debug!(%error, "planning again");
                return Ok(None);
            }
            built => built?,
        };
        fault::point("iceberg.commit.before_metadata")?;
        let id = built.snapshot.as_ref().map(|(id, _)| *id);
        let location = built.location.clone();
        match handle.apply(known, built).await? {
            Outcome::Committed { snapshot } => Ok(Some(snapshot)),
            Outcome::Unknown if handle.has_landed(location.as_deref(), id).await? => Ok(Some(
                id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
            )),
            Outcome::Unknown | Outcome::AlreadyCommitted | Outcome::Conflict | Outcome::Fenced => {
                Ok(None)
            }
        }
    }
}

/// [`Tries`] with a plan that is a function; its future cannot be told to be `Send`. The plan answers
/// none when there is nothing to do.
///
/// # Errors
/// Those of [`Tries`], or of the plan.
#[allow(
    dead_code,
    reason = "for plans that need not be sent to another thread"
)]
pub(crate) async fn commit_edit<P>(handle: &TableHandle, mut plan: P) -> Result<Option<String>>
where
    P: AsyncFnMut(&Known) -> Result<Option<Edit>>,
{
    let mut tries = Tries::new(handle);
    loop {
        let known = tries.load().await?;
        let Some(edit) = plan(&known).await? else {
            return Ok(None);
        };
        if let Some(snapshot) = tries.commit(&known, edit).await? {
            return Ok(Some(snapshot));
        }
    }
}

/// Waits for up to half a second, by chance, so that two do not keep step.
async fn back_off(attempt: u32) {
    let most = 10 << attempt.min(6);
    let chance = Uuid::new_v4().as_u64_pair().0 % most;
    tokio::time::sleep(Duration::from_millis(chance)).await;
}

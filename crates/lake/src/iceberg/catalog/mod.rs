//! Where tables are registered: a SQL database (SQLite, PostgreSQL) or a REST catalog, behind the few
//! operations that the rest of the module needs.
//!
//! The two differ in who writes a table's metadata: with SQL we do, and a commit swaps one row; a REST
//! catalog gets requirements and updates and writes it itself. What both promise is that of two commits
//! against one state of a table at most one is made, and that each try ends in one of [`Swapped`].

pub(super) mod rest;
pub(super) mod sql;

use std::sync::Arc;

use calve_engine::error::{Error, Result};
use iceberg::{TableUpdate, spec::TableMetadata};
use uuid::Uuid;

use self::{rest::RestCatalog, sql::SqlCatalog};
use super::{
    access::{FileAccess, local},
    config::{CatalogConfig, TableName},
    publish::next_metadata,
};

/// A catalog, open.
#[derive(Clone, Debug)]
pub(crate) enum Catalog {
    /// In a SQL database.
    Sql(SqlCatalog),
    /// Behind a REST server.
    Rest(Arc<RestCatalog>),
}

/// A table as the catalog has it.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// Its newest metadata file.
    pub(crate) location: String,
    pub(crate) metadata: Arc<TableMetadata>,
}

/// What becomes of a table.
pub(crate) struct Change<'a> {
    /// The state that it was planned against.
    pub(crate) base: &'a Loaded,
    /// The new state, and where its metadata was written to; none: the catalog writes it.
    pub(crate) metadata: &'a TableMetadata,
    pub(crate) location: Option<&'a str>,
    /// The same as changes, for a catalog that wants those.
    pub(crate) updates: &'a [TableUpdate],
    /// The new snapshot, if there is one.
    pub(crate) snapshot: Option<i64>,
}

/// What became of a try to change a table.
pub(crate) enum Swapped {
    /// The table is changed; what it is now, where the catalog says so.
    Yes(Option<Loaded>),
    /// It is not: somebody else was faster. Whether nothing refers to what was written is certain only
    /// where no request is ever repeated on its way.
    No { certain: bool },
    /// No answer: look.
    Unknown,
}

impl Catalog {
    /// Opens a catalog that is there.
    ///
    /// # Errors
    /// `Config` when it is not there or not a catalog; `Unavailable` when it does not answer.
    pub(crate) async fn open(config: &CatalogConfig) -> Result<Self> {
        Self::find(config).await?.ok_or_else(|| {
            Error::config(format!("there is no catalog: {}", config.shown()))
                .hint("a run of a pipeline creates it; check the path")
        })
    }

    /// Opens a catalog; none: there is none yet.
    ///
    /// # Errors
    /// See [`Catalog::open`].
    pub(crate) async fn find(config: &CatalogConfig) -> Result<Option<Self>> {
        Self::connect(config, false).await
    }

    /// Opens a catalog; one in a database is laid out when it is absent.
    ///
    /// # Errors
    /// See [`Catalog::open`].
    pub(crate) async fn create(config: &CatalogConfig) -> Result<Self> {
        let created = Self::connect(config, true).await?;
        created.ok_or_else(|| Error::internal("a catalog that was created is not there"))
    }

    async fn connect(config: &CatalogConfig, create: bool) -> Result<Option<Self>> {
        if let Some(rest) = &config.rest {
            let warehouse = config.warehouse.as_deref();
            let catalog = RestCatalog::connect(rest, warehouse, config.stores.clone()).await?;
            return Ok(Some(Self::Rest(Arc::new(catalog))));
        }
        let access = FileAccess::new(config.stores.apart());
        let catalog = SqlCatalog::connect(config, access, create).await?;
        Ok(catalog.map(Self::Sql))
    }

    /// Reads and writes a table's files.
    pub(crate) fn access(&self, table: &TableName) -> FileAccess {
        match self {
            Self::Sql(catalog) => catalog.access().clone(),
            Self::Rest(catalog) => catalog.access(table),
        }
    }

    /// The catalog takes changes, and writes the metadata itself.
    pub(crate) fn writes_metadata(&self) -> bool {
        match self {
            Self::Sql(_) => false,
            Self::Rest(_) => true,
        }
    }

    /// The local folder of new tables, where there is one.
    pub(super) fn local_warehouse(&self) -> Option<&std::path::Path> {
        match self {
            Self::Sql(catalog) => catalog
                .warehouse()
                .and_then(local)
                .map(std::path::Path::new),
            Self::Rest(_) => None,
        }
    }

    /// Folder of new metadata, and the next metadata file in it; none: the catalog names it.
    pub(crate) fn next_place(&self, base: &Loaded) -> (String, Option<String>) {
        let location = base.metadata.location().trim_end_matches('/');
        match self {
            Self::Sql(_) => {
                let (folder, next) = next_metadata(&base.location, location);
                (folder, Some(next))
            }
            Self::Rest(_) => {
                let named = base.metadata.properties().get("write.metadata.path");
                let folder = named.map(|path| path.trim_end_matches('/').to_owned());
                (
                    folder.unwrap_or_else(|| format!("{location}/metadata")),
                    None,
                )
            }
        }
    }

    /// A table as it is now; none: there is none. What is `known` is not read again.
    ///
    /// # Errors
    /// `Unavailable` when the catalog does not answer, `Corrupt` when the metadata cannot be read.
    pub(crate) async fn load(
        &self,
        table: &TableName,
        known: Option<&Loaded>,
    ) -> Result<Option<Loaded>> {
        match self {
            Self::Sql(catalog) => {
                let Some(location) = catalog.locate(table).await? else {
                    return Ok(None);
                };
                if let Some(known) = known.filter(|known| known.location == location) {
                    return Ok(Some(known.clone()));
                }
                let metadata = Arc::new(catalog.read(&location).await?);
                Ok(Some(Loaded { location, metadata }))
            }
            Self::Rest(catalog) => {
                let loaded = catalog.load(table).await?;
                let same = |now: &Loaded| known.filter(|known| known.location == now.location);
                Ok(loaded.map(|now| same(&now).cloned().unwrap_or(now)))
            }
        }
    }

    /// Creates a table as `plan` makes it of its location. None: somebody else was faster.
    ///
    /// # Errors
    /// Those of `plan`; `Config` where the catalog has no place for it; `Unavailable`.
    pub(super) async fn create_table(
        &self,
        table: &TableName,
        plan: impl FnOnce(String) -> Result<TableMetadata>,
    ) -> Result<Option<Loaded>> {
        let catalog = match self {
            Self::Sql(catalog) => catalog,
            // The server names the place; what is planned needs one.
            Self::Rest(catalog) => {
                let planned = plan("file:///".to_owned())?;
                return catalog.create_table(table, &planned).await.map(Some);
            }
        };
        let metadata = plan(catalog.location_of(table)?)?;
        let folder = format!("{}/metadata", metadata.location());
        if let Some(path) = local(&folder) {
            calve_engine::durable::create_dirs(path.as_ref())
                .map_err(|e| Error::io(format!("cannot create folder={path}"), e))?;
        }
        let location = format!("{folder}/00000-{}.metadata.json", Uuid::new_v4());
        let files = vec![(location.clone(), json(&metadata)?)];
        let access = catalog.access();
        let written = access.write_all(files, &folder).await?;
        if catalog.register(table, &location).await? {
            let metadata = Arc::new(metadata);
            return Ok(Some(Loaded { location, metadata }));
        }
        // Somebody else created it first, so nothing refers to our file.
        access.discard(&written).await;
        Ok(None)
    }

    /// One try to change a table. With SQL the metadata was written to its place before.
    ///
    /// # Errors
    /// When nothing can have been changed, and a retry without a look would be the same.
    pub(crate) async fn commit(&self, table: &TableName, change: &Change<'_>) -> Result<Swapped> {
        let catalog = match self {
            Self::Sql(catalog) => catalog,
            Self::Rest(catalog) => return catalog.commit(table, change).await,
        };
        let to = change
            .location
            .ok_or_else(|| Error::internal("the metadata has no place"))?;
        match catalog.swap(table, &change.base.location, to).await {
            Ok(true) => Ok(Swapped::Yes(Some(Loaded {
                location: to.to_owned(),
                metadata: Arc::new(change.metadata.clone()),
            }))),
            // The row was another's, so nothing can refer to what we wrote.
            Ok(false) => Ok(Swapped::No { certain: true }),
            // The next try looks at the table again in any case.
            Err(error) if error.hint_text().is_some() => Err(error),
            Err(error) => {
                tracing::warn!(%error, %table, "no answer to a commit; looking");
                Ok(Swapped::Unknown)
            }
        }
    }

    /// All tables, by name.
    ///
    /// # Errors
    /// `Unavailable` when the catalog does not answer.
    pub(super) async fn tables(&self) -> Result<Vec<TableName>> {
        match self {
            Self::Sql(catalog) => catalog.tables().await,
            Self::Rest(catalog) => catalog.tables().await,
        }
    }

    /// The catalog in a database that a test looks into.
    #[cfg(test)]
    pub(crate) fn sql(&self) -> &SqlCatalog {
        match self {
            Self::Sql(catalog) => catalog,
            Self::Rest(_) => panic!("a REST catalog"),
        }
    }
}

/// A metadata file's bytes.
pub(super) fn json(metadata: &TableMetadata) -> Result<Vec<u8>> {
    serde_json::to_vec(metadata)
        .map_err(|e| Error::internal("cannot write the table's metadata").because(e))
}

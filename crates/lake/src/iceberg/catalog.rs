//! A catalog of tables in a SQLite file, in the layout that Iceberg's JDBC catalog, PyIceberg and
//! iceberg-rust share. A table's state is one row: the location of its newest metadata file; a
//! commit is one compare-and-swap of that row.
//!
//! Our own statements, because the outcome of each must be known: swapped, not swapped, or no
//! answer. Several processes may use the file at once.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use calve_engine::{
    durable,
    error::{Error, Result},
};
use iceberg::{io::FileIO, spec::TableMetadata};
use sqlx::{
    Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous},
};

use super::config::{CatalogConfig, TableName};

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// What to do when it waited in vain.
const LOCKED: &str = "another process holds the lock of the catalog's file, or was stopped inside a \
                      transaction: find it (`fuser -v FILE`), and let it go on or end it";

/// A catalog, open.
#[derive(Clone, Debug)]
pub struct Catalog {
    pool: SqlitePool,
    name: String,
    warehouse: Option<PathBuf>,
    file_io: FileIO,
    /// The file has the column that tells tables from views.
    typed: bool,
}

impl Catalog {
    /// Opens a catalog that is there.
    ///
    /// # Errors
    /// `Config` when it is not there or not a catalog; `Unavailable` when it does not answer.
    pub async fn open(config: &CatalogConfig) -> Result<Self> {
        Self::connect(config, false).await
    }

    /// Opens a catalog; an absent one is created.
    ///
    /// # Errors
    /// See [`Catalog::open`].
    pub async fn create(config: &CatalogConfig) -> Result<Self> {
        Self::connect(config, true).await
    }

    async fn connect(config: &CatalogConfig, create: bool) -> Result<Self> {
        if let Some(url) = &config.rest {
            let host = url::Url::parse(url)
                .ok()
                .and_then(|u| u.host_str().map(str::to_owned));
            return Err(Error::config(format!(
                "REST catalogs are not supported yet: host={}",
                host.unwrap_or_default()
            ))
            .hint("use `catalog: { sqlite: lake/catalog.db, warehouse: lake }`"));
        }
        let Some(path) = &config.sqlite else {
            return Err(Error::config("the catalog names no file")
                .hint("write `catalog: { sqlite: lake/catalog.db, warehouse: lake }`"));
        };
        let path = absolute(path)?;
        let warehouse = config.warehouse.as_deref().map(warehouse).transpose()?;
        if create {
            if let Some(folder) = path.parent() {
                durable::create_dirs(folder).map_err(|e| {
                    Error::io(format!("cannot create folder={}", folder.display()), e)
                })?;
            }
        } else if !path.exists() {
            return Err(
                Error::config(format!("there is no catalog: file={}", path.display()))
                    .hint("a run of a pipeline creates it; check the path"),
            );
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(create)
            .busy_timeout(BUSY_TIMEOUT)
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new()
            .max_connections(2)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .after_connect(|connection, _| Box::pin(keep_journal(connection)))
            .connect_with(options)
            .await
            .map_err(|e| {
                sql(
                    &format!("cannot open the catalog file={}", path.display()),
                    e,
                )
            })?;
        let mut columns = columns_of(&pool).await?;
        if create && columns.is_empty() {
            lay_out(&pool)
                .await
                .map_err(|e| sql("cannot lay out the catalog", e))?;
            columns = columns_of(&pool).await?;
        }
        if columns.is_empty() {
            return Err(Error::config(format!(
                "the file is not an Iceberg catalog: file={}",
                path.display()
            )));
        }
        Ok(Self {
            pool,
            name: if config.name.is_empty() {
                "default".into()
            } else {
                config.name.clone()
            },
            warehouse,
            file_io: FileIO::new_with_fs(),
            typed: columns.iter().any(|c| c == "iceberg_type"),
        })
    }

    /// Reads and writes the tables' files.
    pub(crate) fn file_io(&self) -> &FileIO {
        &self.file_io
    }

    /// The folder of new tables, where there is one.
    pub(super) fn warehouse(&self) -> Option<&Path> {
        self.warehouse.as_deref()
    }

    /// Where a new table goes. No table's folder lies within another's: the levels of a namespace
    /// share one folder.
    pub(super) fn location_of(&self, table: &TableName) -> Result<String> {
        let warehouse = self.warehouse.as_ref().ok_or_else(|| {
            Error::config("the catalog has no warehouse to create a table in")
                .hint("write `catalog: { sqlite: lake/catalog.db, warehouse: lake }`")
        })?;
        Ok(format!(
            "file://{}/{}/{}",
            warehouse.display(),
            table.namespace,
            table.name
        ))
    }

    /// Location of a table's newest metadata file; none: there is no such table.
    pub(super) async fn locate(&self, table: &TableName) -> Result<Option<String>> {
        let statement = self.only_tables(
            "SELECT metadata_location FROM iceberg_tables \
             WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?",
        );
        sqlx::query_scalar::<_, Option<String>>(&statement)
            .bind(&self.name)
            .bind(&table.namespace)
            .bind(&table.name)
            .fetch_optional(&self.pool)
            .await
            .map(Option::flatten)
            .map_err(|e| sql(&format!("cannot look up table={table}"), e))
    }

    /// Registers a table. False: the name is taken.
    pub(super) async fn register(&self, table: &TableName, location: &str) -> Result<bool> {
        let failed = |e| sql(&format!("cannot register table={table}"), e);
        let mut both = self.pool.begin_with(WRITING).await.map_err(failed)?;
        sqlx::query(
            "INSERT INTO iceberg_namespace_properties \
             (catalog_name, namespace, property_key, property_value) \
             VALUES (?, ?, 'exists', 'true') ON CONFLICT DO NOTHING",
        )
        .bind(&self.name)
        .bind(&table.namespace)
        .execute(&mut *both)
        .await
        .map_err(failed)?;
        let (column, value) = if self.typed {
            (", iceberg_type", ", 'TABLE'")
        } else {
            ("", "")
        };
        let inserted = sqlx::query(&format!(
            "INSERT INTO iceberg_tables \
             (catalog_name, table_namespace, table_name, metadata_location{column}) \
             VALUES (?, ?, ?, ?{value}) ON CONFLICT DO NOTHING"
        ))
        .bind(&self.name)
        .bind(&table.namespace)
        .bind(&table.name)
        .bind(location)
        .execute(&mut *both)
        .await
        .map_err(failed)?;
        both.commit().await.map_err(failed)?;
        Ok(inserted.rows_affected() == 1)
    }

    /// Makes `to` the table's newest metadata file if `from` is it still. False: it is not, and
    /// nothing was changed.
    ///
    /// # Errors
    /// `Unavailable`: no answer; whether it happened must be looked up. With a hint: the file is
    /// locked, and nothing was changed. `Full`: the same.
    pub(super) async fn swap(&self, table: &TableName, from: &str, to: &str) -> Result<bool> {
        let statement = self.only_tables(
            "UPDATE iceberg_tables SET metadata_location = ?, previous_metadata_location = ? \
             WHERE catalog_name = ? AND table_namespace = ? AND table_name = ? \
             AND metadata_location = ?",
        );
        let updated = sqlx::query(&statement)
            .bind(to)
            .bind(from)
            .bind(&self.name)
            .bind(&table.namespace)
            .bind(&table.name)
            .bind(from)
            .execute(&self.pool)
            .await
            .map_err(|e| sql(&format!("no answer to a commit: table={table}"), e))?;
        Ok(updated.rows_affected() == 1)
    }

    /// All tables, by name, with the location of their newest metadata file.
    pub(super) async fn tables(&self) -> Result<Vec<(TableName, String)>> {
        let statement = self.only_tables(
            "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables \
             WHERE catalog_name = ? AND metadata_location IS NOT NULL",
        ) + " ORDER BY table_namespace, table_name";
        let rows = sqlx::query(&statement)
            .bind(&self.name)
            .fetch_all(&self.pool)
            .await
            .map_err(|e| sql("cannot list the tables", e))?;
        rows.iter()
            .map(|row| {
                let name = TableName {
                    namespace: row.try_get(0)?,
                    name: row.try_get(1)?,
                };
                Ok((name, row.try_get(2)?))
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|e| sql("cannot list the tables", e))
    }

    /// Reads a metadata file.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or cannot be read: the catalog refers to it.
    pub(super) async fn read(&self, location: &str) -> Result<TableMetadata> {
        TableMetadata::read_from(&self.file_io, location)
            .await
            .map_err(|e| {
                Error::corrupt(format!("cannot read the table's metadata: file={location}"))
                    .because(e)
                    .hint("the catalog refers to this file; restore it, or drop the table")
            })
    }

    fn only_tables(&self, statement: &str) -> String {
        let filter = if self.typed {
            " AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)"
        } else {
            ""
        };
        format!("{statement}{filter}")
    }
}

const LAYOUT: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name))",
    "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255) NOT NULL,
        property_value VARCHAR(1000) NOT NULL,
        PRIMARY KEY (catalog_name, namespace, property_key))",
];

/// Takes the write lock at once: a transaction that reads first cannot wait for it later.
const WRITING: &str = "BEGIN IMMEDIATE";

/// Columns of the table of tables; empty: the file is new, or no catalog.
async fn columns_of(pool: &SqlitePool) -> Result<Vec<String>> {
    sqlx::query_scalar("SELECT name FROM pragma_table_info('iceberg_tables')")
        .fetch_all(pool)
        .await
        .map_err(|e| sql("cannot read the catalog", e))
}

/// Both tables in one transaction: each is several fsyncs.
async fn lay_out(pool: &SqlitePool) -> Result<(), sqlx::Error> {
    let mut both = pool.begin_with(WRITING).await?;
    for statement in LAYOUT {
        sqlx::query(statement).execute(&mut *both).await?;
    }
    both.commit().await
}

/// A rollback journal that is truncated and fsynced makes a transaction durable without an fsync of
/// the folder. It holds for this connection only; a file that somebody put into WAL mode stays so.
async fn keep_journal(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await?;
    if mode.eq_ignore_ascii_case("delete") {
        sqlx::query("PRAGMA journal_mode = TRUNCATE")
            .fetch_all(&mut *connection)
            .await?;
    }
    Ok(())
}

fn sql(what: &str, error: sqlx::Error) -> Error {
    // SQLite's primary result codes; the extended ones hold more in the upper bits.
    let code = error
        .as_database_error()
        .and_then(|e| e.code()?.parse::<u32>().ok())
        .map(|code| code & 0xff);
    match code {
        Some(14 | 26) => Error::config(what).because(error),
        Some(5 | 6) => Error::unavailable(what).because(error).hint(LOCKED),
        _ => Error::unavailable(what).because(error),
    }
}

/// The path of a local location: `file:///a/b`, `file:/a/b` or `/a/b`.
pub(crate) fn local_path(location: &str) -> Result<&Path> {
    let path = location
        .strip_prefix("file://")
        .or_else(|| location.strip_prefix("file:"))
        .unwrap_or(location);
    if path.starts_with('/') {
        Ok(Path::new(path))
    } else {
        Err(Error::config(format!(
            "only tables on local disks are supported yet: location={location}"
        )))
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(|e| {
        Error::io(
            format!("cannot make the path absolute: path={}", path.display()),
            e,
        )
    })?;
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    Ok(plain)
}

fn warehouse(text: &str) -> Result<PathBuf> {
    let path = match text.split_once("://") {
        Some(("file", path)) => path,
        Some((scheme, _)) => {
            return Err(Error::config(format!(
                "a warehouse on this kind of store is not supported yet: scheme={scheme}"
            ))
            .hint("use a local folder"));
        }
        None => text,
    };
    let path = absolute(Path::new(path))?;
    // Locations are URIs; some readers take these two for the beginning of a fragment or a query.
    if path.to_str().is_none_or(|p| p.contains(['#', '?'])) {
        return Err(Error::config(format!(
            "the path of a warehouse cannot have `#` or `?`, nor be other than UTF-8: path={}",
            path.display()
        )));
    }
    Ok(path)
}

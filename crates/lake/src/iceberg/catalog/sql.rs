//! A catalog of tables in a SQL database, a SQLite file or PostgreSQL, in the layout that Iceberg's JDBC
//! catalog, PyIceberg and iceberg-rust share. A table's state is one row: the location of its newest
//! metadata file; a commit is one compare-and-swap of that row.
//!
//! Our own statements, because the outcome of each must be known: swapped, not swapped, or no
//! answer. Several processes may use the database at once.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use calve_engine::{
    durable,
    error::{Error, Result},
};
use iceberg::spec::TableMetadata;
use sqlx::{
    PgPool, SqliteConnection, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous},
};

use super::super::{
    access::{FileAccess, unreadable},
    config::{CatalogConfig, TableName},
};

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How long to wait for a server's answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What to do when it waited in vain.
const LOCKED: &str = "another process holds the lock of the catalog's file, or was stopped inside a \
                      transaction: find it (`fuser -v FILE`), and let it go on or end it";

/// A catalog in a database, open.
#[derive(Clone, Debug)]
pub(crate) struct SqlCatalog {
    pool: Pool,
    name: String,
    warehouse: Option<String>,
    access: FileAccess,
    /// The database has the column that tells tables from views.
    typed: bool,
}

#[derive(Clone, Debug)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The same on either kind of database.
macro_rules! on {
    ($pool:expr, $connections:ident => $run:expr) => {
        match $pool {
            Pool::Sqlite($connections) => $run.await,
            Pool::Postgres($connections) => answered($run).await,
        }
    };
}

/// What a server says, if it says something in time.
async fn answered<T>(
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| {
            let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Err(sqlx::Error::Io(late))
        })
}

impl SqlCatalog {
    /// Opens the catalog in a SQLite file or in PostgreSQL; with `create`, an absent one is laid out.
    /// None: it is not there.
    ///
    /// # Errors
    /// `Config` when it is not a catalog; `Unavailable` when it does not answer.
    pub(super) async fn connect(
        config: &CatalogConfig,
        access: FileAccess,
        create: bool,
    ) -> Result<Option<Self>> {
        let warehouse = config.warehouse.as_deref().map(warehouse).transpose()?;
        let pool = match (&config.sqlite, &config.sql) {
            (Some(path), None) => sqlite(&absolute(path)?, create).await?,
            (None, Some(url)) => Some(postgres(url.expose(), &config.shown()).await?),
            _ => {
                return Err(
                    Error::config("the catalog names not one place, but none or several").hint(
                        "write one of `sqlite: FILE`, `sql: postgres://…` and `rest: { uri: … }`",
                    ),
                );
            }
        };
        let Some(pool) = pool else { return Ok(None) };
        let mut columns = columns_of(&pool).await?;
        if create && columns.is_empty() {
            lay_out(&pool)
                .await
                .map_err(|e| sql("cannot lay out the catalog", e))?;
            columns = columns_of(&pool).await?;
        }
        match &pool {
            Pool::Postgres(_) if columns.is_empty() => return Ok(None),
            Pool::Sqlite(_) if columns.is_empty() => {
                return Err(Error::config(format!(
                    "the file is not an Iceberg catalog: {}",
                    config.shown()
                )));
            }
            _ => {}
        }
        Ok(Some(Self {
            pool,
            name: if config.name.is_empty() {
                "default".into()
            } else {
                config.name.clone()
            },
            warehouse,
            access,
            typed: columns.iter().any(|c| c == "iceberg_type"),
        }))
    }

    pub(super) fn access(&self) -> &FileAccess {
        &self.access
    }

    /// Place of new tables, where there is one: an absolute path or a URL, without a slash at its end.
    pub(super) fn warehouse(&self) -> Option<&str> {
        self.warehouse.as_deref()
    }

    /// Where a new table goes. No table's folder lies within another's: the levels of a namespace
    /// share one folder.
    pub(super) fn location_of(&self, table: &TableName) -> Result<String> {
        let warehouse = self.warehouse.as_ref().ok_or_else(|| {
            Error::config("the catalog has no warehouse to create a table in")
                .hint("write `catalog: { sqlite: lake/catalog.db, warehouse: lake }`")
        })?;
        let scheme = if warehouse.starts_with('/') {
            "file://"
        } else {
            ""
        };
        Ok(format!(
            "{scheme}{warehouse}/{}/{}",
            table.namespace, table.name
        ))
    }

    /// Location of a table's newest metadata file; none: there is no such table.
    pub(crate) async fn locate(&self, table: &TableName) -> Result<Option<String>> {
        let statement = self.only_tables(
            "SELECT metadata_location FROM iceberg_tables \
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3",
        );
        let found: Result<Option<Option<String>>, _> = on!(&self.pool, pool => {
            sqlx::query_scalar(&statement)
                .bind(&self.name)
                .bind(&table.namespace)
                .bind(&table.name)
                .fetch_optional(pool)
        });
        found
            .map(Option::flatten)
            .map_err(|e| sql(&format!("cannot look up table={table}"), e))
    }

    /// Registers a table. False: the name is taken.
    pub(super) async fn register(&self, table: &TableName, location: &str) -> Result<bool> {
        let namespace = "INSERT INTO iceberg_namespace_properties \
             (catalog_name, namespace, property_key, property_value) \
             VALUES ($1, $2, 'exists', 'true') ON CONFLICT DO NOTHING";
        let (column, value) = if self.typed {
            (", iceberg_type", ", 'TABLE'")
        } else {
            ("", "")
        };
        let row = format!(
            "INSERT INTO iceberg_tables \
             (catalog_name, table_namespace, table_name, metadata_location{column}) \
             VALUES ($1, $2, $3, $4{value}) ON CONFLICT DO NOTHING"
        );
        macro_rules! both {
            ($begun:expr) => {
                async {
                    let mut both = $begun.await?;
                    sqlx::query(namespace)
                        .bind(&self.name)
                        .bind(&table.namespace)
                        .execute(&mut *both)
                        .await?;
                    let inserted = sqlx::query(&row)
                        .bind(&self.name)
                        .bind(&table.namespace)
                        .bind(&table.name)
                        .bind(location)
                        .execute(&mut *both)
                        .await?;
                    both.commit().await?;
                    Ok::<u64, sqlx::Error>(inserted.rows_affected())
                }
            };
        }
        let inserted = match &self.pool {
            Pool::Sqlite(pool) => both!(pool.begin_with(WRITING)).await,
            Pool::Postgres(pool) => answered(both!(pool.begin())).await,
        };
        inserted
            .map(|rows| rows == 1)
            .map_err(|e| sql(&format!("cannot register table={table}"), e))
    }

    /// Makes `to` the table's newest metadata file if `from` is it still. False: it is not, and
    /// nothing was changed.
    ///
    /// # Errors
    /// `Unavailable`: no answer; whether it happened must be looked up. With a hint: the file is
    /// locked, and nothing was changed. `Full`: the same.
    pub(crate) async fn swap(&self, table: &TableName, from: &str, to: &str) -> Result<bool> {
        let statement = self.only_tables(
            "UPDATE iceberg_tables SET metadata_location = $1, previous_metadata_location = $2 \
             WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5 \
             AND metadata_location = $2",
        );
        macro_rules! update {
            ($pool:expr) => {
                async {
                    let updated = sqlx::query(&statement)
                        .bind(to)
                        .bind(from)
                        .bind(&self.name)
                        .bind(&table.namespace)
                        .bind(&table.name)
                        .execute($pool)
                        .await?;
                    Ok::<u64, sqlx::Error>(updated.rows_affected())
                }
            };
        }
        let updated = match &self.pool {
            Pool::Sqlite(pool) => update!(pool).await,
            Pool::Postgres(pool) => answered(update!(pool)).await,
        };
        updated
            .map(|rows| rows == 1)
            .map_err(|e| sql(&format!("no answer to a commit: table={table}"), e))
    }

    /// All tables, by name.
    pub(super) async fn tables(&self) -> Result<Vec<TableName>> {
        let statement = self.only_tables(
            "SELECT table_namespace, table_name FROM iceberg_tables \
             WHERE catalog_name = $1 AND metadata_location IS NOT NULL",
        ) + " ORDER BY table_namespace, table_name";
        let rows: Result<Vec<(String, String)>, _> = on!(&self.pool, pool => {
            sqlx::query_as(&statement).bind(&self.name).fetch_all(pool)
        });
        let rows = rows.map_err(|e| sql("cannot list the tables", e))?;
        Ok(rows
            .into_iter()
            .map(|(namespace, name)| TableName { namespace, name })
            .collect())
    }

    /// Reads a metadata file.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or cannot be read: the catalog refers to it.
    pub(crate) async fn read(&self, location: &str) -> Result<TableMetadata> {
        TableMetadata::read_from(self.access.io(), location)
            .await
            .map_err(|e| {
                let wrong =
                    Error::corrupt(format!("cannot read the table's metadata: file={location}"))
                        .hint("the catalog refers to this file; restore it, or drop the table");
                unreadable(wrong, e)
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

/// None: there is no file.
async fn sqlite(path: &Path, create: bool) -> Result<Option<Pool>> {
    if create {
        if let Some(folder) = path.parent() {
            durable::create_dirs(folder)
                .map_err(|e| Error::io(format!("cannot create folder={}", folder.display()), e))?;
        }
    } else if !path.exists() {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .busy_timeout(BUSY_TIMEOUT)
        .synchronous(SqliteSynchronous::Full);
    SqlitePoolOptions::new()
        .max_connections(2)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .after_connect(|connection, _| Box::pin(keep_journal(connection)))
        .connect_with(options)
        .await
        .map(|pool| Some(Pool::Sqlite(pool)))
        .map_err(|e| {
            sql(
                &format!("cannot open the catalog file={}", path.display()),
                e,
            )
        })
}

async fn postgres(url: &str, at: &str) -> Result<Pool> {
    // The reason of a parser may quote the URL, so it stays untold.
    let wrong = || {
        Error::config(format!("not a URL of PostgreSQL: {at}"))
            .hint("write `postgres://user:${PASSWORD}@host/database`")
    };
    if !url.starts_with("postgres:") && !url.starts_with("postgresql:") {
        return Err(wrong());
    }
    let options = PgConnectOptions::from_str(url).map_err(|_| wrong())?;
    PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(BUSY_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // A database may be set up to answer before its log is on disk.
                sqlx::query("SET synchronous_commit TO on")
                    .execute(connection)
                    .await
                    .map(drop)
            })
        })
        .connect_with(options.application_name("calve"))
        .await
        .map(Pool::Postgres)
        .map_err(|e| sql(&format!("cannot open the catalog: {at}"), e))
}

/// Columns of the table of tables; empty: the database is new, or no catalog.
async fn columns_of(pool: &Pool) -> Result<Vec<String>> {
    let columns = match pool {
        Pool::Sqlite(pool) => {
            sqlx::query_scalar("SELECT name FROM pragma_table_info('iceberg_tables')")
                .fetch_all(pool)
                .await
        }
        Pool::Postgres(pool) => {
            // The table that a name without a schema means; none: null.
            let asked = sqlx::query_scalar(
                "SELECT attname::text FROM pg_attribute \
                 WHERE attrelid = to_regclass('iceberg_tables') AND attnum > 0 AND NOT attisdropped",
            );
            answered(asked.fetch_all(pool)).await
        }
    };
    columns.map_err(|e| sql("cannot read the catalog", e))
}

/// Both tables in one transaction: each is several fsyncs.
async fn lay_out(pool: &Pool) -> Result<(), sqlx::Error> {
    match pool {
        Pool::Sqlite(pool) => {
            let mut both = pool.begin_with(WRITING).await?;
            for statement in LAYOUT {
                sqlx::query(statement).execute(&mut *both).await?;
            }
            both.commit().await
        }
        Pool::Postgres(pool) => {
            for statement in LAYOUT {
                let made = answered(sqlx::query(statement).execute(pool)).await;
                // Two processes at once: the slower one may be told of a duplicate: of a row in the server's own
                // tables, of the table, or of its row type.
                match made {
                    Err(e) if matches!(code(&e).as_deref(), Some("23505" | "42P07" | "42710")) => {}
                    made => {
                        made?;
                    }
                }
            }
            Ok(())
        }
    }
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

/// The database's own code: an SQLSTATE, or SQLite's primary result code (the extended ones hold more
/// in the upper bits).
fn code(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?.into_owned();
    match code.parse::<u32>() {
        Ok(extended) if code.len() < 5 => Some((extended & 0xff).to_string()),
        _ => Some(code),
    }
}

fn sql(what: &str, error: sqlx::Error) -> Error {
    match code(&error).as_deref() {
        Some("14" | "26") => Error::config(what).because(error),
        // Who we are, what we may, and which database.
        Some("28P01" | "28000" | "3D000" | "42501") => Error::config(what)
            .because(error)
            .hint("check user, password, database and permissions"),
        Some("5" | "6") => Error::unavailable(what).because(error).hint(LOCKED),
        _ => Error::unavailable(what).because(error),
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

/// The place of new tables: an absolute path, or a URL.
fn warehouse(text: &str) -> Result<String> {
    let place = match text.split_once("://") {
        Some(("file", path)) => absolute(Path::new(path))?,
        Some(_) => PathBuf::from(text.trim_end_matches('/')),
        None => absolute(Path::new(text))?,
    };
    // Locations are URIs; some readers take these two for the beginning of a fragment or a query.
    match place.to_str().filter(|place| !place.contains(['#', '?'])) {
        Some(place) => Ok(place.trim_end_matches('/').to_owned()),
        None => Err(Error::config(format!(
            "the path of a warehouse cannot have `#` or `?`, nor be other than UTF-8: path={}",
            place.display()
        ))),
    }
}

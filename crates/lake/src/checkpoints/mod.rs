//! Checkpoint records in a SQL database: SQLite or PostgreSQL, one table keyed by name. For stores
//! that lie about create-if-absent, and for those who want their checkpoints backed up with a
//! database. Here and not in the engine, since this crate has the database drivers already.
//!
//! Invariant: what has returned is durable, and of two creates of one name exactly one answers "ours".
//! Nothing is created by reading. The password of a URL is never shown.

#[cfg(test)]
mod tests;

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use calve_engine::{
    checkpoint::{self, RecordStore},
    durable::{self, Created},
    error::{Error, Result},
    stores::Stores,
};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::OnceCell;

/// How long to wait for a connection, or for another process's lock.
const PATIENCE: Duration = Duration::from_secs(10);
/// The names compare byte by byte in both.
const SQLITE_LAYOUT: &str = "CREATE TABLE IF NOT EXISTS calve_checkpoints \
    (name TEXT NOT NULL PRIMARY KEY, content BLOB NOT NULL)";
const POSTGRES_LAYOUT: &str = "CREATE TABLE IF NOT EXISTS calve_checkpoints \
    (name TEXT COLLATE \"C\" NOT NULL PRIMARY KEY, content BYTEA NOT NULL)";

/// Records in the table `calve_checkpoints` of a database.
#[derive(Debug)]
pub struct SqlRecords {
    pool: Pool,
    /// The URL without user, password and settings.
    shown: String,
    /// The table is there.
    laid_out: OnceCell<()>,
}

#[derive(Debug)]
enum Pool {
    Sqlite(SqlitePool, PathBuf),
    Postgres(PgPool),
}

/// Where a database is, and how it is connected to.
enum Place {
    Sqlite(SqliteConnectOptions),
    Postgres(PgConnectOptions),
}

impl Place {
    fn parse(url: &str) -> Result<Self> {
        // The reason of a parser may quote the URL, so it stays untold.
        let wrong = || {
            Error::config(format!("not a URL of a SQL database: sql={}", shown(url))).hint(
                "write `sqlite:checkpoints.db` or `postgres://user:${PASSWORD}@host/database`",
            )
        };
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url).map_err(|_| wrong())?;
            let nowhere = options.get_filename().as_os_str().is_empty();
            if nowhere || url.contains(":memory:") || url.contains("mode=memory") {
                return Err(wrong());
            }
            let options = options
                .create_if_missing(true)
                .busy_timeout(PATIENCE)
                // A journal that is deleted ends a transaction; the folder must know it too.
                .synchronous(SqliteSynchronous::Extra);
            return Ok(Self::Sqlite(options));
        }
        PgConnectOptions::from_str(url)
            .map(Self::Postgres)
            .map_err(|_| wrong())
    }
}

/// Opens the checkpoint store at a URL of a database, another URL, or a local path.
///
/// # Errors
/// Those of [`checkpoint::open_store`]; `Config` for a URL that is none.
pub async fn open_store(location: &str, stores: &Stores) -> Result<Arc<dyn RecordStore>> {
    if is_sql(location) {
        return Ok(SqlRecords::new(location)?);
    }
    checkpoint::open_store(location, stores).await
}

/// The same statement on either kind of database.
macro_rules! on {
    ($pool:expr, $connections:ident => $run:expr) => {
        match &$pool {
            Pool::Sqlite($connections, _) => $run,
            Pool::Postgres($connections) => $run,
        }
    };
}

/// Whether a location names a SQL database.
pub fn is_sql(location: &str) -> bool {
    ["sqlite:", "postgres:", "postgresql:"]
        .iter()
        .any(|scheme| location.starts_with(scheme))
}

/// A location as it may be shown: of a SQL database without user, password and settings.
pub fn shown(location: &str) -> String {
    if !is_sql(location) {
        return location.to_owned();
    }
    let (scheme, rest) = location.split_once(':').unwrap_or((location, ""));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    match rest.strip_prefix("//") {
        Some(place) if scheme != "sqlite" => {
            let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
            format!("{scheme}://{place}")
        }
        _ => format!("{scheme}:{rest}"),
    }
}

impl SqlRecords {
    /// A store at `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Connects with the
    /// first use; to be called within a runtime.
    ///
    /// # Errors
    /// `Config` for a URL that is none.
    pub fn new(url: &str) -> Result<Arc<Self>> {
        let pool = match Place::parse(url)? {
            Place::Sqlite(options) => {
                let path = options.get_filename().to_owned();
                let pool = SqlitePoolOptions::new()
                    .max_connections(2)
                    .acquire_timeout(PATIENCE)
                    .connect_lazy_with(options);
                Pool::Sqlite(pool, path)
            }
            Place::Postgres(options) => Pool::Postgres(postgres(options)),
        };
        Ok(Arc::new(Self {
            pool,
            shown: shown(url),
            laid_out: OnceCell::new(),
        }))
    }

    /// Checks a URL, without connecting.
    ///
    /// # Errors
    /// `Config` for a URL that is none.
    pub fn check(url: &str) -> Result<()> {
        Place::parse(url).map(drop)
    }

    /// Creates the table when it is missing.
    async fn lay_out(&self) -> Result<()> {
        self.laid_out
            .get_or_try_init(|| async {
                match &self.pool {
                    Pool::Sqlite(pool, path) => {
                        if let Some(folder) = path.parent() {
                            durable::create_dirs(folder).map_err(|e| {
                                Error::io(format!("cannot create folder={}", folder.display()), e)
                            })?;
                        }
                        sqlx::query(SQLITE_LAYOUT).execute(pool).await.map(drop)
                    }
                    Pool::Postgres(pool) => {
                        let made = sqlx::query(POSTGRES_LAYOUT).execute(pool).await;
                        // Two processes at once: the slower one may be told of a duplicate.
                        match made {
                            Err(e)
                                if matches!(
                                    code(&e).as_deref(),
                                    Some("23505" | "42P07" | "42710")
                                ) =>
                            {
                                Ok(())
                            }
                            made => made.map(drop),
                        }
                    }
                }
                .map_err(|e| self.error("lay out", "calve_checkpoints", e))
            })
            .await
            .copied()
    }

    /// Nothing was ever written: there is no file or no table.
    fn is_empty<T>(&self, found: &Result<T, sqlx::Error>) -> bool {
        match (&self.pool, found) {
            (Pool::Sqlite(..), Err(e)) => e.to_string().contains("no such table"),
            (Pool::Postgres(_), Err(e)) => code(e).is_some_and(|c| c == "42P01"),
            _ => false,
        }
    }

    fn is_absent(&self) -> bool {
        match &self.pool {
            Pool::Sqlite(_, path) => !path.exists(),
            Pool::Postgres(_) => false,
        }
    }

    /// All names below a folder, without it, in order; the empty folder is the store itself.
    async fn below(&self, folder: &str) -> Result<Vec<String>> {
        if self.is_absent() {
            return Ok(Vec::new());
        }
        // `0` is the character after `/`, and no name begins with one above `~`.
        let (from, to) = match folder {
            "" => (String::new(), "\u{7f}".to_owned()),
            folder => (format!("{folder}/"), format!("{folder}0")),
        };
        let statement =
            "SELECT name FROM calve_checkpoints WHERE name > $1 AND name < $2 ORDER BY name";
        let found: Result<Vec<String>, sqlx::Error> = on!(self.pool, pool => sqlx::query_scalar(statement)
            .bind(&from)
            .bind(&to)
            .fetch_all(pool)
            .await);
        if self.is_empty(&found) {
            return Ok(Vec::new());
        }
        let names = found.map_err(|e| self.error("list", folder, e))?;
        let below = names.iter().filter_map(|name| name.strip_prefix(&from));
        Ok(below.map(str::to_owned).collect())
    }

    fn error(&self, what: &str, name: &str, error: sqlx::Error) -> Error {
        let message = format!(
            "checkpoint store: cannot {what}: store={} name={name}",
            self.shown
        );
        match code(&error).as_deref() {
            // Who we are, what we may, and which database; SQLite: cannot open, not a database.
            Some("28P01" | "28000" | "3D000" | "42501" | "14" | "26") => Error::config(message)
                .because(error)
                .hint("check user, password, database and permissions of `checkpoint.sql`"),
            Some("5" | "6") => Error::unavailable(message).because(error).hint(
                "another process holds the lock of the file, or was stopped inside a transaction: \
                 find it (`fuser -v FILE`), and let it go on or end it",
            ),
            _ => Error::unavailable(message).because(error),
        }
    }
}

fn postgres(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(PATIENCE)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // A database may be set up to answer before its log is on disk.
                sqlx::query("SET synchronous_commit TO on")
                    .execute(connection)
                    .await
                    .map(drop)
            })
        })
        .connect_lazy_with(options.application_name("calve"))
}

/// The database's own code: an SQLSTATE, or SQLite's primary result code.
fn code(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?.into_owned();
    match code.parse::<u32>() {
        Ok(extended) if code.len() < 5 => Some((extended & 0xff).to_string()),
        _ => Some(code),
    }
}

#[async_trait]
impl RecordStore for SqlRecords {
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        self.lay_out().await?;
        let statement = "INSERT INTO calve_checkpoints (name, content) VALUES ($1, $2) \
                         ON CONFLICT (name) DO NOTHING";
        let inserted = on!(self.pool, pool => sqlx::query(statement)
            .bind(name)
            .bind(bytes)
            .execute(pool)
            .await
            .map(|done| done.rows_affected()));
        match inserted.map_err(|e| self.error("create", name, e))? {
            0 => Ok(Created::Exists),
            _ => Ok(Created::Yes),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if self.is_absent() {
            return Ok(None);
        }
        let statement = "SELECT content FROM calve_checkpoints WHERE name = $1";
        let found = on!(self.pool, pool => sqlx::query_scalar(statement)
            .bind(name)
            .fetch_optional(pool)
            .await);
        if self.is_empty(&found) {
            return Ok(None);
        }
        found.map_err(|e| self.error("read", name, e))
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.lay_out().await?;
        let statement = "INSERT INTO calve_checkpoints (name, content) VALUES ($1, $2) \
                         ON CONFLICT (name) DO UPDATE SET content = excluded.content";
        on!(self.pool, pool => sqlx::query(statement)
            .bind(name)
            .bind(bytes)
            .execute(pool)
            .await
            .map(drop))
        .map_err(|e| self.error("write", name, e))
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let names = self.below(folder).await?;
        Ok(names.into_iter().filter(|n| !n.contains('/')).collect())
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let names = self.below(folder).await?;
        let mut folders: Vec<String> = names
            .iter()
            .filter_map(|name| name.split_once('/'))
            .filter(|(folder, _)| !folder.starts_with('.'))
            .map(|(folder, _)| folder.to_owned())
            .collect();
        folders.dedup();
        Ok(folders)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        if self.is_absent() {
            return Ok(());
        }
        let statement = "DELETE FROM calve_checkpoints WHERE name = $1";
        let deleted = on!(self.pool, pool => sqlx::query(statement)
            .bind(name)
            .execute(pool)
            .await
            .map(drop));
        if self.is_empty(&deleted) {
            return Ok(());
        }
        deleted.map_err(|e| self.error("delete", name, e))
    }

    fn location(&self) -> String {
        self.shown.clone()
    }
}

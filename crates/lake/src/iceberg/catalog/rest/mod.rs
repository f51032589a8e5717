//! A catalog behind a REST server, by Iceberg's REST protocol. The server holds the metadata: it is
//! given requirements and updates, and answers with what the table is then.
//!
//! Invariant: a commit requires that the table's main branch is at the snapshot that it was planned
//! against, so that of several tries and writers at most one is made, however late a request arrives.
//! An answer that does not come, or leaves it open, is [`Swapped::Unknown`]: whoever asked looks.

mod auth;
mod http;
mod lent;
mod server;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use calve_engine::{
    error::{Error, ErrorKind, Result},
    stores::Stores,
};
use iceberg::{
    NamespaceIdent, TableIdent, TableRequirement, TableUpdate,
    spec::{FormatVersion, MAIN_BRANCH, TableMetadata},
};
use iceberg_catalog_rest::{
    CommitTableRequest, CommitTableResponse, CreateNamespaceRequest, CreateTableRequest,
    ListNamespaceResponse, ListTablesResponse, LoadTableResult,
};
use parking_lot::Mutex;
use reqwest::Method;

use self::{http::Ask, lent::Lent, server::Server};
use super::{
    super::{
        access::FileAccess,
        config::{RestConfig, TableName},
    },
    Change, Loaded, Swapped,
};

/// A catalog behind a REST server.
pub(crate) struct RestCatalog {
    server: Arc<Server>,
    stores: Stores,
    /// What is lent for each table, and its files.
    tables: Mutex<HashMap<TableName, (Arc<Lent>, FileAccess)>>,
}

impl fmt::Debug for RestCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RestCatalog")
    }
}

impl RestCatalog {
    /// Asks the server how it wants to be asked.
    ///
    /// # Errors
    /// `Config` for a wrong URL or credentials, `Unavailable` when it does not answer.
    pub(super) async fn connect(
        config: &RestConfig,
        warehouse: Option<&str>,
        stores: Stores,
    ) -> Result<Self> {
        let server = Server::connect(config, warehouse, &stores).await?;
        Ok(Self {
            server: Arc::new(server),
            stores,
            tables: Mutex::default(),
        })
    }

    fn lent(&self, table: &TableName) -> (Arc<Lent>, FileAccess) {
        let mut tables = self.tables.lock();
        let known = tables.entry(table.clone()).or_insert_with(|| {
            let lent = Arc::new(Lent::new(Arc::clone(&self.server), table.clone()));
            let stores = self.stores.with_vendor(Arc::clone(&lent) as _);
            (lent, FileAccess::new(stores))
        });
        (Arc::clone(&known.0), known.1.clone())
    }

    /// Reads and writes a table's files, with what the server lends for them. Stores are opened with
    /// the first file, so the table is to be loaded before.
    pub(super) fn access(&self, table: &TableName) -> FileAccess {
        self.lent(table).1
    }

    fn take(&self, table: &TableName, result: LoadTableResult) -> Result<Loaded> {
        let location = result.metadata_location.ok_or_else(|| {
            Error::corrupt(format!(
                "the catalog does not say where the table's metadata is: table={table}"
            ))
        })?;
        let lent = self.lent(table).0;
        lent.take(result.config, result.storage_credentials);
        Ok(Loaded {
            location,
            metadata: Arc::new(result.metadata),
        })
    }

    /// A table as it is now; none: there is none.
    pub(super) async fn load(&self, table: &TableName) -> Result<Option<Loaded>> {
        let result = self.server.get(table).await?;
        result.map(|result| self.take(table, result)).transpose()
    }

    /// Creates a table like the one that is planned, wherever the server puts it; its namespace too. The
    /// one that somebody else was faster with is as good, to be checked.
    pub(super) async fn create_table(
        &self,
        table: &TableName,
        planned: &TableMetadata,
    ) -> Result<Loaded> {
        let version = match planned.format_version() {
            FormatVersion::V1 => "1",
            FormatVersion::V2 => "2",
            FormatVersion::V3 => "3",
        };
        let mut properties = planned.properties().clone();
        properties.insert("format-version".to_owned(), version.to_owned());
        let order = planned.default_sort_order();
        let request = CreateTableRequest {
            name: table.name.clone(),
            location: None,
            schema: planned.current_schema().as_ref().clone(),
            partition_spec: Some(
                planned
                    .default_partition_spec()
                    .as_ref()
                    .clone()
                    .into_unbound(),
            ),
            write_order: (!order.is_unsorted()).then(|| order.as_ref().clone()),
            stage_create: None,
            properties,
        };
        let what = format!("cannot create table={table}");
        let ask = Ask {
            method: Method::POST,
            url: self
                .server
                .url(&["namespaces", &self.server.namespace(table), "tables"])?,
            body: Some(json(&request)?),
            repeat: false,
            delegate: self.server.delegate,
            what: &what,
        };
        let mut made_namespace = false;
        loop {
            let error = match self.server.http.ask(&ask).await {
                Ok(answer) if answer.is_success() => {
                    // Some answer so for a table that was there, too.
                    return self.take(table, parsed(&answer.body, &what)?);
                }
                Ok(answer) if answer.status == 404 && !made_namespace => {
                    made_namespace = true;
                    self.create_namespace(table).await?;
                    continue;
                }
                Ok(answer) => self.server.http.refused(&what, &answer),
                Err(error) => error,
            };
            // Somebody else was faster, or the answer was lost: then it is there.
            let open = matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable);
            return match self.load(table).await {
                Ok(Some(loaded)) if open => Ok(loaded),
                _ => Err(error),
            };
        }
    }

    /// Creates the levels of a table's namespace that are missing.
    async fn create_namespace(&self, table: &TableName) -> Result<()> {
        let levels = levels(table);
        for depth in 1..=levels.len() {
            let what = format!("cannot create namespace={}", levels[..depth].join("."));
            let request = CreateNamespaceRequest {
                namespace: namespace(&levels[..depth])?,
                properties: HashMap::new(),
            };
            let ask = Ask {
                method: Method::POST,
                url: self.server.url(&["namespaces"])?,
                body: Some(json(&request)?),
                // Made before by ourselves is as good as made before by others.
                repeat: true,
                delegate: false,
                what: &what,
            };
            let answer = self.server.http.ask(&ask).await?;
            if !answer.is_success() && answer.status != 409 {
                return Err(self.server.http.refused(&what, &answer));
            }
        }
        Ok(())
    }

    /// One try to change a table.
    pub(super) async fn commit(&self, table: &TableName, change: &Change<'_>) -> Result<Swapped> {
        let base = &change.base.metadata;
        let mut requirements = vec![
            TableRequirement::UuidMatch { uuid: base.uuid() },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.to_owned(),
                snapshot_id: base.current_snapshot_id(),
            },
        ];
        let evolves = |update: &TableUpdate| matches!(update, TableUpdate::AddSchema { .. });
        if change.updates.iter().any(evolves) {
            // Others change a schema without a snapshot.
            requirements.push(TableRequirement::CurrentSchemaIdMatch {
                current_schema_id: base.current_schema_id(),
            });
            requirements.push(TableRequirement::LastAssignedFieldIdMatch {
                last_assigned_field_id: base.last_column_id(),
            });
        }
        let request = CommitTableRequest {
            identifier: Some(TableIdent::new(
                namespace(&levels(table))?,
                table.name.clone(),
            )),
            requirements,
            updates: change.updates.to_vec(),
        };
        let what = format!("cannot commit to table={table}");
        let ask = Ask {
            method: Method::POST,
            url: self.server.table_url(table)?,
            body: Some(json(&request)?),
            repeat: false,
            delegate: false,
            what: &what,
        };
        let answer = match self.server.http.ask(&ask).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, %table, "no answer to a commit; looking");
                return Ok(Swapped::Unknown);
            }
            Err(error) => return Err(error),
        };
        if answer.is_success() {
            // It is done, whatever the rest of the answer says.
            let response: Result<CommitTableResponse> = parsed(&answer.body, &what);
            return Ok(Swapped::Yes(match response {
                Ok(response) => Some(Loaded {
                    location: response.metadata_location,
                    metadata: Arc::new(response.metadata),
                }),
                Err(error) => {
                    tracing::debug!(%error, "the table is to be loaded again");
                    None
                }
            }));
        }
        let error = self.server.http.refused(&what, &answer);
        match answer.status {
            // Something on the way may have repeated the request, and this is the answer to the second.
            409 => self.look(table, change).await,
            // The table is gone; the next load says so.
            404 => Ok(Swapped::No { certain: false }),
            // Some servers refuse so what was planned against a state that is no more.
            400 | 422 => match self.load(table).await {
                Ok(Some(now)) if now.location != change.base.location => {
                    self.look(table, change).await
                }
                _ => Err(error),
            },
            500..=599 => {
                tracing::warn!(%error, %table, "no clear answer to a commit; looking");
                Ok(Swapped::Unknown)
            }
            _ => Err(error),
        }
    }

    /// Whether the snapshot of a change is in the table after all.
    async fn look(&self, table: &TableName, change: &Change<'_>) -> Result<Swapped> {
        let Some(snapshot) = change.snapshot else {
            return Ok(Swapped::No { certain: false });
        };
        match self.load(table).await {
            Ok(Some(now)) if now.metadata.snapshot_by_id(snapshot).is_some() => {
                Ok(Swapped::Yes(Some(now)))
            }
            Ok(_) => Ok(Swapped::No { certain: false }),
            Err(error) => {
                tracing::warn!(%error, %table, "cannot look at the table now");
                Ok(Swapped::Unknown)
            }
        }
    }

    /// All tables of all namespaces, by name.
    pub(super) async fn tables(&self) -> Result<Vec<TableName>> {
        let mut found = BTreeSet::new();
        for namespace in self.namespaces().await? {
            // A level with a dot cannot be said as `a.b`.
            if namespace.iter().any(|level| level.contains('.')) {
                continue;
            }
            let encoded = self.server.joined(&namespace);
            let mut page = None;
            loop {
                let what = "cannot list tables";
                let path = ["namespaces", &encoded, "tables"];
                let answer = self.server.read(&path, None, page.as_deref(), what).await?;
                let Some(answer) = answer else { break };
                let list: ListTablesResponse = parsed(&answer, what)?;
                found.extend(list.identifiers.into_iter().map(|ident| TableName {
                    namespace: namespace.join("."),
                    name: ident.name().to_owned(),
                }));
                page = next(page, list.next_page_token);
                if page.is_none() {
                    break;
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// All namespaces, each as its levels.
    async fn namespaces(&self) -> Result<BTreeSet<Vec<String>>> {
        let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
        let mut open: Vec<Vec<String>> = vec![Vec::new()];
        while let Some(parent) = open.pop() {
            let encoded = (!parent.is_empty()).then(|| self.server.joined(&parent));
            let mut page = None;
            loop {
                let what = "cannot list namespaces";
                let asked = self
                    .server
                    .read(&["namespaces"], encoded.as_deref(), page.as_deref(), what)
                    .await?;
                let Some(answer) = asked else { break };
                let list: ListNamespaceResponse = parsed(&answer, what)?;
                for namespace in list.namespaces {
                    let levels: Vec<String> = namespace.inner();
                    // Servers without nested namespaces answer as if nothing was asked for.
                    let below = levels.len() > parent.len() && levels.starts_with(&parent);
                    if below && found.insert(levels.clone()) {
                        open.push(levels);
                    }
                }
                page = next(page, list.next_page_token);
                if page.is_none() {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// The next page; none where there is none, or the server goes in a circle.
fn next(last: Option<String>, next: Option<String>) -> Option<String> {
    next.filter(|next| !next.is_empty() && last.as_ref() != Some(next))
}

/// The levels of a table's namespace.
fn levels(table: &TableName) -> Vec<String> {
    table.namespace.split('.').map(str::to_owned).collect()
}

fn namespace(levels: &[String]) -> Result<NamespaceIdent> {
    NamespaceIdent::from_vec(levels.to_vec())
        .map_err(|e| Error::internal("a namespace without a name").because(e))
}

fn json(request: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(request)
        .map_err(|e| Error::internal("cannot express a request to the catalog").because(e))
}

fn parsed<T: serde::de::DeserializeOwned>(body: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| {
        Error::corrupt(format!("{what}: the catalog's answer cannot be read"))
            .because(e)
            .hint("check that `uri` is that of an Iceberg REST catalog")
    })
}

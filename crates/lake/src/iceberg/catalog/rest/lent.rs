//! What a REST catalog lends for a table's files: the store's endpoint and region, and credentials that
//! end. They come with each load of the table, and are asked for again in time.

use std::{collections::HashMap, fmt, sync::Arc};

use async_trait::async_trait;
use calve_engine::{
    clock::now_ms,
    error::Result,
    stores::vended::{Vended, VendedCredential, Vendor},
};
use iceberg_catalog_rest::StorageCredential;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use super::{super::super::config::TableName, Server};

type Properties = HashMap<String, String>;

/// Credentials are asked for again so long before they end, or when a quarter of their time is left.
const BEFORE_END_MS: i64 = 5 * 60 * 1000;

/// What is lent for one table.
pub(super) struct Lent {
    server: Arc<Server>,
    table: TableName,
    now: RwLock<Loan>,
    asking: Mutex<()>,
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({})", self.table)
    }
}

#[derive(Clone, Default)]
struct Loan {
    /// For every place.
    config: Properties,
    /// For the places that begin with a prefix.
    places: Vec<StorageCredential>,
    /// When it was lent, milliseconds since 1970.
    since_ms: i64,
}

impl Loan {
    /// What is said of a location: by the longest prefix before what is said of all.
    fn of(&self, location: &str) -> Properties {
        let mut properties = self.config.clone();
        let place = self
            .places
            .iter()
            .filter(|place| location.starts_with(place.prefix.as_str()))
            .max_by_key(|place| place.prefix.len());
        properties.extend(place.map(|place| place.config.clone()).unwrap_or_default());
        properties
    }
}

impl Lent {
    pub(super) fn new(server: Arc<Server>, table: TableName) -> Self {
        let config = server.properties.clone();
        Self {
            server,
            table,
            now: RwLock::new(Loan {
                config,
                ..Loan::default()
            }),
            asking: Mutex::new(()),
        }
    }

    /// Takes what came with a load of the table.
    pub(super) fn take(&self, config: Properties, places: Option<Vec<StorageCredential>>) {
        let mut all = self.server.properties.clone();
        all.extend(config);
        *self.now.write() = Loan {
            config: all,
            places: places.unwrap_or_default(),
            since_ms: now_ms(),
        };
    }

    /// Whether the credentials for a location end soon, and whether they have ended.
    fn ends(&self, location: &str) -> (bool, bool) {
        let now = self.now.read();
        let Some(end) = expiry(location, &now.of(location)) else {
            return (false, false);
        };
        let left = end - now_ms();
        let early = BEFORE_END_MS.min((end - now.since_ms) / 4);
        (left <= early, left <= 0)
    }
}

#[async_trait]
impl Vendor for Lent {
    fn last(&self, location: &str) -> Option<Vended> {
        Some(vended(location, &self.now.read().of(location)))
    }

    async fn fresh(&self, location: &str) -> Result<Option<Vended>> {
        if self.ends(location).0 {
            let _one = self.asking.lock().await;
            // Somebody else may have asked meanwhile.
            let (soon, ended) = self.ends(location);
            if soon {
                match self.server.get(&self.table).await {
                    Ok(Some(loaded)) => self.take(loaded.config, loaded.storage_credentials),
                    Ok(None) => {}
                    Err(error) if ended => return Err(error),
                    Err(error) => {
                        tracing::warn!(%error, table = %self.table, "cannot renew credentials now");
                    }
                }
            }
        }
        Ok(self.last(location))
    }
}

/// A catalog's properties as options of a store, by the kind of store that the location is in.
fn vended(location: &str, properties: &Properties) -> Vended {
    let get = |name: &str| properties.get(name).filter(|v| !v.is_empty()).cloned();
    let mut options = Vec::new();
    let mut option = |name: &str, value: Option<String>| {
        options.extend(value.map(|value| (name.to_owned(), value)));
    };
    let credential = match location.split_once("://").map_or("", |(scheme, _)| scheme) {
        "s3" | "s3a" | "s3n" => {
            let endpoint = get("s3.endpoint");
            let plain = endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
            option("allow_http", plain.then(|| "true".to_owned()));
            option("endpoint", endpoint);
            option("region", get("s3.region").or_else(|| get("client.region")));
            let path_style = get("s3.path-style-access");
            option(
                "virtual_hosted_style_request",
                path_style.map(|value| (value != "true").to_string()),
            );
            get("s3.access-key-id")
                .zip(get("s3.secret-access-key"))
                .map(|(key, secret)| VendedCredential::Keys(key, secret, get("s3.session-token")))
        }
        "gs" => {
            option("base_url", get("gcs.service.host"));
            get("gcs.oauth2.token").map(VendedCredential::Bearer)
        }
        "abfs" | "abfss" | "az" | "adl" | "azure" | "wasb" | "wasbs" => {
            let account = account(location);
            option("account_name", account.map(str::to_owned));
            let signature = by_account(properties, "adls.sas-token.", account);
            let signature = signature.or_else(|| get("adls.sas-token"));
            let signature = signature.map(VendedCredential::Signature);
            signature.or_else(|| get("adls.token").map(VendedCredential::Bearer))
        }
        _ => None,
    };
    Vended {
        options,
        credential,
    }
}

/// When the credentials for a location end, in milliseconds since 1970.
fn expiry(location: &str, properties: &Properties) -> Option<i64> {
    let value = match location.split_once("://").map_or("", |(scheme, _)| scheme) {
        "s3" | "s3a" | "s3n" => properties.get("s3.session-token-expires-at-ms").cloned(),
        "gs" => properties.get("gcs.oauth2.token-expires-at").cloned(),
        _ => by_account(
            properties,
            "adls.sas-token-expires-at-ms.",
            account(location),
        ),
    };
    value?.parse().ok()
}

/// The account of a location in Azure: `abfss://container@account.host/…`.
fn account(location: &str) -> Option<&str> {
    let host = location.split_once("://")?.1.split('/').next()?;
    host.split_once('@')?.1.split('.').next()
}

/// A property whose name ends in the account, or in the account and its host.
fn by_account(properties: &Properties, prefix: &str, account: Option<&str>) -> Option<String> {
    let account = account?;
    let found = properties.iter().find(|(name, _)| {
        let rest = name.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.split('.').next() == Some(account))
    });
    found.map(|(_, value)| value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn properties_become_options_of_the_kind_of_store() {
        let s3 = properties(&[
            ("s3.access-key-id", "k"),
            ("s3.secret-access-key", "s"),
            ("s3.session-token", "t"),
            ("s3.endpoint", "http://h:1"),
            ("client.region", "eu"),
            ("s3.path-style-access", "true"),
            ("s3.session-token-expires-at-ms", "7"),
            ("gcs.oauth2.token", "g"),
        ]);
        let lent = vended("s3://b/t", &s3);
        assert_eq!(
            lent.credential,
            Some(VendedCredential::Keys(
                "k".into(),
                "s".into(),
                Some("t".into())
            ))
        );
        let shown: Vec<String> = lent
            .options
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        assert_eq!(
            shown.join(" "),
            "allow_http=true endpoint=http://h:1 region=eu virtual_hosted_style_request=false"
        );
        assert_eq!(expiry("s3://b/t", &s3), Some(7));
        assert_eq!(
            vended("gs://b/t", &s3).credential,
            Some(VendedCredential::Bearer("g".into()))
        );
        let azure = properties(&[
            ("adls.sas-token.acc.dfs.core.windows.net", "sv=1&sig=x"),
            ("adls.sas-token-expires-at-ms.acc", "9"),
        ]);
        let at = "abfss://c@acc.dfs.core.windows.net/t";
        assert_eq!(
            vended(at, &azure).credential,
            Some(VendedCredential::Signature("sv=1&sig=x".into()))
        );
        assert_eq!(expiry(at, &azure), Some(9));
        assert_eq!(vended("s3://b/t", &Properties::new()).credential, None);
    }

    #[test]
    fn the_longest_prefix_counts() {
        let place = |prefix: &str, key: &str| StorageCredential {
            prefix: prefix.to_owned(),
            config: properties(&[("s3.access-key-id", key)]),
        };
        let loan = Loan {
            config: properties(&[("s3.access-key-id", "all"), ("s3.region", "r")]),
            places: vec![place("s3://b", "b"), place("s3://b/t/data", "data")],
            since_ms: 0,
        };
        for (at, key) in [
            ("s3://b/t/data/x", "data"),
            ("s3://b/t/m", "b"),
            ("s3://c/t", "all"),
        ] {
            let found = loan.of(at);
            assert_eq!(found["s3.access-key-id"], key);
            assert_eq!(found["s3.region"], "r");
        }
    }
}

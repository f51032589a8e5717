//! A REST server as it wants to be asked: where, as whom, and with what it says of its stores.

use std::collections::HashMap;

use bytes::Bytes;
use calve_engine::{
    Secret,
    error::{Error, Result},
    stores::Stores,
};
use iceberg_catalog_rest::LoadTableResult;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde::Deserialize;
use url::Url;

use super::{
    super::super::config::{RestConfig, TableName},
    auth::{Auth, Grant, Tokens},
    http::{Ask, Http, client},
    levels, parsed,
};

/// What stands in a part of a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A server that was asked how it wants to be asked.
pub(super) struct Server {
    pub(super) http: Http,
    /// Up to and with `/v1`, and the prefix if there is one.
    base: String,
    /// Between the levels of a namespace, in a path.
    separator: String,
    /// Credentials for the stores of tables are asked for.
    pub(super) delegate: bool,
    /// What holds for the stores of all tables.
    pub(super) properties: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    defaults: HashMap<String, String>,
    overrides: HashMap<String, String>,
}

impl Server {
    pub(super) async fn connect(
        config: &RestConfig,
        warehouse: Option<&str>,
        stores: &Stores,
    ) -> Result<Self> {
        let uri = base_of(&config.uri)?;
        let none = HashMap::new();
        let first = Http::new(
            client()?,
            auth(config, &uri, &none, stores)?,
            headers(config, &none),
        );
        let mut url = address(&format!("{uri}/v1/config"))?;
        if let Some(warehouse) = config.warehouse.as_deref().or(warehouse) {
            url.query_pairs_mut().append_pair("warehouse", warehouse);
        }
        let what = format!(
            "cannot ask the catalog: host={}",
            url.host_str().unwrap_or_default()
        );
        let ask = Ask {
            method: Method::GET,
            url,
            body: None,
            repeat: true,
            delegate: false,
            what: &what,
        };
        let answer = first.ask(&ask).await?;
        if !answer.is_success() {
            return Err(first.refused(&what, &answer));
        }
        let Settings {
            defaults,
            overrides,
        } = parsed(&answer.body, &what)?;
        // What the user says lies between: a server's overrides are its last word.
        let mut settings = defaults;
        if let Some(prefix) = &config.prefix {
            settings.insert("prefix".to_owned(), prefix.clone());
        }
        let other = overrides.get("uri").map(|uri| base_of(uri)).transpose()?;
        let moved = other.is_some_and(|other| other != uri);
        let mut uri = uri;
        if moved && let Some(to) = overrides.get("uri") {
            uri = base_of(to)?;
        }
        settings.extend(overrides);
        let changed = moved
            || ["token", "credential", "oauth2-server-uri", "scope"]
                .iter()
                .any(|key| settings.contains_key(*key))
            || settings.keys().any(|key| key.starts_with("header."));
        let http = if changed {
            Http::new(
                client()?,
                auth(config, &uri, &settings, stores)?,
                headers(config, &settings),
            )
        } else {
            first
        };
        let prefix = settings.get("prefix").map(|p| p.trim_matches('/'));
        let base = match prefix.filter(|prefix| !prefix.is_empty()) {
            Some(prefix) => format!("{uri}/v1/{prefix}"),
            None => format!("{uri}/v1"),
        };
        let separator = settings.get("namespace-separator").cloned();
        let properties = if config.vended_credentials {
            settings
        } else {
            HashMap::new()
        };
        Ok(Self {
            http,
            base,
            separator: separator.unwrap_or_else(|| "%1F".to_owned()),
            delegate: config.vended_credentials,
            properties,
        })
    }

    /// The URL of a path, whose parts are encoded already.
    pub(super) fn url(&self, parts: &[&str]) -> Result<Url> {
        address(&format!("{}/{}", self.base, parts.join("/")))
    }

    /// The levels of a namespace as a part of a path.
    pub(super) fn joined(&self, levels: &[String]) -> String {
        let encoded: Vec<String> = levels.iter().map(|level| encode(level)).collect();
        // A separator may be given plain or encoded.
        let separator = if self.separator.starts_with('%') {
            self.separator.clone()
        } else {
            encode(&self.separator)
        };
        encoded.join(&separator)
    }

    pub(super) fn namespace(&self, table: &TableName) -> String {
        self.joined(&levels(table))
    }

    pub(super) fn table_url(&self, table: &TableName) -> Result<Url> {
        let (namespace, name) = (self.namespace(table), encode(&table.name));
        self.url(&["namespaces", &namespace, "tables", &name])
    }

    /// A table as the server has it; none: there is none.
    pub(super) async fn get(&self, table: &TableName) -> Result<Option<LoadTableResult>> {
        let what = format!("cannot load table={table}");
        let ask = Ask {
            method: Method::GET,
            url: self.table_url(table)?,
            body: None,
            repeat: true,
            delegate: self.delegate,
            what: &what,
        };
        let answer = self.http.ask(&ask).await?;
        if answer.is_success() {
            let mut result: LoadTableResult = parsed(&answer.body, &what)?;
            if !self.delegate {
                result.config.clear();
                result.storage_credentials = None;
            }
            return Ok(Some(result));
        }
        // A wrong warehouse or prefix is no missing table.
        let missing = answer.is_refusal("NoSuchTableException")
            || answer.is_refusal("NoSuchNamespaceException");
        if answer.status == 404 && missing {
            return Ok(None);
        }
        Err(self.http.refused(&what, &answer))
    }

    /// A page of a list; none: what it is of is not there.
    pub(super) async fn read(
        &self,
        path: &[&str],
        parent: Option<&str>,
        page: Option<&str>,
        what: &str,
    ) -> Result<Option<Bytes>> {
        let mut url = self.url(path)?;
        let mut query = Vec::new();
        query.extend(parent.map(|parent| format!("parent={parent}")));
        query.extend(page.map(|page| format!("pageToken={}", encode(page))));
        if !query.is_empty() {
            url.set_query(Some(&query.join("&")));
        }
        let ask = Ask {
            method: Method::GET,
            url,
            body: None,
            repeat: true,
            delegate: false,
            what,
        };
        let answer = self.http.ask(&ask).await?;
        match answer.status {
            200..=299 => Ok(Some(answer.body)),
            404 if answer.is_refusal("NoSuchNamespaceException") => Ok(None),
            _ => Err(self.http.refused(what, &answer)),
        }
    }
}

fn encode(part: &str) -> String {
    utf8_percent_encode(part, PLAIN).to_string()
}

fn address(url: &str) -> Result<Url> {
    let wrong = || {
        Error::config("`catalog.rest.uri` is not the URL of a server")
            .hint("write for example `uri: https://catalog.example.com`")
    };
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    match parsed.scheme() {
        "http" | "https" if parsed.has_host() => Ok(parsed),
        _ => Err(wrong()),
    }
}

/// A server's URL without what this module puts behind it.
fn base_of(uri: &str) -> Result<String> {
    let plain = address(uri)?;
    if !plain.username().is_empty() || plain.password().is_some() || plain.query().is_some() {
        return Err(
            Error::config("`catalog.rest.uri` holds a user, a password or a query")
                .hint("write `token` or `credential` beside it"),
        );
    }
    let uri = uri.trim_end_matches('/');
    Ok(uri.strip_suffix("/v1").unwrap_or(uri).to_owned())
}

fn headers(config: &RestConfig, settings: &HashMap<String, String>) -> Vec<(String, Secret)> {
    let said = settings.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix("header.")?;
        Some((name.to_owned(), Secret::new(value)))
    });
    let own = config.headers.iter().map(|(n, v)| (n.clone(), v.clone()));
    own.chain(said).collect()
}

/// How to authorise requests, by what the user says and what the server has said.
fn auth(
    config: &RestConfig,
    uri: &str,
    settings: &HashMap<String, String>,
    stores: &Stores,
) -> Result<Auth> {
    if let Some(sigv4) = &config.sigv4 {
        let own = [
            ("access_key_id", &sigv4.access_key_id),
            ("secret_access_key", &sigv4.secret_access_key),
            ("session_token", &sigv4.session_token),
        ];
        let own = own.iter().filter_map(|(name, value)| {
            let value = value.as_ref()?.expose();
            Some(((*name).to_owned(), value.to_owned()))
        });
        let signer = stores.signer(sigv4.region.as_deref(), &sigv4.service, own.collect())?;
        return Ok(Auth::Signed(signer));
    }
    let said = |key: &str| settings.get(key).map(Secret::new);
    let token = said("token").or_else(|| config.token.clone());
    let credential = said("credential").or_else(|| config.credential.clone());
    let grant = match credential {
        None => None,
        Some(credential) => {
            let server = settings
                .get("oauth2-server-uri")
                .or(config.oauth2_server_uri.as_ref());
            let server = match server {
                Some(server) if server.contains("://") => address(server)?,
                Some(path) => address(&format!("{uri}/{}", path.trim_start_matches('/')))?,
                None => address(&format!("{uri}/v1/oauth/tokens"))?,
            };
            let scope = settings.get("scope").or(config.scope.as_ref());
            Some(Grant {
                server,
                credential,
                scope: scope.map_or("catalog", String::as_str).to_owned(),
            })
        }
    };
    if token.is_none() && grant.is_none() {
        return Ok(Auth::Nobody);
    }
    Ok(Auth::Token(Tokens::new(client()?, token, grant)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_without_what_is_put_behind_it() {
        for (uri, base) in [
            ("https://h/", "https://h"),
            ("https://h:1/iceberg/v1/", "https://h:1/iceberg"),
            ("http://h/api/catalog", "http://h/api/catalog"),
        ] {
            assert_eq!(base_of(uri).expect(uri), base);
        }
        for uri in ["h:1", "ftp://h", "https://", "s3://b"] {
            assert!(base_of(uri).is_err(), "{uri}");
        }
        let error = base_of("https://me:SEEN@h").expect_err("a password");
        assert!(!format!("{error:?}").contains("SEEN"), "{error:?}");
    }
}

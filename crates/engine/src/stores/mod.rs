//! Object stores: the one place that opens a URL (`s3://`, `gs://`, `az://`, `http(s)://`,
//! `memory://`) as one, for the file source, checkpoints, Parquet tables and rejects.
//!
//! Settings come as values: those of the environment, read by the binary, and those of the pipeline
//! file's `stores`. Nothing here reads the environment. Invariant: no error and no Debug output
//! holds a secret. Start with [`Stores::open`]; [`upload`] writes large objects part by part.

mod folder;
mod http;
pub mod options;
mod profile;
pub mod sign;
pub mod upload;
mod uploads;
pub mod vended;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
};

use object_store::{
    ClientConfigKey, ObjectStore, ObjectStoreScheme, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, http::HttpBuilder,
    memory::InMemory, multipart::MultipartStore, path::Path,
};
use parking_lot::Mutex;
use url::Url;

pub use folder::{Found, ObjectFolder};
use options::Kind;
pub use uploads::OpenUpload;
use vended::{Credential, Vendor};

use crate::error::{Error, Result};

/// A prefix of URLs and the options of the store behind them, by the names of [`options::names`].
pub type Named = (String, Pairs);

/// Options or variables: names and values.
type Pairs = Vec<(String, String)>;

/// What is needed to open URLs.
#[derive(Clone, Default)]
pub struct Stores {
    environment: Arc<Pairs>,
    /// What AWS's own files say, read when a store of that kind is opened first.
    profile: Arc<OnceLock<Result<Pairs, String>>>,
    named: Arc<Vec<Named>>,
    vendor: Option<Arc<dyn Vendor>>,
    /// The roots of stores that [`Stores::at`] has opened, by location and the options that it took.
    roots: Arc<Mutex<HashMap<(String, String), ObjectFolder>>>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefixes = self.named.iter().map(|(prefix, _)| prefix);
        f.debug_list().entries(prefixes).finish()
    }
}

/// Whether a location is a URL of an object store, and not a local path or a `file://` URL.
pub fn is_remote(location: &str) -> bool {
    location.contains("://") && !location.starts_with("file://")
}

/// A URL without user, password and query, for messages. In Azure's `abfss://container@host/…` what stands there
/// is no user.
pub fn shown(url: &str) -> String {
    let text = url.split(['?', '#']).next().unwrap_or_default();
    match (text.find("://"), text.find('@')) {
        (Some(scheme), Some(at))
            if at > scheme
                && !text[scheme + 3..at].contains('/')
                && (!text.starts_with("abfs") || text[scheme + 3..at].contains(':')) =>
        {
            format!("{}{}", &text[..scheme + 3], &text[at + 1..])
        }
        _ => text.to_owned(),
    }
}

impl Stores {
    /// `environment`: variables, of which those that begin with `AWS_`, `GOOGLE_` or `AZURE_` are
    /// used. `named`: options of the stores whose URLs begin with a prefix; the longest prefix wins.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>, named: Vec<Named>) -> Self {
        let ours = |name: &str| {
            ["AWS_", "GOOGLE_", "AZURE_"]
                .iter()
                .any(|p| name.starts_with(p))
                || name == profile::HOME
        };
        let environment = environment.into_iter().filter(|(name, _)| ours(name));
        Self {
            environment: Arc::new(environment.collect()),
            named: Arc::new(named),
            ..Self::default()
        }
    }

    /// The same stores with connections of its own: those belong to the runtime that made them.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            roots: Arc::default(),
            ..self.clone()
        }
    }

    /// The same stores with options and credentials that somebody hands out for a while. They come
    /// before those of the environment, and behind those that were named.
    #[must_use]
    pub fn with_vendor(&self, vendor: Arc<dyn Vendor>) -> Self {
        Self {
            vendor: Some(vendor),
            ..self.apart()
        }
    }

    /// The place of a location whose path is taken character for character, as tables take theirs: what
    /// looks like an escape in a URL is a part of the name. The store is opened once for all of its
    /// locations.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn at(&self, location: &str) -> Result<ObjectFolder> {
        let (root, name) = split(location).ok_or_else(|| {
            Error::config(format!(
                "not a location in an object store: location={}",
                shown(location)
            ))
        })?;
        let prefix = self.entry(location).map_or("", |(prefix, _)| prefix);
        let key = (root.to_owned(), prefix.to_owned());
        let opened = self.roots.lock().get(&key).cloned();
        let folder = if let Some(folder) = opened {
            folder
        } else {
            let folder = self.open_with(root, location)?;
            self.roots.lock().insert(key, folder.clone());
            folder
        };
        if name.is_empty() {
            Ok(folder)
        } else {
            folder.sub(name)
        }
    }

    /// Opens a URL: its store, and the place in there that it names. Reaches no server yet.
    ///
    /// # Errors
    /// `Config` for what is no URL, or of an unknown scheme, and for options that do not fit.
    pub fn open(&self, url: &str) -> Result<ObjectFolder> {
        self.open_with(url, url)
    }

    /// Opens a URL with the options for a location in there.
    fn open_with(&self, url: &str, within: &str) -> Result<ObjectFolder> {
        let location = shown(url);
        let parsed = Url::parse(url)
            .map_err(|e| Error::config(format!("not a URL: url={location}")).because(e))?;
        let (scheme, root) = ObjectStoreScheme::parse(&parsed).map_err(|_| {
            Error::config(format!("not a URL of an object store: url={location}"))
                .hint("s3://, gs://, az:// and https:// are known")
        })?;
        let root = Path::parse(root)
            .map_err(|e| Error::config(format!("not a path: url={location}")).because(e))?;
        let kind = Kind::of(&scheme);
        let (options, credential) = self.options(within, kind)?;
        let mut secrets = options::secrets(&options);
        secrets.extend(parsed.password().map(str::to_owned));
        secrets.extend(parsed.query().map(str::to_owned));
        let opened = Opened::new(&parsed, &scheme, options, credential).map_err(|error| {
            let text = redact(&error, &secrets);
            Error::config(format!("cannot use a store: url={location}")).because(text)
        })?;
        Ok(ObjectFolder::new(opened, root, location, secrets))
    }

    /// The options for a URL, and who hands out its credentials, if somebody does. Who names
    /// credentials of its own takes none of those before it: the environment, the vendor, an entry.
    fn options(&self, url: &str, kind: Kind) -> Result<(Pairs, Option<Credential>)> {
        let named = self.entry(url).map_or(&[][..], |(_, options)| options);
        let own = |options: &[(String, String)]| {
            options
                .iter()
                .any(|(name, _)| options::is_credential(kind, name))
        };
        let vended = self.vendor.as_ref().and_then(|vendor| vendor.last(url));
        let handed_out = vended.as_ref().is_some_and(|v| v.credential.is_some()) && !own(named);
        let credential = handed_out
            .then(|| self.vendor.clone())
            .flatten()
            .map(|vendor| Credential::new(vendor, url));
        let own_credentials = own(named) || handed_out;
        let environment = self.environment(kind)?;
        let environment = environment
            .into_iter()
            .filter(|(name, _)| !(own_credentials && options::is_credential(kind, name)));
        let vended = vended.map(|vended| vended.options).unwrap_or_default();
        let options = environment.chain(vended).chain(named.iter().cloned());
        Ok((options.collect(), credential))
    }

    /// The environment's options for a kind of store; for S3 also those of a profile, where the
    /// environment itself does not say who we are.
    fn environment(&self, kind: Kind) -> Result<Pairs> {
        let lower = self.environment.iter();
        let mut found: Pairs = lower
            .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
            .filter(|(name, _)| options::of_environment(kind, name))
            .collect();
        if kind == Kind::S3 {
            let profile = self
                .profile
                .get_or_init(|| profile::resolve(&self.environment));
            let profile = profile.as_ref().map_err(|why| {
                Error::config(format!("cannot use a profile of AWS: {why}"))
                    .hint("check AWS_PROFILE, ~/.aws/credentials and ~/.aws/config")
            })?;
            // What the environment says of the same comes later, and counts.
            found = profile.iter().cloned().chain(found).collect();
        }
        Ok(found)
    }

    /// The entry for a URL: of those whose prefix it begins with, the longest.
    fn entry(&self, url: &str) -> Option<(&str, &[(String, String)])> {
        let begins = |prefix: &str| {
            url.strip_prefix(prefix).is_some_and(|rest| {
                prefix.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?'])
            })
        };
        self.named
            .iter()
            .filter(|(prefix, _)| begins(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(prefix, options)| (prefix.as_str(), options.as_slice()))
    }
}

/// A location's store and the name in there.
fn split(location: &str) -> Option<(&str, &str)> {
    let host = location.find("://")? + 3;
    let end = location[host..].find('/').map(|at| host + at);
    let (root, name) = location.split_at(end.unwrap_or(location.len()));
    (root.len() > host).then(|| (root, name.trim_matches('/')))
}

/// An error with its causes as text, without secrets and on one line.
fn redact(error: &dyn std::error::Error, secrets: &[String]) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors of the store repeat their cause.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    for secret in secrets.iter().filter(|s| s.len() >= 4) {
        text = text.replace(secret.as_str(), "***");
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A store, by all the traits that are needed of it.
struct Opened {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    lister: Option<Arc<uploads::S3Lister>>,
    /// Objects are replaced as a whole, and have an ETag that changes with their content.
    whole: bool,
}

impl Opened {
    /// A store of whole objects with multipart uploads, of which those that are open cannot be listed.
    fn of(store: impl ObjectStore + MultipartStore) -> Self {
        let store = Arc::new(store);
        Self {
            multipart: Some(store.clone()),
            store,
            lister: None,
            whole: true,
        }
    }

    fn new(
        url: &Url,
        scheme: &ObjectStoreScheme,
        options: Pairs,
        credential: Option<Credential>,
    ) -> object_store::Result<Self> {
        // Together about half a minute without an answer; above it, what fails is tried again by the
        // engine, or ends the run.
        let retry = || RetryConfig {
            max_retries: 8,
            ..RetryConfig::default()
        };
        macro_rules! configured {
            ($builder:expr) => {
                options
                    .into_iter()
                    .fold($builder, |builder, (name, value)| match name.parse() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    })
            };
        }
        Ok(match scheme {
            ObjectStoreScheme::AmazonS3 => {
                let mut builder = configured!(
                    AmazonS3Builder::new()
                        .with_url(url.as_str())
                        .with_retry(retry())
                );
                if let Some(credential) = credential {
                    builder = builder.with_credentials(Arc::new(vended::Aws(credential)));
                }
                let lister = uploads::S3Lister::new(&builder)?;
                let store = Arc::new(builder.build()?);
                Self {
                    lister: Some(Arc::new(lister.with(Arc::clone(&store)))),
                    multipart: Some(store.clone()),
                    store,
                    whole: true,
                }
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let mut builder = configured!(
                    GoogleCloudStorageBuilder::new()
                        .with_url(url.as_str())
                        .with_retry(retry())
                );
                if let Some(credential) = credential {
                    builder = builder.with_credentials(Arc::new(vended::Gcp(credential)));
                }
                Self::of(builder.build()?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let mut builder = configured!(
                    MicrosoftAzureBuilder::new()
                        .with_url(url.as_str())
                        .with_retry(retry())
                );
                if let Some(credential) = credential {
                    builder = builder.with_credentials(Arc::new(vended::Azure(credential)));
                }
                Self::of(builder.build()?)
            }
            ObjectStoreScheme::Http => {
                let builder = HttpBuilder::new()
                    .with_retry(retry())
                    .with_url(&url[..url::Position::BeforePath])
                    .with_http_connector(http::WithQuery::new(url.query()))
                    .with_config(ClientConfigKey::AllowHttp, "true");
                Self {
                    store: Arc::new(configured!(builder).build()?),
                    multipart: None,
                    lister: None,
                    whole: false,
                }
            }
            ObjectStoreScheme::Memory => Self::of(InMemory::new()),
            other => {
                return Err(object_store::Error::NotSupported {
                    source: format!("not an object store: {other:?}").into(),
                });
            }
        })
    }
}

#[cfg(test)]
mod tests;

//! Options and credentials that somebody hands out for a while, such as a catalog for its tables.
//!
//! Options (endpoint, region) are taken when a store is opened; credentials are asked for with each
//! request, since they end: who hands them out gets new ones in time.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use object_store::{
    CredentialProvider, Error as StoreError, aws::AwsCredential, azure::AzureCredential,
    gcp::GcpCredential,
};

use crate::error::Result;

/// What is handed out for a place.
#[derive(Clone, Default)]
pub struct Vended {
    /// Options by the names of [`super::options::names`](super::options::Kind::names), without
    /// credentials.
    pub options: Vec<(String, String)>,
    /// Who we are there.
    pub credential: Option<VendedCredential>,
}

/// Who we are. Debug shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub enum VendedCredential {
    /// For S3: access key, secret key, session token.
    Keys(String, String, Option<String>),
    /// For Google and Azure: a bearer token.
    Bearer(String),
    /// For Azure: a shared access signature, as a query.
    Signature(String),
}

impl fmt::Debug for VendedCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Vended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vended")
    }
}

/// Hands out options and credentials.
#[async_trait]
pub trait Vendor: Send + Sync {
    /// What it has for a location; none: nothing.
    fn last(&self, location: &str) -> Option<Vended>;

    /// The same with credentials that hold for a while yet.
    ///
    /// # Errors
    /// When it has to ask for new ones and gets none.
    async fn fresh(&self, location: &str) -> Result<Option<Vended>>;
}

/// The credentials of a place, from who hands them out.
#[derive(Clone)]
pub(super) struct Credential {
    vendor: Arc<dyn Vendor>,
    location: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl Credential {
    pub(super) fn new(vendor: Arc<dyn Vendor>, location: &str) -> Self {
        Self {
            vendor,
            location: location.to_owned(),
        }
    }

    async fn now(&self) -> object_store::Result<VendedCredential> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Generic {
            store: "vended credentials",
            source,
        };
        let vended = self.vendor.fresh(&self.location).await;
        let vended = vended.map_err(|e| failed(Box::new(e)))?;
        vended
            .and_then(|vended| vended.credential)
            .ok_or_else(|| failed("none are handed out for this place any more".into()))
    }
}

fn other_kind() -> StoreError {
    StoreError::Generic {
        store: "vended credentials",
        source: "they are for another kind of store".into(),
    }
}

#[derive(Debug)]
pub(super) struct Aws(pub(super) Credential);

#[async_trait]
impl CredentialProvider for Aws {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        match self.0.now().await? {
            VendedCredential::Keys(key_id, secret_key, token) => Ok(Arc::new(AwsCredential {
                key_id,
                secret_key,
                token,
            })),
            VendedCredential::Bearer(_) | VendedCredential::Signature(_) => Err(other_kind()),
        }
    }
}

#[derive(Debug)]
pub(super) struct Gcp(pub(super) Credential);

#[async_trait]
impl CredentialProvider for Gcp {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        match self.0.now().await? {
            VendedCredential::Bearer(bearer) => Ok(Arc::new(GcpCredential { bearer })),
            VendedCredential::Keys(..) | VendedCredential::Signature(_) => Err(other_kind()),
        }
    }
}

#[derive(Debug)]
pub(super) struct Azure(pub(super) Credential);

#[async_trait]
impl CredentialProvider for Azure {
    type Credential = AzureCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AzureCredential>> {
        match self.0.now().await? {
            VendedCredential::Bearer(token) => Ok(Arc::new(AzureCredential::BearerToken(token))),
            VendedCredential::Signature(query) => {
                let query = query.trim_start_matches('?');
                let pairs = url::form_urlencoded::parse(query.as_bytes());
                let pairs = pairs.map(|(name, value)| (name.into_owned(), value.into_owned()));
                Ok(Arc::new(AzureCredential::SASToken(pairs.collect())))
            }
            VendedCredential::Keys(..) => Err(other_kind()),
        }
    }
}

//! Names of the options of each kind of store: those that the `object_store` crate knows.

use object_store::{
    ClientConfigKey, ObjectStoreScheme, aws::AmazonS3ConfigKey, azure::AzureConfigKey,
    gcp::GoogleConfigKey,
};

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Amazon S3, and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// Any other HTTP server.
    Http,
    /// Something without options.
    Other,
}

const CLIENT: &[&str] = &[
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "http1_only",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "timeout",
    "user_agent",
];

const S3: &[&str] = &[
    "access_key_id",
    "secret_access_key",
    "session_token",
    "token",
    "region",
    "endpoint",
    "endpoint_url",
    "virtual_hosted_style_request",
    "s3_express",
    "unsigned_payload",
    "skip_signature",
    "checksum_algorithm",
    "metadata_endpoint",
    "imdsv1_fallback",
    "container_credentials_relative_uri",
    "container_credentials_full_uri",
    "container_authorization_token_file",
    "web_identity_token_file",
    "role_arn",
    "role_session_name",
    "endpoint_url_sts",
    "conditional_put",
    "disable_tagging",
    "request_payer",
    "server_side_encryption",
    "sse_kms_key_id",
    "sse_bucket_key_enabled",
    "sse_customer_key_base64",
];

const GCS: &[&str] = &[
    "service_account",
    "service_account_path",
    "service_account_key",
    "application_credentials",
    "base_url",
    "skip_signature",
];

const AZURE: &[&str] = &[
    "account_name",
    "account_key",
    "access_key",
    "client_id",
    "client_secret",
    "tenant_id",
    "authority_id",
    "authority_host",
    "sas_key",
    "sas_token",
    "bearer_token",
    "token",
    "use_emulator",
    "endpoint",
    "msi_endpoint",
    "object_id",
    "msi_resource_id",
    "federated_token_file",
    "use_fabric_endpoint",
    "use_azure_cli",
    "skip_signature",
    "container_name",
    "disable_tagging",
];

/// Parts of the names of options that say who we are.
const CREDENTIALS: &[&str] = &[
    "access_key",
    "account_key",
    "master_key",
    "token",
    "secret",
    "service_account",
    "application_credentials",
    "sas_key",
    "client_id",
    "tenant_id",
    "authority_id",
    "role_arn",
    "role_session_name",
    "container_credentials",
    "container_authorization",
    "skip_signature",
];

/// Of those, the values that must not be seen. Other values are names of files, or known anyway.
const SECRETS: &[&str] = &[
    "access_key",
    "account_key",
    "master_key",
    "token",
    "secret",
    "service_account_key",
    "sas_key",
    "sse_customer_key",
    "proxy_url",
];

impl Kind {
    pub(super) fn of(scheme: &ObjectStoreScheme) -> Self {
        match scheme {
            ObjectStoreScheme::AmazonS3 => Self::S3,
            ObjectStoreScheme::GoogleCloudStorage => Self::Gcs,
            ObjectStoreScheme::MicrosoftAzure => Self::Azure,
            ObjectStoreScheme::Http => Self::Http,
            _ => Self::Other,
        }
    }

    /// The kind of store that URLs with this prefix name; none when that cannot be said.
    pub fn of_prefix(prefix: &str) -> Option<Self> {
        // A prefix may be a scheme alone.
        let whole = if prefix.ends_with("://") {
            format!("{prefix}x/")
        } else {
            prefix.to_owned()
        };
        let url = url::Url::parse(&whole).ok()?;
        let (scheme, _) = ObjectStoreScheme::parse(&url).ok()?;
        match Self::of(&scheme) {
            Self::Other => None,
            kind => Some(kind),
        }
    }

    /// Whether a store of this kind has an option of this name, also by one of its other names.
    pub fn knows(self, name: &str) -> bool {
        match self {
            Self::S3 => name.parse::<AmazonS3ConfigKey>().is_ok(),
            Self::Gcs => name.parse::<GoogleConfigKey>().is_ok(),
            Self::Azure => name.parse::<AzureConfigKey>().is_ok(),
            Self::Http => name.parse::<ClientConfigKey>().is_ok(),
            Self::Other => false,
        }
    }

    /// The names of its options.
    pub fn names(self) -> Vec<&'static str> {
        let own = match self {
            Self::S3 => S3,
            Self::Gcs => GCS,
            Self::Azure => AZURE,
            Self::Http | Self::Other => &[],
        };
        own.iter().chain(CLIENT).copied().collect()
    }
}

/// Whether an environment variable, in small letters, speaks to a kind of store.
pub(super) fn of_environment(kind: Kind, name: &str) -> bool {
    name.starts_with(match kind {
        Kind::S3 => "aws_",
        Kind::Gcs => "google_",
        Kind::Azure => "azure_",
        Kind::Http | Kind::Other => return false,
    })
}

/// Whether an option says who we are.
pub(super) fn is_credential(kind: Kind, name: &str) -> bool {
    !matches!(kind, Kind::Http | Kind::Other) && CREDENTIALS.iter().any(|c| name.contains(c))
}

/// The values that no message may show.
pub(super) fn secrets(options: &[(String, String)]) -> Vec<String> {
    let secret = |name: &str| SECRETS.iter().any(|part| name.contains(part));
    let file = |name: &str| name.ends_with("_file");
    options
        .iter()
        .filter(|(name, value)| secret(name) && !file(name) && !value.is_empty())
        .map(|(_, value)| value.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_knows_every_name() {
        for kind in [Kind::S3, Kind::Gcs, Kind::Azure, Kind::Http] {
            for name in kind.names() {
                assert!(kind.knows(name), "{kind:?} {name}");
            }
        }
    }

    #[test]
    fn a_prefix_says_the_kind() {
        assert_eq!(Kind::of_prefix("s3://data"), Some(Kind::S3));
        assert_eq!(Kind::of_prefix("s3://"), Some(Kind::S3));
        assert_eq!(Kind::of_prefix("gs://b/c"), Some(Kind::Gcs));
        assert_eq!(Kind::of_prefix("az://c"), Some(Kind::Azure));
        assert_eq!(Kind::of_prefix("https://host"), Some(Kind::Http));
        assert_eq!(Kind::of_prefix("data"), None);
        assert_eq!(Kind::of_prefix("file:///x"), None);
    }
}

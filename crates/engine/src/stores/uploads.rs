//! Lists multipart uploads that were begun and not ended, which `object_store` cannot: one signed
//! request of the S3 protocol (ListMultipartUploads), page by page.

use std::{error::Error as StdError, sync::Arc};

use object_store::{
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer},
    client::{
        ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpRequest, HttpRequestBody,
        ReqwestConnector,
    },
    path::Path,
    signer::Signer,
};
use url::Url;

type Failure = Box<dyn StdError + Send + Sync>;

/// An upload that was begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    /// Path of the object in the store.
    pub path: String,
    /// Its id.
    pub id: String,
    /// When it was begun, milliseconds since 1970; none when the store does not say.
    pub begun_ms: Option<i64>,
}

/// Lists the uploads of one bucket.
pub(super) struct S3Lister {
    client: HttpClient,
    region: String,
    store: Option<Arc<AmazonS3>>,
}

impl S3Lister {
    pub(super) fn new(builder: &AmazonS3Builder) -> object_store::Result<Self> {
        let mut options = ClientOptions::new();
        for key in [
            ClientConfigKey::AllowHttp,
            ClientConfigKey::AllowInvalidCertificates,
            ClientConfigKey::ProxyUrl,
            ClientConfigKey::ProxyExcludes,
            ClientConfigKey::ProxyCaCertificate,
            ClientConfigKey::Timeout,
            ClientConfigKey::ConnectTimeout,
        ] {
            if let Some(value) = builder.get_config_value(&AmazonS3ConfigKey::Client(key)) {
                options = options.with_config(key, value);
            }
        }
        let region = builder
            .get_config_value(&AmazonS3ConfigKey::Region)
            .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::DefaultRegion));
        Ok(Self {
            client: ReqwestConnector::default().connect(&options)?,
            region: region.unwrap_or_else(|| "us-east-1".to_owned()),
            store: None,
        })
    }

    /// The same, for the store that was built.
    pub(super) fn with(mut self, store: Arc<AmazonS3>) -> Self {
        self.store = Some(store);
        self
    }

    /// All open uploads whose path lies below `root`.
    pub(super) async fn list(&self, root: &str) -> Result<Vec<OpenUpload>, Failure> {
        let Some(store) = &self.store else {
            return Ok(Vec::new());
        };
        let request = HttpRequest::new(HttpRequestBody::empty());
        // A signed link to the bucket itself tells where it is; the signature is not used.
        let minute = std::time::Duration::from_mins(1);
        let method = request.method().clone();
        let mut bucket = store.signed_url(method, &Path::default(), minute).await?;
        bucket.set_query(None);
        let prefix = if root.is_empty() {
            String::new()
        } else {
            format!("{root}/")
        };
        let mut found = Vec::new();
        let mut marker: Option<(String, String)> = None;
        loop {
            let mut url = bucket.clone();
            {
                let mut query = url.query_pairs_mut();
                if let Some((key, id)) = &marker {
                    query.append_pair("key-marker", key);
                    query.append_pair("prefix", &prefix);
                    query.append_pair("upload-id-marker", id);
                } else {
                    query.append_pair("prefix", &prefix);
                }
                query.append_pair("uploads", "");
            }
            let page = self.page(store, &url).await?;
            for upload in elements(&page, "Upload") {
                let text = |name| elements(upload, name).next().map(unescape);
                let (Some(path), Some(id)) = (text("Key"), text("UploadId")) else {
                    return Err("the store listed an upload without key or id".into());
                };
                // Some stores match prefixes otherwise than they say.
                if path.starts_with(&prefix) {
                    let begun = text("Initiated");
                    let begun = begun.and_then(|t| chrono::DateTime::parse_from_rfc3339(&t).ok());
                    let begun_ms = begun.map(|t| t.timestamp_millis());
                    found.push(OpenUpload { path, id, begun_ms });
                }
            }
            let text = |name| elements(&page, name).next().map(unescape);
            if text("IsTruncated").as_deref() != Some("true") {
                return Ok(found);
            }
            let next = text("NextKeyMarker").zip(text("NextUploadIdMarker"));
            if next.is_none() || next == marker {
                return Err("the store cut its list of uploads short".into());
            }
            marker = next;
        }
    }

    async fn page(&self, store: &AmazonS3, url: &Url) -> Result<String, Failure> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse()?;
        let credential = store.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        let response = self.client.execute(request).await?;
        let status = response.status();
        let body = response.into_body().bytes().await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            Ok(text)
        } else {
            Err(format!("status={status} {text}").into())
        }
    }
}

/// The insides of the elements of this name, none of which holds another of the same name.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&begin)?;
        let (inside, behind) = after.split_once(&end)?;
        rest = behind;
        Some(inside)
    })
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#34;", "\"")
        .replace("&apos;", "'")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_read_from_a_page() {
        let page = "<ListMultipartUploadsResult><KeyMarker></KeyMarker><IsTruncated>false</IsTruncated>\
                    <Upload><Key>a/b&amp;c.parquet</Key><UploadId>1</UploadId></Upload>\
                    <Upload><Key>d</Key><UploadId>2</UploadId></Upload></ListMultipartUploadsResult>";
        let keys = elements(page, "Upload").map(|u| elements(u, "Key").next().map(unescape));
        let keys: Vec<_> = keys.flatten().collect();
        assert_eq!(keys, ["a/b&c.parquet", "d"]);
        assert_eq!(elements(page, "IsTruncated").next(), Some("false"));
    }
}

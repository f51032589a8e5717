//! Signs requests to servers that ask for AWS's Signature Version 4, with the credentials that S3 would
//! be used with. The one that sends the request sends these headers as they are.

use std::fmt;

use object_store::{
    aws::{AmazonS3Builder, AwsAuthorizer, AwsCredentialProvider},
    client::{HttpRequest, HttpRequestBody},
};
use url::Url;

use super::{Stores, options::Kind, redact};
use crate::error::{Error, Result};

/// Who signs, and for what.
#[derive(Clone)]
pub struct Signer {
    credentials: AwsCredentialProvider,
    region: String,
    service: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} in {})", self.service, self.region)
    }
}

impl Stores {
    /// A signer of requests to `service`, with `own` options (access_key_id, secret_access_key,
    /// session_token) or else what the environment and its profiles say.
    ///
    /// # Errors
    /// `Config` when the profile or the options are of no use.
    pub fn signer(
        &self,
        region: Option<&str>,
        service: &str,
        own: Vec<(String, String)>,
    ) -> Result<Signer> {
        let mut options = if own.is_empty() {
            self.environment(Kind::S3)?
        } else {
            own
        };
        let find = |name: &str| options.iter().rfind(|(n, _)| n == name);
        let region = region.map(str::to_owned).or_else(|| {
            let known = find("aws_region").or_else(|| find("aws_default_region"));
            known.map(|(_, value)| value.clone())
        });
        let region = region.ok_or_else(|| {
            Error::config("requests cannot be signed without a region")
                .hint("write `sigv4: { region: us-east-1 }`, or set AWS_REGION")
        })?;
        // Of the store that is made only to have its credentials nothing else counts.
        options.retain(|(name, _)| !name.contains("endpoint") || name.contains("metadata"));
        let secrets = super::options::secrets(&options);
        let builder = AmazonS3Builder::new()
            .with_bucket_name("none")
            .with_region(&region);
        let builder =
            options
                .into_iter()
                .fold(builder, |builder, (name, value)| match name.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                });
        let store = builder.build().map_err(|error| {
            Error::config("cannot sign requests").because(redact(&error, &secrets))
        })?;
        Ok(Signer {
            credentials: store.credentials().clone(),
            region,
            service: service.to_owned(),
        })
    }
}

impl Signer {
    /// Headers to send with a request besides `headers`, which must be sent as they are here.
    ///
    /// # Errors
    /// `Unavailable` when no credentials can be had; `Config` for headers that are none.
    pub async fn sign(
        &self,
        method: &str,
        url: &Url,
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<Vec<(String, String)>> {
        let credential = self.credentials.get_credential().await.map_err(|error| {
            Error::unavailable("no credentials to sign requests with")
                .because(redact(&error, &[]))
                .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
        })?;
        let wrong = || Error::config("a request cannot be signed: a header or its URL is wrong");
        let mut request = HttpRequest::new(HttpRequestBody::from(body.to_vec()));
        *request.method_mut() = method.parse().map_err(|_| wrong())?;
        *request.uri_mut() = url.as_str().parse().map_err(|_| wrong())?;
        for (name, value) in headers {
            let value = value.parse().map_err(|_| wrong())?;
            request.headers_mut().insert(*name, value);
        }
        AwsAuthorizer::new(&credential, &self.service, &self.region).authorize(&mut request, None);
        let given = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        Ok(request
            .headers()
            .iter()
            .filter(|(name, _)| name.as_str() != "host" && !given(name.as_str()))
            .filter_map(|(name, value)| {
                Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
            })
            .collect())
    }
}

//! Adds the query of a URL to each request: a signed link of an HTTP server holds its signature there,
//! and `object_store` knows paths only. The query is in no request that an error shows.

use async_trait::async_trait;
use object_store::{
    ClientOptions, Result,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpService, ReqwestConnector,
    },
};

pub(super) struct WithQuery(Option<String>);

impl WithQuery {
    pub(super) fn new(query: Option<&str>) -> Self {
        Self(query.map(str::to_owned))
    }
}

impl std::fmt::Debug for WithQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WithQuery")
    }
}

impl HttpConnector for WithQuery {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(match &self.0 {
            None => client,
            Some(query) => HttpClient::new(Adding {
                client,
                query: query.clone(),
            }),
        })
    }
}

struct Adding {
    client: HttpClient,
    query: String,
}

impl std::fmt::Debug for Adding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Adding")
    }
}

#[async_trait]
impl HttpService for Adding {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = format!("{}?{}", request.uri(), self.query);
        let Ok(uri) = uri.parse() else {
            let why = std::io::Error::other("the URL has a query that cannot be sent");
            return Err(HttpError::new(HttpErrorKind::Unknown, why));
        };
        *request.uri_mut() = uri;
        self.client.execute(request).await
    }
}

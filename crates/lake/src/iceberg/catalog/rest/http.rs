//! Requests to a REST catalog: authorised, repeated where that does no harm, and with an answer or the
//! knowledge that there was none. Secrets are in no error.

use std::time::Duration;

use bytes::Bytes;
use calve_engine::{
    Secret,
    error::{Error, ErrorKind, Result},
};
use serde::Deserialize;
use url::Url;

use super::auth::Auth;

/// Tries of a request in all, where it may be repeated.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// However long the server wants.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server may write a large table's metadata before it answers.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Of what a server says is shown at most so much.
const SHOWN_CHARS: usize = 300;

/// A server that is asked.
pub(super) struct Http {
    client: reqwest::Client,
    auth: Auth,
    /// Sent with each request.
    headers: Vec<(String, Secret)>,
}

/// A request.
pub(super) struct Ask<'a> {
    pub(super) method: reqwest::Method,
    pub(super) url: Url,
    /// JSON.
    pub(super) body: Option<Vec<u8>>,
    /// It may be made again when there was no answer.
    pub(super) repeat: bool,
    /// Credentials for the table's store are wanted.
    pub(super) delegate: bool,
    /// What it is for, in an error: `cannot load table=a.b`.
    pub(super) what: &'a str,
}

/// An answer, whatever it says.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// What a REST catalog says when it refuses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
    r#type: String,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The type and the message of a refusal.
    fn refusal(&self) -> Refusal {
        #[derive(Deserialize)]
        struct Envelope {
            error: Refusal,
        }
        serde_json::from_slice::<Envelope>(&self.body)
            .map(|envelope| envelope.error)
            .unwrap_or_default()
    }

    /// Whether it is a refusal of this type.
    pub(super) fn is_refusal(&self, of: &str) -> bool {
        self.refusal().r#type == of
    }
}

/// A client of servers.
///
/// # Errors
/// `Internal` when TLS cannot be set up.
pub(super) fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(concat!("calve/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .build()
        .map_err(|e| Error::internal("cannot make an HTTP client").because(e.without_url()))
}

impl Http {
    pub(super) fn new(client: reqwest::Client, auth: Auth, headers: Vec<(String, Secret)>) -> Self {
        Self {
            client,
            auth,
            headers,
        }
    }

    /// Asks, and gives the answer, also one that refuses.
    ///
    /// # Errors
    /// `Unavailable` when no answer came, so that what was asked for may have happened or not;
    /// `Config` when no credentials can be had.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Answer> {
        let mut renewed = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let (request, token) = self.request(ask).await?;
            let response = match self.client.execute(request).await {
                Ok(response) => response,
                // What was never sent may be sent again, whatever it is.
                Err(error) if tries < TRIES && (ask.repeat || error.is_connect()) => {
                    tracing::debug!(error = %error.without_url(), "asking the catalog again");
                    pause(tries, None).await;
                    continue;
                }
                Err(error) => return Err(no_answer(ask.what, error)),
            };
            let status = response.status().as_u16();
            let wait = retry_after(&response);
            // Who we are ends in between: asked for once more, since nothing was done.
            if matches!(status, 401 | 419) && !renewed && self.auth.renew(token).await? {
                renewed = true;
                continue;
            }
            let passes = status == 429 || (ask.repeat && matches!(status, 500 | 502 | 503 | 504));
            if passes && tries < TRIES {
                pause(tries, wait).await;
                continue;
            }
            return match response.bytes().await {
                Ok(body) => Ok(Answer { status, body }),
                Err(_) if ask.repeat && tries < TRIES => continue,
                Err(error) => Err(no_answer(ask.what, error)),
            };
        }
    }

    async fn request(&self, ask: &Ask<'_>) -> Result<(reqwest::Request, u64)> {
        let mut own = vec![("accept", "application/json".to_owned())];
        if ask.body.is_some() {
            own.push(("content-type", "application/json".to_owned()));
        }
        let body = ask.body.as_deref().unwrap_or_default();
        let (headers, token) = self
            .auth
            .headers(ask.method.as_str(), &ask.url, &own, body)
            .await?;
        let mut request = self.client.request(ask.method.clone(), ask.url.clone());
        for (name, value) in &own {
            request = request.header(*name, value);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value.expose());
        }
        for (name, value) in &headers {
            request = request.header(name, value);
        }
        if ask.delegate {
            request = request.header("X-Iceberg-Access-Delegation", "vended-credentials");
        }
        if let Some(body) = &ask.body {
            request = request.body(body.clone());
        }
        let request = request.build().map_err(|_| {
            Error::config("a request to the catalog cannot be made: a header or a token is wrong")
                .hint("check `headers` and `token`: they hold a character that no header may have")
        })?;
        Ok((request, token))
    }

    /// The error of an answer that refuses.
    pub(super) fn refused(&self, what: &str, answer: &Answer) -> Error {
        let Refusal { message, r#type } = answer.refusal();
        let (kind, hint) = match answer.status {
            401 | 403 | 419 => (
                ErrorKind::Config,
                Some("check the credentials of `catalog.rest`, and what they are allowed to"),
            ),
            404 => (
                ErrorKind::Config,
                Some("check `uri`, `warehouse` and `prefix` of `catalog.rest`, and the name"),
            ),
            409 => (ErrorKind::Conflict, None),
            429 | 500..=599 => (ErrorKind::Unavailable, None),
            _ => (ErrorKind::Config, None),
        };
        let mut text = format!("{what}: status={}", answer.status);
        if !r#type.is_empty() || !message.is_empty() {
            let said: String = format!("{type} {message}");
            let said = self.auth.redact(&self.redact(&said));
            let said: Vec<&str> = said.split_whitespace().collect();
            let said: String = said.join(" ").chars().take(SHOWN_CHARS).collect();
            text.push_str(&format!(" answer={said}"));
        }
        let error = Error::new(kind, text);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    fn redact(&self, text: &str) -> String {
        redact(text, self.headers.iter().map(|(_, value)| value))
    }
}

/// A text without secrets.
pub(super) fn redact<'a>(text: &str, secrets: impl Iterator<Item = &'a Secret>) -> String {
    secrets
        .filter(|secret| secret.expose().len() >= 4)
        .fold(text.to_owned(), |text, secret| {
            text.replace(secret.expose(), "***")
        })
}

/// The error where there was no answer.
pub(super) fn no_answer(what: &str, error: reqwest::Error) -> Error {
    Error::unavailable(format!("{what}: no answer of the catalog")).because(error.without_url())
}

/// How long the server wants to be left alone, in whole seconds.
pub(super) fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Waits as long as the server says, or longer from try to try; a part of it by chance, so that several
/// do not keep step.
pub(super) async fn pause(tries: u32, wanted: Option<Duration>) {
    let grown = FIRST_PAUSE * (1 << tries.min(6));
    let least = wanted.unwrap_or(grown / 2).min(LONGEST_PAUSE);
    let more = uuid::Uuid::new_v4().as_u64_pair().0 % (grown / 2).as_millis().max(1) as u64;
    tokio::time::sleep(least + Duration::from_millis(more)).await;
}

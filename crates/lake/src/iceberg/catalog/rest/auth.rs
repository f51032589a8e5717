//! Who we are to a REST catalog: a token, one that is got and renewed by OAuth2 client credentials, or
//! requests that are signed as AWS asks for.

use std::{
    fmt,
    time::{Duration, Instant},
};

use calve_engine::{
    Secret,
    error::{Error, ErrorKind, Result},
    stores::sign::Signer,
};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::{Url, form_urlencoded};

use super::http::{no_answer, pause, redact, retry_after};

/// A token is renewed so long before it ends, or when a fifth of its time is left.
const BEFORE_END: Duration = Duration::from_mins(1);
/// Tries to get a token.
const TRIES: u32 = 5;

/// How requests are authorised.
pub(super) enum Auth {
    Nobody,
    Token(Tokens),
    Signed(Signer),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Token(_) => "Token",
            Self::Signed(_) => "Signed",
        })
    }
}

/// A token, and how to get another.
pub(super) struct Tokens {
    held: Mutex<Held>,
    grant: Option<Grant>,
    client: reqwest::Client,
}

#[derive(Default)]
struct Held {
    token: Option<Secret>,
    renew_at: Option<Instant>,
    /// Counts the tokens that were got.
    number: u64,
}

/// Client credentials.
#[derive(Clone)]
pub(super) struct Grant {
    pub(super) server: Url,
    /// `id:secret`, or a secret alone.
    pub(super) credential: Secret,
    pub(super) scope: String,
}

impl Tokens {
    /// With a first token, a way to get others, or both.
    pub(super) fn new(
        client: reqwest::Client,
        token: Option<Secret>,
        grant: Option<Grant>,
    ) -> Self {
        Self {
            held: Mutex::new(Held {
                token,
                ..Held::default()
            }),
            grant,
            client,
        }
    }

    /// The token that is used now, got when there is none, or it ends soon.
    async fn get(&self) -> Result<(String, u64)> {
        let mut held = self.held.lock().await;
        let soon = held.renew_at.is_some_and(|at| at <= Instant::now());
        if (held.token.is_none() || soon)
            && let Some(grant) = &self.grant
        {
            match grant.ask(&self.client).await {
                Ok(got) => held.take(got),
                // The old one may do for a while.
                Err(error) if held.token.is_some() => {
                    tracing::warn!(%error, "cannot renew the catalog's token now");
                }
                Err(error) => return Err(error),
            }
        }
        let token = held.token.as_ref().map(Secret::expose).unwrap_or_default();
        Ok((token.to_owned(), held.number))
    }

    async fn renew(&self, used: u64) -> Result<bool> {
        let Some(grant) = &self.grant else {
            return Ok(false);
        };
        let mut held = self.held.lock().await;
        // Somebody else may have been faster.
        if held.number == used {
            let got = grant.ask(&self.client).await?;
            held.take(got);
        }
        Ok(true)
    }
}

impl Held {
    fn take(&mut self, got: Got) {
        self.renew_at = got.expires_in.map(|seconds| {
            let whole = Duration::from_secs(seconds);
            let early = BEFORE_END.min(whole / 5);
            Instant::now() + whole.saturating_sub(early)
        });
        self.token = Some(Secret::new(got.access_token));
        self.number += 1;
    }
}

#[derive(Deserialize)]
struct Got {
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Grant {
    /// The request for a token.
    fn form(&self) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        match self.credential.expose().split_once(':') {
            Some((id, secret)) => form
                .append_pair("client_id", id)
                .append_pair("client_secret", secret),
            None => form.append_pair("client_secret", self.credential.expose()),
        };
        form.append_pair("scope", &self.scope);
        form.finish()
    }

    /// Gets a token; tries again when the server cannot answer now.
    async fn ask(&self, client: &reqwest::Client) -> Result<Got> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (error, wait) = match self.try_once(client).await {
                Ok(got) => return Ok(got),
                Err(failed) => failed,
            };
            if error.kind() != ErrorKind::Unavailable || tries == TRIES {
                return Err(error);
            }
            pause(tries, wait).await;
        }
    }

    /// One try; how long the server wants to be left alone comes with the error.
    async fn try_once(&self, client: &reqwest::Client) -> Result<Got, (Error, Option<Duration>)> {
        let host = self.server.host_str().unwrap_or_default();
        let what = format!("cannot get a token: host={host}");
        let lost = |e: reqwest::Error| (no_answer(&what, e), None);
        let request = client
            .post(self.server.clone())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(self.form());
        let response = request.send().await.map_err(lost)?;
        let (status, wait) = (response.status(), retry_after(&response));
        let body = response.bytes().await.map_err(lost)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| {
                let error = Error::config(format!("{what}: the answer holds none"));
                (error.hint("check `oauth2_server_uri`"), None)
            });
        }
        let said = self.redact(&refusal(&body));
        let text = format!("{what}: status={} answer={said}", status.as_u16());
        Err(if status.is_server_error() || status.as_u16() == 429 {
            (Error::unavailable(text), wait)
        } else {
            let hint = "check `credential`, `scope` and `oauth2_server_uri`";
            (Error::config(text).hint(hint), None)
        })
    }

    fn redact(&self, text: &str) -> String {
        let secret = self.credential.expose();
        let secret = secret.split_once(':').map_or(secret, |(_, secret)| secret);
        redact(text, [Secret::new(secret)].iter())
    }
}

/// What a token server says when it refuses, by OAuth2 or as the catalog does.
fn refusal(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let error = text(&json["error"]).or_else(|| text(&json["error"]["message"]));
    let more = text(&json["error_description"]);
    let said = [error, more].into_iter().flatten().collect::<Vec<_>>();
    said.join(" ").chars().take(200).collect()
}

impl Auth {
    /// The headers that authorise a request, and which token they hold.
    ///
    /// # Errors
    /// `Config` or `Unavailable` when no token or no credentials can be had.
    pub(super) async fn headers(
        &self,
        method: &str,
        url: &Url,
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<(Vec<(String, String)>, u64)> {
        match self {
            Self::Nobody => Ok((Vec::new(), 0)),
            Self::Token(tokens) => {
                let (token, number) = tokens.get().await?;
                let bearer = ("authorization".to_owned(), format!("Bearer {token}"));
                Ok((vec![bearer], number))
            }
            Self::Signed(signer) => Ok((signer.sign(method, url, headers, body).await?, 0)),
        }
    }

    /// Another token in the place of the one that was refused. False: there is none to be had.
    ///
    /// # Errors
    /// `Config` or `Unavailable` when the token server refuses or does not answer.
    pub(super) async fn renew(&self, used: u64) -> Result<bool> {
        match self {
            Self::Token(tokens) => tokens.renew(used).await,
            Self::Nobody | Self::Signed(_) => Ok(false),
        }
    }

    /// A text without the token.
    pub(super) fn redact(&self, text: &str) -> String {
        let Self::Token(tokens) = self else {
            return text.to_owned();
        };
        let held = tokens.held.try_lock();
        let token = held.ok().and_then(|held| held.token.clone());
        let text = redact(text, token.iter());
        match &tokens.grant {
            Some(grant) => grant.redact(&text),
            None => text,
        }
    }
}

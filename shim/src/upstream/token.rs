//! What is shown to the upstream: tokens and credentials, and to whom they may go.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::StatusCode;
use larder_config::Secret;
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use tokio::time::timeout;
use url::{Host, Url};

use super::{
    UpstreamError,
    challenge::Challenge,
    collect,
    credentials::{Credentials, Login},
    error::late,
};

/// How long a token server may take.
const TOKEN_DEADLINE: Duration = Duration::from_secs(15);
const TOKEN_MAX_BYTES: u64 = 1 << 20;
/// How long a token holds when the server does not say (token specification of Distribution).
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// The longest that a token is believed to hold, so that no clock is ever added up beyond its end.
const TOKEN_MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A token is given up this long before it expires, because a request takes its time to arrive.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// How many are kept, one per repository.
const KNOWN_MAX: usize = 4096;

/// The credentials, and what they were exchanged for.
pub(super) struct Tokens {
    credentials: Option<Credentials>,
    /// Token servers that may see them, besides those of the upstream's domain.
    realms: Vec<String>,
    /// By what the upstream is reached at, and its name for the repository, which is empty for none.
    known: Mutex<HashMap<(String, String), Known>>,
}

struct Known {
    authorization: Authorization,
    expires: Instant,
}

/// What a request shows.
#[derive(Clone)]
pub(super) enum Authorization {
    Bearer(Secret),
    Basic { username: String, password: Secret },
}

impl Authorization {
    pub(super) fn show(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Bearer(token) => request.bearer_auth(token.expose()),
            Self::Basic { username, password } => {
                request.basic_auth(username, Some(password.expose()))
            }
        }
    }
}

impl From<Login> for Authorization {
    fn from(login: Login) -> Self {
        match login {
            Login::Password { username, password } => Self::Basic { username, password },
            Login::Token(token) => Self::Bearer(token),
        }
    }
}

/// The answer of a token server.
#[derive(Deserialize)]
struct Grant {
    token: Option<String>,
    /// What OAuth 2 calls it.
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Tokens {
    pub(super) fn new(credentials: Option<Credentials>, realms: Vec<String>) -> Self {
        Self { credentials, realms, known: Mutex::new(HashMap::new()) }
    }

    /// What the upstream at `url` has accepted for this repository before, and still should.
    pub(super) fn known(&self, url: &Url, repository: &str) -> Option<Authorization> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&(url.authority().to_owned(), repository.to_owned()))?;
        (Instant::now() < known.expires).then(|| known.authorization.clone())
    }

    /// Meets one of the challenges of the upstream at `url`: the `Authorization` to send instead of
    /// the one that was `refused`.
    ///
    /// # Errors
    /// There is none that can or may be met, or the token server refuses or is in trouble.
    pub(super) async fn meet(
        &self,
        client: &Client,
        challenges: &[Challenge],
        url: &Url,
        repository: &str,
        refused: Option<Authorization>,
    ) -> Result<Authorization, UpstreamError> {
        let of_scheme =
            |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let (Some(Authorization::Basic { .. }), Some(credentials)) =
            (&refused, &self.credentials)
        {
            credentials.refused().await;
        }
        let current = match &self.credentials {
            Some(credentials) => Some(credentials.current(url.authority()).await?),
            None => None,
        };
        let expires = current.as_ref().and_then(|current| current.expires);
        let login = current.map(|current| current.login);
        let lifetime = expires.map_or(TOKEN_MAX_LIFETIME, |at| at - Instant::now() + TOKEN_MARGIN);
        let (authorization, lifetime) = match (of_scheme("bearer"), of_scheme("basic"), login) {
            (Some(_), _, Some(Login::Token(token))) => (Authorization::Bearer(token), lifetime),
            (Some(bearer), _, login) => {
                let login = login.map(Authorization::from);
                self.fetch(client, bearer, url, repository, login).await?
            }
            (None, Some(_), Some(login @ Login::Password { .. })) => (login.into(), lifetime),
            (None, Some(_), _) => {
                return Err(denied("it wants a password, and no username is configured for it"));
            }
            (None, None, _) => {
                return Err(denied("it wants to be shown neither a token nor a password"));
            }
        };
        self.keep(url, repository, authorization.clone(), lifetime);
        Ok(authorization)
    }

    /// Fetches a token from the realm that a challenge names.
    async fn fetch(
        &self,
        client: &Client,
        challenge: &Challenge,
        url: &Url,
        repository: &str,
        login: Option<Authorization>,
    ) -> Result<(Authorization, Duration), UpstreamError> {
        let realm = challenge.parameter("realm").and_then(|realm| Url::parse(realm).ok());
        let mut realm = realm.ok_or_else(|| denied("its challenge names no token server"))?;
        may_be_asked(&realm, url).map_err(|error| denied(&error.to_string()))?;
        if let Some(service) = challenge.parameter("service") {
            realm.query_pairs_mut().append_pair("service", service);
        }
        if !repository.is_empty() {
            let scope = format!("repository:{repository}:pull");
            realm.query_pairs_mut().append_pair("scope", &scope);
        }
        let mut request = client.get(realm.clone());
        if let Some(login) = login {
            if !self.realms.contains(&realm.origin().ascii_serialization()) {
                may_see_credentials(&realm, url).map_err(|error| denied(&error.to_string()))?;
            }
            request = login.show(request);
        }
        let host = realm.host_str().unwrap_or_default();
        let exchange = async {
            let response = request.send().await?;
            match response.status() {
                StatusCode::OK => collect(response, TOKEN_MAX_BYTES).await,
                StatusCode::TOO_MANY_REQUESTS => {
                    Err(UpstreamError::TooManyRequests { retry_after: None })
                }
                status if status.is_server_error() => Err(UpstreamError::Unavailable(format!(
                    "its token server {host} answered {status}"
                ))),
                status => Err(denied(&format!("its token server {host} answered {status}"))),
            }
        };
        let exchange = timeout(TOKEN_DEADLINE, exchange).await;
        let exchange = exchange.map_err(|_| late("a token", TOKEN_DEADLINE))?;
        if let (Err(UpstreamError::Denied(_)), Some(credentials)) = (&exchange, &self.credentials) {
            credentials.refused().await;
        }
        // The parser's own message would quote what it read.
        let malformed =
            || UpstreamError::Unavailable(format!("its token server {host} sent no token"));
        let grant: Grant = serde_json::from_slice(&exchange?).map_err(|_| malformed())?;
        let lifetime = grant.expires_in.map_or(TOKEN_LIFETIME, Duration::from_secs);
        let token = grant.token.or(grant.access_token).ok_or_else(malformed)?;
        Ok((Authorization::Bearer(Secret::new(token)), lifetime))
    }

    fn keep(&self, url: &Url, repository: &str, authorization: Authorization, lifetime: Duration) {
        let now = Instant::now();
        let expires = now + lifetime.min(TOKEN_MAX_LIFETIME).saturating_sub(TOKEN_MARGIN);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| now < known.expires);
        }
        if known.len() < KNOWN_MAX {
            let key = (url.authority().to_owned(), repository.to_owned());
            known.insert(key, Known { authorization, expires });
        }
    }
}

/// Why a token server is not asked, or not shown the credentials.
#[derive(Debug, PartialEq, Eq)]
enum Foreign {
    /// What it is shown and what it gives would travel in the clear, though the upstream encrypts.
    Plain(String),
    /// It is another organisation's, as far as its name tells.
    Host(String),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(host) => {
                write!(f, "its token server {host} is behind plain http, so it is not asked")
            }
            Self::Host(host) => write!(
                f,
                "its token server {host} belongs to another domain, so it is not shown the \
                 credentials; name it in the upstream's realms if it may see them"
            ),
        }
    }
}

/// A token is never fetched over http for an upstream behind https.
fn may_be_asked(realm: &Url, upstream: &Url) -> Result<(), Foreign> {
    if upstream.scheme() == "https" && realm.scheme() != "https" {
        return Err(Foreign::Plain(realm.host_str().unwrap_or_default().to_owned()));
    }
    Ok(())
}

/// Credentials go to the upstream's own host and to hosts of its registrable domain
/// (`registry-1.docker.io`: `auth.docker.io`), and never from https to http.
fn may_see_credentials(realm: &Url, upstream: &Url) -> Result<(), Foreign> {
    may_be_asked(realm, upstream)?;
    let is_ours = realm.host().is_some_and(|host| upstream.host() == Some(host));
    let domain = registrable_domain(realm);
    if is_ours || (domain.is_some() && domain == registrable_domain(upstream)) {
        return Ok(());
    }
    Err(Foreign::Host(realm.host_str().unwrap_or_default().to_owned()))
}

/// The part of a host name that somebody registered: `docker.io`, and `example.co.uk`.
fn registrable_domain(url: &Url) -> Option<&str> {
    match url.host()? {
        Host::Domain(name) => psl::domain_str(name),
        Host::Ipv4(_) | Host::Ipv6(_) => None,
    }
}

fn denied(reason: &str) -> UpstreamError {
    UpstreamError::Denied(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guarantee 9: no credential is sent to a host it was not meant for.
    #[test]
    fn credentials_stay_in_the_upstreams_domain() {
        let url = |text: &str| Url::parse(text).unwrap();
        for (realm, upstream) in [
            ("https://auth.docker.io/token", "https://registry-1.docker.io"),
            ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com"),
            ("https://auth.corp.internal:8443/", "https://registry.corp.internal:5000"),
            ("https://quay.io/v2/auth", "https://quay.io"),
            ("http://127.0.0.1:5001/token", "http://127.0.0.1:5000"),
            ("https://localhost/token", "http://localhost:5000"),
        ] {
            let allowed = may_see_credentials(&url(realm), &url(upstream));
            assert_eq!(allowed, Ok(()), "{realm} for {upstream}");
        }
        for (realm, upstream) in [
            ("https://auth.docker.io.evil.example/", "https://registry-1.docker.io"),
            ("https://evil.co.uk/token", "https://registry.co.uk"),
            ("https://evil.github.io/token", "https://good.github.io"),
            ("http://auth.docker.io/token", "https://registry-1.docker.io"),
            ("http://quay.io/token", "https://quay.io"),
            ("https://127.0.0.2/token", "https://127.0.0.1"),
            ("https://other/token", "https://localhost"),
        ] {
            let allowed = may_see_credentials(&url(realm), &url(upstream));
            assert!(allowed.is_err(), "{realm} for {upstream}");
        }
    }
}

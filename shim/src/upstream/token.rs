//! What is shown to the upstream: tokens and credentials, and to whom they may go.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::StatusCode;
use larder_config::{Credentials, Secret};
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use tokio::time::timeout;
use url::{Host, Url};

use super::{UpstreamError, challenge::Challenge, collect, late};

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
    /// By what the upstream is reached at, and its name for the repository.
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
    Basic(Credentials),
}

impl Authorization {
    pub(super) fn show(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Bearer(token) => request.bearer_auth(token.expose()),
            Self::Basic(Credentials { username, password }) => {
                request.basic_auth(username, Some(password.expose()))
            }
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
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        Self { credentials, known: Mutex::new(HashMap::new()) }
    }

    /// What the upstream at `url` has accepted for this repository before, and still should.
    pub(super) fn known(&self, url: &Url, repository: &str) -> Option<Authorization> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&(url.authority().to_owned(), repository.to_owned()))?;
        (Instant::now() < known.expires).then(|| known.authorization.clone())
    }

    /// Meets one of the challenges of the upstream at `url`: the `Authorization` to send.
    ///
    /// # Errors
    /// There is none that can or may be met, or the token server refuses or is in trouble.
    pub(super) async fn meet(
        &self,
        client: &Client,
        challenges: &[Challenge],
        url: &Url,
        repository: &str,
    ) -> Result<Authorization, UpstreamError> {
        let of_scheme =
            |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let (authorization, lifetime) = if let Some(bearer) = of_scheme("bearer") {
            self.fetch(client, bearer, url, repository).await?
        } else if let (Some(_), Some(credentials)) = (of_scheme("basic"), &self.credentials) {
            (Authorization::Basic(credentials.clone()), TOKEN_MAX_LIFETIME)
        } else if of_scheme("basic").is_some() {
            return Err(denied("it wants a password, and proxy.username is not set"));
        } else {
            return Err(denied("it wants to be shown neither a token nor a password"));
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
    ) -> Result<(Authorization, Duration), UpstreamError> {
        let realm = challenge.parameter("realm").and_then(|realm| Url::parse(realm).ok());
        let mut realm = realm.ok_or_else(|| denied("its challenge names no token server"))?;
        if let Some(service) = challenge.parameter("service") {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let scope = format!("repository:{repository}:pull");
        realm.query_pairs_mut().append_pair("scope", &scope);
        let mut request = client.get(realm.clone());
        if let Some(credentials) = &self.credentials {
            may_see_credentials(&realm, url).map_err(|error| denied(&error.to_string()))?;
            request = Authorization::Basic(credentials.clone()).show(request);
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
        let content = exchange.map_err(|_| late("a token", TOKEN_DEADLINE))??;
        // The parser's own message would quote what it read.
        let malformed =
            || UpstreamError::Unavailable(format!("its token server {host} sent no token"));
        let grant: Grant = serde_json::from_slice(&content).map_err(|_| malformed())?;
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

/// Why a token server is not shown the credentials.
#[derive(Debug, PartialEq, Eq)]
enum Foreign {
    /// They would travel in the clear, though the upstream encrypts.
    Plain(String),
    /// It is another organisation's, as far as its name tells.
    Host(String),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(host) => write!(
                f,
                "its token server {host} would get proxy.password over plain http, so it gets none"
            ),
            Self::Host(host) => write!(
                f,
                "its token server {host} belongs to another domain, so it does not get proxy.password"
            ),
        }
    }
}

/// Credentials go to the upstream's own host and to hosts of its registrable domain
/// (`registry-1.docker.io`: `auth.docker.io`), and never from https to http.
fn may_see_credentials(realm: &Url, upstream: &Url) -> Result<(), Foreign> {
    let host = || realm.host_str().unwrap_or_default().to_owned();
    if upstream.scheme() == "https" && realm.scheme() != "https" {
        return Err(Foreign::Plain(host()));
    }
    let is_ours = realm.host().is_some_and(|host| upstream.host() == Some(host));
    let domain = registrable_domain(realm);
    if is_ours || (domain.is_some() && domain == registrable_domain(upstream)) {
        return Ok(());
    }
    Err(Foreign::Host(host()))
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

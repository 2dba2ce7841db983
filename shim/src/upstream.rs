//! The upstream registry: the only code that speaks HTTP to it.

mod challenge;
mod credentials;
mod download;
mod endpoint;
mod error;
mod holder;
mod lists;
mod permission;
mod token;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use larder_config as config;
use larder_layout::{Digest, Reference, Repository};
use reqwest::{Certificate, Client, Response, redirect};
use tokio::time::timeout;
use tracing::Instrument;
use url::Url;

pub use self::{
    challenge::parse as parse_challenges,
    credentials::Login,
    download::Download,
    error::{UpstreamError, UpstreamMistake},
    holder::fetch_from,
};
use self::{
    credentials::Credentials,
    endpoint::Endpoint,
    error::{Reason, late, outcome},
    token::{Authorization, Tokens},
};
use crate::{error::Error, metrics, traces};

/// How long a TCP and TLS connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the headers of a blob's answer may take. Registries that scan or thaw a blob first are
/// known to need 40 s.
const BLOB_DEADLINE: Duration = Duration::from_secs(60);
/// How long a `HEAD` may take: a client waits for it in front of a tag that may be cached.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long a whole manifest may take.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(30);
/// The largest manifest, which is also Distribution's limit.
pub const MANIFEST_MAX_BYTES: u64 = 4 << 20;
const REDIRECTS_MAX: usize = 10;

/// Every type of manifest that can be kept, because all of them are kept byte for byte.
const MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*",
);
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
const ANY_TYPE: HeaderValue = HeaderValue::from_static("*/*");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Docker Hub's registry, and its namespace that clients leave out.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
const DOCKER_HUB_NAMESPACE: &str = "library";

/// An upstream registry, under one URL or several that serve the same content.
pub struct Upstream {
    place: Arc<Place>,
    tokens: Arc<Tokens>,
    /// Which caches a request has come through, this one the last.
    via: HeaderValue,
}

/// Where an upstream is, and what it is called.
struct Place {
    client: Client,
    endpoints: Vec<Arc<Endpoint>>,
    /// What the names of its repositories begin with in the directory: `quay.io/`, or nothing.
    prefix: String,
    /// Sent as `?ns=` to a mirror of several registries.
    namespace: Option<String>,
    is_docker_hub: bool,
    /// Counts requests, so that they go to the URLs in turn.
    turn: AtomicUsize,
    /// Token servers outside of its domain that may see credentials.
    realms: Vec<String>,
}

/// What a `HEAD` says of a manifest.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    /// Its digest, which a few registries do not send.
    pub digest: Option<Digest>,
    /// Its media type.
    pub media_type: Option<HeaderValue>,
    /// Its length.
    pub size_bytes: Option<u64>,
}

/// A request, the same to each URL.
struct Ask<'a> {
    method: Method,
    /// Without one, it is `/v2/` that is asked for.
    repository: Option<&'a Repository>,
    /// What follows `/v2/<name>/`, with a query or without.
    path: String,
    query: Option<String>,
    accept: HeaderValue,
    range: Option<String>,
    /// Until the headers of the answer are there.
    deadline: Duration,
}

impl Upstream {
    /// The upstream of the configuration, which is not connected to yet.
    ///
    /// # Errors
    /// A URL or a certificate cannot be read.
    pub fn new(config: &config::Upstream, via: HeaderValue) -> Result<Self, UpstreamMistake> {
        let mistake = |what: &str, reason: &dyn std::fmt::Display| UpstreamMistake {
            what: what.to_owned(),
            reason: reason.to_string(),
        };
        let mut certificates = Vec::new();
        for path in &config.certificate_authorities {
            let what = format!("certificate {}", path.display());
            let pem = fs::read(path).map_err(|error| mistake(&what, &error))?;
            let bundle = Certificate::from_pem_bundle(&pem).map_err(|e| mistake(&what, &e))?;
            certificates.extend(bundle);
        }
        let urls: Vec<Url> = config
            .urls
            .iter()
            .map(|text| Url::parse(text).map_err(|error| mistake("URL", &error)))
            .collect::<Result<_, _>>()?;
        if urls.iter().any(Url::cannot_be_a_base) || urls.is_empty() {
            return Err(mistake("URL", &"expected one scheme://host[:port] or several"));
        }
        let client = Client::builder()
            .tls_certs_merge(certificates)
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_DEADLINE)
            .redirect(redirect::Policy::custom(follow))
            .build()
            .map_err(|error| mistake("client", &Reason(error)))?;
        let key = config.key.as_deref();
        let credentials = config.credentials.clone().map(Credentials::new);
        let place = Place {
            client,
            prefix: key
                .filter(|_| !config.is_default)
                .map_or(String::new(), |key| format!("{key}/")),
            namespace: config.key.clone().filter(|_| config.is_mirror),
            is_docker_hub: key == Some("docker.io")
                || urls.iter().any(|url| url.host_str() == Some(DOCKER_HUB_HOST)),
            endpoints: urls.into_iter().map(|url| Arc::new(Endpoint::new(url))).collect(),
            turn: AtomicUsize::new(0),
            realms: config.realms.clone(),
        };
        let tokens = Arc::new(Tokens::new(credentials, place.realms.clone()));
        Ok(Self { tokens, place: Arc::new(place), via })
    }

    /// The same upstream, as a client of this cache may ask it.
    pub fn on_behalf_of(&self, client: Option<Login>) -> Self {
        let tokens = Tokens::new(client.map(Credentials::of), self.place.realms.clone());
        Self { place: Arc::clone(&self.place), tokens: Arc::new(tokens), via: self.via.clone() }
    }

    /// The same, asked for the request that `other` is asked for.
    pub fn for_request_of(&self, other: &Self) -> Arc<Self> {
        self.via(&other.via)
    }

    /// The same upstream, asked for a request that has come through other caches.
    pub fn via(&self, via: &HeaderValue) -> Arc<Self> {
        let (place, tokens) = (Arc::clone(&self.place), Arc::clone(&self.tokens));
        Arc::new(Self { place, tokens, via: via.clone() })
    }

    /// Whether it is reached at `host`, with or without its port.
    pub fn is_at(&self, host: &str) -> bool {
        let mut urls = self.place.endpoints.iter().map(|endpoint| &endpoint.url);
        urls.any(|url| url.authority() == host || url.host_str() == Some(host))
    }

    /// Whether the name of a repository in the directory says that it is this upstream's.
    pub fn has_key_of(&self, repository: &Repository) -> bool {
        !self.place.prefix.is_empty() && repository.as_str().starts_with(&self.place.prefix)
    }

    /// The name in the directory of a repository that is called so here.
    ///
    /// Who types a name of Docker Hub behind a cache's leaves `library/` out, and the client cannot
    /// know that it should add it.
    ///
    /// # Errors
    /// With the key in front, the name is too long for one.
    pub fn local_name(&self, name: &str) -> Result<Repository, Error> {
        let namespace = self.place.is_docker_hub && !name.contains('/');
        let namespace = if namespace { format!("{DOCKER_HUB_NAMESPACE}/") } else { String::new() };
        Ok(format!("{}{namespace}{name}", self.place.prefix).parse()?)
    }

    /// What the upstream calls a repository of the directory.
    fn remote_name<'a>(&self, repository: &'a Repository) -> &'a str {
        repository.as_str().strip_prefix(&self.place.prefix).unwrap_or(repository.as_str())
    }

    /// What the upstream says of a manifest, without fetching it.
    ///
    /// # Errors
    /// The upstream has none, refuses, or is in trouble.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        let ask = Ask {
            method: Method::HEAD,
            repository: Some(repository),
            path: format!("manifests/{reference}"),
            query: None,
            accept: MANIFEST_TYPES,
            range: None,
            deadline: HEAD_DEADLINE,
        };
        let (response, _) = self.send(&ask).await?;
        let headers = response.headers();
        Ok(ManifestHead {
            digest: content_digest(headers),
            media_type: headers.get(header::CONTENT_TYPE).cloned(),
            size_bytes: text(headers, &header::CONTENT_LENGTH).and_then(|size| size.parse().ok()),
        })
    }

    /// Fetches a manifest, and the digest the upstream says it has. Nothing is checked yet.
    ///
    /// # Errors
    /// As [`Upstream::head_manifest`], or the manifest is larger than [`MANIFEST_MAX_BYTES`].
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(Option<Digest>, Bytes), UpstreamError> {
        let ask = Ask {
            method: Method::GET,
            repository: Some(repository),
            path: format!("manifests/{reference}"),
            query: None,
            accept: MANIFEST_TYPES,
            range: None,
            deadline: MANIFEST_DEADLINE,
        };
        let (response, _) = self.send(&ask).await?;
        let digest = content_digest(response.headers());
        let content = timeout(MANIFEST_DEADLINE, collect(response, MANIFEST_MAX_BYTES));
        let content = content.await.map_err(|_| late("the manifest", MANIFEST_DEADLINE))?;
        Ok((digest, content?))
    }

    /// Asks whether a repository has a blob, and how long it is.
    ///
    /// # Errors
    /// The upstream has none, refuses, or is in trouble.
    pub async fn head_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let ask = Ask {
            method: Method::HEAD,
            repository: Some(repository),
            path: format!("blobs/{digest}"),
            query: None,
            accept: ANY_TYPE,
            range: None,
            deadline: HEAD_DEADLINE,
        };
        let (response, _) = self.send(&ask).await?;
        Ok(text(response.headers(), &header::CONTENT_LENGTH).and_then(|size| size.parse().ok()))
    }

    /// Begins to fetch a blob at `offset`, or before it when the upstream knows no ranges; up to `end`, or
    /// to its own end.
    ///
    /// # Errors
    /// The upstream has none, refuses, or is in trouble.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
        end: Option<u64>,
    ) -> Result<Download, UpstreamError> {
        let last = end.map_or(String::new(), |end| (end - 1).to_string());
        let ask = Ask {
            method: Method::GET,
            repository: Some(repository),
            path: format!("blobs/{digest}"),
            query: None,
            accept: ANY_TYPE,
            range: (offset > 0).then(|| format!("bytes={offset}-{last}")),
            deadline: BLOB_DEADLINE,
        };
        let (response, endpoint) = self.send(&ask).await?;
        Download::of(response, Some(endpoint), offset)
    }

    /// Sends a request to the URLs in turn, until one of them has an answer. What is in trouble, or
    /// has had too many requests, is left alone for a while.
    async fn send(&self, ask: &Ask<'_>) -> Result<(Response, Arc<Endpoint>), UpstreamError> {
        let mut failure = UpstreamError::Unavailable("no URL is configured".to_owned());
        for endpoint in self.in_turn() {
            let authority = endpoint.url.authority();
            let span = traces::upstream(authority, ask.method.as_str(), &ask.path);
            let answer = self.send_to(&endpoint.url, ask).instrument(span).await;
            metrics::asked_upstream(authority, answer.as_ref().err().map_or("ok", outcome));
            match answer {
                Ok(response) => return Ok((response, Arc::clone(endpoint))),
                Err(UpstreamError::Unavailable(reason)) => {
                    endpoint.broke();
                    let reason = format!("{authority}: {reason}");
                    tracing::warn!(%reason, path = ask.path, "the upstream gave no answer");
                    // That it is worth another try later is the better thing to tell.
                    if !matches!(failure, UpstreamError::TooManyRequests { .. }) {
                        failure = UpstreamError::Unavailable(reason);
                    }
                }
                Err(limit @ UpstreamError::TooManyRequests { .. }) => {
                    endpoint.broke();
                    tracing::warn!(
                        upstream = authority,
                        "the upstream allows no more requests now"
                    );
                    failure = limit;
                }
                Err(answer) => return Err(answer),
            }
        }
        Err(failure)
    }

    /// Every URL: the next one first, and those that failed lately last.
    fn in_turn(&self) -> Vec<&Arc<Endpoint>> {
        let mut endpoints: Vec<_> = self.place.endpoints.iter().collect();
        let turn = self.place.turn.fetch_add(1, Ordering::Relaxed) % endpoints.len();
        endpoints.rotate_left(turn);
        endpoints.sort_by_key(|endpoint| endpoint.is_broken());
        endpoints
    }

    /// Sends a request, a second time when the answer is a challenge that can be met.
    async fn send_to(&self, url: &Url, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let repository = ask.repository.map_or("", |repository| self.remote_name(repository));
        let authorization = self.tokens.known(url, repository);
        let response = self.send_once(url, ask, authorization.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accept(response);
        }
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let challenges: Vec<_> = challenges
            .filter_map(|header| header.to_str().ok())
            .flat_map(parse_challenges)
            .collect();
        let authorization = self
            .tokens
            .meet(&self.place.client, &challenges, url, repository, authorization)
            .await?;
        accept(self.send_once(url, ask, Some(authorization)).await?)
    }

    async fn send_once(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        authorization: Option<Authorization>,
    ) -> Result<Response, UpstreamError> {
        let mut url = url.clone();
        match ask.repository.map(|repository| self.remote_name(repository)) {
            Some(name) => url.set_path(&format!("/v2/{name}/{}", ask.path)),
            None => url.set_path("/v2/"),
        }
        url.set_query(ask.query.as_deref());
        if let Some(namespace) = &self.place.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let request = self.place.client.request(ask.method.clone(), url);
        let mut request = request
            .header(header::ACCEPT, &ask.accept)
            // What a proxy on the way compresses has another digest.
            .header(header::ACCEPT_ENCODING, IDENTITY)
            .headers(traces::headers())
            .header(header::VIA, &self.via);
        if let Some(range) = &ask.range {
            request = request.header(header::RANGE, range);
        }
        if let Some(authorization) = authorization {
            request = authorization.show(request);
        }
        let response = timeout(ask.deadline, request.send()).await;
        Ok(response.map_err(|_| late("an answer", ask.deadline))??)
    }
}

/// Follows a redirect, but not from https to http. The client drops `Authorization` by itself
/// when the host, the port or the scheme is another.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("too many redirects");
    }
    if was_https && attempt.url().scheme() != "https" {
        return attempt.error("a redirect from https to http");
    }
    attempt.follow()
}

/// The one table of what an answer's status means.
fn accept(response: Response) -> Result<Response, UpstreamError> {
    let status = response.status();
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
        StatusCode::NOT_FOUND => Err(UpstreamError::NotFound),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(UpstreamError::Denied(format!("it answered {status}")))
        }
        StatusCode::TOO_MANY_REQUESTS => Err(UpstreamError::TooManyRequests {
            retry_after: response.headers().get(header::RETRY_AFTER).cloned(),
        }),
        _ => Err(UpstreamError::Unavailable(format!("it answered {status}"))),
    }
}

/// Reads a small body.
async fn collect(mut response: Response, max_bytes: u64) -> Result<Bytes, UpstreamError> {
    let mut content = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if (content.len() + chunk.len()) as u64 > max_bytes {
            return Err(UpstreamError::Unavailable(format!("it sent more than {max_bytes} bytes")));
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content.freeze())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, &CONTENT_DIGEST)?.parse().ok()
}

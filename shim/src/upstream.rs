//! The upstream registry: the only code that speaks HTTP to it.

mod challenge;
mod lists;
mod token;

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use larder_config::Upstreams;
use larder_layout::{Digest, Reference, Repository};
use reqwest::{Certificate, Client, Response, redirect};
use tokio::time::timeout;
use url::Url;

pub use self::challenge::parse as parse_challenges;
use self::token::{Authorization, Tokens};

/// How long a TCP and TLS connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the headers of a blob's answer may take. Registries that scan or thaw a blob first are
/// known to need 40 s.
const BLOB_DEADLINE: Duration = Duration::from_secs(60);
/// How long each next byte of a blob may take.
const STALL_DEADLINE: Duration = Duration::from_secs(30);
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
const ANY_TYPE: HeaderValue = HeaderValue::from_static("*/*");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The upstream registry, under one URL or several that serve the same content.
pub struct Upstream {
    client: Client,
    urls: Vec<Url>,
    /// Counts requests, so that they go to the URLs in turn.
    turn: AtomicUsize,
    tokens: Tokens,
}

/// What the configuration says of the upstream cannot work.
#[derive(Debug, thiserror::Error)]
#[error("upstream {what}: {reason}")]
pub struct UpstreamMistake {
    what: String,
    reason: String,
}

/// Why the upstream gave nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It has no such thing.
    #[error("not found")]
    NotFound,
    /// It does not give it to us, or we must not show it our credentials.
    #[error("{0}")]
    Denied(String),
    /// Its rate limit is reached.
    #[error("too many requests")]
    TooManyRequests {
        /// Its `Retry-After`.
        retry_after: Option<HeaderValue>,
    },
    /// It cannot be reached, is in trouble, or said something that makes no sense.
    #[error("{0}")]
    Unavailable(String),
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

/// A blob on its way.
pub struct Download {
    response: Response,
    /// The length of the whole blob, when the upstream says so.
    pub size_bytes: Option<u64>,
    /// The offset of the first byte that comes.
    pub offset: u64,
}

/// A request, the same to each URL.
struct Ask<'a> {
    method: Method,
    repository: &'a Repository,
    /// What follows `/v2/<name>/`.
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
    pub fn new(config: &Upstreams) -> Result<Self, UpstreamMistake> {
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
        let tokens = Tokens::new(config.credentials.clone());
        Ok(Self { client, urls, turn: AtomicUsize::new(0), tokens })
    }

    /// Whether `host`, with or without its port, is this upstream.
    pub fn is_named(&self, host: &str) -> bool {
        self.urls.iter().any(|url| url.authority() == host || url.host_str() == Some(host))
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
            repository,
            path: format!("manifests/{reference}"),
            query: None,
            accept: MANIFEST_TYPES,
            range: None,
            deadline: HEAD_DEADLINE,
        };
        let response = self.send(&ask).await?;
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
            repository,
            path: format!("manifests/{reference}"),
            query: None,
            accept: MANIFEST_TYPES,
            range: None,
            deadline: MANIFEST_DEADLINE,
        };
        let response = self.send(&ask).await?;
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
            repository,
            path: format!("blobs/{digest}"),
            query: None,
            accept: ANY_TYPE,
            range: None,
            deadline: HEAD_DEADLINE,
        };
        let response = self.send(&ask).await?;
        Ok(text(response.headers(), &header::CONTENT_LENGTH).and_then(|size| size.parse().ok()))
    }

    /// Begins to fetch a blob at `offset`, or before it when the upstream knows no ranges.
    ///
    /// # Errors
    /// The upstream has none, refuses, or is in trouble.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
    ) -> Result<Download, UpstreamError> {
        let ask = Ask {
            method: Method::GET,
            repository,
            path: format!("blobs/{digest}"),
            query: None,
            accept: ANY_TYPE,
            range: (offset > 0).then(|| format!("bytes={offset}-")),
            deadline: BLOB_DEADLINE,
        };
        Download::of(self.send(&ask).await?, offset)
    }

    /// Sends a request to the URLs in turn, until one of them has an answer.
    async fn send(&self, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut failure = UpstreamError::Unavailable("no URL is configured".to_owned());
        for place in 0..self.urls.len() {
            let url = &self.urls[turn.wrapping_add(place) % self.urls.len()];
            match self.send_to(url, ask).await {
                Err(UpstreamError::Unavailable(reason)) => {
                    let reason = format!("{}: {reason}", url.authority());
                    tracing::warn!(%reason, path = ask.path, "the upstream gave no answer");
                    failure = UpstreamError::Unavailable(reason);
                }
                answer => return answer,
            }
        }
        Err(failure)
    }

    /// Sends a request, a second time when the answer is a challenge that can be met.
    async fn send_to(&self, url: &Url, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let authorization = self.tokens.known(url, ask.repository);
        let response = self.send_once(url, ask, authorization).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accept(response);
        }
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let challenges: Vec<_> = challenges
            .filter_map(|header| header.to_str().ok())
            .flat_map(parse_challenges)
            .collect();
        let authorization =
            self.tokens.meet(&self.client, &challenges, url, ask.repository).await?;
        accept(self.send_once(url, ask, Some(authorization)).await?)
    }

    async fn send_once(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        authorization: Option<Authorization>,
    ) -> Result<Response, UpstreamError> {
        let mut url = url.clone();
        url.set_path(&format!("/v2/{}/{}", ask.repository, ask.path));
        url.set_query(ask.query.as_deref());
        let mut request =
            self.client.request(ask.method.clone(), url).header(header::ACCEPT, &ask.accept);
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

impl Download {
    fn of(response: Response, asked_offset: u64) -> Result<Self, UpstreamError> {
        let headers = response.headers();
        let (offset, size_bytes) = if response.status() == StatusCode::PARTIAL_CONTENT {
            text(headers, &header::CONTENT_RANGE)
                .and_then(content_range)
                .filter(|(offset, _)| *offset == asked_offset)
                .ok_or_else(|| {
                    UpstreamError::Unavailable("it answered with another range".to_owned())
                })?
        } else {
            let size = text(headers, &header::CONTENT_LENGTH).and_then(|size| size.parse().ok());
            (0, size)
        };
        Ok(Self { response, size_bytes, offset })
    }

    /// The next bytes of the blob; `None` behind the last. May be dropped while it waits.
    ///
    /// # Errors
    /// The transfer broke off, or no byte came for 30 s.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let chunk = timeout(STALL_DEADLINE, self.response.chunk()).await;
        Ok(chunk.map_err(|_| late("the next byte", STALL_DEADLINE))??)
    }
}

/// What an error of the HTTP client says, without the URL: one that was redirected to may carry
/// a signature that opens it for everybody.
struct Reason(reqwest::Error);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut cause: Option<&dyn std::error::Error> = Some(&self.0);
        let mut separator = "";
        while let Some(error) = cause {
            write!(f, "{separator}{error}")?;
            (cause, separator) = (error.source(), ": ");
        }
        Ok(())
    }
}

impl From<reqwest::Error> for UpstreamError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unavailable(Reason(error.without_url()).to_string())
    }
}

fn late(what: &str, deadline: Duration) -> UpstreamError {
    UpstreamError::Unavailable(format!("{what} did not come within {deadline:?}"))
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

/// The first byte and the whole length of `bytes 5-9/10`; the length may be `*`.
fn content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((first.parse().ok()?, size))
}

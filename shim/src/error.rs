//! What a client is told when it does not get what it asked for.

use hyper::{
    StatusCode,
    header::{self, HeaderValue},
};
use larder_layout::{Digest, DigestError, NameError, Repository};

use crate::{answer::Response, body::Body, metrics, upstream::UpstreamError};

/// Why a request gets no content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The path is none of the API's.
    #[error("{0:?} is no path of the registry API")]
    Path(String),
    /// The method would change something.
    #[error("this registry is a cache and only answers GET and HEAD")]
    Method,
    /// The request line is longer than any name can make it.
    #[error("the request's URL is longer than {0} bytes")]
    UrlLength(usize),
    /// The path holds something else where a repository name should be.
    #[error("{0}")]
    Name(String),
    /// The path holds something else where a digest should be.
    #[error("{0}")]
    Digest(String),
    /// `n` of a list is no number.
    #[error("n={0:?} is not a number of names")]
    Page(String),
    /// `?ns=` names a registry that this cache has no upstream for.
    #[error("this cache does not hold content of the registry {0:?}")]
    Namespace(String),
    /// The request has come through this cache already.
    #[error("this cache is, by way of others, its own upstream")]
    Loop,
    /// The client has to show something, or something else: this.
    #[error("authentication required")]
    Unauthorized(HeaderValue),
    /// The name begins with no registry that this cache has, and no upstream is the default.
    #[error("repository {0} does not begin with the name of a registry that this cache has")]
    Registry(Repository),
    /// There is no such repository.
    #[error("repository {0} is not known")]
    Repository(Repository),
    /// The repository has no such manifest.
    #[error("manifest {0} is not known")]
    Manifest(String),
    /// The repository has no such blob.
    #[error("blob {0} is not known")]
    Blob(Digest),
    /// The ranges lie behind the end of a blob of this many bytes, or are too many.
    #[error("the blob has {0} bytes, and none of them or too many ranges were asked for")]
    Range(u64),
    /// `If-Match` names other content than this, which has been found.
    #[error("the content is {0}, which If-Match does not name")]
    Precondition(Digest),
    /// The upstream does not give this to Larder.
    #[error("the upstream refused: {0}")]
    Denied(String),
    /// The upstream has had too many requests.
    #[error("the upstream allows no more requests now")]
    TooManyRequests {
        /// The upstream's `Retry-After`.
        retry_after: Option<HeaderValue>,
    },
    /// The upstream gave no usable answer.
    #[error("the upstream is unavailable: {0}")]
    Upstream(String),
    /// The directory gave no usable answer, and there is no upstream to go to instead.
    #[error("the storage is unavailable: {0}")]
    Storage(String),
    /// A limit of this process is reached.
    #[error("busy: {0}")]
    Busy(&'static str),
}

/// A line of the table: the answer's status, its code, and what can be done.
struct Row(StatusCode, &'static str, &'static str);

impl Error {
    /// The table. Codes are those of the OCI distribution spec ("Error Codes") where it has one,
    /// else those of CNCF Distribution.
    fn row(&self) -> Row {
        use StatusCode as S;
        match self {
            Self::Path(_) => Row(S::NOT_FOUND, "UNSUPPORTED", "ask for a path below /v2/"),
            Self::Method => {
                Row(S::METHOD_NOT_ALLOWED, "UNSUPPORTED", "push to the upstream registry instead")
            }
            Self::UrlLength(_) => Row(S::URI_TOO_LONG, "UNSUPPORTED", "shorten the URL"),
            Self::Name(_) => Row(S::BAD_REQUEST, "NAME_INVALID", "check the repository's name"),
            Self::Digest(_) => Row(S::BAD_REQUEST, "DIGEST_INVALID", "check the digest"),
            Self::Page(_) => {
                Row(S::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", "give n a number or leave it out")
            }
            Self::Namespace(_) => {
                Row(S::NOT_FOUND, "NAME_UNKNOWN", "ask that registry, not this cache, for it")
            }
            Self::Loop => Row(
                S::LOOP_DETECTED,
                "UNAVAILABLE",
                "change the upstream of one of the caches that the request came through",
            ),
            Self::Unauthorized(_) => {
                Row(S::UNAUTHORIZED, "UNAUTHORIZED", "log in with an account that may pull this")
            }
            Self::Registry(_) => {
                Row(S::NOT_FOUND, "NAME_UNKNOWN", "put the registry in front: quay.io/org/app")
            }
            Self::Repository(_) => {
                Row(S::NOT_FOUND, "NAME_UNKNOWN", "check the name, or pull from it once")
            }
            Self::Manifest(_) => {
                Row(S::NOT_FOUND, "MANIFEST_UNKNOWN", "check the tag or digest at the upstream")
            }
            Self::Blob(_) => Row(S::NOT_FOUND, "BLOB_UNKNOWN", "check the digest at the upstream"),
            Self::Range(_) => {
                Row(S::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "ask for ranges inside the blob")
            }
            Self::Precondition(_) => {
                Row(S::PRECONDITION_FAILED, "PRECONDITION_FAILED", "leave out If-Match")
            }
            Self::Denied(_) => {
                Row(S::FORBIDDEN, "DENIED", "check the name, and the upstream's credentials")
            }
            Self::TooManyRequests { .. } => {
                Row(S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "try again later")
            }
            Self::Upstream(_) => {
                Row(S::SERVICE_UNAVAILABLE, "UNAVAILABLE", "try again when the upstream is back")
            }
            Self::Storage(_) => {
                Row(S::SERVICE_UNAVAILABLE, "UNAVAILABLE", "try again when the storage is back")
            }
            Self::Busy(_) => Row(S::SERVICE_UNAVAILABLE, "UNAVAILABLE", "try again in a moment"),
        }
    }

    fn header(&self) -> Option<(header::HeaderName, HeaderValue)> {
        match self {
            Self::Method => Some((header::ALLOW, HeaderValue::from_static("GET, HEAD"))),
            Self::Unauthorized(challenge) => Some((header::WWW_AUTHENTICATE, challenge.clone())),
            Self::Range(size_bytes) => {
                let value = HeaderValue::from_str(&format!("bytes */{size_bytes}")).ok()?;
                Some((header::CONTENT_RANGE, value))
            }
            Self::TooManyRequests { retry_after } => {
                Some((header::RETRY_AFTER, retry_after.clone()?))
            }
            _ => None,
        }
    }

    /// What the upstream said of a repository's content, told to a client that asked for
    /// something which is `unknown` when the upstream has it not.
    pub fn from_upstream(error: UpstreamError, unknown: Self) -> Self {
        match error {
            UpstreamError::NotFound => unknown,
            UpstreamError::Denied(reason) => Self::Denied(reason),
            UpstreamError::TooManyRequests { retry_after } => Self::TooManyRequests { retry_after },
            UpstreamError::Unavailable(reason) => Self::Upstream(reason),
        }
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::Name(error.to_string())
    }
}

impl From<DigestError> for Error {
    fn from(error: DigestError) -> Self {
        Self::Digest(error.to_string())
    }
}

impl From<Error> for Response {
    /// Distribution's error body: `{"errors":[{"code":…,"message":…,"detail":…}]}`.
    fn from(error: Error) -> Self {
        let Row(status, code, detail) = error.row();
        metrics::failed(code);
        let body = serde_json::json!({
            "errors": [{ "code": code, "message": error.to_string(), "detail": detail }]
        });
        let mut response = Self::new(Body::Memory(body.to_string().into()));
        response.status = status;
        let content_type = HeaderValue::from_static("application/json");
        response.headers.insert(header::CONTENT_TYPE, content_type);
        response.headers.extend(error.header());
        response
    }
}

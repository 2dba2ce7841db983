//! What the answers for manifests and blobs have in common.

use std::ops::Range;

use hyper::{
    HeaderMap, Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use larder_layout::Digest;

use crate::{
    body::Body,
    error::Error,
    range::{Selection, select},
};

/// An answer of the registry.
pub type Response = hyper::Response<Body>;

/// The digest of what is answered with.
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// A blob is named by its digest, so it never changes.
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// Where the bytes of an answer come from. For the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The directory.
    Content,
    /// A pull that runs.
    Pull,
    /// The upstream alone.
    Upstream,
}

impl Source {
    /// The word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Pull => "pull",
            Self::Upstream => "upstream",
        }
    }
}

/// How a request wants its content, besides which.
pub struct Conditions {
    /// Only the headers.
    pub is_head: bool,
    range: Option<String>,
    if_range: Option<String>,
    if_none_match: Option<String>,
}

/// Content to answer with.
pub struct Representation<'a> {
    /// Its digest, of which the ETag is made.
    pub digest: &'a Digest,
    /// Its media type.
    pub media_type: HeaderValue,
    /// Its length, when it is known.
    pub size_bytes: Option<u64>,
    /// Whether it may be asked for in ranges and kept for ever, as a blob may.
    pub is_blob: bool,
    /// Where it comes from.
    pub source: Source,
}

impl Conditions {
    /// Reads them off a request.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        let text =
            |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self {
            is_head: method == Method::HEAD,
            range: text(header::RANGE),
            if_range: text(header::IF_RANGE),
            if_none_match: text(header::IF_NONE_MATCH),
        }
    }

    /// The answer: 200, 206 or 304. `body` gives the bytes of a range, or all without one.
    ///
    /// # Errors
    /// [`Error::Range`] when the range is behind the end.
    pub fn answer(
        &self,
        content: &Representation<'_>,
        body: impl FnOnce(Option<Range<u64>>) -> Body,
    ) -> Result<Response, Error> {
        let etag = format!("\"{}\"", content.digest);
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(content.source);
        let headers = response.headers_mut();
        headers.insert(header::ETAG, ascii(&etag));
        headers.insert(CONTENT_DIGEST, ascii(&content.digest.to_string()));
        if content.is_blob {
            headers.insert(header::CACHE_CONTROL, FOREVER);
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        if self.if_none_match.as_ref().is_some_and(|tags| names(tags, &etag)) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(response);
        }
        headers.insert(header::CONTENT_TYPE, content.media_type.clone());
        let mut range = content.size_bytes.map(|size_bytes| 0..size_bytes);
        if let Some(size_bytes) = content.size_bytes.filter(|_| content.is_blob) {
            match select(self.range(&etag), size_bytes) {
                Selection::Whole => {}
                Selection::Part(part) => {
                    let text = format!("bytes {}-{}/{size_bytes}", part.start, part.end - 1);
                    headers.insert(header::CONTENT_RANGE, ascii(&text));
                    range = Some(part);
                }
                Selection::Unsatisfiable => return Err(Error::Range(size_bytes)),
            }
        }
        if let Some(range) = &range {
            headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
        }
        if headers.contains_key(header::CONTENT_RANGE) {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        if !self.is_head {
            *response.body_mut() = body(range);
        }
        Ok(response)
    }

    /// The range that counts: a `HEAD` has none, and an `If-Range` must name this very content.
    fn range(&self, etag: &str) -> Option<&str> {
        let is_wanted = !self.is_head && self.if_range.as_ref().is_none_or(|tag| tag == etag);
        self.range.as_deref().filter(|_| is_wanted)
    }
}

/// Whether a list of ETags has this one; strength does not count (RFC 9110, section 13.1.2).
fn names(tags: &str, etag: &str) -> bool {
    let mut tags = tags.split(',').map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// A header of digests and numbers, which are always fit for one.
fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

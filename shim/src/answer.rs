//! What the answers for manifests and blobs have in common.

use std::ops::Range;

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use larder_layout::Digest;

use crate::{
    body::Body,
    error::Error,
    multipart,
    range::{Selection, select},
};

/// How many headers an answer has room for at once; more is no mistake, but slower.
const HEADERS: usize = 12;

/// An answer of the registry.
pub struct Response {
    /// Its status: 200, unless it is changed.
    pub status: StatusCode,
    /// Its headers, but for those that every answer has.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
    /// Where its content comes from, if it has any.
    pub source: Option<Source>,
}

impl Response {
    /// An answer with this body.
    pub fn new(body: Body) -> Self {
        let headers = HeaderMap::with_capacity(HEADERS);
        Self { status: StatusCode::OK, headers, body, source: None }
    }
}

/// The digest of what is answered with.
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// A blob is named by its digest, so it never changes.
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// Where the bytes of an answer come from. For the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The directory, or its manifests in memory.
    Local,
    /// The directory, which had to fetch it from the shared storage.
    Shared,
    /// A pull that runs.
    Pull,
    /// The upstream alone.
    Upstream,
}

impl Source {
    /// The word in the access log, and in metrics.
    pub fn name(source: Option<Self>) -> &'static str {
        match source {
            Some(Self::Local) => "local",
            Some(Self::Shared) => "shared",
            Some(Self::Pull) => "pull",
            Some(Self::Upstream) => "upstream",
            None => "none",
        }
    }
}

/// How a request wants its content, besides which.
pub struct Conditions {
    /// Only the headers.
    pub is_head: bool,
    range: Option<String>,
    if_range: Option<String>,
    if_match: Option<String>,
    if_none_match: Option<String>,
}

/// The headers that name content: its digest, and the ETag that is made of it.
#[derive(Clone, Debug)]
pub struct Names {
    digest: HeaderValue,
    etag: HeaderValue,
}

impl Names {
    /// Those of a digest.
    pub fn of(digest: &Digest) -> Self {
        let etag = Bytes::from(format!("\"{digest}\""));
        let digest = etag.slice(1..etag.len() - 1);
        let [digest, etag] = [digest, etag].map(|text| {
            // Nothing but digits, letters and quotes.
            HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static(""))
        });
        Self { digest, etag }
    }
}

/// Content to answer with.
pub struct Representation<'a> {
    /// Its digest.
    pub digest: &'a Digest,
    /// What it is called in headers.
    pub names: Names,
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
            if_match: text(header::IF_MATCH),
            if_none_match: text(header::IF_NONE_MATCH),
        }
    }

    /// The answer: 200, 206 or 304. `body` gives the bytes of a range, or all without one.
    ///
    /// # Errors
    /// [`Error::Range`] when the range is behind the end, [`Error::Precondition`] when `If-Match`
    /// names other content.
    pub fn answer(
        &self,
        content: &Representation<'_>,
        mut body: impl FnMut(Option<Range<u64>>) -> Body,
    ) -> Result<Response, Error> {
        let etag = content.names.etag.to_str().unwrap_or_default();
        // In the order of RFC 9110, section 13.2.2. A strong comparison: a weak tag is no match.
        if self.if_match.as_ref().is_some_and(|tags| !list(tags).any(|t| t == "*" || t == etag)) {
            return Err(Error::Precondition(content.digest.clone()));
        }
        let mut response = Response::new(Body::empty());
        response.source = Some(content.source);
        let headers = &mut response.headers;
        headers.insert(header::ETAG, content.names.etag.clone());
        headers.insert(CONTENT_DIGEST, content.names.digest.clone());
        if content.is_blob {
            headers.insert(header::CACHE_CONTROL, FOREVER);
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        if self.if_none_match.as_ref().is_some_and(|tags| names(tags, etag)) {
            response.status = StatusCode::NOT_MODIFIED;
            return Ok(response);
        }
        let ranged = content.size_bytes.filter(|_| content.is_blob);
        let (media_type, length, body) = match ranged.map(|size| (size, self.select(etag, size))) {
            None | Some((_, Selection::Whole)) => {
                let whole = content.size_bytes.map(|size_bytes| 0..size_bytes);
                let body = if self.is_head { Body::empty() } else { body(whole) };
                (content.media_type.clone(), content.size_bytes, body)
            }
            Some((size_bytes, Selection::Unsatisfiable)) => return Err(Error::Range(size_bytes)),
            Some((size_bytes, Selection::Parts(parts))) => {
                response.status = StatusCode::PARTIAL_CONTENT;
                if let [part] = &parts[..] {
                    let text = content_range(part, size_bytes);
                    response.headers.insert(header::CONTENT_RANGE, ascii(&text));
                    let length = part.end - part.start;
                    (content.media_type.clone(), Some(length), body(Some(part.clone())))
                } else {
                    multipart::of(parts, size_bytes, &content.media_type, body)
                }
            }
        };
        let headers = &mut response.headers;
        headers.insert(header::CONTENT_TYPE, media_type);
        headers.extend(length.map(|length| (header::CONTENT_LENGTH, length.into())));
        response.body = body;
        Ok(response)
    }

    /// What is asked for of content of `size_bytes`: a `HEAD` has no range, and an `If-Range` must
    /// name this very content.
    fn select(&self, etag: &str, size_bytes: u64) -> Selection {
        let is_wanted = !self.is_head && self.if_range.as_ref().is_none_or(|tag| tag == etag);
        select(self.range.as_deref().filter(|_| is_wanted), size_bytes)
    }
}

/// `Content-Range` of a range that is not empty.
pub fn content_range(range: &Range<u64>, size_bytes: u64) -> String {
    format!("bytes {}-{}/{size_bytes}", range.start, range.end - 1)
}

/// The elements of a list of ETags.
fn list(tags: &str) -> impl Iterator<Item = &str> {
    tags.split(',').map(str::trim)
}

/// Whether a list of ETags has this one; strength does not count (RFC 9110, section 13.1.2).
fn names(tags: &str, etag: &str) -> bool {
    list(tags).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// A header of digests and numbers, which are always fit for one.
pub fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

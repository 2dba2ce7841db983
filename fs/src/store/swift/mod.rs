//! OpenStack Swift.
//!
//! Our own client, because Swift's API is small and what matters is in its corners: tokens that
//! end while a request is on its way, and large objects, which are a manifest and segments that
//! Swift neither removes when the manifest is deleted nor when it is overwritten.
//!
//! Objects are where Distribution has them, `<prefix>/files/docker/registry/v2/…`, so that each
//! serves what the other stored. Distribution's large objects are dynamic ones, and so is every
//! blob it was given by push; a listing shows them with no size. Ours are static ones: Swift
//! checks each segment, and a reader never sees a part of one. Their segments are in
//! `<prefix>/segments/larder/`, beside Distribution's.
//!
//! Put-if-absent is **not atomic** on Swift: of two writers at once, both may be told that they
//! were first. That is harmless for content-addressed blobs, and never a lock: a lease on Swift is
//! a best effort. In the same way two nodes that publish the same large blob at the same time may
//! leave the segments of one of them behind, until they are swept: that costs space for a day, and
//! never content.

mod client;
mod leftovers;
mod listing;
mod login;
mod upload;

use std::{error::Error as _, fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{
        CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LAST_MODIFIED, RANGE,
    },
};
use larder_config::Swift as Config;
use object_store::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result, path::Path,
};

use self::{
    client::{Client, Failure, Request},
    leftovers::Segments,
    login::text,
    upload::Upload,
};
use super::{Backend, directory::is_immutable};

/// A range up to this size is fetched whole, so that a connection that breaks is tried again.
const WHOLE_BYTES_MAX: u64 = 64 << 20;
/// How many requests are under way at a time for one operation on many objects.
const CONNECTIONS: usize = 8;

const COPY_FROM: HeaderName = HeaderName::from_static("x-copy-from");
/// The newest of all replicas, also while one of them is behind.
const NEWEST: HeaderName = HeaderName::from_static("x-newest");
const OBJECT_MANIFEST: HeaderName = HeaderName::from_static("x-object-manifest");
const STATIC_LARGE_OBJECT: HeaderName = HeaderName::from_static("x-static-large-object");
const OCTET_STREAM: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The store of a `storage.swift` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(config: &Config) -> Result<Backend, String> {
    let prefix = config.prefix.trim_start_matches('/');
    let container = Arc::new(Container {
        client: Client::new(config.clone())?,
        // As Distribution joins them: a slash at the end of the prefix stays.
        files: format!("{prefix}/files/").trim_start_matches('/').to_owned(),
        segments: format!("{prefix}/segments/larder/").trim_start_matches('/').to_owned(),
    });
    Ok(Backend {
        objects: Arc::new(Swift(Arc::clone(&container))),
        leftovers: Some(Arc::new(Segments::new(container))),
        root_directory: String::new(),
        part_bytes: config.chunk_size_bytes,
        attributes: Attributes::new(),
        mistaken_key: |error| error.source()?.downcast_ref::<Failure>()?.mistaken_key(),
        endpoint_key: "storage.swift.authurl",
    })
}

/// The objects of a container that are below `<prefix>/files/`.
#[derive(Clone)]
struct Swift(Arc<Container>);

struct Container {
    client: Client,
    /// What the name of every object begins with.
    files: String,
    /// What the names of our segments begin with.
    segments: String,
}

impl Container {
    fn name(&self, location: &Path) -> String {
        format!("{}{location}", self.files)
    }

    async fn head(&self, location: &Path) -> Result<(ObjectMeta, HeaderMap)> {
        let name = self.name(location);
        let answer = self.client.send(read(Method::HEAD, &name, location)).await;
        let answer = answer.map_err(|e| e.of(location.as_ref()))?;
        let size = text(answer.headers(), &CONTENT_LENGTH).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| unexpected("an object without a size"))?;
        Ok((meta(location, size, answer.headers()), answer.headers().clone()))
    }

    /// A piece of an object: what `range` asks for, which is all of it when there is none.
    async fn get(&self, location: &Path, range: Option<GetRange>) -> Result<GetResult> {
        let name = self.name(location);
        let mut request = read(Method::GET, &name, location);
        let mut is_short = false;
        if let Some(range) = &range {
            let bytes = match range {
                GetRange::Bounded(range) => {
                    is_short = range.end.saturating_sub(range.start) <= WHOLE_BYTES_MAX;
                    format!("bytes={}-{}", range.start, range.end.saturating_sub(1))
                }
                GetRange::Offset(start) => format!("bytes={start}-"),
                GetRange::Suffix(len) => format!("bytes=-{len}"),
            };
            let bytes = HeaderValue::from_str(&bytes).map_err(|_| unexpected("a range"))?;
            request = request.header(RANGE, bytes);
        }
        let (status, headers, content) = if is_short {
            let answer = self.client.fetch(request).await.map_err(|e| e.of(location.as_ref()))?;
            let (head, body) = answer.into_parts();
            (head.status, head.headers, stream::once(async { Ok(body) }).boxed())
        } else {
            let answer = self.client.send(request).await.map_err(|e| e.of(location.as_ref()))?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let broken = |e| Error::Generic { store: "Swift", source: Box::new(e) };
            (status, headers, answer.bytes_stream().map_err(broken).boxed())
        };
        let is_whole = status != StatusCode::PARTIAL_CONTENT;
        let found = if is_whole { whole(&headers) } else { partial(&headers) };
        let (range_found, size) = found.ok_or_else(|| unexpected("an object without a size"))?;
        if is_whole && range.is_some() && size > 0 {
            return Err(unexpected("a whole object instead of a range"));
        }
        Ok(GetResult {
            payload: GetResultPayload::Stream(content),
            meta: meta(location, size, &headers),
            range: range_found,
            attributes: Attributes::new(),
            extensions: Default::default(),
        })
    }

    /// The segments of an object, which Swift leaves behind when the object goes. None when the
    /// object is an ordinary one, or is not there.
    async fn segments_of(&self, location: &Path) -> Result<Vec<String>> {
        let name = self.name(location);
        let headers = match self.client.send(newest(Request::new(Method::HEAD, &name))).await {
            Ok(answer) => answer.headers().clone(),
            Err(e) if e.status() == Some(StatusCode::NOT_FOUND) => return Ok(Vec::new()),
            Err(e) => return Err(e.of(location.as_ref())),
        };
        if headers.contains_key(STATIC_LARGE_OBJECT) {
            return upload::segments_in_manifest(self, location).await;
        }
        match text(&headers, &OBJECT_MANIFEST).and_then(|text| dynamic_prefix(self, text)) {
            Some(prefix) => {
                let segments = listing::objects(self, prefix);
                segments.map_ok(|(name, _)| name).try_collect().await
            }
            None => Ok(Vec::new()),
        }
    }

    /// Deletes objects by their names. That one is gone already is no error.
    async fn remove(&self, names: Vec<String>) -> Result<()> {
        let removals = stream::iter(names).map(|name| async move {
            match self.client.send(Request::new(Method::DELETE, &name)).await {
                Err(e) if e.status() != Some(StatusCode::NOT_FOUND) => Err(e.of(&name)),
                _ => Ok(()),
            }
        });
        removals.buffer_unordered(CONNECTIONS).try_collect().await
    }

    async fn put(&self, location: &Path, content: Bytes, mode: PutMode) -> Result<PutResult> {
        let name = self.name(location);
        let mut request = Request::new(Method::PUT, &name).header(CONTENT_TYPE, OCTET_STREAM);
        let replaced = match mode {
            PutMode::Overwrite => self.segments_of(location).await?,
            PutMode::Create => {
                request = request.header(IF_NONE_MATCH, HeaderValue::from_static("*"));
                Vec::new()
            }
            PutMode::Update(_) => return Err(unsupported("an update if nothing has changed")),
        };
        let answer = self.client.send(request.body(content)).await.map_err(|e| {
            match e.of(location.as_ref()) {
                Error::Precondition { path, source } => Error::AlreadyExists { path, source },
                other => other,
            }
        })?;
        let e_tag = text(answer.headers(), &ETAG).map(str::to_owned);
        self.remove(replaced).await?;
        Ok(PutResult { e_tag, version: None, extensions: Default::default() })
    }

    /// Deletes an object and then its segments: a reader never finds a manifest without them.
    async fn delete(&self, location: &Path) -> Result<()> {
        let segments = self.segments_of(location).await?;
        self.remove(vec![self.name(location)]).await?;
        self.remove(segments).await
    }

    async fn copy(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        if options.mode != CopyMode::Overwrite {
            return Err(unsupported("a copy if nothing is there"));
        }
        let replaced = self.segments_of(to).await?;
        let source = format!("{}/{}", self.client.container(), self.name(from));
        let source = percent_encoding::utf8_percent_encode(&source, SOURCE_ENCODED).to_string();
        let source = HeaderValue::from_str(&source).map_err(|_| unexpected("a name"))?;
        let name = self.name(to);
        // The source has to be looked at: that the container is missing is the same answer.
        self.head(from).await?;
        let request = Request::new(Method::PUT, &name).header(COPY_FROM, source);
        self.client.send(request).await.map_err(|e| e.of(to.as_ref()))?;
        self.remove(replaced).await
    }
}

/// What a header or a path does not take as it is.
const SOURCE_ENCODED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_');

/// A request that reads. What is overwritten has to be read from the newest replica.
fn read<'a>(method: Method, name: &'a str, location: &Path) -> Request<'a> {
    let request = Request::new(method, name);
    if is_immutable(location) { request } else { newest(request) }
}

/// A request that is answered by the newest replica: what is deleted goes by it.
fn newest(request: Request<'_>) -> Request<'_> {
    request.header(NEWEST, HeaderValue::from_static("true"))
}

/// The prefix of a dynamic large object's segments, when they are in this container.
fn dynamic_prefix(container: &Container, manifest: &str) -> Option<String> {
    let manifest = percent_encoding::percent_decode_str(manifest).decode_utf8().ok()?;
    let (name, prefix) = manifest.split_once('/')?;
    // An empty prefix would be all that the container holds.
    (name == container.client.container() && !prefix.is_empty()).then(|| prefix.to_owned())
}

fn whole(headers: &HeaderMap) -> Option<(std::ops::Range<u64>, u64)> {
    let size = text(headers, &CONTENT_LENGTH)?.parse().ok()?;
    Some((0..size, size))
}

/// `Content-Range: bytes 0-9/100`
fn partial(headers: &HeaderMap) -> Option<(std::ops::Range<u64>, u64)> {
    let (range, size) = text(headers, &CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    Some((first..last + 1, size.parse().ok()?))
}

fn meta(location: &Path, size: u64, headers: &HeaderMap) -> ObjectMeta {
    let modified = text(headers, &LAST_MODIFIED).map(DateTime::parse_from_rfc2822);
    ObjectMeta {
        location: location.clone(),
        last_modified: modified
            .and_then(Result::ok)
            .map_or(DateTime::<Utc>::UNIX_EPOCH, Into::into),
        size,
        e_tag: text(headers, &ETAG).map(str::to_owned),
        version: None,
    }
}

fn unexpected(what: &str) -> Error {
    Error::Generic { store: "Swift", source: format!("the server answered with {what}").into() }
}

fn unsupported(what: &str) -> Error {
    Error::NotSupported { source: format!("Swift has no {what}").into() }
}

impl fmt::Debug for Swift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Swift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Swift container {}", self.0.client.container())
    }
}

#[async_trait]
impl ObjectStore for Swift {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.0.put(location, payload.into(), options.mode).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(Upload::new(Arc::clone(&self.0), location)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.version.is_some() {
            return Err(unsupported("versions by this interface"));
        }
        let result = if options.head {
            let (meta, _) = self.0.head(location).await?;
            GetResult {
                payload: GetResultPayload::Stream(stream::empty().boxed()),
                range: 0..meta.size,
                meta,
                attributes: Attributes::new(),
                extensions: Default::default(),
            }
        } else {
            self.0.get(location, options.range.clone()).await?
        };
        options.check_preconditions(&result.meta)?;
        Ok(result)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let container = Arc::clone(&self.0);
        let deletions = locations.map(move |location| {
            let container = Arc::clone(&container);
            async move {
                let location = location?;
                container.delete(&location).await?;
                Ok(location)
            }
        });
        deletions.buffered(CONNECTIONS).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let container = Arc::clone(&self.0);
        listing::list(container, prefix.cloned())
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        listing::list_with_delimiter(&self.0, prefix).boxed().await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy(from, to, options).await
    }
}

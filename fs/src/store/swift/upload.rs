//! Large objects: segments, and a static manifest that makes them one object.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{
    Method,
    header::{CONTENT_TYPE, ETAG},
};
use object_store::{
    Error, MultipartUpload, PutMode, PutPayload, PutResult, Result, UploadPart, path::Path,
};
use serde::{Deserialize, Serialize};

use super::{Container, OCTET_STREAM, client::Request, login::text, newest, unexpected};

/// One segment in a manifest that is sent.
#[derive(Clone, Debug, Serialize)]
struct Segment {
    /// `/container/name`
    path: String,
    etag: String,
    size_bytes: usize,
}

/// One segment in a manifest that is read.
#[derive(Deserialize)]
struct Listed {
    /// `/container/name`
    name: String,
}

/// The names of the segments of a static large object.
pub async fn segments_in_manifest(container: &Container, location: &Path) -> Result<Vec<String>> {
    let name = container.name(location);
    let request = Request::new(Method::GET, &name).query("multipart-manifest", "get");
    let answer = container.client.fetch(newest(request)).await;
    let body = answer.map_err(|e| e.of(location.as_ref()))?.into_body();
    let listed: Vec<Listed> =
        serde_json::from_slice(&body).map_err(|_| unexpected("a manifest that is none"))?;
    let own = format!("/{}/", container.client.container());
    let names = listed.iter().filter_map(|segment| segment.name.strip_prefix(&own));
    Ok(names.map(str::to_owned).collect())
}

/// An upload in parts. Nothing of it is visible before its manifest is written.
pub struct Upload {
    container: Arc<Container>,
    location: Path,
    /// What the names of its segments begin with.
    prefix: String,
    /// How many parts were begun.
    started: usize,
    /// The parts that are there.
    segments: Arc<Mutex<Vec<(usize, Segment)>>>,
}

impl Upload {
    /// An upload of which nothing was sent yet.
    pub fn new(container: Arc<Container>, location: &Path) -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // The time makes the name unique among nodes whose process has the same number.
        let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let (process, counter) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        // The sweep looks for the manifest at the location.
        let prefix = format!("{}{location}/{time}-{process}-{counter}/", container.segments);
        let segments = Arc::default();
        Self { container, location: location.clone(), prefix, started: 0, segments }
    }

    fn segment_name(&self, index: usize) -> String {
        // Five digits, so that a listing has them in order.
        format!("{}{index:05}", self.prefix)
    }

    /// The manifest of the parts that are there, when all of them are.
    fn manifest(&self) -> Result<Vec<Segment>> {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        if segments.len() != self.started {
            let source = "the upload was completed while parts were on their way".into();
            return Err(Error::Generic { store: "Swift", source });
        }
        segments.sort_by_key(|(index, _)| *index);
        Ok(segments.iter().map(|(_, segment)| segment.clone()).collect())
    }

    async fn remove_segments(&self) -> Result<()> {
        self.container
            .remove((0..self.started).map(|index| self.segment_name(index)).collect())
            .await
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let (index, name) = (self.started, self.segment_name(self.started));
        self.started += 1;
        let (container, segments) = (Arc::clone(&self.container), Arc::clone(&self.segments));
        Box::pin(async move {
            let content = Bytes::from(payload);
            let size_bytes = content.len();
            let request = Request::new(Method::PUT, &name).header(CONTENT_TYPE, OCTET_STREAM);
            let answer = container.client.send(request.body(content)).await;
            let answer = answer.map_err(|e| e.of(&name))?;
            let etag = text(answer.headers(), &ETAG);
            let etag = etag.ok_or_else(|| unexpected("no ETag"))?.trim_matches('"').to_owned();
            let path = format!("/{}/{name}", container.client.container());
            let segment = Segment { path, etag, size_bytes };
            segments.lock().unwrap_or_else(PoisonError::into_inner).push((index, segment));
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let manifest = self.manifest()?;
        if manifest.is_empty() {
            return self.container.put(&self.location, Bytes::new(), PutMode::Overwrite).await;
        }
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|e| Error::Generic { store: "Swift", source: Box::new(e) })?;
        let replaced = self.container.segments_of(&self.location).await?;
        let name = self.container.name(&self.location);
        let request = Request::new(Method::PUT, &name).query("multipart-manifest", "put");
        let request = request.header(CONTENT_TYPE, OCTET_STREAM);
        // When there is no answer the manifest may be written all the same: its segments stay.
        let answer = self.container.client.send(request.body(manifest.into())).await;
        let answer = answer.map_err(|e| e.of(self.location.as_ref()))?;
        let e_tag = text(answer.headers(), &ETAG).map(str::to_owned);
        self.container.remove(replaced).await?;
        Ok(PutResult { e_tag, version: None, extensions: Default::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        self.remove_segments().await
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "upload of {} to {}", self.location, self.prefix)
    }
}

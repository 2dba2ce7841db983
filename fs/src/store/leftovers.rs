//! What a killed node leaves behind: uploads that were begun, and neither completed nor aborted.
//! No listing of objects shows them, and their owner pays for them.
//!
//! Each system has its own way:
//!
//! | system | what is left | how it is found |
//! |---|---|---|
//! | S3, Google Cloud Storage, OSS | an upload, with its parts | listed by the call of S3 that all three have |
//! | Swift | segments that no manifest refers to | listed, and compared with the manifest |
//! | a directory | a staged file | listed |
//! | Azure | blocks that were never committed | not at all: the service itself removes them after a week |

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use http::Uri;
use larder_layout::Digest;
use object_store::{
    Error, Result,
    client::{HttpClient, HttpRequest, HttpRequestBody},
    multipart::MultipartStore,
    path::Path,
};
use quick_xml::de;
use reqwest::Url;
use serde::Deserialize;

use super::{Storage, http as shared, keys::Keys};

/// What is this old belongs to nobody any more. No upload takes as long.
const LEFTOVER_AGE: Duration = Duration::from_hours(24);
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);

/// The leftovers of one system.
#[async_trait]
pub trait Leftovers: Send + Sync {
    /// Removes what killed nodes left when it is as old as `older_than`, and tells how many uploads
    /// that were. What is still on its way is younger than the caller lets this be.
    async fn sweep(&self, older_than: Duration) -> Result<usize>;
}

/// Sweeps now, and then every hour, for as long as it is polled. A sweep that fails is logged: the
/// storage works without it.
pub async fn sweep_hourly(storage: Arc<Storage>) {
    loop {
        match storage.sweep_leftovers(LEFTOVER_AGE).await {
            Ok(0) => {}
            Ok(uploads) => tracing::info!("{storage}: removed {uploads} uploads of killed nodes"),
            Err(e) => {
                tracing::warn!("{storage}: cannot remove what killed nodes have left: {e}");
            }
        }
        match storage.sweep_leases(LEFTOVER_AGE).await {
            Ok(0) => {}
            Ok(leases) => tracing::info!("{storage}: ended {leases} leases of killed nodes"),
            Err(e) => tracing::warn!("{storage}: cannot end leases of killed nodes: {e}"),
        }
        tokio::time::sleep(SWEEP_INTERVAL).await;
    }
}

/// How old something is, by our clock. A server's clock that is ahead makes it new.
pub fn age(since: DateTime<Utc>) -> Duration {
    SystemTime::now().duration_since(since.into()).unwrap_or_default()
}

/// What differs in a request for a list of uploads: the bucket's URL, and how it is signed.
#[async_trait]
pub trait Requests: Send + Sync {
    /// A GET of the bucket with these parameters, in which it is said who asks.
    async fn get_bucket(&self, query: Vec<(&'static str, String)>) -> Result<HttpRequest>;
}

/// A GET without a body.
pub fn get(url: &Url) -> Result<HttpRequest> {
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    let uri = url.as_str().parse::<Uri>();
    *request.uri_mut() = uri.map_err(|e| generic(e.into()))?;
    Ok(request)
}

/// The uploads of blobs in a bucket that has S3's calls. Others, Distribution's `_uploads/` among
/// them, are none of ours.
pub struct Uploads {
    objects: Arc<dyn MultipartStore>,
    requests: Box<dyn Requests>,
    client: HttpClient,
    keys: Keys,
}

/// A page of a listing (Amazon S3 API Reference, "ListMultipartUploads").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    upload: Vec<Upload>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: String,
}

impl Uploads {
    /// The uploads below `root_directory` in the bucket that `requests` ask for. `objects` has the
    /// same bucket, and aborts them.
    pub fn new(
        objects: impl MultipartStore,
        requests: impl Requests + 'static,
        client: HttpClient,
        root_directory: &str,
    ) -> Self {
        let keys = Keys::new(root_directory);
        Self { objects: Arc::new(objects), requests: Box::new(requests), client, keys }
    }

    /// The page behind the markers of the one before.
    async fn page(&self, key_marker: String, upload_id_marker: String) -> Result<Page> {
        let mut query =
            vec![("uploads", String::new()), ("prefix", format!("{}/", self.keys.all_blobs()))];
        let markers = [("key-marker", key_marker), ("upload-id-marker", upload_id_marker)];
        query.extend(markers.into_iter().filter(|(_, marker)| !marker.is_empty()));
        let request = self.requests.get_bucket(query).await?;
        let answer = self.client.execute(request).await.map_err(|e| generic(e.into()))?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(|e| generic(e.into()))?;
        let text = String::from_utf8_lossy(&body);
        if !status.is_success() {
            let code = shared::element(&text, "Code").unwrap_or_default();
            return Err(generic(format!("a list of them was answered {status}: {code}").into()));
        }
        de::from_str(&text).map_err(|e| generic(format!("a list of uploads: {e}").into()))
    }

    /// The blob that an upload was to become, when it is old enough. One that says no date may
    /// have begun just now.
    fn leftover(&self, upload: &Upload, older_than: Duration) -> Option<Digest> {
        let began = DateTime::parse_from_rfc3339(&upload.initiated).ok()?;
        let digest = self.keys.digest_of(&upload.key)?;
        (age(began.into()) >= older_than).then_some(digest)
    }

    async fn abort(&self, path: &Path, id: &String) -> Result<()> {
        match self.objects.abort_multipart(path, id).await {
            // Another node sweeps, too.
            Err(Error::NotFound { .. }) => Ok(()),
            outcome => outcome,
        }
    }
}

#[async_trait]
impl Leftovers for Uploads {
    async fn sweep(&self, older_than: Duration) -> Result<usize> {
        let mut aborted = 0;
        let (mut key_marker, mut upload_id_marker) = (String::new(), String::new());
        loop {
            let page = self.page(key_marker, upload_id_marker).await?;
            for upload in &page.upload {
                if let Some(digest) = self.leftover(upload, older_than) {
                    self.abort(&self.keys.blob(&digest), &upload.upload_id).await?;
                    aborted += 1;
                }
            }
            if !page.is_truncated {
                return Ok(aborted);
            }
            // SeaweedFS has the second one only.
            (key_marker, upload_id_marker) = (page.next_key_marker, page.next_upload_id_marker);
            if key_marker.is_empty() && upload_id_marker.is_empty() {
                return Err(generic(
                    "a page of uploads that says not how to get the next one".into(),
                ));
            }
        }
    }
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: "uploads", source }
}

//! Shared storage → readers: a blob that is not in the local cache is read while it is fetched.
//!
//! Opening it returns with its first block. What readers ask for comes first; a blob that is read
//! from one end to the other is fetched whole, in parallel ranges, into one file of the cache
//! ([`growing`]). However many readers there are, each byte is fetched once. A blob that the cache
//! has no room for is read without it ([`uncached`]).

mod growing;
mod reader;
mod run;
mod uncached;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use larder_config::Fill;
use larder_layout::Digest;
use tokio::{sync::Semaphore, time::timeout};

pub use self::reader::Reader;
use self::{growing::Growing, uncached::Uncached};
use crate::{
    cache::{Cache, CachedBlob},
    error::{Error, Result},
    metrics::Metrics,
    store::{BlobMeta, Storage},
};

/// What is fetched, hashed and shown to readers at a time. The last block of a blob is shown when
/// all of them hash to its digest.
const BLOCK_BYTES: u64 = 1 << 20;
/// How many blocks are asked for in one request at the most. A quarter of a second at 256 Mbit/s:
/// long enough to fill a connection across an ocean, short enough to be tried again.
const RUN_BLOCKS: usize = 8;
/// How many requests are under way at a time for one blob that is fetched whole.
const CONNECTIONS: usize = 8;
/// How many requests are under way at a time for all blobs that are fetched whole: with
/// [`RUN_BLOCKS`], this limits the bytes that are in flight on a mount to 256 MiB.
const FILL_REQUESTS_MAX: usize = 32;
/// And how many for what readers wait for: 128 MiB.
const READ_REQUESTS_MAX: usize = 16;
/// How long the storage may go without giving the next bytes.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The fetches of one node.
pub struct Fetches {
    storage: Arc<Storage>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    fill: Fill,
    fill_requests: Semaphore,
    read_requests: Semaphore,
    /// Blobs that have readers, or are being fetched whole.
    growing: Mutex<HashMap<Digest, Weak<Growing>>>,
}

/// The content of a blob.
pub enum Content {
    /// All of it, verified, in the local cache.
    Cached(CachedBlob),
    /// On its way.
    Fetched(Box<Reader>),
}

impl Fetches {
    /// No fetch is running yet.
    pub fn new(
        storage: Arc<Storage>,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
        fill: Fill,
    ) -> Arc<Self> {
        Arc::new(Self {
            storage,
            cache,
            metrics,
            fill,
            fill_requests: Semaphore::new(FILL_REQUESTS_MAX),
            read_requests: Semaphore::new(READ_REQUESTS_MAX),
            growing: Mutex::default(),
        })
    }

    /// Size and age of a blob: from the cache, else from the storage.
    ///
    /// # Errors
    /// As [`Storage::stat_blob`].
    pub async fn stat(&self, digest: &Digest) -> Result<BlobMeta> {
        match self.cache.stat(digest) {
            Some(meta) => Ok(meta),
            None => self.storage.stat_blob(digest).await,
        }
    }

    /// Opens a blob, which has `meta` if it is not in the cache: one of more than a block may
    /// still be on its way.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone from the storage, [`Error::Damaged`] when the storage
    /// holds something else under its name.
    pub async fn open(self: &Arc<Self>, digest: &Digest, meta: BlobMeta) -> Result<Content> {
        match self.open_cached(digest).await {
            Ok(Some(blob)) => {
                self.metrics.opened_cached();
                return Ok(Content::Cached(blob));
            }
            Ok(None) => {}
            Err(e) => tracing::warn!(%digest, "read from the shared storage instead: {e}"),
        }
        let content = self.fetch(digest, meta).await?;
        self.metrics.opened_fetched();
        Ok(content)
    }

    async fn open_cached(&self, digest: &Digest) -> Result<Option<CachedBlob>> {
        let (cache, digest) = (Arc::clone(&self.cache), digest.clone());
        // A file that looks different than when it was verified is hashed here.
        blocking(move || cache.open_blob(&digest)).await
    }

    async fn fetch(self: &Arc<Self>, digest: &Digest, meta: BlobMeta) -> Result<Content> {
        let growing = match self.begin(digest, meta).await {
            Ok(growing) => Some(growing),
            Err(e @ Error::Disk { .. }) => {
                tracing::warn!(%digest, "read without the local cache: {e}");
                None
            }
            Err(e) => return Err(e),
        };
        if let Some(growing) = &growing
            && growing.is_whole()
            && let Ok(Some(blob)) = self.open_cached(digest).await
        {
            return Ok(Content::Cached(blob));
        }
        let uncached = Uncached::new(Arc::clone(self), digest.clone(), meta.size_bytes);
        if growing.is_none() {
            uncached.begin().await?;
        }
        Ok(Content::Fetched(Box::new(Reader::new(growing, uncached, self.fill))))
    }

    /// The blob that is growing, or a new one, once its first block is there.
    async fn begin(self: &Arc<Self>, digest: &Digest, meta: BlobMeta) -> Result<Arc<Growing>> {
        let (this, digest) = (Arc::clone(self), digest.clone());
        let growing = blocking(move || this.join(digest, meta)).await?;
        growing.begin().await?;
        Ok(growing)
    }

    fn join(self: &Arc<Self>, digest: Digest, meta: BlobMeta) -> Result<Arc<Growing>> {
        let mut all = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let running = all.get(&digest).and_then(Weak::upgrade);
        if let Some(growing) = &running
            && !growing.has_failed()
        {
            return Ok(Arc::clone(growing));
        }
        let growing = Arc::new(Growing::new(Arc::clone(self), digest.clone(), meta)?);
        all.insert(digest, Arc::downgrade(&growing));
        // The last to let go of the failed one takes this lock, too.
        drop(all);
        drop(running);
        Ok(growing)
    }

    /// Forgets blobs that nobody reads any more, and one that is whole.
    fn leave(&self, growing: &Growing) {
        let mut all = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |other: &Weak<Growing>| std::ptr::eq(other.as_ptr(), growing);
        if all.get(&growing.digest).is_some_and(is_ours) {
            all.remove(&growing.digest);
        }
    }

    /// What is stored under `digest` is not that: it counts as missing until it is published anew.
    fn mark_damaged(&self, digest: &Digest, error: &Error) {
        self.storage.mark_damaged(digest);
        tracing::error!(%digest, "{error}; it counts as missing until it is published anew");
    }
}

/// The next bytes of a range; `None` behind the last.
///
/// # Errors
/// [`Error::TimedOut`] when the storage gives none for [`STALL_TIMEOUT`].
async fn next_piece(content: &mut BoxStream<'static, Result<Bytes>>) -> Result<Option<Bytes>> {
    match timeout(STALL_TIMEOUT, content.next()).await {
        Ok(piece) => piece.transpose(),
        Err(_) => Err(Error::TimedOut),
    }
}

/// Runs what blocks on the local disk, or hashes, in a thread of its own.
pub async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(operation).await;
    outcome.unwrap_or_else(|e| Err(Error::disk("run a disk operation", std::io::Error::other(e))))
}

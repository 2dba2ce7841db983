//! Shared storage → local cache: parallel ranges into one staged file, one fetch per blob however
//! many readers wait for it.

use std::{
    collections::HashMap,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
};
use larder_layout::{Digest, Verifier};

use crate::{
    cache::{Cache, CachedBlob},
    error::{Error, Result},
    metrics::Metrics,
    store::{BlobMeta, Storage},
};

/// How many ranges of a blob are fetched at a time.
const CONNECTIONS: usize = 4;
/// How long the storage may go without giving the next range. It is longer than the storage's
/// own time-outs and retries, which give better errors.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

type Fetch = Shared<BoxFuture<'static, Result<Arc<CachedBlob>>>>;

/// The fetches of one node.
pub struct Fetches {
    storage: Arc<Storage>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    running: Mutex<HashMap<Digest, Fetch>>,
}

impl Fetches {
    /// No fetch is running yet.
    pub fn new(storage: Arc<Storage>, cache: Arc<Cache>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { storage, cache, metrics, running: Mutex::default() })
    }

    /// Opens a blob: from the cache, after a fetch if it is not there yet.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no node has published it, [`Error::Damaged`] when the storage
    /// holds something else under its name.
    pub async fn open(self: &Arc<Self>, digest: &Digest) -> Result<Arc<CachedBlob>> {
        let (cache, name) = (Arc::clone(&self.cache), digest.clone());
        if let Some(blob) = blocking(move || cache.open_blob(&name)).await? {
            self.metrics.opened_cached();
            return Ok(Arc::new(blob));
        }
        let blob = self.join(digest).await?;
        self.metrics.opened_fetched();
        Ok(blob)
    }

    /// Waits for the fetch that is running, or starts one. It goes on when the caller does not
    /// wait any more: others may.
    async fn join(self: &Arc<Self>, digest: &Digest) -> Result<Arc<CachedBlob>> {
        let fetch = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(fetch) = running.get(digest) {
                fetch.clone()
            } else {
                let fetch = Arc::clone(self).run(digest.clone()).boxed().shared();
                tokio::spawn(fetch.clone());
                running.insert(digest.clone(), fetch.clone());
                fetch
            }
        };
        fetch.await
    }

    async fn run(self: Arc<Self>, digest: Digest) -> Result<Arc<CachedBlob>> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // A colon cannot be in the name of an ingest, so the two never meet.
        let name = format!("fetch:{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let outcome = self.fetch(&digest, &name).await;
        if let Err(e) = &outcome {
            let _ = std::fs::remove_file(self.cache.staging_path(&name));
            match e {
                Error::NotFound => {}
                Error::Damaged(_) => {
                    self.storage.mark_damaged(&digest);
                    tracing::error!(%digest, "{e}; it counts as missing until it is published anew");
                }
                e => tracing::warn!(%digest, "cannot fetch from the shared storage: {e}"),
            }
        }
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        outcome
    }

    async fn fetch(&self, digest: &Digest, name: &str) -> Result<Arc<CachedBlob>> {
        let meta = self.storage.stat_blob(digest).await?;
        let cache = Arc::clone(&self.cache);
        let room = blocking(move || cache.reserve(meta.size_bytes)).await?;
        self.fill(digest, name, meta).await?;
        let (cache, name, digest) = (Arc::clone(&self.cache), name.to_owned(), digest.clone());
        blocking(move || cache.adopt(&name, &digest, meta.modified, room).map(Arc::new)).await
    }

    /// Writes the blob into a staged file, and checks it.
    async fn fill(&self, digest: &Digest, name: &str, meta: BlobMeta) -> Result<()> {
        let file = Arc::new(self.cache.stage(name)?);
        let mut verifier = Verifier::new(digest.clone());
        let mut parts = self.storage.stream_blob(digest, meta.size_bytes, CONNECTIONS);
        loop {
            let part = tokio::time::timeout(STALL_TIMEOUT, parts.next());
            let Some(part) = part.await.map_err(|_| Error::TimedOut)?.transpose()? else { break };
            self.metrics.fetched(part.len() as u64);
            let file = Arc::clone(&file);
            verifier = blocking(move || {
                let written = file.write_all_at(&part, verifier.size_bytes());
                written.map_err(|e| Error::disk("write a fetched range", e))?;
                verifier.update(&part);
                Ok(verifier)
            })
            .await?;
        }
        verifier.finish().map_err(Error::Damaged)
    }
}

/// Runs what blocks on the local disk, or hashes, in a thread of its own.
pub async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(operation).await;
    outcome.unwrap_or_else(|e| Err(Error::disk("run a disk operation", std::io::Error::other(e))))
}

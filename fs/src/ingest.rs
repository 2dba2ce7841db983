//! `ingest/`: staging, and the way of a staged file into the shared storage.
//!
//! A file is read once when it is published. Each piece is hashed and sent, and the upload is
//! completed only when the digest is right, so nothing wrong is ever visible to another node.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use larder_layout::{Digest, StagingId, Verifier};
use tokio::sync::watch;

use crate::{
    cache::Cache,
    error::{Error, Result},
    fetch::blocking,
    metrics::Metrics,
    store::{PART_BYTES, Storage},
};

/// How many parts of a blob are sent at a time.
const CONNECTIONS: usize = 4;
/// An upload may take this long, and a second more for each MiB.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The kernel reports that a file was closed a moment after `close(2)` returned.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many files and symlinks may be staged at a time.
const STAGED_MAX: usize = 10_000;

/// A name in `ingest/`.
#[derive(Clone)]
pub enum Staged {
    /// A file that may become a blob.
    File(Arc<StagedFile>),
    /// A symlink to a blob, that may become a tag or a membership.
    Link(Digest),
}

/// A file in `ingest/`, and how many writers it has.
pub struct StagedFile {
    /// The file on local disk. It stays readable for whoever has it open, also after it was
    /// published.
    pub file: File,
    writers: watch::Sender<usize>,
}

impl StagedFile {
    /// Counts a writer until it is dropped.
    pub fn writer(self: &Arc<Self>) -> Writer {
        self.writers.send_modify(|writers| *writers += 1);
        Writer(Arc::clone(self))
    }

    /// Whether all writers are gone, after a moment's wait.
    async fn is_closed(&self) -> bool {
        let mut writers = self.writers.subscribe();
        let closed = writers.wait_for(|&writers| writers == 0);
        tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_ok()
    }
}

/// Someone who has a staged file open for writing.
pub struct Writer(Arc<StagedFile>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.writers.send_modify(|writers| *writers -= 1);
    }
}

/// The way in, for one node.
pub struct Ingest {
    storage: Arc<Storage>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    staged: Mutex<HashMap<StagingId, Staged>>,
}

impl Ingest {
    /// An ingest into `storage` that leaves what it published in `cache`.
    pub fn new(storage: Arc<Storage>, cache: Arc<Cache>, metrics: Arc<Metrics>) -> Self {
        Self { storage, cache, metrics, staged: Mutex::default() }
    }

    /// What is staged under a name.
    pub fn get(&self, id: &StagingId) -> Option<Staged> {
        self.staged().get(id).cloned()
    }

    /// Every name in `ingest/`.
    pub fn ids(&self) -> Vec<StagingId> {
        self.staged().keys().cloned().collect()
    }

    /// Creates an empty file.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken, [`Error::Disk`] with ENOSPC when too much is
    /// staged already.
    pub fn create(&self, id: &StagingId) -> Result<Arc<StagedFile>> {
        let mut staged = self.vacant(id)?;
        let file = self.cache.stage(id.as_str())?;
        let file = Arc::new(StagedFile { file, writers: watch::Sender::new(0) });
        staged.insert(id.clone(), Staged::File(Arc::clone(&file)));
        Ok(file)
    }

    /// Creates a symlink.
    ///
    /// # Errors
    /// As [`Ingest::create`].
    pub fn symlink(&self, id: &StagingId, digest: Digest) -> Result<()> {
        self.vacant(id)?.insert(id.clone(), Staged::Link(digest));
        Ok(())
    }

    /// Removes a name. Whoever has the file open keeps it.
    ///
    /// # Errors
    /// [`Error::NotFound`]
    pub fn remove(&self, id: &StagingId) -> Result<()> {
        match self.staged().remove(id) {
            Some(Staged::File(_)) => self.remove_file(id),
            Some(Staged::Link(_)) => Ok(()),
            None => Err(Error::NotFound),
        }
    }

    /// Publishes a staged file under `digest`. When this returns, the blob is durable and every
    /// node can read it, and the staged name is gone.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the content does not hash to `digest`; then, as after any other
    /// error, nothing is visible and the staged file is still there.
    pub async fn commit(
        &self,
        id: &StagingId,
        staged: Arc<StagedFile>,
        digest: &Digest,
    ) -> Result<()> {
        let is_closed = staged.is_closed().await;
        let size_bytes =
            staged.file.metadata().map_err(|e| Error::disk("stat an ingest", e))?.len();
        self.send(&staged, digest, size_bytes).await?;
        self.metrics.ingested(size_bytes);
        self.staged().remove(id);
        // Whoever still writes would change the cached blob: then the next reader fetches it.
        let kept = if is_closed { self.keep(id, digest).await } else { self.remove_file(id) };
        if let Err(e) = kept {
            tracing::warn!(%digest, "published, but not kept in the local cache: {e}");
        }
        Ok(())
    }

    async fn send(&self, staged: &Arc<StagedFile>, digest: &Digest, size_bytes: u64) -> Result<()> {
        match self.storage.stat_blob(digest).await {
            Ok(meta) => {
                self.verify(staged, digest, size_bytes).await?;
                if meta.size_bytes == size_bytes {
                    return Ok(());
                }
                self.storage.mark_damaged(digest);
            }
            Err(Error::NotFound) => {}
            Err(e) => return Err(e),
        }
        if size_bytes <= PART_BYTES {
            let (verifier, content) =
                read_and_hash(staged, Verifier::new(digest.clone()), size_bytes).await?;
            verifier.finish()?;
            self.storage.remove_if_damaged(digest).await?;
            return self.storage.put_blob(digest, content).await;
        }
        let timeout = UPLOAD_TIMEOUT + Duration::from_secs(size_bytes >> 20);
        self.send_in_parts(staged, digest, size_bytes, timeout).await
    }

    /// Another node has published the same blob: when it is whole, nothing has to be sent.
    async fn verify(
        &self,
        staged: &Arc<StagedFile>,
        digest: &Digest,
        size_bytes: u64,
    ) -> Result<()> {
        let mut verifier = Verifier::new(digest.clone());
        while verifier.size_bytes() < size_bytes {
            (verifier, _) = read_and_hash(staged, verifier, size_bytes).await?;
        }
        Ok(verifier.finish()?)
    }

    async fn send_in_parts(
        &self,
        staged: &Arc<StagedFile>,
        digest: &Digest,
        size_bytes: u64,
        timeout: Duration,
    ) -> Result<()> {
        let mut upload = self.storage.upload_blob(digest, size_bytes).await?;
        let sending = async {
            let mut verifier = Verifier::new(digest.clone());
            while verifier.size_bytes() < size_bytes {
                let part;
                (verifier, part) = read_and_hash(staged, verifier, size_bytes).await?;
                upload.write(part, CONNECTIONS).await?;
            }
            verifier.finish()?;
            self.storage.remove_if_damaged(digest).await
        };
        let outcome = tokio::time::timeout(timeout, sending).await;
        match outcome.unwrap_or(Err(Error::TimedOut)) {
            Ok(()) => upload.complete().await,
            Err(e) => {
                if let Err(abort) = upload.abort().await {
                    tracing::warn!(%digest, "parts of an upload that failed are left over: {abort}");
                }
                Err(e)
            }
        }
    }

    async fn keep(&self, id: &StagingId, digest: &Digest) -> Result<()> {
        let (cache, digest, id) = (Arc::clone(&self.cache), digest.clone(), id.to_string());
        blocking(move || {
            let staged = cache.staging_path(&id);
            let size_bytes = staged.metadata().map_err(|e| Error::disk("stat an ingest", e))?.len();
            let room = cache.reserve(size_bytes).inspect_err(|_| {
                let _ = std::fs::remove_file(staged);
            })?;
            cache.adopt(&id, &digest, SystemTime::now(), room).map(drop)
        })
        .await
    }

    fn remove_file(&self, id: &StagingId) -> Result<()> {
        let path = self.cache.staging_path(id.as_str());
        std::fs::remove_file(path).map_err(|e| Error::disk("remove an ingest", e))
    }

    /// The staged names, among which `id` is not and may be put.
    fn vacant(&self, id: &StagingId) -> Result<MutexGuard<'_, HashMap<StagingId, Staged>>> {
        let staged = self.staged();
        if staged.contains_key(id) {
            return Err(Error::Exists);
        }
        if staged.len() >= STAGED_MAX {
            let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(Error::disk(format!("stage more than {STAGED_MAX} files"), full));
        }
        Ok(staged)
    }

    fn staged(&self) -> MutexGuard<'_, HashMap<StagingId, Staged>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads and hashes the next part of a file that is to have `size_bytes`.
async fn read_and_hash(
    staged: &Arc<StagedFile>,
    mut verifier: Verifier,
    size_bytes: u64,
) -> Result<(Verifier, Bytes)> {
    let staged = Arc::clone(staged);
    blocking(move || {
        let offset = verifier.size_bytes();
        let mut part = vec![0; (size_bytes - offset).min(PART_BYTES) as usize];
        let read = staged.file.read_exact_at(&mut part, offset);
        read.map_err(|e| Error::disk("read an ingest", e))?;
        verifier.update(&part);
        Ok((verifier, Bytes::from(part)))
    })
    .await
}

//! `ingest/`: staging, and the way of a staged file into the shared storage.
//!
//! When the name of a file tells its digest ([`StagingId::digest`]), a large one is hashed and
//! uploaded while it comes, in parts, and all that `rename` has to do is to complete the upload;
//! nothing wrong is ever visible to another node. A file that was not written from its beginning to
//! its end, or whose name tells nothing, is read, hashed and sent when it is published ([`staged`],
//! [`send`]).

mod send;
mod staged;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use larder_layout::{Digest, StagingId};
use tokio::task::JoinHandle;

pub use self::staged::StagedFile;
use crate::{
    cache::Cache,
    error::{Error, Result},
    metrics::Metrics,
    store::Storage,
};

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
        let file = Arc::new(StagedFile::create(&self.storage, &self.cache, id)?);
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

    /// Removes a name. Whoever has the file open keeps it; what of it was uploaded is taken back.
    ///
    /// # Errors
    /// [`Error::NotFound`]
    pub async fn remove(&self, id: &StagingId) -> Result<()> {
        let removed = self.staged().remove(id);
        match removed {
            Some(Staged::File(file)) => {
                let removed = self.remove_file(&file);
                file.discard().await;
                removed
            }
            Some(Staged::Link(_)) => Ok(()),
            None => Err(Error::NotFound),
        }
    }

    /// Publishes a staged file under `digest`. When this returns, the blob is durable and every
    /// node can read it, and the staged name is gone; the local cache may still be taking it in,
    /// which is there to be waited for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the content does not hash to `digest`; then, as after any other
    /// error, nothing is visible and the staged file is still there.
    pub async fn commit(
        &self,
        id: &StagingId,
        staged: Arc<StagedFile>,
        digest: &Digest,
    ) -> Result<JoinHandle<()>> {
        let (seal, size_bytes) = staged.seal()?;
        self.send(&staged, digest, size_bytes).await?;
        // From here on nobody who is interrupted leaves half of it done.
        seal.keep();
        self.metrics.ingested(size_bytes);
        self.staged().remove(id);
        let (cache, digest) = (Arc::clone(&self.cache), digest.clone());
        Ok(tokio::task::spawn_blocking(move || {
            let Some(room) = staged.take_room() else { return };
            staged.file.end_writing();
            if let Err(e) = cache.adopt(&staged.name, &digest, SystemTime::now(), room) {
                tracing::warn!(%digest, "published, but not kept in the local cache: {e}");
            }
        }))
    }

    fn remove_file(&self, file: &StagedFile) -> Result<()> {
        let path = self.cache.staging_path(&file.name);
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

//! The shared storage: blobs and links as objects, in Distribution's layout.
//!
//! The only place that names `object_store`. Each system's peculiarities are in a file of its own.

mod azure;
mod circuit;
mod directory;
mod expiry;
mod gcs;
mod http;
mod keys;
mod leases;
mod leftovers;
mod oss;
mod s3;
mod swift;
mod upload;

use std::{
    fmt,
    future::ready,
    num::NonZeroUsize,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{
    StreamExt, TryFutureExt, TryStreamExt,
    stream::{self, BoxStream},
};
use larder_config::Storage as Config;
use larder_layout::{Algorithm, Digest, Link, Membership, Repository};
use lru::LruCache;
use object_store::{
    Attributes, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions,
    PutOptions, PutPayload, path::Path,
};
use tokio::{sync::Semaphore, time::timeout};

use self::{circuit::Circuit, keys::Keys};
pub use self::{
    expiry::expire,
    leftovers::{Leftovers, sweep_hourly},
    upload::Upload,
};
use crate::error::{Error, Result};

/// How much of a blob is asked for, or sent, in one request. A quarter of a second at 256 Mbit/s:
/// long enough to fill a connection across an ocean, short enough to be tried again.
pub const PART_BYTES: u64 = 8 << 20;
/// What a part in memory is aligned to, so that a directory can take it past the page cache: a
/// multiple of what every disk there is asks for.
pub const BLOCK_BYTES: usize = 4096;
/// How many parts are sent at a time, of all blobs: with [`PART_BYTES`], 128 MiB of memory.
const PARTS_IN_FLIGHT_MAX: usize = 16;
/// How long an operation may take that moves no content, with all its attempts.
const NAME_DEADLINE: Duration = Duration::from_secs(20);
/// How long one that moves a part may take.
const PART_DEADLINE: Duration = Duration::from_secs(60);
/// How long completing an upload may take: the last parts, and the server's putting them together,
/// which a directory does by syncing all of it.
const COMPLETE_DEADLINE: Duration = Duration::from_secs(300);
/// How long a sweep of leftovers may take. What it does not come to, a later one does.
const SWEEP_DEADLINE: Duration = Duration::from_secs(600);
/// How many damaged blobs are remembered.
const DAMAGED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();
/// A link holds `<algorithm>:<hex>`: at most 135 bytes. More is not a link.
const LINK_MAX_BYTES: u64 = 256;

/// The storage that all nodes share.
pub struct Storage {
    objects: Arc<dyn ObjectStore>,
    leftovers: Option<Arc<dyn Leftovers>>,
    circuit: Arc<Circuit>,
    keys: Keys,
    part_bytes: u64,
    parts_in_flight: Arc<Semaphore>,
    /// Sent with every object.
    attributes: Attributes,
    /// Blobs that did not hash to their name when they were read.
    damaged: Mutex<LruCache<Digest, ()>>,
}

/// One storage system: what is different from one to the next.
pub struct Backend {
    /// Its objects.
    pub objects: Arc<dyn ObjectStore>,
    /// What killed nodes have left in it, unless the system removes that by itself.
    pub leftovers: Option<Arc<dyn Leftovers>>,
    /// What every key begins with; may be empty.
    pub root_directory: String,
    /// How much of a large blob is sent in one request.
    pub part_bytes: u64,
    /// Sent with every object.
    pub attributes: Attributes,
    /// The key of the configuration to look at for an error that shows a mistake in it.
    pub mistaken_key: fn(&object_store::Error) -> Option<&'static str>,
    /// The key that says where the storage is.
    pub endpoint_key: &'static str,
}

impl Backend {
    /// Whether an error shows a mistake in the configuration for certain. A server that cannot be
    /// reached may be one, or be back in a minute.
    pub fn is_misconfigured(&self, error: &object_store::Error) -> bool {
        (self.mistaken_key)(error).is_some() && !http::is_unreachable(error)
    }

    /// An error in one sentence, with the key of the configuration to look at.
    pub fn explain(&self, error: &object_store::Error) -> String {
        let said = http::cause(error);
        if let Some(start) = said.find("storage.") {
            // A sentence of ours.
            return said[start..].to_owned();
        }
        match (self.mistaken_key)(error) {
            Some(key) => format!("{key}: the storage cannot be used: {said}"),
            None if http::is_unreachable(error) => {
                format!("{}: the storage cannot be reached: {said}", self.endpoint_key)
            }
            None => format!("{}: {said}", self.objects),
        }
    }

    /// The same for a storage that did not answer within `deadline`.
    pub fn explain_silence(&self, deadline: Duration) -> String {
        format!("{}: no answer within {} s", self.endpoint_key, deadline.as_secs())
    }
}

/// The system of a `storage:` section. Nothing is sent to a server yet.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(config: &Config) -> Result<Backend, String> {
    match config {
        Config::Filesystem { root_directory } => directory::open(root_directory),
        Config::S3(config) => s3::open(config),
        Config::Azure(config) => azure::open(config),
        Config::Gcs(config) => gcs::open(config),
        Config::Swift(config) => swift::open(config),
        Config::Oss(config) => oss::open(config),
    }
}

/// What is known of a blob in the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobMeta {
    /// The length of its content.
    pub size_bytes: u64,
    /// When it was published.
    pub modified: SystemTime,
}

impl From<&ObjectMeta> for BlobMeta {
    fn from(meta: &ObjectMeta) -> Self {
        Self { size_bytes: meta.size, modified: meta.last_modified.into() }
    }
}

impl Storage {
    /// A storage over any system.
    pub fn new(backend: Backend) -> Self {
        let Backend { objects, leftovers, root_directory, part_bytes, attributes, .. } = backend;
        Self {
            objects,
            leftovers,
            circuit: Arc::default(),
            keys: Keys::new(&root_directory),
            part_bytes,
            parts_in_flight: Arc::new(Semaphore::new(PARTS_IN_FLIGHT_MAX)),
            attributes,
            damaged: Mutex::new(LruCache::new(DAMAGED_MAX)),
        }
    }

    /// How much of a large blob is sent in one request.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// Removes uploads that were neither completed nor aborted and are as old as `older_than`, and
    /// tells how many there were. Nobody waits for it, and how it ends says nothing about what the
    /// others ask of the storage: it goes around the circuit breaker.
    ///
    /// # Errors
    /// [`Error::TimedOut`] after ten minutes, and what the storage says.
    pub async fn sweep_leftovers(&self, older_than: Duration) -> Result<usize> {
        let Some(leftovers) = &self.leftovers else { return Ok(0) };
        let swept = leftovers.sweep(older_than).map_err(not_a_miss);
        aside("sweep leftovers", SWEEP_DEADLINE, swept).await
    }

    /// Size and age of a blob.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no node has published it, or what is there is damaged.
    pub async fn stat_blob(&self, digest: &Digest) -> Result<BlobMeta> {
        if self.is_damaged(digest) {
            return Err(Error::NotFound);
        }
        let key = self.keys.blob(digest);
        let head = self.objects.head(&key);
        let meta = self.circuit.run(format!("stat {key}"), NAME_DEADLINE, head).await?;
        Ok(BlobMeta::from(&meta))
    }

    /// A range of a blob's content, unverified, as it arrives. The range is not empty.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the blob is gone, or was found to be damaged by a reader before,
    /// [`Error::Storage`] when it has another length than `size_bytes`, as it was told before.
    pub async fn read_blob(
        &self,
        digest: &Digest,
        size_bytes: u64,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        // The kernel may know it from before, and so ask for no more than its content.
        if self.is_damaged(digest) {
            return Err(Error::NotFound);
        }
        let key = self.keys.blob(digest);
        let options = GetOptions { range: Some(range.into()), ..Default::default() };
        let get = self.objects.get_opts(&key, options);
        let found = self.circuit.run(format!("read {key}"), NAME_DEADLINE, get).await?;
        if found.meta.size != size_bytes {
            let source = format!("it has {} bytes now, not {size_bytes}", found.meta.size).into();
            let source = object_store::Error::Generic { store: "blob", source };
            return Err(Error::storage(format!("read {key}"), source));
        }
        let content = found.into_stream();
        Ok(content.map_err(move |e| Error::storage(format!("read {key}"), e)).boxed())
    }

    /// Publishes a blob that was verified before, in one request.
    pub async fn put_blob(&self, digest: &Digest, content: Bytes) -> Result<()> {
        self.put(self.keys.blob(digest), content.into()).await
    }

    /// Begins a large blob, to be sent in parts. Nothing of it is visible before
    /// [`Upload::complete`].
    pub async fn upload_blob(self: &Arc<Self>, digest: &Digest) -> Result<Upload> {
        let key = self.keys.blob(digest);
        let options =
            PutMultipartOptions { attributes: self.attributes.clone(), ..Default::default() };
        let begin = self.objects.put_multipart_opts(&key, options).map_err(not_a_miss);
        let operation = format!("begin upload of {key}");
        let parts = self.circuit.run(operation, NAME_DEADLINE, begin).await?;
        Ok(Upload::new(Arc::clone(self), key, parts))
    }

    /// Remembers that what is stored under `digest` does not hash to it.
    pub fn mark_damaged(&self, digest: &Digest) {
        self.damaged().put(digest.clone(), ());
    }

    /// Removes a blob if it was found to be damaged, so that a sound copy can take its place: a
    /// directory does not replace a blob that exists.
    pub async fn remove_if_damaged(&self, digest: &Digest) -> Result<()> {
        if !self.is_damaged(digest) {
            return Ok(());
        }
        let key = self.keys.blob(digest);
        let delete = self.objects.delete(&key);
        match self.circuit.run(format!("remove {key}"), NAME_DEADLINE, delete).await {
            Ok(()) | Err(Error::NotFound) => {}
            Err(e) => return Err(e),
        }
        self.damaged().pop(digest);
        Ok(())
    }

    fn is_damaged(&self, digest: &Digest) -> bool {
        self.damaged().contains(digest)
    }

    fn damaged(&self) -> MutexGuard<'_, LruCache<Digest, ()>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest that a link names.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such link.
    pub async fn read_link(&self, link: &Link) -> Result<Digest> {
        let key = self.keys.link(link);
        let get = self.objects.get_range(&key, 0..LINK_MAX_BYTES);
        let content = self.circuit.run(format!("read {key}"), NAME_DEADLINE, get).await?;
        let text = std::str::from_utf8(&content).unwrap_or_default();
        text.trim_end().parse().map_err(|source| {
            let source = object_store::Error::Generic { store: "link", source: Box::new(source) };
            Error::storage(format!("read {key}"), source)
        })
    }

    /// Publishes a link, the way Distribution does.
    pub async fn put_link(&self, link: &Link, digest: &Digest) -> Result<()> {
        if let Link::Tag(repository, tag) = link {
            let history = self.keys.tag_history(repository, tag, digest);
            self.put(history, digest.to_string().into()).await?;
        }
        self.put(self.keys.link(link), digest.to_string().into()).await
    }

    async fn put(&self, key: Path, content: PutPayload) -> Result<()> {
        let options = PutOptions { attributes: self.attributes.clone(), ..Default::default() };
        let put = self.objects.put_opts(&key, content, options).map_err(not_a_miss);
        self.circuit.run(format!("write {key}"), PART_DEADLINE, put).await.map(drop)
    }

    /// Every blob of an algorithm, page by page. It ends with the first error.
    pub fn list_blobs(
        &self,
        algorithm: Algorithm,
    ) -> BoxStream<'static, Result<(Digest, BlobMeta)>> {
        let prefix = self.keys.blobs(algorithm);
        let objects = self.objects.list(Some(&prefix));
        let (circuit, operation) = (Arc::clone(&self.circuit), format!("list {prefix}"));
        let objects = stream::try_unfold(objects, move |mut objects| {
            let (circuit, operation) = (Arc::clone(&circuit), operation.clone());
            async move {
                let next = circuit.run(operation, PART_DEADLINE, objects.try_next()).await?;
                Ok(next.map(|object| (object, objects)))
            }
        });
        let blobs = move |meta: ObjectMeta| ready(Ok(blob_of_key(algorithm, &meta)));
        objects.try_filter_map(blobs).boxed()
    }

    /// The components below `repositories/`, or below one: repositories, first components of
    /// their names, and Distribution's own directories, which begin with `_`.
    pub async fn list_repositories(&self, repository: Option<&Repository>) -> Result<Vec<String>> {
        self.list_names(self.keys.repositories(repository)).await
    }

    /// The tags of a repository.
    pub async fn list_tags(&self, repository: &Repository) -> Result<Vec<String>> {
        self.list_names(self.keys.tags(repository)).await
    }

    /// The hex digits of a repository's manifests or layers.
    pub async fn list_members(
        &self,
        repository: &Repository,
        membership: Membership,
        algorithm: Algorithm,
    ) -> Result<Vec<String>> {
        self.list_names(self.keys.members(repository, membership, algorithm)).await
    }

    async fn list_names(&self, prefix: Path) -> Result<Vec<String>> {
        let list = self.objects.list_with_delimiter(Some(&prefix));
        let list = self.circuit.run(format!("list {prefix}"), PART_DEADLINE, list).await?;
        let names = list.common_prefixes.iter().filter_map(|path| path.filename());
        Ok(names.map(str::to_owned).collect())
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

/// Asks the storage what nobody waits for. How that ends says nothing about what the others ask of it (we
/// may not be allowed to remove anything): it goes around the circuit breaker.
async fn aside<T>(
    operation: impl Into<String>,
    deadline: Duration,
    asked: impl Future<Output = Result<T, object_store::Error>>,
) -> Result<T> {
    match timeout(deadline, asked).await {
        Ok(outcome) => outcome.map_err(|e| Error::storage(operation, e)),
        Err(_) => Err(Error::TimedOut),
    }
}

/// A write that finds nothing has lost its bucket: to the reader of an errno that is no miss.
fn not_a_miss(error: object_store::Error) -> object_store::Error {
    match error {
        object_store::Error::NotFound { source, .. } => {
            object_store::Error::Generic { store: "bucket or container", source }
        }
        error => error,
    }
}

/// The blob that `…/<first two hex>/<hex>/data` holds; other objects are none of ours.
fn blob_of_key(algorithm: Algorithm, meta: &ObjectMeta) -> Option<(Digest, BlobMeta)> {
    let mut parts: Vec<_> = meta.location.parts().collect();
    if parts.pop()?.as_ref() != "data" {
        return None;
    }
    let digest = Digest::new(algorithm, parts.pop()?.as_ref()).ok()?;
    Some((digest, BlobMeta::from(meta)))
}

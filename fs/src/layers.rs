//! `layers/`: the files inside a layer, to be looked at with `ls` and `cat`.
//!
//! A layer that anyone looks into is unpacked once ([`unpack`]): what its regular files hold goes into one file
//! on the cache's disk, the rest is in memory ([`tree`]). It is forgotten when nobody has looked into it for a
//! while, or when others take its place; whoever comes back to it has it unpacked again.

pub mod tree;
mod unpack;
mod unpacked;

use std::{
    io::{self, BufReader, Read},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use larder_layout::{Algorithm, Digest};
use lru::LruCache;
use tokio::{
    runtime::Handle,
    sync::{OnceCell, Semaphore},
    time::Instant,
};

use self::{tree::Tree, unpacked::Unpacked};
use crate::{
    cache::Cache,
    error::{Error, Result},
    fetch::{Content, Fetches, blocking},
};

/// How many layers are kept unpacked, each of at most so large a part of `cache.size`: together, half of it.
const LAYERS_MAX: NonZeroUsize = NonZeroUsize::new(4).unwrap();
const PART_OF_CACHE: u64 = 8;
/// How many are being unpacked at a time: each takes a processor.
const UNPACKING_MAX: usize = 2;
/// How long one is kept that nobody looks into.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// How much of a blob is read at a time.
const READ_BYTES: usize = 1 << 20;

/// The layers that are looked into on one node.
pub struct Layers {
    cache: Arc<Cache>,
    fetches: Arc<Fetches>,
    slots: Mutex<LruCache<Digest, Arc<Slot>>>,
    unpacking: Semaphore,
}

/// A layer that is unpacked, or being unpacked.
struct Slot {
    layer: OnceCell<Arc<Layer>>,
    used: Mutex<Instant>,
}

/// An unpacked layer.
pub struct Layer {
    /// Its files.
    pub tree: Tree,
    unpacked: Unpacked,
}

impl Layer {
    /// What a regular file holds: from `offset` in it on, when it begins at `start` and has `size_bytes`.
    ///
    /// # Errors
    /// [`Error::Disk`]
    pub fn read(
        &self,
        start: u64,
        size_bytes: u64,
        offset: u64,
        wanted_bytes: u32,
    ) -> Result<Bytes> {
        let left_bytes = size_bytes.saturating_sub(offset);
        self.unpacked.read(start + offset.min(size_bytes), left_bytes.min(wanted_bytes.into()))
    }
}

impl Layers {
    /// No layer has been looked into yet.
    pub fn new(cache: &Arc<Cache>, fetches: &Arc<Fetches>) -> Arc<Self> {
        Arc::new(Self {
            cache: Arc::clone(cache),
            fetches: Arc::clone(fetches),
            slots: Mutex::new(LruCache::new(LAYERS_MAX)),
            unpacking: Semaphore::new(UNPACKING_MAX),
        })
    }

    /// The layer, unpacked. That goes on when whoever waits for it does not wait any more.
    ///
    /// # Errors
    /// [`Error::NotDirectory`] when the blob is no layer, [`Error::Layer`] when it is one that cannot be read,
    /// [`Error::Disk`] with ENOSPC when it is too large; and as for any blob that is read.
    pub async fn open(self: &Arc<Self>, digest: &Digest) -> Result<Arc<Layer>> {
        let slot = self.slot(digest);
        if let Some(layer) = slot.layer.get() {
            return Ok(Arc::clone(layer));
        }
        let (this, unpacked) = (Arc::clone(self), digest.clone());
        let unpacking = tokio::spawn(async move {
            let layer = slot.layer.get_or_try_init(|| this.unpack(&unpacked)).await;
            layer.cloned()
        });
        unpacking
            .await
            .unwrap_or_else(|e| Err(Error::Layer { digest: digest.clone(), reason: e.to_string() }))
    }

    /// The names of the layers that are looked into.
    pub fn unpacked(&self, algorithm: Algorithm) -> Vec<String> {
        let slots = self.slots();
        let unpacked = slots
            .iter()
            .filter(|(digest, slot)| digest.algorithm() == algorithm && slot.layer.initialized());
        unpacked.map(|(digest, _)| digest.hex().to_owned()).collect()
    }

    fn slot(self: &Arc<Self>, digest: &Digest) -> Arc<Slot> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(digest) {
            *lock(&slot.used) = Instant::now();
            return Arc::clone(slot);
        }
        let slot = Arc::new(Slot { layer: OnceCell::new(), used: Mutex::new(Instant::now()) });
        let forgotten = slots.push(digest.clone(), Arc::clone(&slot));
        drop(slots);
        // Its file is removed outside of the lock.
        drop(forgotten);
        tokio::spawn(Self::forget(Arc::downgrade(self), digest.clone(), Arc::downgrade(&slot)));
        slot
    }

    async fn unpack(&self, digest: &Digest) -> Result<Arc<Layer>> {
        let _place = self.unpacking.acquire().await;
        let meta = self.fetches.stat(digest).await?;
        let content = self.fetches.open(digest, meta).await?;
        let (cache, digest) = (Arc::clone(&self.cache), digest.clone());
        let blob = Blob { content, offset: 0, runtime: Handle::current() };
        blocking(move || {
            let limit_bytes = cache.usage().limit_bytes / PART_OF_CACHE;
            let mut unpacked = Unpacked::create(&cache, limit_bytes)?;
            let blob = BufReader::with_capacity(READ_BYTES, blob);
            let tree = unpack::unpack(blob, &digest, &mut unpacked)?;
            Ok(Arc::new(Layer { tree, unpacked }))
        })
        .await
    }

    /// Forgets a layer when nobody has looked into it for [`IDLE_TIMEOUT`].
    async fn forget(this: Weak<Self>, digest: Digest, slot: Weak<Slot>) {
        loop {
            let Some(used) = slot.upgrade().map(|slot| *lock(&slot.used)) else { return };
            let Some(left) = IDLE_TIMEOUT.checked_sub(used.elapsed()) else { break };
            tokio::time::sleep(left + Duration::from_millis(1)).await;
        }
        let Some(this) = this.upgrade() else { return };
        let mut slots = this.slots();
        let is_same = slots.peek(&digest).is_some_and(|kept| Arc::as_ptr(kept) == slot.as_ptr());
        let forgotten = if is_same { slots.pop(&digest) } else { None };
        drop(slots);
        drop(forgotten);
    }

    fn slots(&self) -> MutexGuard<'_, LruCache<Digest, Arc<Slot>>> {
        lock(&self.slots)
    }
}

/// Nothing between two consistent states of what is locked can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A blob, to be read from a thread that may block.
struct Blob {
    content: Content,
    offset: u64,
    runtime: Handle,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &self.content {
            Content::Cached(blob) => blob.file().read_at(buffer, self.offset)?,
            Content::Fetched(reader) => {
                let read = reader.read(self.offset, buffer.len().min(READ_BYTES) as u64);
                let content = self.runtime.block_on(read).map_err(io::Error::other)?;
                buffer[..content.len()].copy_from_slice(&content);
                content.len()
            }
        };
        self.offset += read as u64;
        Ok(read)
    }
}

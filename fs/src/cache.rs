//! The local read cache: whole, verified blobs on the node's own disk, least recently used out first.
//!
//! ```text
//! <cache.directory>/lock                      held while a larder-fs uses the directory
//! <cache.directory>/blobs/<algorithm>/<hex>   a whole blob, 0444; its bytes were hashed before it got this name
//! <cache.directory>/staging/<name>            on its way in: an ingest or a fetch; emptied at start
//! ```
//!
//! A blob is synced before it gets its name, so that a name never outlives its bytes in a crash.
//! A blob that is open is not evicted: unlinking it would free nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use larder_config::{Cache as Config, CacheSize};
use larder_layout::{Algorithm, Digest};
use lru::LruCache;

use crate::{
    error::{Error, Result},
    store::BlobMeta,
};

/// The local read cache of one node.
pub struct Cache {
    directory: PathBuf,
    limit_bytes: u64,
    index: Mutex<Index>,
    /// Held for its lock: a second `larder-fs` would empty our staging directory.
    _lock: File,
}

struct Index {
    blobs: LruCache<Digest, Slot>,
    /// The sum of all slots and reservations.
    used_bytes: u64,
}

struct Slot {
    size_bytes: u64,
    /// How many [`CachedBlob`]s are open.
    readers: usize,
}

/// What is known of a blob in the cache.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Since when it is in the cache.
    pub cached: SystemTime,
    /// When it was last hashed.
    pub verified: Option<SystemTime>,
}

/// How full the cache is.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Whole blobs in the cache.
    pub blobs: usize,
    /// Their sizes and those of the fetches under way.
    pub used_bytes: u64,
    /// `cache.size`
    pub limit_bytes: u64,
}

impl Cache {
    /// Opens the cache, takes over the blobs that are in it and removes what was on its way in.
    ///
    /// # Errors
    /// A sentence that names the key to look at: another `larder-fs` uses the directory, or it
    /// cannot be written.
    pub fn open(config: &Config) -> Result<Arc<Self>, String> {
        let directory = &config.directory;
        let explain = |e: io::Error| format!("cache.directory: {}: {e}", directory.display());
        fs::create_dir_all(directory).map_err(explain)?;
        let lock = File::create(directory.join("lock")).map_err(explain)?;
        lock.try_lock().map_err(|_| {
            format!(
                "cache.directory: {} is in use by another larder-fs; give each its own",
                directory.display()
            )
        })?;
        let limit_bytes = limit_bytes(config).map_err(explain)?;
        empty_staging(&directory.join("staging")).map_err(explain)?;
        let index = scan(directory).map_err(explain)?;
        let cache = Self {
            directory: directory.clone(),
            limit_bytes,
            index: Mutex::new(index),
            _lock: lock,
        };
        cache.evict(&mut cache.index());
        Ok(Arc::new(cache))
    }

    /// How full the cache is.
    pub fn usage(&self) -> Usage {
        let index = self.index();
        let (blobs, used_bytes) = (index.blobs.len(), index.used_bytes);
        Usage { blobs, used_bytes, limit_bytes: self.limit_bytes }
    }

    /// The directory on local disk.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Size and age of a blob that is in the cache.
    pub fn stat(&self, digest: &Digest) -> Option<BlobMeta> {
        self.index().blobs.peek(digest)?;
        let metadata = fs::metadata(self.blob_path(digest)).ok()?;
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(BlobMeta { size_bytes: metadata.len(), modified })
    }

    /// What is known of a blob that is in the cache.
    pub fn facts(&self, digest: &Digest) -> Option<Facts> {
        let meta = self.stat(digest)?;
        Some(Facts { cached: meta.modified, verified: Some(meta.modified) })
    }

    /// Opens a blob that is in the cache, and makes it the most recently used.
    ///
    /// A file that is gone or has another length than when it was verified is dropped from the
    /// cache, as if it had never been there.
    ///
    /// # Errors
    /// [`Error::Disk`] when the disk fails; `None` is a miss.
    pub fn open_blob(self: &Arc<Self>, digest: &Digest) -> Result<Option<CachedBlob>> {
        let mut index = self.index();
        let Some(slot) = index.blobs.get_mut(digest) else { return Ok(None) };
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) if file.metadata().is_ok_and(|m| m.len() == slot.size_bytes) => file,
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::disk(format!("open {}", path.display()), e));
            }
            _ => {
                tracing::warn!(%digest, "the cached file was changed behind our back; dropped");
                let slot = index.blobs.pop(digest);
                index.used_bytes -= slot.map_or(0, |slot| slot.size_bytes);
                let _ = fs::remove_file(&path);
                return Ok(None);
            }
        };
        slot.readers += 1;
        Ok(Some(CachedBlob { file, digest: digest.clone(), cache: Arc::clone(self) }))
    }

    /// Makes room for a blob that is about to be staged. Room is kept until the reservation is
    /// dropped, or the blob adopted.
    ///
    /// # Errors
    /// [`Error::Disk`] with ENOSPC when there is no room, even without every blob that nobody reads.
    pub fn reserve(self: &Arc<Self>, size_bytes: u64) -> Result<Reservation> {
        let mut room = Reservation { size_bytes: 0, cache: Arc::clone(self) };
        room.grow(size_bytes)?;
        Ok(room)
    }

    /// Where a file of this name is staged.
    pub fn staging_path(&self, name: &str) -> PathBuf {
        self.directory.join("staging").join(name)
    }

    /// Creates a file in the staging directory, to be filled and adopted or removed.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken.
    pub fn stage(&self, name: &str) -> Result<File> {
        let path = self.staging_path(name);
        let options = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        options.map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => Error::Exists,
            _ => Error::disk(format!("create {}", path.display()), e),
        })
    }

    /// Takes a staged file, whose content was verified, into the cache. The blob comes back open:
    /// in a cache that is too small for it, it stays until it is closed.
    ///
    /// # Errors
    /// [`Error::Disk`]; the staged file is then still there.
    pub fn adopt(
        self: &Arc<Self>,
        name: &str,
        digest: &Digest,
        modified: SystemTime,
        room: Reservation,
    ) -> Result<CachedBlob> {
        let (staged, path) = (self.staging_path(name), self.blob_path(digest));
        let explain = |e| Error::disk(format!("adopt {}", path.display()), e);
        let file = File::open(&staged).map_err(explain)?;
        file.set_modified(modified).map_err(explain)?;
        file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(explain)?;
        file.sync_all().map_err(explain)?;
        let size_bytes = file.metadata().map_err(explain)?.len();

        let mut index = self.index();
        fs::rename(&staged, &path).map_err(explain)?;
        // The blob may have been adopted by another way in the meantime, and be open.
        let readers = index.blobs.peek(digest).map_or(0, |slot| slot.readers);
        let slot = Slot { size_bytes, readers: readers + 1 };
        let replaced = index.blobs.put(digest.clone(), slot).map_or(0, |slot| slot.size_bytes);
        index.used_bytes = index.used_bytes + size_bytes - replaced;
        drop(index);
        drop(room);
        let mut index = self.index();
        self.evict(&mut index);
        Ok(CachedBlob { file, digest: digest.clone(), cache: Arc::clone(self) })
    }

    fn close_blob(&self, digest: &Digest) {
        let mut index = self.index();
        if let Some(slot) = index.blobs.peek_mut(digest) {
            slot.readers = slot.readers.saturating_sub(1);
        }
        self.evict(&mut index);
    }

    /// Removes the least recently used blobs that nobody reads until the cache is within its
    /// limit. The lock is held meanwhile, so that no file is removed that was just adopted anew.
    fn evict(&self, index: &mut Index) {
        if index.used_bytes <= self.limit_bytes {
            return;
        }
        let idle = index.blobs.iter().rev().filter(|(_, slot)| slot.readers == 0);
        let mut excess_bytes = index.used_bytes - self.limit_bytes;
        let mut victims = Vec::new();
        for (digest, slot) in idle {
            victims.push(digest.clone());
            excess_bytes = excess_bytes.saturating_sub(slot.size_bytes);
            if excess_bytes == 0 {
                break;
            }
        }
        for digest in victims {
            let path = self.blob_path(&digest);
            if let Err(e) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), "cannot evict: {e}");
            }
            let slot = index.blobs.pop(&digest);
            index.used_bytes -= slot.map_or(0, |slot| slot.size_bytes);
            tracing::debug!(%digest, "evicted");
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        blobs_directory(&self.directory, digest.algorithm()).join(digest.hex())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing between two consistent states of the index can panic.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob of the cache that is open, and therefore not evicted.
pub struct CachedBlob {
    file: File,
    digest: Digest,
    cache: Arc<Cache>,
}

impl CachedBlob {
    /// The digest that the content was verified against.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The whole, verified content.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for CachedBlob {
    fn drop(&mut self) {
        self.cache.close_blob(&self.digest);
    }
}

/// Room that is kept free for a blob on its way in.
pub struct Reservation {
    size_bytes: u64,
    cache: Arc<Cache>,
}

impl Reservation {
    /// Makes it at least this large.
    ///
    /// # Errors
    /// As [`Cache::reserve`].
    pub fn grow(&mut self, size_bytes: u64) -> Result<()> {
        let more_bytes = size_bytes.saturating_sub(self.size_bytes);
        let mut index = self.cache.index();
        index.used_bytes += more_bytes;
        self.cache.evict(&mut index);
        if index.used_bytes > self.cache.limit_bytes {
            index.used_bytes -= more_bytes;
            let full = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(Error::disk(format!("make room for {more_bytes} bytes"), full));
        }
        self.size_bytes += more_bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cache.index().used_bytes -= self.size_bytes;
    }
}

fn blobs_directory(directory: &Path, algorithm: Algorithm) -> PathBuf {
    directory.join("blobs").join(algorithm.as_str())
}

fn limit_bytes(config: &Config) -> io::Result<u64> {
    Ok(match config.size {
        CacheSize::Bytes(bytes) => bytes,
        CacheSize::Percent(percent) => {
            let disk = nix::sys::statvfs::statvfs(&config.directory)?;
            disk.blocks() * disk.fragment_size() / 100 * u64::from(percent)
        }
    })
}

fn empty_staging(staging: &Path) -> io::Result<()> {
    match fs::remove_dir_all(staging) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => fs::create_dir(staging),
    }
}

/// The blobs that an earlier run left, oldest access first.
fn scan(directory: &Path) -> io::Result<Index> {
    let mut found = Vec::new();
    for algorithm in Algorithm::ALL {
        let blobs = blobs_directory(directory, algorithm);
        fs::create_dir_all(&blobs)?;
        for entry in fs::read_dir(blobs)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|hex| Digest::new(algorithm, hex).ok());
            let Some(digest) = digest else { continue };
            let metadata = entry.metadata()?;
            found.push((metadata.accessed()?, digest, metadata.len()));
        }
    }
    found.sort();
    let mut index = Index { blobs: LruCache::unbounded(), used_bytes: 0 };
    for (_, digest, size_bytes) in found {
        index.used_bytes += size_bytes;
        index.blobs.put(digest, Slot { size_bytes, readers: 0 });
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use larder_config::Fill;

    use super::*;

    fn cache(directory: &Path, limit_bytes: u64) -> Arc<Cache> {
        let size = CacheSize::Bytes(limit_bytes);
        Cache::open(&Config { directory: directory.to_owned(), size, fill: Fill::Never }).unwrap()
    }

    fn put(cache: &Arc<Cache>, content: &[u8]) -> Digest {
        put_open(cache, content).digest.clone()
    }

    fn put_open(cache: &Arc<Cache>, content: &[u8]) -> CachedBlob {
        let digest = Digest::of(Algorithm::Sha256, content);
        cache.stage("x").unwrap().write_all(content).unwrap();
        cache
            .adopt("x", &digest, SystemTime::now(), cache.reserve(content.len() as u64).unwrap())
            .unwrap()
    }

    fn content(blob: &CachedBlob) -> Vec<u8> {
        let mut content = Vec::new();
        blob.file().read_to_end(&mut content).unwrap();
        content
    }

    #[test]
    fn the_least_recently_used_blob_goes_first_and_never_an_open_one() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(directory.path(), 20);
        let (a, b) = (put(&cache, b"aaaaaaaaaa"), put(&cache, b"bbbbbbbbbb"));
        assert!(cache.open_blob(&a).unwrap().is_some(), "a is used, so b is the oldest");

        let c = put(&cache, b"cccccccccc");
        assert!(cache.stat(&b).is_none(), "b was to be evicted");
        assert_eq!(cache.usage().used_bytes, 20);

        let open = cache.open_blob(&a).unwrap().unwrap();
        put(&cache, b"dddddddddd");
        put(&cache, b"eeeeeeeeee");
        assert!(cache.stat(&c).is_none());
        assert_eq!(content(&open), b"aaaaaaaaaa");
        assert_eq!(cache.usage().used_bytes, 20);
    }

    #[test]
    fn a_reservation_makes_room_and_gives_it_back() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(directory.path(), 20);
        let a = put(&cache, b"aaaaaaaaaa");
        let reservation = cache.reserve(15).unwrap();
        assert!(cache.stat(&a).is_none());
        assert_eq!(cache.usage().used_bytes, 15);
        drop(reservation);
        assert_eq!(cache.usage().used_bytes, 0);
    }

    #[test]
    fn a_restart_keeps_the_blobs_and_forgets_what_was_on_its_way() {
        let directory = tempfile::tempdir().unwrap();
        let first = cache(directory.path(), 100);
        let a = put(&first, b"aaaaaaaaaa");
        first.stage("half").unwrap().write_all(b"ha").unwrap();
        assert!(
            Cache::open(&Config {
                directory: directory.path().into(),
                size: CacheSize::Percent(1),
                fill: Fill::Never,
            })
            .is_err_and(|e| e.contains("in use")),
            "two caches share a directory"
        );
        drop(first);

        let second = cache(directory.path(), 100);
        assert_eq!(content(&second.open_blob(&a).unwrap().unwrap()), b"aaaaaaaaaa");
        assert!(second.stage("half").is_ok(), "the staged file is still there");
    }

    #[test]
    fn a_truncated_file_is_a_miss() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(directory.path(), 100);
        let a = put(&cache, b"aaaaaaaaaa");
        let path = directory.path().join("blobs/sha256").join(a.hex());
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"aaa").unwrap();
        assert!(cache.open_blob(&a).unwrap().is_none());
        assert_eq!((cache.usage().blobs, cache.usage().used_bytes), (0, 0));
    }
}

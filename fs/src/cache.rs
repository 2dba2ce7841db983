//! The local read cache: whole, verified blobs on the node's own disk, least recently used out first.
//!
//! ```text
//! <cache.directory>/lock                      held while a larder-fs uses the directory
//! <cache.directory>/index                     what is in the cache: see `record.rs`
//! <cache.directory>/blobs/<algorithm>/<hex>   a whole blob, 0444; its bytes were hashed before it got this name
//! <cache.directory>/staging/<name>            on its way in: an ingest or a fetch
//! <cache.directory>/discarded/<n>/<name>      what an earlier run had staged, on its way out
//! <cache.directory>/quarantine/<s>-<digest>   a file that was found damaged; only the newest few
//! ```
//!
//! **It cannot lie.** The index records what fstat(2) said of a file when its content was hashed. A
//! file that looks different is hashed before it is served, and so is one that was never hashed. A
//! damaged one is a miss, so that the blob is fetched again. What fstat(2) does not show (bit rot, a
//! write in the same tick of the clock) the kernel finds where the filesystem has fs-verity (see
//! `verity.rs`), whenever it reads it from the disk, and the scrubber elsewhere.
//!
//! **It is bounded.** Room is promised before anything is written ([`Cache::reserve`]), and the
//! promise becomes the blob's when its file gets its name. The sum of all that is on disk, and all
//! that is promised, is within `cache.size`, and what the disk has left above `cache.min_free`. Only
//! the index itself is not in the sum: 85 bytes a blob, up to three times that before it is written anew.
//!
//! **It survives.** The index knows of a file before the directory does, and forgets it later, so a
//! process that is killed leaves no file behind that is not counted. The index is not synced on
//! the way of a blob: after a crash of the machine, files that were not known to be on disk are hashed
//! before they are served, and no room is promised before the directory was looked through.
//!
//! **Nobody waits for the disk** who does not ask it: the lock of the index is held for steps in
//! memory only. Lock order: a blob's lock, the quarantine, the journal, the index.

mod adopt;
mod blob;
mod disk;
mod index;
mod journal;
mod keeper;
mod key;
mod locks;
mod quarantine;
mod reconcile;
mod record;
mod room;
mod scrub;
mod staging;
#[cfg(test)]
mod tests;
mod verity;

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

use larder_config::Cache as Config;
use larder_layout::{Algorithm, Digest};
use serde::Serialize;

pub use self::{blob::CachedBlob, room::Reservation, staging::StagingFile};
use self::{
    index::{Index, time_s},
    journal::Journal,
    keeper::{Keeper, Stop},
    key::Key,
    locks::Locks,
    quarantine::Quarantine,
    room::Limits,
};
use crate::{error::Result, store::BlobMeta};

/// The local read cache of one node. Dropped, it stops its threads; blobs that are open stay open.
pub struct Cache {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

/// What all parts of the cache share.
struct State {
    directory: PathBuf,
    limits: Limits,
    /// Whether the disk's filesystem guards files with fs-verity.
    has_verity: bool,
    index: Mutex<Index>,
    /// Room may have become free, or the cache is counted: for those who wait with the index.
    changed: Condvar,
    journal: Mutex<Journal>,
    locks: Locks,
    quarantine: Mutex<Quarantine>,
    /// Whether every file in the directory is in the index.
    is_counted: AtomicBool,
    counters: Counters,
    stop: Stop,
    /// Held for its lock: a second `larder-fs` would take our staged files away.
    _lock: File,
}

#[derive(Default)]
struct Counters {
    verified_bytes: AtomicU64,
    scrubbed_bytes: AtomicU64,
    quarantined: AtomicU64,
}

/// How full the cache is, and what was done to keep it right since it was opened.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Usage {
    /// Whole blobs in the cache.
    pub blobs: usize,
    /// What they take of the disk, and all else that counts: room that is promised, files that were
    /// removed and are still open, the quarantine.
    pub used_bytes: u64,
    /// `cache.size`
    pub limit_bytes: u64,
    /// The part of `used_bytes` that is promised to blobs on their way in.
    pub reserved_bytes: u64,
    /// Damaged files that were found, and put away.
    pub quarantined: u64,
    /// What was hashed because a file did not look as it did when it was last hashed.
    pub verified_bytes: u64,
    /// What the scrubber has read.
    pub scrubbed_bytes: u64,
}

/// When a blob came into the cache, and when its content was last hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// When it came into the cache.
    pub cached: SystemTime,
    /// When its content was last hashed, if that is known to be its content still.
    pub verified: Option<SystemTime>,
}

impl Cache {
    /// Opens the cache with what an earlier run left in it.
    ///
    /// # Errors
    /// A sentence that names the key to look at: another `larder-fs` uses the directory, others may
    /// write in it, or we may not.
    pub fn open(config: &Config) -> Result<Arc<Self>, String> {
        let state = State::open(config, verity::is_supported)?;
        let mut threads = Vec::new();
        let mut start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
            threads.push(thread.map_err(|e| format!("cache: {e}"))?);
            Ok::<_, String>(())
        };
        let keeper = Keeper::new(Arc::clone(&state));
        start("cache-keeper", Box::new(|| keeper.run()))?;
        let rate = config.scrub_bytes_per_second;
        if rate > 0 {
            let state = Arc::clone(&state);
            start("cache-scrub", Box::new(move || scrub::run(&state, rate)))?;
        }
        Ok(Arc::new(Self { state, threads }))
    }

    /// How full the cache is.
    pub fn usage(&self) -> Usage {
        let (blobs, sums) = {
            let index = self.state.index();
            (index.len(), index.sums)
        };
        let Counters { verified_bytes, scrubbed_bytes, quarantined } = &self.state.counters;
        Usage {
            blobs,
            used_bytes: sums.used(),
            limit_bytes: self.state.limits.size_bytes,
            reserved_bytes: sums.reserved,
            quarantined: quarantined.load(Ordering::Relaxed),
            verified_bytes: verified_bytes.load(Ordering::Relaxed),
            scrubbed_bytes: scrubbed_bytes.load(Ordering::Relaxed),
        }
    }

    /// The directory on local disk.
    pub fn directory(&self) -> &Path {
        &self.state.directory
    }

    /// Size and age of a blob that is in the cache, from memory. A blob whose file was found, and
    /// not hashed yet, has none: what is known of it might be wrong.
    pub fn stat(&self, digest: &Digest) -> Option<BlobMeta> {
        self.state.stat(digest)
    }

    /// When a blob came into the cache, and when it was verified, from memory.
    pub fn facts(&self, digest: &Digest) -> Option<Facts> {
        let slot = *self.state.index().get(&Key::from(digest))?;
        let verified = (slot.verified_s != 0).then(|| time_s(slot.verified_s));
        Some(Facts { cached: time_s(slot.cached_s), verified })
    }

    /// Opens a blob that is in the cache, and makes it the most recently used. It blocks: a file
    /// that does not look as it did when it was verified is hashed, once for all who open it.
    ///
    /// A file that is damaged or gone is dropped from the cache, as if it had never been there.
    ///
    /// # Errors
    /// [`crate::error::Error::Disk`] when the disk fails; `None` is a miss.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<CachedBlob>> {
        self.state.open_blob(digest)
    }

    /// Has the file of a blob hashed before it is opened again.
    pub fn doubt(&self, digest: &Digest) {
        self.state.index().doubt(&Key::from(digest));
    }

    /// Makes room for a blob that is about to be staged, and keeps it until the reservation is
    /// dropped or adopted. It blocks while blobs are evicted.
    ///
    /// # Errors
    /// [`crate::error::Error::Disk`], with ENOSPC when there is no room even without every blob
    /// that nobody reads. It comes before anything is written.
    pub fn reserve(&self, size_bytes: u64) -> Result<Reservation> {
        Reservation::new(&self.state, size_bytes)
    }

    /// Where a file of this name is staged.
    pub fn staging_path(&self, name: &str) -> PathBuf {
        self.state.staging_path(name)
    }

    /// Creates a file in the staging directory, to be filled, within a reservation, and adopted or
    /// removed.
    ///
    /// # Errors
    /// [`crate::error::Error::Exists`] when the name is taken.
    pub fn stage(&self, name: &str) -> Result<StagingFile> {
        self.state.stage(name)
    }

    /// Takes a staged file, whose content was verified by the caller and which is not written any
    /// more, into the cache. The room becomes the blob's; more of it than the file takes is given
    /// back. It blocks: where the filesystem has fs-verity, until the file is on the disk.
    ///
    /// # Errors
    /// [`crate::error::Error::Disk`]; the staged file is then removed.
    pub fn adopt(
        &self,
        name: &str,
        digest: &Digest,
        modified: SystemTime,
        room: Reservation,
    ) -> Result<CachedBlob> {
        self.state.adopt(name, digest, modified, room)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.state.stop.set();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.state.index().log_touches();
        if let Err(e) = self.state.flush().or_else(|_| self.state.checkpoint()) {
            tracing::warn!("the next start will not know all that the cache did: {e}");
        }
    }
}

impl State {
    /// `has_verity` tries a path on the cache's filesystem.
    fn open(config: &Config, has_verity: fn(&Path) -> bool) -> Result<Arc<Self>, String> {
        let directory = config.directory.clone();
        let explain = |e: io::Error| format!("cache.directory: {}: {e}", directory.display());
        prepare(&directory)?;
        let lock = File::create(directory.join("lock")).map_err(explain)?;
        lock.try_lock().map_err(|_| {
            let shown = directory.display();
            format!("cache.directory: {shown} is in use by another larder-fs; give each its own")
        })?;
        let limits = Limits::new(config).map_err(explain)?;
        let discarded_bytes = discard_staged(&directory).map_err(|e| e.to_string())?;
        let has_verity = has_verity(&directory.join("staging/verity"));
        let mut index = Index::new(limits.block_bytes, has_verity);
        let (journal, is_whole) = Journal::load(&directory, &mut index).map_err(explain)?;
        index.sums.discarded = discarded_bytes;
        let charge = |size_bytes| index.charge(size_bytes);
        let (quarantine, quarantined_bytes) =
            Quarantine::load(&directory.join("quarantine"), charge).map_err(explain)?;
        index.sums.quarantined = quarantined_bytes;
        Ok(Arc::new(Self {
            limits,
            has_verity,
            index: Mutex::new(index),
            changed: Condvar::new(),
            journal: Mutex::new(journal),
            locks: Locks::default(),
            quarantine: Mutex::new(quarantine),
            is_counted: AtomicBool::new(is_whole),
            counters: Counters::default(),
            stop: Stop::default(),
            _lock: lock,
            directory,
        }))
    }

    fn stat(&self, digest: &Digest) -> Option<BlobMeta> {
        let file = self.index().get(&Key::from(digest))?.file;
        (file.inode != 0).then(|| file.meta())
    }

    fn stage(&self, name: &str) -> Result<StagingFile> {
        StagingFile::create(&self.staging_path(name))
    }

    fn blobs_directory(&self, algorithm: Algorithm) -> PathBuf {
        self.directory.join("blobs").join(algorithm.as_str())
    }

    fn blob_path(&self, key: &Key) -> PathBuf {
        self.blobs_directory(key.algorithm()).join(key.digest().hex())
    }

    fn staging_path(&self, name: &str) -> PathBuf {
        self.directory.join("staging").join(name)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing between two consistent states of the index can panic.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the directories. What is in them is for nobody else: private images are among it.
fn prepare(directory: &Path) -> Result<(), String> {
    let explain = |e: io::Error| format!("cache.directory: {}: {e}", directory.display());
    let create = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    create(directory).map_err(explain)?;
    let metadata = fs::metadata(directory).map_err(explain)?;
    let we = nix::unistd::geteuid().as_raw();
    if metadata.mode() & 0o022 != 0 || ![0, we].contains(&metadata.uid()) {
        return Err(format!(
            "cache.directory: {}: others may write in it; it has to belong to the user that \
             larder-fs runs as (chown), and nobody else may write in it (chmod 700)",
            directory.display()
        ));
    }
    let algorithms = Algorithm::ALL.map(|algorithm| Path::new("blobs").join(algorithm.as_str()));
    let ours = ["blobs", "staging", "discarded", "quarantine"].map(PathBuf::from);
    for path in ours.into_iter().chain(algorithms).map(|path| directory.join(path)) {
        create(&path).map_err(explain)?;
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(explain)?;
    }
    Ok(())
}

/// Puts what an earlier run had staged out of the way, to be removed in the background. It returns
/// how much of the disk that takes.
fn discard_staged(directory: &Path) -> Result<u64> {
    let (staging, discarded) = (directory.join("staging"), directory.join("discarded"));
    if disk::run("list", &staging, || fs::read_dir(&staging))?.next().is_some() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        disk::rename(&staging, &discarded.join(now.to_string()))?;
        disk::run("create", &staging, || DirBuilder::new().mode(0o700).create(&staging))?;
    }
    room::allocated_bytes(&discarded)
}

//! Room on the disk: promised before anything is written, and made by evicting.
//!
//! What counts is what the disk has to give: whole blocks, of blobs and of their trees (`verity.rs`),
//! of what is staged, of what was removed but is still open, and of what is in quarantine.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use larder_config::{Cache as Config, CacheSize};
use nix::{
    sys::statvfs::{Statvfs, statvfs},
    unistd::syncfs,
};

use super::{
    State, disk,
    index::{Index, Sums},
    key::Key,
};
use crate::error::{Error, Result};

/// How long a reservation waits for what others are removing, or for the first look at what is
/// there after the index was lost.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// A disk that counts in larger blocks than this is one that counts strangely.
const BLOCK_MAX_BYTES: u64 = 64 << 10;
/// st_blocks of stat(2)
const STAT_BLOCK_BYTES: u64 = 512;

/// What the operator allows.
pub struct Limits {
    pub size_bytes: u64,
    min_free: CacheSize,
    pub block_bytes: u64,
}

impl Limits {
    pub fn new(config: &Config) -> io::Result<Self> {
        let disk = statvfs(&config.directory)?;
        Ok(Self {
            size_bytes: resolve(config.size, &disk),
            min_free: config.min_free,
            block_bytes: disk.fragment_size().clamp(STAT_BLOCK_BYTES, BLOCK_MAX_BYTES),
        })
    }
}

fn resolve(size: CacheSize, disk: &Statvfs) -> u64 {
    match size {
        CacheSize::Bytes(bytes) => bytes,
        CacheSize::Percent(percent) => {
            disk.blocks() * disk.fragment_size() / 100 * u64::from(percent)
        }
    }
}

/// Room that is kept free for a blob on its way in, until this is dropped or becomes the blob's.
pub struct Reservation {
    size_bytes: u64,
    charge_bytes: u64,
    state: Arc<State>,
}

impl Reservation {
    pub(super) fn new(state: &Arc<State>, size_bytes: u64) -> Result<Self> {
        let mut reservation = Self { size_bytes: 0, charge_bytes: 0, state: Arc::clone(state) };
        reservation.grow(size_bytes)?;
        Ok(reservation)
    }

    /// How large the file may become.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Makes room for a file of this size in all. It blocks while blobs are evicted.
    ///
    /// # Errors
    /// [`Error::Disk`], with ENOSPC when there is no room even without every blob that nobody
    /// reads. The reservation is then what it was.
    pub fn grow(&mut self, size_bytes: u64) -> Result<()> {
        let charge_bytes = self.state.index().charge(size_bytes);
        if charge_bytes > self.charge_bytes {
            self.state.make_room(charge_bytes - self.charge_bytes)?;
            self.charge_bytes = charge_bytes;
        }
        self.size_bytes = self.size_bytes.max(size_bytes);
        Ok(())
    }

    /// What it takes of the disk.
    pub(super) fn charge_bytes(&self) -> u64 {
        self.charge_bytes
    }

    /// Leaves nothing to give back: the room is a blob's now.
    pub(super) fn spend(&mut self) {
        self.charge_bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.state.index().release(self.charge_bytes);
        self.state.changed.notify_all();
    }
}

/// What to do about room that is asked for.
enum Step {
    Granted,
    Evict(Vec<(Key, u64)>),
    DropQuarantine,
    /// Enough is being removed, or what is on the disk is not counted yet. This is how it was.
    Wait(Sums, bool),
    Full,
}

impl State {
    /// Promises so many bytes of the disk more.
    pub(super) fn make_room(&self, more_bytes: u64) -> Result<()> {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let mut has_evicted = false;
        loop {
            let writable_bytes = self.writable_bytes(more_bytes, has_evicted)?;
            match self.step(more_bytes, writable_bytes) {
                Step::Granted => return Ok(()),
                Step::Evict(victims) => self.evict(victims)?,
                Step::DropQuarantine => self.prune_quarantine(0, 0)?,
                Step::Wait(sums, is_counted) if Instant::now() < deadline => {
                    self.wait_for_change(sums, is_counted, deadline);
                }
                Step::Wait(..) | Step::Full => return Err(self.full(more_bytes)),
            }
            has_evicted = true;
        }
    }

    fn step(&self, more_bytes: u64, writable_bytes: i64) -> Step {
        let mut index = self.index();
        let sums = index.sums;
        if !self.is_counted.load(Ordering::Relaxed) {
            return Step::Wait(sums, false);
        }
        let over = sums.used().saturating_add(more_bytes).saturating_sub(self.limits.size_bytes);
        let promised_bytes = sums.reserved.saturating_add(more_bytes);
        let deficit = over.max(signed(promised_bytes).saturating_sub(writable_bytes).max(0) as u64);
        let leaving = sums.evicting + sums.discarded;
        let available = sums.idle + leaving + sums.quarantined;
        // Where others have filled the disk, all that can be given up is not enough, but is given up.
        let deficit = if more_bytes == 0 { deficit.min(available) } else { deficit };
        if deficit == 0 {
            index.sums.reserved = promised_bytes;
            Step::Granted
        } else if deficit > available {
            Step::Full
        } else if deficit <= leaving {
            Step::Wait(sums, true)
        } else {
            match index.take_victims(deficit - leaving) {
                victims if victims.is_empty() => Step::DropQuarantine,
                victims => Step::Evict(victims),
            }
        }
    }

    /// How much of what is promised can be written before `cache.min_free` is touched; less than
    /// nothing when others have touched it. What is written already, of the staged files, counts as
    /// writable: it is promised, too.
    fn writable_bytes(&self, more_bytes: u64, has_evicted: bool) -> Result<i64> {
        let reserved_bytes = self.index().sums.reserved;
        let promised_bytes = signed(reserved_bytes.saturating_add(more_bytes));
        let free_bytes = self.free_bytes()?;
        if free_bytes >= promised_bytes {
            return Ok(free_bytes);
        }
        let written_bytes = signed(self.staged_bytes()?.min(reserved_bytes));
        if free_bytes + written_bytes >= promised_bytes || !has_evicted {
            return Ok(free_bytes + written_bytes);
        }
        // XFS and btrfs take a while to free the blocks of a removed file. Before more is
        // removed, they are asked to do it.
        disk::run("sync", &self.directory, || {
            let directory = File::open(&self.directory)?;
            Ok(syncfs(directory)?)
        })?;
        Ok(self.free_bytes()? + written_bytes)
    }

    /// What the disk has over `cache.min_free`.
    fn free_bytes(&self) -> Result<i64> {
        let disk = disk::run("statvfs", &self.directory, || Ok(statvfs(&self.directory)?))?;
        let free_bytes = disk.blocks_available() * disk.fragment_size();
        Ok(signed(free_bytes) - signed(resolve(self.limits.min_free, &disk)))
    }

    fn staged_bytes(&self) -> Result<u64> {
        allocated_bytes(&self.directory.join("staging"))
    }

    /// Removes the files of victims. One that cannot be removed stays in the cache, as do those
    /// behind it.
    fn evict(&self, victims: Vec<(Key, u64)>) -> Result<()> {
        let mut outcome = Ok(());
        for (key, inode) in victims {
            let _held = self.locks.lock(&key);
            if !self.index().is_victim(&key, inode) {
                continue;
            }
            if outcome.is_ok() {
                outcome = disk::remove(&self.blob_path(&key));
            }
            let mut index = self.index();
            if outcome.is_ok() {
                index.forget(&key);
                tracing::debug!(digest = %key.digest(), "evicted");
            } else {
                index.spare(&key);
            }
        }
        self.changed.notify_all();
        outcome
    }

    fn wait_for_change(&self, sums: Sums, is_counted: bool, deadline: Instant) {
        let is_unchanged = |index: &mut Index| {
            index.sums == sums && self.is_counted.load(Ordering::Relaxed) == is_counted
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.index(), timeout, is_unchanged);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn full(&self, more_bytes: u64) -> Error {
        let Limits { size_bytes, min_free, .. } = self.limits;
        let min_free = match min_free {
            CacheSize::Bytes(bytes) => format!("{bytes} bytes"),
            CacheSize::Percent(percent) => format!("{percent}%"),
        };
        let operation = format!(
            "make room for {more_bytes} bytes more in {}, even without what nobody reads (cache.size \
             is {size_bytes} bytes, cache.min_free {min_free})",
            self.directory.display()
        );
        Error::disk(operation, io::Error::from_raw_os_error(libc::ENOSPC))
    }
}

/// No disk has so many bytes.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What the files in a directory and in those below it take of the disk.
pub fn allocated_bytes(directory: &Path) -> Result<u64> {
    let mut sum_bytes = 0;
    for entry in disk::run("list", directory, || fs::read_dir(directory))? {
        let entry = disk::run("list", directory, || entry)?;
        match disk::run("stat", &entry.path(), || entry.metadata()) {
            Ok(metadata) if metadata.is_dir() => sum_bytes += allocated_bytes(&entry.path())?,
            Ok(metadata) => sum_bytes += metadata.blocks() * STAT_BLOCK_BYTES,
            Err(e) if disk::is_missing(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(sum_bytes)
}

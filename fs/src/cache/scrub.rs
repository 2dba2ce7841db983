//! The scrubber: re-reads the cache at a set rate and finds what no change time tells, the bits
//! that a disk loses or a cosmic ray turns.
//!
//! What was verified longest ago is next, so a restart goes on where the last run stopped. A file
//! is open for one chunk at a time, and can be evicted in between. What a chunk brings into the
//! page cache is dropped from it again, and what was there before stays.

use std::{
    collections::BinaryHeap,
    fs::File,
    io::IoSliceMut,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use larder_layout::Verifier;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::{
    State,
    blob::CHUNK_BYTES,
    disk::{self, Fingerprint},
    index::{SHARDS, now_s},
    key::Key,
};
use crate::error::{Error, Result};

/// A file that was verified a shorter time ago is left alone.
const INTERVAL_S: u32 = 24 * 60 * 60;
/// How long the scrubber sleeps when nothing is due.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// How many blobs are chosen at a time.
const BATCH: usize = 4096;
/// How much is read at once that is not in memory. Small, because what is in memory in the middle
/// of it would be dropped with the rest.
const COLD_BYTES: usize = 128 << 10;
/// What an empty file costs.
const COST_MIN_BYTES: u64 = 4096;

/// Runs until the cache is closed.
pub fn run(state: &Arc<State>, bytes_per_second: u64) {
    let pace = |bytes: u64| {
        Duration::from_secs_f64(bytes.max(COST_MIN_BYTES) as f64 / bytes_per_second as f64)
    };
    loop {
        let due = state.due(now_s().saturating_sub(INTERVAL_S));
        if due.is_empty() && state.stop.wait(IDLE_INTERVAL) {
            return;
        }
        for key in due {
            let outcome = state.scrub(&key, |bytes| state.stop.wait(pace(bytes)));
            if let Err(e) = outcome {
                tracing::warn!("the scrubber goes on with the next blob: {e}");
            }
            if state.stop.is_set() {
                return;
            }
        }
    }
}

impl State {
    /// The blobs that were verified before `limit_s`, longest ago first, or the first of them.
    pub(super) fn due(&self, limit_s: u32) -> Vec<Key> {
        let mut due = BinaryHeap::new();
        for shard in 0..SHARDS {
            for (key, slot) in self.index().shard(shard) {
                let is_older = due.peek().is_none_or(|(newest_s, _)| slot.verified_s < *newest_s);
                if slot.verified_s < limit_s && (due.len() < BATCH || is_older) {
                    due.push((slot.verified_s, key.clone()));
                    if due.len() > BATCH {
                        due.pop();
                    }
                }
            }
        }
        due.into_sorted_vec().into_iter().map(|(_, key)| key).collect()
    }

    /// Hashes the file of a blob, and puts it away when it is damaged. `rest` is called after each
    /// chunk, and may end it.
    pub(super) fn scrub(
        self: &Arc<Self>,
        key: &Key,
        mut rest: impl FnMut(u64) -> bool,
    ) -> Result<()> {
        let mut verifier = Verifier::new(key.digest());
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut begun = None;
        let outcome = loop {
            // Nobody evicts it while the chunk is read.
            let Some((pin, _)) = self.pin(key) else { return Ok(()) };
            let read = match read_chunk(&self.blob_path(key), &mut buffer, verifier.size_bytes()) {
                Ok((_, fingerprint)) if *begun.get_or_insert(fingerprint) != fingerprint => {
                    // Another file by now. Whoever opens it has it hashed.
                    return Ok(());
                }
                Ok((0, _)) => break verifier.finish().map_err(Error::from),
                Ok((read, _)) => read,
                Err(e) => break Err(e),
            };
            verifier.update(&buffer[..read]);
            self.counters.scrubbed_bytes.fetch_add(read as u64, Ordering::Relaxed);
            drop(pin);
            if rest(read as u64) {
                return Ok(());
            }
        };
        self.conclude(key, begun, outcome)
    }

    /// Draws the consequences, if the file is still the one that was read.
    fn conclude(
        self: &Arc<Self>,
        key: &Key,
        begun: Option<Fingerprint>,
        outcome: Result<()>,
    ) -> Result<()> {
        let _held = self.locks.lock(key);
        let Some((_pin, _)) = self.pin(key) else { return Ok(()) };
        let path = self.blob_path(key);
        let now = disk::open(&path).and_then(|file| disk::fingerprint(&file, &path));
        let checked = match (begun, now) {
            (begun, Ok(now)) if begun != Some(now) => return Ok(()),
            (_, now) => outcome.and(now).map(|now| (now, now)),
        };
        self.judge(key, checked).map(drop)
    }
}

/// Reads what comes next in a file, and leaves the page cache as it was.
fn read_chunk(path: &Path, buffer: &mut [u8], offset: u64) -> Result<(usize, Fingerprint)> {
    let file = disk::open(path)?;
    // No reading ahead: only what is read here is dropped again.
    disk::run("advise on", path, || {
        Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?)
    })?;
    let fingerprint = disk::fingerprint(&file, path)?;
    let mut filled = 0;
    while filled < buffer.len() {
        let read = read_gently(&file, path, &mut buffer[filled..], offset + filled as u64)?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    Ok((filled, fingerprint))
}

/// Reads what is in memory; or, if the next byte is not, a piece from the disk, which is then
/// dropped from memory.
fn read_gently(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let resident = preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
    let is_cold = match resident {
        Ok(read) => return Ok(read),
        Err(Errno::AGAIN) => true,
        // Not every filesystem can tell. Then nothing is dropped: what is read only once is
        // the first that the kernel drops.
        Err(_) => false,
    };
    let length = buffer.len().min(COLD_BYTES);
    let read = disk::read_at(file, path, &mut buffer[..length], offset)?;
    if is_cold {
        disk::run("advise on", path, || {
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            Ok(posix_fadvise(file, offset as i64, read as i64, advice)?)
        })?;
    }
    Ok(read)
}

//! The scrubber: re-reads the cache at a set rate and finds what no change time tells, the bits
//! that a disk loses or a cosmic ray turns.
//!
//! What was verified longest ago is next, so a restart goes on where the last run stopped. A file
//! is open for one chunk at a time, and can be evicted in between. It is read past the page cache:
//! so nothing that readers need is pushed out of memory, or dropped with what was only read here
//! (posix_fadvise(2) cannot tell one from the other), and what is on the disk is seen although its
//! pages may still be sound in memory. The kernel reads files with fs-verity through the page cache
//! all the same, where it checks what it reads; what is in memory is read from there.

use std::{
    collections::BinaryHeap,
    fs::File,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use larder_layout::Verifier;
use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise};

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
/// The largest block that disks have.
const ALIGNMENT: usize = 4096;
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
        let mut buffer = Buffer::new();
        let buffer = buffer.aligned();
        let mut begun = None;
        let outcome = loop {
            // Nobody evicts it while the chunk is read.
            let Some((pin, _)) = self.pin(key) else { return Ok(()) };
            let read = match read_chunk(&self.blob_path(key), buffer, verifier.size_bytes()) {
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

/// Where the page cache is not used, the kernel wants whole blocks in aligned memory.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Self {
        Self(vec![0; CHUNK_BYTES + ALIGNMENT])
    }

    fn aligned(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[start..start + CHUNK_BYTES]
    }
}

/// Reads a chunk of a file, less only at the end, and leaves the page cache as it is.
fn read_chunk(path: &Path, buffer: &mut [u8], offset: u64) -> Result<(usize, Fingerprint)> {
    let file = disk::open(path)?;
    let fingerprint = disk::fingerprint(&file, path)?;
    // Where the page cache is used all the same, what is read once is the first to be dropped.
    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_NOREUSE);
    let read = match read_past_cache(&file, path, buffer, offset) {
        // Not every filesystem can.
        Err(e) if disk::is_unsupported(&e) => {
            let _ = fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()));
            read_full(&file, path, buffer, offset)?
        }
        outcome => outcome?,
    };
    Ok((read, fingerprint))
}

fn read_past_cache(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let flags = FcntlArg::F_SETFL(OFlag::O_DIRECT);
    disk::run("read past the page cache", path, || Ok(fcntl(file, flags)?))?;
    read_full(file, path, buffer, offset)
}

fn read_full(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let read = disk::read_at(file, path, &mut buffer[filled..], offset + filled as u64)?;
        filled += read;
        // At the end, the next offset is no whole number of blocks.
        if read == 0 || !filled.is_multiple_of(ALIGNMENT) {
            break;
        }
    }
    Ok(filled)
}

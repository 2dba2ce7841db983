//! What the cache promises, on a real directory. A [`Node`] is a cache without its threads: what
//! they do in the background, a test does when it wants to.

mod faults;
mod restart;
mod room;
mod scrub;
mod truth;

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use larder_config::{Cache as Config, CacheSize};
use larder_layout::{Algorithm, Digest};

use super::{
    CachedBlob, Reservation, State,
    index::{Index, SHARDS, Sums},
    journal::Journal,
    key::Key,
    room::allocated_bytes,
};
use crate::error::Result;

const BLOCK_BYTES: u64 = 4096;

/// A cache, and the directory that it is in.
struct Node {
    directory: PathBuf,
    state: Arc<State>,
}

impl Node {
    /// Opens the cache in `directory`, with room for so many blocks.
    fn open(directory: &Path, blocks: u64) -> Self {
        let node = Self::open_uncounted(directory, blocks);
        node.state.reconcile().unwrap();
        node
    }

    /// The same, before it has looked through its directory.
    fn open_uncounted(directory: &Path, blocks: u64) -> Self {
        let state = State::open(&config(directory, blocks), |_| false).unwrap();
        Self { directory: directory.to_owned(), state }
    }

    /// Ends as a process ends that is told to.
    fn close(self) {
        self.state.index().log_touches();
        self.state.flush().unwrap();
    }

    fn put(&self, content: &[u8]) -> Digest {
        self.put_open(content).digest().clone()
    }

    fn put_open(&self, content: &[u8]) -> CachedBlob {
        self.try_put(Algorithm::Sha256, content).unwrap()
    }

    fn try_put(&self, algorithm: Algorithm, content: &[u8]) -> Result<CachedBlob> {
        let room = Reservation::new(&self.state, content.len() as u64)?;
        let digest = Digest::of(algorithm, content);
        fs::File::create_new(self.state.staging_path("x")).unwrap().write_all(content).unwrap();
        self.state.adopt("x", &digest, SystemTime::now(), room)
    }

    /// What a reader gets.
    fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.state.open_blob(digest).unwrap().map(|blob| content(&blob))
    }

    fn has(&self, digest: &Digest) -> bool {
        self.state.index().get(&Key::from(digest)).is_some()
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.state.blob_path(&Key::from(digest))
    }

    fn used_bytes(&self) -> u64 {
        self.state.index().sums.used()
    }

    fn verified_bytes(&self) -> u64 {
        self.state.counters.verified_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn quarantine(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.join("quarantine")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn config(directory: &Path, blocks: u64) -> Config {
    Config {
        directory: directory.to_owned(),
        size: CacheSize::Bytes(blocks * BLOCK_BYTES),
        min_free: CacheSize::Bytes(0),
        scrub_bytes_per_second: 0,
        ..Config::default()
    }
}

/// A directory in memory, if there is one: for tests that do more than a disk does in a minute.
fn fast_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn content(blob: &CachedBlob) -> Vec<u8> {
    let mut content = Vec::new();
    blob.file().read_to_end(&mut content).unwrap();
    content
}

/// Each blob, in order of use, and when it was used.
fn order(node: &Node) -> Vec<(u64, Key)> {
    let index = node.state.index();
    let mut order: Vec<_> = (0..SHARDS)
        .flat_map(|shard| index.shard(shard).map(|(key, slot)| (slot.used, key.clone())))
        .collect();
    for shard in 0..SHARDS {
        assert!(index.shard(shard).is_sorted_by_key(|(_, slot)| slot.used), "a shard out of order");
    }
    order.sort();
    order
}

/// Nobody uses the cache: its sums are what is there, and it is within its limit.
fn assert_consistent(node: &Node) {
    let index = node.state.index();
    let slots = (0..SHARDS).flat_map(|shard| index.shard(shard));
    let blob_bytes: u64 = slots.map(|(_, slot)| index.charge(slot.file.size_bytes)).sum();
    let expected = Sums {
        idle: blob_bytes,
        quarantined: index.sums.quarantined,
        discarded: index.sums.discarded,
        ..Sums::default()
    };
    assert_eq!(index.sums, expected);
    let disk_bytes: u64 = ["blobs", "staging", "quarantine", "discarded"]
        .iter()
        .map(|name| allocated_bytes(&node.directory.join(name)).unwrap())
        .sum();
    let used_bytes = index.sums.used();
    assert!(disk_bytes <= used_bytes, "{disk_bytes} on disk, {used_bytes} in the index");
    assert!(used_bytes <= node.state.limits.size_bytes, "{used_bytes} are over the limit");
}

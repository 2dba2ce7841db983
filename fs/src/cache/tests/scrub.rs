//! What no change time tells, the scrubber finds, and nobody else notices that it reads.

use std::{
    fs::File,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{
    super::{Cache, disk::Fingerprint, index::now_s},
    *,
};

const LARGE_BYTES: usize = 4 << 20;
const LARGE_BLOCKS: u64 = LARGE_BYTES as u64 / BLOCK_BYTES;

fn scrub_all(node: &Node) {
    for key in node.state.due(now_s() + 1) {
        node.state.scrub(&key, |_| false).unwrap();
    }
}

/// Changes a byte, and lets the index believe that this is what the file has always been.
fn rot(node: &Node, digest: &Digest) {
    let path = node.path(digest);
    truth::flip(&path);
    let fingerprint = Fingerprint::from(&fs::metadata(path).unwrap());
    node.state.index().confirm(&Key::from(digest), fingerprint);
}

#[test]
fn a_bit_that_flips_on_disk_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 3 * LARGE_BLOCKS);
    let digests = [1, 2].map(|byte| node.put(&vec![byte; LARGE_BYTES]));
    rot(&node, &digests[0]);
    assert!(node.get(&digests[0]).is_some(), "nobody sees that it has changed");
    scrub_all(&node);
    assert_eq!(node.get(&digests[0]), None);
    assert!(node.get(&digests[1]).is_some());
    let scrubbed = node.state.counters.scrubbed_bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(scrubbed, 2 * LARGE_BYTES as u64);
    assert_consistent(&node);
}

#[test]
fn what_was_verified_longest_ago_is_next_after_a_restart_too() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 100);
    let digests = [b"a", b"b", b"c"].map(|content| node.put(content));
    assert!(node.state.due(now_s()).len() <= 3);
    assert_eq!(node.state.due(now_s() - 60), [], "what was verified just now is not due");
    node.state.index().doubt(&Key::from(&digests[2]));
    node.close();

    let node = Node::open(directory.path(), 100);
    let due = node.state.due(now_s() - 60);
    assert_eq!(due, [Key::from(&digests[2])]);
    assert_eq!(node.state.due(now_s() + 1)[0], due[0], "what was never verified comes first");
    node.state.scrub(&due[0], |_| false).unwrap();
    assert_eq!(node.state.due(now_s() - 60), []);
    node.get(&digests[2]).unwrap();
    assert_eq!(node.verified_bytes(), 0, "the scrubber has hashed it");
}

#[test]
fn a_blob_can_be_evicted_and_replaced_while_it_is_scrubbed() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 2 * LARGE_BLOCKS);
    let digest = node.put(&vec![1; LARGE_BYTES]);
    let key = Key::from(&digest);
    let mut chunks = 0;
    node.state
        .scrub(&key, |_| {
            chunks += 1;
            node.put(&vec![1; LARGE_BYTES]);
            false
        })
        .unwrap();
    assert_eq!(chunks, 1, "it went on with another file");
    assert!(node.get(&digest).is_some());
    node.state
        .scrub(&key, |_| {
            drop(Reservation::new(&node.state, 2 * LARGE_BYTES as u64).unwrap());
            false
        })
        .unwrap();
    assert!(!node.has(&digest));
    assert_eq!(node.quarantine().len(), 0);
    assert_consistent(&node);
}

/// Which pages of a file are in the page cache: mincore(2).
fn resident_pages(file: &File, size_bytes: usize) -> Vec<bool> {
    let mut pages = vec![0_u8; size_bytes / BLOCK_BYTES as usize];
    // SAFETY: the kernel chooses where, and the file is not touched through the mapping.
    let mapping = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_bytes,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(mapping, libc::MAP_FAILED);
    // SAFETY: the mapping is so long, and there is a byte for each page of it.
    assert_eq!(unsafe { libc::mincore(mapping, size_bytes, pages.as_mut_ptr()) }, 0);
    // SAFETY: nothing refers to the mapping.
    unsafe { libc::munmap(mapping, size_bytes) };
    pages.iter().map(|page| page & 1 == 1).collect()
}

#[test]
fn the_page_cache_is_left_as_it_was() {
    const HALF: usize = LARGE_BYTES / 2;
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 2 * LARGE_BLOCKS);
    let open = node.put_open(&vec![1; LARGE_BYTES]);
    let file = open.file();
    file.sync_all().unwrap();
    posix_fadvise(file, HALF as i64, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let before = resident_pages(file, LARGE_BYTES);
    if before.iter().all(|&is_resident| is_resident) {
        assert!(std::env::var_os("CI").is_none(), "this test needs a disk behind TMPDIR");
        eprintln!("SKIPPED: the directory for temporary files is in memory");
        return;
    }
    assert!(before[0], "something hot");
    node.state.scrub(&Key::from(open.digest()), |_| false).unwrap();
    assert_eq!(resident_pages(file, LARGE_BYTES), before);
}

#[test]
fn a_cache_scrubs_in_the_background_and_stops_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 3 * LARGE_BLOCKS);
    let sound = node.put(&vec![1; LARGE_BYTES]);
    let damaged = node.put(&vec![2; LARGE_BYTES]);
    rot(&node, &damaged);
    for digest in [&sound, &damaged] {
        node.state.index().doubt(&Key::from(digest));
    }
    node.close();

    let mut config = config(directory.path(), 3 * LARGE_BLOCKS);
    config.scrub_bytes_per_second = 1 << 30;
    let cache = Cache::open(&config).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_verified = || cache.facts(&sound).is_some_and(|facts| facts.verified.is_some());
    while !is_verified() || cache.stat(&damaged).is_some() {
        assert!(Instant::now() < deadline, "{:?}", cache.usage());
        std::thread::yield_now();
    }
    assert_eq!(cache.usage().quarantined, 1);
    assert_eq!(cache.usage().verified_bytes, 0);
    drop(cache);

    // So slow that a chunk lasts for years.
    config.scrub_bytes_per_second = 1;
    let node = Node::open(directory.path(), 3 * LARGE_BLOCKS);
    node.state.index().doubt(&Key::from(&sound));
    node.close();
    let cache = Cache::open(&config).unwrap();
    while cache.usage().scrubbed_bytes == 0 {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    drop(cache);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

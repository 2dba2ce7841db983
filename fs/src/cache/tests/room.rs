//! > The local cache stays inside its size limit.

use std::sync::{
    Barrier,
    atomic::{AtomicBool, Ordering},
};

use super::{super::disk, *};

fn blob(byte: u8, blocks: usize) -> Vec<u8> {
    vec![byte; blocks * BLOCK_BYTES as usize]
}

#[test]
fn the_least_recently_used_blob_goes_first_and_never_an_open_one() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 3);
    let [a, b, c] = [1, 2, 3].map(|byte| node.put(&blob(byte, 1)));
    let open = node.state.open_blob(&a).unwrap().unwrap();
    let d = node.put(&blob(4, 1));
    assert!(!node.has(&b), "b is the least recently used: a was opened");
    let e = node.put(&blob(5, 1));
    assert!(!node.has(&c) && !node.path(&c).exists());
    let f = node.put(&blob(6, 1));
    assert!(node.has(&a) && !node.has(&d), "an open blob was evicted");
    assert_eq!(content(&open), blob(1, 1));
    drop(open);
    node.put(&blob(7, 1));
    assert!(node.has(&a), "a was used until now");
    assert!(!node.has(&e) && node.has(&f));
    assert_consistent(&node);
}

#[test]
fn what_has_no_room_is_refused_and_nothing_is_evicted_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 4);
    let a = node.put(&blob(1, 1));
    let open = node.put_open(&blob(2, 2));
    for blocks in [3, 5, 1 << 40, u64::MAX / BLOCK_BYTES] {
        let refused = Reservation::new(&node.state, blocks * BLOCK_BYTES).err().unwrap();
        assert_eq!(refused.errno(), libc::ENOSPC);
        assert!(refused.to_string().contains("cache.size is 16384 bytes"), "{refused}");
        assert!(node.has(&a));
    }
    let mut room = Reservation::new(&node.state, BLOCK_BYTES).unwrap();
    assert!(room.grow(3 * BLOCK_BYTES).is_err_and(|e| e.errno() == libc::ENOSPC));
    assert_eq!(room.size_bytes(), BLOCK_BYTES);
    room.grow(2 * BLOCK_BYTES).unwrap();
    assert!(!node.has(&a));
    assert_eq!(node.used_bytes(), 4 * BLOCK_BYTES);
    drop((room, open));
    assert_eq!(node.used_bytes(), 2 * BLOCK_BYTES);
    assert_consistent(&node);
}

#[test]
fn a_reservation_becomes_the_blobs_room() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 10);
    let room = Reservation::new(&node.state, 5 * BLOCK_BYTES).unwrap();
    let content = blob(1, 2);
    let digest = Digest::of(Algorithm::Sha256, &content);
    node.state.stage("x").unwrap().write(|file| file.write_all_at(&content, 0)).unwrap();
    let adopted = node.state.adopt("x", &digest, SystemTime::UNIX_EPOCH, room).unwrap();
    assert_eq!(node.used_bytes(), 2 * BLOCK_BYTES, "what it does not need is given back");
    assert_eq!((adopted.size_bytes(), adopted.digest()), (2 * BLOCK_BYTES, &digest));
    assert_eq!(node.state.stat(&digest).unwrap().modified, SystemTime::UNIX_EPOCH);

    // More than was reserved.
    let room = Reservation::new(&node.state, 1).unwrap();
    node.state.stage("x").unwrap().write(|file| file.write_all_at(&blob(2, 9), 0)).unwrap();
    let refused = node.state.adopt("x", &digest, SystemTime::now(), room);
    assert!(refused.is_err_and(|e| e.errno() == libc::ENOSPC));
    assert!(!node.state.staging_path("x").exists());
    drop(adopted);
    assert_consistent(&node);
}

/// Where the filesystem has fs-verity at start, and refuses it later: most that run this have none.
#[test]
fn a_blob_that_cannot_be_guarded_is_cached_and_has_room_for_a_tree() {
    let directory = tempfile::tempdir().unwrap();
    let state = State::open(&config(directory.path(), 4), |_| true).unwrap();
    let node = Node { directory: directory.path().to_owned(), state };
    node.state.reconcile().unwrap();
    let digests = [1, 2, 3].map(|byte| node.put(&blob(byte, 1)));
    assert!(!node.has(&digests[0]), "one block, and one beside it");
    assert_eq!(node.get(&digests[2]), Some(blob(3, 1)));
    assert_eq!(node.used_bytes(), 4 * BLOCK_BYTES);
    assert_consistent(&node);
}

#[test]
fn a_blob_that_comes_in_twice_counts_as_often_as_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 4);
    let first = node.put_open(&blob(1, 1));
    let second = node.put_open(&blob(1, 1));
    assert_eq!(node.used_bytes(), 2 * BLOCK_BYTES, "the first is still open");
    drop(first);
    assert_eq!(node.used_bytes(), BLOCK_BYTES);
    node.put(&blob(1, 1));
    assert_eq!(node.used_bytes(), 2 * BLOCK_BYTES);
    drop(second);
    assert_consistent(&node);
}

#[test]
fn the_quarantine_is_bounded_and_counts() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 200);
    let mut digests = Vec::new();
    for byte in 0..12 {
        let digest = node.put(&blob(byte, 1));
        truth::flip(&node.path(&digest));
        assert_eq!(node.get(&digest), None);
        digests.push(digest);
    }
    let mut kept: Vec<_> = node.quarantine();
    kept.sort();
    assert_eq!(kept.len(), 8);
    assert!(kept.iter().all(|path| !path.to_str().unwrap().contains(digests[0].hex())));
    assert_eq!(node.used_bytes(), 8 * BLOCK_BYTES);
    assert_consistent(&node);
    node.close();

    // It counts after a restart, too, and gives way before a blob is refused.
    let node = Node::open(directory.path(), 200);
    assert_eq!(node.used_bytes(), 8 * BLOCK_BYTES);
    node.put(&blob(1, 200));
    assert_eq!(node.quarantine().len(), 0);
    assert_consistent(&node);

    // A large one is not kept at all.
    let digest = node.put(&blob(2, 100));
    truth::flip(&node.path(&digest));
    assert_eq!(node.get(&digest), None);
    assert_eq!((node.quarantine().len(), node.used_bytes()), (0, 0));
}

#[test]
fn a_damaged_blob_that_is_open_counts_until_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(directory.path(), 40);
    let open = node.put_open(&blob(1, 4));
    truth::flip(&node.path(open.digest()));
    assert_eq!(node.get(&open.digest().clone()), None);
    assert_eq!(node.quarantine().len(), 0, "too large to be kept");
    assert_eq!(node.used_bytes(), 4 * BLOCK_BYTES);
    drop(open);
    assert_eq!(node.used_bytes(), 0);
    assert_consistent(&node);
}

/// Many threads put, open, close and damage the same few blobs in a cache that has room for few
/// of them.
#[test]
fn it_stays_within_its_size_while_many_use_it() {
    const BLOCKS: u64 = 24;
    const ROUNDS: u64 = 3000;
    let directory = fast_directory();
    let node = Node::open(directory.path(), BLOCKS);
    let is_done = AtomicBool::new(false);
    let (node, is_done) = (&node, &is_done);
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4_u64)
            .map(|worker| {
                scope.spawn({
                    let barrier = &barrier;
                    move || work(node, worker, ROUNDS, barrier)
                })
            })
            .collect();
        let watcher = scope.spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                let index = node.state.index();
                assert!(index.sums.used() <= BLOCKS * BLOCK_BYTES, "{:?}", index.sums);
                drop(index);
                node.state.checkpoint().unwrap();
            }
        });
        let outcomes: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_done.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
        outcomes.into_iter().for_each(Result::unwrap);
    });
    assert_consistent(node);
    let before = order(node);
    assert!(!before.is_empty());
    node.state.index().log_touches();
    node.state.flush().unwrap();
    let mut other = Index::new(BLOCK_BYTES, false);
    Journal::load(directory.path(), &mut other).unwrap();
    let reread = (0..SHARDS).flat_map(|shard| other.shard(shard));
    let mut reread: Vec<_> = reread.map(|(key, slot)| (slot.used, key.clone())).collect();
    reread.sort();
    let keys = |order: &[(u64, Key)]| -> std::collections::BTreeSet<Key> {
        order.iter().map(|(_, key)| key.clone()).collect()
    };
    assert_eq!(keys(&reread), keys(&before), "the journal says something else than the index");
}

fn work(node: &Node, worker: u64, rounds: u64, barrier: &Barrier) {
    barrier.wait();
    let mut seed = worker + 1;
    let mut random = move |below: u64| {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut open = Vec::new();
    for round in 0..rounds {
        let size = random(6) as usize;
        let content = blob(random(10) as u8, size);
        let digest = Digest::of(Algorithm::Sha256, &content);
        match random(8) {
            0..4 => {
                let Ok(mut room) = Reservation::new(&node.state, 1) else { continue };
                let name = format!("{worker}-{round}");
                let staged = node.state.stage(&name).unwrap();
                if room.grow(content.len() as u64).is_ok() {
                    staged.write(|file| file.write_all_at(&content, 0)).unwrap();
                    let adopted = node.state.adopt(&name, &digest, SystemTime::now(), room);
                    match adopted {
                        Ok(adopted) => open.push((adopted, content)),
                        // Another worker was so quick to damage it.
                        Err(e) => assert!(disk::is_damage(&e), "{e}"),
                    }
                } else {
                    fs::remove_file(node.state.staging_path(&name)).unwrap();
                }
            }
            4..7 => {
                if let Some(blob) = node.state.open_blob(&digest).unwrap() {
                    open.push((blob, content));
                }
            }
            _ => {
                let _ =
                    fs::File::open(node.path(&digest)).map(|f| f.set_modified(SystemTime::now()));
            }
        }
        while open.len() > random(3) as usize {
            let (blob, expected) = open.swap_remove(random(open.len() as u64) as usize);
            assert_eq!(super::content(&blob), expected);
        }
    }
}

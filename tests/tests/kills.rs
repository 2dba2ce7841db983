//! `larder-fs` is killed at any moment of its work, again and again.
//!
//! `LARDER_KILLS` is how often.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    collections::HashSet,
    env, fs,
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use larder_layout::{Algorithm, Digest, Entry, Link, StagingId};
use larder_tests::{Mount, Sandbox, Storage, blobs_in};

const KILLS: u64 = 300;
/// A kill comes at most this long after the load has begun.
const LOAD_US: u64 = 60_000;
/// Fewer than what is published between two kills, so that it is evicted all the time.
const CACHE: &str = "size: 6MiB, scrub: 0";
const SIZES_BYTES: [usize; 6] = [10, 3_000, 3_000, 100_000, 1_500_000, (8 << 20) + 1];
const TAG: &str = "latest";
const PUBLISHERS: u64 = 2;

/// What the programs on the mount know.
#[derive(Default)]
struct Known {
    /// What `rename` has acknowledged since the last check, in order.
    acknowledged: Mutex<Vec<Digest>>,
    /// And before.
    checked: Mutex<Vec<Digest>>,
    /// What the tag may name, or not be there: what was acknowledged last, or tried afterwards.
    tagged: Mutex<Vec<Option<Digest>>>,
    /// How many publications a kill has cut off.
    cut: AtomicU64,
    next: AtomicU64,
    /// From the moment before the kill.
    is_killed: AtomicBool,
    is_ending: AtomicBool,
}

/// Bytes that no other seed gives.
fn content(seed: u64, size_bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = vec![0; size_bytes];
    for piece in content.chunks_mut(8) {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
    content
}

fn random() -> u64 {
    RandomState::new().hash_one(0)
}

fn tag() -> Link {
    Link::Tag("library/app".parse().unwrap(), TAG.parse().unwrap())
}

impl Known {
    /// Runs `step` until the mount is killed under it. The first error is the kill.
    fn repeat(&self, mut step: impl FnMut() -> io::Result<()>) {
        while !self.is_ending.load(Ordering::Relaxed) {
            if let Err(e) = step() {
                assert!(self.is_killed.load(Ordering::SeqCst), "before the kill: {e}");
                return;
            }
        }
    }

    fn publish(&self, mount: &Path) -> io::Result<()> {
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        let content = content(seed, SIZES_BYTES[random() as usize % SIZES_BYTES.len()]);
        let digest = Digest::of(Algorithm::Sha256, &content);
        let name = format!("n{seed}");
        let id = match seed % 2 {
            0 => name.parse().unwrap(),
            _ => StagingId::of_blob(&name, &digest).unwrap(),
        };
        let staged = mount.join(Entry::Staged(id).path());
        let published = (|| {
            fs::File::create_new(&staged)?.write_all(&content)?;
            fs::rename(&staged, mount.join(Entry::Blob(digest.clone()).path()))
        })();
        match published {
            Ok(()) => self.acknowledged.lock().unwrap().push(digest),
            // A large one has no room beside another.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => return fs::remove_file(&staged),
            Err(e) => {
                self.cut.fetch_add(1, Ordering::Relaxed);
                return Err(e);
            }
        }
        Ok(())
    }

    /// "1. Bytes served under a digest hash to it, or the transfer ends in an error."
    fn read(&self, mount: &Path) -> io::Result<()> {
        let Some(digest) = pick(&self.checked) else { return Ok(()) };
        let content = fs::read(mount.join(Entry::Blob(digest.clone()).path()))?;
        assert_eq!(Digest::of(Algorithm::Sha256, &content), digest, "{} bytes", content.len());
        Ok(())
    }

    fn tag(&self, mount: &Path) -> io::Result<()> {
        let Some(digest) = pick(&self.checked) else { return Ok(()) };
        let (staged, tag) = (mount.join("ingest/tag"), tag());
        let path = mount.join(Entry::Link(tag.clone()).path());
        fs::create_dir_all(path.parent().unwrap())?;
        symlink(tag.target(&digest), &staged)?;
        self.tagged.lock().unwrap().push(Some(digest.clone()));
        fs::rename(&staged, &path)?;
        *self.tagged.lock().unwrap() = vec![Some(digest)];
        Ok(())
    }

    /// Works on the mount until it is killed, at any moment.
    fn load(&self, mount: &Mount<'_>) {
        self.is_ending.store(false, Ordering::Relaxed);
        self.is_killed.store(false, Ordering::SeqCst);
        thread::scope(|scope| {
            for _ in 0..PUBLISHERS {
                scope.spawn(|| self.repeat(|| self.publish(mount.directory())));
            }
            scope.spawn(|| self.repeat(|| self.read(mount.directory())));
            scope.spawn(|| self.repeat(|| self.tag(mount.directory())));
            // Not a wait for anything: the moment is what is tried.
            thread::sleep(Duration::from_micros(random() % LOAD_US));
            self.is_killed.store(true, Ordering::SeqCst);
            mount.kill();
            self.is_ending.store(true, Ordering::Relaxed);
        });
    }

    /// Looks at what was acknowledged, from another node, and at all that is visible anew.
    fn check(&self, other: &Mount<'_>, killed: &Mount<'_>, seen: &mut HashSet<Digest>) {
        // "2. What `rename` acknowledged survives a crash of any node and is readable on every node."
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        for digest in &acknowledged {
            other.call(|mount| assert_whole(mount, digest));
        }
        self.checked.lock().unwrap().extend(acknowledged);
        // "3. No partial blob is ever visible under `blobs/`."
        for digest in killed.call(listed) {
            if seen.insert(digest.clone()) {
                killed.call(|mount| assert_whole(mount, &digest));
            }
        }
        let checked = self.checked.lock().unwrap();
        let lost: Vec<_> = checked.iter().filter(|digest| !seen.contains(digest)).collect();
        assert!(lost.is_empty(), "acknowledged, and not listed: {lost:?}");
        drop(checked);

        let path = Entry::Link(tag()).path();
        for mount in [other, killed] {
            let mut tagged = self.tagged.lock().unwrap();
            let named = match mount.call(|mount| fs::read_link(mount.join(&path))) {
                Ok(target) => Some(Link::digest_of_target(&target).expect("a link to a blob")),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => panic!("the tag cannot be read: {e}"),
            };
            assert!(tagged.contains(&named), "the tag names {named:?}, none of {tagged:?}");
            *tagged = vec![named];
        }
        let staged = killed.call(|mount| fs::read_dir(mount.join("ingest")).unwrap().count());
        assert_eq!(staged, 0, "what was staged is gone with its node");
    }
}

fn pick(digests: &Mutex<Vec<Digest>>) -> Option<Digest> {
    let digests = digests.lock().unwrap();
    // Mostly one of the last, which may still be in the cache.
    let range = if random().is_multiple_of(2) { digests.len() } else { digests.len().min(10) };
    (range > 0).then(|| digests[digests.len() - 1 - random() as usize % range].clone())
}

fn assert_whole(mount: &Path, digest: &Digest) {
    let content = fs::read(mount.join(Entry::Blob(digest.clone()).path()))
        .unwrap_or_else(|e| panic!("{digest} cannot be read: {e}"));
    assert_eq!(Digest::of(Algorithm::Sha256, &content), *digest, "{} bytes", content.len());
}

fn listed(mount: &Path) -> Vec<Digest> {
    let names = fs::read_dir(mount.join("blobs/sha256")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|hex| Digest::new(Algorithm::Sha256, &hex).unwrap()).collect()
}

#[test]
fn killed_at_any_moment() {
    let Some(sandbox) = Sandbox::enter(&Mount::NEEDS) else { return };
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    let killed = Mount::start(&sandbox, "killed", &storage, CACHE);
    let other = Mount::start(&sandbox, "other", &storage, CACHE);
    let kills = env::var("LARDER_KILLS").map_or(KILLS, |text| text.parse().expect("a number"));
    let (known, mut seen) =
        (Known { tagged: vec![None].into(), ..Known::default() }, HashSet::new());
    for _ in 0..kills {
        known.load(&killed);
        killed.restart();
        known.check(&other, &killed, &mut seen);
    }
    let (cut, published) = (known.cut.into_inner(), seen.len());
    eprintln!("{kills} kills cut {cut} publications; {published} blobs were published");
    assert!(cut > kills / 4, "most kills have hit nothing, so that this has proved nothing");

    let stored: HashSet<_> = blobs_in(&directory).into_iter().collect();
    assert!(seen.is_subset(&stored));
    for file in fs::read_dir(killed.cache().join("blobs/sha256")).unwrap() {
        let name = file.unwrap().file_name();
        let digest = Digest::new(Algorithm::Sha256, name.to_str().unwrap()).unwrap();
        assert!(stored.contains(&digest), "{digest} is cached and not stored");
        killed.call(|mount| assert_whole(mount, &digest));
    }
}

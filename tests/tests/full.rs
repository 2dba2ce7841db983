//! Caches on disks that are small, and that others fill, on each filesystem that they are made for.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use larder_layout::{Algorithm, Digest, Entry};
use larder_tests::{
    Blob, Format, Image, Mount, Node, Sandbox, ScriptedUpstream, Storage, publish, random_bytes,
    run, scenario::wait_until_cached, until,
};
use nix::sys::statvfs::statvfs;

const MIB: usize = 1 << 20;
const DISK_BYTES: u64 = 384 << 20;
const MIN_FREE_BYTES: u64 = 64 << 20;
/// What a filesystem takes for itself while files come and go.
const OVERHEAD_BYTES: u64 = 4 << 20;
/// In all, more than the disk holds.
const BLOBS: usize = 48;
const BLOB_BYTES: usize = 8 * MIB;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
const FILLED_WITHIN: Duration = Duration::from_secs(60);
const NEEDS: [&str; 2] = ["/dev/loop-control", "mount"];

/// A new filesystem of its own for the cache of the node of this name.
fn make_disk(sandbox: &Sandbox, node: &str, make: &[&str]) -> PathBuf {
    let image = sandbox.path(&format!("{node}.img"));
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let mut format = Command::new(make[0]);
    format.args(&make[1..]).arg(&image);
    run(format, COMMAND_TIMEOUT).expect("a filesystem");
    let directory = sandbox.directory(&format!("{node}-cache"));
    let mut mount = Command::new("mount");
    mount.args(["-o", "loop"]).args([&image, &directory]);
    run(mount, COMMAND_TIMEOUT).expect("a filesystem that is mounted");
    directory
}

fn free_bytes(directory: &Path) -> u64 {
    let disk = statvfs(directory).unwrap();
    disk.blocks_available() * disk.fragment_size()
}

fn cached(cache: &Path) -> usize {
    fs::read_dir(cache.join("blobs/sha256")).unwrap().count()
}

/// Another program fills the disk, and what is given up for it, until no more is than `cached_max`.
fn fill(cache: &Path, cached_max: usize) -> PathBuf {
    let path = cache.join("other");
    let mut other = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let zeros = vec![0; MIB];
    until("a disk that is full of something else", FILLED_WITHIN, || {
        loop {
            match other.write(&zeros).and_then(|_| other.sync_data()) {
                Err(e) if e.kind() == ErrorKind::StorageFull => break,
                outcome => outcome.unwrap(),
            }
        }
        (cached(cache) <= cached_max && free_bytes(cache) < MIB as u64).then_some(())
    });
    path
}

fn assert_read(node: &Mount<'_>, path: &Path) {
    let content = node.call(|mount| fs::read(mount.join(path))).unwrap();
    assert!(path.ends_with(Digest::of(Algorithm::Sha256, &content).hex()));
}

// "8. The local cache stays inside its size limit": `cache.min_free` is one, which holds at every
// moment. And "a full disk degrades to uncached reads".

fn a_small_disk(make: &[&str]) {
    let needs = [&Mount::NEEDS[..], &NEEDS, &make[..1]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let cache = make_disk(&sandbox, "node", make);
    let storage = Storage::Directory(sandbox.directory("storage"));
    let other = Mount::start(&sandbox, "other", &storage, "size: 1GiB");
    let publish_one = |_| other.call(|mount| publish(mount, &random_bytes(BLOB_BYTES))).unwrap();
    let path = |digest| Entry::Blob(digest).path();
    let blobs: Vec<_> = (0..BLOBS).map(publish_one).map(path).collect();
    let node = Mount::start(&sandbox, "node", &storage, "size: 4GiB, min_free: 64MiB");

    let is_done = AtomicBool::new(false);
    let lowest_bytes = thread::scope(|scope| {
        let watch = || {
            let mut lowest_bytes = u64::MAX;
            while !is_done.load(Ordering::Relaxed) {
                lowest_bytes = lowest_bytes.min(free_bytes(&cache));
            }
            lowest_bytes
        };
        let watcher = scope.spawn(watch);
        for _ in 0..2 {
            blobs.iter().for_each(|blob| assert_read(&node, blob));
        }
        is_done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    eprintln!("{make:?}: {lowest_bytes} bytes were free at the least, {} cached", cached(&cache));
    // statvfs(2) of btrfs neither counts what it has not written yet, nor tells of all that is free.
    let is_told = make[0] != "mkfs.btrfs";
    assert!(
        !is_told || lowest_bytes + OVERHEAD_BYTES >= MIN_FREE_BYTES,
        "{lowest_bytes} bytes free"
    );
    assert!(cached(&cache) > BLOBS / 3, "{} of {BLOBS} are cached", cached(&cache));

    let filling = fill(&cache, 0);
    blobs.iter().take(3).for_each(|blob| assert_read(&node, blob));
    let staged = node.call(|mount| publish(mount, &random_bytes(BLOB_BYTES)));
    assert_eq!(staged.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    // What could be created, but not be written.
    let _ = node.call(|mount| fs::remove_file(mount.join("ingest/x")));
    fs::remove_file(filling).unwrap();
    until("a disk with room", FILLED_WITHIN, || {
        assert_read(&node, &blobs[0]);
        (cached(&cache) > 0).then_some(())
    });
    node.call(|mount| publish(mount, &random_bytes(BLOB_BYTES))).unwrap();
}

#[test]
fn ext4() {
    a_small_disk(&["mkfs.ext4", "-q"]);
}

#[test]
fn xfs() {
    a_small_disk(&["mkfs.xfs", "-q"]);
}

#[test]
fn btrfs() {
    a_small_disk(&["mkfs.btrfs", "-q"]);
}

/// "A full disk […] never fails a pull": neither a cold one nor a warm one.
#[test]
fn a_pull_while_the_disk_is_full() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &NEEDS, &["mkfs.ext4"]].concat()) else {
        return;
    };
    let cache = make_disk(&sandbox, "node", &["mkfs.ext4", "-q"]);
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let storage = Storage::Directory(sandbox.directory("storage"));
    let mut node = Node::start(&sandbox, "node", &storage, Some(&upstream.url()));
    let registry = node.registry();
    registry.pull(&image, &image.native).expect("an image, with room");
    wait_until_cached(&node, &image, &[&image.native]);
    fill(&cache, usize::MAX);
    let blob = Blob::new("application/octet-stream", random_bytes(BLOB_BYTES));
    upstream.add(&image.repository, &blob);
    let bytes = registry.blob(&image.repository, &blob.digest).expect("a new blob");
    assert_eq!(bytes, BLOB_BYTES as u64);
    registry.pull(&image, &image.native).expect("an image that is only in the storage");

    // Nor when nothing can be stored anywhere.
    node.kill_shim();
    node.temporary = Some(cache);
    node.start_shim();
    let blob = Blob::new("application/octet-stream", random_bytes(BLOB_BYTES));
    upstream.add(&image.repository, &blob);
    let bytes = registry.blob(&image.repository, &blob.digest).expect("a blob from memory");
    assert_eq!(bytes, BLOB_BYTES as u64);
    assert!(node.log().contains("there is room for it nowhere"));
}

//! A file of the cache is changed behind the back of `larder-fs`.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

#[path = "../../fs/tests/model/operation.rs"]
#[allow(dead_code, reason = "only the damage is done here")]
mod operation;

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    ptr,
    time::Duration,
};

use larder_layout::{Digest, Entry, Link as LayoutLink, Membership, Repository};
use larder_tests::{
    Blob, Format, Image, Mount, Node, Sandbox, ScriptedUpstream, Storage, publish, random_bytes,
    until,
};

use self::operation::Damage;

/// One that is kept open after it was read, and one that is not.
const SIZES_BYTES: [usize; 2] = [3_000, 9_000_000];
const DAMAGES: [Damage; 4] = [Damage::Flip, Damage::Truncate, Damage::Replace, Damage::Empty];
const TIMEOUT: Duration = Duration::from_secs(30);

fn cached(cache: &Path, digest: &Digest) -> PathBuf {
    cache.join("blobs/sha256").join(digest.hex())
}

/// What a program sees that maps the file. While a blob is on its way, the kernel shares no mapping
/// of it (ENODEV).
fn map(path: &Path, size: usize, flags: i32) -> io::Result<Vec<u8>> {
    let (file, null) = (File::open(path)?, ptr::null_mut());
    // SAFETY: a new mapping, which nothing else uses, and which is unmapped below.
    let at = unsafe { libc::mmap(null, size, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: so many bytes are mapped. Of a file that is shorter, reading them is a SIGBUS, which
    // ends the test.
    let content = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), size) }.to_vec();
    // SAFETY: nobody uses the mapping any more.
    unsafe { libc::munmap(at, size) };
    Ok(content)
}

// "1. Bytes served under a digest hash to it, or the transfer ends in an error": by read and mmap.

#[test]
fn a_damaged_file_of_the_cache_is_never_read_or_mapped() {
    let Some(sandbox) = Sandbox::enter(&Mount::NEEDS) else { return };
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    let mount = Mount::start(&sandbox, "node", &storage, "size: 256MiB, scrub: 0");
    for (size_bytes, damage) in SIZES_BYTES.iter().flat_map(|size| DAMAGES.map(|d| (*size, d))) {
        let content = random_bytes(size_bytes);
        let digest = mount.call(|mount| publish(mount, &content)).unwrap();
        let (path, file) = (Entry::Blob(digest.clone()).path(), cached(mount.cache(), &digest));
        for is_mapped in [false, true] {
            let look = || {
                mount.call(|mount| match is_mapped {
                    false => fs::read(mount.join(&path)),
                    true => map(&mount.join(&path), size_bytes, libc::MAP_PRIVATE),
                })
            };
            let share =
                || mount.call(|mount| map(&mount.join(&path), size_bytes, libc::MAP_SHARED)).ok();
            assert!(look().unwrap() == content, "before {damage:?}");
            let shared = until("a shared mapping", TIMEOUT, share);
            assert!(shared == content, "{size_bytes} bytes, before {damage:?}");
            damage.inflict(&file);
            let seen = look().unwrap_or_else(|e| panic!("{size_bytes} bytes, {damage:?}: {e}"));
            assert!(seen == content, "{size_bytes} bytes, {damage:?}, is mapped: {is_mapped}");
        }
        // And when the blob is nowhere else, it is missing or unreadable, and not wrong.
        until("a file in the cache", TIMEOUT, || file.exists().then_some(()));
        assert!(mount.call(|mount| fs::read(mount.join(&path))).unwrap() == content);
        fs::remove_dir_all(directory.join("docker/registry/v2/blobs/sha256")).unwrap();
        damage.inflict(&file);
        let seen = mount.call(|mount| fs::read(mount.join(&path)));
        let errno = seen.expect_err("it is nowhere").raw_os_error();
        assert!(matches!(errno, Some(libc::ENOENT | libc::EIO)), "{damage:?}: {errno:?}");
    }
}

// The same by way of the shim, with what it remembers of its own, and without asking the upstream.

#[test]
fn a_damaged_file_of_the_cache_is_never_served() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let storage = Storage::Directory(sandbox.directory("storage"));
    let node = Node::start(&sandbox, "node", &storage, Some(&upstream.url()));
    let (registry, cache) = (node.registry(), sandbox.path("node-cache"));
    let repository: Repository = image.repository.parse().unwrap();
    for (size_bytes, damage) in SIZES_BYTES.iter().flat_map(|size| DAMAGES.map(|d| (*size, d))) {
        let blob = Blob::new("application/octet-stream", random_bytes(size_bytes));
        upstream.add(&image.repository, &blob);
        let serve = || registry.blob(&image.repository, &blob.digest).map_err(|e| e.0);
        assert_eq!(serve(), Ok(size_bytes as u64), "from the upstream");
        // Until it is linked, clients join its pull, which has the file open that is damaged below.
        let layer = Membership::Layer;
        let link = LayoutLink::Member(repository.clone(), layer, blob.digest.clone());
        let link = Entry::Link(link).path();
        let link = link.to_str().unwrap();
        until("the end of its pull", TIMEOUT, || node.on_mount("readlink", &[link]).ok());
        until("the blob in the mount", TIMEOUT, || node.check_blob(&blob.digest).ok());
        assert_eq!(serve(), Ok(size_bytes as u64), "from the cache");
        damage.inflict(&cached(&cache, &blob.digest));
        assert_eq!(serve(), Ok(size_bytes as u64), "after {damage:?}");
        assert_eq!(upstream.gets(&blob.digest), 1, "the storage has it");
    }
}

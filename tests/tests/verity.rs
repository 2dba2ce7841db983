//! The cache on a filesystem with fs-verity, whose disk loses a bit. That takes a kernel that has it: the
//! test boots one, and the rest runs inside.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use larder_layout::{Digest, Entry, Report};
use larder_tests::{
    Failure, Mount, Node, Sandbox, publish, random_bytes, run, until,
    verity::{self, DISKS, put_on_disk, rot, run_in_machine},
};
use serde_json::Value;

const SIZE_BYTES: usize = 4_000_000;
/// Where the page is that the disk loses.
const LOST: std::ops::Range<usize> = 2 << 20..(2 << 20) + 4096;
const TIMEOUT: Duration = Duration::from_secs(30);
const CACHE: &str = "size: 64MiB, scrub: 0";

#[test]
fn a_cache_with_fs_verity() {
    let needs = [&verity::NEEDS[..], &Node::NEEDS].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    run_in_machine(&sandbox, "inside::");
}

/// A blob in the cache, whose file the kernel guards.
struct Cached {
    content: Vec<u8>,
    digest: Digest,
    file: PathBuf,
}

impl Cached {
    fn publish(mount: &Mount<'_>) -> Self {
        let content = random_bytes(SIZE_BYTES);
        let digest = mount.call(|mount| publish(mount, &content)).unwrap();
        let file = file(mount.cache(), &digest);
        assert_guarded(&file);
        Self { content, digest, file }
    }

    fn read(&self, mount: &Mount<'_>, flags: i32) -> (Vec<u8>, io::Result<usize>) {
        let path = Entry::Blob(self.digest.clone()).path();
        mount.call(|mount| {
            let mut seen = Vec::new();
            let file = File::options().read(true).custom_flags(flags).open(mount.join(path));
            let read = file.and_then(|mut file| file.read_to_end(&mut seen));
            (seen, read)
        })
    }

    /// Has another process map the blob and look at the first byte that the disk has lost.
    fn look_at_lost_byte(&self, mount: &Mount<'_>) -> Result<String, Failure> {
        let path = Entry::Blob(self.digest.clone()).path();
        let look = format!(
            "import mmap, sys; blob = open(sys.argv[1], 'rb'); \
             print(mmap.mmap(blob.fileno(), 0, prot=mmap.PROT_READ)[{}])",
            LOST.start
        );
        mount.call(|mount| {
            let mut python = Command::new("python3");
            python.arg("-c").arg(look).arg(mount.join(path));
            run(python, TIMEOUT)
        })
    }

    /// It was found, put away and counted, and comes into the cache anew.
    fn assert_replaced(&self, mount: &Mount<'_>) {
        let (seen, read) = self.read(mount, 0);
        assert!(read.is_ok() && seen == self.content, "whoever opens it next: {read:?}");
        assert_eq!(fs::read_dir(mount.cache().join("quarantine")).unwrap().count(), 1);
        assert_eq!(stats(mount)["quarantined"], 1);
        until("a file in the cache", TIMEOUT, || self.file.exists().then_some(()));
        assert_guarded(&self.file);
    }
}

fn file(cache: &Path, digest: &Digest) -> PathBuf {
    cache.join("blobs/sha256").join(digest.hex())
}

fn assert_guarded(file: &Path) {
    let error = File::options().write(true).open(file).expect_err("it was opened for writing");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let mut attributes = Command::new("lsattr");
    attributes.arg(file);
    let attributes = run(attributes, TIMEOUT).unwrap();
    assert!(attributes.split(' ').next().unwrap().contains('V'), "{attributes}");
}

fn stats(mount: &Mount<'_>) -> Value {
    let report = Entry::Report(Report::Stats).path();
    let stats = mount.call(|mount| fs::read(mount.join(report))).unwrap();
    serde_json::from_slice::<Value>(&stats).unwrap()["cache"].take()
}

mod inside {
    use larder_tests::{Blob, Format, Image, ScriptedUpstream, Storage};

    use super::*;

    // "1. Bytes served under a digest hash to it, or the transfer ends in an error."

    #[test]
    #[ignore = "runs in a machine"]
    fn what_the_kernel_passes_through_is_right_or_an_error() {
        let sandbox = Sandbox::enter(&Mount::NEEDS).unwrap();
        for disk in DISKS {
            put_on_disk(&sandbox, disk, &format!("{disk}-cache"));
            let storage = Storage::Directory(sandbox.directory(&format!("{disk}-storage")));
            let mount = Mount::start(&sandbox, disk, &storage, CACHE);
            assert!(mount.log().contains("fs-verity guards"), "{}", mount.log());
            let cached = Cached::publish(&mount);
            let allocated_bytes = fs::metadata(&cached.file).unwrap().blocks() * 512;
            assert!(stats(&mount)["used_bytes"].as_u64() >= Some(allocated_bytes), "{disk}");
            let (seen, read) = cached.read(&mount, 0);
            assert!(read.is_ok() && seen == cached.content, "{disk}: {read:?}");

            let mapped = cached.look_at_lost_byte(&mount).unwrap();
            assert_eq!(mapped.trim(), cached.content[LOST.start].to_string(), "{disk}");

            rot(disk, &cached.content[LOST]);
            for _ in 0..2 {
                let (seen, read) = cached.read(&mount, 0);
                let errno = read.expect_err("the kernel reads the file").raw_os_error();
                assert_eq!(errno, Some(libc::EIO), "{disk}");
                assert!(cached.content.starts_with(&seen), "{disk}: wrong bytes");
            }
            let ended = cached.look_at_lost_byte(&mount).expect_err("the kernel maps the file");
            assert!(ended.0.contains("SIGBUS"), "{disk}, mapped: {ended:?}");
            let (seen, read) = cached.read(&mount, libc::O_DIRECT);
            assert!(read.is_ok() && seen == cached.content, "{disk}, asked for: {read:?}");
            cached.assert_replaced(&mount);
        }
    }

    #[test]
    #[ignore = "runs in a machine"]
    fn who_reads_by_way_of_larder_fs_notices_nothing() {
        let sandbox = Sandbox::enter(&Mount::NEEDS).unwrap();
        for disk in DISKS {
            put_on_disk(&sandbox, disk, &format!("{disk}-cache"));
            let storage = sandbox.directory(&format!("{disk}-storage"));
            let mount = Mount::unprivileged(&sandbox, disk, &storage, CACHE);
            let cached = Cached::publish(&mount);
            rot(disk, &cached.content[LOST]);
            let (seen, read) = cached.read(&mount, 0);
            assert!(read.is_ok() && seen == cached.content, "{disk}: {read:?}");
            assert!(mount.log().contains("no FUSE passthrough"), "{}", mount.log());
            // Otherwise it is the kernel that still has it.
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            cached.assert_replaced(&mount);
        }
    }

    // "a cut body is continued by docker and containerd", on this node, too.

    #[test]
    #[ignore = "runs in a machine"]
    fn a_client_of_the_shim_is_cut_off_once() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let image = Image::new(Format::Oci);
        let upstream = ScriptedUpstream::start(&sandbox, &image);
        let storage = Storage::Directory(sandbox.directory("storage"));
        put_on_disk(&sandbox, DISKS[0], "node-cache");
        let node = Node::start(&sandbox, "node", &storage, Some(&upstream.url()));
        let blob = Blob::new("application/octet-stream", random_bytes(SIZE_BYTES));
        upstream.add(&image.repository, &blob);
        let registry = node.registry();
        let serve = || registry.blob(&image.repository, &blob.digest);
        assert_eq!(serve().unwrap(), SIZE_BYTES as u64, "from the upstream");
        let link =
            format!("repositories/{}/_layers/sha256/{}", image.repository, blob.digest.hex());
        until("the end of its pull", TIMEOUT, || node.on_mount("readlink", &[&link]).ok());
        let file = file(&sandbox.path("node-cache"), &blob.digest);
        until("a file in the cache", TIMEOUT, || file.exists().then_some(()));
        assert_guarded(&file);

        rot(DISKS[0], &blob.bytes[LOST]);
        assert!(serve().is_err(), "the kernel reads the file");
        assert_eq!(serve().unwrap(), SIZE_BYTES as u64, "from the storage");
        assert_eq!(upstream.gets(&blob.digest), 1, "the storage has it");
    }
}

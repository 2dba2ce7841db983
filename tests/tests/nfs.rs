//! NFS as the shared storage: a real server with `rw,root_squash,no_wdelay`, and two nodes that are
//! clients of their own, with default mount options. Real NFS takes a machine of its own: the two
//! tests boot one each, for either version, and the rest runs inside.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use larder_layout::{Digest, Directory, Entry, Link};
use larder_tests::{
    Blob, Fault, Format, Image, Node, Sandbox, ScriptedUpstream, Storage, Upstream, blobs_in,
    nfs::{self, CLIENTS, EXPORT, network, run_in_machine},
    random_bytes, run,
    scenario::wait_until_cached,
    until,
};

const DISK_BYTES: u64 = 512 << 20;
const NOBODY: u32 = 65534;
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often what must always hold is tried.
const TIMES: usize = 200;
/// More than the threads in which a node lets calls wait.
const THREADS: usize = 600;
/// Two parts and a bit.
const LARGE_BYTES: usize = 17 << 20;

#[test]
fn version_4_2() {
    in_machine("4.2");
}

#[test]
fn version_3() {
    in_machine("3");
}

fn in_machine(version: &str) {
    let Some(sandbox) =
        Sandbox::enter(&[&nfs::NEEDS[..], &Node::NEEDS, &[Upstream::NEEDS]].concat())
    else {
        return;
    };
    run_in_machine(&sandbox, version, DISK_BYTES, "inside::");
}

/// Two nodes, each on its own mount of the export, in a directory of the test's own.
struct Nodes<'a> {
    a: Node<'a>,
    b: Node<'a>,
    /// The directory as the server has it.
    storage: PathBuf,
}

impl<'a> Nodes<'a> {
    fn start(sandbox: &'a Sandbox, name: &str, upstream: Option<&str>) -> Self {
        let storage = Path::new(EXPORT).join(name);
        fs::create_dir(&storage).unwrap();
        chown(&storage, Some(NOBODY), Some(NOBODY)).unwrap();
        let [a, b] = CLIENTS.map(|mount| Storage::Directory(Path::new(mount).join(name)));
        Self {
            a: Node::unprivileged(sandbox, "a", &a, upstream),
            b: Node::unprivileged(sandbox, "b", &b, upstream),
            storage,
        }
    }

    /// Where the server keeps a blob.
    fn data(&self, digest: &Digest) -> PathBuf {
        let (shard, hex) = (&digest.hex()[..2], digest.hex());
        self.storage.join("docker/registry/v2/blobs/sha256").join(shard).join(hex).join("data")
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.storage.join("docker/larder/staging")).unwrap().count()
    }
}

fn blob_path(node: &Node<'_>, digest: &Digest) -> PathBuf {
    node.directory().join(Entry::Blob(digest.clone()).path())
}

fn stage(node: &Node<'_>, name: &str, blob: &Blob) -> PathBuf {
    let staged = node.directory().join("ingest").join(name);
    fs::write(&staged, &blob.bytes).unwrap();
    staged
}

fn publish(node: &Node<'_>, name: &str, blob: &Blob) -> io::Result<()> {
    fs::rename(stage(node, name, blob), blob_path(node, &blob.digest))
}

fn publish_link(node: &Node<'_>, link: &Link, digest: &Digest) -> io::Result<()> {
    let staged = node.directory().join("ingest/link");
    symlink(Path::new("..").join(Entry::Blob(digest.clone()).path()), &staged)?;
    fs::rename(staged, node.directory().join(Entry::Link(link.clone()).path()))
}

fn is_missing<T>(outcome: &io::Result<T>) -> bool {
    outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

fn small_blob() -> Blob {
    Blob::new("application/octet-stream", random_bytes(100))
}

/// Blobs that are all in one directory, or each in one of its own, mostly: it depends on which
/// directory on the way is missing how a client remembers that.
fn small_blobs(share_directory: bool) -> impl Iterator<Item = Blob> {
    let seed = random_bytes(16);
    let blobs = (0_u64..).map(move |number| {
        let bytes = [seed.clone(), number.to_le_bytes().to_vec()].concat();
        Blob::new("application/octet-stream", bytes)
    });
    blobs.filter(move |blob| !share_directory || blob.digest.hex().starts_with("00"))
}

mod inside {
    use super::*;

    // "Once any node has cached a layer, every node serves it", and
    // "4. A blob that is cached is served while the upstream is down."

    #[test]
    #[ignore = "runs in a machine"]
    fn one_node_pulls_and_the_other_serves() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let mut upstream = Upstream::start(&sandbox);
        let image = Image::new(Format::Oci);
        upstream.registry().push(&image);
        let nodes = Nodes::start(&sandbox, "pull", Some(&upstream.url()));
        assert!(nodes.b.check_blob(&image.data().digest).is_err(), "nobody has pulled it yet");

        nodes.a.registry().pull(&image, &image.native).expect("a pulls through");
        wait_until_cached(&nodes.a, &image, &[&image.native]);
        upstream.stop();
        nodes.b.registry().pull(&image, &image.native).expect("b serves what a pulled");

        let data = fs::metadata(nodes.data(&image.data().digest)).unwrap();
        assert_eq!(
            (data.uid(), data.mode() & 0o777),
            (NOBODY, 0o644),
            "for every registry to read"
        );
        let registry =
            Upstream::over(&sandbox, "registry", &Storage::Directory(nodes.storage.clone()));
        registry.registry().pull(&image, &image.native).expect("a registry serves it, too");
    }

    // "10. A cold blob is fetched from the upstream once, however many clients of however many nodes
    // ask for it, while the storage is up and the nodes reach each other."

    #[test]
    #[ignore = "runs in a machine"]
    fn a_cold_blob_is_fetched_once_for_both_nodes() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let image = Image::new(Format::Oci);
        let upstream = ScriptedUpstream::start(&sandbox, &image);
        let blob = Blob::new("application/octet-stream", random_bytes(LARGE_BYTES));
        upstream.add(&image.repository, &blob);
        upstream.spoil(&blob.digest, Fault::PauseAfter(LARGE_BYTES / 2));
        let nodes = Nodes::start(&sandbox, "leases", Some(&upstream.url()));
        let both = [&nodes.a, &nodes.b];
        let open =
            |node: &Node<'_>| node.registry().open_blob(&image.repository, &blob.digest).unwrap();
        let downloads = both.map(open);
        upstream.heal(&blob.digest);
        for download in downloads {
            assert_eq!(download.finish().unwrap(), LARGE_BYTES as u64);
        }
        assert_eq!(upstream.gets(&blob.digest), 1);
        let leases = |node: &Node<'_>| node.on_mount("ls", &["leases/sha256"]).unwrap();
        for node in both {
            until("the blob", TIMEOUT, || node.check_blob(&blob.digest).ok());
            until("no lease", TIMEOUT, || leases(node).is_empty().then_some(()));
        }
    }

    // "A missing name is ENOENT and is never remembered: another node may publish it the next
    // millisecond."

    #[test]
    #[ignore = "runs in a machine"]
    fn what_a_node_has_just_missed_is_seen_when_it_is_published() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let nodes = Nodes::start(&sandbox, "missed", None);
        for share_directory in [false, true] {
            let mut seen = 0;
            let start = Instant::now();
            for blob in small_blobs(share_directory).take(TIMES) {
                let path = blob_path(&nodes.b, &blob.digest);
                assert!(is_missing(&fs::metadata(&path)), "nobody has published it yet");
                publish(&nodes.a, "blob", &blob).unwrap();
                seen += usize::from(fs::read(&path).is_ok_and(|bytes| bytes == blob.bytes));
            }
            println!("missed, then seen at once: {seen} of {TIMES}, in {:?}", start.elapsed());
            assert_eq!(seen, TIMES, "in one directory: {share_directory}");
        }
    }

    #[test]
    #[ignore = "runs in a machine"]
    fn what_a_node_misses_all_the_time_is_seen_when_it_is_published() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let nodes = Nodes::start(&sandbox, "polled", None);
        let mut seen = 0;
        for blob in small_blobs(true).take(TIMES) {
            let path = blob_path(&nodes.b, &blob.digest);
            let is_published = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_published.load(Ordering::Relaxed) && is_missing(&fs::metadata(&path))
                    {
                        thread::yield_now();
                    }
                });
                let published = publish(&nodes.a, "blob", &blob);
                is_published.store(true, Ordering::Relaxed);
                published.unwrap();
            });
            seen += usize::from(fs::read(&path).is_ok_and(|bytes| bytes == blob.bytes));
        }
        println!("missed all the time, then seen at once: {seen} of {TIMES}");
        assert_eq!(seen, TIMES);
    }

    #[test]
    #[ignore = "runs in a machine"]
    fn a_tag_that_was_moved_is_seen_at_once() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let nodes = Nodes::start(&sandbox, "moved", None);
        let blobs = [small_blob(), small_blob()];
        for blob in &blobs {
            publish(&nodes.a, "blob", blob).unwrap();
        }
        let repository = "library/alpine".parse().unwrap();
        let directory = Entry::Directory(Directory::Repository(repository)).path();
        fs::create_dir_all(nodes.a.directory().join(directory)).unwrap();
        let link = Link::Tag("library/alpine".parse().unwrap(), "latest".parse().unwrap());
        let seen_by_b =
            || fs::read_link(nodes.b.directory().join(Entry::Link(link.clone()).path()));

        assert!(is_missing(&seen_by_b()), "nobody has published it yet");
        let mut seen = 0;
        for blob in blobs.iter().cycle().take(TIMES) {
            publish_link(&nodes.a, &link, &blob.digest).unwrap();
            seen += usize::from(seen_by_b().unwrap() == link.target(&blob.digest));
        }
        println!("moved, then seen at once: {seen} of {TIMES}");
        assert_eq!(seen, TIMES);
    }

    // "Only ENOENT is a miss": a blob that is removed before it is opened is one. "1. Bytes served
    // under a digest hash to it, or the transfer ends in an error."

    #[test]
    #[ignore = "runs in a machine"]
    fn a_blob_that_is_removed_while_it_is_read_is_whole_missing_or_cut() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let nodes = Nodes::start(&sandbox, "removed", None);
        let (mut whole, mut missing, mut cut) = (0, 0, 0);
        for turn in 0..12 {
            let blob = Blob::new("application/octet-stream", random_bytes(LARGE_BYTES));
            publish(&nodes.a, "blob", &blob).unwrap();
            let data = Path::new(CLIENTS[0]).join("removed");
            let data = data.join(nodes.data(&blob.digest).strip_prefix(&nodes.storage).unwrap());
            let read = thread::scope(|scope| {
                let reader = scope.spawn(|| fs::read(blob_path(&nodes.b, &blob.digest)));
                thread::sleep(Duration::from_millis(turn * 10));
                fs::remove_file(data).unwrap();
                reader.join().unwrap()
            });
            match read {
                Ok(bytes) if bytes == blob.bytes => whole += 1,
                outcome if is_missing(&outcome) => missing += 1,
                Ok(bytes) => panic!("{} bytes that are not the blob's", bytes.len()),
                // It is read while it is fetched, and was there when it was opened.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => cut += 1,
                Err(e) => panic!("neither whole, missing nor cut: {e}"),
            }
        }
        println!("removed while it was read: {whole} times whole, {missing} missing, {cut} cut");
    }

    // "2. What `rename` acknowledged ... is readable on every node." A server whose disk is full
    // says so late, and only once.

    #[test]
    #[ignore = "runs in a machine"]
    fn a_full_disk_fails_the_rename_and_leaves_nothing() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let nodes = Nodes::start(&sandbox, "full", None);
        let blob = Blob::new("application/octet-stream", random_bytes(LARGE_BYTES));
        let staged = stage(&nodes.a, "blob", &blob);
        let target = blob_path(&nodes.a, &blob.digest);
        let mut fill = Command::new("sh");
        // `dd` ends with an error when the disk is full. Then there is room for half of the blob.
        let filler = Path::new(EXPORT).join("filler");
        fill.args(["-c", "dd if=/dev/zero of=$0 bs=1M 2>/dev/null; sync; truncate -s -$1 $0"]);
        fill.arg(&filler).arg((LARGE_BYTES / 2).to_string());
        run(fill, TIMEOUT).unwrap();

        for _ in 0..3 {
            let error = fs::rename(&staged, &target).unwrap_err();
            let errno = error.raw_os_error();
            assert!(
                matches!(errno, Some(libc::ENOSPC | libc::EIO)),
                "an unexpected error: {error}"
            );
            assert!(is_missing(&fs::metadata(blob_path(&nodes.b, &blob.digest))));
            assert_eq!(blobs_in(&nodes.storage), [], "a blob that was not acknowledged");
            until("nothing is left over", TIMEOUT, || (nodes.staged() == 0).then_some(()));
        }
        fs::remove_file(filler).unwrap();
        fs::rename(&staged, &target).expect("there is room again");
        assert_eq!(fs::read(blob_path(&nodes.b, &blob.digest)).unwrap(), blob.bytes);
    }

    // "Renaming onto an equal digest is success. ... Two nodes may publish the same blob at once."

    #[test]
    #[ignore = "runs in a machine"]
    fn two_nodes_publish_the_same_blob_at_once() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let nodes = Nodes::start(&sandbox, "race", None);
        let blobs: Vec<_> = small_blobs(false).take(TIMES / 2).collect();
        for blob in &blobs {
            thread::scope(|scope| {
                let racers =
                    [&nodes.a, &nodes.b].map(|node| scope.spawn(|| publish(node, "blob", blob)));
                for racer in racers {
                    racer.join().unwrap().expect("both publish it");
                }
            });
        }
        // All are right, which this checks, and each is there once.
        assert_eq!(blobs_in(&nodes.storage).len(), blobs.len());
        until("nothing is left over", TIMEOUT, || (nodes.staged() == 0).then_some(()));
    }

    // "5. A blob in the local cache is served while the shared storage is down."

    #[test]
    #[ignore = "runs in a machine"]
    fn cached_blobs_are_served_while_the_server_is_away() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        let nodes = Nodes::start(&sandbox, "away", None);
        let blob = small_blob();
        publish(&nodes.b, "blob", &blob).unwrap();
        let cached = blob_path(&nodes.b, &blob.digest);

        network("b", "down");
        thread::scope(|scope| {
            let outcomes: Vec<_> = small_blobs(false)
                .take(THREADS)
                .map(|blob| blob_path(&nodes.b, &blob.digest))
                .map(|missing| scope.spawn(|| fs::metadata(missing)))
                .collect();
            let reader = thread::spawn(|| fs::read(cached));
            until("a cached blob", TIMEOUT, || reader.is_finished().then_some(()));
            network("b", "up");
            assert_eq!(reader.join().unwrap().unwrap(), blob.bytes);
            for outcome in outcomes {
                let error = outcome.join().unwrap().unwrap_err();
                let errno = error.raw_os_error();
                assert!(
                    matches!(errno, Some(libc::ENOENT | libc::ETIMEDOUT | libc::EIO)),
                    "{error}"
                );
            }
        });
    }
}

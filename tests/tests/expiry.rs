//! `proxy.ttl`: what is removed from the shared storage for its age, and that no client notices.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use larder_layout::{Digest, Entry, Link, Membership};
use larder_tests::{
    Format, Image, Mount, Node, S3, Sandbox, ScriptedUpstream, Storage, blobs_in, files_in,
    publish, random_bytes, scenario::wait_until_cached, until,
};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(30);

fn start<'a>(
    sandbox: &'a Sandbox,
    name: &str,
    storage: &Storage,
    upstream: &ScriptedUpstream,
    ttl: &str,
) -> Node<'a> {
    let proxy = format!("proxy: {{remoteurl: \"{}\", ttl: {ttl}}}\n", upstream.url());
    Node::start_with(sandbox, name, storage, &proxy)
}

/// Everything that belongs to the image of this machine.
fn digests(image: &Image) -> HashSet<Digest> {
    let manifests = [&image.index, &image.native.manifest];
    manifests.into_iter().chain(&image.native.blobs).map(|blob| blob.digest.clone()).collect()
}

fn data_of(directory: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    directory.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

#[test]
fn old_blobs_of_a_directory_go_and_come_back() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    let [one, other] = ["one", "other"].map(|name| start(&sandbox, name, &storage, &upstream, "0"));
    one.registry().pull(&image, &image.native).unwrap();
    wait_until_cached(&one, &image, &[&image.native]);
    // The other node's kernel knows every blob, and takes nobody's word for it for a day.
    other.on_mount("ls", &["-l", "blobs/sha256"]).unwrap();
    let repositories = directory.join("docker/registry/v2/repositories");
    let links = || files_in(&repositories).into_iter().collect::<HashSet<_>>();
    let links_before = links();

    let new = &image.data().digest;
    let mut old = digests(&image);
    assert!(old.remove(new));
    for digest in &old {
        let file = File::options().write(true).open(data_of(&directory, digest)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(2)).unwrap();
    }
    let expiring = start(&sandbox, "expiring", &storage, &upstream, "1h");
    until("no old blob in the storage", TIMEOUT, || {
        (blobs_in(&directory) == [new.clone()]).then_some(())
    });
    assert_eq!(links(), links_before);

    // A miss, on every node and at once.
    other.registry().pull(&image, &image.native).unwrap();
    for digest in &old {
        assert_eq!(upstream.gets(digest), 2, "GETs of {digest}");
    }
    assert_eq!(upstream.gets(new), 1, "GETs of what is not old");
    wait_until_cached(&other, &image, &[&image.native]);
    until("all blobs in the storage", TIMEOUT, || {
        (blobs_in(&directory).into_iter().collect::<HashSet<_>>() == digests(&image)).then_some(())
    });
    for node in [&one, &expiring] {
        node.registry().pull(&image, &image.native).unwrap();
    }
    for digest in &old {
        assert_eq!(upstream.gets(digest), 2, "GETs of {digest}");
    }
    let stats = expiring.on_mount("cat", &[".larder/stats"]).unwrap();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["since_start"]["expired"], old.len());
}

/// A node that publishes a blob may find it there, and it may expire before the node links it.
#[test]
fn a_blob_that_expires_while_it_is_published() {
    let Some(sandbox) = Sandbox::enter(&Mount::NEEDS) else { return };
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    let [one, other] =
        ["one", "other"].map(|name| Mount::start(&sandbox, name, &storage, "size: 256MiB"));
    let content = random_bytes(3_000_000);
    let digest = one.call(|mount| publish(mount, &content)).unwrap();
    other.call(|mount| publish(mount, &content)).unwrap();
    fs::remove_file(data_of(&directory, &digest)).unwrap();

    let layer = Link::Member("library/app".parse().unwrap(), Membership::Layer, digest.clone());
    let linked = other.call(|mount| {
        let (staged, path) =
            (mount.join("ingest/y"), mount.join(Entry::Link(layer.clone()).path()));
        fs::create_dir_all(path.parent().unwrap())?;
        symlink(layer.target(&digest), &staged)?;
        fs::rename(staged, path)
    });
    linked.unwrap();
    // Whoever publishes it next brings it back, for all.
    other.call(|mount| publish(mount, &content)).unwrap();
    assert_eq!(blobs_in(&directory), [digest]);
}

#[test]
fn blobs_of_s3_come_and_go_every_few_seconds() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[S3::NEEDS]].concat()) else { return };
    let s3 = S3::start(&sandbox);
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let count = |end: &str| s3.content().0.iter().filter(|key| key.ends_with(end)).count();
    let mut nodes = Vec::new();
    for (rounds, name) in ["one", "two", "three"].into_iter().enumerate() {
        let node = start(&sandbox, name, &s3.storage(), &upstream, "2s");
        node.registry().pull(&image, &image.native).unwrap();
        until("links, and no blob", TIMEOUT, || {
            (count("/link") > image.native.blobs.len() && count("/data") == 0).then_some(())
        });
        for blob in &image.native.blobs {
            assert_eq!(upstream.gets(&blob.digest), rounds + 1, "GETs of {}", blob.digest);
        }
        nodes.push(node);
    }
}

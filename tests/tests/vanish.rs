//! A blob that vanishes from the storage while a client is sent it, which has no copy elsewhere but at the
//! upstream.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use larder_layout::{Digest, Entry, Link, Membership, Repository};
use larder_tests::{
    Blob, Download, Format, Image, Node, S3, Sandbox, ScriptedUpstream, Storage, random_bytes,
    until,
};

/// More than all that is on its way to a client that has stopped to read: what its connection takes,
/// and what `larder-fs` has fetched ahead.
const SIZE_BYTES: usize = 64 << 20;
const READ_BYTES: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);
const CONTINUED: &str = "which the upstream continues";

/// An upstream with one large blob, which a node has pulled into the storage, and another node that has
/// nothing of it.
struct Scene<'a> {
    upstream: ScriptedUpstream,
    repository: String,
    blob: Blob,
    pulled: Node<'a>,
    node: Node<'a>,
}

impl<'a> Scene<'a> {
    fn new(sandbox: &'a Sandbox, storage: &Storage) -> Self {
        let image = Image::new(Format::Oci);
        let upstream = ScriptedUpstream::start(sandbox, &image);
        let blob = Blob::new("application/octet-stream", random_bytes(SIZE_BYTES));
        upstream.add(&image.repository, &blob);
        let proxy = format!("proxy: {{remoteurl: \"{}\"}}\n", upstream.url());
        // The whole of the blob would be fetched in the time that a client takes to stop.
        let start = |name| Node::start_filling(sandbox, name, storage, "never", &proxy);
        let scene = Self {
            pulled: start("pulled"),
            node: start("node"),
            repository: image.repository,
            upstream,
            blob,
        };
        scene.pulled.registry().blob(&scene.repository, &scene.blob.digest).unwrap();
        scene.wait_until_linked(&scene.pulled);
        scene
    }

    fn wait_until_linked(&self, node: &Node<'_>) {
        let (repository, digest): (Repository, _) =
            (self.repository.parse().unwrap(), self.blob.digest.clone());
        let link = Entry::Link(Link::Member(repository, Membership::Layer, digest)).path();
        let link = link.to_str().unwrap();
        until("the link of the blob", TIMEOUT, || node.on_mount("readlink", &[link]).ok());
    }

    /// A client of the other node that has read the beginning.
    fn begin(&self) -> Download {
        let mut download =
            self.node.registry().open_blob(&self.repository, &self.blob.digest).unwrap();
        let mut read_bytes = 0;
        while read_bytes < READ_BYTES {
            read_bytes += download.read().unwrap();
        }
        download
    }

    fn assert_continued(&self, download: Download) {
        assert_eq!(download.finish().map_err(|e| e.0), Ok(SIZE_BYTES as u64));
        assert!(self.node.log().contains(CONTINUED), "{}", self.node.log());
        assert_eq!(self.upstream.gets(&self.blob.digest), 2, "GETs at the upstream");
    }

    fn data_path(&self) -> String {
        let hex = self.blob.digest.hex();
        format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])
    }
}

fn data_in(directory: &Path, scene: &Scene<'_>) -> PathBuf {
    directory.join(scene.data_path())
}

fn read_back(node: &Node<'_>, digest: &Digest) {
    until("the blob in the storage again", TIMEOUT, || node.check_blob(digest).ok());
}

#[test]
fn an_object_that_is_deleted() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let directory = sandbox.directory("storage");
    let scene = Scene::new(&sandbox, &Storage::Directory(directory.clone()));
    let download = scene.begin();
    fs::remove_file(data_in(&directory, &scene)).unwrap();
    scene.assert_continued(download);
    // It is published over what was lost, so that the next finds it, on every node.
    until("the blob in the storage", TIMEOUT, || {
        data_in(&directory, &scene).exists().then_some(())
    });
    read_back(&scene.node, &scene.blob.digest);
    assert!(scene.node.registry().blob(&scene.repository, &scene.blob.digest).is_ok());
    assert_eq!(scene.upstream.gets(&scene.blob.digest), 2);
}

#[test]
fn an_object_of_s3_that_is_deleted() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[S3::NEEDS]].concat()) else { return };
    let s3 = S3::start(&sandbox);
    let scene = Scene::new(&sandbox, &s3.storage());
    let download = scene.begin();
    s3.remove(&format!("cache/{}", scene.data_path()));
    scene.assert_continued(download);
    read_back(&scene.node, &scene.blob.digest);
}

#[test]
fn a_larder_fs_that_is_killed() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let mut scene = Scene::new(&sandbox, &Storage::Directory(sandbox.directory("storage")));
    let download = scene.begin();
    scene.node.kill_fs();
    scene.assert_continued(download);
    scene.node.start_fs();
    read_back(&scene.node, &scene.blob.digest);
}

// "1. Bytes served under a digest hash to it, or the transfer ends in an error."

fn what_was_damaged_is_never_complete(is_lost: bool) {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let directory = sandbox.directory("storage");
    let scene = Scene::new(&sandbox, &Storage::Directory(directory.clone()));
    let (data, digest) = (data_in(&directory, &scene), &scene.blob.digest);
    let file = File::options().write(true).open(&data).unwrap();
    file.write_all_at(&[!scene.blob.bytes[100]], 100).unwrap();

    let mut download = scene.begin();
    if is_lost {
        fs::remove_file(&data).unwrap();
    }
    let is_cut = loop {
        match download.read() {
            Ok(0) => break false,
            Ok(_) => {}
            Err(_) => break true,
        }
    };
    assert!(is_cut, "a wrong body was complete");
    // The upstream's is there for the next, and in the storage.
    assert!(scene.node.registry().blob(&scene.repository, digest).is_ok());
    until("a sound blob in the storage", TIMEOUT, || {
        (fs::read(&data).ok()? == scene.blob.bytes).then_some(())
    });
    scene.node.check_blob(digest).unwrap();
}

#[test]
fn an_object_that_was_damaged_and_is_deleted() {
    what_was_damaged_is_never_complete(true);
}

#[test]
fn an_object_that_was_damaged_and_is_read_to_its_end() {
    what_was_damaged_is_never_complete(false);
}

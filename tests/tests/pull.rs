//! What a node does with its upstream.

use std::{sync::Barrier, thread, time::Duration};

use larder_tests::{
    Blob, Download, Fault, Format, Image, Node, Sandbox, ScriptedUpstream, Storage, blobs_in,
    random_bytes, scenario::wait_until_cached, until,
};

const TIMEOUT: Duration = Duration::from_secs(30);
const CLIENTS: usize = 64;
const LARGE_BLOB_BYTES: usize = 64 << 20;

// "10. A cold blob is fetched from the upstream once, however many clients of however many nodes ask
// for it, while the storage is up and the nodes reach each other."

#[test]
fn a_cold_blob_for_64_clients_is_fetched_once() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let blob = Blob::new("application/octet-stream", random_bytes(LARGE_BLOB_BYTES));
    upstream.add(&image.repository, &blob);
    // Held back until all clients are there: without this the first ones could be done before
    // the last ones begin.
    upstream.spoil(&blob.digest, Fault::PauseAfter(LARGE_BLOB_BYTES / 2));
    let storage = Storage::Directory(sandbox.directory("storage"));
    let node = Node::start(&sandbox, "node", &storage, Some(&upstream.url()));
    let registry = node.registry();

    let all_are_answered = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        let client = || {
            let body = registry.open_blob(&image.repository, &blob.digest);
            all_are_answered.wait();
            body.and_then(Download::finish).expect("all of the blob")
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        all_are_answered.wait();
        upstream.heal(&blob.digest);
        for client in clients {
            assert_eq!(client.join().expect("a client"), blob.bytes.len() as u64);
        }
    });
    assert_eq!(upstream.gets(&blob.digest), 1, "GETs at the upstream");
}

#[test]
fn a_slow_blob_is_fetched_in_parts_through_the_mount() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let blob = Blob::new("application/octet-stream", random_bytes(LARGE_BLOB_BYTES / 2));
    upstream.add(&image.repository, &blob);
    upstream.spoil(&blob.digest, Fault::Slow);
    let storage = Storage::Directory(sandbox.directory("storage"));
    let nodes = ["a", "b"].map(|name| Node::start(&sandbox, name, &storage, Some(&upstream.url())));
    let read = nodes[0].registry().blob(&image.repository, &blob.digest);
    assert_eq!(read.expect("all of the blob"), blob.bytes.len() as u64);
    until("the blob on the other node", TIMEOUT, || nodes[1].check_blob(&blob.digest).ok());
    assert_eq!((upstream.gets(&blob.digest), upstream.parts(&blob.digest)), (1, 3));
}

// "1. Bytes served under a digest hash to it, or the transfer ends in an error."
// "3. No partial blob is ever visible under `blobs/`."

#[test]
fn a_wrong_byte_from_the_upstream_reaches_nobody_and_is_forgotten() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let digest = &image.data().digest;
    upstream.spoil(digest, Fault::WrongByte);
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    let node = Node::start(&sandbox, "node", &storage, Some(&upstream.url()));
    let registry = node.registry();

    for _ in 0..2 {
        let answer = registry.blob(&image.repository, digest);
        assert!(answer.is_err(), "a complete answer with a wrong byte in it: {answer:?}");
        assert!(node.check_blob(digest).is_err(), "the mount has a blob that was never right");
        assert!(!node.blobs().contains(digest), "the mount lists a blob that was never right");
        assert!(!blobs_in(&directory).contains(digest), "the storage has it");
    }
    upstream.heal(digest);
    registry.pull(&image, &image.native).expect("the healed upstream's blob");
    wait_until_cached(&node, &image, &[&image.native]);
}

//! Several nodes that are asked for the same cold blob at once.

use std::{thread, time::Duration};

use larder_tests::{
    Azurite, Blob, Download, Fault, Format, Gcs, Image, Kind, Node, Oss, S3, Sandbox,
    ScriptedUpstream, Storage, random_bytes, scenario::pull_and_run, until,
};

const TIMEOUT: Duration = Duration::from_secs(60);
const SIZE_BYTES: usize = 32 << 20;
const CLIENTS_OF_EACH: usize = 4;

// "10. A cold blob is fetched from the upstream once, however many clients of however many nodes ask
// for it, while the storage is up and the nodes reach each other."

#[test]
fn nodes_on_a_directory_fetch_a_blob_once_and_the_holder_is_killed() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let storage = Storage::Directory(sandbox.directory("storage"));
    a_blob_is_fetched_once(&sandbox, &storage);
}

#[test]
fn nodes_on_s3_fetch_a_blob_once_and_the_holder_is_killed() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[S3::NEEDS]].concat()) else { return };
    let s3 = S3::start(&sandbox);
    a_blob_is_fetched_once(&sandbox, &s3.storage());
}

#[test]
fn nodes_on_azure_fetch_a_blob_once_and_the_holder_is_killed() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &Azurite::NEEDS].concat()) else {
        return;
    };
    let azurite = Azurite::start(&sandbox);
    a_blob_is_fetched_once(&sandbox, &azurite.storage());
}

#[test]
fn nodes_on_gcs_fetch_a_blob_once_and_the_holder_is_killed() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[Gcs::NEEDS]].concat()) else { return };
    let gcs = Gcs::start(&sandbox);
    a_blob_is_fetched_once(&sandbox, &gcs.storage(&sandbox));
}

#[test]
fn nodes_on_oss_fetch_a_blob_once_and_the_holder_is_killed() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let oss = Oss::start(&sandbox);
    a_blob_is_fetched_once(&sandbox, &oss.storage());
}

/// Each through a node of its own, at once.
#[test]
fn docker_containerd_and_podman_pull_and_each_blob_is_fetched_once() {
    const KINDS: [Kind; 3] = [Kind::Docker, Kind::Containerd, Kind::Podman];
    let needs = KINDS.map(Kind::needs).concat();
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &needs].concat()) else { return };
    let storage = Storage::Directory(sandbox.directory("storage"));
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(&sandbox, &image);
    let data = image.data();
    upstream.spoil(&data.digest, Fault::PauseAfter(data.bytes.len() / 2));
    let nodes = ["docker-node", "containerd-node", "podman-node"]
        .map(|name| Node::start(&sandbox, name, &storage, Some(&upstream.url())));
    let clients: Vec<_> =
        KINDS.iter().zip(&nodes).map(|(kind, node)| kind.start(&sandbox, node.address())).collect();
    thread::scope(|scope| {
        let pulls: Vec<_> =
            clients.iter().map(|client| scope.spawn(|| pull_and_run(&**client, &image))).collect();
        // Each is sent some of the large layer before anyone has all of it.
        for node in &nodes {
            let staged = || node.on_mount("ls", &["ingest"]).expect("a listing");
            until("a blob on its way", TIMEOUT, || (!staged().is_empty()).then_some(()));
        }
        upstream.heal(&data.digest);
        pulls.into_iter().for_each(|pull| pull.join().expect("a pull"));
    });
    for blob in &image.native.blobs {
        assert_eq!(upstream.gets(&blob.digest), 1, "{}", blob.digest);
    }
}

fn a_blob_is_fetched_once(sandbox: &Sandbox, storage: &Storage) {
    let image = Image::new(Format::Oci);
    let upstream = ScriptedUpstream::start(sandbox, &image);
    let names = ["a", "b", "c"];
    let start = |name| Node::start(sandbox, name, storage, Some(&upstream.url()));
    let mut nodes: Vec<_> = names.into_iter().map(start).collect();
    let [first, second] = [0, 1].map(|_| {
        let blob = Blob::new("application/octet-stream", random_bytes(SIZE_BYTES));
        upstream.add(&image.repository, &blob);
        upstream.spoil(&blob.digest, Fault::PauseAfter(SIZE_BYTES / 2));
        blob
    });
    let ask = |nodes: &[Node<'_>], blob: &Blob| -> Vec<Vec<Download>> {
        let of_node = |node: &Node<'_>| {
            let open = || node.registry().open_blob(&image.repository, &blob.digest);
            (0..CLIENTS_OF_EACH).map(|_| open().expect("an answer")).collect()
        };
        nodes.iter().map(of_node).collect()
    };
    let leases = |node: &Node<'_>| node.on_mount("ls", &["leases/sha256"]).expect("the leases");

    let downloads = ask(&nodes, &first);
    assert_eq!(leases(&nodes[0]).trim(), first.digest.hex());
    upstream.heal(&first.digest);
    for download in downloads.into_iter().flatten() {
        assert_eq!(download.finish().expect("all of the blob"), SIZE_BYTES as u64);
    }
    for node in &nodes {
        until("no lease", TIMEOUT, || leases(node).is_empty().then_some(()));
        // What it was sent it has kept, and has not fetched from the storage.
        let ingest = || node.on_mount("ls", &["ingest"]).expect("a listing");
        until("nothing staged", TIMEOUT, || ingest().is_empty().then_some(()));
        let again = node.registry().blob(&image.repository, &first.digest);
        assert_eq!(again.expect("all of the blob"), SIZE_BYTES as u64);
        let path = format!("/blobs/{}", first.digest);
        let source = || {
            let accesses = node.accesses().into_iter().filter(|it| it.path.ends_with(&path));
            accesses.map(|access| access.source).nth(CLIENTS_OF_EACH)
        };
        assert_eq!(until("a line in the log", TIMEOUT, source), "local");
    }
    assert_eq!(upstream.gets(&first.digest), 1, "GETs at the upstream");

    let downloads = ask(&nodes, &second);
    let lease = format!("leases/sha256/{}", second.digest.hex());
    let target = nodes[0].on_mount("readlink", &[&lease]).expect("a lease");
    let is_holder = |node: &Node<'_>| target.starts_with(&format!("http://{}#", node.address()));
    let holder = nodes.iter().position(is_holder).expect("the holder is a node");
    nodes[holder].kill_shim();
    nodes[holder].kill_fs();
    upstream.heal(&second.digest);
    for (node, downloads) in downloads.into_iter().enumerate() {
        for download in downloads {
            let outcome = download.finish();
            assert_eq!(outcome.is_ok(), node != holder, "node {node}, {holder} died: {outcome:?}");
        }
    }
    assert_eq!(upstream.gets(&second.digest), 2, "the rest was asked for once more");
    nodes.remove(holder);
    for node in &nodes {
        until("the blob on the others", TIMEOUT, || node.check_blob(&second.digest).ok());
        until("no lease", TIMEOUT, || leases(node).is_empty().then_some(()));
    }
}

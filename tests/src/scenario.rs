//! What several test files do with different parts.

use larder_layout::Digest;

use crate::{Client, Format, Image, Kind, Node, Sandbox, Storage, Upstream};

/// Which kind of node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// `larder-shim` over a mount of `larder-fs`, both as root.
    Mount,
    /// `larder-shim` over a plain directory, unprivileged.
    Plain,
}

/// A client pulls an image through a node and runs it, and does so again after the upstream is
/// gone and the client has nothing left: in both formats.
pub fn pull_run_and_pull_again_without_upstream(kind: Kind, serving: Serving) {
    let needs = match serving {
        Serving::Mount => &Node::NEEDS[..],
        Serving::Plain => &Node::NEEDS_PLAIN,
    };
    let Some(sandbox) = Sandbox::enter(&[needs, kind.needs(), &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let mut upstream = Upstream::start(&sandbox);
    let images = Format::ALL.map(Image::new);
    for image in &images {
        upstream.registry().push(image);
    }
    let url = upstream.url();
    let storage = Storage::Directory(sandbox.directory("storage"));
    let node = match serving {
        Serving::Mount => Node::start(&sandbox, "node", &storage, Some(&url)),
        Serving::Plain => Node::plain(&sandbox, "node", Some(&url)),
    };
    let client = kind.start(&sandbox, node.address());

    for image in &images {
        pull_and_run(&*client, image);
        assert_came_through(&node, image, 1);
    }
    upstream.stop();
    for image in &images {
        client.remove(image);
        pull_and_run(&*client, image);
        assert_came_through(&node, image, 2);
    }
}

/// Pulls an image, and proves that the client has it and can run it.
///
/// # Panics
/// When anything about it is wrong.
pub fn pull_and_run(client: &dyn Client, image: &Image) {
    client.pull(image).expect("the client pulls the image");
    let digests = client.digests(image);
    let expected = image.index.digest.to_string();
    assert!(digests.contains(&expected), "the client has {digests} instead of {expected}");
    let printed = client.sh(image, "cat /greeting; echo; sha256sum /data");
    let expected = format!("{}\n{}  /data\n", image.greeting, image.data_sha256);
    assert_eq!(printed, expected, "what the image printed");
}

/// Every layer and the config of the machine's platform were sent to clients `times` times.
fn assert_came_through(node: &Node<'_>, image: &Image, times: u64) {
    for blob in &image.native.blobs {
        let (sent, expected) = (node.sent_bytes(&blob.digest), blob.bytes.len() as u64 * times);
        assert!(sent >= expected, "{sent} of {expected} bytes of {} were sent", blob.digest);
    }
}

/// Checks that these digests include all that belongs to a platform of the image: for what a
/// node has in its mount or storage after that platform was pulled.
///
/// # Panics
/// When one is missing.
pub fn assert_has_native(digests: &[Digest], image: &Image) {
    for blob in image.native.blobs.iter().chain([&image.native.manifest, &image.index]) {
        assert!(digests.contains(&blob.digest), "{} ({}) is missing", blob.digest, blob.media_type);
    }
}

//! What several test files do with different parts.

use std::time::Duration;

use larder_layout::Digest;

use crate::{Blob, Client, Format, Image, Kind, Node, Platform, Sandbox, Storage, Upstream, until};

const LOG_TIMEOUT: Duration = Duration::from_secs(10);
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

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

/// Every layer and the config of the machine's platform were sent to clients `times` times. The
/// log has it a little after the client has the last byte.
fn assert_came_through(node: &Node<'_>, image: &Image, times: u64) {
    for blob in &image.native.blobs {
        let expected = blob.bytes.len() as u64 * times;
        until(&format!("{expected} bytes of {} in the log", blob.digest), LOG_TIMEOUT, || {
            (node.sent_bytes(&blob.digest) >= expected).then_some(())
        });
    }
}

/// Waits until the mount has all that belongs to these platforms of an image: blobs and links. A
/// client has the last byte a little before the blob is published.
///
/// # Panics
/// When something stays away, or is not what its name says.
pub fn wait_until_cached(node: &Node<'_>, image: &Image, platforms: &[&Platform]) {
    let links = format!("repositories/{}", image.repository);
    let digests = |blobs: &[Blob]| blobs.iter().map(|b| b.digest.clone()).collect::<Vec<_>>();
    let layers: Vec<_> = platforms.iter().flat_map(|platform| digests(&platform.blobs)).collect();
    let mut blobs: Vec<_> = platforms.iter().map(|p| p.manifest.digest.clone()).collect();
    blobs.push(image.index.digest.clone());
    blobs.extend(layers.clone());
    until("all of the image in the mount", PUBLISH_TIMEOUT, || {
        let links = node.on_mount("find", &[&links]).ok()?;
        let has_tag = links.contains(&format!("_tags/{}", image.tag));
        let is_linked = |d: &Digest| links.contains(&format!("_layers/sha256/{}", d.hex()));
        let there = node.blobs();
        let is_there = |digest| there.contains(digest);
        (has_tag && layers.iter().all(is_linked) && blobs.iter().all(is_there)).then_some(())
    });
}

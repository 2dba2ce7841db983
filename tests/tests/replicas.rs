//! Several nodes on one storage.

use std::time::Duration;

use larder_layout::Digest;
use larder_tests::{
    Access, Azurite, Format, Gcs, Image, Keystone, Node, Oss, S3, Sandbox, Storage, Swift,
    Upstream, scenario::wait_until_cached, until,
};

const LOG_TIMEOUT: Duration = Duration::from_secs(10);
/// Short enough to wait until it ends.
const TOKEN_LIFE: Duration = Duration::from_secs(5);
/// The same for Keystone, which takes seconds for each answer on a busy machine.
const KEYSTONE_TOKEN_LIFE: Duration = Duration::from_secs(30);

// "2. What `rename` acknowledged survives a crash of any node and is readable on every node."
// "Once any node has cached a layer, every node serves it."

#[test]
fn a_second_node_serves_what_the_first_pulled_into_a_directory() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let storage = Storage::Directory(sandbox.directory("storage"));
    a_second_node_serves_what_the_first_pulled(&sandbox, &storage, || {});
}

#[test]
fn a_second_node_serves_what_the_first_pulled_into_s3() {
    let needs = [&Node::NEEDS[..], &[Upstream::NEEDS, S3::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let s3 = S3::start(&sandbox);
    a_second_node_serves_what_the_first_pulled(&sandbox, &s3.storage(), || {});
}

#[test]
fn a_second_node_serves_what_the_first_pulled_into_azure() {
    let needs = [&Node::NEEDS[..], &Azurite::NEEDS, &[Upstream::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let azurite = Azurite::start(&sandbox);
    a_second_node_serves_what_the_first_pulled(&sandbox, &azurite.storage(), || {});
}

#[test]
fn a_second_node_serves_what_the_first_pulled_into_gcs() {
    let needs = [&Node::NEEDS[..], &[Upstream::NEEDS, Gcs::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let gcs = Gcs::start(&sandbox);
    a_second_node_serves_what_the_first_pulled(&sandbox, &gcs.storage(&sandbox), || {});
}

#[test]
fn a_second_node_serves_what_the_first_pulled_into_oss() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let oss = Oss::start(&sandbox);
    a_second_node_serves_what_the_first_pulled(&sandbox, &oss.storage(), || {});
}

#[test]
fn a_second_node_serves_what_the_first_pulled_into_swift() {
    let needs = [&Node::NEEDS[..], &Swift::NEEDS, &[Upstream::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let swift = Swift::start(&sandbox, TOKEN_LIFE);
    a_second_node_serves_while_tokens_end(&sandbox, &swift);
}

#[test]
fn a_second_node_serves_what_the_first_pulled_into_swift_with_keystone() {
    let needs = [&Node::NEEDS[..], &Swift::NEEDS, &[Keystone::NEEDS, Upstream::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let keystone = Keystone::start(&sandbox, KEYSTONE_TOKEN_LIFE);
    let swift = Swift::with_keystone(&sandbox, &keystone);
    a_second_node_serves_while_tokens_end(&sandbox, &swift);
}

/// Between the pulls every token ends that a node has.
fn a_second_node_serves_while_tokens_end(sandbox: &Sandbox, swift: &Swift<'_>) {
    a_second_node_serves_what_the_first_pulled(sandbox, &swift.storage(), || {
        swift.wait_for_end_of_tokens();
    });
}

/// The first node pulls and is killed, and the upstream stops. Then a node that was there all the
/// time and one that starts only now, both with empty caches, serve what the first one pulled, after
/// `meanwhile`.
fn a_second_node_serves_what_the_first_pulled(
    sandbox: &Sandbox,
    storage: &Storage,
    meanwhile: impl FnOnce(),
) {
    let mut upstream = Upstream::start(sandbox);
    let image = Image::new(Format::Oci);
    upstream.registry().push(&image);
    let url = upstream.url();

    let mut first = Node::start(sandbox, "first", storage, Some(&url));
    let second = Node::start(sandbox, "second", storage, Some(&url));
    // The second node learns that it is missing, and must not remember it.
    let missing = second.check_blob(&image.data().digest);
    assert!(missing.is_err(), "nobody has pulled it yet");
    first.registry().pull(&image, &image.native).expect("the first node pulls through");
    wait_until_cached(&first, &image, &[&image.native]);
    first.kill_shim();
    first.kill_fs();
    upstream.stop();
    meanwhile();

    let third = Node::start(sandbox, "third", storage, Some(&url));
    for node in [&second, &third] {
        for source in ["shared", "local"] {
            let pulled = node.registry().pull(&image, &image.native);
            pulled.expect("another node serves what the first pulled");
            assert_sent_from(node, &image.data().digest, source);
        }
        wait_until_cached(node, &image, &[&image.native]);
    }
}

/// The log says where a blob came from the last time, a little after the client has it.
fn assert_sent_from(node: &Node<'_>, digest: &Digest, source: &str) {
    let of_blob = |access: &Access| access.path.ends_with(&digest.to_string());
    until(&format!("a blob from {source} in the log"), LOG_TIMEOUT, || {
        let last = node.accesses().into_iter().rfind(of_blob)?;
        (last.source == source).then_some(())
    });
}

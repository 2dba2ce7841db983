//! Storage that an ordinary registry wrote, and the other way round.

use std::fs;

use larder_tests::{
    Format, Image, Kind, Node, Sandbox, Storage, Upstream,
    scenario::{pull_and_run, wait_until_cached},
};

// "An existing cache's bucket is taken over by pointing Larder at it."

#[test]
fn larder_serves_what_an_ordinary_registry_has_stored() {
    let needs = [&Node::NEEDS[..], Kind::Skopeo.needs(), &[Upstream::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let mut registry = Upstream::start(&sandbox);
    let images = Format::ALL.map(Image::new);
    for image in &images {
        registry.registry().push(image);
    }
    registry.stop();

    let storage = Storage::Directory(registry.storage().to_owned());
    let node = Node::start(&sandbox, "node", &storage, None);
    let skopeo = Kind::Skopeo.start(&sandbox, node.address());
    for image in &images {
        pull_and_run(&*skopeo, image);
    }
}

// "`docker-registry` serves what Larder cached."

#[test]
fn an_ordinary_registry_serves_what_larder_has_cached() {
    let needs = [&Node::NEEDS[..], Kind::Skopeo.needs(), &[Upstream::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let mut upstream = Upstream::start(&sandbox);
    let images = Format::ALL.map(Image::new);
    let storage = sandbox.directory("storage");
    let node =
        Node::start(&sandbox, "node", &Storage::Directory(storage.clone()), Some(&upstream.url()));
    for image in &images {
        upstream.registry().push(image);
        for platform in [&image.native, &image.foreign] {
            node.registry().pull(image, platform).expect("the node pulls through");
        }
        wait_until_cached(&node, image, &[&image.native, &image.foreign]);
    }
    drop(node);
    upstream.stop();

    let heir = Upstream::over(&sandbox, "heir", &storage);
    let skopeo = Kind::Skopeo.start(&sandbox, heir.address());
    for image in &images {
        pull_and_run(&*skopeo, image);
    }
    let entries = fs::read_dir(storage.join("docker/registry/v2")).expect("the storage is there");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["blobs", "repositories"], "only what Distribution knows is in its tree");
}

//! Real clients, and more than one registry behind what they pull from.

use larder_tests::{
    Format, Image, Kind, Node, Sandbox, Storage, Upstream,
    scenario::{pull_and_run, wait_until_cached},
};

// "11. Content of different upstream registries never mixes."
// The same name and tag in two registries, each pulled as an operator of the client writes it.

fn pulls_from_two_registries(kind: Kind) {
    let needs = [&Node::NEEDS_PLAIN[..], kind.needs(), &[Upstream::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let storage = |name: &str| Storage::Directory(sandbox.directory(name));
    let mut hub = Upstream::over(&sandbox, "hub", &storage("hub"));
    let mut quay = Upstream::over(&sandbox, "quay", &storage("quay"));
    let (of_hub, mut of_quay) = (Image::new(Format::Docker), Image::new(Format::Oci));
    of_quay.repository.clone_from(&of_hub.repository);
    hub.registry().push(&of_hub);
    quay.registry().push(&of_quay);
    let sections = format!(
        "proxy: {{remoteurl: \"{}\"}}\nupstreams: {{quay.io: {{urls: [\"{}\"]}}}}\n",
        hub.url(),
        quay.url()
    );
    let node = Node::plain_with(&sandbox, "node", None, &sections);
    let client = kind.start(&sandbox, node.address());
    // Docker has mirrors for Docker Hub alone, and names the cache for what is elsewhere.
    let of_quay = match kind {
        Kind::Docker => of_quay.at(&format!("{}/quay.io", node.address())),
        Kind::Containerd | Kind::Podman | Kind::Skopeo => of_quay.at("quay.io"),
    };
    for image in [&of_hub, &of_quay] {
        pull_and_run(&*client, image);
    }
    hub.stop();
    quay.stop();
    for image in [&of_hub, &of_quay] {
        client.remove(image);
        pull_and_run(&*client, image);
    }
    let listed = node.on_mount("ls", &["repositories", "repositories/quay.io"]).expect("two");
    assert_eq!(listed.matches("library").count(), 2, "{listed}");
}

#[test]
fn docker_pulls_from_two_registries() {
    pulls_from_two_registries(Kind::Docker);
}

#[test]
fn containerd_pulls_from_two_registries() {
    pulls_from_two_registries(Kind::Containerd);
}

#[test]
fn podman_pulls_from_two_registries() {
    pulls_from_two_registries(Kind::Podman);
}

#[test]
fn skopeo_copies_from_two_registries() {
    pulls_from_two_registries(Kind::Skopeo);
}

// "10. A cold blob is fetched from the upstream once, however many clients of however many nodes ask
// for it, while the storage is up and the nodes reach each other."
// And once through all of a chain of caches, each of which has it then.

#[test]
fn clients_pull_through_a_chain_of_two_caches() {
    let kinds = [Kind::Docker, Kind::Containerd, Kind::Podman, Kind::Skopeo];
    let mut needs = [&Node::NEEDS[..], &Node::NEEDS_PLAIN, &[Upstream::NEEDS]].concat();
    needs.extend(kinds.iter().flat_map(|kind| kind.needs()));
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let mut upstream = Upstream::start(&sandbox);
    let image = Image::new(Format::Oci);
    upstream.registry().push(&image);
    let storage = Storage::Directory(sandbox.directory("storage"));
    let outer = Node::start(&sandbox, "outer", &storage, Some(&upstream.url()));
    let through = format!(
        "upstreams: {{docker.io: {{urls: [\"http://{}\"], default: true, mirror: true}}}}\n",
        outer.address()
    );
    let inner = Node::plain_with(&sandbox, "inner", None, &through);
    let clients = kinds.map(|kind| kind.start(&sandbox, inner.address()));
    for client in &clients {
        pull_and_run(&**client, &image);
    }
    for blob in &image.native.blobs {
        assert_eq!(upstream.gets(&blob.digest), 1, "{}", blob.digest);
    }
    wait_until_cached(&outer, &image, &[&image.native]);
    upstream.stop();
    drop(outer);
    for client in &clients {
        client.remove(&image);
        pull_and_run(&**client, &image);
    }
}

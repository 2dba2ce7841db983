//! Storage that an ordinary registry wrote, and the other way round. Debian's registry is built for
//! three systems; on the others the vendor's own library writes what a registry would.

use std::{fs, time::Duration};

use larder_layout::{Entry, Link, Membership};
use larder_tests::{
    Azurite, Blob, Format, Gcs, Image, Kind, Node, Oss, S3, Sandbox, Storage, Swift, Upstream,
    distribution::stored,
    random_bytes,
    scenario::{pull_and_run, wait_until_cached},
    until,
};

const TOKEN_LIFE: Duration = Duration::from_hours(1);
const TIMEOUT: Duration = Duration::from_secs(30);
/// More than either program puts into the storage in one piece, or copies there in one piece.
const LARGE_BYTES: usize = (41 << 20) + 1;
const REPOSITORY: &str = "library/large";

/// A sandbox with all that a takeover needs, and the servers of a storage.
fn enter(storage_needs: &[&str]) -> Option<Sandbox> {
    let needs = [&Node::NEEDS[..], Kind::Skopeo.needs(), &[Upstream::NEEDS], storage_needs];
    Sandbox::enter(&needs.concat())
}

fn large_blob() -> Blob {
    Blob::new("application/octet-stream", random_bytes(LARGE_BYTES))
}

// "An existing cache's bucket is taken over by pointing Larder at it."

fn larder_serves_what_an_ordinary_registry_has_stored(sandbox: &Sandbox, storage: &Storage) {
    let mut registry = Upstream::over(sandbox, "filler", storage);
    let images = Format::ALL.map(Image::new);
    for image in &images {
        registry.registry().push(image);
    }
    let large = large_blob();
    registry.registry().push_blob(REPOSITORY, &large);
    registry.stop();

    let node = Node::start(sandbox, "node", storage, None);
    let skopeo = Kind::Skopeo.start(sandbox, node.address());
    for image in &images {
        pull_and_run(&*skopeo, image);
    }
    node.registry().blob(REPOSITORY, &large.digest).expect("the large blob is served");
}

#[test]
fn larder_serves_the_directory_of_an_ordinary_registry() {
    let Some(sandbox) = enter(&[]) else { return };
    let storage = Storage::Directory(sandbox.directory("storage"));
    larder_serves_what_an_ordinary_registry_has_stored(&sandbox, &storage);
}

#[test]
fn larder_serves_the_s3_bucket_of_an_ordinary_registry() {
    let Some(sandbox) = enter(&[S3::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    larder_serves_what_an_ordinary_registry_has_stored(&sandbox, &s3.storage());
}

#[test]
fn larder_serves_the_swift_container_of_an_ordinary_registry() {
    let Some(sandbox) = enter(&Swift::NEEDS) else { return };
    let swift = Swift::start(&sandbox, TOKEN_LIFE);
    larder_serves_what_an_ordinary_registry_has_stored(&sandbox, &swift.storage());
}

// "For Azure, GCS and OSS, content laid out exactly as Distribution 2.8 and 3 write it, put there by
// the vendor's own SDK, is served."

/// `fill` puts the objects of an image into the storage.
fn larder_serves_what_a_vendors_library_has_stored(
    sandbox: &Sandbox,
    storage: &Storage,
    fill: impl Fn(&Image),
) {
    let images = Format::ALL.map(Image::new);
    images.iter().for_each(fill);
    let node = Node::start(sandbox, "node", storage, None);
    let skopeo = Kind::Skopeo.start(sandbox, node.address());
    for image in &images {
        pull_and_run(&*skopeo, image);
    }
}

/// As Distribution 2 has them, whose names begin with a slash. What Distribution 3 has differs in
/// that only, and is tested without a mount.
#[test]
fn larder_serves_an_azure_container_of_distribution() {
    let Some(sandbox) = enter(&Azurite::NEEDS) else { return };
    let azurite = Azurite::start(&sandbox);
    let fill = |image: &Image| azurite.fill(&stored(image, "/"));
    larder_serves_what_a_vendors_library_has_stored(&sandbox, &azurite.storage(), fill);
}

#[test]
fn larder_serves_a_gcs_bucket_of_distribution() {
    let Some(sandbox) = enter(&[Gcs::NEEDS, Gcs::LIBRARY_NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    let fill = |image: &Image| gcs.fill(&sandbox, &stored(image, ""));
    larder_serves_what_a_vendors_library_has_stored(&sandbox, &gcs.storage(&sandbox), fill);
}

#[test]
fn larder_serves_an_oss_bucket_of_distribution() {
    let Some(sandbox) = enter(&[Oss::LIBRARY_NEEDS]) else { return };
    let oss = Oss::start(&sandbox);
    let fill = |image: &Image| oss.fill(&sandbox, &stored(image, ""));
    larder_serves_what_a_vendors_library_has_stored(&sandbox, &oss.storage(), fill);
}

// "`docker-registry` serves what Larder cached."

fn an_ordinary_registry_serves_what_larder_has_cached(sandbox: &Sandbox, storage: &Storage) {
    let mut upstream = Upstream::start(sandbox);
    let images = Format::ALL.map(Image::new);
    let node = Node::start(sandbox, "node", storage, Some(&upstream.url()));
    for image in &images {
        upstream.registry().push(image);
        for platform in [&image.native, &image.foreign] {
            node.registry().pull(image, platform).expect("the node pulls through");
        }
        wait_until_cached(&node, image, &[&image.native, &image.foreign]);
    }
    let large = large_blob();
    upstream.registry().push_blob(REPOSITORY, &large);
    node.registry().blob(REPOSITORY, &large.digest).expect("the node pulls through");
    let repository = REPOSITORY.parse().expect("a name");
    let link =
        Entry::Link(Link::Member(repository, Membership::Layer, large.digest.clone())).path();
    let link = link.to_str().expect("a path in ASCII");
    until("the large blob is cached", TIMEOUT, || node.on_mount("ls", &[link]).ok());
    drop(node);
    upstream.stop();

    let heir = Upstream::over(sandbox, "heir", storage);
    let skopeo = Kind::Skopeo.start(sandbox, heir.address());
    for image in &images {
        pull_and_run(&*skopeo, image);
    }
    heir.registry().blob(REPOSITORY, &large.digest).expect("the large blob is served");
}

#[test]
fn an_ordinary_registry_serves_the_directory_of_larder() {
    let Some(sandbox) = enter(&[]) else { return };
    let directory = sandbox.directory("storage");
    let storage = Storage::Directory(directory.clone());
    an_ordinary_registry_serves_what_larder_has_cached(&sandbox, &storage);
    let entries = fs::read_dir(directory.join("docker/registry/v2")).expect("the storage is there");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["blobs", "repositories"], "only what Distribution knows is in its tree");
}

#[test]
fn an_ordinary_registry_serves_the_s3_bucket_of_larder() {
    let Some(sandbox) = enter(&[S3::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    an_ordinary_registry_serves_what_larder_has_cached(&sandbox, &s3.storage());
}

#[test]
fn an_ordinary_registry_serves_the_swift_container_of_larder() {
    let Some(sandbox) = enter(&Swift::NEEDS) else { return };
    let swift = Swift::start(&sandbox, TOKEN_LIFE);
    an_ordinary_registry_serves_what_larder_has_cached(&sandbox, &swift.storage());
}

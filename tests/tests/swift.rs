//! Swift as the shared storage: what is peculiar to it. Real servers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use larder_fs::store::{Backend, Storage};
use larder_layout::{Algorithm, Digest, Link, Membership};
use larder_tests::{Format, Image, Keystone, Sandbox, Swift, Upstream, random_bytes, store};
use object_store::{ObjectStoreExt, path::Path};
use tokio::runtime::{Builder, Runtime};

const LONG: Duration = Duration::from_secs(3600);
/// Shorter than the tests that use it.
const SHORT: Duration = Duration::from_secs(3);
/// The same for Keystone, whose every answer takes a second on a busy machine.
const KEYSTONE_SHORT: Duration = Duration::from_secs(10);
const LARGE_BYTES: usize = (65 << 20) + 12_345;

fn runtime() -> Runtime {
    // One thread, which is in the sandbox.
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn open(section: &str) -> Backend {
    store::open(&format!("{{swift: {{{section}}}}}")).expect("a store")
}

/// Uploads, overwrites, aborts and deletes large objects, and gives what is in the container at
/// the end of each step.
fn large_objects(swift: &Swift<'_>, backend: &Backend) {
    let runtime = runtime();
    let (first, second) = (random_bytes(LARGE_BYTES), random_bytes(LARGE_BYTES / 4));
    let path = Path::from("docker/registry/v2/blobs/large");
    let name = "here/files/docker/registry/v2/blobs/large";
    let mine = || {
        let is_mine = |n: &String| n.starts_with("here/") && !n.contains("/links/");
        swift.names().into_iter().filter(is_mine).collect::<Vec<_>>()
    };

    runtime.block_on(async {
        store::upload(backend, &path, &first).await.expect("an upload");
        assert_eq!(backend.objects.head(&path).await.expect("a size").size, first.len() as u64);
        for range in [0..1, (20 << 20) - 5..(20 << 20) + 5, first.len() - 9..first.len()] {
            assert!(store::has(backend, &path, &first, range).await);
        }
        let whole = backend.objects.get(&path).await.expect("an object").bytes().await;
        assert!(whole.expect("all of it") == first);
        let listed: Vec<_> = backend.objects.list(None).try_collect().await.expect("a listing");
        let listed: Vec<_> = listed.iter().filter(|o| o.location == path).map(|o| o.size).collect();
        assert_eq!(listed, [first.len() as u64], "the listing has its size, and no segments");
    });
    let segments = mine().len() - 1;
    assert_eq!(segments, first.len().div_ceil(20 << 20), "its segments");

    runtime.block_on(store::upload(backend, &path, &second)).expect("an overwriting upload");
    assert_eq!(mine().len(), 2, "one segment and the manifest are left: {:?}", mine());
    runtime.block_on(store::upload_and_abort(backend, &path, &first)).expect("an aborted upload");
    assert_eq!(mine().len(), 2, "what was sent is taken back: {:?}", mine());
    assert!(runtime.block_on(store::has(backend, &path, &second, 0..100)));

    runtime.block_on(backend.objects.put(&path, "small".into())).expect("a small object over it");
    assert_eq!(mine(), [name]);
    runtime.block_on(store::upload(backend, &path, &second)).expect("a large one over a small one");
    runtime.block_on(backend.objects.delete(&path)).expect("a deletion");
    assert!(mine().is_empty(), "nothing is left: {:?}", mine());
}

/// Small objects, `at_once` of them under way.
fn small_objects(backend: &Backend, count: usize, at_once: usize) {
    let base = Path::from("docker/registry/v2/links");
    runtime().block_on(async {
        let puts = (0..count).map(|i| {
            let (path, content) =
                (base.clone().join(format!("{i:05}")).join("link"), i.to_string());
            async move { backend.objects.put(&path, content.into()).await }
        });
        futures_util::stream::iter(puts)
            .buffered(at_once)
            .try_collect::<Vec<_>>()
            .await
            .expect("puts");
        let listed = backend.objects.list(Some(&base)).try_collect::<Vec<_>>().await;
        assert_eq!(listed.expect("a listing").len(), count);
        let names = backend.objects.list_with_delimiter(Some(&base)).await.expect("names");
        assert_eq!((names.common_prefixes.len(), names.objects.len()), (count, 0));

        let path = base.join("00007").join("link");
        backend.objects.put(&path, "moved".into()).await.expect("an overwrite");
        let found = backend.objects.get_range(&path, 0..256).await.expect("more than there is");
        assert_eq!(found, Bytes::from("moved"));
        backend.objects.delete(&path).await.expect("a deletion");
        let gone = backend.objects.head(&path).await;
        assert!(matches!(gone, Err(object_store::Error::NotFound { .. })), "{gone:?}");
    });
}

#[test]
fn swift_keeps_what_is_put_and_nothing_else_while_tokens_end() {
    let Some(sandbox) = Sandbox::enter(&Swift::NEEDS) else { return };
    let swift = Swift::start(&sandbox, SHORT);
    let backend = open(&format!("{}, prefix: here", swift.section()));
    let started = Instant::now();
    large_objects(&swift, &backend);
    small_objects(&backend, 1_100, 16);
    assert!(started.elapsed() > 2 * SHORT, "tokens ended meanwhile");
}

#[test]
fn keystone_lets_in_by_password_and_by_application_credential() {
    let needs = [&Swift::NEEDS[..], &[Keystone::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let keystone = Keystone::start(&sandbox, KEYSTONE_SHORT);
    let swift = Swift::with_keystone(&sandbox, &keystone);
    let container = format!("container: {}, prefix: here", Swift::CONTAINER);
    // One at a time: with so short a life, a token ends while many wait for Keystone's word on it.
    let small = |backend: &Backend| small_objects(backend, 20, 1);
    let [password, application] = [keystone.section(), keystone.application_section()]
        .map(|section| open(&format!("{section}, {container}")));
    large_objects(&swift, &password);
    small(&application);
    swift.wait_for_end_of_tokens();
    small(&password);
    small(&application);
    for section in keystone.other_sections() {
        small(&open(&format!("{section}, {container}")));
    }
}

// "An existing cache's bucket is taken over by pointing Larder at it, and `docker-registry` serves
// what Larder cached."

#[test]
fn what_docker_registry_has_stored_in_swift_is_served_unchanged() {
    let Some(sandbox) = Sandbox::enter(&[&Swift::NEEDS[..], &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let swift = Swift::start(&sandbox, LONG);
    let registry = Upstream::over(&sandbox, "filler", &swift.storage());
    let image = Image::new(Format::ALL[0]);
    registry.registry().push(&image);

    let storage = Arc::new(Storage::new(open(&swift.section())));
    let runtime = runtime();
    runtime.block_on(async {
        let listed = storage.list_blobs(Algorithm::Sha256).try_collect::<Vec<_>>().await;
        let listed = listed.expect("a listing");
        for blob in image.blobs().chain(image.manifests()).chain([&image.index]) {
            let size = blob.bytes.len() as u64;
            let meta = storage.stat_blob(&blob.digest).await.expect("a blob");
            assert_eq!(meta.size_bytes, size);
            let in_listing = listed.iter().find(|(digest, _)| *digest == blob.digest);
            assert_eq!(in_listing.expect("it is listed").1.size_bytes, size);
            let content = store::blob(&storage, &blob.digest, size).await.expect("its content");
            assert!(content == blob.bytes);
        }
        let repository = image.repository.parse().expect("a repository");
        let tag = Link::Tag(repository, image.tag.parse().expect("a tag"));
        assert_eq!(storage.read_link(&tag).await.expect("the tag"), image.index.digest);
        for blob in image.blobs() {
            storage.mark_damaged(&blob.digest);
            storage.remove_if_damaged(&blob.digest).await.expect("a deletion");
        }
    });
    let left: Vec<_> = swift.names();
    let segments = left.iter().filter(|name| name.starts_with("segments/")).count();
    assert_eq!(segments, 0, "with a dynamic large object go its segments: {left:?}");
}

#[test]
fn docker_registry_serves_from_swift_what_larder_has_stored() {
    let Some(sandbox) = Sandbox::enter(&[&Swift::NEEDS[..], &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let swift = Swift::start(&sandbox, LONG);
    let storage = Arc::new(Storage::new(open(&format!("{}, chunksize: 1MiB", swift.section()))));
    let image = Image::new(Format::ALL[0]);
    let repository: larder_layout::Repository = image.repository.parse().expect("a repository");
    runtime().block_on(async {
        for blob in image.blobs() {
            // In parts, however small it is.
            let content = Bytes::from(blob.bytes.clone());
            let mut upload = storage.upload_blob(&blob.digest).await.expect("an upload");
            for part in content.chunks(usize::try_from(upload.part_bytes()).expect("a length")) {
                let slot = upload.slot().await.expect("a slot");
                upload.send(slot, content.slice_ref(part)).expect("a part");
            }
            upload.complete().await.expect("a blob");
            link(&storage, &repository, Membership::Layer, &blob.digest).await;
        }
        for manifest in image.manifests().into_iter().chain([&image.index]) {
            let content = Bytes::from(manifest.bytes.clone());
            storage.put_blob(&manifest.digest, content).await.expect("a manifest");
            link(&storage, &repository, Membership::Manifest, &manifest.digest).await;
        }
        let tag = Link::Tag(repository.clone(), image.tag.parse().expect("a tag"));
        storage.put_link(&tag, &image.index.digest).await.expect("a tag");
    });
    let registry = Upstream::over(&sandbox, "heir", &swift.storage());
    for platform in [&image.native, &image.foreign] {
        registry.registry().pull(&image, platform).expect("the registry serves it");
    }
}

async fn link(
    storage: &Storage,
    repository: &larder_layout::Repository,
    membership: Membership,
    digest: &Digest,
) {
    let link = Link::Member(repository.clone(), membership, digest.clone());
    storage.put_link(&link, digest).await.expect("a link");
}

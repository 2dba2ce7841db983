//! What killed nodes leave in each storage system, and how it is swept.

use std::{
    fs::File,
    time::{Duration, SystemTime},
};

use larder_fs::store::{self as fs_store, Storage as Opened};
use larder_layout::{Algorithm, Digest};
use larder_tests::{
    Gcs, Node, Oss, S3, Sandbox, Storage, Swift, Upstream, random_bytes, store, until,
};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use tokio::runtime::{Builder, Runtime};

const DAY: Duration = Duration::from_hours(24);
const TIMEOUT: Duration = Duration::from_secs(20);
const TOKEN_LIFE: Duration = Duration::from_hours(1);
const PART_BYTES: usize = 5 << 20;
/// More than one page of uploads on the servers that are written for tests.
const UPLOADS: usize = 5;

fn runtime() -> Runtime {
    // One thread, which is in the sandbox.
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Where a blob lies, below the root directory.
fn blob_path(root: &str, digest: &Digest) -> Path {
    let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
    let path = format!("docker/registry/v2/blobs/{algorithm}/{}/{hex}/data", &hex[..2]);
    Path::from(format!("{root}/{path}"))
}

/// Begins an upload and sends parts, as a node does that is killed then.
async fn leave(objects: &dyn ObjectStore, path: &Path) {
    let mut upload = objects.put_multipart(path).await.expect("an upload begins");
    for _ in 0..2 {
        let part = PutPayload::from(random_bytes(PART_BYTES));
        upload.put_part(part).await.expect("a part is sent");
    }
}

#[test]
fn in_a_directory_when_it_is_mounted() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let storage = sandbox.directory("storage");
    let [old, new] = ["old", "new"].map(|name| {
        let path =
            sandbox.file(&format!("storage/docker/larder/staging/{name}"), "a part of a blob");
        File::options().write(true).open(&path).map(|file| (path, file)).expect("a staged file")
    });
    let time = SystemTime::now() - DAY - Duration::from_secs(60);
    old.1.set_modified(time).expect("a file of yesterday");

    let _node = Node::start(&sandbox, "node", &Storage::Directory(storage), None);
    until("what a killed node left is gone", TIMEOUT, || (!old.0.exists()).then_some(()));
    assert!(new.0.exists(), "what may still be on its way is gone");
}

/// Everything that a storage has: the keys of its objects, and what else its owner pays for.
type Content = (Vec<String>, Vec<String>);

// "Uploads while they arrive: […] completed only when the digest is right, aborted otherwise, and
// swept if a crash left them."

/// `leave_foreign` leaves what others have begun: it is none of ours.
fn uploads_of_killed_nodes_are_swept(
    sandbox: &Sandbox,
    storage: &Storage,
    content: impl Fn() -> Content,
    leave_foreign: impl FnOnce(&Runtime, &dyn ObjectStore),
) {
    let backend = fs_store::open(&storage.config(sandbox).storage).expect("a storage");
    let (objects, root) = (backend.objects.clone(), backend.root_directory.clone());
    let large = random_bytes(2 * PART_BYTES + 1);
    let digest = Digest::of(Algorithm::Sha256, &large);
    let path = blob_path(&root, &digest);
    let runtime = runtime();
    runtime.block_on(store::upload(&backend, &path, &large)).expect("a large blob");
    let opened = Opened::new(backend);
    let sweep = |older_than| runtime.block_on(opened.sweep_leftovers(older_than)).expect("a sweep");
    let before = content();
    assert!(before.0.iter().any(|key| key.ends_with(path.as_ref())), "{before:?}");

    // The last of them over the blob that is there, which is made of other parts.
    let digests = (1..UPLOADS).map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes()));
    for digest in digests.chain([digest.clone()]) {
        runtime.block_on(leave(&*objects, &blob_path(&root, &digest)));
    }
    let killed = content();
    assert!(killed.1.len() >= before.1.len() + UPLOADS, "nothing is left over: {killed:?}");
    assert_eq!(sweep(DAY), 0);
    assert_eq!(content(), killed, "what may still be on its way is gone");
    assert_eq!(sweep(Duration::ZERO), UPLOADS);
    assert_eq!(content(), before);

    leave_foreign(&runtime, &*objects);
    let with_foreign = content();
    assert!(with_foreign.1.len() > before.1.len(), "nothing foreign was left: {with_foreign:?}");
    assert_eq!(sweep(Duration::ZERO), 0);
    assert_eq!(content(), with_foreign, "what is none of ours is gone");
    let read = runtime.block_on(store::blob(&opened, &digest, large.len() as u64));
    assert!(read.expect("the blob") == large, "the blob has changed");
}

/// A push that was begun on Debian's docker-registry, and never ended.
fn leave_a_push(sandbox: &Sandbox, storage: &Storage) {
    let registry = Upstream::over(sandbox, "pushed", storage);
    registry.registry().begin_push("library/pushed", random_bytes(PART_BYTES));
}

#[test]
fn in_s3() {
    let Some(sandbox) = Sandbox::enter(&[S3::NEEDS, Upstream::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    let storage = s3.storage();
    uploads_of_killed_nodes_are_swept(
        &sandbox,
        &storage,
        || s3.content(),
        |_, _| leave_a_push(&sandbox, &storage),
    );
}

#[test]
fn in_swift() {
    let needs = [&Swift::NEEDS[..], &[Upstream::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let swift = Swift::start(&sandbox, TOKEN_LIFE);
    let storage = swift.storage();
    let content = || swift.names().into_iter().partition(|name| name.starts_with("files/"));
    uploads_of_killed_nodes_are_swept(&sandbox, &storage, content, |_, _| {
        leave_a_push(&sandbox, &storage);
    });
}

/// Where no registry of Debian's goes: its uploads, and those of another root directory.
fn leave_uploads_elsewhere(runtime: &Runtime, objects: &dyn ObjectStore) {
    let digest = Digest::of(Algorithm::Sha256, b"elsewhere");
    let push = Path::from("docker/registry/v2/repositories/pushed/_uploads/0000/data");
    for path in [push, blob_path("elsewhere", &digest)] {
        runtime.block_on(leave(objects, &path));
    }
}

#[test]
fn in_gcs() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    let storage = gcs.storage(&sandbox);
    uploads_of_killed_nodes_are_swept(
        &sandbox,
        &storage,
        || gcs.content(),
        leave_uploads_elsewhere,
    );
    gcs.set_ahead(Duration::from_hours(2));
    let backend = fs_store::open(&storage.config(&sandbox).storage).expect("a storage");
    let refused = runtime().block_on(Opened::new(backend).sweep_leftovers(DAY)).unwrap_err();
    assert!(refused.to_string().contains("401 Unauthorized: AuthenticationRequired"), "{refused}");
}

#[test]
fn in_oss() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let oss = Oss::start(&sandbox);
    let storage = oss.storage();
    uploads_of_killed_nodes_are_swept(
        &sandbox,
        &storage,
        || oss.content(),
        leave_uploads_elsewhere,
    );
}

//! Power cuts for `larder-fs`.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use larder_layout::Digest;
use larder_tests::{
    Blob, Fault, Format, Image, Node, Sandbox, ScriptedUpstream, Storage, blobs_in, random_bytes,
    until,
};

const TIMEOUT: Duration = Duration::from_secs(30);
const LARGE_BLOB_BYTES: usize = 64 << 20;
/// How many blobs are spent on hitting the short time in which one is being committed.
const COMMITS: usize = 5;

/// A node with a scripted upstream, and its storage directory.
struct Scene<'a> {
    node: Node<'a>,
    upstream: ScriptedUpstream,
    image: Image,
    storage: PathBuf,
}

impl<'a> Scene<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        let image = Image::new(Format::Oci);
        let upstream = ScriptedUpstream::start(sandbox, &image);
        let storage = sandbox.directory("storage");
        let on = Storage::Directory(storage.clone());
        let node = Node::start(sandbox, "node", &on, Some(&upstream.url()));
        Self { node, upstream, image, storage }
    }

    /// Restarts the killed `larder-fs` over its dead mount. Then all that can be seen is whole,
    /// and the blob can be pulled.
    fn restart_and_check(&mut self, digest: &Digest) {
        self.node.start_fs();
        // Both read and check every blob that they find.
        self.node.blobs();
        blobs_in(&self.storage);
        let registry = self.node.registry();
        until("the shim serves the blob again", TIMEOUT, || {
            registry.blob(&self.image.repository, digest).ok()
        });
        until("the blob is in the mount and in the storage", TIMEOUT, || {
            self.node.check_blob(digest).ok()?;
            blobs_in(&self.storage).contains(digest).then_some(())
        });
    }
}

// "3. No partial blob is ever visible under `blobs/`."
// "6. Nothing hangs: ... a dead mount never takes the shim with it."

#[test]
fn killed_while_a_blob_comes_in() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let mut scene = Scene::new(&sandbox);
    let blob = scene.image.data().clone();
    scene.upstream.spoil(&blob.digest, Fault::PauseAfter(blob.bytes.len() / 2));

    let (registry, repository) = (scene.node.registry(), scene.image.repository.clone());
    thread::scope(|scope| {
        let client = scope.spawn(|| registry.blob(&repository, &blob.digest));
        until("half of the blob is staged", TIMEOUT, || {
            let sizes = scene.node.on_mount("find", &["ingest", "-type", "f", "-printf", "%s\\n"]);
            sizes.ok()?.lines().find_map(|size| size.parse().ok().filter(|size: &u64| *size > 0))
        });
        scene.node.kill_fs();
        scene.upstream.heal(&blob.digest);
        // Right or an error, but not wrong and not for ever.
        if let Ok(size_bytes) = client.join().expect("a client") {
            assert_eq!(size_bytes, blob.bytes.len() as u64);
        }
    });
    scene.restart_and_check(&blob.digest);
}

// "2. What `rename` acknowledged survives a crash of any node" and what it did not acknowledge
// is there whole or not at all.

#[test]
fn killed_while_a_blob_is_committed() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let mut scene = Scene::new(&sandbox);
    let repository = scene.image.repository.clone();
    let mut hits = 0;
    for kill in 0..COMMITS {
        let blob = Blob::new("application/octet-stream", random_bytes(LARGE_BLOB_BYTES));
        scene.upstream.add(&repository, &blob);
        let registry = scene.node.registry();
        thread::scope(|scope| {
            let client = scope.spawn(|| registry.blob(&repository, &blob.digest));
            // Each time a little further into the commit: at its first byte, at a fifth, ...
            let enough = (kill * LARGE_BLOB_BYTES / COMMITS + 1) as u64;
            let is_published = || published(&scene.storage, &blob.digest).exists();
            until("a commit under way", TIMEOUT, || {
                (staged_bytes(&scene.storage) >= enough || is_published()).then_some(())
            });
            scene.node.kill_fs();
            hits += usize::from(!is_published());
            if let Ok(size_bytes) = client.join().expect("a client") {
                assert_eq!(size_bytes, blob.bytes.len() as u64);
            }
        });
        scene.restart_and_check(&blob.digest);
    }
    eprintln!("{hits} of {COMMITS} kills came before the blob was published");
    assert!(hits > 0, "no kill has hit a commit, so that this has proved nothing");
}

/// Where the storage has this blob when it is whole.
fn published(storage: &Path, digest: &Digest) -> PathBuf {
    let (shard, hex) = (&digest.hex()[..2], digest.hex());
    storage.join("docker/registry/v2/blobs/sha256").join(shard).join(hex).join("data")
}

/// How much has been written to the storage under no name of the layout yet.
fn staged_bytes(storage: &Path) -> u64 {
    let entries = fs::read_dir(storage.join("docker/larder/staging")).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

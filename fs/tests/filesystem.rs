//! The contract, in process: two nodes on one storage in memory, without a mount.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    ffi::OsStr,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use larder_config::{Cache as CacheConfig, CacheSize};
use larder_fs::{
    cache::Cache,
    error::{Error, Result},
    filesystem::{Attributes, Filesystem, Opened},
    inodes::ROOT,
    store::{Backend, Storage},
};
use larder_layout::{Algorithm, Digest, Entry, Link};
use object_store::{
    Attributes as ObjectAttributes, CopyOptions, GetOptions, GetResult, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, memory::InMemory, path::Path as Key,
};

const PART_BYTES: u64 = 8 << 20;

/// A store in memory that writes down what it is asked for.
#[derive(Debug, Default)]
struct Recorder {
    objects: InMemory,
    calls: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, operation: &str, key: &Key) {
        self.calls.lock().unwrap().push(format!("{operation} {key}"));
    }

    fn count(&self, what: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.contains(what)).count()
    }
}

impl std::fmt::Display for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("recorder")
    }
}

#[async_trait]
impl ObjectStore for Recorder {
    async fn put_opts(
        &self,
        key: &Key,
        content: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.note("put", key);
        self.objects.put_opts(key, content, options).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.note("upload", key);
        self.objects.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.note(if options.head { "head" } else { "get" }, key);
        // Others get their turn, as they do while a real store answers.
        tokio::task::yield_now().await;
        self.objects.get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.objects.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Key,
        to: &Key,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

/// One node, and the ordinary calls that a program would make on its mount.
struct Node {
    filesystem: Filesystem,
    _cache: tempfile::TempDir,
}

impl Node {
    fn on(store: &Arc<Recorder>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = CacheSize::Bytes(1 << 30);
        let directory_path = directory.path().into();
        let config = CacheConfig { directory: directory_path, size, ..CacheConfig::default() };
        let cache = Cache::open(&config).unwrap();
        let storage = Arc::new(Storage::new(Backend {
            objects: Arc::clone(store) as _,
            root_directory: String::new(),
            part_bytes: PART_BYTES,
            attributes: ObjectAttributes::new(),
            mistaken_key: |_| None,
        }));
        Self { filesystem: Filesystem::new(storage, cache, String::new()), _cache: directory }
    }

    async fn stat(&self, path: &Path) -> Result<Attributes> {
        let mut attributes = self.filesystem.getattr(ROOT).await?;
        for name in path {
            attributes = self.filesystem.lookup(attributes.number, name).await?;
        }
        Ok(attributes)
    }

    async fn parent(&self, path: &Path) -> Result<(u64, Box<OsStr>)> {
        let parent = self.stat(path.parent().unwrap()).await?;
        Ok((parent.number, path.file_name().unwrap().into()))
    }

    async fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let attributes = self.stat(&Entry::Blob(digest.clone()).path()).await?;
        let opened = self.filesystem.open(attributes.number, false).await?;
        let Opened::Blob(blob) = &opened else { panic!("a blob opens as a blob") };
        let mut content = vec![0; usize::try_from(attributes.size_bytes).unwrap()];
        blob.file().read_exact_at(&mut content, 0).unwrap();
        Ok(content)
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (self.parent(from).await?, self.parent(to).await?);
        self.filesystem.rename((from.0, &from.1), (to.0, &to.1)).await
    }

    async fn publish(&self, content: &[u8], digest: &Digest) -> Result<()> {
        let staged = Path::new("ingest/x");
        let (parent, name) = self.parent(staged).await?;
        let (_, opened) = self.filesystem.create(parent, &name)?;
        let Opened::Staged(file, writer) = opened else { panic!("an ingest opens as such") };
        file.file.write_all_at(content, 0).unwrap();
        drop(writer);
        let published = self.rename(staged, &Entry::Blob(digest.clone()).path()).await;
        if published.is_err() {
            self.filesystem.unlink(parent, &name)?;
        }
        published
    }

    async fn link(&self, link: &Link, digest: &Digest) -> Result<()> {
        let path = Entry::Link(link.clone()).path();
        self.make_directories(path.parent().unwrap()).await?;
        let (parent, name) = self.parent(Path::new("ingest/l")).await?;
        self.filesystem.symlink(parent, &name, &link.target(digest))?;
        let published = self.rename(Path::new("ingest/l"), &path).await;
        if published.is_err() {
            self.filesystem.unlink(parent, &name)?;
        }
        published
    }

    async fn make_directories(&self, path: &Path) -> Result<()> {
        for directory in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
            let (parent, name) = self.parent(directory).await?;
            match self.filesystem.mkdir(parent, &name).await {
                Ok(_) | Err(Error::Exists) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn follow(&self, link: &Link) -> Result<Option<Digest>> {
        let attributes = self.stat(&Entry::Link(link.clone()).path()).await?;
        Ok(Link::digest_of_target(&self.filesystem.readlink(attributes.number)?))
    }
}

fn blob(size_bytes: usize) -> (Vec<u8>, Digest) {
    let content: Vec<u8> = (0..size_bytes).map(|i| ((i * i) >> 8) as u8).collect();
    let digest = Digest::of(Algorithm::Sha256, &content);
    (content, digest)
}

fn tag(name: &str) -> Link {
    Link::Tag("library/app".parse().unwrap(), name.parse().unwrap())
}

/// "What `rename` acknowledged […] is readable on every node."
#[tokio::test]
async fn what_one_node_publishes_every_node_reads() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    for size_bytes in [0, 1, 100_000, 20 << 20] {
        let (content, digest) = blob(size_bytes);
        assert!(matches!(b.read(&digest).await, Err(Error::NotFound)));
        a.publish(&content, &digest).await.unwrap();
        assert_eq!(b.read(&digest).await.unwrap(), content);
        b.publish(&content, &digest).await.expect("an equal digest is a success");
    }
}

/// "A wrong digest is EBADMSG and nothing becomes visible."
#[tokio::test]
async fn a_wrong_digest_becomes_visible_nowhere() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    for size_bytes in [100, 20 << 20] {
        let (content, digest) = blob(size_bytes);
        let mut wrong = content.clone();
        *wrong.last_mut().unwrap() ^= 1;
        let outcome = a.publish(&wrong, &digest).await;
        assert_eq!(outcome.unwrap_err().errno(), libc::EBADMSG);
        for node in [&a, &b] {
            assert!(matches!(node.read(&digest).await, Err(Error::NotFound)));
        }
        let key = Key::from(format!(
            "docker/registry/v2/blobs/sha256/{}/{}/data",
            &digest.hex()[..2],
            digest.hex()
        ));
        assert!(store.objects.head(&key).await.is_err());
        a.publish(&content, &digest).await.unwrap();
    }
}

/// "Any number of readers on a node cost one fetch."
#[tokio::test]
async fn many_readers_cost_one_fetch() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let (content, digest) = blob(20 << 20);
    a.publish(&content, &digest).await.unwrap();
    let reads = futures_util::future::join_all((0..16).map(|_| b.read(&digest))).await;
    assert!(reads.into_iter().all(|read| read.unwrap() == content));
    assert_eq!(store.count("get"), content.len().div_ceil(8 << 20), "one request for each range");
}

/// "Bytes served under a digest hash to it": damage in the storage is a miss, and is mended by
/// whoever publishes the blob anew.
#[tokio::test]
async fn a_blob_that_was_damaged_in_the_storage_is_missing_until_it_is_published_anew() {
    let store = Arc::new(Recorder::default());
    let (content, digest) = blob(1000);
    let hex = digest.hex();
    let key = Key::from(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    store.objects.put(&key, Bytes::from(vec![7; 1000]).into()).await.unwrap();

    let node = Node::on(&store);
    assert_eq!(node.read(&digest).await.unwrap_err().errno(), libc::ENOENT);
    assert!(matches!(node.read(&digest).await, Err(Error::NotFound)));
    node.publish(&content, &digest).await.unwrap();
    assert_eq!(Node::on(&store).read(&digest).await.unwrap(), content);
}

/// "Blobs are immutable […]; tags are not kept."
#[tokio::test]
async fn a_tag_that_one_node_moves_has_moved_for_every_node() {
    let store = Arc::new(Recorder::default());
    let (a, b) = (Node::on(&store), Node::on(&store));
    let ((one, first), (two, second)) = (blob(10), blob(20));
    a.publish(&one, &first).await.unwrap();
    b.publish(&two, &second).await.unwrap();
    let latest = tag("latest");

    assert!(matches!(b.follow(&latest).await, Err(Error::NotFound)));
    a.link(&latest, &first).await.unwrap();
    assert_eq!(b.follow(&latest).await.unwrap(), Some(first.clone()));
    b.link(&latest, &second).await.unwrap();
    assert_eq!(a.follow(&latest).await.unwrap(), Some(second));
}

#[tokio::test]
async fn a_link_never_dangles() {
    let node = Node::on(&Arc::new(Recorder::default()));
    let (_, digest) = blob(10);
    assert!(matches!(node.link(&tag("latest"), &digest).await, Err(Error::NotFound)));
    assert!(matches!(node.follow(&tag("latest")).await, Err(Error::NotFound)));
}

/// "No partial blob is ever visible": a writer that goes on after the rename changes nothing.
#[tokio::test]
async fn a_writer_that_stays_cannot_change_what_was_published() {
    let store = Arc::new(Recorder::default());
    let node = Node::on(&store);
    let (content, digest) = blob(1000);
    let (parent, name) = node.parent(Path::new("ingest/x")).await.unwrap();
    let (_, opened) = node.filesystem.create(parent, &name).unwrap();
    let Opened::Staged(file, _writer) = opened else { panic!("an ingest opens as such") };
    file.file.write_all_at(&content, 0).unwrap();
    node.rename(Path::new("ingest/x"), &Entry::Blob(digest.clone()).path()).await.unwrap();
    file.file.write_all_at(b"changed", 0).unwrap();
    assert_eq!(node.read(&digest).await.unwrap(), content);
}

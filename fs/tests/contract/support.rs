//! Nodes on one storage in memory, and what a program does on their mounts.

use std::{
    ffi::OsStr,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use larder_config::{Cache as CacheConfig, CacheSize};
use larder_fs::{
    cache::Cache,
    error::{Error, Result},
    filesystem::{Attributes, Filesystem},
    inodes::ROOT,
    opened::Opened,
    store::{Backend, Storage},
};
use larder_layout::{Algorithm, Digest, Entry, Link, Report, StagingId};
use object_store::{
    Attributes as ObjectAttributes, CopyOptions, GetOptions, GetResult, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, memory::InMemory, path::Path as Key,
};

pub const PART_BYTES: u64 = 8 << 20;
/// What the kernel reads and writes at a time.
pub const READ_BYTES: u32 = 1 << 20;

/// A store in memory that writes down what it is asked for.
#[derive(Debug, Default)]
pub struct Recorder {
    pub objects: InMemory,
    pub calls: Mutex<Vec<String>>,
}

impl Recorder {
    pub fn note(&self, operation: &str, key: &Key) {
        self.calls.lock().unwrap().push(format!("{operation} {key}"));
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

/// The storage that nodes on this store share.
pub fn storage(store: &Arc<Recorder>) -> Arc<Storage> {
    Arc::new(Storage::new(Backend {
        objects: Arc::clone(store) as _,
        leftovers: None,
        root_directory: String::new(),
        part_bytes: PART_BYTES,
        attributes: ObjectAttributes::new(),
        mistaken_key: |_| None,
        endpoint_key: "",
    }))
}

/// One node, and the ordinary calls that a program would make on its mount.
pub struct Node {
    pub filesystem: Filesystem,
    _cache: tempfile::TempDir,
}

impl Node {
    pub fn on(store: &Arc<Recorder>) -> Self {
        Self::with_cache(store, 1 << 30)
    }

    pub fn with_cache(store: &Arc<Recorder>, limit_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = CacheSize::Bytes(limit_bytes);
        let config =
            CacheConfig { directory: directory.path().into(), size, ..CacheConfig::default() };
        let cache = Cache::open(&config).unwrap();
        Self {
            filesystem: Filesystem::new(storage(store), cache, config.fill, String::new()),
            _cache: directory,
        }
    }

    pub async fn stat(&self, path: &Path) -> Result<Attributes> {
        let mut attributes = self.filesystem.getattr(ROOT).await?;
        for name in path {
            attributes = self.filesystem.lookup(attributes.number, name).await?;
        }
        Ok(attributes)
    }

    pub async fn parent(&self, path: &Path) -> Result<(u64, Box<OsStr>)> {
        let parent = self.stat(path.parent().unwrap()).await?;
        Ok((parent.number, path.file_name().unwrap().into()))
    }

    pub async fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.read_path(&Entry::Blob(digest.clone()).path()).await
    }

    pub async fn read_path(&self, path: &Path) -> Result<Vec<u8>> {
        let attributes = self.stat(path).await?;
        let opened = Arc::new(self.filesystem.open(attributes.number, false).await?);
        let mut content = Vec::new();
        loop {
            let piece = Arc::clone(&opened).read(content.len() as u64, READ_BYTES).await?;
            if piece.is_empty() {
                return Ok(content);
            }
            content.extend_from_slice(&piece);
        }
    }

    /// How much this node has fetched from the storage.
    pub async fn fetched_bytes(&self) -> u64 {
        let report = self.read_path(&Entry::Report(Report::Stats).path()).await.unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        report["since_start"]["fetched_bytes"].as_u64().unwrap()
    }

    pub async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (self.parent(from).await?, self.parent(to).await?);
        self.filesystem.rename((from.0, &from.1), (to.0, &to.1)).await
    }

    pub async fn publish(&self, content: &[u8], digest: &Digest) -> Result<()> {
        self.publish_as("x".parse().unwrap(), content, digest).await
    }

    pub async fn publish_as(&self, id: StagingId, content: &[u8], digest: &Digest) -> Result<()> {
        self.stage(&id, content).await?;
        let published = self
            .rename(&Entry::Staged(id.clone()).path(), &Entry::Blob(digest.clone()).path())
            .await;
        if published.is_err() {
            self.remove(&id).await?;
        }
        published
    }

    /// Writes a file in `ingest/`, which stays open.
    pub async fn stage(&self, id: &StagingId, content: &[u8]) -> Result<Opened> {
        let (parent, name) = self.parent(&Entry::Staged(id.clone()).path()).await?;
        let (_, opened) = self.filesystem.create(parent, &name)?;
        for (index, piece) in content.chunks(READ_BYTES as usize).enumerate() {
            opened.write(index as u64 * u64::from(READ_BYTES), piece.to_owned()).await?;
        }
        Ok(opened)
    }

    pub async fn remove(&self, id: &StagingId) -> Result<()> {
        let (parent, name) = self.parent(&Entry::Staged(id.clone()).path()).await?;
        let number = self.filesystem.lookup(parent, &name).await?.number;
        self.filesystem.unlink(parent, &name).await?;
        // As the kernel does when nobody has it open.
        self.filesystem.forget(number, u64::MAX);
        Ok(())
    }

    pub async fn open(&self, digest: &Digest) -> Result<Arc<Opened>> {
        let attributes = self.stat(&Entry::Blob(digest.clone()).path()).await?;
        Ok(Arc::new(self.filesystem.open(attributes.number, false).await?))
    }

    pub async fn link(&self, link: &Link, digest: &Digest) -> Result<()> {
        let path = Entry::Link(link.clone()).path();
        self.make_directories(path.parent().unwrap()).await?;
        let (parent, name) = self.parent(Path::new("ingest/l")).await?;
        self.filesystem.symlink(parent, &name, &link.target(digest)).await?;
        let published = self.rename(Path::new("ingest/l"), &path).await;
        if published.is_err() {
            self.filesystem.unlink(parent, &name).await?;
        }
        published
    }

    pub async fn make_directories(&self, path: &Path) -> Result<()> {
        for directory in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
            let (parent, name) = self.parent(directory).await?;
            match self.filesystem.mkdir(parent, &name).await {
                Ok(_) | Err(Error::Exists) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub async fn follow(&self, link: &Link) -> Result<Option<Digest>> {
        let attributes = self.stat(&Entry::Link(link.clone()).path()).await?;
        Ok(Link::digest_of_target(&self.filesystem.readlink(attributes.number)?))
    }
}

pub fn blob(size_bytes: usize) -> (Vec<u8>, Digest) {
    let content: Vec<u8> = (0..size_bytes).map(|i| ((i * i) >> 8) as u8).collect();
    let digest = Digest::of(Algorithm::Sha256, &content);
    (content, digest)
}

//! Nodes in this process, each with a clock of its own, on one faulty storage.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use larder_config::{Cache as CacheConfig, CacheSize, Fill};
use larder_fs::{
    cache::Cache,
    error::{Error, Result},
    filesystem::Filesystem,
    inodes::ROOT,
    opened::Opened,
};
use larder_layout::{Algorithm, Digest, Entry};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::{
    disk,
    operation::{Damage, NODES, Trouble},
    reference::{Outcome, System},
    store::{Fault, FaultyStore},
};

/// Small enough that blobs of little more than a block are sent ahead.
const PART_BYTES: u64 = 1 << 20;
/// The first holds the small contents and one large one at a time; the second holds all.
const CACHE_BYTES: [u64; NODES] = [3 << 20, 96 << 20];
/// "6. Nothing hangs: every wait has a deadline." By the node's own clock.
const HANGS_AFTER: Duration = Duration::from_secs(900);
/// Nobody waits for anything when a node ends.
const ENDS_WITHIN: Duration = Duration::from_secs(4);
/// After this, whatever waited for a stalled storage has given up, and the storage is asked again.
const HEALED_AFTER: Duration = Duration::from_secs(400);

/// The nodes.
pub struct Nodes {
    store: FaultyStore,
    fill: Fill,
    nodes: Vec<Node>,
}

/// One node, as it is from its start to its crash.
struct Node {
    // Dropped before what its tasks use, which ends them wherever they are: a crash.
    runtime: Option<Runtime>,
    filesystem: Option<Arc<Filesystem>>,
    cache: Option<Arc<Cache>>,
    limit_bytes: u64,
    directory: TempDir,
    /// What the kernel knows: numbers, each as often as it was told.
    known: Vec<u64>,
}

/// An open file, and the inode that it keeps.
pub struct File {
    opened: Arc<Opened>,
}

impl Nodes {
    pub fn new(fill: Fill) -> Self {
        let store = FaultyStore::default();
        let nodes = CACHE_BYTES.map(|limit_bytes| Node::start(&store, fill, limit_bytes));
        Self { store, fill, nodes: nodes.into() }
    }
}

impl Nodes {
    /// Whether the call on the storage that is to fail has not come yet.
    pub fn is_in_wait(&self) -> bool {
        self.store.is_in_wait()
    }

    /// Waits until a cache has looked through its directory.
    pub fn wait_until_counted(&self, node: usize) {
        self.nodes[node].cache.as_ref().unwrap().reserve(1).unwrap();
    }

    /// The directory of a node's cache.
    pub fn directory(&self, node: usize) -> &Path {
        self.nodes[node].directory.path()
    }
}

impl Node {
    fn start(store: &FaultyStore, fill: Fill, limit_bytes: u64) -> Self {
        let mut node = Self {
            runtime: None,
            filesystem: None,
            cache: None,
            limit_bytes,
            // What is synced there costs nothing.
            directory: tempfile::tempdir_in("/dev/shm").unwrap(),
            known: Vec::new(),
        };
        node.boot(store, fill).unwrap();
        node
    }

    fn boot(&mut self, store: &FaultyStore, fill: Fill) -> std::result::Result<(), String> {
        let size = CacheSize::Bytes(self.limit_bytes);
        let directory = self.directory.path().to_owned();
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.unwrap();
        let (min_free, scrub_bytes_per_second) = (CacheSize::Bytes(0), 0);
        let config = CacheConfig { directory, size, fill, min_free, scrub_bytes_per_second };
        let cache = Cache::open(&config)?;
        let filesystem =
            Filesystem::new(store.open(PART_BYTES), Arc::clone(&cache), fill, String::new());
        self.filesystem = Some(Arc::new(filesystem));
        self.cache = Some(cache);
        self.runtime = Some(runtime);
        Ok(())
    }

    fn crash(&mut self) {
        let begun = Instant::now();
        self.runtime = None;
        self.filesystem = None;
        self.cache = None;
        self.known.clear();
        assert!(begun.elapsed() < ENDS_WITHIN, "it took {:?} to end", begun.elapsed());
    }

    fn filesystem(&self) -> Arc<Filesystem> {
        Arc::clone(self.filesystem.as_ref().unwrap())
    }

    fn run<T>(&self, operation: impl Future<Output = Result<T>>) -> Outcome<T> {
        let limited = async { tokio::time::timeout(HANGS_AFTER, operation).await };
        let outcome = self.runtime.as_ref().unwrap().block_on(limited).expect("nothing hangs");
        outcome.map_err(|error: Error| error.errno())
    }

    /// Looks a path up, name by name, as the kernel does.
    fn walk(&mut self, path: &Path) -> Outcome<u64> {
        let filesystem = self.filesystem();
        let mut number = ROOT;
        for name in path {
            number = self.run(filesystem.lookup(number, name))?.number;
            self.known.push(number);
        }
        Ok(number)
    }

    fn parent(&mut self, path: &Path) -> Outcome<(u64, OsString)> {
        let name = path.file_name().unwrap().to_owned();
        Ok((self.walk(path.parent().unwrap())?, name))
    }

    fn rename<T>(
        &mut self,
        from: &Path,
        to: &Path,
        run: impl FnOnce(&Self, &Filesystem, (u64, &OsStr), (u64, &OsStr)) -> T,
    ) -> Outcome<T> {
        let (from, to) = (self.parent(from)?, self.parent(to)?);
        Ok(run(self, &self.filesystem(), (from.0, &from.1), (to.0, &to.1)))
    }

    fn sleep(&self, duration: Duration) {
        self.runtime.as_ref().unwrap().block_on(async { tokio::time::sleep(duration).await });
    }

    fn cached_file(&self, digest: &Digest) -> PathBuf {
        let directory = self.directory.path().join("blobs").join(digest.algorithm().as_str());
        directory.join(digest.hex())
    }

    /// "8. The local cache stays inside its size limit."
    fn check_size(&self) {
        let usage = self.cache.as_ref().unwrap().usage();
        assert!(usage.used_bytes <= self.limit_bytes, "{usage:?}");
        let on_disk: u64 = files(self.directory.path()).map(|path| disk_bytes(&path)).sum();
        assert!(on_disk <= self.limit_bytes, "{on_disk} of {} bytes on disk", self.limit_bytes);
    }
}

/// The blobs and what is staged, wherever they are.
fn files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let directories = ["blobs/sha256", "blobs/sha512", "staging"].map(|name| directory.join(name));
    let entries = directories.into_iter().flat_map(|path| fs::read_dir(path).into_iter().flatten());
    entries.map(|entry| entry.unwrap().path())
}

/// A file may go between being listed and being looked at. One page is rounding.
fn disk_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len().min(metadata.blocks() * 512))
}

impl System for Nodes {
    type File = File;

    fn create(&mut self, node: usize, path: &Path) -> Outcome<File> {
        let node = &mut self.nodes[node];
        let (parent, name) = node.parent(path)?;
        let filesystem = node.filesystem();
        let (attributes, opened) = node.run(async { filesystem.create(parent, &name) })?;
        node.known.push(attributes.number);
        Ok(File { opened: Arc::new(opened) })
    }

    fn write(&mut self, node: usize, file: &File, at: u64, content: &[u8]) -> Outcome<()> {
        self.nodes[node].run(file.opened.write(at, content.to_owned()))
    }

    fn truncate(&mut self, node: usize, path: &Path, size_bytes: u64) -> Outcome<()> {
        let node = &mut self.nodes[node];
        let number = node.walk(path)?;
        node.run(node.filesystem().setattr(number, Some(size_bytes))).map(drop)
    }

    fn rename(&mut self, node: usize, from: &Path, to: &Path) -> Outcome<()> {
        self.nodes[node]
            .rename(from, to, |node, filesystem, from, to| node.run(filesystem.rename(from, to)))?
    }

    fn interrupted_rename(
        &mut self,
        node: usize,
        from: &Path,
        to: &Path,
        mut steps: u32,
    ) -> Option<Outcome<()>> {
        let renamed = self.nodes[node].rename(from, to, |node, filesystem, from, to| {
            // What is interrupted is dropped, and what that begins, it begins in the runtime.
            let _runtime = node.runtime.as_ref().unwrap().enter();
            let mut rename = Box::pin(filesystem.rename(from, to));
            let some_steps = std::future::poll_fn(|context| {
                if steps == 0 {
                    return Poll::Ready(Ok(None));
                }
                steps -= 1;
                rename.as_mut().poll(context).map(|outcome| outcome.map(Some))
            });
            node.run(some_steps)
        });
        renamed.and_then(|outcome| outcome).transpose()
    }

    fn unlink(&mut self, node: usize, path: &Path) -> Outcome<()> {
        let node = &mut self.nodes[node];
        let (parent, name) = node.parent(path)?;
        node.run(node.filesystem().unlink(parent, &name))
    }

    fn symlink(&mut self, node: usize, target: &Path, path: &Path) -> Outcome<()> {
        let node = &mut self.nodes[node];
        let (parent, name) = node.parent(path)?;
        let filesystem = node.filesystem();
        let attributes = node.run(filesystem.symlink(parent, &name, target))?;
        node.known.push(attributes.number);
        Ok(())
    }

    fn make_directories(&mut self, node: usize, path: &Path) -> Outcome<()> {
        let node = &mut self.nodes[node];
        let mut made = PathBuf::new();
        for name in path {
            let parent = node.walk(&made)?;
            match node.run(node.filesystem().mkdir(parent, name)) {
                Ok(attributes) => node.known.push(attributes.number),
                Err(libc::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            made.push(name);
        }
        Ok(())
    }

    fn read_link(&mut self, node: usize, path: &Path) -> Outcome<PathBuf> {
        let node = &mut self.nodes[node];
        let number = node.walk(path)?;
        node.filesystem().readlink(number).map_err(|e| e.errno())
    }

    fn open(&mut self, node: usize, path: &Path) -> Outcome<File> {
        let node = &mut self.nodes[node];
        let number = node.walk(path)?;
        let opened = Arc::new(node.run(node.filesystem().open(number, false))?);
        Ok(File { opened })
    }

    fn read(&mut self, node: usize, file: &File, at: u64, size_bytes: u32) -> Outcome<Vec<u8>> {
        let read = self.nodes[node].run(Arc::clone(&file.opened).read(at, size_bytes))?;
        Ok(read.to_vec())
    }

    fn size_bytes(&mut self, node: usize, path: &Path) -> Outcome<u64> {
        let node = &mut self.nodes[node];
        let number = node.walk(path)?;
        node.run(node.filesystem().getattr(number)).map(|attributes| attributes.size_bytes)
    }

    fn list(&mut self, node: usize, path: &Path) -> Outcome<Vec<String>> {
        let node = &mut self.nodes[node];
        let number = node.walk(path)?;
        let mut names = Vec::new();
        node.run(async {
            let opened = node.filesystem().opendir(number).await?;
            while let Some((name, _)) =
                node.filesystem().listed(&opened, names.len() as u64).await?
            {
                names.push(name.into_string().unwrap());
            }
            Ok(names)
        })
    }

    fn forget(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        for number in std::mem::take(&mut node.known) {
            node.filesystem().forget(number, 1);
        }
    }

    fn settle(&mut self, node: usize) {
        // The clock goes on only when nothing else does.
        self.nodes[node].sleep(Duration::from_secs(1));
    }

    fn is_cached(&mut self, node: usize, digest: &Digest) -> bool {
        self.nodes[node].cache.as_ref().unwrap().stat(digest).is_some()
    }

    fn spoil(&mut self, node: usize, digest: &Digest, damage: Damage) {
        damage.inflict(&self.nodes[node].cached_file(digest));
    }

    fn crash(&mut self, node: usize, keeps_cache: bool) {
        let Self { store, fill, nodes } = self;
        nodes[node].crash();
        if !keeps_cache {
            nodes[node].directory = tempfile::tempdir_in("/dev/shm").unwrap();
        }
        if let Err(mistake) = nodes[node].boot(store, *fill) {
            assert!(disk::has_failed(), "{mistake}");
            // As systemd does.
            nodes[node].boot(store, *fill).unwrap();
        }
    }

    fn trouble(&mut self, trouble: Trouble, calls_before: u32) {
        let fault = match trouble {
            Trouble::Error => Fault::Error,
            Trouble::DoneAndError => Fault::DoneAndError,
            Trouble::Stall => Fault::Stall,
            Trouble::Short => Fault::Short,
            Trouble::StallInside => Fault::StallInside,
            Trouble::Outage => return self.store.set_down(true),
        };
        self.store.fail_after(calls_before, fault);
    }

    fn heal(&mut self) {
        self.store.set_down(false);
        let probe = Entry::Blob(Digest::of(Algorithm::Sha256, b"probe")).path();
        for node in &mut self.nodes {
            node.sleep(HEALED_AFTER);
            assert_eq!(node.walk(&probe), Err(libc::ENOENT), "the storage is back");
        }
    }

    fn damage_stored(&mut self, digest: &Digest) {
        let runtime = self.nodes[0].runtime.as_ref().unwrap();
        runtime.block_on(self.store.damage(digest));
    }

    fn check(&mut self) {
        self.store.assert_sound();
        self.nodes.iter().for_each(Node::check_size);
    }

    fn check_idle(&mut self, was_in_trouble: bool) {
        self.check();
        for node in &self.nodes {
            let staged = fs::read_dir(node.directory.path().join("staging")).unwrap();
            let staged: Vec<_> = staged.map(|entry| entry.unwrap().path()).collect();
            assert!(staged.is_empty(), "left in staging: {staged:?}");
        }
        assert!(was_in_trouble || self.store.uploads() == 0, "parts are left in the storage");
    }
}

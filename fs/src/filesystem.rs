//! The filesystem: what each name is, and what may be done with it.
//!
//! No FUSE in here: [`crate::fuse`] decodes requests, calls this, and replies.

mod in_layers;
mod listed;
mod made;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use larder_config::Fill;
use larder_layout::{Digest, Directory, Entry, Lease, Link, Report, StagingId};
use serde_json::json;

use crate::{
    attributes::{self, CHANGING, IMMUTABLE, REPOSITORY},
    cache::Cache,
    error::{Error, Result},
    fetch::{Fetches, blocking},
    ingest::{Ingest, Staged, StagedFile},
    inodes::{Inodes, Node},
    layers::{Layers, tree},
    links::Links,
    listing::{Listing, Listings},
    metrics::Metrics,
    opened::Opened,
    store::{BlobMeta, Storage},
    xattr,
};

pub use crate::attributes::{Attributes, Kind};

/// NAME_MAX, which statvfs(3) tells too.
pub const NAME_MAX_BYTES: usize = 255;

/// The contract over a shared storage and a local cache.
pub struct Filesystem {
    storage: Arc<Storage>,
    cache: Arc<Cache>,
    fetches: Arc<Fetches>,
    ingest: Arc<Ingest>,
    layers: Arc<Layers>,
    links: Links,
    inodes: Inodes,
    metrics: Arc<Metrics>,
    /// Directories that were made and have nothing in them yet: the storage has no directories.
    made: made::Made,
    config: String,
    started: SystemTime,
}

impl Filesystem {
    /// A filesystem over `storage` and `cache`; `config` is what `.larder/config` shows.
    pub fn new(storage: Arc<Storage>, cache: Arc<Cache>, fill: Fill, config: String) -> Self {
        let metrics = Arc::new(Metrics::default());
        let fetches =
            Fetches::new(Arc::clone(&storage), Arc::clone(&cache), Arc::clone(&metrics), fill);
        let ingest = Ingest::new(Arc::clone(&storage), Arc::clone(&cache), Arc::clone(&metrics));
        Self {
            layers: Layers::new(&cache, &fetches),
            fetches,
            ingest: Arc::new(ingest),
            links: Links::new(Arc::clone(&storage), Arc::clone(&cache)),
            inodes: Inodes::default(),
            metrics,
            made: made::none(),
            config,
            started: SystemTime::now(),
            storage,
            cache,
        }
    }

    /// Looks a name up, and makes the kernel's knowledge of it count until it is forgotten.
    ///
    /// # Errors
    /// [`Error::NotFound`], which nobody may remember.
    pub async fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attributes> {
        if let Node::Layer(digest, directory) = self.inodes.node(parent)? {
            return self.lookup_in_layer(digest, directory, name).await;
        }
        let entry = self.child(parent, name)?;
        if let Entry::Directory(directory) = &entry
            && !self.directory_exists(directory).await?
        {
            return Err(Error::NotFound);
        }
        self.lookup_entry(entry, None).await
    }

    /// Looks up an entry, whose size and age may be known from a listing. A directory is taken to
    /// exist.
    ///
    /// # Errors
    /// As [`Filesystem::lookup`].
    pub async fn lookup_entry(&self, entry: Entry, meta: Option<BlobMeta>) -> Result<Attributes> {
        Ok(match entry {
            Entry::Directory(directory) => self.directory_attributes(directory),
            Entry::Blob(digest) => {
                let meta = match meta {
                    Some(meta) => meta,
                    None => self.fetches.stat(&digest).await?,
                };
                attributes::blob(self.inodes.remember_blob(digest, meta), meta)
            }
            Entry::Link(link) => {
                let digest = self.links.read(&link).await?;
                let size_bytes = target_bytes(&link, &digest);
                let number = self.inodes.remember(Node::Link(link, digest));
                self.symlink_attributes(number, size_bytes)
            }
            Entry::Layer(digest) => {
                if meta.is_none() {
                    self.fetches.stat(&digest).await?;
                }
                self.layer_root(digest)
            }
            Entry::Lease(lease) => {
                let holder = self.storage.read_lease(&lease).await?;
                self.lease_attributes(lease, holder)
            }
            Entry::Staged(id) => match self.ingest.get(&id).ok_or(Error::NotFound)? {
                Staged::File(file) => self.staged_attributes(id, file)?,
                Staged::Link(digest) => self.staged_link_attributes(id, digest),
            },
            Entry::Report(report) => {
                let number = self.inodes.remember(Node::Report(report));
                self.report_attributes(number)
            }
        })
    }

    /// The kernel has forgotten that it was told of an inode `lookups` times. Tells whether that is
    /// all of them: then it will not name the inode again.
    pub fn forget(&self, number: u64, lookups: u64) -> bool {
        self.inodes.forget(number, lookups)
    }

    /// How much the local cache may hold.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.usage().limit_bytes
    }

    /// What is counted on this mount.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// A blob of the cache was opened without [`Filesystem::open`].
    pub fn count_opened(&self) {
        self.metrics.opened_cached();
    }

    /// What stat(2) tells of an inode.
    pub async fn getattr(&self, number: u64) -> Result<Attributes> {
        match self.inodes.node(number)? {
            Node::Directory(directory) => Ok(self.attributes_of_directory(number, &directory)),
            Node::Blob(_) => Ok(attributes::blob(number, self.inodes.blob(number)?)),
            Node::Link(link, digest) => {
                Ok(self.symlink_attributes(number, target_bytes(&link, &digest)))
            }
            Node::Layer(_, tree::ROOT) => Ok(self.attributes_of_layer_root(number)),
            Node::Layer(digest, index) | Node::LayerLink(digest, index, _) => {
                self.attributes_in_layer(number, &digest, index).await
            }
            Node::Lease(_, holder) => Ok(self.symlink_attributes(number, holder.len() as u64)),
            Node::Staged(_) => attributes::staged_file(number, &*self.inodes.staged(number)?),
            Node::StagedLink(_, digest) => {
                Ok(self.symlink_attributes(number, staged_target(&digest).as_os_str().len() as u64))
            }
            Node::Report(_) => Ok(self.report_attributes(number)),
        }
    }

    /// Changes the length of a staged file; other changes of attributes are for staged files only
    /// too, and have no effect.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for anything published.
    pub async fn setattr(&self, number: u64, size_bytes: Option<u64>) -> Result<Attributes> {
        let Node::Staged(_) = self.inodes.node(number)? else { return Err(Error::ReadOnly) };
        if let Some(size_bytes) = size_bytes {
            let staged = self.inodes.staged(number)?;
            blocking(move || staged.truncate(size_bytes)).await?;
        }
        self.getattr(number).await
    }

    /// Where a symlink points.
    pub fn readlink(&self, number: u64) -> Result<PathBuf> {
        match self.inodes.node(number)? {
            Node::Link(link, digest) => Ok(link.target(&digest)),
            Node::LayerLink(_, _, target) => Ok(target),
            Node::Lease(_, holder) => Ok(holder.into()),
            Node::StagedLink(_, digest) => Ok(staged_target(&digest)),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// Opens a file. A blob that is not in the local cache is fetched while it is read.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when anything published is to be written.
    pub async fn open(&self, number: u64, for_writing: bool) -> Result<Opened> {
        match self.inodes.node(number)? {
            Node::Staged(_) => Ok(Opened::Staged(self.inodes.staged(number)?)),
            Node::Directory(_) => Err(Error::IsDirectory),
            Node::Layer(..) if for_writing => Err(Error::ReadOnly),
            Node::Layer(digest, index) => self.open_in_layer(&digest, index).await,
            Node::Link(..) | Node::LayerLink(..) | Node::Lease(..) | Node::StagedLink(..) => {
                Err(Error::Invalid("a symbolic link"))
            }
            Node::Blob(_) | Node::Report(_) if for_writing => Err(Error::ReadOnly),
            Node::Blob(digest) => {
                Opened::blob(&self.fetches, &digest, self.inodes.blob(number)?).await
            }
            Node::Report(report) => Ok(Opened::Report(self.report(report))),
        }
    }

    /// Has the file of a blob in the local cache hashed before it is opened, whatever it looks like.
    pub fn doubt(&self, number: u64) {
        if let Ok(Node::Blob(digest)) = self.inodes.node(number) {
            self.cache.doubt(&digest);
        }
    }

    /// The content of an open file from `offset` on, shorter than `size_bytes` only at the end.
    /// Where a file of the cache cannot be read, the blob is opened anew: then it is found out
    /// whether the file is damaged, and whoever reads gets the content from elsewhere.
    ///
    /// # Errors
    /// As [`Opened::read`].
    pub async fn read(&self, opened: Arc<Opened>, offset: u64, size_bytes: u32) -> Result<Bytes> {
        let read = Arc::clone(&opened).read(offset, size_bytes).await;
        let (Opened::Blob(blob), Err(e)) = (&*opened, &read) else { return read };
        tracing::warn!(digest = %blob.digest(), "opened anew: {e}");
        blob.doubt();
        let reread = async {
            let opened = Opened::blob(&self.fetches, blob.digest(), blob.meta()).await?;
            Arc::new(opened).read(offset, size_bytes).await
        };
        reread.await.map_err(|e| Error::lost(blob.digest(), &e))
    }

    /// Opens a directory.
    pub async fn opendir(&self, number: u64) -> Result<Opened> {
        let directory = match self.inodes.node(number)? {
            Node::Directory(directory) => directory,
            Node::Layer(digest, index) => return self.opendir_in_layer(digest, index).await,
            _ => return Err(Error::NotDirectory),
        };
        let listings = Listings {
            storage: Arc::clone(&self.storage),
            ingest: Arc::clone(&self.ingest),
            layers: Arc::clone(&self.layers),
        };
        let listing = Listing::new(listings, directory);
        Ok(Opened::Directory(Box::new(tokio::sync::Mutex::new(listing))))
    }

    /// Creates a file in `ingest/`, open for writing.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] anywhere else.
    pub fn create(&self, parent: u64, name: &OsStr) -> Result<(Attributes, Opened)> {
        let Entry::Staged(id) = self.new_name(parent, name)? else { return Err(Error::ReadOnly) };
        let staged = self.ingest.create(&id)?;
        let attributes = self.staged_attributes(id, Arc::clone(&staged))?;
        Ok((attributes, Opened::Staged(staged)))
    }

    /// Creates a symlink: in `ingest/`, to be published as a tag or a membership, or a lease.
    ///
    /// # Errors
    /// [`Error::Exists`] when another node has the lease, [`Error::Invalid`] for a target that has no
    /// business there.
    pub async fn symlink(&self, parent: u64, name: &OsStr, target: &Path) -> Result<Attributes> {
        match self.new_name(parent, name)? {
            Entry::Staged(id) => {
                let digest = Link::digest_of_target(target).ok_or(Error::Invalid(
                    "a symlink in ingest/ points to blobs/<algorithm>/<hex>",
                ))?;
                self.ingest.symlink(&id, digest.clone())?;
                Ok(self.staged_link_attributes(id, digest))
            }
            Entry::Lease(lease) => {
                let holder = target.to_str().filter(|it| it.len() <= Lease::TARGET_MAX_BYTES);
                let holder = holder.ok_or(Error::Invalid("a lease names its holder, in UTF-8"))?;
                self.storage.take_lease(&lease, holder).await?;
                Ok(self.lease_attributes(lease, holder.to_owned()))
            }
            _ => Err(Error::ReadOnly),
        }
    }

    /// Removes a name from `ingest/`, or ends a lease.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for anything published.
    pub async fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        match self.child(parent, name)? {
            Entry::Staged(id) => {
                self.release_name(&id);
                self.ingest.remove(&id).await
            }
            Entry::Lease(lease) => self.storage.end_lease(&lease).await,
            _ => Err(Error::ReadOnly),
        }
    }

    /// Publishes what is staged: a file as a blob, a symlink as a tag or a membership. It returns
    /// only when every other node can read it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the content does not hash to the new name.
    pub async fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<()> {
        let Entry::Staged(id) = self.child(from.0, from.1)? else { return Err(Error::ReadOnly) };
        let staged = self.ingest.get(&id).ok_or(Error::NotFound)?;
        match (staged, self.new_name(to.0, to.1)?) {
            (Staged::File(file), Entry::Blob(digest)) => {
                let keeping = self.ingest.commit(&id, file, &digest).await?;
                self.release_name(&id);
                // So that whoever opens it next finds it in the cache.
                let _ = keeping.await;
            }
            (Staged::Link(digest), Entry::Link(link)) => {
                self.links.publish(&link, &digest).await?;
                self.ingest.remove(&id).await?;
                self.release_name(&id);
            }
            (Staged::File(_), Entry::Link(_)) | (Staged::Link(_), Entry::Blob(_)) => {
                return Err(Error::Invalid("files are published as blobs, symlinks as links"));
            }
            _ => return Err(Error::ReadOnly),
        }
        Ok(())
    }

    /// The type of an entry.
    pub fn kind(&self, entry: &Entry) -> Kind {
        match entry {
            Entry::Directory(_) | Entry::Layer(_) => Kind::Directory,
            Entry::Blob(_) | Entry::Report(_) => Kind::Published,
            Entry::Link(_) | Entry::Lease(_) => Kind::Symlink,
            Entry::Staged(id) => match self.ingest.get(id) {
                Some(Staged::Link(_)) => Kind::Symlink,
                Some(Staged::File(_)) | None => Kind::Staged,
            },
        }
    }

    /// The value of an extended attribute, which only blobs have.
    ///
    /// # Errors
    /// [`Error::NoAttribute`]
    pub fn xattr(&self, number: u64, name: &OsStr) -> Result<String> {
        let Node::Blob(digest) = self.inodes.node(number)? else { return Err(Error::NoAttribute) };
        let name = name.to_str().ok_or(Error::NoAttribute)?;
        xattr::value(&self.cache, &digest, self.inodes.blob(number)?, name)
    }

    /// The names of the extended attributes, as listxattr(2) has them.
    pub fn xattr_names(&self, number: u64) -> Result<String> {
        let Node::Blob(digest) = self.inodes.node(number)? else { return Ok(String::new()) };
        Ok(xattr::names(&self.cache, &digest, self.inodes.blob(number)?))
    }

    /// The blob of this inode is another file now, which those who have it open keep: from the next
    /// lookup on it has another inode.
    pub fn renew(&self, number: u64) {
        if let Ok(node @ Node::Blob(_)) = self.inodes.node(number) {
            self.inodes.release_name(&node);
        }
    }

    /// The disk that the cache is on.
    pub fn disk(&self) -> Result<nix::sys::statvfs::Statvfs> {
        nix::sys::statvfs::statvfs(self.cache.directory())
            .map_err(|e| Error::disk("statvfs", e.into()))
    }

    fn child(&self, parent: u64, name: &OsStr) -> Result<Entry> {
        let directory = match self.inodes.node(parent)? {
            Node::Directory(directory) => directory,
            Node::Layer(..) => return Err(Error::ReadOnly),
            _ => return Err(Error::NotDirectory),
        };
        if name.len() > NAME_MAX_BYTES {
            return Err(Error::NameTooLong);
        }
        name.to_str().and_then(|name| directory.child(name)).ok_or(Error::NotFound)
    }

    /// A name that is to be created: where the contract has no such name, none can be.
    fn new_name(&self, parent: u64, name: &OsStr) -> Result<Entry> {
        self.child(parent, name).map_err(|e| match e {
            Error::NotFound => Error::ReadOnly,
            e => e,
        })
    }

    fn report(&self, report: Report) -> Bytes {
        match report {
            Report::Config => self.config.clone().into(),
            Report::Stats => {
                let stats = json!({
                    "cache": self.cache.usage(),
                    "since_start": &*self.metrics,
                });
                format!("{stats:#}\n").into()
            }
        }
    }

    fn release_name(&self, id: &StagingId) {
        self.inodes.release_name(&Node::Staged(id.clone()));
    }

    fn directory_attributes(&self, directory: Directory) -> Attributes {
        let number = self.inodes.remember(Node::Directory(directory.clone()));
        self.attributes_of_directory(number, &directory)
    }

    fn attributes_of_directory(&self, number: u64, directory: &Directory) -> Attributes {
        let validity = match directory {
            Directory::Repository(_) => REPOSITORY,
            _ => IMMUTABLE,
        };
        let modified = self.started;
        Attributes { number, kind: Kind::Directory, size_bytes: 0, modified, validity }
    }

    fn symlink_attributes(&self, number: u64, size_bytes: u64) -> Attributes {
        let modified = self.started;
        Attributes { number, kind: Kind::Symlink, size_bytes, modified, validity: CHANGING }
    }

    fn report_attributes(&self, number: u64) -> Attributes {
        let modified = SystemTime::now();
        Attributes { number, kind: Kind::Published, size_bytes: 0, modified, validity: CHANGING }
    }

    fn lease_attributes(&self, lease: Lease, holder: String) -> Attributes {
        let size_bytes = holder.len() as u64;
        let number = self.inodes.remember(Node::Lease(lease, holder));
        self.symlink_attributes(number, size_bytes)
    }

    fn staged_attributes(&self, id: StagingId, file: Arc<StagedFile>) -> Result<Attributes> {
        let number = self.inodes.remember_staged(id, Arc::clone(&file));
        attributes::staged_file(number, &file)
    }

    fn staged_link_attributes(&self, id: StagingId, digest: Digest) -> Attributes {
        let size_bytes = staged_target(&digest).as_os_str().len() as u64;
        let number = self.inodes.remember(Node::StagedLink(id, digest));
        self.symlink_attributes(number, size_bytes)
    }
}

fn target_bytes(link: &Link, digest: &Digest) -> u64 {
    link.target(digest).as_os_str().len() as u64
}

/// Where a staged symlink points, seen from `ingest/`.
fn staged_target(digest: &Digest) -> PathBuf {
    Path::new("..").join(Entry::Blob(digest.clone()).path())
}

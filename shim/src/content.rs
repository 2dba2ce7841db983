//! The directory of the contract, through ordinary file calls.
//!
//! Each call runs on a blocking thread and has a deadline, so a mount whose daemon died or hangs
//! costs a request its patience and never this process its threads. A name that is missing is a
//! miss; every other error means that the storage is in trouble, and the shim goes on without it.

mod leases;
mod leftovers;
mod listing;
pub mod place;

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use larder_layout::{Algorithm, Digest, Directory, Entry, Link, Membership, Repository, StagingId};

use crate::calls::{Calls, PIECE_DEADLINE};

/// The deadline of a call that moves no content.
const NAME_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of opening a blob, which a mount first fetches whole from the shared storage.
const OPEN_DEADLINE: Duration = Duration::from_secs(120);
/// Up to this size, the bytes of a blob are read when it is opened.
const SMALL_MAX_BYTES: usize = 64 << 10;
/// How slowly the storage may take a blob in before it counts as hanging.
const PUBLISH_MIN_BYTES_PER_SECOND: u64 = 1 << 20;
/// How long names are not asked for after a call ran into its deadline: without this pause every
/// request would wait out the deadline of a mount that is known to hang.
const PAUSE: Duration = Duration::from_secs(5);
/// The directory. Clones are the same directory.
#[derive(Clone)]
pub struct Content {
    shared: Arc<Shared>,
}

struct Shared {
    root: Box<Path>,
    calls: Calls,
    /// No names are asked for until then.
    paused_until: Mutex<Option<Instant>>,
    /// Tells this process' staging names from those of any other that shares the directory.
    process: String,
    staged: AtomicU64,
}

/// An open blob.
#[derive(Clone)]
pub struct Blob {
    /// To be read with [`Content::calls`].
    pub file: Arc<File>,
    /// Its length when it was opened.
    pub size_bytes: u64,
    /// Its number in the directory.
    pub inode: u64,
}

/// A blob that was opened to be answered with.
pub struct OpenedMember {
    /// Its content.
    pub opened: Opened,
    /// Whether it had to be fetched from the shared storage.
    pub was_shared: bool,
}

/// The content of a blob.
pub enum Opened {
    /// All of it.
    Small(Bytes),
    /// What is too large for that.
    Large(Blob),
}

impl Opened {
    /// Its length when it was opened.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Small(content) => content.len() as u64,
            Self::Large(blob) => blob.size_bytes,
        }
    }
}

/// A file in `ingest/` that is not published yet.
pub struct Staged {
    /// Open for reading.
    pub file: Arc<File>,
    /// Open for writing, until it is published: what others can still write to is not kept in the
    /// mount's local cache.
    writer: Mutex<Option<Arc<File>>>,
    id: StagingId,
}

impl Staged {
    /// The file, open for writing.
    ///
    /// # Errors
    /// It is being published.
    pub fn writer(&self) -> io::Result<Arc<File>> {
        lock(&self.writer).clone().ok_or_else(|| io::ErrorKind::PermissionDenied.into())
    }
}

impl Content {
    /// The directory below `root`, which is not touched yet.
    pub fn new(root: &Path) -> Self {
        let random = RandomState::new().hash_one(std::process::id());
        Self {
            shared: Arc::new(Shared {
                root: root.into(),
                calls: Calls::new("directory"),
                paused_until: Mutex::new(None),
                process: format!("shim-{}-{random:016x}", std::process::id()),
                staged: AtomicU64::new(0),
            }),
        }
    }

    /// Makes the directories that a plain directory lacks and a mount has, and removes what a
    /// shim that died left in `ingest/`.
    ///
    /// Leftovers are told by their age alone: several shims may share the directory, and a lock
    /// would have to be taken after the file exists, which leaves a moment to be swept in.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when the directory itself is missing: it may be a mount that is
    /// not there yet, and what was made in its place would be hidden by it later.
    pub async fn prepare(&self) -> io::Result<()> {
        self.call(NAME_DEADLINE, |root| {
            let [sha256, sha512] = Algorithm::ALL.map(Directory::BlobsOf);
            let (repositories, ingest) = (Directory::Repositories, Directory::Ingest);
            for directory in [Directory::Blobs, sha256, sha512, repositories, ingest] {
                make(root, directory)?;
            }
            leases::prepare(root);
            leftovers::sweep(&root.join(Entry::Directory(Directory::Ingest).path()))
        })
        .await
    }

    /// Asks whether the directory answers, and has what it should.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn probe(&self) -> io::Result<()> {
        let blobs = Entry::Directory(Directory::Blobs);
        self.call(NAME_DEADLINE, move |root| fs::metadata(root.join(blobs.path())).map(drop)).await
    }

    /// Opens a blob; `None` when there is none.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn open(&self, digest: &Digest) -> io::Result<Option<Blob>> {
        let entry = Entry::Blob(digest.clone());
        let opened = self.call(OPEN_DEADLINE, move |root| open(&root.join(entry.path())));
        found(opened.await)
    }

    /// The same for a blob that is whole on this machine: one that a mount would have to fetch from the
    /// shared storage is none.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn open_local(&self, digest: &Digest) -> io::Result<Option<Blob>> {
        let entry = Entry::Blob(digest.clone());
        let opened = self.call(NAME_DEADLINE, move |root| {
            let path = root.join(entry.path());
            if place::is_shared(&path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            open(&path)
        });
        found(opened.await)
    }

    /// Opens a blob that belongs to a repository, in one of these ways; `None` when there is none.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn open_member(
        &self,
        repository: &Repository,
        memberships: &[Membership],
        digest: &Digest,
    ) -> io::Result<Option<OpenedMember>> {
        let entry = Entry::Blob(digest.clone());
        let is_member = is_member(repository, memberships, digest);
        // One call, because each costs a change of thread.
        let opened = self.call(OPEN_DEADLINE, move |root| {
            if !is_member(root)? {
                return Err(io::ErrorKind::NotFound.into());
            }
            let path = root.join(entry.path());
            let was_shared = place::is_shared(&path);
            let blob = open(&path)?;
            let Some(size) =
                usize::try_from(blob.size_bytes).ok().filter(|size| *size <= SMALL_MAX_BYTES)
            else {
                return Ok(OpenedMember { opened: Opened::Large(blob), was_shared });
            };
            let mut content = vec![0; size];
            let read = blob.file.read_exact_at(&mut content, 0);
            read.inspect_err(|error| place::doubt(&blob.file, error))?;
            Ok(OpenedMember { opened: Opened::Small(content.into()), was_shared })
        });
        found(opened.await)
    }

    /// Reads a blob of at most `max_bytes`, and tells whether it had to be fetched from the shared
    /// storage; `None` when there is none.
    ///
    /// # Errors
    /// The storage is in trouble, or the blob is larger.
    pub async fn read_all(
        &self,
        digest: &Digest,
        max_bytes: u64,
    ) -> io::Result<Option<(Bytes, bool)>> {
        let entry = Entry::Blob(digest.clone());
        let read = self.call(OPEN_DEADLINE, move |root| {
            let path = root.join(entry.path());
            let was_shared = place::is_shared(&path);
            let file = File::open(path)?;
            let mut content = Vec::new();
            let read = (&file).take(max_bytes + 1).read_to_end(&mut content);
            read.inspect_err(|error| place::doubt(&file, error))?;
            if content.len() as u64 > max_bytes {
                return Err(io::Error::from(io::ErrorKind::FileTooLarge));
            }
            Ok((Bytes::from(content), was_shared))
        });
        found(read.await)
    }

    /// The digest that a link names; `None` when there is no link.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn link(&self, link: Link) -> io::Result<Option<Digest>> {
        let read =
            self.call(NAME_DEADLINE, move |root| read_link(&root.join(Entry::Link(link).path())));
        found(read.await)
    }

    /// Whether a blob belongs to a repository, in one of these ways.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn is_member(
        &self,
        repository: &Repository,
        memberships: &[Membership],
        digest: &Digest,
    ) -> io::Result<bool> {
        self.call(NAME_DEADLINE, is_member(repository, memberships, digest)).await
    }

    /// Creates an empty file in `ingest/`. Where its name tells the blob that it will be, a mount sends
    /// a large one on while it comes.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn stage(&self, sent_as: Option<&Digest>) -> io::Result<Staged> {
        let name = self.shared.staging_name();
        let id = match sent_as {
            Some(digest) => StagingId::of_blob(&name, digest),
            None => name.parse(),
        };
        let id = id.map_err(io::Error::other)?;
        self.call(NAME_DEADLINE, move |root| {
            let path = root.join(Entry::Staged(id.clone()).path());
            let writer = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
            let file = Arc::new(File::open(path)?);
            Ok(Staged { file, writer: Mutex::new(Some(Arc::new(writer))), id })
        })
        .await
    }

    /// Publishes a staged file as a blob. Its content must have been checked: a mount checks it
    /// again, a plain directory does not. It is not staged any more, however this ends.
    ///
    /// # Errors
    /// The storage is in trouble, or the mount found other content (`EBADMSG`).
    pub async fn publish(
        &self,
        staged: &Staged,
        size_bytes: u64,
        digest: &Digest,
    ) -> io::Result<()> {
        let writer = lock(&staged.writer).take().and_then(Arc::into_inner);
        let from = Entry::Staged(staged.id.clone()).path();
        let to = Entry::Blob(digest.clone()).path();
        let deadline =
            PIECE_DEADLINE + Duration::from_secs(size_bytes / PUBLISH_MIN_BYTES_PER_SECOND);
        let published = self.call(deadline, move |root| {
            // Nobody else has it: every write has been waited for, unless one hangs.
            writer.ok_or(io::ErrorKind::ResourceBusy)?.sync_all()?;
            rename(&root.join(from), &root.join(to))
        });
        let published = published.await;
        if published.is_err() {
            self.discard(staged).await;
        }
        published
    }

    /// Removes a staged file that will not be published.
    pub async fn discard(&self, staged: &Staged) {
        let path = Entry::Staged(staged.id.clone()).path();
        let removed = self.call(NAME_DEADLINE, move |root| fs::remove_file(root.join(path)));
        if let Err(error) = removed.await {
            tracing::debug!(%error, "a staged file stays behind until a shim starts");
        }
    }

    /// Publishes small content as a blob. It must have been checked.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn publish_all(&self, content: Bytes, digest: &Digest) -> io::Result<()> {
        let staged = self.stage(Some(digest)).await?;
        let size_bytes = content.len() as u64;
        let writer = staged.writer()?;
        if let Err(error) = self.calls().write(writer, 0, content).await {
            self.discard(&staged).await;
            return Err(error);
        }
        self.publish(&staged, size_bytes, digest).await
    }

    /// Makes a link name a blob, which must be published already.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn publish_link(&self, link: Link, digest: &Digest) -> io::Result<()> {
        let target = link.target(digest);
        let id: StagingId = self.shared.staging_name().parse().map_err(io::Error::other)?;
        self.call(PIECE_DEADLINE, move |root| {
            let path = root.join(Entry::Link(link).path());
            let staged = root.join(Entry::Staged(id).path());
            // First of all, so that nothing is made in the place of a mount that is gone.
            symlink(target, &staged)?;
            let publish = || {
                fs::create_dir_all(parent(&path)?)?;
                rename(&staged, &path)
            };
            publish().inspect_err(|_| {
                // What stays is swept one day; the first error is the one to tell.
                let _ = fs::remove_file(&staged);
            })
        })
        .await
    }

    /// The calls to the storage, to read and write open files with. They are made even while names
    /// are not asked for: an open file may outlive the mount's daemon.
    pub fn calls(&self) -> &Calls {
        &self.shared.calls
    }

    /// Makes a call that names something, unless the directory is known to hang.
    async fn call<T: Send + 'static>(
        &self,
        deadline: Duration,
        call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if lock(&self.shared.paused_until).is_some_and(|until| Instant::now() < until) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let shared = Arc::clone(&self.shared);
        let result = self.calls().run(deadline, move || call(&shared.root)).await;
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            *lock(&self.shared.paused_until) = Some(Instant::now() + PAUSE);
        }
        result
    }
}

impl Shared {
    fn staging_name(&self) -> String {
        format!("{}-{}", self.process, self.staged.fetch_add(1, Ordering::Relaxed))
    }
}

/// Makes a directory of the contract, unless it is there.
fn make(root: &Path, directory: Directory) -> io::Result<()> {
    match fs::create_dir(root.join(Entry::Directory(directory).path())) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Renames, and makes the new name last: on a plain directory it is the directory's own `fsync`
/// that does, on a mount `rename` has done so already.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    File::open(parent(to)?)?.sync_all()
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn open(path: &Path) -> io::Result<Blob> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok(Blob { file: Arc::new(file), size_bytes: metadata.len(), inode: metadata.ino() })
}

/// The digest that the link at `path` names.
fn read_link(path: &Path) -> io::Result<Digest> {
    Link::digest_of_target(&fs::read_link(path)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What tells whether a blob belongs to a repository, in one of these ways.
fn is_member(
    repository: &Repository,
    memberships: &[Membership],
    digest: &Digest,
) -> impl Fn(&Path) -> io::Result<bool> + Send + use<> {
    let of = |way: &Membership| Link::Member(repository.clone(), *way, digest.clone());
    let links: Vec<_> = memberships.iter().map(of).map(|link| Entry::Link(link).path()).collect();
    let digest = digest.clone();
    move |root| {
        for link in &links {
            if found(read_link(&root.join(link)))?.as_ref() == Some(&digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Only a missing name is a miss.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// None of these locks is held where code can panic half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a missing name is a miss.
    #[tokio::test]
    async fn what_cannot_be_read_is_trouble_and_no_miss() {
        let root = tempfile::tempdir().unwrap();
        let content = Content::new(root.path());
        content.prepare().await.unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let blob = root.path().join(Entry::Blob(digest.clone()).path());
        assert!(content.open(&digest).await.unwrap().is_none());
        symlink(&blob, &blob).unwrap();
        assert!(content.open(&digest).await.is_err());
    }
}

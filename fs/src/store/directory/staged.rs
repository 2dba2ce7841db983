//! Files that have no name yet in the layout.

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, ErrorKind},
    os::{
        fd::IntoRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use object_store::PutPayload;

use super::{super::leftovers::age, direct, names::Root};

/// How often a name is tried to be given while another node removes its directory, empty as it is.
const ATTEMPTS_MAX: usize = 5;

/// What is done with a name that exists when something else is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// It keeps what it has, which is the same: blobs are immutable.
    Keep,
    /// It is taken over, at once and as a whole.
    Replace,
    /// It keeps what it has, and that is an error.
    Fail,
}

/// A file in the staging directory. Dropped, it is removed from there.
#[derive(Debug)]
pub struct Staged {
    root: Arc<Root>,
    path: PathBuf,
    file: Option<File>,
    /// The same file, for writes past the page cache.
    direct: OnceLock<Option<File>>,
    /// NFS reports an error only once, and what was written before it may be lost as well.
    has_failed: AtomicBool,
}

impl Staged {
    /// A new, empty file.
    pub fn create(root: &Arc<Root>) -> io::Result<Self> {
        /// Tells this process from those on other nodes.
        static PROCESS: LazyLock<u64> =
            LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = staging(root).join(format!("{:016x}-{counter}", *PROCESS));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let (root, file, direct) = (Arc::clone(root), Some(file), OnceLock::new());
        Ok(Self { root, path, file, direct, has_failed: false.into() })
    }

    /// Writes a small file.
    pub fn write(&self, content: &PutPayload) -> io::Result<()> {
        self.write_at(content, 0, None)
    }

    /// Writes a part of a large file, past the page cache where that can be.
    pub fn write_part(&self, content: &PutPayload, offset: u64) -> io::Result<()> {
        let direct = self.direct.get_or_init(|| direct::open(&self.path));
        self.write_at(content, offset, direct.as_ref())
    }

    fn write_at(
        &self,
        content: &PutPayload,
        mut offset: u64,
        direct: Option<&File>,
    ) -> io::Result<()> {
        let file = self.file.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        for piece in content {
            let written = direct.map_or(Ok(0), |direct| direct::write(direct, piece, offset));
            let written =
                written.and_then(|size| file.write_all_at(&piece[size..], offset + size as u64));
            written.inspect_err(|_| self.has_failed.store(true, Ordering::Relaxed))?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Gives the content its name, durably.
    pub fn publish(mut self, target: &FilePath, if_exists: IfExists) -> io::Result<()> {
        let root = Arc::clone(&self.root);
        self.finish()?;
        let named = self.name(target, if_exists);
        // The server asks every node that has opened the blob by now before it removes our name
        // for it, and waits for a lease time for one that died.
        tokio::task::spawn_blocking(move || drop(self));
        named?;
        root.settle(target)
    }

    /// Makes sure that all that was written is there: a full disk may be reported by any of
    /// these, and only by one.
    fn finish(&mut self) -> io::Result<()> {
        if self.has_failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("a write failed before"));
        }
        let file = self.file.take().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        file.sync_all()?;
        close(file)
    }

    fn name(&self, target: &FilePath, if_exists: IfExists) -> io::Result<()> {
        let parent = target.parent().ok_or(ErrorKind::InvalidInput)?;
        let mut attempts = 1;
        loop {
            self.root.make_directories(parent)?;
            let named = match if_exists {
                IfExists::Replace => fs::rename(&self.path, target),
                IfExists::Keep | IfExists::Fail => fs::hard_link(&self.path, target),
            };
            match named {
                Err(e) if e.kind() == ErrorKind::NotFound && attempts < ATTEMPTS_MAX => {}
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    let is_fine = if_exists == IfExists::Keep || self.is_named(target);
                    return if is_fine { Ok(()) } else { Err(e) };
                }
                outcome => return outcome,
            }
            attempts += 1;
        }
    }

    /// Whether `target` is this file. The answer of an NFS server may have been lost, and then its
    /// client has asked a second time, and was told that the name exists.
    fn is_named(&self, target: &FilePath) -> bool {
        let number =
            |path: &FilePath| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        matches!((number(&self.path), number(target)), (Ok(ours), Ok(theirs)) if ours == theirs)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // An open file would be kept by NFS, under another name.
        drop(self.file.take());
        // After a rename there is nothing to remove; a failure leaves work for the sweep.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where files are staged: outside of what a registry looks at.
pub fn staging(root: &Root) -> PathBuf {
    root.path().join("docker/larder/staging")
}

/// Makes sure that files can be staged, and be given names as they will be.
///
/// # Errors
/// What an operator has to know, as a sentence.
pub fn try_out(root: &Arc<Root>) -> Result<(), String> {
    let explain = |e: io::Error| {
        let hint = match e.kind() {
            ErrorKind::PermissionDenied => {
                "; it has to belong to the user who runs larder-fs, who cannot be root on an NFS \
                 export with root_squash"
            }
            _ => "",
        };
        format!("cannot be written: {e}{hint}")
    };
    root.make_directories(&staging(root)).map_err(explain)?;
    let file = Staged::create(root).map_err(explain)?;
    let link = file.path.with_extension("link");
    fs::hard_link(&file.path, &link)
        .map_err(|e| format!("lacks hard links, by which blobs are published: {e}"))?;
    fs::remove_file(link).map_err(explain)
}

/// Removes what nodes that crashed have left, and tells how many files that were.
pub fn sweep_leftovers(root: &Root, older_than: Duration) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(staging(root))? {
        let entry = entry?;
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|modified| age(modified.into()) >= older_than) {
            match fs::remove_file(entry.path()) {
                Ok(()) => removed += 1,
                // Another node sweeps, too.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(removed)
}

/// Closes a file and reports what close(2) says, which `File` does not.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is owned, open, and given up by into_raw_fd.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! The calls on the local disk that may fail, each with a sentence for its error.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    error::{Error, Result},
    store::BlobMeta,
};

/// What fstat(2) says of a file at one moment: enough to notice that its content may have changed.
/// Every write, truncation and rename sets the change time, and no call can set it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub size_bytes: u64,
    /// 0 is no file's: then there is nothing to compare with.
    pub inode: u64,
    pub modified_ns: i64,
    pub changed_ns: i64,
}

impl Fingerprint {
    /// Whether this is the same file, with the same content as far as can be told after a rename,
    /// which sets the change time.
    pub fn is_renamed(&self, before: &Self) -> bool {
        Self { changed_ns: before.changed_ns, ..*self } == *before
    }

    /// What is told of a blob whose file looks like this.
    pub fn meta(&self) -> BlobMeta {
        let modified = UNIX_EPOCH + Duration::from_nanos(self.modified_ns.try_into().unwrap_or(0));
        BlobMeta { size_bytes: self.size_bytes, modified }
    }
}

impl From<&fs::Metadata> for Fingerprint {
    fn from(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let nanoseconds = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            size_bytes: metadata.len(),
            inode: metadata.ino(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Opens a file of the cache for reading. What is no regular file does not get us to wait, or
/// lead us elsewhere.
pub fn open(path: &Path) -> Result<File> {
    run("open", path, || {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(ErrorKind::InvalidData.into()) }
    })
}

pub fn fingerprint(file: &File, path: &Path) -> Result<Fingerprint> {
    run("stat", path, || file.metadata()).map(|metadata| Fingerprint::from(&metadata))
}

/// Runs a call on `path`.
///
/// # Errors
/// [`Error::Disk`] that names the operation and the path.
pub fn run<T>(operation: &str, path: &Path, call: impl FnOnce() -> io::Result<T>) -> Result<T> {
    #[cfg(test)]
    let call = || faults::around(call);
    call().map_err(|e| Error::disk(format!("{operation} {}", path.display()), e))
}

pub fn rename(from: &Path, to: &Path) -> Result<()> {
    run("rename", from, || fs::rename(from, to))
}

/// Removes a file. One that is not there is removed.
pub fn remove(path: &Path) -> Result<()> {
    run("remove", path, || match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    })
}

pub fn read_at(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize> {
    run("read", path, || {
        loop {
            match file.read_at(buffer, offset) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    })
}

/// Whether the file is not there, in contrast to a disk that fails.
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Disk { source, .. } if source.kind() == ErrorKind::NotFound)
}

/// Whether what is there cannot be a blob: no regular file, or one that the disk cannot read.
pub fn is_damage(error: &Error) -> bool {
    let Error::Disk { source, .. } = error else { return false };
    let is_unreadable = matches!(source.raw_os_error(), Some(libc::EIO | libc::ELOOP));
    is_unreadable || source.kind() == ErrorKind::InvalidData
}

/// Whether the filesystem cannot do what was asked of it.
pub fn is_unsupported(error: &Error) -> bool {
    let Error::Disk { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// A disk that fails at the n-th call of a thread.
#[cfg(test)]
pub mod faults {
    use std::{cell::Cell, io};

    /// How it fails.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Mode {
        /// One call fails.
        Once,
        /// One call fails, after it has done what it was to do.
        Done,
        /// This call fails, and all that follow.
        Lasting,
    }

    #[derive(Clone, Copy)]
    struct Plan {
        calls_left: u64,
        errno: i32,
        mode: Mode,
        has_failed: bool,
    }

    thread_local! {
        static PLAN: Cell<Option<Plan>> = const { Cell::new(None) };
    }

    /// Has the call behind the next `calls` fail.
    pub fn plan(calls: u64, errno: i32, mode: Mode) {
        PLAN.set(Some(Plan { calls_left: calls, errno, mode, has_failed: false }));
    }

    /// Ends the plan, and tells whether a call has failed.
    pub fn end() -> bool {
        PLAN.take().is_some_and(|plan| plan.has_failed)
    }

    pub fn around<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(plan) = PLAN.get() else { return call() };
        if plan.has_failed && plan.mode != Mode::Lasting {
            return call();
        }
        if let Some(calls_left) = plan.calls_left.checked_sub(1) {
            PLAN.set(Some(Plan { calls_left, ..plan }));
            return call();
        }
        PLAN.set(Some(Plan { has_failed: true, ..plan }));
        if plan.mode == Mode::Done {
            call()?;
        }
        Err(io::Error::from_raw_os_error(plan.errno))
    }
}

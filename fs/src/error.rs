//! What can go wrong, and the errno that the kernel is told for it.

use std::{io, sync::Arc};

use larder_layout::Mismatch;

/// The outcome of an operation on the filesystem.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. Cheap to clone: several readers may wait for one fetch.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The name does not exist. The only error that a reader may take for a miss.
    #[error("no such name")]
    NotFound,
    /// Content does not hash to the name it was to be published under.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The shared storage holds other content under a digest than the one that hashes to it.
    #[error("the shared storage holds a damaged blob, which is not served: {0}")]
    Damaged(Mismatch),
    /// The shared storage failed after the retry budget.
    #[error("shared storage: {operation}: {source}")]
    Storage {
        /// What was tried, on which object.
        operation: String,
        /// What the storage said.
        source: Arc<object_store::Error>,
    },
    /// The shared storage has failed again and again, and is not asked for a moment.
    #[error("the shared storage is down")]
    Down,
    /// The local disk of the cache failed.
    #[error("local cache: {operation}: {source}")]
    Disk {
        /// What was tried, on which file.
        operation: String,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The operation's deadline passed.
    #[error("the deadline passed")]
    TimedOut,
    /// What is published cannot be changed or removed, and nothing is created outside `ingest/`.
    #[error("published content is read-only: stage in ingest/ and publish by rename")]
    ReadOnly,
    /// The call makes no sense for this name.
    #[error("{0}")]
    Invalid(&'static str),
    /// The name exists already.
    #[error("the name exists already")]
    Exists,
    /// A file where a directory is needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory where a file is needed.
    #[error("is a directory")]
    IsDirectory,
    /// The kernel named an inode or handle that is not open.
    #[error("not an open handle")]
    BadHandle,
}

impl Error {
    /// A failure of the shared storage; a missing object is [`Error::NotFound`].
    pub fn storage(operation: impl Into<String>, source: object_store::Error) -> Self {
        match source {
            object_store::Error::NotFound { .. } => Self::NotFound,
            source => Self::Storage { operation: operation.into(), source: Arc::new(source) },
        }
    }

    /// A failure of the local disk.
    pub fn disk(operation: impl Into<String>, source: io::Error) -> Self {
        Self::Disk { operation: operation.into(), source: Arc::new(source) }
    }

    /// The errno of the contract.
    pub fn errno(&self) -> i32 {
        match self {
            // What is damaged is not there: the reader gets a sound copy elsewhere and publishes it.
            Self::NotFound | Self::Damaged(_) => libc::ENOENT,
            Self::Mismatch(_) => libc::EBADMSG,
            Self::Storage { .. } | Self::Down => libc::EIO,
            Self::Disk { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => libc::ENOSPC,
                _ => libc::EIO,
            },
            Self::TimedOut => libc::ETIMEDOUT,
            Self::ReadOnly => libc::EPERM,
            Self::Invalid(_) => libc::EINVAL,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::BadHandle => libc::EBADF,
        }
    }
}

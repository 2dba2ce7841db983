//! What can go wrong, and the errno that the kernel is told for it.

use std::{io, sync::Arc};

use larder_layout::{Digest, Mismatch};

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
    /// The shared storage takes nothing more in. It can still be read.
    #[error("the shared storage is full: {0}")]
    Full(String),
    /// The local disk of the cache failed.
    #[error("local cache: {operation}: {source}")]
    Disk {
        /// What was tried, on which file.
        operation: String,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// A layer that cannot be unpacked.
    #[error("layer {digest} cannot be unpacked: {reason}")]
    Layer {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// A blob that was open can be read no further.
    #[error("blob {digest} cannot be read any further: {reason}")]
    Lost {
        /// The blob.
        digest: Digest,
        /// What went wrong with it, in the storage.
        reason: String,
    },
    /// Who waited for the operation was interrupted by a signal.
    #[error("interrupted")]
    Interrupted,
    /// The blob was replaced by a sound copy, which is another inode.
    #[error("the file is to be looked up anew")]
    Stale,
    /// The operation's deadline passed.
    #[error("the deadline passed")]
    TimedOut,
    /// What is published cannot be changed or removed, and nothing is created outside `ingest/`.
    #[error("published content is read-only: stage in ingest/ and publish by rename")]
    ReadOnly,
    /// No name is this long.
    #[error("the name is too long")]
    NameTooLong,
    /// There is no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
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
            source if is_full(&source) => Self::Full(operation.into()),
            source => Self::Storage { operation: operation.into(), source: Arc::new(source) },
        }
    }

    /// A blob that ends before its end.
    pub fn short(digest: &Digest) -> Self {
        let source = "the answer ended before its end".into();
        let source = object_store::Error::Generic { store: "blob", source };
        Self::storage(format!("read {digest}"), source)
    }

    /// What a reader of an open blob is told: to it nothing is a miss any more.
    pub fn lost(digest: &Digest, error: &Self) -> Self {
        match error {
            Self::TimedOut => Self::TimedOut,
            error => Self::Lost { digest: digest.clone(), reason: error.to_string() },
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
            Self::Storage { .. } | Self::Down | Self::Lost { .. } | Self::Layer { .. } => libc::EIO,
            Self::Full(_) => libc::ENOSPC,
            Self::Disk { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => libc::ENOSPC,
                _ => libc::EIO,
            },
            Self::TimedOut => libc::ETIMEDOUT,
            Self::Interrupted => libc::EINTR,
            Self::Stale => libc::ESTALE,
            Self::ReadOnly => libc::EPERM,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::NoAttribute => libc::ENODATA,
            Self::Invalid(_) => libc::EINVAL,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::BadHandle => libc::EBADF,
        }
    }
}

/// Whether a disk with the storage on it is full, or a quota used up.
fn is_full(error: &object_store::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(libc::ENOSPC | libc::EDQUOT) = errno {
            return true;
        }
        cause = error.source();
    }
    false
}

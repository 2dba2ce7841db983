//! What stat(2) tells of each thing there is.

use std::time::{Duration, SystemTime};

use crate::{
    error::{Error, Result},
    ingest::StagedFile,
    store::BlobMeta,
};

/// Blobs never change and directories of the contract never go.
pub const IMMUTABLE: Duration = Duration::from_hours(24);
/// A repository may appear, but seldom goes.
pub const REPOSITORY: Duration = Duration::from_secs(60);
/// What another node, or a write that we do not see, may change the next millisecond.
pub const CHANGING: Duration = Duration::ZERO;

/// What stat(2) tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode's number.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Its length.
    pub size_bytes: u64,
    /// When it was published.
    pub modified: SystemTime,
    /// How long the kernel may believe this, and that the name stands for this inode.
    pub validity: Duration,
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file that can be read.
    Published,
    /// A file in `ingest/`, that can be written.
    Staged,
    /// A symbolic link.
    Symlink,
}

/// Those of a blob.
pub fn blob(number: u64, meta: BlobMeta) -> Attributes {
    let BlobMeta { size_bytes, modified } = meta;
    Attributes { number, kind: Kind::Published, size_bytes, modified, validity: IMMUTABLE }
}

/// Those of a file in `ingest/`.
pub fn staged_file(number: u64, staged: &StagedFile) -> Result<Attributes> {
    let metadata = staged.file.reader().metadata().map_err(|e| Error::disk("stat an ingest", e))?;
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let size_bytes = metadata.len();
    Ok(Attributes { number, kind: Kind::Staged, size_bytes, modified, validity: CHANGING })
}

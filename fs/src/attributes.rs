//! What stat(2) tells of each thing there is.

use std::time::{Duration, SystemTime};

use crate::{
    error::{Error, Result},
    ingest::StagedFile,
    layers::tree::{Content, LayerFile, Metadata},
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
    /// Anything inside a layer.
    InLayer(InLayer),
}

/// What the archive of a layer says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InLayer {
    /// Its type.
    pub file_type: FileType,
    /// Permissions, and the bits for set-user-ID, set-group-ID and sticky. A mount honours none of them.
    pub mode: u16,
    /// The number of its owner.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
    /// How many names it has.
    pub links: u32,
}

/// The types of files that a layer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A device, by its number. It cannot be opened.
    CharDevice(u32),
    /// The same.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
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

/// Those of a file in a layer.
pub fn in_layer(number: u64, file: &LayerFile) -> Attributes {
    let size_bytes = match &file.content {
        Content::Regular { size_bytes, .. } => *size_bytes,
        Content::Symlink(target) => target.as_os_str().len() as u64,
        _ => 0,
    };
    let (kind, modified) = (kind_in_layer(file), file.metadata.modified);
    Attributes { number, kind, size_bytes, modified, validity: IMMUTABLE }
}

/// What a file in a layer is.
pub fn kind_in_layer(file: &LayerFile) -> Kind {
    let file_type = match &file.content {
        Content::Directory(_) => FileType::Directory,
        Content::Regular { .. } => FileType::Regular,
        Content::Symlink(_) => FileType::Symlink,
        Content::CharDevice(device) => FileType::CharDevice(*device),
        Content::BlockDevice(device) => FileType::BlockDevice(*device),
        Content::Fifo => FileType::Fifo,
    };
    let Metadata { mode, uid, gid, links, .. } = file.metadata;
    Kind::InLayer(InLayer { file_type, mode, uid, gid, links })
}

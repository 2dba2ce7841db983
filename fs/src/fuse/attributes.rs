//! What stat(2) tells, in the form of the kernel.

use fuser::{FileAttr, FileType, INodeNo};

use crate::filesystem::{Attributes, Kind};

pub fn file_attr(attributes: &Attributes) -> FileAttr {
    let (kind, perm) = match attributes.kind {
        Kind::Directory => (FileType::Directory, 0o755),
        Kind::Published => (FileType::RegularFile, 0o444),
        Kind::Staged => (FileType::RegularFile, 0o644),
        Kind::Symlink => (FileType::Symlink, 0o777),
    };
    FileAttr {
        ino: INodeNo(attributes.number),
        size: attributes.size_bytes,
        blocks: attributes.size_bytes.div_ceil(512),
        atime: attributes.modified,
        mtime: attributes.modified,
        ctime: attributes.modified,
        crtime: attributes.modified,
        kind,
        perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        rdev: 0,
        blksize: 128 << 10,
        flags: 0,
    }
}

pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Published | Kind::Staged => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

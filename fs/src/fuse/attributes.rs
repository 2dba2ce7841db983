//! What stat(2) tells, in the form of the kernel.

use fuser::{FileAttr, FileType, INodeNo};

use crate::{
    attributes::{self, InLayer},
    filesystem::{Attributes, Kind},
};

pub fn file_attr(attributes: &Attributes) -> FileAttr {
    let (own_uid, own_gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let (perm, nlink, uid, gid, rdev) = match attributes.kind {
        Kind::Directory => (0o755, 2, own_uid, own_gid, 0),
        Kind::Published => (0o444, 1, own_uid, own_gid, 0),
        Kind::Staged => (0o644, 1, own_uid, own_gid, 0),
        Kind::Symlink => (0o777, 1, own_uid, own_gid, 0),
        Kind::InLayer(file) => (file.mode, file.links, file.uid, file.gid, device(&file)),
    };
    FileAttr {
        ino: INodeNo(attributes.number),
        size: attributes.size_bytes,
        blocks: attributes.size_bytes.div_ceil(512),
        atime: attributes.modified,
        mtime: attributes.modified,
        ctime: attributes.modified,
        crtime: attributes.modified,
        kind: file_type(attributes.kind),
        perm,
        nlink,
        uid,
        gid,
        rdev,
        blksize: 128 << 10,
        flags: 0,
    }
}

pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Published | Kind::Staged => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::InLayer(file) => type_in_layer(&file),
    }
}

fn type_in_layer(file: &InLayer) -> FileType {
    match file.file_type {
        attributes::FileType::Directory => FileType::Directory,
        attributes::FileType::Regular => FileType::RegularFile,
        attributes::FileType::Symlink => FileType::Symlink,
        attributes::FileType::CharDevice(_) => FileType::CharDevice,
        attributes::FileType::BlockDevice(_) => FileType::BlockDevice,
        attributes::FileType::Fifo => FileType::NamedPipe,
    }
}

fn device(file: &InLayer) -> u32 {
    match file.file_type {
        attributes::FileType::CharDevice(number) | attributes::FileType::BlockDevice(number) => {
            number
        }
        _ => 0,
    }
}

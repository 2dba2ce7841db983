//! What stat(2) tells, in the form of the kernel.

use fuser::{FileAttr, FileType, INodeNo};

use crate::{
    attributes::{self, InLayer},
    filesystem::{Attributes, Kind},
};

pub fn file_attr(attributes: &Attributes) -> FileAttr {
    let (kind, perm) = match attributes.kind {
        Kind::Directory => (FileType::Directory, 0o755),
        Kind::Published => (FileType::RegularFile, 0o444),
        Kind::Staged => (FileType::RegularFile, 0o644),
        Kind::Symlink => (FileType::Symlink, 0o777),
        Kind::InLayer(file) => (type_in_layer(&file), file.mode),
    };
    let (own_uid, own_gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let (uid, gid, links, rdev) = match attributes.kind {
        Kind::InLayer(file) => (file.uid, file.gid, file.links, device(&file)),
        Kind::Directory => (own_uid, own_gid, 2, 0),
        _ => (own_uid, own_gid, 1, 0),
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
        nlink: links,
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

//! fs-verity: the kernel keeps a file from being changed, and compares each page of it that it reads
//! from the disk with a Merkle tree. What does not match is an error for whoever reads, and so are
//! bits that the disk has lost, or that somebody has written past the filesystem.
//!
//! <https://docs.kernel.org/filesystems/fsverity.html>

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use super::{disk, staging::StagingFile};
use crate::error::{Error, Result};

/// The page size of most machines, which older kernels insist on.
const BLOCK_BYTES: u32 = 4096;
/// SHA-256: FS_VERITY_HASH_ALG_SHA256 of linux/fsverity.h
const SHA256: u32 = 1;
/// How many hashes are in a block of the tree.
const HASHES_PER_BLOCK: u64 = BLOCK_BYTES as u64 / 32;

/// `struct fsverity_enable_arg` of linux/fsverity.h: no salt, and no signature.
#[repr(C)]
struct Arguments {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    rest: [u32; 29],
}

nix::ioctl_write_ptr!(fs_ioc_enable_verity, b'f', 133, Arguments);

/// Whether the filesystem of the cache has it, said once in the log. What is tried is an empty file
/// of this name.
pub fn is_supported(staged: &Path) -> bool {
    let tried = StagingFile::create(staged).and_then(|file| {
        file.end_writing();
        let enabled = enable(file.reader(), staged);
        disk::remove(staged)?;
        enabled
    });
    match &tried {
        Ok(()) => {
            tracing::info!("fs-verity guards the files of the cache that come in from now on")
        }
        Err(e) if is_missing(e) => {
            tracing::debug!("the filesystem of the cache has no fs-verity, which is not needed");
        }
        Err(e) => tracing::warn!("no fs-verity for the cache until the next start: {e}"),
    }
    tried.is_ok()
}

/// Makes a file immutable that nobody has open for writing, and has what is read of it checked from
/// now on. It writes the file to the disk, and sets its modification time on some filesystems.
///
/// # Errors
/// [`Error::Disk`]; the file is then as it was.
pub fn enable(file: &File, path: &Path) -> Result<()> {
    let arguments =
        Arguments { version: 1, hash_algorithm: SHA256, block_size: BLOCK_BYTES, rest: [0; 29] };
    disk::run("enable fs-verity for", path, || {
        // SAFETY: the descriptor is open, and the kernel reads the structure that it expects.
        let enabled =
            unsafe { fs_ioc_enable_verity(file.as_fd().as_raw_fd(), &raw const arguments) };
        Ok(enabled.map(drop)?)
    })
}

/// What the tree of a file takes of the disk, with what else the filesystem notes beside it.
pub fn tree_bytes(size_bytes: u64) -> u64 {
    let mut blocks = 1;
    let mut level = size_bytes.div_ceil(BLOCK_BYTES.into());
    while level > 1 {
        level = level.div_ceil(HASHES_PER_BLOCK);
        blocks += level;
    }
    blocks * u64::from(BLOCK_BYTES)
}

/// Whether the filesystem, or the kernel, cannot do it at all.
fn is_missing(error: &Error) -> bool {
    let Error::Disk { source, .. } = error else { return false };
    let errno = source.raw_os_error();
    matches!(errno, Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ext4 takes, in blocks, as st_blocks tells.
    #[test]
    fn the_tree_takes_what_ext4_takes_for_it() {
        let taken = [(0, 1), (100, 1), (5000, 2), (1 << 20, 4), (20 << 20, 42)];
        for (size_bytes, blocks) in taken {
            assert_eq!(tree_bytes(size_bytes), blocks * 4096, "{size_bytes} bytes");
        }
    }
}

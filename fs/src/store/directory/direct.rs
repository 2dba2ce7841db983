//! Writes past the page cache (`O_DIRECT`, open(2)).
//!
//! The node has a large blob in its own cache: in the page cache it would be a second time, at the
//! price of a copy, and of memory that is taken from what clients read.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use super::super::BLOCK_BYTES;

/// A second descriptor of a file, for such writes. `None` where there are none.
pub fn open(path: &Path) -> Option<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

/// Writes whole blocks from the front of `piece`, and tells how many bytes these are. The rest is to
/// be written another way: the last block of a file seldom is whole, and what is not aligned in
/// memory or in the file, or enough for this filesystem, it does not take.
pub fn write(file: &File, piece: &[u8], offset: u64) -> io::Result<usize> {
    let is_aligned = |at: u64| at.is_multiple_of(BLOCK_BYTES as u64);
    let mut written = 0;
    if !is_aligned(piece.as_ptr() as u64) || !is_aligned(offset) {
        return Ok(written);
    }
    let blocks = &piece[..piece.len() - piece.len() % BLOCK_BYTES];
    while written < blocks.len() && is_aligned(written as u64) {
        match file.write_at(&blocks[written..], offset + written as u64) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(written)
}

//! Where a mount has a blob: in the local cache, or in the shared storage alone. And how it is told
//! that the first is in vain.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use rustix::fs::getxattr;

/// The attribute of a blob by which `larder-fs` tells it.
const WHERE: &str = "user.larder.where";
const SHARED: &[u8] = b"shared";

/// Whether opening a blob has to fetch it first. A plain directory has all it has.
pub(super) fn is_shared(path: &Path) -> bool {
    let mut place = [0; SHARED.len()];
    matches!(getxattr(path, WHERE, &mut place), Ok(size) if place[..size] == *SHARED)
}

/// Where a file cannot be read because of what is on the disk, has a mount hash it, and put it away
/// if it is damaged: the next to open the blob gets it from the shared storage.
pub fn doubt(file: &File, error: &io::Error) {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // It is not the disk that cannot be read, of a blob that is on its way.
    if error.raw_os_error() == Some(libc::EIO) && !is_shared(path.as_ref()) {
        // Whether it can be opened tells nobody anything: this is for those who come later.
        let _ = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    }
}

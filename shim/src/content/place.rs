//! Where a mount has a blob: in the local cache, or in the shared storage alone.

use std::path::Path;

use rustix::fs::getxattr;

/// The attribute of a blob by which `larder-fs` tells it.
const WHERE: &str = "user.larder.where";
const SHARED: &[u8] = b"shared";

/// Whether opening a blob has to fetch it first. A plain directory has all it has.
pub(super) fn is_shared(path: &Path) -> bool {
    let mut place = [0; SHARED.len()];
    matches!(getxattr(path, WHERE, &mut place), Ok(size) if place[..size] == *SHARED)
}

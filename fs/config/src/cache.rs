//! `cache:`, which Distribution has not: the local read cache of `larder-fs`.

use std::path::PathBuf;

/// `cache:`
#[derive(Debug)]
pub struct Cache {
    /// `cache.directory`, `/var/cache/larder` when absent: on a local disk, for one `larder-fs` alone.
    pub directory: PathBuf,
    /// `cache.size`, 20% when absent.
    pub size: CacheSize,
}

/// How much the local read cache may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// `cache.size: 50GiB`, or a bare number of bytes.
    Bytes(u64),
    /// `cache.size: 20%` of the filesystem that `cache.directory` is on; 1 to 100.
    Percent(u8),
}

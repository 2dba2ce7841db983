//! Small blobs that were open lately are kept open, registered with the kernel: opening one again
//! takes no call on the disk, and is answered by the thread that read the request.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use super::passthrough::Mode;
use crate::cache::CachedBlob;

/// Larger blobs are read for longer than they are opened.
const BLOB_MAX_BYTES: u64 = 64 << 10;
/// How many are kept open: with [`BLOB_MAX_BYTES`], at most 256 MiB that the cache cannot evict.
const BLOBS_MAX: usize = 4096;
/// And at most this part of what the cache holds.
const CACHE_PART: u64 = 16;

/// The blobs that are kept open, by inode.
pub struct Warm {
    blobs: LruCache<u64, WarmBlob>,
}

/// A blob that is kept open.
#[derive(Clone)]
pub struct WarmBlob {
    pub blob: Arc<CachedBlob>,
    pub mode: Mode,
}

impl Warm {
    /// None yet, for a cache of this size; `None` when it is too small to keep any.
    pub fn new(cache_bytes: u64) -> Option<Self> {
        let max = usize::try_from(cache_bytes / CACHE_PART / BLOB_MAX_BYTES).unwrap_or(usize::MAX);
        let max = NonZeroUsize::new(max.min(BLOBS_MAX))?;
        Some(Self { blobs: LruCache::new(max) })
    }

    /// The blob of an inode, if it is kept open and its file is as it was. One that is not comes
    /// back as the error, to be closed.
    pub fn get(&mut self, number: u64) -> Result<Option<WarmBlob>, WarmBlob> {
        match self.blobs.get(&number) {
            Some(warm) if warm.blob.reopen() => Ok(Some(warm.clone())),
            Some(_) => self.blobs.pop(&number).map_or(Ok(None), Err),
            None => Ok(None),
        }
    }

    /// Keeps a blob open that was just opened, if it is worth it. What has to be closed for it
    /// comes back.
    pub fn keep(&mut self, number: u64, warm: WarmBlob) -> Option<(u64, WarmBlob)> {
        self.blobs.push(number, warm)
    }

    /// Whether a blob that was just opened is to be kept.
    pub fn wants(&self, number: u64, blob: &CachedBlob) -> bool {
        blob.size_bytes() <= BLOB_MAX_BYTES && !self.blobs.contains(&number)
    }

    /// The kernel has forgotten the inode.
    pub fn forget(&mut self, number: u64) -> Option<WarmBlob> {
        self.blobs.pop(&number)
    }
}

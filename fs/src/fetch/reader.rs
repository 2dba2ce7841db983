//! One reader of a blob that is on its way.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use larder_config::Fill;

use super::{BLOCK_BYTES, RUN_BLOCKS, growing::Growing, uncached::Uncached};
use crate::error::{Error, Result};

/// A reader that has read this much on end is taken to read on to the end of the blob.
const STREAK_BYTES: u64 = 4 << 20;
/// How many blocks are fetched for a read that follows on no other.
const LONE_BLOCKS: usize = 2;

/// An open blob that was not in the cache when it was opened.
pub struct Reader {
    /// `None` when the cache took nothing in from the beginning.
    growing: Option<Arc<Growing>>,
    uncached: Uncached,
    fill: Fill,
    streak: Mutex<Streak>,
}

/// What was read on end.
#[derive(Default)]
struct Streak {
    end: u64,
    size_bytes: u64,
}

impl Reader {
    pub(super) fn new(growing: Option<Arc<Growing>>, uncached: Uncached, fill: Fill) -> Self {
        if let (Some(growing), Fill::Always) = (&growing, fill) {
            growing.fill(0);
        }
        Self { growing, uncached, fill, streak: Mutex::default() }
    }

    /// The content from `offset` on: all of `size_bytes`, but for the end of the blob. The kernel
    /// takes a short answer for the end, and would show zeros behind it in a mapping.
    ///
    /// # Errors
    /// [`Error::Lost`] when it cannot be fetched any more, or does not hash to its digest.
    pub async fn read(&self, offset: u64, size_bytes: u64) -> Result<Bytes> {
        let end = offset.saturating_add(size_bytes).min(self.uncached.size_bytes());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let streak_bytes = self.note(offset, end);
        let read = match &self.growing {
            Some(growing) => {
                if self.fill == Fill::Sequential && streak_bytes >= STREAK_BYTES {
                    growing.fill(offset);
                }
                // A second read on end is fetched ahead of, and so is what begins a blob.
                let is_lone = offset > 0 && streak_bytes == end - offset;
                growing.read(offset..end, if is_lone { LONE_BLOCKS } else { RUN_BLOCKS }).await
            }
            None => self.uncached.read(offset..end).await,
        };
        let read = match read {
            // The disk is full, or fails: the storage still has the blob.
            Err(Error::Disk { .. }) => self.uncached.read(offset..end).await,
            read => read,
        };
        read.map_err(|e| Error::lost(self.uncached.digest(), &e))
    }

    /// Counts what is read on end, this read included, each byte once.
    fn note(&self, offset: u64, end: u64) -> u64 {
        let mut streak = self.streak.lock().unwrap_or_else(PoisonError::into_inner);
        // Several threads of the kernel may ask for what one program reads, a little out of order.
        let follows = streak.end > 0 && offset.abs_diff(streak.end) <= BLOCK_BYTES;
        *streak = if follows {
            let new_bytes = end.saturating_sub(offset.max(streak.end));
            Streak { end: streak.end.max(end), size_bytes: streak.size_bytes + new_bytes }
        } else {
            Streak { end, size_bytes: end - offset }
        };
        streak.size_bytes
    }
}

//! One request for a few blocks, that goes on where it broke off.

use std::{mem, ops::Range, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{BLOCK_BYTES, blocking, growing::Growing, next_piece};
use crate::error::{Error, Result};

/// How often a request that broke off is made again without a block in between.
const RETRIES_MAX: u32 = 2;
/// How long to wait before; it doubles each time.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Growing {
    /// Fetches blocks that were claimed.
    pub(super) async fn fetch_run(self: &Arc<Self>, run: Range<usize>) -> Result<()> {
        let this = Arc::clone(self);
        blocking(move || this.make_room()).await?;
        let (mut next, mut retries) = (run.start, 0);
        while next < run.end {
            let begun = next;
            let Err(error) = self.stream(&mut next, run.end).await else { continue };
            let is_passing = matches!(error, Error::Storage { .. } | Error::TimedOut);
            retries = if next > begun { 0 } else { retries + 1 };
            if !is_passing || retries > RETRIES_MAX {
                return Err(error);
            }
            sleep(RETRY_PAUSE * 2_u32.pow(retries)).await;
        }
        Ok(())
    }

    /// Writes block after block as the bytes arrive, and counts `next` up to `end`.
    async fn stream(self: &Arc<Self>, next: &mut usize, end: usize) -> Result<()> {
        let size_bytes = self.meta.size_bytes;
        let range = *next as u64 * BLOCK_BYTES..(end as u64 * BLOCK_BYTES).min(size_bytes);
        let storage = &self.fetches.storage;
        let mut content = storage.read_blob(&self.digest, size_bytes, range).await?;
        let (mut pieces, mut missing_bytes) = (Vec::new(), self.block_bytes(*next));
        while *next < end {
            let piece = next_piece(&mut content).await?;
            let mut piece = piece.ok_or_else(|| Error::short(&self.digest))?;
            self.fetches.metrics.fetched(piece.len() as u64);
            while *next < end && piece.len() as u64 >= missing_bytes {
                pieces.push(piece.split_to(missing_bytes as usize));
                self.write(*next, mem::take(&mut pieces)).await?;
                *next += 1;
                missing_bytes = self.block_bytes(*next);
            }
            if *next < end {
                missing_bytes -= piece.len() as u64;
                pieces.push(piece);
            }
        }
        Ok(())
    }

    pub(super) fn block_bytes(&self, block: usize) -> u64 {
        let start = block as u64 * BLOCK_BYTES;
        BLOCK_BYTES.min(self.meta.size_bytes.saturating_sub(start))
    }
}

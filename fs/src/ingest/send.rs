//! What is left to do when a staged file is published.

use std::time::Duration;

use larder_layout::{Digest, Verifier};
use tokio::time::timeout;

use super::{Ingest, StagedFile, staged::Ahead};
use crate::{
    error::{Error, Result},
    store::{PART_BYTES, Upload},
};

/// An upload may take this long, and a second more for each MiB.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);

impl Ingest {
    /// Sends what was not sent ahead, and makes the blob visible when all of it is right.
    pub(super) async fn send(
        &self,
        staged: &StagedFile,
        digest: &Digest,
        size_bytes: u64,
    ) -> Result<()> {
        let mut ahead = staged.ahead.lock().await.take();
        let limit = UPLOAD_TIMEOUT + Duration::from_secs(size_bytes >> 20);
        let sending = self.send_rest(&mut ahead, staged, digest, size_bytes);
        let outcome = timeout(limit, sending).await.unwrap_or(Err(Error::TimedOut));
        // What was not completed by now is taken back.
        ahead.give_up().await;
        outcome
    }

    async fn send_rest(
        &self,
        ahead: &mut Ahead,
        staged: &StagedFile,
        digest: &Digest,
        size_bytes: u64,
    ) -> Result<()> {
        if !staged.came_in_order(digest, size_bytes) {
            ahead.give_up().await;
            ahead.verifier = None;
        }
        while ahead.seen_bytes() < size_bytes {
            ahead.see_next(staged, digest).await?;
        }
        let verifier = ahead.verifier.take();
        verifier.unwrap_or_else(|| Verifier::new(digest.clone())).finish()?;
        match self.storage.stat_blob(digest).await {
            Ok(meta) if meta.size_bytes == size_bytes => return Ok(()),
            Ok(_) => self.storage.mark_damaged(digest),
            Err(Error::NotFound) => {}
            Err(e) => return Err(e),
        }
        if ahead.upload.is_none() && size_bytes <= PART_BYTES {
            let content = staged.read(0, size_bytes).await?;
            self.storage.remove_if_damaged(digest).await?;
            return self.storage.put_blob(digest, content).await;
        }
        let upload = match ahead.upload.take() {
            Some(upload) => upload,
            None => self.upload(staged, digest, size_bytes).await?,
        };
        self.storage.remove_if_damaged(digest).await?;
        upload.complete().await
    }

    /// Sends all of a file that could not be sent while it came.
    async fn upload(
        &self,
        staged: &StagedFile,
        digest: &Digest,
        size_bytes: u64,
    ) -> Result<Upload> {
        let mut upload = self.storage.upload_blob(digest).await?;
        let mut sent_bytes = 0;
        while sent_bytes < size_bytes {
            let slot = upload.slot().await?;
            let part = staged.read(sent_bytes, upload.part_bytes()).await?;
            sent_bytes += part.len() as u64;
            upload.send(slot, part)?;
        }
        Ok(upload)
    }
}

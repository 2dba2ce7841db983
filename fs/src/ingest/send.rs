//! What is left to do when a staged file is published.

use std::{sync::Arc, time::Duration};

use larder_layout::{Digest, Verifier};
use tokio::time::timeout;

use super::{Ingest, StagedFile, staged::Ahead};
use crate::{
    error::{Error, Result},
    fetch::blocking,
    store::PART_BYTES,
};

/// An upload may take this long, and a second more for each MiB.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);

impl Ingest {
    /// Sends what was not sent ahead, and makes the blob visible when all of it is right.
    pub(super) async fn send(
        &self,
        staged: &Arc<StagedFile>,
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
        staged: &Arc<StagedFile>,
        digest: &Digest,
        size_bytes: u64,
    ) -> Result<()> {
        let verifier = match staged.take_verifier(digest, size_bytes) {
            Some(verifier) => verifier,
            None => {
                ahead.give_up().await;
                self.hash(staged, digest, size_bytes).await?
            }
        };
        verifier.finish()?;
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
        let mut upload = match ahead.upload.take() {
            Some(upload) => upload,
            None => self.storage.upload_blob(digest).await?,
        };
        while ahead.sent_bytes < size_bytes {
            let slot = upload.slot().await?;
            let part = staged.read(ahead.sent_bytes, upload.part_bytes()).await?;
            ahead.sent_bytes += part.len() as u64;
            upload.send(slot, part)?;
        }
        self.storage.remove_if_damaged(digest).await?;
        upload.complete().await
    }

    /// Hashes a file that could not be hashed while it came.
    async fn hash(
        &self,
        staged: &Arc<StagedFile>,
        digest: &Digest,
        size_bytes: u64,
    ) -> Result<Verifier> {
        let mut verifier = Verifier::new(digest.clone());
        while verifier.size_bytes() < size_bytes {
            let part = staged.read(verifier.size_bytes(), PART_BYTES).await?;
            verifier = blocking(move || {
                verifier.update(&part);
                Ok(verifier)
            })
            .await?;
        }
        Ok(verifier)
    }
}

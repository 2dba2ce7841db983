//! A large blob on its way into the storage, in parts.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{MultipartUpload, path::Path};
use tokio::{
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{COMPLETE_DEADLINE, NAME_DEADLINE, PART_DEADLINE, Storage};
use crate::error::{Error, Result};

/// How many parts of a blob are sent at a time.
const CONNECTIONS: usize = 4;
/// The most parts that Swift accepts in one object; S3 takes 10,000.
const PARTS_MAX: u64 = 1_000;
/// How often the length of a part doubles in the second half of these, since how long the blob
/// will be is not known when it begins: with parts of 8 MiB there is room for 250 GiB.
const DOUBLINGS: u64 = 5;

/// An upload of a blob whose length need not be known. Nothing of it is visible before
/// [`Upload::complete`], and what was sent is taken back when it is dropped before.
pub struct Upload {
    storage: Arc<Storage>,
    key: Path,
    /// `None` once the upload has ended.
    parts: Option<Box<dyn MultipartUpload>>,
    begun: u64,
    sending: JoinSet<Result<()>>,
}

/// The right to have one more part in memory.
pub struct Slot(#[expect(dead_code, reason = "kept until the part is sent")] OwnedSemaphorePermit);

impl Upload {
    pub(super) fn new(storage: Arc<Storage>, key: Path, parts: Box<dyn MultipartUpload>) -> Self {
        Self { storage, key, parts: Some(parts), begun: 0, sending: JoinSet::new() }
    }

    /// How long the next part has to be, unless it is the last.
    pub fn part_bytes(&self) -> u64 {
        let second_half = self.begun.saturating_sub(PARTS_MAX / 2);
        let step = PARTS_MAX / 2 / DOUBLINGS;
        self.storage.part_bytes << second_half.div_ceil(step).min(DOUBLINGS)
    }

    /// Waits until another part may be on its way, which is in memory until it is sent: fewer than
    /// [`CONNECTIONS`] of this blob, and fewer than [`super::PARTS_IN_FLIGHT_MAX`] of all.
    ///
    /// # Errors
    /// What became of an earlier part: then the upload is to be aborted.
    pub async fn slot(&mut self) -> Result<Slot> {
        while self.sending.len() >= CONNECTIONS {
            self.next_sent().await?;
        }
        let slot = Arc::clone(&self.storage.parts_in_flight).acquire_owned().await;
        slot.map(Slot).map_err(|_| Error::Down)
    }

    /// Begins to send the next part.
    ///
    /// # Errors
    /// [`Error::BadHandle`] after the end of the upload.
    pub fn send(&mut self, slot: Slot, part: Bytes) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Err(Error::BadHandle) };
        let (sent, storage) = (parts.put_part(part.into()), Arc::clone(&self.storage));
        let operation = format!("upload a part of {}", self.key);
        self.begun += 1;
        self.sending.spawn(async move {
            let _slot = slot;
            storage.circuit.run(operation, PART_DEADLINE, sent).await
        });
        Ok(())
    }

    /// Makes the blob visible, durably.
    ///
    /// # Errors
    /// What the storage says; then nothing is visible.
    pub async fn complete(mut self) -> Result<()> {
        while !self.sending.is_empty() {
            self.next_sent().await?;
        }
        let Some(parts) = &mut self.parts else { return Err(Error::BadHandle) };
        let operation = format!("complete upload of {}", self.key);
        let complete = parts.complete();
        self.storage.circuit.run(operation, COMPLETE_DEADLINE, complete).await?;
        self.parts = None;
        Ok(())
    }

    /// Takes back what was sent, also when nobody waits for it any more.
    pub async fn abort(mut self) {
        if let Some(aborting) = self.begin_abort() {
            let _ = aborting.await;
        }
    }

    fn begin_abort(&mut self) -> Option<JoinHandle<()>> {
        let (parts, runtime) = (self.parts.take()?, Handle::try_current().ok()?);
        let sending = std::mem::take(&mut self.sending);
        Some(runtime.spawn(abort(Arc::clone(&self.storage), self.key.clone(), parts, sending)))
    }

    async fn next_sent(&mut self) -> Result<()> {
        let Some(sent) = self.sending.join_next().await else { return Ok(()) };
        sent.unwrap_or_else(|e| Err(Error::disk("run an upload", std::io::Error::other(e))))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.begin_abort();
    }
}

/// A part that arrives after the abort would stay in the storage: all of them are waited for.
async fn abort(
    storage: Arc<Storage>,
    key: Path,
    mut parts: Box<dyn MultipartUpload>,
    mut sending: JoinSet<Result<()>>,
) {
    let ended = async { while sending.join_next().await.is_some() {} };
    let _ = timeout(PART_DEADLINE, ended).await;
    let operation = format!("abort upload of {key}");
    if let Err(e) = storage.circuit.run(operation, NAME_DEADLINE, parts.abort()).await {
        tracing::warn!(%key, "parts of an upload that failed are left until they are swept: {e}");
    }
}

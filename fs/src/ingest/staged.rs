//! A file in `ingest/`: what comes is written, and in parts read again, hashed and sent ahead.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use larder_layout::{Digest, StagingId, Verifier};
use rustix::{
    buffer::spare_capacity,
    io::{Errno, pread},
};

use crate::{
    cache::{Cache, Reservation, StagingFile},
    error::{Error, Result},
    fetch::blocking,
    store::{BLOCK_BYTES, Storage, Upload},
};

/// A file in `ingest/`. It stays readable for whoever has it open, also after it was published.
pub struct StagedFile {
    /// The file on local disk.
    pub file: StagingFile,
    /// Of the file in the staging directory. Not the name in `ingest/`, which is free for another
    /// file while this one is still being taken into the cache, or could not be removed.
    pub(super) name: String,
    storage: Arc<Storage>,
    /// What its name says that it will be.
    expected: Option<Digest>,
    received: Mutex<Received>,
    pub(super) ahead: tokio::sync::Mutex<Ahead>,
}

struct Received {
    /// On local disk, for what is in the file.
    room: Option<Reservation>,
    /// How far it was written from its beginning, no byte twice. `None` once that is no longer so.
    in_order_bytes: Option<u64>,
    /// Nothing more is written: it is being published, or was.
    is_sealed: bool,
}

/// Keeps a file from being written. Dropped, the file was not published, be it that who waited for
/// that was interrupted, and can be written and published again.
pub(super) struct Seal<'a>(&'a StagedFile);

impl Seal<'_> {
    /// It was published.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Seal<'_> {
    fn drop(&mut self) {
        self.0.received().is_sealed = false;
    }
}

/// What was done with the first parts of the file before all of it was here.
#[derive(Default)]
pub(super) struct Ahead {
    /// Has seen them. `None` before the first.
    pub(super) verifier: Option<Verifier>,
    /// Was given what the verifier has seen.
    pub(super) upload: Option<Upload>,
    /// Another node has published the blob, or the storage is in trouble.
    is_given_up: bool,
}

impl StagedFile {
    /// An empty file. The digest that its name tells is not believed, but what is to be sent to
    /// the storage before all of it is here has to have a name there.
    ///
    /// # Errors
    /// [`Error::Disk`]
    pub(super) fn create(
        storage: &Arc<Storage>,
        cache: &Arc<Cache>,
        id: &StagingId,
    ) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = format!("ingest:{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let room = Some(cache.reserve(0)?);
        let expected = id.digest();
        let received = Received { room, in_order_bytes: Some(0), is_sealed: false };
        let received = Mutex::new(received);
        let file = cache.stage(&name)?;
        let ahead = tokio::sync::Mutex::default();
        Ok(Self { file, name, storage: Arc::clone(storage), expected, received, ahead })
    }

    /// Writes `content` at `offset`.
    ///
    /// # Errors
    /// [`Error::Disk`], with ENOSPC when the cache has no room for it; [`Error::ReadOnly`] once it
    /// is published.
    pub fn write(&self, offset: u64, content: &[u8]) -> Result<()> {
        let mut received = self.writable()?;
        let end = offset + content.len() as u64;
        received.make_room(end)?;
        let is_next = received.in_order_bytes.take() == Some(offset);
        let written = self.file.write(|file| file.write_all_at(content, offset));
        written.map_err(|e| Error::disk("write an ingest", e))?;
        received.in_order_bytes = is_next.then_some(end);
        Ok(())
    }

    /// Changes the length.
    ///
    /// # Errors
    /// As [`StagedFile::write`].
    pub fn truncate(&self, size_bytes: u64) -> Result<()> {
        let mut received = self.writable()?;
        received.make_room(size_bytes)?;
        let in_order_bytes = received.in_order_bytes.take();
        let truncated = self.file.write(|file| file.set_len(size_bytes));
        truncated.map_err(|e| Error::disk("truncate an ingest", e))?;
        received.in_order_bytes = in_order_bytes.filter(|in_order| *in_order <= size_bytes);
        Ok(())
    }

    /// Whether [`StagedFile::send_ahead`] has something to do.
    pub fn has_part(&self) -> bool {
        let Ok(ahead) = self.ahead.try_lock() else { return false };
        self.expected.is_some() && self.has_next(&ahead)
    }

    /// Hashes what has come, in whole parts, and sends it, unless that is going on already. What does
    /// not go out now goes when the file is published.
    pub async fn send_ahead(&self) {
        let Some(digest) = &self.expected else { return };
        let Ok(mut ahead) = self.ahead.try_lock() else { return };
        while self.has_next(&ahead) {
            if let Err(e) = self.send_next(&mut ahead, digest).await {
                tracing::debug!(%digest, "will be sent when it is published: {e}");
                return ahead.give_up().await;
            }
        }
    }

    fn has_next(&self, ahead: &Ahead) -> bool {
        let in_order_bytes = self.received().in_order_bytes;
        in_order_bytes
            .is_some_and(|in_order| in_order >= ahead.seen_bytes() + ahead.part_bytes(self))
    }

    async fn send_next(&self, ahead: &mut Ahead, digest: &Digest) -> Result<()> {
        if ahead.verifier.is_none() && !ahead.is_given_up {
            ahead.upload = match self.storage.stat_blob(digest).await {
                Err(Error::NotFound) => Some(self.storage.upload_blob(digest).await?),
                // It may be damaged, which is found out when this one is whole.
                Ok(_) => return Err(Error::Exists),
                Err(e) => return Err(e),
            };
        }
        ahead.see_next(self, digest).await
    }

    /// Ends all writing while it is being published, and tells the length.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when it is being published already.
    pub(super) fn seal(&self) -> Result<(Seal<'_>, u64)> {
        let mut received = self.writable()?;
        let metadata =
            self.file.reader().metadata().map_err(|e| Error::disk("stat an ingest", e))?;
        received.is_sealed = true;
        Ok((Seal(self), metadata.len()))
    }

    /// Whether what was done ahead holds for all `size_bytes` of the file, published under `digest`.
    pub(super) fn came_in_order(&self, digest: &Digest, size_bytes: u64) -> bool {
        let in_order_bytes = self.received().in_order_bytes;
        self.expected.as_ref() == Some(digest) && in_order_bytes == Some(size_bytes)
    }

    /// The room that its bytes take, when it becomes a blob of the cache.
    pub(super) fn take_room(&self) -> Option<Reservation> {
        self.received().room.take()
    }

    /// Takes back what was sent.
    pub(super) async fn discard(&self) {
        self.ahead.lock().await.give_up().await;
    }

    /// What is in the file from `offset` on, `size_bytes` at the most.
    pub(super) async fn read(&self, offset: u64, size_bytes: u64) -> Result<Bytes> {
        let read = |e| Error::disk("read an ingest", e);
        let file = self.file.reader().try_clone().map_err(read)?;
        blocking(move || {
            let rest_bytes = file.metadata().map_err(read)?.len().saturating_sub(offset);
            let size_bytes = rest_bytes.min(size_bytes) as usize;
            read_aligned(&file, offset, size_bytes).map_err(read)
        })
        .await
    }

    fn writable(&self) -> Result<MutexGuard<'_, Received>> {
        let received = self.received();
        if received.is_sealed { Err(Error::ReadOnly) } else { Ok(received) }
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        // What is in order is taken out while anything can panic.
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Received {
    fn make_room(&mut self, size_bytes: u64) -> Result<()> {
        self.room.as_mut().map_or(Ok(()), |room| room.grow(size_bytes))
    }
}

impl Ahead {
    /// Takes all of it over, to be completed or taken back. Should whoever does that be interrupted,
    /// nothing is left here that a later attempt could take for the beginning of the blob.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self { is_given_up: true, ..Self::default() })
    }

    /// How much the verifier has seen.
    pub(super) fn seen_bytes(&self) -> u64 {
        self.verifier.as_ref().map_or(0, Verifier::size_bytes)
    }

    fn part_bytes(&self, file: &StagedFile) -> u64 {
        self.upload.as_ref().map_or(file.storage.part_bytes(), Upload::part_bytes)
    }

    /// Hashes the next part of the file, and sends it when there is an upload. What is sent is what
    /// was hashed.
    pub(super) async fn see_next(&mut self, file: &StagedFile, digest: &Digest) -> Result<()> {
        let part_bytes = self.part_bytes(file);
        let slot = match &mut self.upload {
            Some(upload) => Some(upload.slot().await?),
            None => None,
        };
        let part = file.read(self.seen_bytes(), part_bytes).await?;
        let mut verifier = self.verifier.take().unwrap_or_else(|| Verifier::new(digest.clone()));
        let seen = part.clone();
        let hashed = blocking(move || {
            verifier.update(&seen);
            Ok(verifier)
        });
        self.verifier = Some(hashed.await?);
        match (&mut self.upload, slot) {
            (Some(upload), Some(slot)) => upload.send(slot, part),
            _ => Ok(()),
        }
    }

    /// Takes back what was sent, and sends nothing more.
    pub(super) async fn give_up(&mut self) {
        self.is_given_up = true;
        if let Some(upload) = self.upload.take() {
            upload.abort().await;
        }
    }
}

/// Reads into memory that begins at a multiple of [`BLOCK_BYTES`] and is not zeroed before.
fn read_aligned(file: &File, offset: u64, size_bytes: usize) -> io::Result<Bytes> {
    let mut content = Vec::<u8>::with_capacity(size_bytes + BLOCK_BYTES);
    let start = content.as_ptr().align_offset(BLOCK_BYTES);
    content.resize(start, 0);
    while content.len() < start + size_bytes {
        let offset = offset + (content.len() - start) as u64;
        match pread(file, spare_capacity(&mut content), offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Bytes::from(content).slice(start..start + size_bytes))
}

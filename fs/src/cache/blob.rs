//! Opening a blob of the cache: only a file that looks as it did when its content was hashed is
//! served; any other is hashed first.

use std::{
    fs::File,
    sync::{Arc, atomic::Ordering},
};

use larder_layout::{Digest, Verifier};

use super::{
    State,
    disk::{self, Fingerprint},
    index::Slot,
    key::Key,
};
use crate::{
    error::{Error, Result},
    store::BlobMeta,
};

/// How much of a file is read at a time.
pub const CHUNK_BYTES: usize = 1 << 20;
/// How often a file is hashed that changes while it is.
const ATTEMPTS: u32 = 3;

/// A blob of the cache that is open, and therefore not evicted.
pub struct CachedBlob {
    file: File,
    digest: Digest,
    /// What the file looked like when it was verified.
    verified_as: Fingerprint,
    pin: Pin,
}

impl CachedBlob {
    pub(super) fn new(file: File, digest: Digest, verified_as: Fingerprint, pin: Pin) -> Self {
        Self { file, digest, verified_as, pin }
    }

    /// Opens it once more, by what is known of it: whether the file still looks as it did when it
    /// was verified. It counts as used.
    pub fn reopen(&self) -> bool {
        let is_intact =
            self.file.metadata().is_ok_and(|now| Fingerprint::from(&now) == self.verified_as);
        if is_intact {
            self.pin.state.index().touch(&self.pin.key);
        }
        is_intact
    }

    /// Its file cannot be read: it is hashed before it is opened again, unless it was replaced.
    pub fn doubt(&self) {
        let mut index = self.pin.state.index();
        if index.get(&self.pin.key).is_some_and(|slot| slot.vouches_for(&self.verified_as)) {
            index.doubt(&self.pin.key);
        }
    }

    /// The whole, verified content.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How long the content is.
    pub fn size_bytes(&self) -> u64 {
        self.verified_as.size_bytes
    }

    /// Size and age, as the storage tells them of a blob.
    pub fn meta(&self) -> BlobMeta {
        self.verified_as.meta()
    }

    /// What the content hashes to.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// Keeps the file of a blob from being evicted.
pub struct Pin {
    state: Arc<State>,
    key: Key,
    inode: u64,
}

impl Pin {
    /// A pin that the index counts already.
    pub(super) fn counted(state: &Arc<State>, key: Key, inode: u64) -> Self {
        Self { state: Arc::clone(state), key, inode }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.state.index().unpin(&self.key, self.inode);
        self.state.changed.notify_all();
    }
}

/// What a file turned out to be.
pub enum Verdict {
    /// Its content is right.
    Sound,
    /// It is not in the cache any more.
    Gone,
    /// It changed while it was looked at.
    Changed,
}

impl State {
    /// See [`super::Cache::open_blob`].
    pub(super) fn open_blob(self: &Arc<Self>, digest: &Digest) -> Result<Option<CachedBlob>> {
        let key = Key::from(digest);
        for _ in 0..=ATTEMPTS {
            let Some((pin, slot)) = self.pin(&key) else { return Ok(None) };
            if let Some((file, verified_as)) = self.open_intact(&key, &slot)? {
                self.index().touch(&key);
                return Ok(Some(CachedBlob::new(file, digest.clone(), verified_as, pin)));
            }
            if let Verdict::Gone = self.verify(&key)? {
                return Ok(None);
            }
        }
        tracing::warn!(%digest, "the cached file is being changed; the blob is fetched again");
        Ok(None)
    }

    /// Keeps a blob from being evicted while something is done with its file.
    pub(super) fn pin(self: &Arc<Self>, key: &Key) -> Option<(Pin, Slot)> {
        let slot = self.index().pin(key)?;
        Some((Pin::counted(self, key.clone(), slot.file.inode), slot))
    }

    /// Opens the file of a blob, if it looks as it did when it was verified.
    fn open_intact(&self, key: &Key, slot: &Slot) -> Result<Option<(File, Fingerprint)>> {
        let path = self.blob_path(key);
        let file = match disk::open(&path) {
            Err(e) if disk::is_missing(&e) || disk::is_damage(&e) => return Ok(None),
            outcome => outcome?,
        };
        let fingerprint = disk::fingerprint(&file, &path)?;
        Ok(slot.vouches_for(&fingerprint).then_some((file, fingerprint)))
    }

    /// Hashes the file of a blob, if nobody else has in the meantime. What is damaged is put away.
    fn verify(self: &Arc<Self>, key: &Key) -> Result<Verdict> {
        let _held = self.locks.lock(key);
        // Pinned once more, under the lock: what it was before may have been replaced.
        let Some((_pin, slot)) = self.pin(key) else { return Ok(Verdict::Gone) };
        if self.open_intact(key, &slot)?.is_some() {
            return Ok(Verdict::Sound);
        }
        let path = self.blob_path(key);
        let checked = disk::open(&path).and_then(|file| {
            let before = disk::fingerprint(&file, &path)?;
            self.hash(&file, key)?;
            let after = disk::fingerprint(&file, &path)?;
            Ok((before, after))
        });
        self.judge(key, checked)
    }

    /// Draws the consequences of having hashed a file, which looked like this before and after. The
    /// blob's lock is held.
    pub(super) fn judge(
        &self,
        key: &Key,
        checked: Result<(Fingerprint, Fingerprint)>,
    ) -> Result<Verdict> {
        match checked {
            Ok((before, after)) if before == after => {
                self.index().confirm(key, after);
                Ok(Verdict::Sound)
            }
            Ok(_) => Ok(Verdict::Changed),
            Err(e) if disk::is_missing(&e) => {
                tracing::warn!(
                    digest = %key.digest(),
                    "the cached file was removed behind our back; the blob is fetched again"
                );
                self.index().forget(key);
                Ok(Verdict::Gone)
            }
            Err(e) if matches!(e, Error::Mismatch(_)) || disk::is_damage(&e) => {
                self.quarantine(key, &e)?;
                Ok(Verdict::Gone)
            }
            Err(e) => Err(e),
        }
    }

    /// Hashes a file from its start to its end.
    fn hash(&self, file: &File, key: &Key) -> Result<()> {
        let path = self.blob_path(key);
        let mut verifier = Verifier::new(key.digest());
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = disk::read_at(file, &path, &mut buffer, verifier.size_bytes())?;
            if read == 0 {
                return Ok(verifier.finish()?);
            }
            verifier.update(&buffer[..read]);
            self.counters.verified_bytes.fetch_add(read as u64, Ordering::Relaxed);
        }
    }
}

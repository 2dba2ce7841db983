//! The way in: a staged file gets its name among the blobs.

use std::{
    fs::{File, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use larder_layout::Digest;

use super::{
    CachedBlob, Reservation, State,
    blob::Pin,
    disk::{self, Fingerprint},
    key::Key,
    verity,
};
use crate::error::{Error, Result};

impl State {
    /// See [`super::Cache::adopt`].
    pub(super) fn adopt(
        self: &Arc<Self>,
        name: &str,
        digest: &Digest,
        modified: SystemTime,
        mut room: Reservation,
    ) -> Result<CachedBlob> {
        let staged = self.staging_path(name);
        let outcome = self.prepare(&staged, modified).and_then(|(file, fingerprint)| {
            room.grow(fingerprint.size_bytes)?;
            self.publish(&staged, digest, (file, fingerprint), &mut room)
        });
        if outcome.is_err() {
            // Before the room is given back that it takes.
            disk::remove(&staged).unwrap_or_else(|e| tracing::warn!("{e}"));
        }
        outcome
    }

    /// Has the staged file guarded, and gives it the attributes of a blob.
    pub(super) fn prepare(
        &self,
        staged: &Path,
        modified: SystemTime,
    ) -> Result<(File, Fingerprint)> {
        let file = disk::open(staged)?;
        // First, because it takes the right to write, and sets the times.
        if self.has_verity
            && let Err(e) = verity::enable(&file, staged)
        {
            tracing::warn!("a blob is cached without fs-verity: {e}");
        }
        disk::run("set the times of", staged, || file.set_modified(modified))?;
        disk::run("set the mode of", staged, || {
            file.set_permissions(Permissions::from_mode(0o444))
        })?;
        let fingerprint = disk::fingerprint(&file, staged)?;
        Ok((file, fingerprint))
    }

    /// Gives the staged file its name. The index knows of it before the directory does, so that
    /// no crash leaves a file that nobody has counted.
    pub(super) fn publish(
        self: &Arc<Self>,
        staged: &Path,
        digest: &Digest,
        (file, staged_as): (File, Fingerprint),
        room: &mut Reservation,
    ) -> Result<CachedBlob> {
        let key = Key::from(digest);
        let path = self.blob_path(&key);
        let _held = self.locks.lock(&key);
        let old = self.index().begin_adopt(&key, staged_as, room.charge_bytes());
        if let Err(e) = self.flush() {
            self.index().cancel_adopt(&key, room.charge_bytes(), old);
            return Err(e);
        }
        room.spend();
        let pin = Pin::counted(self, key.clone(), staged_as.inode);
        let published =
            disk::rename(staged, &path).and_then(|()| disk::fingerprint(&file, &path)).and_then(
                |now| now.is_renamed(&staged_as).then_some(now).ok_or_else(|| changed(&path)),
            );
        let mut index = self.index();
        if let Some(old) = old {
            index.unpin(&key, old.file.inode);
        }
        match published {
            Ok(published_as) => {
                index.confirm(&key, published_as);
                Ok(CachedBlob::new(file, digest.clone(), published_as, pin))
            }
            Err(e) => {
                // Whatever has the name now is hashed before it is served.
                index.doubt(&key);
                drop(index);
                drop(pin);
                Err(e)
            }
        }
    }
}

/// Somebody else writes in the directory of the cache.
fn changed(path: &Path) -> Error {
    let operation = format!("take in {}, which was changed meanwhile", path.display());
    Error::disk(operation, ErrorKind::InvalidData.into())
}

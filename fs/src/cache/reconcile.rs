//! The directory against the index, in the background after each start: files that the index does
//! not know, and blobs whose files are gone.

use std::{fs, sync::atomic::Ordering};

use larder_layout::{Algorithm, Digest};

use super::{
    State,
    disk::{self, Fingerprint},
    index::SHARDS,
    key::Key,
};
use crate::error::Result;

impl State {
    /// Makes the index tell what is in the directory. Until this was done once, after the index was
    /// lost, no room is promised.
    pub(super) fn reconcile(&self) -> Result<()> {
        for algorithm in Algorithm::ALL {
            self.find_files(algorithm)?;
        }
        for shard in 0..SHARDS {
            self.find_missing(shard)?;
        }
        if !self.stop.is_set() {
            // Behind the lock, so that nobody begins to wait between the two.
            let _index = self.index();
            self.is_counted.store(true, Ordering::Relaxed);
            self.changed.notify_all();
        }
        Ok(())
    }

    fn find_files(&self, algorithm: Algorithm) -> Result<()> {
        let directory = self.blobs_directory(algorithm);
        let mut found = 0;
        for entry in disk::run("list", &directory, || fs::read_dir(&directory))? {
            if self.stop.is_set() {
                break;
            }
            let name = disk::run("list", &directory, || entry)?.file_name();
            let digest = name.to_str().and_then(|hex| Digest::new(algorithm, hex).ok());
            let Some(key) = digest.as_ref().map(Key::from) else { continue };
            let is_known = {
                let mut index = self.index();
                index.seen(&key);
                index.has_file(&key)
            };
            found += usize::from(!is_known && self.find(&key)?);
        }
        if found > 0 {
            tracing::info!(
                found,
                "blobs that the index did not name; each is hashed before it is served"
            );
        }
        Ok(())
    }

    /// Takes in a file that the index does not know. False if there is none any more.
    fn find(&self, key: &Key) -> Result<bool> {
        let _held = self.locks.lock(key);
        if self.index().has_file(key) {
            return Ok(false);
        }
        let path = self.blob_path(key);
        match disk::run("stat", &path, || fs::symlink_metadata(&path)) {
            Ok(metadata) if metadata.is_file() => {
                self.index().found(key, Fingerprint::from(&metadata));
                Ok(true)
            }
            Ok(_) => {
                tracing::warn!(path = %path.display(), "not a file of Larder's; it is left alone");
                Ok(false)
            }
            Err(e) if disk::is_missing(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Forgets the blobs of a shard that were not seen because they are not there.
    fn find_missing(&self, shard: usize) -> Result<()> {
        let unseen: Vec<Key> = {
            let index = self.index();
            let unseen = index.shard(shard).filter(|(_, slot)| !slot.is_seen);
            unseen.map(|(key, _)| key.clone()).collect()
        };
        for key in unseen {
            if self.stop.is_set() {
                break;
            }
            let _held = self.locks.lock(&key);
            let path = self.blob_path(&key);
            match disk::run("stat", &path, || fs::symlink_metadata(&path)) {
                Err(e) if disk::is_missing(&e) => self.index().forget(&key),
                Err(e) => return Err(e),
                // Adopted since the directory was listed, or being evicted.
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

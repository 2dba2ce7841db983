//! Where damaged files go: out of the readers' way, but there for a look. Few are kept, the newest.

use std::{
    collections::VecDeque,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{PoisonError, atomic::Ordering},
};

use super::{State, disk, index::now_s, key::Key};
use crate::error::{Error, Result};

/// How many files are kept.
const FILES_MAX: usize = 8;
/// Which part of `cache.size` they may take.
const SHARE_OF_SIZE: u64 = 16;

/// The files in quarantine, oldest first.
#[derive(Default)]
pub struct Quarantine(VecDeque<File>);

struct File {
    path: PathBuf,
    /// Whose it was; unknown of what an earlier run left.
    key: Option<Key>,
    inode: u64,
    charge_bytes: u64,
}

impl Quarantine {
    /// What an earlier run left, and how much of the disk it takes.
    pub fn load(directory: &Path, charge: impl Fn(u64) -> u64) -> io::Result<(Self, u64)> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let charge_bytes = charge(allocated_bytes(&metadata));
            let (path, inode) = (entry.path(), metadata.ino());
            files.push(File { path, key: None, inode, charge_bytes });
        }
        // The names begin with the time.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let sum_bytes = files.iter().map(|file| file.charge_bytes).sum();
        Ok((Self(files.into()), sum_bytes))
    }

    fn charge_bytes(&self) -> u64 {
        self.0.iter().map(|file| file.charge_bytes).sum()
    }
}

impl State {
    /// Puts the file of a blob away. Its lock is held.
    ///
    /// # Errors
    /// [`Error::Disk`]; the blob is then still there, and hashed before it is served.
    pub(super) fn quarantine(&self, key: &Key, why: &Error) -> Result<()> {
        let (from, digest) = (self.blob_path(key), key.digest());
        let name = format!("{}-{}-{}", now_s(), digest.algorithm().as_str(), digest.hex());
        let path = self.directory.join("quarantine").join(name);
        let moved = disk::run("stat", &from, || fs::symlink_metadata(&from))
            .and_then(|metadata| disk::rename(&from, &path).map(|()| metadata));
        let metadata = moved.inspect_err(|_| self.index().doubt(key))?;
        tracing::error!(
            %digest, path = %path.display(),
            "a cached file is damaged, and is not served: {why}. It is kept at this path for a look, \
             and the blob is fetched again. If this happens more than once, check the disk and the \
             memory of this machine"
        );
        self.counters.quarantined.fetch_add(1, Ordering::Relaxed);
        let mut quarantine = self.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
        let inode = metadata.ino();
        let charge_bytes = {
            let mut index = self.index();
            let charge_bytes = index.charge(allocated_bytes(&metadata));
            index.quarantine(key, inode, charge_bytes);
            charge_bytes
        };
        quarantine.0.push_back(File { path, key: Some(key.clone()), inode, charge_bytes });
        drop(quarantine);
        self.prune_quarantine(FILES_MAX, self.limits.size_bytes / SHARE_OF_SIZE)
            .unwrap_or_else(|e| tracing::warn!("the quarantine stays larger than it should: {e}"));
        Ok(())
    }

    /// Removes the oldest files until there are at most so many.
    pub(super) fn prune_quarantine(&self, files: usize, size_bytes: u64) -> Result<()> {
        let mut quarantine = self.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
        while quarantine.0.len() > files || quarantine.charge_bytes() > size_bytes {
            let Some(oldest) = quarantine.0.front() else { break };
            disk::remove(&oldest.path)?;
            let mut index = self.index();
            index.release_quarantined(oldest.key.as_ref(), oldest.inode, oldest.charge_bytes);
            drop(index);
            quarantine.0.pop_front();
        }
        self.changed.notify_all();
        Ok(())
    }
}

fn allocated_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

//! Directories that were made and have nothing in them yet: the storage has no directories.

use std::{
    ffi::OsStr,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use larder_layout::{Directory, Entry, Repository};
use lru::LruCache;

use super::Filesystem;
use crate::{
    attributes::Attributes,
    error::{Error, Result},
};

/// How many repositories may be made with mkdir(2) before something is published in them.
const MADE_MAX: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

pub(super) type Made = Mutex<LruCache<Repository, ()>>;

/// None yet.
pub(super) fn none() -> Made {
    Mutex::new(LruCache::new(MADE_MAX))
}

impl Filesystem {
    /// Makes the directory of a repository. The storage has no directories, so this is a promise
    /// of this node alone, until something is published in it.
    pub async fn mkdir(&self, parent: u64, name: &OsStr) -> Result<Attributes> {
        let Entry::Directory(directory) = self.new_name(parent, name)? else {
            return Err(Error::ReadOnly);
        };
        if self.directory_exists(&directory).await? {
            return Err(Error::Exists);
        }
        if let Directory::Repository(repository) = &directory {
            self.made().put(repository.clone(), ());
        }
        Ok(self.directory_attributes(directory))
    }

    pub(super) async fn directory_exists(&self, directory: &Directory) -> Result<bool> {
        let Directory::Repository(repository) = directory else { return Ok(true) };
        if self.made().contains(repository) {
            return Ok(true);
        }
        Ok(!self.storage.list_repositories(Some(repository)).await?.is_empty())
    }

    fn made(&self) -> MutexGuard<'_, LruCache<Repository, ()>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

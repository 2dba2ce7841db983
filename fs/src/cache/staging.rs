//! A file on its way into the cache.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    path::Path,
    sync::{PoisonError, RwLock},
};

use super::disk;
use crate::error::{Error, Result};

/// A staged file. It is open twice, because no file can be guarded by fs-verity that anything has
/// open for writing, and readers keep it open while it becomes a blob.
pub struct StagingFile {
    reader: File,
    writer: RwLock<Option<File>>,
}

impl StagingFile {
    /// A new, empty file.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let create = || OpenOptions::new().write(true).create_new(true).open(path);
        let writer = disk::run("create", path, create).map_err(|e| match e {
            Error::Disk { source, .. } if source.kind() == ErrorKind::AlreadyExists => {
                Error::Exists
            }
            e => e,
        })?;
        let reader = disk::open(path).inspect_err(|_| {
            disk::remove(path).unwrap_or_else(|e| tracing::warn!("{e}"));
        })?;
        Ok(Self { reader, writer: RwLock::new(Some(writer)) })
    }

    /// The file, open for reading, also when it is a blob.
    pub fn reader(&self) -> &File {
        &self.reader
    }

    /// Calls something that changes the file.
    ///
    /// # Errors
    /// What the call says; [`ErrorKind::PermissionDenied`] after [`Self::end_writing`].
    pub fn write(&self, call: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let writer = self.writer.read().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().map_or(Err(ErrorKind::PermissionDenied.into()), call)
    }

    /// Waits for the calls that change the file. There will be no more.
    pub fn end_writing(&self) {
        *self.writer.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

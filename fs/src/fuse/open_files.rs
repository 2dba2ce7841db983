//! What the kernel has open.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use fuser::{BackingId, FileHandle};

use super::passthrough::{Mode, Passthrough};
use crate::{
    error::{Error, Result},
    opened::Opened,
};

/// What the kernel has open, by handle.
#[derive(Default)]
pub struct OpenFiles {
    files: Mutex<HashMap<u64, OpenFile>>,
    next: AtomicU64,
    pub passthrough: Passthrough,
}

struct OpenFile {
    opened: Arc<Opened>,
    mode: Mode,
}

impl OpenFiles {
    /// Keeps what was opened, and decides how the kernel reaches its bytes.
    ///
    /// # Errors
    /// [`Error::Stale`] as [`Passthrough::open`].
    pub fn insert(
        &self,
        number: u64,
        opened: Opened,
        for_writing: bool,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<(FileHandle, Mode)> {
        // What is written is hashed, counted and sent on by us.
        let file = opened.file().filter(|_| !for_writing);
        let otherwise = match opened {
            Opened::Blob(_) => Mode::Cached,
            // These grow, or have no length in advance.
            _ => Mode::Direct,
        };
        let mode = match opened {
            Opened::Report(_) => Mode::Direct,
            _ => self.passthrough.open(number, file, otherwise, register)?,
        };
        Ok((self.keep(opened, mode.clone()), mode))
    }

    /// Keeps an open directory.
    pub fn insert_directory(&self, opened: Opened) -> FileHandle {
        self.keep(opened, Mode::Direct)
    }

    pub fn get(&self, handle: FileHandle) -> Result<Arc<Opened>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle.0).map(|file| Arc::clone(&file.opened)).ok_or(Error::BadHandle)
    }

    pub fn remove(&self, number: u64, handle: FileHandle) {
        let removed = self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        if let Some(file) = removed {
            self.passthrough.close(number, &file.mode);
        }
    }

    fn keep(&self, opened: Opened, mode: Mode) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let file = OpenFile { opened: Arc::new(opened), mode };
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, file);
        FileHandle(handle)
    }
}

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

use super::{
    passthrough::{Mode, Passthrough},
    warm::{Warm, WarmBlob},
};
use crate::{
    cache::CachedBlob,
    error::{Error, Result},
    opened::Opened,
};

/// What the kernel has open, by handle.
pub struct OpenFiles {
    files: Mutex<HashMap<u64, OpenFile>>,
    next: AtomicU64,
    warm: Option<Mutex<Warm>>,
    pub passthrough: Passthrough,
}

struct OpenFile {
    opened: Arc<Opened>,
    mode: Mode,
}

impl OpenFiles {
    /// Nothing is open yet, over a cache of this size.
    pub fn new(cache_bytes: u64) -> Self {
        Self {
            files: Mutex::default(),
            next: AtomicU64::new(0),
            warm: Warm::new(cache_bytes).map(Mutex::new),
            passthrough: Passthrough::default(),
        }
    }

    /// Opens an inode that is kept open, if it is.
    pub fn reopen(&self, number: u64) -> Option<(FileHandle, Mode)> {
        let mut warm = self.warm.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        match warm.get(number) {
            Ok(kept) => {
                let WarmBlob { blob, mode } = kept?;
                // Before anybody can close what is kept.
                self.passthrough.again(number);
                drop(warm);
                Some((self.keep(Opened::Blob(blob), mode.clone()), mode))
            }
            Err(changed) => {
                drop(warm);
                self.passthrough.close(number, &changed.mode);
                None
            }
        }
    }

    /// The kernel has forgotten an inode: it will not be opened again.
    pub fn forget(&self, number: u64) {
        let Some(warm) = &self.warm else { return };
        let forgotten = warm.lock().unwrap_or_else(PoisonError::into_inner).forget(number);
        if let Some(warm) = forgotten {
            self.passthrough.close(number, &warm.mode);
        }
    }

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
            Opened::Blob(_) | Opened::LayerFile { .. } => Mode::Cached,
            // These grow, or have no length in advance.
            _ => Mode::Direct,
        };
        let mode = match opened {
            Opened::Report(_) => Mode::Direct,
            _ => self.passthrough.open(number, file, otherwise, register)?,
        };
        if let Opened::Blob(blob) = &opened {
            self.keep_warm(number, blob, &mode);
        }
        Ok((self.keep(opened, mode.clone()), mode))
    }

    fn keep_warm(&self, number: u64, blob: &Arc<CachedBlob>, mode: &Mode) {
        let Some(warm) = &self.warm else { return };
        let mut warm = warm.lock().unwrap_or_else(PoisonError::into_inner);
        if !warm.wants(number, blob) {
            return;
        }
        self.passthrough.again(number);
        let kept = WarmBlob { blob: Arc::clone(blob), mode: mode.clone() };
        let cooled = warm.keep(number, kept);
        drop(warm);
        if let Some((number, cooled)) = cooled {
            self.passthrough.close(number, &cooled.mode);
        }
    }

    /// Keeps an open directory.
    pub fn insert_directory(&self, opened: Opened) -> FileHandle {
        self.keep(opened, Mode::Direct)
    }

    pub fn get(&self, handle: FileHandle) -> Result<Arc<Opened>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle.0).map(|file| Arc::clone(&file.opened)).ok_or(Error::BadHandle)
    }

    /// Ends a handle. What it had open comes back, unless that stays open besides.
    pub fn remove(&self, number: u64, handle: FileHandle) -> Option<Arc<Opened>> {
        let removed = self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        let OpenFile { opened, mode } = removed?;
        self.passthrough.close(number, &mode);
        let is_kept = matches!(&*opened, Opened::Blob(blob) if Arc::strong_count(blob) > 1);
        (!is_kept).then_some(opened)
    }

    fn keep(&self, opened: Opened, mode: Mode) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let file = OpenFile { opened: Arc::new(opened), mode };
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, file);
        FileHandle(handle)
    }
}

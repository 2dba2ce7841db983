//! What the kernel has open, and how it reaches the bytes.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use fuser::{BackingId, FileHandle, FopenFlags};

use super::passthrough::{Mode, Passthrough};
use crate::{
    error::{Error, Result},
    filesystem::Opened,
};

/// What the kernel has open, by handle.
#[derive(Default)]
pub struct OpenFiles {
    files: Mutex<HashMap<u64, Arc<Opened>>>,
    next: AtomicU64,
}

impl OpenFiles {
    pub fn insert(&self, opened: Opened) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(handle, Arc::new(opened));
        FileHandle(handle)
    }

    pub fn get(&self, handle: FileHandle) -> Result<Arc<Opened>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle.0).cloned().ok_or(Error::BadHandle)
    }

    pub fn remove(&self, handle: FileHandle) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
    }
}

impl Opened {
    /// The file on local disk behind an open file, if there is one.
    pub fn file(&self) -> Option<&File> {
        match self {
            Self::Blob(blob) => Some(blob.file()),
            Self::Staged(staged, _) => Some(&staged.file),
            Self::Report(_) | Self::Directory(_) => None,
        }
    }

    /// How the kernel has to treat a file that it does not pass through.
    fn flags(&self) -> FopenFlags {
        match self {
            Self::Blob(_) => FopenFlags::FOPEN_KEEP_CACHE,
            // A report has no size in advance, and a staged file is written through us.
            Self::Report(_) | Self::Staged(..) => FopenFlags::FOPEN_DIRECT_IO,
            Self::Directory(_) => FopenFlags::empty(),
        }
    }

    /// The content from `offset` on, shorter than `size` only at the end.
    pub fn read(&self, offset: u64, size: u32) -> Result<Bytes> {
        if let Self::Report(content) = self {
            let start = content.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
            let end = content.len().min(start + size as usize);
            return Ok(content.slice(start..end));
        }
        let file = self.file().ok_or(Error::IsDirectory)?;
        let mut buffer = vec![0; size as usize];
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::disk("read a cached blob", e)),
            }
        }
        buffer.truncate(filled);
        Ok(buffer.into())
    }

    /// Writes `content` to a staged file that was opened for it.
    pub fn write(&self, offset: u64, content: &[u8]) -> Result<()> {
        let Self::Staged(staged, Some(_)) = self else { return Err(Error::BadHandle) };
        let written = staged.file.write_all_at(content, offset);
        written.map_err(|e| Error::disk("write an ingest", e))
    }
}

/// How an open file is announced to the kernel: passed through, or read by way of us.
pub fn announce(
    passthrough: &Passthrough,
    number: u64,
    opened: &Opened,
    register: impl FnOnce(&File) -> io::Result<BackingId>,
) -> (Option<Arc<BackingId>>, FopenFlags) {
    let mode = opened.file().map(|file| passthrough.open(number, file, register));
    match mode {
        Some(Mode::Backed(id)) => (Some(id), FopenFlags::FOPEN_NOFLUSH),
        Some(Mode::Unbacked) | None => (None, opened.flags() | FopenFlags::FOPEN_NOFLUSH),
    }
}

//! How the kernel reaches the bytes of an open file: FUSE passthrough, where it reads and writes a
//! file on local disk by itself, its page cache, or neither.
//!
//! On one inode, at one time, the kernel refuses (EIO)
//! - to open it any other way while it is passed through,
//! - to pass it through while its pages are cached by way of us,
//! - to pass it through to two registered files.
//!
//! While it is open directly, anything goes. So what is on its way is opened directly, the first
//! open that passes through decides for those that follow, and one registration serves them all.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use fuser::{BackingId, FopenFlags};

use crate::error::{Error, Result};

/// How an open file reaches its bytes.
#[derive(Clone)]
pub enum Mode {
    /// Through the kernel, from the file registered under this number.
    Passthrough(Arc<BackingId>),
    /// Through this program, once: the kernel keeps the pages.
    Cached,
    /// Through this program, each time.
    Direct,
}

impl Mode {
    /// What the kernel is told. That a file is closed is of no interest: what is written is there.
    pub fn flags(&self) -> FopenFlags {
        FopenFlags::FOPEN_NOFLUSH
            | match self {
                Self::Passthrough(_) => FopenFlags::empty(),
                Self::Cached => FopenFlags::FOPEN_KEEP_CACHE,
                Self::Direct => FopenFlags::FOPEN_DIRECT_IO,
            }
    }
}

/// The inodes that are open other than directly.
#[derive(Default)]
pub struct Passthrough {
    inodes: Mutex<HashMap<u64, OpenInode>>,
    is_unavailable: AtomicBool,
}

struct OpenInode {
    mode: Mode,
    opens: usize,
    /// Device and number of the file behind it.
    file: (u64, u64),
}

impl Passthrough {
    /// Counts one more open of an inode, whose content is in `file` if that is given. Where the
    /// kernel does not pass it through, it is opened as `otherwise` says.
    ///
    /// # Errors
    /// [`Error::Stale`] when the content is elsewhere than that of the opens before: the inode has
    /// to be another one.
    pub fn open(
        &self,
        number: u64,
        file: Option<&File>,
        otherwise: Mode,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Mode> {
        let explain = |e| Error::disk("stat an open file", e);
        let metadata = file.map(File::metadata).transpose().map_err(explain)?;
        let identity = metadata.map(|metadata| (metadata.dev(), metadata.ino()));
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        match (inodes.get_mut(&number), file.zip(identity)) {
            (Some(inode), Some((_, identity))) if inode.file == identity => {
                inode.opens += 1;
                Ok(inode.mode.clone())
            }
            (Some(_), _) => Err(Error::Stale),
            (None, None) => Ok(Mode::Direct),
            (None, Some((file, identity))) => {
                let mode = self.register(file, register).map_or(otherwise, Mode::Passthrough);
                if !matches!(mode, Mode::Direct) {
                    let inode = OpenInode { mode: mode.clone(), opens: 1, file: identity };
                    inodes.insert(number, inode);
                }
                Ok(mode)
            }
        }
    }

    /// Counts one more open of an inode that is open, as it is.
    pub fn again(&self, number: u64) {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inode) = inodes.get_mut(&number) {
            inode.opens += 1;
        }
    }

    /// Counts one open less; the last ends the registration.
    pub fn close(&self, number: u64, mode: &Mode) {
        if matches!(mode, Mode::Direct) {
            return;
        }
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inode) = inodes.get_mut(&number) else { return };
        inode.opens -= 1;
        if inode.opens == 0 {
            inodes.remove(&number);
        }
    }

    /// From now on files are read through this program. Said once in the log.
    pub fn give_up(&self, reason: &str) {
        if !self.is_unavailable.swap(true, Ordering::Relaxed) {
            tracing::warn!("no FUSE passthrough, reads will be slower: {reason}");
        }
    }

    fn register(
        &self,
        file: &File,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if self.is_unavailable.load(Ordering::Relaxed) {
            return None;
        }
        match register(file) {
            Ok(id) => Some(Arc::new(id)),
            Err(e) => {
                let advice = match e.raw_os_error() {
                    Some(libc::EPERM) => "larder-fs needs CAP_SYS_ADMIN for it",
                    Some(libc::ELOOP) => {
                        "cache.directory is on a stacked filesystem such as overlayfs; put it on \
                         ext4, xfs or tmpfs"
                    }
                    _ => "the kernel refused to register a file of the cache",
                };
                self.give_up(&format!("{advice} ({e})"));
                None
            }
        }
    }
}

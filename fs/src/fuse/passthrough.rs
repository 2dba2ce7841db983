//! FUSE passthrough: the kernel reads and writes a file on local disk by itself.
//!
//! The kernel refuses (EIO) to mix, on one inode at one time, opens that pass through with others,
//! or to pass through to two registered files. So the first open decides for all that follow until
//! the last is closed, and one registration serves them all.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use fuser::BackingId;

/// How an open file reaches its bytes.
#[derive(Clone)]
pub enum Mode {
    /// Through the kernel, from the file registered under this number.
    Backed(Arc<BackingId>),
    /// Through this program.
    Unbacked,
}

/// The mode of every inode that is open.
#[derive(Default)]
pub struct Passthrough {
    inodes: Mutex<HashMap<u64, OpenInode>>,
    is_unavailable: AtomicBool,
}

struct OpenInode {
    mode: Mode,
    opens: usize,
}

impl Passthrough {
    /// Counts one more open of an inode whose content is in `file`, and says how to do it.
    pub fn open(
        &self,
        number: u64,
        file: &File,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Mode {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        match inodes.entry(number) {
            Entry::Occupied(mut inode) => {
                inode.get_mut().opens += 1;
                inode.get().mode.clone()
            }
            Entry::Vacant(vacant) => {
                let mode = self.register(file, register);
                vacant.insert(OpenInode { mode: mode.clone(), opens: 1 });
                mode
            }
        }
    }

    /// Counts one open less; the last ends the registration.
    pub fn close(&self, number: u64) {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut inode) = inodes.entry(number) {
            inode.get_mut().opens -= 1;
            if inode.get().opens == 0 {
                inode.remove();
            }
        }
    }

    /// From now on files are read through this program. Said once in the log.
    pub fn give_up(&self, reason: &str) {
        if !self.is_unavailable.swap(true, Ordering::Relaxed) {
            tracing::warn!("no FUSE passthrough, reads will be slower: {reason}");
        }
    }

    fn register(&self, file: &File, register: impl FnOnce(&File) -> io::Result<BackingId>) -> Mode {
        if self.is_unavailable.load(Ordering::Relaxed) {
            return Mode::Unbacked;
        }
        match register(file) {
            Ok(id) => Mode::Backed(Arc::new(id)),
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
                Mode::Unbacked
            }
        }
    }
}

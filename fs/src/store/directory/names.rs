//! Names in a directory that other nodes change too.
//!
//! An NFS client remembers which names there are, and which there are not, for as long as the time
//! of their directory stands still. So before a name is believed to be missing, its directories
//! are asked for their times again, by opening them; and after a name was given, its directory has
//! to show another time than before.

use std::{
    fs::{self, File, Metadata},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path as FilePath, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        stat::futimens,
        statfs::{NFS_SUPER_MAGIC, statfs},
        time::TimeSpec,
    },
};
use object_store::path::Path;

/// A directory that was changed this shortly before another may have been changed for the same
/// new name, or by another node that is not done with it.
const RECENT: Duration = Duration::from_secs(2);
/// A step of a server's clock is mostly 4 or 10 ms.
const TICK: Duration = Duration::from_millis(2);
const TICKS_MAX: usize = 100;

/// The root directory of a storage.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    is_nfs: bool,
}

impl Root {
    /// The storage in `path`.
    pub fn open(path: &FilePath) -> io::Result<Self> {
        let is_nfs = statfs(path)?.filesystem_type() == NFS_SUPER_MAGIC;
        Ok(Self { path: path.to_owned(), is_nfs })
    }

    /// Where it is.
    pub fn path(&self) -> &FilePath {
        &self.path
    }

    /// Where an object is.
    pub fn path_of(&self, key: &Path) -> PathBuf {
        self.path.join(key.as_ref())
    }

    /// Has the NFS client ask the server whether what it remembers of the directories above `path`
    /// still holds.
    pub fn revalidate(&self, path: &FilePath) {
        let mut above: Vec<_> = self.above(path).collect();
        // From the root down: each is looked for in one that was asked before.
        while let Some(directory) = above.pop() {
            if File::open(directory).is_err() {
                return;
            }
        }
    }

    /// The directories in which `path` is, up to the root.
    fn above<'a>(&'a self, path: &'a FilePath) -> impl Iterator<Item = &'a FilePath> {
        path.ancestors().skip(1).take_while(|directory| directory.starts_with(&self.path))
    }

    /// Creates a directory and those above it; not the root, which may be an export that is not
    /// mounted any more.
    ///
    /// `mkdir` asks the server, also for what the client believes to be missing.
    pub fn make_directories(&self, directory: &FilePath) -> io::Result<()> {
        if directory == self.path {
            return Ok(());
        }
        let make = || match fs::create_dir(directory) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        };
        match (make(), directory.parent()) {
            (Err(e), Some(parent)) if e.kind() == ErrorKind::NotFound => {
                self.make_directories(parent)?;
                make()
            }
            (outcome, _) => outcome,
        }
    }

    /// Makes the name `path`, and those of new directories above it, durable, and visible to nodes
    /// that found them missing a moment ago.
    ///
    /// Whoever made a directory that is new does this too, but may not have come to it yet.
    pub fn settle(&self, path: &FilePath) -> io::Result<()> {
        let mut newest = None;
        for directory in self.above(path) {
            let handle = File::open(directory)?;
            let metadata = handle.metadata()?;
            let modified = metadata.modified()?;
            let newest = *newest.get_or_insert(modified);
            if newest.duration_since(modified).is_ok_and(|age| age > RECENT) {
                break;
            }
            handle.sync_all()?;
            if self.is_nfs {
                outlast(&handle, &metadata)?;
            }
        }
        Ok(())
    }
}

/// Touches a directory until the server's clock has moved on from `metadata`.
///
/// Two changes within one step of that clock look like one to a client, and the name that came
/// with the second stays hidden from whoever missed it in between.
fn outlast(directory: &File, metadata: &Metadata) -> io::Result<()> {
    let changed = |metadata: &Metadata| (metadata.ctime(), metadata.ctime_nsec());
    for _ in 0..TICKS_MAX {
        touch(directory)?;
        if changed(&directory.metadata()?) != changed(metadata) {
            break;
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Changes nothing but when a directory was last changed. Its modification time is left alone
/// where possible: [`Root::settle`] goes by it.
fn touch(directory: &File) -> io::Result<()> {
    let now = TimeSpec::UTIME_NOW;
    match futimens(directory, &now, &TimeSpec::UTIME_OMIT) {
        // This takes its owner; who may write may set both.
        Err(Errno::EPERM | Errno::EACCES) => Ok(futimens(directory, &now, &now)?),
        outcome => Ok(outcome?),
    }
}

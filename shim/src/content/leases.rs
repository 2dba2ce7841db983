//! `leases/`: who fetches a blob from the upstream, of all that share the directory.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::symlink,
    path::Path,
};

use larder_layout::{Algorithm, Directory, Entry, Lease};

use super::{Content, NAME_DEADLINE, found, make};

/// How often a lease is tried for that ends before it is seen whose it was.
const ATTEMPTS_MAX: usize = 3;

impl Content {
    /// Takes a lease, and writes `holder` in it. When another has it, tells what that wrote.
    ///
    /// # Errors
    /// The storage is in trouble, or has no leases.
    pub async fn take_lease(&self, lease: &Lease, holder: String) -> io::Result<Option<String>> {
        let path = Entry::Lease(lease.clone()).path();
        self.call(NAME_DEADLINE, move |root| {
            let path = root.join(path);
            for _ in 0..ATTEMPTS_MAX {
                match symlink(&holder, &path) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    taken => return taken.map(|()| None),
                }
                if let Some(other) = found(read(&path))? {
                    return Ok(Some(other));
                }
            }
            Err(ErrorKind::WouldBlock.into())
        })
        .await
    }

    /// What the holder of a lease wrote; `None` when nobody has it.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn lease(&self, lease: &Lease) -> io::Result<Option<String>> {
        let path = Entry::Lease(lease.clone()).path();
        found(self.call(NAME_DEADLINE, move |root| read(&root.join(path))).await)
    }

    /// Ends a lease of this process, and those of the turns before, whose holders have died.
    pub async fn end_lease(&self, lease: Lease) {
        let ended = self.call(NAME_DEADLINE, move |root| {
            for turn in (0..=lease.turn).rev() {
                let lease = Lease { turn, ..lease.clone() };
                found(fs::remove_file(root.join(Entry::Lease(lease).path())))?;
            }
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "a lease stays behind until it is swept");
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_link(path)?.to_string_lossy().into_owned())
}

/// Makes the directories of leases in a plain directory. One that is only read has none, and needs none.
pub(super) fn prepare(root: &Path) {
    let of = Algorithm::ALL.map(Directory::LeasesOf);
    for directory in [Directory::Leases].into_iter().chain(of) {
        if let Err(error) = make(root, directory) {
            tracing::debug!(%error, "there will be no leases");
        }
    }
}

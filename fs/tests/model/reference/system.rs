//! What is held to the model.

use std::path::{Path, PathBuf};

use larder_layout::Digest;

use crate::operation::{Damage, Trouble};

pub type Outcome<T, E = i32> = Result<T, E>;

/// The nodes, and what a program does on their mounts. Errors are errnos.
pub trait System {
    type File;
    fn create(&mut self, node: usize, path: &Path) -> Outcome<Self::File>;
    fn write(&mut self, node: usize, file: &Self::File, at: u64, content: &[u8]) -> Outcome<()>;
    fn truncate(&mut self, node: usize, path: &Path, size_bytes: u64) -> Outcome<()>;
    fn rename(&mut self, node: usize, from: &Path, to: &Path) -> Outcome<()>;
    /// Nothing when it was interrupted before its end.
    fn interrupted_rename(
        &mut self,
        node: usize,
        from: &Path,
        to: &Path,
        steps: u32,
    ) -> Option<Outcome<()>>;
    fn unlink(&mut self, node: usize, path: &Path) -> Outcome<()>;
    fn symlink(&mut self, node: usize, target: &Path, path: &Path) -> Outcome<()>;
    fn make_directories(&mut self, node: usize, path: &Path) -> Outcome<()>;
    fn read_link(&mut self, node: usize, path: &Path) -> Outcome<PathBuf>;
    fn open(&mut self, node: usize, path: &Path) -> Outcome<Self::File>;
    /// Shorter than it was asked for only at the end.
    fn read(
        &mut self,
        node: usize,
        file: &Self::File,
        at: u64,
        size_bytes: u32,
    ) -> Outcome<Vec<u8>>;
    fn size_bytes(&mut self, node: usize, path: &Path) -> Outcome<u64>;
    fn list(&mut self, node: usize, path: &Path) -> Outcome<Vec<String>>;
    fn forget(&mut self, node: usize);
    fn settle(&mut self, node: usize);
    fn is_cached(&mut self, node: usize, digest: &Digest) -> bool;
    fn spoil(&mut self, node: usize, digest: &Digest, damage: Damage);
    fn crash(&mut self, node: usize, keeps_cache: bool);
    fn trouble(&mut self, trouble: Trouble, calls_before: u32);
    fn heal(&mut self);
    fn damage_stored(&mut self, digest: &Digest);
    /// What must hold after each operation.
    fn check(&mut self);
    /// What must hold when nothing is open and nothing is staged.
    fn check_idle(&mut self, was_in_trouble: bool);
}

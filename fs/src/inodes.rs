//! Inodes: which number stands for which entry, as long as the kernel remembers it.
//!
//! An inode never changes what it is. A blob is immutable anyway; a tag that moves is another
//! inode, because its target is part of its identity, so the kernel never follows an old one.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use larder_layout::{Digest, Directory, Lease, Link, Report, StagingId};

use crate::{
    error::{Error, Result},
    ingest::StagedFile,
    store::BlobMeta,
};

/// The number of the root directory, fixed by the FUSE protocol.
pub const ROOT: u64 = 1;

/// What an inode stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// A directory.
    Directory(Directory),
    /// A blob.
    Blob(Digest),
    /// A published link and its target.
    Link(Link, Digest),
    /// A file inside a layer, by its number.
    Layer(Digest, u32),
    /// A symlink inside a layer, by its number, and its target.
    LayerLink(Digest, u32, PathBuf),
    /// A lease and its holder.
    Lease(Lease, String),
    /// A file in `ingest/`.
    Staged(StagingId),
    /// A symlink in `ingest/` and its target.
    StagedLink(StagingId, Digest),
    /// A report.
    Report(Report),
}

/// The inodes that the kernel knows.
pub struct Inodes(Mutex<Table>);

struct Table {
    by_number: HashMap<u64, Inode>,
    by_node: HashMap<Node, u64>,
    next: u64,
}

struct Inode {
    node: Node,
    content: Content,
    /// How often the kernel was told of it, and has not forgotten it yet.
    lookups: u64,
}

/// What is known of a file besides its name.
#[derive(Clone)]
enum Content {
    None,
    /// Immutable: nobody has to be asked again.
    Blob(BlobMeta),
    Staged(Arc<StagedFile>),
}

impl Default for Inodes {
    /// Only the root.
    fn default() -> Self {
        let node = Node::Directory(Directory::Root);
        let root = Inode { node: node.clone(), content: Content::None, lookups: 1 };
        Self(Mutex::new(Table {
            by_number: HashMap::from([(ROOT, root)]),
            by_node: HashMap::from([(node, ROOT)]),
            next: ROOT + 1,
        }))
    }
}

impl Inodes {
    /// The number of `node`, new or old, which the kernel is about to be told.
    pub fn remember(&self, node: Node) -> u64 {
        self.table().remember(node, Content::None)
    }

    /// The same for a blob that was found. One that has another length than before has taken the
    /// place of a damaged copy, and is another inode.
    pub fn remember_blob(&self, digest: Digest, meta: BlobMeta) -> u64 {
        let (mut table, node) = (self.table(), Node::Blob(digest));
        let known = table.by_node.get(&node).and_then(|number| table.by_number.get(number));
        if let Some(Inode { content: Content::Blob(known), .. }) = known
            && known.size_bytes != meta.size_bytes
        {
            table.by_node.remove(&node);
        }
        table.remember(node, Content::Blob(meta))
    }

    /// The same for a file that was just created in `ingest/`.
    pub fn remember_staged(&self, id: StagingId, file: Arc<StagedFile>) -> u64 {
        self.table().remember(Node::Staged(id), Content::Staged(file))
    }

    /// The kernel has forgotten `lookups` of the times it was told. Tells whether that is all.
    pub fn forget(&self, number: u64, lookups: u64) -> bool {
        let mut table = self.table();
        let Some(inode) = table.by_number.get_mut(&number) else { return false };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups > 0 || number == ROOT {
            return false;
        }
        // A name in ingest/ may have been given to a newer inode.
        if let Some(inode) = table.by_number.remove(&number)
            && table.by_node.get(&inode.node) == Some(&number)
        {
            table.by_node.remove(&inode.node);
        }
        true
    }

    /// What a number stands for.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the kernel has forgotten it.
    pub fn node(&self, number: u64) -> Result<Node> {
        let table = self.table();
        table.by_number.get(&number).map(|inode| inode.node.clone()).ok_or(Error::NotFound)
    }

    /// The file behind an inode in `ingest/`.
    pub fn staged(&self, number: u64) -> Result<Arc<StagedFile>> {
        match self.table().by_number.get(&number).map(|inode| &inode.content) {
            Some(Content::Staged(file)) => Ok(Arc::clone(file)),
            _ => Err(Error::NotFound),
        }
    }

    /// Size and age of a blob.
    pub fn blob(&self, number: u64) -> Result<BlobMeta> {
        match self.table().by_number.get(&number).map(|inode| &inode.content) {
            Some(Content::Blob(meta)) => Ok(*meta),
            _ => Err(Error::NotFound),
        }
    }

    /// Frees a name in `ingest/` for another file; the inode lives on while the kernel knows it.
    pub fn release_name(&self, node: &Node) {
        self.table().by_node.remove(node);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing between two consistent states of the table can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn remember(&mut self, node: Node, content: Content) -> u64 {
        if let Some(&number) = self.by_node.get(&node)
            && let Some(inode) = self.by_number.get_mut(&number)
        {
            inode.lookups += 1;
            return number;
        }
        let number = self.next;
        self.next += 1;
        self.by_node.insert(node.clone(), number);
        self.by_number.insert(number, Inode { node, content, lookups: 1 });
        number
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use larder_layout::Algorithm;

    use super::*;

    #[test]
    fn a_number_lives_as_long_as_the_kernel_knows_it() {
        let inodes = Inodes::default();
        let node = Node::Blob(Digest::of(Algorithm::Sha256, b""));
        let number = inodes.remember(node.clone());
        assert_eq!(inodes.remember(node.clone()), number);
        inodes.forget(number, 1);
        assert_eq!(inodes.node(number).unwrap(), node);
        inodes.forget(number, 1);
        assert!(matches!(inodes.node(number), Err(Error::NotFound)));
        assert_ne!(inodes.remember(node), number, "a number is never used again");
    }

    #[test]
    fn a_whole_blob_in_the_place_of_a_short_one_is_another_inode() {
        let (inodes, digest) = (Inodes::default(), Digest::of(Algorithm::Sha256, b"whole"));
        let meta = |size_bytes| BlobMeta { size_bytes, modified: SystemTime::UNIX_EPOCH };
        let short = inodes.remember_blob(digest.clone(), meta(1));
        let whole = inodes.remember_blob(digest.clone(), meta(5));
        assert_ne!(short, whole);
        assert_eq!(inodes.remember_blob(digest, meta(5)), whole);
        assert_eq!(inodes.blob(short).unwrap().size_bytes, 1, "who has it open keeps it");
        assert_eq!(inodes.blob(whole).unwrap().size_bytes, 5);
    }

    #[test]
    fn a_name_in_ingest_can_be_used_again_while_its_old_file_is_open() {
        let inodes = Inodes::default();
        let node = Node::Staged("x".parse().unwrap());
        let old = inodes.remember(node.clone());
        inodes.release_name(&node);
        let new = inodes.remember(node.clone());
        assert_ne!(old, new);
        inodes.forget(old, 1);
        assert_eq!(inodes.remember(node), new);
    }
}

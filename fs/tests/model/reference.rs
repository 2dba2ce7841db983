//! What must be seen, whatever happens: the contract as a few sets of names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use larder_layout::{
    Algorithm, Digest, Entry, Link as LayoutLink, Membership, Repository, StagingId,
};

use crate::operation::{
    CONTENTS, Damage, Flaw, Link, NODES, Operation, Order, SIZES_BYTES, Staging, Trouble,
};

pub type Outcome<T, E = i32> = Result<T, E>;

/// What programs write at a time.
const WRITE_BYTES: usize = 700_000;
/// What programs read at a time.
const READ_BYTES: u32 = 1 << 20;
const SLOTS: usize = 3;
/// The node whose cache holds fewer bytes than the contents have.
pub const SMALL: usize = 0;

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

/// What may be published.
#[derive(Clone)]
pub struct Content {
    bytes: Arc<[u8]>,
    digest: Digest,
}

impl Content {
    /// All of them, and others for each `salt`.
    pub fn all(salt: u64) -> Vec<Self> {
        let sizes_bytes = SIZES_BYTES.into_iter().zip(salt * CONTENTS as u64..);
        let contents = sizes_bytes.map(|(size_bytes, seed)| {
            let mut bytes = vec![0; size_bytes];
            let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for piece in bytes.chunks_mut(8) {
                // Marsaglia's xorshift64.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
            }
            // One of them has a digest of the other kind.
            let algorithm =
                if size_bytes == SIZES_BYTES[2] { Algorithm::Sha512 } else { Algorithm::Sha256 };
            Self { digest: Digest::of(algorithm, &bytes), bytes: bytes.into() }
        });
        contents.collect()
    }
}

struct Blob {
    bytes: Arc<[u8]>,
    digest: Digest,
    presence: Presence,
    is_damaged: bool,
}

impl Blob {
    fn new(Content { bytes, digest }: Content) -> Self {
        // What is too short to be another content each time may be there from an earlier case.
        let is_short = bytes.len() < size_of::<u64>();
        let presence = if is_short { Presence::Perhaps } else { Presence::Absent };
        Self { bytes, digest, presence, is_damaged: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Absent,
    /// Its publication failed, which may have been told too late.
    Perhaps,
    Published,
}

struct Staged<F> {
    path: PathBuf,
    file: F,
    /// Unknown after a write that failed.
    bytes: Option<Vec<u8>>,
    is_doubtful: bool,
}

struct Open<F> {
    content: usize,
    file: F,
    /// There was trouble since it was opened, and it may have hit what this file needs.
    is_doubtful: bool,
}

struct Node<F> {
    staged: BTreeMap<usize, Staged<F>>,
    open: [Option<Open<F>>; SLOTS],
    spoiled: BTreeSet<usize>,
}

pub struct Reference<S: System> {
    pub system: S,
    repository: Repository,
    blobs: Vec<Blob>,
    /// What each link may name: several after a publication that failed.
    links: BTreeMap<PathBuf, BTreeSet<Option<usize>>>,
    nodes: Vec<Node<S::File>>,
    in_trouble: bool,
    was_in_trouble: bool,
    disk_fails: bool,
}

impl<S: System> Reference<S> {
    /// Nothing is published, and nothing is in the repository.
    pub fn new(system: S, contents: &[Content], repository: &str) -> Self {
        let node = |_| Node {
            staged: BTreeMap::new(),
            open: [const { None }; SLOTS],
            spoiled: BTreeSet::new(),
        };
        Self {
            system,
            repository: repository.parse().unwrap(),
            blobs: contents.iter().cloned().map(Blob::new).collect(),
            links: BTreeMap::new(),
            nodes: (0..NODES).map(node).collect(),
            in_trouble: false,
            was_in_trouble: false,
            disk_fails: false,
        }
    }

    /// Does all of it, and looks at what there is in the end.
    pub fn run(&mut self, operations: &[Operation]) {
        self.apply_all(operations);
        self.finish();
    }

    pub fn apply_all(&mut self, operations: &[Operation]) {
        for operation in operations {
            self.apply(operation);
            self.system.check();
        }
    }

    /// From now on calls on the local disk may fail, or none does any more.
    pub fn disk_fails(&mut self, fails: bool) {
        self.doubt();
        self.disk_fails = fails;
        self.was_in_trouble = true;
    }

    pub fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Publish { node, content, staging } => self.publish(node, content, staging),
            Operation::Stage { node, name, content, staging } => {
                self.stage_as(node, name, content, staging);
            }
            Operation::Rename { node, name, content } => self.rename(node, name, content, None),
            Operation::InterruptedRename { node, name, content, steps } => {
                self.rename(node, name, content, Some(steps));
            }
            Operation::Unlink { node, name } => self.unlink(node, name),
            Operation::Link { node, link, content } => self.link(node, link, content),
            Operation::ReadLink { node, link } => self.read_link(node, link),
            Operation::Open { node, slot, content } => self.open(node, slot, content),
            Operation::Read { node, slot, at, size_bytes } => self.read(node, slot, at, size_bytes),
            Operation::Close { node, slot } => self.nodes[node].open[slot] = None,
            Operation::ReadWhole { node, content } => self.read_whole(node, content),
            Operation::Stat { node, content } => self.stat(node, content),
            Operation::List { node } => self.list(node),
            Operation::Forget { node } => self.system.forget(node),
            Operation::Settle { node } => self.system.settle(node),
            Operation::Spoil { node, content, damage } => self.spoil(node, content, damage),
            Operation::Crash { node } => self.crash(node, true),
            Operation::LoseCache { node } => self.crash(node, false),
            Operation::Trouble { trouble, calls_before } => {
                self.doubt();
                self.in_trouble = true;
                self.was_in_trouble = true;
                self.system.trouble(trouble, calls_before);
            }
            Operation::Heal => self.heal(),
            Operation::DamageStored { content } => {
                self.system.damage_stored(&self.blobs[content].digest);
                self.blobs[content].is_damaged = true;
            }
        }
    }

    /// What is open now may have been hit by the trouble.
    fn doubt(&mut self) {
        for node in &mut self.nodes {
            node.open.iter_mut().flatten().for_each(|open| open.is_doubtful = true);
            node.staged.values_mut().for_each(|staged| staged.is_doubtful = true);
        }
    }

    fn heal(&mut self) {
        self.doubt();
        self.system.heal();
        self.in_trouble = false;
    }

    /// Whether the storage explains an error.
    fn is_excused(&self, errno: i32) -> bool {
        self.in_trouble && matches!(errno, libc::EIO | libc::ETIMEDOUT)
    }

    fn publish(&mut self, node: usize, content: usize, staging: Staging) {
        const NAME: usize = SLOTS;
        self.stage_as(node, NAME, content, staging);
        self.rename(node, NAME, content, None);
        self.unlink(node, NAME);
    }

    fn stage_as(&mut self, node: usize, name: usize, content: usize, staging: Staging) {
        if let Some(staged) = self.nodes[node].staged.get(&name) {
            let outcome = self.system.create(node, &staged.path);
            assert_eq!(outcome.err(), Some(libc::EEXIST), "a staged name is nobody else's");
            return;
        }
        let text = format!("n{name}");
        let id = match staging.is_told {
            true => StagingId::of_blob(&text, &self.blobs[content].digest).unwrap(),
            false => text.parse().unwrap(),
        };
        let path = Entry::Staged(id).path();
        let file = match self.system.create(node, &path) {
            Ok(file) => file,
            Err(errno) => return self.assert_full(node, errno),
        };
        let mut bytes = self.blobs[content].bytes.to_vec();
        match staging.flaw {
            Flaw::None => {}
            Flaw::Bit => bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            Flaw::Short => drop(bytes.pop()),
        }
        let written = self.write(node, &path, &file, &bytes, staging.order);
        if let Err(errno) = written {
            self.assert_full(node, errno);
        }
        let is_doubtful = self.in_trouble;
        let staged = Staged { path, file, bytes: written.ok().map(|()| bytes), is_doubtful };
        self.nodes[node].staged.insert(name, staged);
    }

    /// Whether the local disk explains an error of what is written.
    fn is_of_the_disk(&self, errno: i32) -> bool {
        self.disk_fails && matches!(errno, libc::EIO | libc::ENOSPC)
    }

    /// Only a node with a small cache may be full.
    fn assert_full(&self, node: usize, errno: i32) {
        if self.is_of_the_disk(errno) {
            return;
        }
        assert_eq!((node, errno), (SMALL, libc::ENOSPC), "staging fails only for want of room");
    }

    fn write(
        &mut self,
        node: usize,
        path: &Path,
        file: &S::File,
        bytes: &[u8],
        order: Order,
    ) -> Outcome<()> {
        let system = &mut self.system;
        let mut pieces: Vec<_> = bytes.chunks(WRITE_BYTES).enumerate().collect();
        if let Order::Backwards = order {
            pieces.reverse();
        }
        if let (Order::Again, Some((_, first))) = (order, pieces.first()) {
            system.write(node, file, 0, &vec![0xff; first.len()])?;
        }
        for (index, piece) in pieces {
            system.write(node, file, (index * WRITE_BYTES) as u64, piece)?;
        }
        if let Order::Truncated = order {
            system.write(node, file, bytes.len() as u64, b"and something more")?;
            system.truncate(node, path, bytes.len() as u64)?;
        }
        Ok(())
    }

    fn rename(&mut self, node: usize, name: usize, content: usize, steps: Option<u32>) {
        let Some(staged) = self.nodes[node].staged.remove(&name) else { return };
        let Blob { digest, bytes, .. } = &self.blobs[content];
        let to = Entry::Blob(digest.clone()).path();
        let outcome = match steps {
            None => Some(self.system.rename(node, &staged.path, &to)),
            Some(steps) => self.system.interrupted_rename(node, &staged.path, &to, steps),
        };
        let is_right = staged.bytes.as_ref().is_none_or(|staged| **staged == **bytes);
        let is_gone =
            outcome.is_none() && self.system.size_bytes(node, &staged.path) == Err(libc::ENOENT);
        let outcome = if is_gone { Some(Ok(())) } else { outcome };
        match outcome {
            // "A wrong digest is EBADMSG and nothing becomes visible."
            Some(Ok(())) => {
                assert!(is_right, "what does not hash to its name was acknowledged");
                self.blobs[content].presence = Presence::Published;
                let late = self.system.write(node, &staged.file, 0, b"x");
                assert_eq!(late, Err(libc::EPERM), "what is published can be written no more");
                return;
            }
            Some(Err(libc::EBADMSG)) => {
                let is_known = staged.bytes.is_some();
                assert!(!(is_known && is_right), "content {content} was taken for wrong");
            }
            Some(Err(errno)) => {
                let may_fail = staged.is_doubtful && matches!(errno, libc::EIO | libc::ETIMEDOUT);
                let may_fail = may_fail || self.is_excused(errno) || self.is_of_the_disk(errno);
                assert!(may_fail, "rename: errno {errno}");
                self.may_be_published(content, is_right);
            }
            None => self.may_be_published(content, is_right),
        }
        // What was sent ahead in the trouble is given up by now.
        let staged = Staged { is_doubtful: self.in_trouble, ..staged };
        self.nodes[node].staged.insert(name, staged);
    }

    fn may_be_published(&mut self, content: usize, is_right: bool) {
        let content = &mut self.blobs[content];
        if is_right && content.presence == Presence::Absent {
            content.presence = Presence::Perhaps;
        }
    }

    fn unlink(&mut self, node: usize, name: usize) {
        let Some(staged) = self.nodes[node].staged.remove(&name) else { return };
        if let Err(errno) = self.system.unlink(node, &staged.path) {
            assert!(self.is_of_the_disk(errno), "unlink: errno {errno}");
        }
        assert_eq!(self.system.size_bytes(node, &staged.path), Err(libc::ENOENT));
    }

    fn layout_link(&self, link: Link) -> LayoutLink {
        let repository = self.repository.clone();
        match link {
            Link::Tag(number) => LayoutLink::Tag(repository, format!("t{number}").parse().unwrap()),
            Link::Member(content) => {
                let digest = self.blobs[content].digest.clone();
                LayoutLink::Member(repository, Membership::Manifest, digest)
            }
        }
    }

    fn link(&mut self, node: usize, link: Link, content: usize) {
        let (layout, from) = (self.layout_link(link), Path::new("ingest/link"));
        let digest = self.blobs[content].digest.clone();
        let to = Entry::Link(layout.clone()).path();
        if let Err(errno) = self.system.make_directories(node, to.parent().unwrap()) {
            assert!(self.is_excused(errno), "mkdir: errno {errno}");
            return;
        }
        assert_eq!(self.system.symlink(node, &layout.target(&digest), from), Ok(()));
        let outcome = self.system.rename(node, from, &to);
        if outcome.is_err() {
            assert_eq!(self.system.unlink(node, from), Ok(()));
        }
        let Blob { presence, is_damaged, .. } = &mut self.blobs[content];
        let named = self.links.entry(to).or_insert_with(|| BTreeSet::from([None]));
        match outcome {
            Ok(()) => {
                assert!(*presence != Presence::Absent, "a link to nothing was acknowledged");
                *presence = Presence::Published;
                *named = BTreeSet::from([Some(content)]);
            }
            Err(libc::ENOENT) => {
                assert!(*is_damaged || *presence != Presence::Published, "a blob is missing");
                *presence = Presence::Absent;
            }
            Err(libc::EINVAL) => {
                let is_other = matches!(link, Link::Member(member) if member != content);
                assert!(is_other, "the link was refused");
            }
            Err(errno) => {
                named.insert(Some(content));
                assert!(self.is_excused(errno), "link: errno {errno}");
            }
        }
    }

    /// "2. What `rename` acknowledged […] is readable on every node": tags, too.
    fn read_link(&mut self, node: usize, link: Link) {
        let path = Entry::Link(self.layout_link(link)).path();
        let outcome = match self.system.read_link(node, &path) {
            Ok(target) => {
                let digest = LayoutLink::digest_of_target(&target).expect("a link names a blob");
                Some(self.blobs.iter().position(|content| content.digest == digest).unwrap())
            }
            Err(libc::ENOENT) => None,
            Err(errno) => return assert!(self.is_excused(errno), "readlink: errno {errno}"),
        };
        let named = self.links.entry(path).or_insert_with(|| BTreeSet::from([None]));
        assert!(named.contains(&outcome), "{link:?} names {outcome:?}, not one of {named:?}");
        *named = BTreeSet::from([outcome]);
    }

    fn path(&self, content: usize) -> PathBuf {
        Entry::Blob(self.blobs[content].digest.clone()).path()
    }

    fn open(&mut self, node: usize, slot: usize, content: usize) {
        self.nodes[node].open[slot] = None;
        let is_cached = self.is_cached(node, content);
        let outcome = self.system.open(node, &self.path(content));
        self.judge(content, is_cached, &outcome);
        let is_doubtful = self.in_trouble;
        self.nodes[node].open[slot] = outcome.ok().map(|file| Open { content, file, is_doubtful });
    }

    /// Whether the storage has nothing to do with it.
    fn is_cached(&mut self, node: usize, content: usize) -> bool {
        !self.nodes[node].spoiled.contains(&content)
            && self.system.is_cached(node, &self.blobs[content].digest)
    }

    /// What an outcome tells of a blob, and whether it is one that may be.
    fn judge<T>(&mut self, content: usize, is_cached: bool, outcome: &Outcome<T>) {
        let in_trouble = self.in_trouble;
        let Blob { presence, is_damaged, .. } = &mut self.blobs[content];
        match outcome {
            Ok(_) => {
                assert!(*presence != Presence::Absent, "content {content} was never published");
                *presence = Presence::Published;
            }
            // "Only ENOENT is a miss", and no trouble is one.
            Err(libc::ENOENT) => {
                let may_be = *is_damaged || *presence != Presence::Published;
                assert!(may_be, "content {content} was acknowledged and is missing");
                if !*is_damaged {
                    *presence = Presence::Absent;
                }
            }
            Err(errno) => {
                let is_known = matches!(*errno, libc::EIO | libc::ETIMEDOUT);
                assert!(
                    is_known && (in_trouble || *is_damaged),
                    "content {content}: errno {errno}"
                );
                // "5. A blob in the local cache is served while the shared storage is down."
                assert!(!is_cached, "content {content} is cached and not served: errno {errno}");
            }
        }
    }

    /// "1. Bytes served under a digest hash to it, or the transfer ends in an error."
    fn read(&mut self, node: usize, slot: usize, at: u8, size_bytes: u32) {
        let Some(open) = &self.nodes[node].open[slot] else { return };
        let Blob { bytes, is_damaged, .. } = &self.blobs[open.content];
        let start = bytes.len() * usize::from(at) / 255;
        let end = bytes.len().min(start + size_bytes as usize);
        match self.system.read(node, &open.file, start as u64, size_bytes) {
            // Until all of it was read, a range of what is damaged may be seen.
            Ok(_) if *is_damaged => {}
            Ok(read) => assert!(read == bytes[start..end], "wrong bytes at {start}"),
            Err(errno) => {
                let may_fail = self.in_trouble || open.is_doubtful || *is_damaged;
                let is_known = matches!(errno, libc::EIO | libc::ETIMEDOUT);
                assert!(may_fail && is_known, "read: errno {errno}");
            }
        }
    }

    fn read_whole(&mut self, node: usize, content: usize) {
        let is_cached = self.is_cached(node, content);
        let outcome = self.read_all(node, content);
        self.judge(content, is_cached, &outcome);
        if let Ok(read) = outcome {
            assert!(*read == *self.blobs[content].bytes, "content {content} is read wrong");
            self.nodes[node].spoiled.remove(&content);
        }
    }

    fn read_all(&mut self, node: usize, content: usize) -> Outcome<Vec<u8>> {
        let file = self.system.open(node, &self.path(content))?;
        let mut read = Vec::new();
        loop {
            let piece = match self.system.read(node, &file, read.len() as u64, READ_BYTES) {
                // What the disk cannot read of an open file, the kernel does not ask us for.
                Err(libc::EIO | libc::ENOSPC) if self.disk_fails => {
                    return self.read_all(node, content);
                }
                piece => piece?,
            };
            if piece.is_empty() {
                return Ok(read);
            }
            read.extend_from_slice(&piece);
        }
    }

    fn stat(&mut self, node: usize, content: usize) {
        let is_cached = self.is_cached(node, content);
        let outcome = self.system.size_bytes(node, &self.path(content));
        self.judge(content, is_cached, &outcome);
        if let Ok(size_bytes) = outcome {
            assert_eq!(size_bytes, SIZES_BYTES[content] as u64);
        }
    }

    fn list(&mut self, node: usize) {
        for algorithm in Algorithm::ALL {
            let directory = Path::new("blobs").join(algorithm.as_str());
            let names = match self.system.list(node, &directory) {
                Ok(names) => BTreeSet::from_iter(names),
                Err(errno) => return assert!(self.is_excused(errno), "readdir: errno {errno}"),
            };
            for (index, content) in self.blobs.iter().enumerate() {
                let is_listed = names.contains(content.digest.hex());
                let is_other = content.digest.algorithm() != algorithm || content.is_damaged;
                match content.presence {
                    _ if is_other => {}
                    Presence::Absent => assert!(!is_listed, "{index} was never published"),
                    Presence::Perhaps => {}
                    Presence::Published => assert!(is_listed, "{index} is not listed"),
                }
            }
        }
        let listed = self.system.list(node, Path::new("ingest")).unwrap();
        let staged = self.nodes[node].staged.values();
        let staged = staged.map(|staged| staged.path.file_name().unwrap().to_str().unwrap());
        assert_eq!(BTreeSet::from_iter(listed.iter().map(String::as_str)), staged.collect());
    }

    /// A file that is open is read by whoever has it open as it is; nobody can help that.
    fn spoil(&mut self, node: usize, content: usize, damage: Damage) {
        let Node { open, spoiled, .. } = &mut self.nodes[node];
        if open.iter().flatten().any(|open| open.content == content) {
            return;
        }
        spoiled.insert(content);
        self.system.settle(node);
        self.system.spoil(node, &self.blobs[content].digest, damage);
    }

    fn crash(&mut self, node: usize, keeps_cache: bool) {
        self.nodes[node].open = [const { None }; SLOTS];
        // What it has sent ahead is left, until it is swept.
        self.was_in_trouble |= !self.nodes[node].staged.is_empty();
        self.nodes[node].staged.clear();
        self.system.crash(node, keeps_cache);
    }

    /// What was acknowledged is there, on every node and on a new one.
    fn finish(&mut self) {
        self.heal();
        for node in 0..NODES {
            self.nodes[node].open = [const { None }; SLOTS];
            for name in self.nodes[node].staged.keys().copied().collect::<Vec<_>>() {
                self.unlink(node, name);
            }
            self.system.settle(node);
        }
        self.system.check_idle(self.was_in_trouble);
        for node in 0..NODES {
            self.look_at_all(node);
        }
        self.crash(SMALL, false);
        self.look_at_all(SMALL);
        self.system.check();
    }

    fn look_at_all(&mut self, node: usize) {
        for content in 0..CONTENTS {
            self.read_whole(node, content);
        }
        for link in [Link::Tag(0), Link::Tag(1), Link::Member(1)] {
            self.read_link(node, link);
        }
        self.list(node);
    }
}

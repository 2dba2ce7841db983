//! What must be seen, whatever happens: the contract as a few sets of names.

mod content;
mod publishing;
mod reading;
mod system;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use larder_layout::Repository;

use self::content::{Blob, Presence};
pub use self::{
    content::Content,
    system::{Outcome, System},
};
use crate::operation::{CONTENTS, Damage, Link, NODES, Operation};

const SLOTS: usize = 3;
/// The node whose cache holds fewer bytes than the contents have.
pub const SMALL: usize = 0;

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

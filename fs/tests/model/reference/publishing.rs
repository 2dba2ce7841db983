//! What nodes stage, publish and link.

use std::{collections::BTreeSet, path::Path};

use larder_layout::{Entry, Link as LayoutLink, Membership, StagingId};

use super::{Blob, Outcome, Presence, Reference, SLOTS, SMALL, Staged, System};
use crate::operation::{Flaw, Link, Order, Staging};

/// What programs write at a time.
const WRITE_BYTES: usize = 700_000;

impl<S: System> Reference<S> {
    pub(super) fn publish(&mut self, node: usize, content: usize, staging: Staging) {
        const NAME: usize = SLOTS;
        self.stage_as(node, NAME, content, staging);
        self.rename(node, NAME, content, None);
        self.unlink(node, NAME);
    }

    pub(super) fn stage_as(&mut self, node: usize, name: usize, content: usize, staging: Staging) {
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
    pub(super) fn is_of_the_disk(&self, errno: i32) -> bool {
        self.disk_fails && matches!(errno, libc::EIO | libc::ENOSPC)
    }

    /// Only a node with a small cache may be full.
    pub(super) fn assert_full(&self, node: usize, errno: i32) {
        if self.is_of_the_disk(errno) {
            return;
        }
        assert_eq!((node, errno), (SMALL, libc::ENOSPC), "staging fails only for want of room");
    }

    pub(super) fn write(
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

    pub(super) fn rename(&mut self, node: usize, name: usize, content: usize, steps: Option<u32>) {
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

    pub(super) fn may_be_published(&mut self, content: usize, is_right: bool) {
        let content = &mut self.blobs[content];
        if is_right && content.presence == Presence::Absent {
            content.presence = Presence::Perhaps;
        }
    }

    pub(super) fn unlink(&mut self, node: usize, name: usize) {
        let Some(staged) = self.nodes[node].staged.remove(&name) else { return };
        if let Err(errno) = self.system.unlink(node, &staged.path) {
            assert!(self.is_of_the_disk(errno), "unlink: errno {errno}");
        }
        assert_eq!(self.system.size_bytes(node, &staged.path), Err(libc::ENOENT));
    }

    pub(super) fn layout_link(&self, link: Link) -> LayoutLink {
        let repository = self.repository.clone();
        match link {
            Link::Tag(number) => LayoutLink::Tag(repository, format!("t{number}").parse().unwrap()),
            Link::Member(content) => {
                let digest = self.blobs[content].digest.clone();
                LayoutLink::Member(repository, Membership::Manifest, digest)
            }
        }
    }

    pub(super) fn link(&mut self, node: usize, link: Link, content: usize) {
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
                // Which blob is damaged, only the node knows that met it.
                if !*is_damaged {
                    *presence = Presence::Absent;
                }
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
}

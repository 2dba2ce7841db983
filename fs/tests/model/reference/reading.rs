//! What nodes see.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use larder_layout::{Algorithm, Entry, Link as LayoutLink};

use super::{Blob, Open, Outcome, Presence, Reference, System};
use crate::operation::{Link, SIZES_BYTES};

/// What programs read at a time.
const READ_BYTES: u32 = 1 << 20;

impl<S: System> Reference<S> {
    /// "2. What `rename` acknowledged […] is readable on every node": tags, too.
    pub(super) fn read_link(&mut self, node: usize, link: Link) {
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

    pub(super) fn path(&self, content: usize) -> PathBuf {
        Entry::Blob(self.blobs[content].digest.clone()).path()
    }

    pub(super) fn open(&mut self, node: usize, slot: usize, content: usize) {
        self.nodes[node].open[slot] = None;
        let is_cached = self.is_cached(node, content);
        let outcome = self.system.open(node, &self.path(content));
        self.judge(content, is_cached, &outcome);
        let is_doubtful = self.in_trouble;
        self.nodes[node].open[slot] = outcome.ok().map(|file| Open { content, file, is_doubtful });
    }

    /// Whether the storage has nothing to do with it.
    pub(super) fn is_cached(&mut self, node: usize, content: usize) -> bool {
        !self.nodes[node].spoiled.contains(&content)
            && self.system.is_cached(node, &self.blobs[content].digest)
    }

    /// What an outcome tells of a blob, and whether it is one that may be.
    pub(super) fn judge<T>(&mut self, content: usize, is_cached: bool, outcome: &Outcome<T>) {
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
    pub(super) fn read(&mut self, node: usize, slot: usize, at: u8, size_bytes: u32) {
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

    pub(super) fn read_whole(&mut self, node: usize, content: usize) {
        let is_cached = self.is_cached(node, content);
        let outcome = self.read_all(node, content);
        self.judge(content, is_cached, &outcome);
        if let Ok(read) = outcome {
            assert!(*read == *self.blobs[content].bytes, "content {content} is read wrong");
            self.nodes[node].spoiled.remove(&content);
        }
    }

    pub(super) fn read_all(&mut self, node: usize, content: usize) -> Outcome<Vec<u8>> {
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

    pub(super) fn stat(&mut self, node: usize, content: usize) {
        let is_cached = self.is_cached(node, content);
        let outcome = self.system.size_bytes(node, &self.path(content));
        self.judge(content, is_cached, &outcome);
        if let Ok(size_bytes) = outcome {
            assert_eq!(size_bytes, SIZES_BYTES[content] as u64);
        }
    }

    pub(super) fn list(&mut self, node: usize) {
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
}

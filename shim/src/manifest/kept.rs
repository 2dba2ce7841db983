//! The manifests that the directory has, the ones lately asked for from memory.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use larder_layout::{Digest, Link, Membership, Reference, Repository, Tag};
use lru::LruCache;

use super::{Manifest, check};
use crate::{answer::Source, content::Content, upstream::MANIFEST_MAX_BYTES};

/// How much of them is in memory at most: thousands, as manifests go.
const MEMORY_MAX_BYTES: usize = 16 << 20;
/// How long it is believed that a manifest still belongs to a repository.
const BELIEF: Duration = Duration::from_secs(10);
/// How many repositories one manifest is known to belong to.
const REPOSITORIES_MAX: usize = 64;

/// The manifests of the directory. Clones share what is in memory.
#[derive(Clone)]
pub struct Kept {
    /// The directory.
    pub content: Content,
    recent: Arc<Mutex<Recent>>,
}

/// Those lately asked for, by digest. What is here has been checked and never changes.
struct Recent {
    manifests: LruCache<Digest, Known>,
    size_bytes: usize,
}

struct Known {
    manifest: Manifest,
    /// What it belongs to, and when that was last seen.
    repositories: Vec<(Repository, Instant)>,
}

impl Kept {
    /// Those of a directory.
    pub fn new(content: Content) -> Self {
        let recent = Recent { manifests: LruCache::unbounded(), size_bytes: 0 };
        Self { content, recent: Arc::new(Mutex::new(recent)) }
    }

    /// What the directory has, whatever the upstream would say.
    ///
    /// # Errors
    /// The storage is in trouble, or the manifest is damaged.
    pub async fn stored(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> io::Result<Option<Manifest>> {
        match reference {
            Reference::Digest(digest) => self.member(repository, digest).await,
            Reference::Tag(tag) => Box::pin(self.named(repository, tag)).await,
        }
    }

    /// The manifest that a tag names in the directory.
    async fn named(&self, repository: &Repository, tag: &Tag) -> io::Result<Option<Manifest>> {
        match self.content.link(Link::Tag(repository.clone(), tag.clone())).await? {
            Some(digest) => self.read(repository, &digest).await,
            None => Ok(None),
        }
    }

    /// A manifest that the directory has, and has in this repository.
    ///
    /// # Errors
    /// The storage is in trouble, or the manifest is damaged.
    pub async fn member(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> io::Result<Option<Manifest>> {
        if let Some(manifest) = self.lock().find(repository, digest) {
            return Ok(Some(manifest));
        }
        Box::pin(self.look_up(repository, digest)).await
    }

    async fn look_up(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> io::Result<Option<Manifest>> {
        if !self.content.is_member(repository, &[Membership::Manifest], digest).await? {
            return Ok(None);
        }
        self.read(repository, digest).await
    }

    /// The blob first, then its link: who follows a link finds what it names.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn keep(&self, repository: &Repository, manifest: &Manifest) -> io::Result<()> {
        let Manifest { digest, content, .. } = manifest;
        self.content.publish_all(content.clone(), digest).await?;
        let link = Link::Member(repository.clone(), Membership::Manifest, digest.clone());
        self.content.publish_link(link, digest).await
    }

    /// Reads and checks a manifest of a repository, unless it is in memory.
    async fn read(&self, repository: &Repository, digest: &Digest) -> io::Result<Option<Manifest>> {
        if let Some(manifest) = self.lock().believe(repository, digest) {
            return Ok(Some(manifest));
        }
        let read = self.content.read_all(digest, MANIFEST_MAX_BYTES).await?;
        let Some((bytes, was_shared)) = read else { return Ok(None) };
        if let Err(mismatch) = check(digest, &bytes) {
            tracing::error!(%mismatch, "a manifest in the directory is damaged");
            return Err(io::Error::new(io::ErrorKind::InvalidData, mismatch));
        }
        let manifest = Manifest::new(digest.clone(), bytes, Source::Local);
        self.lock().add(repository, &manifest);
        let source = if was_shared { Source::Shared } else { Source::Local };
        Ok(Some(Manifest { source, ..manifest }))
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// A manifest that was lately seen to belong to a repository.
    fn find(&mut self, repository: &Repository, digest: &Digest) -> Option<Manifest> {
        let known = self.manifests.get(digest)?;
        let mut repositories = known.repositories.iter();
        let (_, seen) = repositories.find(|(name, _)| name == repository)?;
        (seen.elapsed() < BELIEF).then(|| known.manifest.clone())
    }

    /// A manifest that has just been seen to belong to a repository.
    fn believe(&mut self, repository: &Repository, digest: &Digest) -> Option<Manifest> {
        let known = self.manifests.get_mut(digest)?;
        known.repositories.retain(|(name, seen)| name != repository && seen.elapsed() < BELIEF);
        known.repositories.truncate(REPOSITORIES_MAX - 1);
        known.repositories.push((repository.clone(), Instant::now()));
        Some(known.manifest.clone())
    }

    fn add(&mut self, repository: &Repository, manifest: &Manifest) {
        let repositories = vec![(repository.clone(), Instant::now())];
        let known = Known { manifest: manifest.clone(), repositories };
        self.size_bytes += manifest.content.len();
        let replaced = self.manifests.put(manifest.digest.clone(), known);
        self.size_bytes -= replaced.map_or(0, |known| known.manifest.content.len());
        while self.size_bytes > MEMORY_MAX_BYTES {
            let Some((_, known)) = self.manifests.pop_lru() else { return };
            self.size_bytes -= known.manifest.content.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use larder_layout::Algorithm;

    use super::*;

    /// What is in memory stays within its limit, and is no way around a repository.
    #[test]
    fn memory_is_bounded_and_knows_who_may_see_what() {
        let mut recent = Recent { manifests: LruCache::unbounded(), size_bytes: 0 };
        let [a, b] = ["a", "b"].map(|name| name.parse::<Repository>().unwrap());
        let manifests: Vec<_> = (0..40_u8)
            .map(|n| {
                let content = Bytes::from(vec![n; 1 << 20]);
                let digest = Digest::of(Algorithm::Sha256, &content);
                Manifest::new(digest, content, Source::Local)
            })
            .collect();
        for manifest in &manifests {
            recent.add(&a, manifest);
            recent.add(&a, manifest);
            assert!(recent.size_bytes <= MEMORY_MAX_BYTES);
        }
        let (first, last) = (&manifests[0].digest, &manifests[39].digest);
        assert!(recent.find(&a, first).is_none());
        assert!(recent.find(&b, last).is_none());
        assert_eq!(recent.find(&a, last).unwrap().content, manifests[39].content);
        assert!(recent.believe(&b, last).is_some());
        assert!(recent.find(&a, last).is_some() && recent.find(&b, last).is_some());
    }
}

//! Tags whose manifest is not in the directory yet.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use larder_layout::{Digest, Repository, Tag};

/// How many tags are remembered until their manifest is cached.
const SIGHTINGS_MAX: usize = 4096;

/// What tags were seen to name at the upstream, until that manifest is cached: docker and
/// containerd ask `HEAD` by tag and then `GET` by digest, which does not say the tag again.
#[derive(Default)]
pub struct Sightings {
    seen: Mutex<HashMap<(Repository, Tag), Digest>>,
}

impl Sightings {
    /// Remembers what a tag names now.
    pub fn note(&self, repository: &Repository, tag: &Tag, digest: &Digest) {
        let mut seen = self.lock();
        if seen.len() >= SIGHTINGS_MAX {
            // What is forgotten is only seen again with the tag's next revalidation.
            seen.clear();
        }
        seen.insert((repository.clone(), tag.clone()), digest.clone());
    }

    /// Whether a tag was seen to name this manifest, and has not been linked yet.
    pub fn contains(&self, repository: &Repository, digest: &Digest) -> bool {
        let seen = self.lock();
        seen.iter().any(|((name, _), named)| name == repository && named == digest)
    }

    /// The tags that named this manifest when they were last seen. They are forgotten.
    pub fn take(&self, repository: &Repository, digest: &Digest) -> Vec<Tag> {
        let mut seen = self.lock();
        let taken = seen.extract_if(|(name, _), named| name == repository && named == digest);
        taken.map(|((_, tag), _)| tag).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Repository, Tag), Digest>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

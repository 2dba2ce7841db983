//! When a tag is fresh: when the upstream need not be asked what it names.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use larder_config::{Check, Deleted, Tags};
use larder_layout::{Digest, Repository, Tag};
use lru::LruCache;
use wildmatch::WildMatch;

/// Of how many tags it is known when the upstream was asked.
const CHECKED_MAX: NonZeroUsize = NonZeroUsize::new(64 << 10).unwrap();

/// The operator's rules, and what the upstreams said lately.
pub struct Freshness {
    rules: Vec<(WildMatch, Check)>,
    /// What becomes of a tag that the upstream has no more.
    pub deleted: Deleted,
    checked: Mutex<LruCache<(Repository, Tag), Checked>>,
    started: Instant,
}

/// The upstream's last word on a tag.
struct Checked {
    at: Instant,
    digest: Digest,
}

impl Freshness {
    /// What the configuration says.
    pub fn new(config: &Tags) -> Self {
        let rules = config.rules.iter().map(|rule| (WildMatch::new(&rule.pattern), rule.check));
        Self {
            rules: rules.collect(),
            deleted: config.deleted,
            checked: Mutex::new(LruCache::new(CHECKED_MAX)),
            started: Instant::now(),
        }
    }

    /// When the upstream is asked about a tag.
    pub fn check(&self, repository: &Repository, tag: &Tag) -> Check {
        if self.rules.is_empty() {
            return Check::Always;
        }
        let name = format!("{repository}:{tag}");
        let rule = self.rules.iter().find(|(pattern, _)| pattern.matches(&name));
        rule.map_or(Check::Always, |(_, check)| *check)
    }

    /// The upstream has said what a tag names.
    pub fn note(&self, repository: &Repository, tag: &Tag, digest: &Digest) {
        let checked = Checked { at: Instant::now(), digest: digest.clone() };
        self.checked().put((repository.clone(), tag.clone()), checked);
    }

    /// Whether the upstream said within this time that a tag names this manifest.
    pub fn said_within(
        &self,
        time: Duration,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> bool {
        let mut checked = self.checked();
        let checked = checked.get(&(repository.clone(), tag.clone()));
        checked.is_some_and(|checked| checked.at.elapsed() < time && checked.digest == *digest)
    }

    /// How long ago the upstream was asked about a tag, at least.
    pub fn age(&self, repository: &Repository, tag: &Tag) -> Duration {
        let mut checked = self.checked();
        let checked = checked.get(&(repository.clone(), tag.clone()));
        checked.map_or(self.started, |checked| checked.at).elapsed()
    }

    fn checked(&self) -> MutexGuard<'_, LruCache<(Repository, Tag), Checked>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What the upstreams said of who may read which repository. In memory alone: a cache that starts
//! while its upstream is down shows nothing.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use larder_layout::Repository;
use lru::LruCache;

use crate::{auth::basic::Print, upstream::Upstream};

/// How many proofs are kept: each of one client for one repository.
const PROOFS_MAX: NonZeroUsize = NonZeroUsize::new(16 << 10).unwrap();

/// Who, and which repository, whose name in the directory tells the upstream too.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Proof {
    pub repository: Repository,
    /// Of the client's credentials; `None` for everybody.
    pub print: Option<Print>,
}

/// The upstream's last word on it.
struct Word {
    said: Instant,
    /// As the client may ask it; `None` when it refused.
    upstream: Option<Arc<Upstream>>,
}

/// What was said.
pub struct Proofs {
    words: Mutex<LruCache<Proof, Word>>,
    /// How long it holds.
    ttl: Duration,
}

impl Proofs {
    pub fn new(ttl: Duration) -> Self {
        Self { words: Mutex::new(LruCache::new(PROOFS_MAX)), ttl }
    }

    /// The upstream as the client may ask it, when its word still holds.
    pub fn holds(&self, proof: &Proof) -> Option<Arc<Upstream>> {
        self.held_within(proof, Duration::ZERO)
    }

    /// The same, when its word would still hold with so much more time.
    pub fn held_within(&self, proof: &Proof, grace: Duration) -> Option<Arc<Upstream>> {
        let mut words = self.lock();
        let word = words.get(proof)?;
        let is_fresh = word.said.elapsed() < self.ttl.saturating_add(grace);
        word.upstream.clone().filter(|_| is_fresh)
    }

    /// Whether its last word was that the client may, however long ago.
    pub fn ever_held(&self, proof: &Proof) -> bool {
        self.known(proof).is_some()
    }

    /// The upstream as the client asked it before.
    pub fn known(&self, proof: &Proof) -> Option<Arc<Upstream>> {
        self.lock().get(proof)?.upstream.clone()
    }

    /// Whether it refused lately.
    pub fn was_refused(&self, proof: &Proof) -> bool {
        let mut words = self.lock();
        let word = words.get(proof);
        word.is_some_and(|word| word.upstream.is_none() && word.said.elapsed() < self.ttl)
    }

    /// The client may.
    pub fn note(&self, proof: Proof, upstream: Arc<Upstream>) {
        self.lock().put(proof, Word { said: Instant::now(), upstream: Some(upstream) });
    }

    /// The client may not, or not any more.
    pub fn refuse(&self, proof: Proof) {
        self.lock().put(proof, Word { said: Instant::now(), upstream: None });
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Proof, Word>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

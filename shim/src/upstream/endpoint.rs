//! One URL of an upstream, and whether it works.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use url::Url;

/// How long a URL that failed is asked last.
const PAUSE: Duration = Duration::from_secs(5);

/// One of the URLs that serve the same content.
pub(super) struct Endpoint {
    pub(super) url: Url,
    broken_until: Mutex<Option<Instant>>,
}

impl Endpoint {
    pub(super) fn new(url: Url) -> Self {
        Self { url, broken_until: Mutex::new(None) }
    }

    /// It failed: for a while it is asked only when every other has failed too.
    pub(super) fn broke(&self) {
        let until = Some(Instant::now() + PAUSE);
        *self.broken_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    pub(super) fn is_broken(&self) -> bool {
        let until = self.broken_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

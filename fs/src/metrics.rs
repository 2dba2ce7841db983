//! What is counted, and under which name `.larder/stats` shows it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// The counters of one mount, from its start.
#[derive(Debug, Default, Serialize)]
pub struct Metrics {
    opened_cached: AtomicU64,
    opened_fetched: AtomicU64,
    fetched_bytes: AtomicU64,
    ingested: AtomicU64,
    ingested_bytes: AtomicU64,
    expired: AtomicU64,
    expired_bytes: AtomicU64,
}

impl Metrics {
    /// A blob was opened that was in the local cache.
    pub fn opened_cached(&self) {
        self.opened_cached.fetch_add(1, Relaxed);
    }

    /// A blob was opened after a fetch from the shared storage.
    pub fn opened_fetched(&self) {
        self.opened_fetched.fetch_add(1, Relaxed);
    }

    /// A range of this many bytes came from the shared storage.
    pub fn fetched(&self, size_bytes: u64) {
        self.fetched_bytes.fetch_add(size_bytes, Relaxed);
    }

    /// A blob of this many bytes was published by this node.
    pub fn ingested(&self, size_bytes: u64) {
        self.ingested.fetch_add(1, Relaxed);
        self.ingested_bytes.fetch_add(size_bytes, Relaxed);
    }

    /// A blob of this many bytes was removed from the shared storage by this node, for its age.
    pub fn expired(&self, size_bytes: u64) {
        self.expired.fetch_add(1, Relaxed);
        self.expired_bytes.fetch_add(size_bytes, Relaxed);
    }
}

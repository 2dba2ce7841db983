//! `repositories/`: symlinks, stored as Distribution's link objects.

use std::sync::Arc;

use larder_layout::{Digest, Link};

use crate::{
    cache::Cache,
    error::{Error, Result},
    store::Storage,
};

/// The links of the shared storage, as one node sees and publishes them. Nothing is remembered:
/// another node may move a tag the next millisecond.
pub struct Links {
    storage: Arc<Storage>,
    cache: Arc<Cache>,
}

impl Links {
    /// The links in `storage`.
    pub fn new(storage: Arc<Storage>, cache: Arc<Cache>) -> Self {
        Self { storage, cache }
    }

    /// The digest that a link names now.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such link.
    pub async fn read(&self, link: &Link) -> Result<Digest> {
        self.storage.read_link(link).await
    }

    /// Publishes a link. When this returns, every node sees it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a membership is to name another blob than its own name says,
    /// [`Error::NotFound`] when the blob is not published: a link never dangles.
    pub async fn publish(&self, link: &Link, digest: &Digest) -> Result<()> {
        if let Link::Member(_, _, name) = link
            && name != digest
        {
            return Err(Error::Invalid("a membership is called as the blob it points to"));
        }
        if self.cache.stat(digest).is_none() {
            self.storage.stat_blob(digest).await?;
        }
        self.storage.put_link(link, digest).await
    }
}

//! Segments that no manifest refers to. Of a large object they come first and the manifest last,
//! so that a node that is killed in between leaves them, and so does the one of two nodes that
//! publish the same large object whose manifest is overwritten by the other's.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use object_store::{Result, path::Path};

use super::{
    super::leftovers::{Leftovers, age},
    Container, listing,
};

/// Our segments in a container.
pub struct Segments {
    container: Arc<Container>,
    /// Uploads, hashed, that a manifest was found to refer to, so that it is not read again each
    /// time. Two that hash to the same cost some space.
    referenced: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

/// The segments of one upload: `<segments><location>/<upload>/<number>`.
struct Upload {
    /// What all their names begin with.
    prefix: String,
    location: Path,
    names: Vec<String>,
    /// When the last of them was written.
    written: DateTime<Utc>,
}

impl Segments {
    pub fn new(container: Arc<Container>) -> Self {
        Self { container, referenced: Mutex::default(), hasher: RandomState::new() }
    }

    /// The upload that a segment is of. Nothing for a name that is none of ours.
    fn upload_of(&self, name: String, written: DateTime<Utc>) -> Option<Upload> {
        let (prefix, _number) = name.rsplit_once('/')?;
        let (location, _upload) =
            prefix.strip_prefix(&self.container.segments)?.rsplit_once('/')?;
        let (prefix, location) = (format!("{prefix}/"), Path::parse(location).ok()?);
        Some(Upload { prefix, location, names: vec![name], written })
    }

    /// Whether the object at its location is made of this upload.
    async fn is_referenced(&self, upload: &Upload) -> Result<bool> {
        let hash = self.hasher.hash_one(&upload.prefix);
        let referenced = || self.referenced.lock().unwrap_or_else(PoisonError::into_inner);
        if referenced().contains(&hash) {
            return Ok(true);
        }
        let segments = self.container.segments_of(&upload.location).await?;
        let is_referenced = segments.iter().any(|name| name.starts_with(&upload.prefix));
        if is_referenced {
            referenced().insert(hash);
        }
        Ok(is_referenced)
    }

    /// Removes an upload if it is left over, and tells whether it did.
    async fn settle(&self, upload: Upload, older_than: Duration) -> Result<bool> {
        if age(upload.written) < older_than || self.is_referenced(&upload).await? {
            return Ok(false);
        }
        self.container.remove(upload.names).await?;
        Ok(true)
    }
}

#[async_trait]
impl Leftovers for Segments {
    async fn sweep(&self, older_than: Duration) -> Result<usize> {
        let mut removed = 0;
        let prefix = self.container.segments.clone();
        let mut segments = pin!(listing::objects(&self.container, prefix));
        let mut last: Option<Upload> = None;
        // In the order of their names: those of one upload follow each other.
        while let Some((name, written)) = segments.try_next().await? {
            match &mut last {
                Some(upload) if name.starts_with(&upload.prefix) => {
                    upload.written = upload.written.max(written);
                    upload.names.push(name);
                }
                _ => {
                    if let Some(upload) = last.take() {
                        removed += usize::from(self.settle(upload, older_than).await?);
                    }
                    last = self.upload_of(name, written);
                }
            }
        }
        if let Some(upload) = last {
            removed += usize::from(self.settle(upload, older_than).await?);
        }
        Ok(removed)
    }
}

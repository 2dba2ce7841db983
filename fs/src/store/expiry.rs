//! `proxy.ttl` and `blobttl`: blobs are removed from the shared storage when they are as old as that.
//!
//! The age is counted from when a blob was written, as Distribution counts it. Links stay: one whose
//! blob is gone is a miss, and the blob is pulled again. Any number of nodes may do this at once.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{TryFutureExt, TryStreamExt};
use larder_layout::{Algorithm, Digest};
use object_store::{ObjectStoreExt, PutOptions};
use tokio::time::sleep;

use super::{BlobMeta, NAME_DEADLINE, Storage, aside, not_a_miss};
use crate::{
    error::{Error, Result},
    metrics::Metrics,
};

/// How often the storage is looked through: once in the time that a blob lives, within these bounds.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_hours(1);
/// The pause between two removals: nobody waits for them, and others ask the storage, too.
const PAUSE: Duration = Duration::from_millis(10);

/// What was removed in one round.
#[derive(Default)]
struct Removed {
    blobs: u64,
    size_bytes: u64,
}

/// Removes what is older than `ttl`, now and again and again, for as long as it is polled. A round that
/// fails is logged: what it does not come to, the next one does.
pub async fn expire(storage: Arc<Storage>, metrics: Arc<Metrics>, ttl: Duration) {
    tracing::info!("{storage}: blobs are removed when they are {ttl:?} old");
    loop {
        let mut removed = Removed::default();
        let outcome = storage.remove_expired(ttl, &metrics, &mut removed).await;
        let Removed { blobs, size_bytes } = removed;
        if blobs > 0 {
            tracing::info!(blobs, size_bytes, "{storage}: removed what was {ttl:?} old");
        }
        if let Err(e) = outcome {
            tracing::warn!("{storage}: cannot remove what is {ttl:?} old: {e}");
        }
        sleep(ttl.clamp(INTERVAL_MIN, INTERVAL_MAX)).await;
    }
}

impl Storage {
    async fn remove_expired(
        &self,
        ttl: Duration,
        metrics: &Metrics,
        removed: &mut Removed,
    ) -> Result<()> {
        let Some(oldest) = oldest(self.now().await?, SystemTime::now(), ttl) else { return Ok(()) };
        for algorithm in Algorithm::ALL {
            let mut blobs = self.list_blobs(algorithm);
            while let Some((digest, meta)) = blobs.try_next().await? {
                if !is_expired(meta, oldest) || !self.remove_if_expired(&digest, oldest).await? {
                    continue;
                }
                metrics.expired(meta.size_bytes);
                removed.blobs += 1;
                removed.size_bytes += meta.size_bytes;
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// The time by the storage's clock, or somewhat before: when it says that something was written
    /// which has just been written.
    async fn now(&self) -> Result<SystemTime> {
        let key = self.keys.clock();
        let options = PutOptions { attributes: self.attributes.clone(), ..Default::default() };
        let asked = async {
            self.objects.put_opts(&key, "the time".into(), options).await?;
            self.objects.head(&key).await
        };
        let meta = aside(format!("write {key}"), NAME_DEADLINE, asked.map_err(not_a_miss)).await?;
        Ok(meta.last_modified.into())
    }

    /// Removes a blob that was listed as expired, and tells whether it did. It is looked at again
    /// before: since it was listed, it may have been removed and published anew by others. What they
    /// publish between the look and the removal goes, too, and is pulled once more.
    async fn remove_if_expired(&self, digest: &Digest, oldest: SystemTime) -> Result<bool> {
        let key = self.keys.blob(digest);
        let removal = async {
            let meta = self.objects.head(&key).await?;
            let is_expired = is_expired(BlobMeta::from(&meta), oldest);
            if is_expired {
                self.objects.delete(&key).await?;
            }
            Ok(is_expired)
        };
        match aside(format!("remove {key}"), NAME_DEADLINE, removal).await {
            Err(Error::NotFound) => Ok(false),
            outcome => outcome,
        }
    }
}

/// When the youngest blob was written that is as old as `ttl`. Both clocks have to say so: one that is
/// wrong, ours or the storage's, must not expire everything.
fn oldest(by_storage: SystemTime, by_us: SystemTime, ttl: Duration) -> Option<SystemTime> {
    by_storage.min(by_us).checked_sub(ttl)
}

/// A blob whose age is not known, which some systems tell by the beginning of time, does not expire.
fn is_expired(meta: BlobMeta, oldest: SystemTime) -> bool {
    meta.modified > SystemTime::UNIX_EPOCH && meta.modified <= oldest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_wrong_expires_nothing() {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let (day, now) = (Duration::from_hours(24), at(1_000_000));
        let expires = |modified, by_storage, by_us| {
            let meta = BlobMeta { size_bytes: 1, modified };
            oldest(by_storage, by_us, day).is_some_and(|oldest| is_expired(meta, oldest))
        };
        let (old, new) = (now - day, now - day + Duration::from_secs(1));
        assert!(expires(old, now, now));
        assert!(!expires(new, now, now));
        // Ours is a year ahead, or the storage's is; or one of them has begun anew.
        for wrong in [now + 365 * day, at(0), at(60)] {
            assert!(!expires(new, now, wrong) && !expires(new, wrong, now), "{wrong:?}");
        }
        assert!(!expires(at(0), now, now), "its age is not known");
    }
}

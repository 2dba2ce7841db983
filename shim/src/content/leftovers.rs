//! What pulls of earlier processes left in `ingest/`.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

/// What was not written to for this long belongs to no pull that still runs: each piece of one has
/// a deadline of seconds, and publishing the largest blob does not write.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// Removes it.
///
/// # Errors
/// The directory cannot be listed.
pub(super) fn sweep(ingest: &Path) -> io::Result<()> {
    for entry in fs::read_dir(ingest)? {
        let entry = entry?;
        // What cannot be looked at is not ours, or has just been published.
        let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) else {
            continue;
        };
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if age >= LEFTOVER_AGE && fs::remove_file(entry.path()).is_ok() {
            tracing::info!(file = ?entry.file_name(), "removed what an earlier pull left behind");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use larder_layout::{Algorithm, Digest};

    use super::*;
    use crate::content::Content;

    #[tokio::test]
    async fn only_what_no_pull_can_still_write_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let content = Content::new(root.path());
        content.prepare().await.unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let running = content.stage(Some(&digest)).await.unwrap();
        let abandoned = content.stage(Some(&digest)).await.unwrap();
        let yesterday = SystemTime::now() - LEFTOVER_AGE;
        abandoned.file.set_modified(yesterday).unwrap();

        Content::new(root.path()).prepare().await.unwrap();
        let mut left = fs::read_dir(root.path().join("ingest")).unwrap();
        assert_eq!(left.next().unwrap().unwrap().file_name(), running.id.as_str());
        assert!(left.next().is_none());
    }
}

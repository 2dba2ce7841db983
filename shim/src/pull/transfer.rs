//! The transfer of a pull: from the upstream into the staging file.

use std::sync::Arc;

use bytes::Bytes;
use larder_layout::Verifier;
use tokio::{sync::watch, task::spawn_blocking};

use super::{Progress, Pull, Pulls, lease::Claim, source::Source, staging::Staging};
use crate::{
    error::Error,
    upstream::{Download, Upstream},
};

/// Transfers a blob, shows how far it is, and checks it. Another node may have begun to send it.
///
/// # Errors
/// The upstream gave no such blob, or nothing that is one. Nothing stays staged.
pub(super) async fn run(
    pulls: &Pulls,
    pull: &Pull,
    upstream: &Arc<Upstream>,
    progress: &watch::Sender<Progress>,
    claim: &mut Claim<'_>,
    followed: Option<Download>,
) -> Result<Arc<Staging>, Error> {
    // What another node has the lease of, that sends to the shared storage.
    let sent_as = (!claim.is_followed()).then_some(&pull.digest);
    let mut source = Source::open(pulls, pull, upstream, claim, followed).await?;
    let staging = Staging::create(&pulls.content, &pulls.temporary, sent_as).await;
    let unstaged = |error| Error::Storage(format!("a blob can be staged nowhere: {error}"));
    let mut staging = Arc::new(staging.map_err(unstaged)?);
    progress.send_modify(|progress| {
        progress.staging = Some(Arc::clone(&staging));
        progress.size_bytes = source.size_bytes;
    });
    let checked = store(pulls, pull, progress, &mut source, &mut staging).await;
    if checked.is_err() {
        staging.discard(&pulls.content).await;
    }
    checked.map(|()| staging)
}

/// Stores and hashes each piece while the next one comes.
async fn store(
    pulls: &Pulls,
    pull: &Pull,
    progress: &watch::Sender<Progress>,
    source: &mut Source<'_, '_>,
    staging: &mut Arc<Staging>,
) -> Result<(), Error> {
    let mut verifier = Verifier::new(pull.digest.clone());
    let mut stored_bytes = None;
    let mut next = source.piece().await?;
    while let Some(piece) = next {
        let offset = verifier.size_bytes();
        let write = async {
            match stored_bytes {
                None => staging.write(offset, piece.clone()).await,
                Some(_) => Ok(()),
            }
        };
        let (stored, hashed, following) =
            tokio::join!(write, hash(verifier, piece.clone()), source.piece());
        verifier = hashed?;
        if let Err(error) = stored {
            let (digest, repository) = (&pull.digest, &pull.origin);
            tracing::warn!(%digest, %repository, %error, "a blob being pulled will not be kept");
            let elsewhere = move_out(pulls, staging, offset, piece.clone()).await;
            staging.discard(&pulls.content).await;
            match elsewhere {
                Ok(copy) => *staging = Arc::new(copy),
                Err(error) => {
                    tracing::warn!(%digest, %repository, %error, "there is room for it nowhere");
                    stored_bytes = Some(offset);
                }
            }
        }
        if stored_bytes.is_some() {
            be_taken(pull, progress, piece.clone()).await?;
        }
        next = following?;
        // What came last is withheld until the digest is known to be right.
        let readable_bytes = if next.is_some() { verifier.size_bytes() } else { offset };
        progress.send_modify(|progress| {
            progress.staging = Some(Arc::clone(staging));
            progress.stored_bytes = stored_bytes;
            progress.recent.push(piece);
            progress.readable_bytes = readable_bytes;
        });
    }
    let size_bytes = verifier.size_bytes();
    verifier.finish().map_err(|mismatch| Error::Upstream(format!("it sent {mismatch}")))?;
    progress.send_modify(|progress| {
        progress.size_bytes = Some(size_bytes);
        progress.readable_bytes = size_bytes;
    });
    Ok(())
}

async fn hash(mut verifier: Verifier, piece: Bytes) -> Result<Verifier, Error> {
    let hashed = spawn_blocking(move || {
        verifier.update(&piece);
        verifier
    });
    hashed.await.map_err(|error| Error::Storage(error.to_string()))
}

/// Copies what has come out of a directory that takes no more.
async fn move_out(
    pulls: &Pulls,
    full: &Staging,
    offset: u64,
    piece: Bytes,
) -> std::io::Result<Staging> {
    let copy = full.copy(&pulls.temporary, offset).await?;
    copy.write(offset, piece).await?;
    Ok(copy)
}

/// Waits until the clients have read what goes from memory when a piece comes: it is nowhere else.
async fn be_taken(
    pull: &Pull,
    progress: &watch::Sender<Progress>,
    piece: Bytes,
) -> Result<(), Error> {
    let mut recent = progress.borrow().recent.clone();
    recent.push(piece);
    let start = recent.start();
    if start > 0 && !pull.readers.come_to(start).await {
        return Err(Error::Storage("there is no room for a blob that no client reads".to_owned()));
    }
    Ok(())
}

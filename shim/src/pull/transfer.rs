//! The transfer of a pull: from the upstream into the staging file, resumed when it breaks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use larder_layout::Verifier;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout_at},
};

use super::{Progress, Pull, Pulls, staging::Staging};
use crate::{
    body::PIECE_BYTES,
    error::Error,
    upstream::{Download, Upstream, UpstreamError},
};

/// How often in a row a transfer may break without a byte in between.
const BREAKS_MAX: u32 = 5;
/// The pause before the first resumption; it doubles with each that brings nothing.
const PAUSE: Duration = Duration::from_millis(200);
/// How far a transfer may fall behind [`MIN_BYTES_PER_SECOND`] before it is given up.
const GRACE: Duration = Duration::from_secs(300);
const MIN_BYTES_PER_SECOND: u64 = 16 << 10;
/// How long what has come waits for more to be stored and sent with it. Each piece takes a dozen
/// changes of thread, so small ones cost as much as large ones.
const GATHERING: Duration = Duration::from_millis(3);
/// No blob is larger; an upstream that does not say its length would otherwise never end.
const BLOB_MAX_BYTES: u64 = 1 << 40;

/// Transfers a blob, shows how far it is, and checks it.
///
/// # Errors
/// The upstream gave no such blob, or nothing that is one. Nothing stays staged.
pub(super) async fn run(
    pulls: &Pulls,
    pull: &Pull,
    upstream: &Upstream,
    progress: &watch::Sender<Progress>,
) -> Result<Arc<Staging>, Error> {
    let mut source = Source::open(upstream, pull).await?;
    let staging = Staging::create(&pulls.content, &pulls.temporary, &pull.digest).await;
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
    source: &mut Source<'_>,
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

/// The bytes of a blob in order, over as many connections as it takes.
struct Source<'a> {
    upstream: &'a Upstream,
    pull: &'a Pull,
    size_bytes: Option<u64>,
    /// How many bytes were handed out.
    received_bytes: u64,
    /// `None` after a break.
    download: Option<Download>,
    /// What came instead of more while a piece was gathered.
    ahead: Option<Result<Option<Bytes>, UpstreamError>>,
    started: Instant,
}

impl<'a> Source<'a> {
    async fn open(upstream: &'a Upstream, pull: &'a Pull) -> Result<Self, Error> {
        let download = upstream.blob(&pull.origin, &pull.digest, 0).await;
        let unknown = Error::Blob(pull.digest.clone());
        let download = download.map_err(|error| Error::from_upstream(error, unknown))?;
        Ok(Self {
            upstream,
            pull,
            size_bytes: download.size_bytes,
            received_bytes: 0,
            download: Some(download),
            ahead: None,
            started: Instant::now(),
        })
    }

    /// The next bytes, as many as have come but at most [`PIECE_BYTES`] and a chunk; `None` at
    /// the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, Error> {
        for breaks in 0..BREAKS_MAX {
            if let Some(doublings) = breaks.checked_sub(1) {
                sleep(PAUSE * 2_u32.pow(doublings)).await;
            }
            let reason = match self.gather().await {
                Ok(piece) => {
                    self.received_bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                    self.check_limits()?;
                    return Ok(piece);
                }
                Err(reason) => reason,
            };
            let (digest, offset) = (&self.pull.digest, self.received_bytes);
            tracing::warn!(%digest, offset, %reason, "a transfer broke off and is resumed");
            (self.download, self.ahead) = (None, None);
        }
        Err(Error::Upstream(format!("the transfer broke off {BREAKS_MAX} times")))
    }

    async fn gather(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        if self.size_bytes == Some(self.received_bytes) {
            return Ok(None);
        }
        if self.download.is_none() {
            self.resume().await?;
        }
        let Some(download) = &mut self.download else { return Ok(None) };
        let first = match self.ahead.take() {
            Some(ahead) => ahead?,
            None => download.chunk().await?,
        };
        let Some(first) = first else {
            if self.size_bytes.is_some() {
                return Err(UpstreamError::Unavailable("the body is too short".to_owned()));
            }
            return Ok(None);
        };
        let gathered_by = tokio::time::Instant::now() + GATHERING;
        let mut piece_bytes = first.len() as u64;
        let mut chunks = vec![first];
        while piece_bytes < PIECE_BYTES {
            match timeout_at(gathered_by, download.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    piece_bytes += chunk.len() as u64;
                    chunks.push(chunk);
                }
                Ok(ahead) => {
                    self.ahead = Some(ahead);
                    break;
                }
                Err(_) => break,
            }
        }
        Ok(Some(match chunks.len() {
            1 => chunks.remove(0),
            _ => chunks.concat().into(),
        }))
    }

    /// Goes on where the last connection broke off. An upstream that knows no ranges sends from
    /// the beginning, and what came before is skipped.
    async fn resume(&mut self) -> Result<(), UpstreamError> {
        let Pull { origin, digest, .. } = self.pull;
        let mut download = self.upstream.blob(origin, digest, self.received_bytes).await?;
        match (self.size_bytes, download.size_bytes) {
            (Some(before), Some(now)) if before != now => {
                let reason = format!("the blob had {before} bytes and now has {now}");
                return Err(UpstreamError::Unavailable(reason));
            }
            (before, now) => self.size_bytes = before.or(now),
        }
        let mut to_skip = self.received_bytes.saturating_sub(download.offset);
        while to_skip > 0 {
            let chunk = download.chunk().await?;
            let mut chunk = chunk.ok_or_else(|| {
                UpstreamError::Unavailable("the body ends before what came already".to_owned())
            })?;
            let skipped = to_skip.min(chunk.len() as u64);
            to_skip -= skipped;
            let rest = chunk.split_off(usize::try_from(skipped).unwrap_or(chunk.len()));
            if !rest.is_empty() {
                self.ahead = Some(Ok(Some(rest)));
            }
        }
        self.download = Some(download);
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Error> {
        let allowed = GRACE + Duration::from_secs(self.received_bytes / MIN_BYTES_PER_SECOND);
        if self.started.elapsed() > allowed {
            return Err(Error::Upstream(format!(
                "the transfer is slower than {MIN_BYTES_PER_SECOND} bytes per second"
            )));
        }
        if self.received_bytes > self.size_bytes.unwrap_or(BLOB_MAX_BYTES) {
            return Err(Error::Upstream("the blob is longer than it may be".to_owned()));
        }
        Ok(())
    }
}

//! The bytes of a blob in order, from the upstream or from the node that has the lease: resumed where a
//! connection breaks, and over several connections where an upstream's is slow.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout_at},
};

use super::{
    Pull, Pulls,
    lease::Claim,
    parts::{PART_BYTES, Part, Parts},
};
use crate::{
    body::PIECE_BYTES,
    content::{Blob, Content},
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
/// How far it may fall behind [`FAST_BYTES_PER_SECOND`] before parts are fetched over more connections.
const ALONE: Duration = Duration::from_millis(500);
/// Half a Gbit/s. One connection is not faster than its window per round trip (RFC 7323, section 1.1): that is
/// 27 MiB/s of Linux's 4 MiB across an ocean, however wide the link is.
const FAST_BYTES_PER_SECOND: u64 = 64 << 20;
/// How long what has come waits for more to be stored and sent with it. Each piece takes a dozen
/// changes of thread, so small ones cost as much as large ones.
const GATHERING: Duration = Duration::from_millis(3);
/// No blob is larger; an upstream that does not say its length would otherwise never end.
const BLOB_MAX_BYTES: u64 = 1 << 40;

pub(super) struct Source<'a, 'c> {
    pulls: &'a Pulls,
    upstream: &'a Arc<Upstream>,
    pull: &'a Pull,
    /// Another node may have the lease, and send the blob instead.
    claim: &'a mut Claim<'c>,
    pub(super) size_bytes: Option<u64>,
    /// How many bytes were handed out.
    received_bytes: u64,
    /// Where the next bytes come from; `None` after a break, and behind a part.
    connection: Option<Connection>,
    /// Where in the blob the connection is left for the next part.
    end: Option<u64>,
    /// What came instead of more while a piece was gathered.
    ahead: Option<Result<Option<Bytes>, UpstreamError>>,
    parts: Parts<'a>,
    started: Instant,
    /// How long the upstream was waited for.
    waited: Duration,
    /// Among as many transfers as there are places, none gets more connections.
    _place: Option<OwnedSemaphorePermit>,
}

enum Connection {
    /// It could go on to the end of the blob.
    Whole(Download),
    Part(Part),
    /// The directory has the blob by now: it could be read from here to its end.
    Stored(Blob, u64),
}

impl Connection {
    async fn chunk(&mut self, content: &Content) -> Result<Option<Bytes>, UpstreamError> {
        match self {
            Self::Whole(download) => download.chunk().await,
            Self::Part(part) => part.chunk().await,
            Self::Stored(blob, offset) => {
                let range = *offset..blob.size_bytes.min(*offset + PIECE_BYTES);
                if range.is_empty() {
                    return Ok(None);
                }
                let read = content.calls().read(&blob.file, range.clone()).await;
                *offset = range.end;
                read.map(Some).map_err(|error| UpstreamError::Unavailable(error.to_string()))
            }
        }
    }
}

impl<'a, 'c> Source<'a, 'c> {
    pub(super) async fn open(
        pulls: &'a Pulls,
        pull: &'a Pull,
        upstream: &'a Arc<Upstream>,
        claim: &'a mut Claim<'c>,
        followed: Option<Download>,
    ) -> Result<Self, Error> {
        let download = match followed {
            Some(followed) => Ok(followed),
            None => upstream.blob(&pull.origin, &pull.digest, 0, None).await,
        };
        let unknown = Error::Blob(pull.digest.clone());
        let download = download.map_err(|error| Error::from_upstream(error, unknown))?;
        Ok(Self {
            pulls,
            upstream,
            pull,
            claim,
            size_bytes: download.size_bytes,
            received_bytes: 0,
            connection: Some(Connection::Whole(download)),
            end: None,
            ahead: None,
            parts: Parts::new(upstream, pull, &pulls.connections),
            started: Instant::now(),
            waited: Duration::ZERO,
            _place: Arc::clone(&pulls.connections).try_acquire_owned().ok(),
        })
    }

    /// The next bytes, as many as have come but at most [`PIECE_BYTES`] and a chunk; `None` at
    /// the end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Error> {
        for breaks in 0..BREAKS_MAX {
            if let Some(doublings) = breaks.checked_sub(1) {
                sleep(PAUSE * 2_u32.pow(doublings)).await;
            }
            let asked = Instant::now();
            let reason = match self.gather().await {
                Ok(piece) => {
                    self.waited += asked.elapsed();
                    self.received_bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                    self.check_limits()?;
                    self.fetch_ahead();
                    return Ok(piece);
                }
                Err(reason) => reason,
            };
            let (digest, offset) = (&self.pull.digest, self.received_bytes);
            tracing::warn!(%digest, offset, %reason, "a transfer broke off and is resumed");
            // An upstream that refuses a part, or knows no ranges, is asked for no more of them.
            if matches!(&self.connection, Some(Connection::Part(part)) if part.range.start == offset)
            {
                self.parts.give_up();
            }
            self.leave();
        }
        Err(Error::Upstream(format!("the transfer broke off {BREAKS_MAX} times")))
    }

    async fn gather(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        if self.size_bytes == Some(self.received_bytes) {
            return Ok(None);
        }
        self.go_on().await?;
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let first = match self.ahead.take() {
            Some(ahead) => ahead?,
            None => connection.chunk(&self.pulls.content).await?,
        };
        let Some(first) = first else {
            if self.size_bytes.is_some() {
                return Err(UpstreamError::Unavailable("the body is too short".to_owned()));
            }
            return Ok(None);
        };
        let gathered_by = tokio::time::Instant::now() + GATHERING;
        let left_bytes = self.end.map_or(u64::MAX, |end| end - self.received_bytes);
        let mut piece_bytes = first.len() as u64;
        let mut chunks = vec![first];
        while piece_bytes < PIECE_BYTES.min(left_bytes) {
            match timeout_at(gathered_by, connection.chunk(&self.pulls.content)).await {
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
        let mut piece: Bytes = match chunks.len() {
            1 => chunks.remove(0),
            _ => chunks.concat().into(),
        };
        if piece_bytes > left_bytes {
            // If the part that is to come next does not, the connection goes on with this.
            let rest = piece.split_off(usize::try_from(left_bytes).unwrap_or(usize::MAX));
            self.ahead = Some(Ok(Some(rest)));
        }
        Ok(Some(piece))
    }

    /// Sees to it that there is a connection.
    async fn go_on(&mut self) -> Result<(), UpstreamError> {
        if self.end == Some(self.received_bytes) {
            match self.connection {
                // One that works is left only for a part that comes.
                Some(Connection::Whole(_)) if !self.parts.is_coming() => {
                    self.end = self.parts.skip();
                }
                _ => self.leave(),
            }
        }
        if self.connection.is_none() { self.resume().await } else { Ok(()) }
    }

    fn leave(&mut self) {
        (self.connection, self.end, self.ahead) = (None, None, None);
    }

    /// Goes on with a part, or where the last connection broke off. An upstream that knows no ranges sends
    /// from the beginning, and what came before is skipped.
    async fn resume(&mut self) -> Result<(), UpstreamError> {
        let size_bytes = self.size_bytes.unwrap_or_default();
        if let Some(part) = self.parts.take(self.received_bytes, size_bytes) {
            self.end = Some(part.range.end);
            self.connection = Some(Connection::Part(part));
            return Ok(());
        }
        let Pull { origin, digest, .. } = self.pull;
        let was_followed = self.claim.is_followed();
        let followed = self.claim.follow(self.received_bytes).await;
        if was_followed
            && self.claim.is_held()
            && let Some(blob) = super::find(self.pulls, self.pull).await
        {
            // Whoever had the lease before has published it, and only then died.
            self.size_bytes = Some(blob.size_bytes);
            self.connection = Some(Connection::Stored(blob, self.received_bytes));
            return Ok(());
        }
        let mut download = match followed {
            Some(followed) => followed,
            None => self.upstream.blob(origin, digest, self.received_bytes, None).await?,
        };
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
        (self.connection, self.end) = (Some(Connection::Whole(download)), self.parts.start());
        Ok(())
    }

    /// Gets a slow transfer the connections that it lacks, and keeps them busy. The first goes on up to where
    /// the parts begin; what is on its way behind that is lost, which is less than a part.
    fn fetch_ahead(&mut self) {
        let Some(size_bytes) = self.size_bytes else { return };
        if self.claim.is_followed() || matches!(self.connection, Some(Connection::Stored(..))) {
            return;
        }
        let begins = self.end.unwrap_or(self.received_bytes + PART_BYTES);
        if self.end.is_none() {
            let fast =
                Duration::from_secs_f64(self.received_bytes as f64 / FAST_BYTES_PER_SECOND as f64);
            if self.waited < ALONE + fast || begins + PART_BYTES > size_bytes {
                return;
            }
        }
        self.parts.fetch(begins, size_bytes);
        self.end = self.end.or(self.parts.start());
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

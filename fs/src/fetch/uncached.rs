//! Reading without the cache: a blob larger than it, or a disk that is full or fails.
//!
//! One pass from the beginning to the end hashes the blob while it is read in order. The last
//! piece is kept, and shown only when all of them hash to the digest. Reads out of order are
//! requests of their own.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use larder_layout::{Digest, Verifier};
use tokio::{sync::Mutex, task::JoinHandle};

use super::{Fetches, next_piece};
use crate::error::{Error, Result};

/// What is fetched in one request, and kept in memory: twice for each reader that reads in order.
const PIECE_BYTES: u64 = 4 << 20;

/// A blob that is read from the shared storage.
pub struct Uncached {
    fetches: Arc<Fetches>,
    digest: Digest,
    size_bytes: u64,
    pass: Mutex<Pass>,
}

/// A pass over the blob: how far it has been hashed.
#[derive(Default)]
struct Pass {
    /// The piece that was hashed last, and where it begins.
    start: u64,
    piece: Bytes,
    /// What comes next, already asked for.
    next: Option<JoinHandle<Result<Bytes>>>,
    verifier: Option<Verifier>,
    outcome: Option<Result<()>>,
}

impl Uncached {
    pub(super) fn new(fetches: Arc<Fetches>, digest: Digest, size_bytes: u64) -> Self {
        let verifier = Some(Verifier::new(digest.clone()));
        Self { fetches, digest, size_bytes, pass: Mutex::new(Pass { verifier, ..Pass::default() }) }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Waits for the first piece, which tells that the blob is there, and whether it is right when
    /// that is all of it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone from the storage.
    pub(super) async fn begin(&self) -> Result<()> {
        self.read(0..1.min(self.size_bytes)).await.map(drop)
    }

    /// A range that is not behind the end.
    ///
    /// # Errors
    /// What the storage says, and [`Error::Damaged`] instead of the last piece.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let mut pass = self.pass.lock().await;
        let last = self.size_bytes.saturating_sub(1) / PIECE_BYTES * PIECE_BYTES;
        let hashed = pass.start + pass.piece.len() as u64;
        if range.end > last {
            while pass.outcome.is_none() {
                self.advance(&mut pass).await?;
            }
            pass.outcome.clone().unwrap_or(Ok(()))?;
        } else if (hashed..hashed + PIECE_BYTES).contains(&range.start) {
            self.advance(&mut pass).await?;
        }
        let (start, end) = (pass.start, pass.start + pass.piece.len() as u64);
        let cached = range.start.clamp(start, end)..range.end.clamp(start, end);
        let piece =
            pass.piece.slice((cached.start - start) as usize..(cached.end - start) as usize);
        drop(pass);
        if cached.end - cached.start == range.end - range.start {
            return Ok(piece);
        }
        // The pass is elsewhere, but for an end of the range.
        let mut content = BytesMut::with_capacity((range.end - range.start) as usize);
        if piece.is_empty() {
            content.extend_from_slice(&self.fetch(range).await?);
        } else {
            if range.start < cached.start {
                content.extend_from_slice(&self.fetch(range.start..cached.start).await?);
            }
            content.extend_from_slice(&piece);
            if cached.end < range.end {
                content.extend_from_slice(&self.fetch(cached.end..range.end).await?);
            }
        }
        Ok(content.freeze())
    }

    /// Hashes the next piece, and asks for the one behind it.
    async fn advance(&self, pass: &mut Pass) -> Result<()> {
        let start = pass.start + pass.piece.len() as u64;
        let piece = match pass.next.take() {
            Some(next) => next.await.unwrap_or(Err(Error::TimedOut))?,
            None => self.fetch(self.piece_at(start)).await?,
        };
        // Not in a thread of its own: a reader that leaves meanwhile would take the verifier along.
        if let Some(verifier) = &mut pass.verifier {
            verifier.update(&piece);
        }
        (pass.start, pass.piece) = (start, piece);
        let end = start + pass.piece.len() as u64;
        if end < self.size_bytes {
            let (fetches, digest) = (Arc::clone(&self.fetches), self.digest.clone());
            let (size_bytes, range) = (self.size_bytes, self.piece_at(end));
            let next = async move { fetches.fetch_piece(&digest, size_bytes, range).await };
            pass.next = Some(tokio::spawn(next));
            return Ok(());
        }
        if let Some(verifier) = pass.verifier.take() {
            let outcome = verifier.finish().map_err(Error::Damaged);
            if let Err(e) = &outcome {
                self.fetches.mark_damaged(&self.digest, e);
            }
            pass.outcome = Some(outcome);
        }
        Ok(())
    }

    fn piece_at(&self, start: u64) -> Range<u64> {
        start..(start + PIECE_BYTES).min(self.size_bytes)
    }

    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        self.fetches.fetch_piece(&self.digest, self.size_bytes, range).await
    }
}

impl Fetches {
    async fn fetch_piece(
        &self,
        digest: &Digest,
        size_bytes: u64,
        range: Range<u64>,
    ) -> Result<Bytes> {
        if range.is_empty() {
            return self.storage.stat_blob(digest).await.map(|_| Bytes::new());
        }
        let _request = self.read_requests.acquire().await;
        let wanted_bytes = (range.end - range.start) as usize;
        let mut content = self.storage.read_blob(digest, size_bytes, range).await?;
        let mut piece = BytesMut::with_capacity(wanted_bytes);
        while let Some(bytes) = next_piece(&mut content).await? {
            piece.extend_from_slice(&bytes);
        }
        if piece.len() != wanted_bytes {
            return Err(Error::short(digest));
        }
        self.metrics.fetched(wanted_bytes as u64);
        Ok(piece.freeze())
    }
}

//! Parts of a blob that are fetched ahead, each over a connection of its own.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use larder_layout::{Digest, Repository};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout_at},
};
use tracing::Instrument;

use super::Pull;
use crate::upstream::{Download, Upstream, UpstreamError};

/// How long a part is. It is in memory until all before it has come.
pub(super) const PART_BYTES: u64 = 8 << 20;
/// How many a transfer fetches ahead at once.
const PARTS_MAX: usize = 7;
/// How much of one is handed on at once, and how long is waited for so much.
const PIECE_BYTES: usize = 1 << 20;
const GATHERING: Duration = Duration::from_millis(100);

type Chunk = Result<Bytes, UpstreamError>;

/// What one transfer fetches ahead: one part after the other, without a gap.
pub(super) struct Parts<'a> {
    upstream: &'a Arc<Upstream>,
    pull: &'a Pull,
    /// The places that all transfers share.
    connections: Arc<Semaphore>,
    ahead: VecDeque<Part>,
    is_given_up: bool,
}

/// A part that is on its way.
pub(super) struct Part {
    /// Where it is in the blob.
    pub(super) range: Range<u64>,
    chunks: mpsc::UnboundedReceiver<Chunk>,
    first: Option<Chunk>,
    /// Held for as long as some of it may be in memory.
    _place: OwnedSemaphorePermit,
}

impl<'a> Parts<'a> {
    /// None yet.
    pub(super) fn new(
        upstream: &'a Arc<Upstream>,
        pull: &'a Pull,
        connections: &Arc<Semaphore>,
    ) -> Self {
        let connections = Arc::clone(connections);
        Self { upstream, pull, connections, ahead: VecDeque::new(), is_given_up: false }
    }

    /// Where the first begins in the blob.
    pub(super) fn start(&self) -> Option<u64> {
        self.ahead.front().map(|part| part.range.start)
    }

    /// Whether some of the first is there.
    pub(super) fn is_coming(&mut self) -> bool {
        self.ahead.front_mut().is_some_and(|part| matches!(part.peek(), Some(Ok(_))))
    }

    /// Leaves out the first, and all if it was refused, and says where the next begins.
    pub(super) fn skip(&mut self) -> Option<u64> {
        let mut skipped = self.ahead.pop_front();
        if skipped.as_mut().is_some_and(|part| matches!(part.peek(), Some(Err(_)))) {
            self.give_up();
        }
        self.start()
    }

    /// The part that begins at `offset`: the first, or what is missing before it.
    pub(super) fn take(&mut self, offset: u64, size_bytes: u64) -> Option<Part> {
        let start = self.start()?;
        if start == offset {
            return self.ahead.pop_front();
        }
        self.request(offset..start, size_bytes)
    }

    /// Fetches as many more as there are places for; the first of all begins at `start`.
    pub(super) fn fetch(&mut self, start: u64, size_bytes: u64) {
        let mut start = self.ahead.back().map_or(start, |part| part.range.end);
        while !self.is_given_up && start < size_bytes && self.ahead.len() < PARTS_MAX {
            let end = size_bytes.min(start + PART_BYTES);
            let Some(part) = self.request(start..end, size_bytes) else { return };
            self.ahead.push_back(part);
            start = end;
        }
    }

    /// Forgets them, and fetches none any more.
    pub(super) fn give_up(&mut self) {
        self.ahead.clear();
        self.is_given_up = true;
    }

    /// Asks for a part, if there is a place for one more connection.
    fn request(&self, range: Range<u64>, size_bytes: u64) -> Option<Part> {
        let place = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        // A part is all that goes through the channel, so it needs no other limit.
        let (sender, chunks) = mpsc::unbounded_channel();
        let part = Part { range: range.clone(), chunks, first: None, _place: place };
        let (upstream, origin) = (Arc::clone(self.upstream), self.pull.origin.clone());
        let digest = self.pull.digest.clone();
        let task = async move {
            let transfer = transfer(&upstream, &origin, &digest, range, size_bytes, &sender);
            tokio::select! {
                transferred = transfer => if let Err(error) = transferred {
                    // Who does not want the part does not want to know either.
                    let _ = sender.send(Err(error));
                },
                () = sender.closed() => {}
            }
        };
        tokio::spawn(task.in_current_span());
        Some(part)
    }
}

impl Part {
    /// The next bytes; `None` behind the last, and where the upstream has sent too few. May be dropped
    /// while it waits.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        match self.first.take() {
            Some(chunk) => chunk.map(Some),
            None => self.chunks.recv().await.transpose(),
        }
    }

    fn peek(&mut self) -> Option<&Chunk> {
        if self.first.is_none() {
            self.first = self.chunks.try_recv().ok();
        }
        self.first.as_ref()
    }
}

/// Gets a part, and not a byte more.
async fn transfer(
    upstream: &Upstream,
    origin: &Repository,
    digest: &Digest,
    range: Range<u64>,
    size_bytes: u64,
    sender: &mpsc::UnboundedSender<Chunk>,
) -> Result<(), UpstreamError> {
    let mut download = upstream.blob(origin, digest, range.start, Some(range.end)).await?;
    if download.offset != range.start || download.size_bytes != Some(size_bytes) {
        return Err(UpstreamError::Unavailable("it does not send parts".to_owned()));
    }
    let mut left_bytes = range.end - range.start;
    let mut piece = BytesMut::new();
    while left_bytes > 0 {
        let has_more = gather(&mut download, &mut piece, left_bytes).await;
        left_bytes -= piece.len() as u64;
        if !piece.is_empty() {
            let _ = sender.send(Ok(piece.split().freeze()));
        }
        if !has_more? {
            break;
        }
    }
    Ok(())
}

/// Copies what comes until it is a piece, or [`GATHERING`] has passed: what is received is spread over
/// buffers that may be much larger, and small pieces cost as much as large ones. Tells whether there
/// may be more.
async fn gather(
    download: &mut Download,
    piece: &mut BytesMut,
    left_bytes: u64,
) -> Result<bool, UpstreamError> {
    let left_bytes = usize::try_from(left_bytes).unwrap_or(usize::MAX);
    piece.reserve(left_bytes.min(PIECE_BYTES));
    // Only the wait for the first is as long as it takes an upstream to be late.
    let Some(mut chunk) = download.chunk().await? else { return Ok(false) };
    let by = Instant::now() + GATHERING;
    loop {
        chunk.truncate(left_bytes - piece.len());
        piece.extend_from_slice(&chunk);
        if piece.len() >= left_bytes.min(PIECE_BYTES) {
            return Ok(true);
        }
        let Ok(next) = timeout_at(by, download.chunk()).await else { return Ok(true) };
        match next? {
            Some(next) => chunk = next,
            None => return Ok(false),
        }
    }
}

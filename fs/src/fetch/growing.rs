//! A blob that grows: a sparse file of the cache, the blocks of it that are there, and the readers
//! that wait for others.
//!
//! Blocks are hashed in order as soon as they are there, most of them from memory. When all hash
//! to the digest, the last block is shown and the file becomes a blob of the cache. When it fails,
//! or nobody reads it and it is not to be fetched whole, the file goes.

use std::{
    io::ErrorKind,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use larder_layout::{Digest, Verifier};
use tokio::sync::Notify;

use super::{BLOCK_BYTES, CONNECTIONS, Fetches, RUN_BLOCKS, blocking};
use crate::{
    cache::{CachedBlob, Reservation, StagingFile},
    error::{Error, Result},
    store::BlobMeta,
};

/// A blob that grows.
pub struct Growing {
    pub(super) fetches: Arc<Fetches>,
    pub(super) digest: Digest,
    pub(super) meta: BlobMeta,
    /// Of the file in the staging directory.
    name: String,
    file: StagingFile,
    /// For the blocks that are there or on their way.
    room: Mutex<Option<Reservation>>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    blocks: Box<[Block]>,
    /// `None` while somebody hashes.
    verifier: Option<Verifier>,
    hashed_blocks: usize,
    /// Where to go on when all of the blob is to be fetched.
    cursor: Option<usize>,
    outcome: Option<Result<()>>,
    /// Keeps the cache from evicting what readers have open by way of us.
    adopted: Option<CachedBlob>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Missing,
    Coming,
    Present,
}

impl Growing {
    /// A blob of which nothing is there yet.
    ///
    /// # Errors
    /// [`Error::Disk`] when the cache takes no file.
    pub fn new(fetches: Arc<Fetches>, digest: Digest, meta: BlobMeta) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = format!("fetch:{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let room = fetches.cache.reserve(0)?;
        let file = fetches.cache.stage(&name)?;
        // A file that grows as it is written takes more of XFS than was reserved: it is given room
        // to grow on.
        let sized = file.write(|file| file.set_len(meta.size_bytes));
        sized.map_err(|e| Error::disk(format!("give {name} its length"), e))?;
        let blocks = usize::try_from(meta.size_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(usize::MAX);
        let state = State {
            blocks: vec![Block::Missing; blocks].into(),
            verifier: Some(Verifier::new(digest.clone())),
            hashed_blocks: 0,
            cursor: None,
            outcome: None,
            adopted: None,
        };
        Ok(Self {
            fetches,
            digest,
            meta,
            name,
            file,
            room: Mutex::new(Some(room)),
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// Waits for the first block, which tells that the blob is there. When that is all of it, it
    /// is verified then.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is gone from the storage.
    pub async fn begin(self: &Arc<Self>) -> Result<()> {
        if self.meta.size_bytes == 0 {
            self.fetches.storage.stat_blob(&self.digest).await?;
            self.hash(0, Vec::new());
        }
        let first = 0..BLOCK_BYTES.min(self.meta.size_bytes);
        self.wait_for(first, 1).await
    }

    /// What is asked for, once it is there. Nothing behind the end of the blob.
    ///
    /// # Errors
    /// [`Error::Lost`] when it cannot be fetched, or the blob is damaged.
    pub async fn read(self: &Arc<Self>, range: Range<u64>, run_blocks: usize) -> Result<Bytes> {
        self.wait_for(range.clone(), run_blocks).await?;
        let this = Arc::clone(self);
        blocking(move || this.read_file(range).map(Bytes::from)).await
    }

    /// Fetches all of the blob, from the block at `offset` on.
    pub fn fill(self: &Arc<Self>, offset: u64) {
        let mut state = self.state();
        if state.outcome.is_some() || state.cursor.is_some() {
            return;
        }
        state.cursor = Some((offset / BLOCK_BYTES) as usize);
        for _ in 0..state.blocks.len().div_ceil(RUN_BLOCKS).min(CONNECTIONS) {
            tokio::spawn(Arc::clone(self).fill_blocks());
        }
    }

    /// Whether all of it is there, and right.
    pub fn is_whole(&self) -> bool {
        matches!(self.state().outcome, Some(Ok(())))
    }

    /// Whether there will be no more of it.
    pub fn has_failed(&self) -> bool {
        matches!(self.state().outcome, Some(Err(_)))
    }

    async fn wait_for(self: &Arc<Self>, range: Range<u64>, run_blocks: usize) -> Result<()> {
        let blocks = (range.start / BLOCK_BYTES) as usize..range.end.div_ceil(BLOCK_BYTES) as usize;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_readable(&blocks, run_blocks)? {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Whether all blocks can be read. Those that nobody fetches are asked for, ahead of others.
    fn is_readable(self: &Arc<Self>, blocks: &Range<usize>, run_blocks: usize) -> Result<bool> {
        let mut state = self.state();
        let are_present = state.blocks[blocks.clone()].iter().all(|block| *block == Block::Present);
        let has_last = blocks.end == state.blocks.len();
        match &state.outcome {
            Some(Ok(())) => return Ok(true),
            // What did not hash to the digest is not shown any more, whichever block it is in.
            Some(Err(e)) if !are_present || has_last || matches!(e, Error::Damaged(_)) => {
                return Err(e.clone());
            }
            _ if are_present && !has_last => return Ok(true),
            _ => {}
        }
        for block in blocks.clone() {
            if state.blocks[block] == Block::Missing {
                let run = state.claim(block, run_blocks.max(blocks.end - block));
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    let _request = this.fetches.read_requests.acquire().await;
                    this.fetch(run).await;
                });
            }
        }
        drop(state);
        if has_last && blocks.start > 0 {
            self.fill(0);
        }
        Ok(false)
    }

    /// Fetches what is missing, run after run, until nothing is.
    async fn fill_blocks(self: Arc<Self>) {
        loop {
            // First the right to ask, so that what comes next is decided when it can be asked for.
            let request = self.fetches.fill_requests.acquire().await;
            let Some(run) = self.claim_next() else { break };
            self.fetch(run).await;
            drop(request);
        }
    }

    fn claim_next(&self) -> Option<Range<usize>> {
        let mut state = self.state();
        let cursor = state.cursor.filter(|_| state.outcome.is_none())?;
        let is_missing = |block: &usize| state.blocks[*block] == Block::Missing;
        let next = (cursor..state.blocks.len()).find(is_missing);
        let next = next.or_else(|| (0..cursor).find(is_missing))?;
        // Runs begin where parts of the same length do: a range that crosses them costs more.
        let run = state.claim(next, RUN_BLOCKS - next % RUN_BLOCKS);
        state.cursor = Some(run.end);
        Some(run)
    }

    async fn fetch(self: &Arc<Self>, run: Range<usize>) {
        if let Err(error) = self.fetch_run(run).await {
            self.end(Err(error));
        }
    }

    /// Makes room for every block that is there or on its way.
    pub(super) fn make_room(&self) -> Result<()> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        let wanted = state.blocks.iter().filter(|block| **block != Block::Missing).count() as u64;
        drop(state);
        match &mut *room {
            Some(room) => room.grow((wanted * BLOCK_BYTES).min(self.meta.size_bytes)),
            None => Ok(()),
        }
    }

    /// Writes a block, shows it unless it is the last, and has it hashed.
    pub(super) async fn write(self: &Arc<Self>, block: usize, pieces: Vec<Bytes>) -> Result<()> {
        let this = Arc::clone(self);
        let pieces = blocking(move || {
            let mut offset = block as u64 * BLOCK_BYTES;
            for piece in &pieces {
                let written = this.file.write(|file| file.write_all_at(piece, offset));
                written.map_err(|e| this.disk_error("write", e))?;
                offset += piece.len() as u64;
            }
            Ok(pieces)
        });
        let pieces = pieces.await?;
        self.state().blocks[block] = Block::Present;
        self.changed.notify_waiters();
        self.hash(block, pieces);
        Ok(())
    }

    /// Hashes as far as blocks are there without a gap, unless somebody else does. The connection
    /// that the blocks came from is not kept waiting.
    fn hash(self: &Arc<Self>, block: usize, pieces: Vec<Bytes>) {
        if let Some(verifier) = self.state().take_verifier() {
            let this = Arc::clone(self);
            tokio::task::spawn_blocking(move || this.hash_blocks(verifier, block, &pieces));
        }
    }

    fn hash_blocks(&self, mut verifier: Verifier, block: usize, pieces: &[Bytes]) {
        let mut content = Vec::new();
        loop {
            let next = self.state().hashed_blocks;
            let start = next as u64 * BLOCK_BYTES;
            if start >= self.meta.size_bytes {
                return self.finish(verifier);
            }
            if next == block {
                pieces.iter().for_each(|piece| verifier.update(piece));
            } else {
                content.resize(self.block_bytes(next) as usize, 0);
                if let Err(e) = self.file.reader().read_exact_at(&mut content, start) {
                    return self.end(Err(self.disk_error("read", e)));
                }
                verifier.update(&content);
            }
            let mut state = self.state();
            state.hashed_blocks += 1;
            state.verifier = Some(verifier);
            match state.take_verifier() {
                Some(taken) => verifier = taken,
                None => return,
            }
        }
    }

    /// All of it is there. When it is right, readers see the last block before the cache has the
    /// file, which may take a moment.
    fn finish(&self, verifier: Verifier) {
        let outcome = verifier.finish().map_err(Error::Damaged);
        let is_right = outcome.is_ok();
        self.end(outcome);
        if !is_right {
            return;
        }
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(room) = room else { return };
        self.file.end_writing();
        let cache = &self.fetches.cache;
        match cache.adopt(&self.name, &self.digest, self.meta.modified, room) {
            Ok(blob) => self.state().adopted = Some(blob),
            Err(e) => tracing::warn!(digest = %self.digest, "fetched, but not kept: {e}"),
        }
        self.fetches.leave(self);
    }

    fn end(&self, outcome: Result<()>) {
        match &outcome {
            Ok(()) | Err(Error::NotFound) => {}
            Err(e @ Error::Damaged(_)) => self.fetches.mark_damaged(&self.digest, e),
            Err(e) => tracing::warn!(digest = %self.digest, "cannot be fetched: {e}"),
        }
        self.state().outcome.get_or_insert(outcome);
        self.changed.notify_waiters();
    }

    fn read_file(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut content = vec![0; (range.end - range.start) as usize];
        let read = self.file.reader().read_exact_at(&mut content, range.start);
        read.map_err(|e| self.disk_error("read", e))?;
        Ok(content)
    }

    fn disk_error(&self, what: &str, error: std::io::Error) -> Error {
        Error::disk(
            format!("{what} {}", self.fetches.cache.staging_path(&self.name).display()),
            error,
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between two consistent states can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The right to hash what comes next, if it is there and nobody else has the right.
    fn take_verifier(&mut self) -> Option<Verifier> {
        let next = self.blocks.get(self.hashed_blocks);
        if next.is_some_and(|block| *block != Block::Present) {
            return None;
        }
        self.verifier.take()
    }

    /// Takes the missing blocks from `first` on, at most `blocks_max`, to be fetched.
    fn claim(&mut self, first: usize, blocks_max: usize) -> Range<usize> {
        let rest = self.blocks[first..].iter_mut().take(blocks_max);
        let mut end = first;
        for block in rest.take_while(|block| **block == Block::Missing) {
            *block = Block::Coming;
            end += 1;
        }
        first..end
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.fetches.leave(self);
        let path = self.fetches.cache.staging_path(&self.name);
        let was_adopted = self.state().adopted.is_some();
        if was_adopted {
            return;
        }
        // The room is free when the file is gone.
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner).take();
        let remove = move || {
            // A file that could not be adopted is gone already.
            if let Err(e) = std::fs::remove_file(&path)
                && e.kind() != ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), "cannot remove what was fetched: {e}");
            }
            drop(room);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

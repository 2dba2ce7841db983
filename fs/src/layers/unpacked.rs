//! What the regular files of a layer hold, one behind the other in a file of the local cache.

use std::{
    io::{self, ErrorKind, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use crate::{
    cache::{Cache, Reservation, StagingFile},
    error::{Error, Result},
};

/// How much room is made at a time.
const ROOM_BYTES: u64 = 16 << 20;
/// How much is copied at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A file in the cache's staging directory, which goes when this is dropped.
pub struct Unpacked {
    file: StagingFile,
    path: PathBuf,
    room: Reservation,
    size_bytes: u64,
    limit_bytes: u64,
    /// What is being copied: files are small and many.
    piece: Vec<u8>,
}

impl Unpacked {
    /// An empty one, for at most `limit_bytes`.
    ///
    /// # Errors
    /// [`Error::Disk`]
    pub fn create(cache: &Cache, limit_bytes: u64) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = format!("layer:{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let room = cache.reserve(0)?;
        let file = cache.stage(&name)?;
        Ok(Self {
            file,
            path: cache.staging_path(&name),
            room,
            size_bytes: 0,
            limit_bytes,
            piece: vec![0; PIECE_BYTES],
        })
    }

    /// How much there is by now.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How much there may be.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Writes what `content` gives.
    ///
    /// # Errors
    /// What `content` says; [`Error::Disk`] within the error, with ENOSPC when that is more than there may be,
    /// or than the cache has room for.
    pub fn append(&mut self, content: &mut impl Read) -> io::Result<()> {
        let mut piece = std::mem::take(&mut self.piece);
        let outcome = loop {
            match content.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    if let Err(e) = self.write(&piece[..read]) {
                        break Err(io::Error::other(e));
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        self.piece = piece;
        outcome
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        let limit_bytes = self.limit_bytes;
        let end = self.size_bytes + piece.len() as u64;
        if end > limit_bytes {
            let operation =
                format!("unpack a layer to more than {limit_bytes} bytes, an eighth of cache.size");
            return Err(Error::disk(operation, io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        if end > self.room.size_bytes() {
            self.room.grow(limit_bytes.min(end.next_multiple_of(ROOM_BYTES)))?;
        }
        let written = self.file.write(|file| file.write_all_at(piece, self.size_bytes));
        written.map_err(|e| Error::disk("write the files of a layer", e))?;
        self.size_bytes = end;
        Ok(())
    }

    /// Reads from `offset` on, shorter than `size_bytes` only at the end of the layer.
    ///
    /// # Errors
    /// [`Error::Disk`]
    pub fn read(&self, offset: u64, size_bytes: u64) -> Result<Bytes> {
        let size_bytes = size_bytes.min(self.size_bytes.saturating_sub(offset));
        let mut content = vec![0; usize::try_from(size_bytes).unwrap_or(usize::MAX)];
        let read = self.file.reader().read_exact_at(&mut content, offset);
        read.map_err(|e| Error::disk("read the files of a layer", e))?;
        Ok(content.into())
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!("{}: {e}; it stays until the next start", self.path.display());
        }
    }
}

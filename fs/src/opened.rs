//! An open file, and its content.

use std::{ffi::OsString, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use larder_layout::Digest;

use crate::{
    cache::CachedBlob,
    error::{Error, Result},
    fetch::{Content, Fetches, Reader, blocking},
    ingest::StagedFile,
    layers::Layer,
    listing::Listing,
    store::BlobMeta,
};

/// An open file.
pub enum Opened {
    /// A whole blob on local disk.
    Blob(Arc<CachedBlob>),
    /// A blob that is on its way from the shared storage.
    Fetched(Box<Reader>),
    /// A file in `ingest/`.
    Staged(Arc<StagedFile>),
    /// A file inside a layer.
    LayerFile {
        /// The layer.
        layer: Arc<Layer>,
        /// Where the file begins in what was unpacked.
        start: u64,
        /// Its length.
        size_bytes: u64,
    },
    /// A directory inside a layer.
    LayerDirectory {
        /// The layer.
        layer: Arc<Layer>,
        /// Its digest.
        digest: Digest,
        /// The names in the directory, and the numbers of what they stand for.
        names: Vec<(OsString, u32)>,
    },
    /// A report, made up when it was opened.
    Report(Bytes),
    /// A directory.
    Directory(Box<tokio::sync::Mutex<Listing>>),
}

impl Opened {
    /// Opens a blob. One that is not in the local cache is fetched while it is read.
    ///
    /// # Errors
    /// As [`Fetches::open`].
    pub async fn blob(fetches: &Arc<Fetches>, digest: &Digest, meta: BlobMeta) -> Result<Self> {
        Ok(match fetches.open(digest, meta).await? {
            Content::Cached(blob) => Self::Blob(Arc::new(blob)),
            Content::Fetched(reader) => Self::Fetched(reader),
        })
    }

    /// The file on local disk that has all of the content, if there is one.
    pub fn file(&self) -> Option<&File> {
        match self {
            Self::Blob(blob) => Some(blob.file()),
            Self::Staged(staged) => Some(staged.file.reader()),
            Self::Fetched(_) | Self::Report(_) | Self::Directory(_) => None,
            Self::LayerFile { .. } | Self::LayerDirectory { .. } => None,
        }
    }

    /// The content from `offset` on, shorter than `size_bytes` only at the end.
    ///
    /// # Errors
    /// [`Error::Lost`] when a blob cannot be fetched, [`Error::Disk`].
    pub async fn read(self: Arc<Self>, offset: u64, size_bytes: u32) -> Result<Bytes> {
        match &*self {
            Self::Fetched(reader) => reader.read(offset, u64::from(size_bytes)).await,
            Self::Report(content) => {
                let start = content.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                let end = content.len().min(start + size_bytes as usize);
                Ok(content.slice(start..end))
            }
            Self::LayerFile { layer, start, size_bytes: file_bytes } => {
                let (layer, start, file_bytes) = (Arc::clone(layer), *start, *file_bytes);
                blocking(move || layer.read(start, file_bytes, offset, size_bytes)).await
            }
            Self::Directory(_) | Self::LayerDirectory { .. } => Err(Error::IsDirectory),
            Self::Blob(_) | Self::Staged(_) => {
                let this = Arc::clone(&self);
                blocking(move || this.read_file(offset, size_bytes as usize)).await
            }
        }
    }

    fn read_file(&self, offset: u64, size_bytes: usize) -> Result<Bytes> {
        let file = self.file().ok_or(Error::BadHandle)?;
        let mut content = vec![0; size_bytes];
        let mut filled = 0;
        while filled < content.len() {
            match file.read_at(&mut content[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::disk("read a cached blob", e)),
            }
        }
        content.truncate(filled);
        Ok(content.into())
    }

    /// Writes `content` to a staged file, and has it sent to the storage.
    ///
    /// # Errors
    /// [`Error::Disk`], with ENOSPC when the cache has no room for it.
    pub async fn write(&self, offset: u64, content: Vec<u8>) -> Result<()> {
        let Self::Staged(staged) = self else { return Err(Error::BadHandle) };
        let written = Arc::clone(staged);
        blocking(move || written.write(offset, &content)).await?;
        if staged.has_part() {
            let ahead = Arc::clone(staged);
            tokio::spawn(async move { ahead.send_ahead().await });
        }
        Ok(())
    }
}

//! Where the bytes of a pull are.

use std::{fs::File, io, ops::Range, sync::Arc};

use bytes::Bytes;
use larder_layout::Digest;

use crate::{
    body::PIECE_BYTES,
    calls::{Calls, PIECE_DEADLINE},
    content::{Blob, Content, Staged},
};

/// The file of one pull, written by it and read by its clients.
pub(super) struct Staging {
    file: Arc<File>,
    calls: Calls,
    fate: Fate,
}

/// What becomes of the file.
enum Fate {
    /// It will be published.
    Publish(Staged),
    /// It has been published before the pull began.
    Published,
    /// It has no name and goes when the last client has left: the directory is in trouble.
    Vanish,
}

impl Staging {
    /// An empty file in the directory, or outside of it when the directory takes none, or full(4) when
    /// there is room nowhere. A large blob is sent on to the shared storage while it comes when it is said
    /// which it is.
    ///
    /// # Errors
    /// There is not even that.
    pub(super) async fn create(
        content: &Content,
        temporary: &Calls,
        sent_as: Option<&Digest>,
    ) -> io::Result<Self> {
        match content.stage(sent_as).await {
            Ok(staged) => Ok(Self {
                file: Arc::clone(&staged.file),
                calls: content.calls().clone(),
                fate: Fate::Publish(staged),
            }),
            Err(error) => {
                tracing::warn!(%error, "a blob is pulled but will not be kept");
                let elsewhere = Self::vanishing(temporary).await;
                elsewhere.or_else(|_| {
                    let file = Arc::new(File::options().write(true).open("/dev/full")?);
                    Ok(Self { file, calls: temporary.clone(), fate: Fate::Vanish })
                })
            }
        }
    }

    /// A blob that is there already.
    pub(super) fn published(content: &Content, blob: Blob) -> Self {
        Self { file: blob.file, calls: content.calls().clone(), fate: Fate::Published }
    }

    pub(super) fn is_published(&self) -> bool {
        matches!(self.fate, Fate::Published)
    }

    async fn vanishing(temporary: &Calls) -> io::Result<Self> {
        let file = temporary.run(PIECE_DEADLINE, tempfile::tempfile).await?;
        Ok(Self { file: Arc::new(file), calls: temporary.clone(), fate: Fate::Vanish })
    }

    /// A copy of the first `size_bytes` outside of the directory, which takes no more.
    ///
    /// # Errors
    /// This file was there already, or one of the two is in trouble.
    pub(super) async fn copy(&self, temporary: &Calls, size_bytes: u64) -> io::Result<Self> {
        let Fate::Publish(_) = self.fate else { return Err(io::ErrorKind::StorageFull.into()) };
        let copy = Self::vanishing(temporary).await?;
        let mut offset = 0;
        while offset < size_bytes {
            let end = size_bytes.min(offset + PIECE_BYTES);
            let piece = self.read(offset..end).await?;
            copy.write(offset, piece).await?;
            offset = end;
        }
        Ok(copy)
    }

    pub(super) async fn write(&self, offset: u64, piece: Bytes) -> io::Result<()> {
        let file = match &self.fate {
            Fate::Publish(staged) => staged.writer()?,
            Fate::Published | Fate::Vanish => Arc::clone(&self.file),
        };
        self.calls.write(file, offset, piece).await
    }

    pub(super) async fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.calls.read(&self.file, range).await
    }

    /// Publishes the file, whose content has been checked. Tells whether the directory has it.
    ///
    /// # Errors
    /// The storage is in trouble; the file is not staged any more.
    pub(super) async fn publish(
        &self,
        content: &Content,
        size_bytes: u64,
        digest: &Digest,
    ) -> io::Result<bool> {
        match &self.fate {
            Fate::Publish(staged) => {
                content.publish(staged, size_bytes, digest).await?;
                Ok(true)
            }
            Fate::Published => Ok(true),
            Fate::Vanish => Ok(false),
        }
    }

    /// Removes the file when it was going to be published.
    pub(super) async fn discard(&self, content: &Content) {
        if let Fate::Publish(staged) = &self.fate {
            content.discard(staged).await;
        }
    }
}

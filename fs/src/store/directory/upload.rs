//! Large objects: the parts of an upload, written side by side into one staged file.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::{Error, MultipartUpload, PutPayload, PutResult, Result, UploadPart, path::Path};

use super::{Directory, generic, if_exists, put_result, staged::Staged, write_error};

/// An upload in parts.
#[derive(Debug)]
pub struct DirectoryUpload {
    directory: Directory,
    location: Path,
    staged: Option<Arc<Staged>>,
    size_bytes: u64,
}

impl DirectoryUpload {
    /// An upload of which nothing is written yet.
    pub fn new(directory: &Directory, location: &Path, staged: Staged) -> Self {
        let (directory, location) = (directory.clone(), location.clone());
        Self { directory, location, staged: Some(Arc::new(staged)), size_bytes: 0 }
    }
}

fn ended() -> Error {
    generic("the upload has ended, or parts of it are still being written".into())
}

#[async_trait]
impl MultipartUpload for DirectoryUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let offset = self.size_bytes;
        self.size_bytes += payload.content_length() as u64;
        let (directory, location) = (self.directory.clone(), self.location.clone());
        let staged = self.staged.clone();
        Box::pin(async move {
            let staged = staged.ok_or_else(ended)?;
            let write = directory.blocking(move |_| staged.write_part(&payload, offset));
            write.await?.map_err(|e| write_error(&location, e))
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().and_then(Arc::into_inner).ok_or_else(ended)?;
        let location = self.location.clone();
        let publish = self
            .directory
            .blocking(move |root| staged.publish(&root.path_of(&location), if_exists(&location)));
        publish.await?.map_err(|e| write_error(&self.location, e))?;
        Ok(put_result())
    }

    /// The file goes with the last part that is still being written.
    async fn abort(&mut self) -> Result<()> {
        let staged = self.staged.take().ok_or_else(ended)?;
        self.directory.blocking(move |_| drop(staged)).await
    }
}

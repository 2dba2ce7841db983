//! A storage as `larder-fs` opens it, without a mount: for what a mount does not show.

use std::{io::Write, ops::Range};

use futures_util::TryStreamExt;
use larder_config::Config;
use larder_fs::{
    error::Error,
    store::{self, Backend, Storage},
};
use larder_layout::Digest;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart, path::Path};
use tempfile::NamedTempFile;

/// The store of a `storage:` section, as one line of YAML: `{swift: {…}}`.
///
/// # Errors
/// What an operator is told.
pub fn open(section: &str) -> Result<Backend, String> {
    let mut file = NamedTempFile::new().expect("a file for the configuration");
    writeln!(file, "version: 0.1\nstorage: {section}").expect("a configuration");
    let config = Config::load(file.path(), []).map_err(|e| e.to_string())?;
    store::open(&config.storage)
}

/// Uploads `content` in parts, as a large blob is.
///
/// # Errors
/// What the store says.
pub async fn upload(
    backend: &Backend,
    path: &Path,
    content: &[u8],
) -> Result<(), object_store::Error> {
    let upload = backend.objects.put_multipart(path).await?;
    let mut parts = WriteMultipart::new_with_chunk_size(upload, part_bytes(backend));
    for piece in content.chunks(1 << 20) {
        parts.wait_for_capacity(4).await?;
        parts.write(piece);
    }
    parts.finish().await.map(drop)
}

/// Begins an upload, sends some parts, and takes it back.
///
/// # Errors
/// What the store says.
pub async fn upload_and_abort(
    backend: &Backend,
    path: &Path,
    content: &[u8],
) -> Result<(), object_store::Error> {
    let mut upload = backend.objects.put_multipart(path).await?;
    for part in content.chunks(part_bytes(backend)) {
        upload.put_part(PutPayload::from(part.to_vec())).await?;
    }
    upload.abort().await
}

/// The content of a blob of this length.
///
/// # Errors
/// What the storage says.
pub async fn blob(storage: &Storage, digest: &Digest, size_bytes: u64) -> Result<Vec<u8>, Error> {
    let content = storage.read_blob(digest, size_bytes, 0..size_bytes).await?;
    Ok(content.try_collect::<Vec<_>>().await?.concat())
}

/// Whether a range of an object is that of `content`.
///
/// # Panics
/// When it cannot be read.
pub async fn has(backend: &Backend, path: &Path, content: &[u8], range: Range<usize>) -> bool {
    let found = backend.objects.get_range(path, range.start as u64..range.end as u64).await;
    found.expect("a range") == content[range]
}

fn part_bytes(backend: &Backend) -> usize {
    usize::try_from(backend.part_bytes).expect("a part that fits into memory")
}

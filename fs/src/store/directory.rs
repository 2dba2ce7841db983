//! A directory as the shared storage: on a local disk, or on NFS.
//!
//! The library's own directory store reads and lists; what is written and what is missing is
//! ours, because on NFS
//! - a name that was looked up too early stays hidden for up to 30 s after another node published
//!   it, unless its directories are revalidated (opened and closed) before the miss is believed;
//! - a tag that another node has moved shows its old target, unless its directory is revalidated;
//! - renaming over a blob costs a recall of every delegation, and readers their file: blobs are
//!   published by `link(2)`, which tells the loser of a race that the blob is there already.
//!
//! Everything is staged in `docker/larder/staging/`, outside of what a registry looks at, written
//! and synced there, and only then given its name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::FileExt,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart, local::LocalFileSystem, path::Path,
};

use super::{Backend, PART_BYTES};

/// What a node that crashed left behind is swept when it is this old. No upload takes as long.
const LEFTOVER_AGE: Duration = Duration::from_hours(24);

/// The store of a `storage.filesystem` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(root: &FilePath) -> Result<Backend, String> {
    Ok(Backend {
        objects: Arc::new(Directory::open(root)?),
        root_directory: String::new(),
        part_bytes: PART_BYTES,
        attributes: Attributes::new(),
        mistaken_key,
    })
}

fn mistaken_key(error: &Error) -> Option<&'static str> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::NotADirectory
            )
        {
            return Some("storage.filesystem.rootdirectory, and whose it is");
        }
        cause = error.source();
    }
    None
}

/// A directory that is written durably, and read as NFS needs it.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    inner: LocalFileSystem,
}

impl Directory {
    /// Opens `root`, which must exist: creating it would hide an export that is not mounted.
    ///
    /// # Errors
    /// A sentence that names the key to look at.
    pub fn open(root: &FilePath) -> Result<Self, String> {
        let inner = LocalFileSystem::new_with_prefix(root).map_err(|e| {
            format!(
                "storage.filesystem.rootdirectory: {} cannot be opened: {e}; create it, or mount \
                 the export there",
                root.display()
            )
        })?;
        let directory = Self { root: root.to_owned(), inner };
        directory.sweep_leftovers().map_err(|e| {
            format!("storage.filesystem.rootdirectory: {} cannot be written: {e}", root.display())
        })?;
        Ok(directory)
    }

    fn staging(&self) -> PathBuf {
        self.root.join("docker/larder/staging")
    }

    fn sweep_leftovers(&self) -> io::Result<()> {
        make_directories(&self.staging())?;
        for entry in fs::read_dir(self.staging())? {
            let entry = entry?;
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age =
                modified.map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
            if age.is_ok_and(|age| age > LEFTOVER_AGE) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn stage(&self) -> io::Result<Staged> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // The time makes the name unique among nodes whose process has the same number.
        let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.staging().join(format!("{}-{time}-{counter}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Staged { path, file: Some(file) })
    }

    fn file_path(&self, location: &Path) -> PathBuf {
        self.root.join(location.as_ref())
    }

    /// Opens and closes each directory on the way to `location`, which makes an NFS client ask
    /// the server whether what it remembers of them still holds.
    fn revalidate(&self, location: &Path) {
        let mut directory = self.root.clone();
        for part in location.parts() {
            if File::open(&directory).is_err() {
                return;
            }
            directory.push(part.as_ref());
        }
    }

    /// Runs a blocking operation on this directory in a thread of its own.
    async fn blocking<T: Send + 'static>(
        &self,
        location: &Path,
        operation: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let directory = Self { root: self.root.clone(), inner: self.inner.clone() };
        let outcome = tokio::task::spawn_blocking(move || operation(&directory)).await?;
        outcome.map_err(|e| error(location, e))
    }
}

/// Blobs never change; links do. Distribution calls the one `data` and the other `link`.
pub(super) fn is_immutable(location: &Path) -> bool {
    location.filename() == Some("data")
}

fn error(location: &Path, source: io::Error) -> Error {
    let path = location.to_string();
    match source.kind() {
        ErrorKind::NotFound => Error::NotFound { path, source: source.into() },
        ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: source.into() },
        _ => Error::Generic { store: "directory", source: source.into() },
    }
}

/// Creates a directory and those above it, each durably.
fn make_directories(path: &FilePath) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            make_directories(path.parent().ok_or(e)?)?;
            make_directories(path)
        }
        Err(e) => Err(e),
    }
}

fn sync_directory(path: &FilePath) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file that has no name yet in the layout. Dropped before it has one, it is removed.
#[derive(Debug)]
struct Staged {
    path: PathBuf,
    file: Option<File>,
}

impl Staged {
    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Syncs the content and gives it its name. A name that exists is replaced by a link, and
    /// kept by a blob.
    fn publish(mut self, target: &FilePath, immutable: bool) -> io::Result<()> {
        self.file()?.sync_all()?;
        // NFS may report a full disk only when the file is closed, and then only once.
        if let Some(file) = self.file.take() {
            close(file)?;
        }
        let parent = target.parent().ok_or(ErrorKind::InvalidInput)?;
        make_directories(parent)?;
        if immutable {
            match fs::hard_link(&self.path, target) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        } else {
            fs::rename(&self.path, target)?;
        }
        sync_directory(parent)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; a failure leaves work for the sweep.
        let _ = fs::remove_file(&self.path);
    }
}

/// Closes a file and reports what close(2) says, which `File` does not.
fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is owned, open, and given up by into_raw_fd.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl std::fmt::Display for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "directory {}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for Directory {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if options.mode != PutMode::Overwrite {
            return Err(Error::NotSupported { source: "conditional writes".into() });
        }
        let key = location.clone();
        self.blocking(location, move |directory| {
            let staged = directory.stage()?;
            for piece in &payload {
                staged.file()?.write_all(piece)?;
            }
            staged.publish(&directory.file_path(&key), is_immutable(&key))
        })
        .await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let staged = self.blocking(location, Self::stage).await?;
        Ok(Box::new(DirectoryUpload {
            location: location.clone(),
            target: self.file_path(location),
            staged: Some(Arc::new(staged)),
            size_bytes: 0,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let key = location.clone();
        let revalidate = move |directory: &Self| {
            directory.revalidate(&key);
            Ok(())
        };
        if !is_immutable(location) {
            self.blocking(location, revalidate).await?;
            return self.inner.get_opts(location, options).await;
        }
        match self.inner.get_opts(location, options.clone()).await {
            Err(Error::NotFound { .. }) => {
                self.blocking(location, revalidate).await?;
                self.inner.get_opts(location, options).await
            }
            outcome => outcome,
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if let Some(prefix) = prefix.cloned() {
            let revalidate = move |directory: &Self| {
                directory.revalidate(&prefix.join("x"));
                Ok(())
            };
            self.blocking(&Path::default(), revalidate).await?;
        }
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload in parts: written side by side into one staged file.
#[derive(Debug)]
struct DirectoryUpload {
    location: Path,
    target: PathBuf,
    staged: Option<Arc<Staged>>,
    size_bytes: u64,
}

impl DirectoryUpload {
    /// The staged file, once no part is being written any more.
    fn take_staged(&mut self) -> Result<Staged> {
        let staged = self.staged.take().and_then(Arc::into_inner);
        staged.ok_or_else(|| Error::Generic {
            store: "directory",
            source: "the upload was completed or aborted while parts were being written".into(),
        })
    }
}

#[async_trait]
impl MultipartUpload for DirectoryUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let mut offset = self.size_bytes;
        self.size_bytes += payload.content_length() as u64;
        let (staged, location) = (self.staged.clone(), self.location.clone());
        Box::pin(async move {
            let write = move || {
                let staged = staged.ok_or(ErrorKind::NotFound)?;
                for piece in &payload {
                    staged.file()?.write_all_at(piece, offset)?;
                    offset += piece.len() as u64;
                }
                Ok(())
            };
            let outcome: io::Result<()> = tokio::task::spawn_blocking(write).await?;
            outcome.map_err(|e| error(&location, e))
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.take_staged()?;
        let (target, immutable) = (self.target.clone(), is_immutable(&self.location));
        let publish = tokio::task::spawn_blocking(move || staged.publish(&target, immutable));
        publish.await?.map_err(|e| error(&self.location, e))?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        self.take_staged().map(drop)
    }
}

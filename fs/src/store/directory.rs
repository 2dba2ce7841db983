//! A directory as the shared storage: on a local disk, or on NFS.
//!
//! Nothing here relies on mount options. On NFS, with the default ones,
//! - a name that was looked up too early stays hidden for up to 30 s after another node published
//!   it, and a tag that another node has moved shows its old target, unless their directories are
//!   revalidated first ([`names`]);
//! - renaming over a blob costs a recall of every delegation, and readers their file: blobs are
//!   published by `link(2)`, which tells the loser of a race that the blob is there already;
//! - a file that another node has removed may be lost while it is read (ESTALE).
//!
//! Everything is staged in `docker/larder/staging/`, outside of what a registry looks at, written
//! and synced there, and only then given its name ([`staged`]).

mod direct;
mod names;
mod staged;
mod upload;

use std::{
    fs::{self, File, Metadata},
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path as FilePath,
    sync::{
        Arc, OnceLock, Weak,
        mpsc::{self, SyncSender},
    },
    thread,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, local::LocalFileSystem, path::Path,
};
use tokio::sync::Semaphore;

use self::{
    names::Root,
    staged::{IfExists, Staged},
    upload::DirectoryUpload,
};
use super::{Backend, Leftovers, PART_BYTES};

/// How long the directory may take to be opened, in which a wrong configuration shows. One that takes
/// longer is asked for 9 s more, and an operator is told within 10 s.
const OPEN_DEADLINE: Duration = Duration::from_millis(800);
/// The pause before a directory is opened again that could not be opened in time.
const OPEN_PAUSE: Duration = Duration::from_secs(5);
/// How many threads may wait for the directory. An NFS server that is away keeps them all, and the
/// local cache needs threads, too.
const CALLS_MAX: usize = 64;
/// How often a file is opened anew that another node removed while it was opened or read.
const OPENS_MAX: usize = 5;
/// How many objects are removed at a time.
const DELETES: usize = 10;

/// The store of a `storage.filesystem` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(root: &FilePath) -> Result<Backend, String> {
    let directory = Directory::open(root)?;
    Ok(Backend {
        objects: Arc::new(directory.clone()),
        leftovers: Some(Arc::new(directory)),
        root_directory: String::new(),
        part_bytes: PART_BYTES,
        attributes: Attributes::new(),
        mistaken_key,
        endpoint_key: "storage.filesystem.rootdirectory",
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

/// A directory that is written durably, and read as NFS needs it. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: Arc<FilePath>,
    /// Not there yet while a server is away that was away already when it was to be opened.
    root: Arc<OnceLock<Arc<Root>>>,
    calls: Arc<Semaphore>,
}

impl Directory {
    /// The directory at `path`, which exists: whoever creates it here may hide an export that is
    /// not mounted.
    ///
    /// Whoever waits for an export whose server is away waits for as long as it is away. So it is
    /// opened in a thread of its own, and whoever calls it before that has ended waits as for any
    /// answer of it.
    ///
    /// # Errors
    /// A sentence that names the key to look at, if there is one within [`OPEN_DEADLINE`].
    pub fn open(path: &FilePath) -> Result<Self, String> {
        let (path, root) = (Arc::from(path), Arc::default());
        // Told only to who still waits.
        let (tell, opened) = mpsc::sync_channel(0);
        let open = {
            let (path, root) = (Arc::clone(&path), Arc::downgrade(&root));
            move || open_root(&path, &root, &tell)
        };
        let opener = thread::Builder::new().name("open".to_owned()).spawn(open);
        opener.map_err(|e| format!("no thread to open {}: {e}", path.display()))?;
        opened.recv_timeout(OPEN_DEADLINE).unwrap_or(Ok(()))?;
        Ok(Self { path, root, calls: Arc::new(Semaphore::new(CALLS_MAX)) })
    }

    /// Runs what may wait for the directory in a thread of its own.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Arc<Root>) -> T + Send + 'static,
    ) -> Result<T> {
        let call = Arc::clone(&self.calls).acquire_owned().await;
        let call = call.map_err(|e| generic(e.into()))?;
        let root = Arc::clone(&self.root);
        let run = tokio::task::spawn_blocking(move || {
            // Held until the thread is free again, also when nobody waits for it any more.
            let _call = call;
            operation(root.wait())
        });
        Ok(run.await?)
    }
}

/// Opens the directory and tells how that ended. When nobody waits for that any more, goes on until
/// it is open, or not needed.
fn open_root(
    path: &FilePath,
    root: &Weak<OnceLock<Arc<Root>>>,
    tell: &SyncSender<Result<(), String>>,
) {
    loop {
        let opened = try_to_open(path);
        let Some(root) = root.upgrade() else { return };
        let outcome = opened.map(|opened| drop(root.set(opened)));
        drop(root);
        match (outcome.clone(), tell.send(outcome)) {
            (Ok(()), _) | (_, Ok(())) => return,
            (Err(mistake), Err(_)) => tracing::warn!("{mistake}"),
        }
        thread::sleep(OPEN_PAUSE);
    }
}

fn try_to_open(path: &FilePath) -> Result<Arc<Root>, String> {
    let explain =
        |what: String| format!("storage.filesystem.rootdirectory: {} {what}", path.display());
    let root = Root::open(path).map_err(|e| {
        explain(format!("cannot be opened: {e}; create it, or mount the export there"))
    })?;
    let root = Arc::new(root);
    staged::try_out(&root).map_err(explain)?;
    Ok(root)
}

/// Blobs never change; links do. Distribution calls the one `data` and the other `link`.
pub(super) fn is_immutable(location: &Path) -> bool {
    location.filename() == Some("data")
}

fn is_stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESTALE)
}

/// Opens an object, and reads what is asked for.
fn get(root: &Root, location: &Path, options: &GetOptions) -> Result<GetResult> {
    let path = root.path_of(location);
    if !is_immutable(location)
        && let Some(parent) = path.parent()
    {
        // Another node may have moved it. Should this fail, the object is missing, and all the
        // directories above it are asked.
        let _ = File::open(parent);
    }
    let mut opens = 1;
    loop {
        let error = match read(&path, location, options) {
            Ok(outcome) => return outcome,
            Err(e) => e,
        };
        let is_missing = error.kind() == ErrorKind::NotFound;
        let is_doubtful = opens == 1 && is_missing || opens < OPENS_MAX && is_stale(&error);
        if !is_doubtful {
            return Err(read_error(location, error));
        }
        root.revalidate(&path);
        opens += 1;
    }
}

/// The outer error is the operating system's.
fn read(path: &FilePath, location: &Path, options: &GetOptions) -> io::Result<Result<GetResult>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::NotFound.into());
    }
    let meta = object_meta(location, &metadata)?;
    let range = match range(&meta, options) {
        Ok(range) => range,
        Err(e) => return Ok(Err(e)),
    };
    let payload = if options.range.is_some() && !options.head {
        let mut content = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut content, range.start)?;
        GetResultPayload::Stream(stream::iter([Ok(Bytes::from(content))]).boxed())
    } else {
        GetResultPayload::File(file, path.to_owned())
    };
    let (attributes, extensions) = Default::default();
    Ok(Ok(GetResult { payload, meta, range, attributes, extensions }))
}

fn range(meta: &ObjectMeta, options: &GetOptions) -> Result<Range<u64>> {
    options.check_preconditions(meta)?;
    match &options.range {
        Some(range) => range.as_range(meta.size).map_err(|e| generic(e.into())),
        None => Ok(0..meta.size),
    }
}

fn object_meta(location: &Path, metadata: &Metadata) -> io::Result<ObjectMeta> {
    let modified = metadata.modified()?;
    let time = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    Ok(ObjectMeta {
        location: location.clone(),
        last_modified: modified.into(),
        size: metadata.len(),
        e_tag: Some(format!("\"{:x}-{time:x}-{:x}\"", metadata.ino(), metadata.len())),
        version: None,
    })
}

/// The names in a directory, which may be missing.
fn list(root: &Root, prefix: &Path) -> Result<ListResult> {
    let path = root.path_of(prefix);
    root.revalidate(&path);
    let (common_prefixes, objects, extensions) = Default::default();
    let mut list = ListResult { common_prefixes, objects, extensions };
    match list_into(&mut list, &path, prefix) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(read_error(prefix, e)),
        _ => {}
    }
    list.common_prefixes.sort();
    Ok(list)
}

fn list_into(list: &mut ListResult, path: &FilePath, prefix: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Larder's keys are Distribution's, which are ASCII.
        let name = entry.file_name();
        let Some(location) = name.to_str().map(|name| prefix.clone().join(name)) else { continue };
        if entry.file_type()?.is_dir() {
            list.common_prefixes.push(location);
            continue;
        }
        match entry.metadata() {
            Ok(metadata) => list.objects.push(object_meta(&location, &metadata)?),
            Err(e) if e.kind() == ErrorKind::NotFound || is_stale(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes an object, and the directory that was made for it, if nothing else is in it.
///
/// Whoever is about to publish something there makes it anew.
fn delete(root: &Root, location: &Path) -> Result<()> {
    let path = root.path_of(location);
    root.revalidate(&path);
    fs::remove_file(&path).map_err(|e| read_error(location, e))?;
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn read_error(location: &Path, source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::NotFound => {
            Error::NotFound { path: location.to_string(), source: source.into() }
        }
        _ => generic(source.into()),
    }
}

/// As [`read_error`], but what is not there is no object: nobody asked for one.
fn write_error(location: &Path, source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::AlreadyExists => {
            Error::AlreadyExists { path: location.to_string(), source: source.into() }
        }
        _ => generic(source.into()),
    }
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: "directory", source }
}

impl std::fmt::Display for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "directory {}", self.path.display())
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
        let if_exists = match options.mode {
            PutMode::Overwrite => if_exists(location),
            PutMode::Create => IfExists::Fail,
            PutMode::Update(_) => {
                return Err(Error::NotSupported { source: "conditional updates".into() });
            }
        };
        let key = location.clone();
        let put = self.blocking(move |root| {
            let staged = Staged::create(root)?;
            staged.write(&payload)?;
            staged.publish(&root.path_of(&key), if_exists)
        });
        put.await?.map_err(|e| write_error(location, e))?;
        Ok(put_result())
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let staged = self.blocking(Staged::create).await?.map_err(|e| write_error(location, e))?;
        Ok(Box::new(DirectoryUpload::new(self, location, staged)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let location = location.clone();
        self.blocking(move |root| get(root, &location, &options)).await?
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let directory = self.clone();
        let deleted = locations.map(move |location| {
            let directory = directory.clone();
            async move {
                let location = location?;
                let key = location.clone();
                directory.blocking(move |root| delete(root, &key)).await??;
                Ok(location)
            }
        });
        deleted.buffered(DELETES).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (directory, prefix) = (self.clone(), prefix.cloned());
        let objects = async move {
            let from = prefix.clone().unwrap_or_default();
            let files = directory.blocking(move |root| {
                root.revalidate(&root.path_of(&from));
                LocalFileSystem::new_with_prefix(root.path())
            });
            Ok::<_, Error>(files.await??.list(prefix.as_ref()))
        };
        stream::once(objects).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        self.blocking(move |root| list(root, &prefix)).await?
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let files = self.blocking(|root| LocalFileSystem::new_with_prefix(root.path()));
        files.await??.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl Leftovers for Directory {
    /// It may wait for a node that died: see [`Staged::publish`].
    async fn sweep(&self, older_than: Duration) -> Result<usize> {
        let sweep = self.blocking(move |root| staged::sweep_leftovers(root, older_than));
        sweep.await?.map_err(|e| generic(e.into()))
    }
}

fn if_exists(location: &Path) -> IfExists {
    if is_immutable(location) { IfExists::Keep } else { IfExists::Replace }
}

fn put_result() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use object_store::{MultipartUpload, ObjectStoreExt};

    use super::{super::BLOCK_BYTES, *};

    async fn create(directory: &Directory, key: &Path, content: String) -> Result<PutResult> {
        directory.put_opts(key, content.into(), PutMode::Create.into()).await
    }

    #[tokio::test]
    async fn one_of_many_creates_a_name() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let key = Path::from("docker/larder/new/directory/lease");
        let writers = (0..16).map(|n| create(&directory, &key, n.to_string()));
        let outcomes = futures_util::future::join_all(writers).await;
        let winners = outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok());
        let winners: Vec<_> = winners.map(|(n, _)| n.to_string()).collect();
        let content = directory.get(&key).await.unwrap().bytes().await.unwrap();
        assert_eq!(winners, [std::str::from_utf8(&content).unwrap()]);
        let is_loss = |e: &Error| matches!(e, Error::AlreadyExists { .. });
        assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(is_loss));
    }

    #[tokio::test]
    async fn a_blob_takes_its_own_directory_with_it_and_comes_back() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let key = Path::from("blobs/sha256/00/00ff/data");
        for _ in 0..2 {
            directory.put(&key, "content".into()).await.unwrap();
            assert_eq!(directory.head(&key).await.unwrap().size, 7);
            directory.delete(&key).await.unwrap();
            let missing = directory.head(&key).await;
            assert!(matches!(missing, Err(Error::NotFound { .. })));
            assert!(!temporary.path().join("blobs/sha256/00/00ff").exists());
            assert!(temporary.path().join("blobs/sha256/00").exists());
        }
    }

    /// Whether a part goes past the page cache depends on where it is, in memory and in the file.
    #[tokio::test]
    async fn parts_arrive_whole_however_they_are_aligned() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(temporary.path()).unwrap();
        let key = Path::from("blobs/sha256/00/00ff/data");
        let memory: Bytes = (0..8 * BLOCK_BYTES).map(|n| (n / 7) as u8).collect();
        let aligned = memory.as_ptr().align_offset(BLOCK_BYTES);
        let part = |from, size| memory.slice(aligned + from..aligned + from + size);
        let block = BLOCK_BYTES;
        for sizes in [[2 * block, block, 5], [block + 5, block, block], [5, block - 5, 2 * block]] {
            for from in [0, 1] {
                let parts = sizes.map(|size| part(from, size));
                let mut upload = directory.put_multipart(&key).await.unwrap();
                for part in &parts {
                    upload.put_part(part.clone().into()).await.unwrap();
                }
                upload.complete().await.unwrap();
                let content = directory.get(&key).await.unwrap().bytes().await.unwrap();
                assert_eq!(content, parts.concat(), "{sizes:?} from {from}");
                directory.delete(&key).await.unwrap();
            }
        }
    }
}

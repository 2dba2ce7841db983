//! The index file: what it says at start, what is added to it, and how it is written anew.
//!
//! It is a journal: records are added behind its end. When it has become much longer than what it
//! says, a checkpoint begins another: all blobs, one shard after the other, and between them
//! what happens meanwhile; at the end it takes the journal's place.
//!
//! Nothing waits for the disk to make records durable. A process that is killed loses what the
//! kernel was not handed yet, which is nothing that [`Journal::flush`] returned for. A machine that
//! crashes may lose more, and files with it: see the *synced* record.

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, Hasher as _, RandomState},
    io::{self, BufReader},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    disk,
    index::{Index, SHARDS},
    key::Key,
    record::{BootId, PUT_BYTES, Reader, Record, Stream},
};
use crate::error::{Error, Result};

/// How much is kept for a disk that takes no writes at the moment.
const UNWRITTEN_MAX_BYTES: usize = 1 << 20;
/// A journal that is not longer than this, apart from what it has to say, is left alone.
const SLACK_BYTES: u64 = 4 << 20;

/// What happened to the index and is not in its file yet.
#[derive(Debug, Default)]
pub struct Log {
    journal: Option<Stream>,
    /// While a checkpoint is written, what is to be in it.
    checkpoint: Option<Stream>,
    /// Whether a file may have been put whose content is not on disk yet.
    pub has_unsynced: bool,
}

impl Log {
    /// Adds a record.
    pub fn write(&mut self, record: impl Fn(&mut Stream)) {
        let streams = [&mut self.journal, &mut self.checkpoint];
        streams.into_iter().flatten().for_each(record);
    }
}

/// The index file.
pub struct Journal {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    unwritten: Vec<u8>,
    /// Whether records were lost. Then what is on disk may not be in the journal, until a
    /// checkpoint has taken its place.
    is_broken: bool,
}

impl Journal {
    /// Reads the index file of `directory` into an empty index. False comes with it when the file
    /// was missing or damaged, so that there may be files in the directory that it does not name.
    pub fn load(directory: &Path, index: &mut Index) -> io::Result<(Self, bool)> {
        let path = directory.join("index");
        let file = create(&path, false)?;
        let found_bytes = file.metadata()?.len();
        let boot = boot_id();
        let (stream, size_bytes) = match replay(&file, index, boot)? {
            Some(replayed) => replayed,
            None => {
                let mut stream = Stream::new();
                stream.boot(boot);
                (stream, 0)
            }
        };
        let is_whole = size_bytes == found_bytes && size_bytes > 0;
        if !is_whole {
            tracing::warn!(
                path = %path.display(), found_bytes, kept_bytes = size_bytes,
                "the index of the cache is new, or its end was damaged; blobs that are not in it are \
                 looked for, and hashed before they are served"
            );
            file.set_len(size_bytes)?;
        }
        index.log = Log { journal: Some(stream), checkpoint: None, has_unsynced: true };
        Ok((Self { path, file, size_bytes, unwritten: Vec::new(), is_broken: false }, is_whole))
    }

    /// Where the next record goes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Hands everything that happened to the kernel.
    ///
    /// # Errors
    /// [`Error::Disk`] when it is not written, or something before it was not. What waits is
    /// written by a later flush, or is in the next checkpoint.
    pub fn flush(&mut self, index: &Mutex<Index>) -> Result<()> {
        let mut index = lock(index);
        self.unwritten.extend(index.log.journal.as_mut().map(Stream::take).unwrap_or_default());
        if self.is_broken || self.unwritten.len() > UNWRITTEN_MAX_BYTES {
            // The index in memory knows all of it: a checkpoint will say it again.
            self.is_broken = true;
            self.unwritten = Vec::new();
            index.log.journal = None;
            let lost = io::Error::other("records were lost, and wait to be written anew");
            return Err(Error::disk(format!("write {}", self.path.display()), lost));
        }
        drop(index);
        let (file, unwritten) = (&self.file, &self.unwritten);
        disk::run("write", &self.path, || file.write_all_at(unwritten, self.size_bytes))?;
        self.size_bytes += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }

    /// Waits until the file is on disk.
    pub fn sync(&self) -> Result<()> {
        disk::run("sync", &self.path, || self.file.sync_data())
    }

    /// Whether a checkpoint is due, of an index of so many blobs.
    pub fn is_overgrown(&self, blobs: usize) -> bool {
        self.is_broken || self.size_bytes > 2 * blobs as u64 * PUT_BYTES + SLACK_BYTES
    }
}

/// Writes the index anew. The index is locked for one shard at a time.
///
/// # Errors
/// [`Error::Disk`]; the journal that was there goes on.
pub fn checkpoint(journal: &Mutex<Journal>, index: &Mutex<Index>) -> Result<()> {
    let path = lock(journal).path.with_extension("new");
    let outcome = write_checkpoint(journal, index, &path);
    if outcome.is_err() {
        lock(index).log.checkpoint = None;
        let _ = fs::remove_file(&path);
    }
    outcome
}

fn write_checkpoint(journal: &Mutex<Journal>, index: &Mutex<Index>, path: &Path) -> Result<()> {
    let file = disk::run("create", path, || create(path, true))?;
    let mut size_bytes = 0;
    let mut append = |records: Vec<u8>| {
        let written = disk::run("write", path, || file.write_all_at(&records, size_bytes));
        size_bytes += records.len() as u64;
        written
    };
    let mut stream = Stream::new();
    stream.boot(boot_id());
    lock(index).log.checkpoint = Some(stream);
    for shard in 0..SHARDS {
        let records = copy_shard(&mut lock(index), shard);
        append(records)?;
    }
    disk::run("sync", path, || file.sync_data())?;

    // Who has to have something in the journal waits until there is the new one.
    let mut journal = lock(journal);
    let rest = lock(index).log.checkpoint.as_mut().map(Stream::take).unwrap_or_default();
    append(rest)?;
    disk::rename(path, &journal.path).inspect_err(|_| {
        // It may have taken effect all the same.
        journal.is_broken = true;
    })?;
    let mut index = lock(index);
    index.log.journal = index.log.checkpoint.take();
    index.log.has_unsynced = true;
    journal.file = file;
    journal.size_bytes = size_bytes;
    journal.unwritten = Vec::new();
    journal.is_broken = false;
    Ok(())
}

/// Takes what happened since the last shard, and the next shard.
fn copy_shard(index: &mut Index, shard: usize) -> Vec<u8> {
    let Some(mut stream) = index.log.checkpoint.take() else { return Vec::new() };
    for (key, slot) in index.shard(shard) {
        stream.put(key, slot);
    }
    let records = stream.take();
    index.log.checkpoint = Some(stream);
    records
}

/// Reads a file into the index. It returns what goes on behind its last whole record, and where;
/// `None` when it is not an index, or of a version that we do not know.
fn replay(file: &File, index: &mut Index, boot: BootId) -> io::Result<Option<(Stream, u64)>> {
    let Some(mut reader) = Reader::new(BufReader::with_capacity(1 << 20, file))? else {
        return Ok(None);
    };
    let mut last_boot = None;
    // What may not be on disk if the machine has crashed.
    let mut unsynced: Vec<(u64, Key)> = Vec::new();
    let mut begin = |boot, index: &mut Index, unsynced: &mut Vec<(u64, Key)>| {
        let has_crashed = last_boot.replace(boot).is_some_and(|last| last != boot);
        if has_crashed {
            unsynced.drain(..).for_each(|(_, key)| index.doubt(&key));
        }
        has_crashed
    };
    loop {
        let offset = reader.offset();
        let record = match reader.next() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(e) => {
                tracing::warn!("the index of the cache cannot be read any further: {e}");
                break;
            }
        };
        match &record {
            Record::Put(key, _) => unsynced.push((offset, key.clone())),
            Record::Synced(end) => unsynced.retain(|(offset, _)| offset >= end),
            Record::Boot(id) => drop(begin(*id, index, &mut unsynced)),
            Record::Touch(..) | Record::Remove(_) => {}
        }
        index.replay(record);
    }
    let mut stream = Stream::behind(&reader);
    if begin(boot, index, &mut unsynced) {
        stream.boot(boot);
    }
    Ok(Some((stream, reader.offset())))
}

fn create(path: &Path, is_new: bool) -> io::Result<File> {
    // Which blobs a node has is private, too.
    OpenOptions::new().read(true).write(true).create(true).truncate(is_new).mode(0o600).open(path)
}

/// Tells one start of the machine from another.
fn boot_id() -> BootId {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    // A machine that does not say may have crashed each time.
    let unknown = || RandomState::new().build_hasher().finish().into();
    u128::from_str_radix(&digits, 16).unwrap_or_else(|_| unknown()).to_be_bytes()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

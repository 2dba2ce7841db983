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
    io::{self, BufReader, Seek},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    disk,
    index::{Index, SHARDS},
    record::{BootId, PUT_BYTES, Reader, Record, Stream},
};
use crate::error::Result;

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
        let replayed = replay(&file, index, boot).unwrap_or_else(|e| {
            tracing::warn!(path = %path.display(), "the index of the cache cannot be read: {e}");
            None
        });
        let (stream, size_bytes) = replayed.unwrap_or_else(|| {
            index.clear();
            let mut stream = Stream::new();
            stream.boot(boot);
            (stream, 0)
        });
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
    /// [`crate::error::Error::Disk`] when it is not written, or something before it was not. What waits is
    /// written by a later flush, or is in the next checkpoint.
    pub fn flush(&mut self, index: &Mutex<Index>) -> Result<()> {
        let taken = lock(index).log.journal.as_mut().map(Stream::take).unwrap_or_default();
        self.unwritten.extend(taken);
        let written = disk::run("write", &self.path, || {
            if self.is_broken {
                return Err(io::Error::other("records were lost, and wait to be written anew"));
            }
            self.file.write_all_at(&self.unwritten, self.size_bytes)
        });
        if written.is_ok() {
            self.size_bytes += self.unwritten.len() as u64;
            self.unwritten.clear();
        } else if self.is_broken || self.unwritten.len() > UNWRITTEN_MAX_BYTES {
            // The index in memory knows all of it: a checkpoint will say it again.
            self.is_broken = true;
            self.unwritten = Vec::new();
            lock(index).log.journal = None;
        }
        written
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
/// [`crate::error::Error::Disk`]; the journal that was there goes on.
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

/// Reads a file into the index. It returns what goes on behind its last whole record, and where
/// that ends; `None` when it is not an index, or of a version that we do not know.
fn replay(file: &File, index: &mut Index, boot: BootId) -> io::Result<Option<(Stream, u64)>> {
    let mut last_boot = None;
    let mut synced_end = 0;
    // What was put but perhaps not on disk when the machine crashed.
    let mut doubtful: Vec<Range<u64>> = Vec::new();
    let mut begin = |id, offset, synced_end| {
        let has_crashed = last_boot.replace(id).is_some_and(|last| last != id);
        if has_crashed && synced_end < offset {
            doubtful.push(synced_end..offset);
        }
        has_crashed
    };
    let Some(reader) = read(file, |offset, record| match record {
        Record::Synced(end) => synced_end = end,
        Record::Boot(id) => drop(begin(id, offset, synced_end)),
        Record::Put(..) | Record::Touch(..) | Record::Remove(_) => index.replay(record),
    })?
    else {
        return Ok(None);
    };
    let mut stream = Stream::behind(&reader);
    if begin(boot, reader.offset(), synced_end) {
        stream.boot(boot);
    }
    // All that came later once more, now with the doubt.
    if let Some(first) = doubtful.first() {
        let start = first.start;
        read(file, |offset, mut record| {
            if let Record::Put(_, slot) = &mut record
                && doubtful.iter().any(|range| range.contains(&offset))
            {
                slot.verified_s = 0;
            }
            if offset >= start {
                index.replay(record);
            }
        })?;
    }
    Ok(Some((stream, reader.offset())))
}

/// Calls `each` for the records of a file, with the place of each.
fn read(
    mut file: &File,
    mut each: impl FnMut(u64, Record),
) -> io::Result<Option<Reader<BufReader<&File>>>> {
    file.rewind()?;
    let Some(mut reader) = Reader::new(BufReader::with_capacity(1 << 20, file))? else {
        return Ok(None);
    };
    let mut offset = reader.offset();
    while let Some(record) = reader.next()? {
        each(offset, record);
        offset = reader.offset();
    }
    Ok(Some(reader))
}

fn create(path: &Path, is_new: bool) -> io::Result<File> {
    // Which blobs a node has is private, too.
    OpenOptions::new().read(true).write(true).create(true).truncate(is_new).mode(0o600).open(path)
}

/// Tells one start of the machine from another.
fn boot_id() -> BootId {
    #[cfg(test)]
    if let Some(id) = BOOT_ID.get() {
        return id;
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    // A machine that does not say may have crashed each time.
    let unknown = || RandomState::new().build_hasher().finish().into();
    u128::from_str_radix(&digits, 16).unwrap_or_else(|_| unknown()).to_be_bytes()
}

#[cfg(test)]
thread_local! {
    /// As which start of the machine a test goes on.
    pub static BOOT_ID: std::cell::Cell<Option<BootId>> = const { std::cell::Cell::new(None) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Ranges of files on their way from an answer to its connection.
//!
//! hyper carries only memory to a connection. So that the bytes of a file need not become memory,
//! an answer puts a [`FileRange`] into the connection's [`Outbox`] and gives hyper a marker: a
//! slice of the same length, of memory that nobody reads. The connection ([`crate::stream`]) knows
//! a marker by its address and sends the file instead. HTTP/1 sends answers one after another, so
//! the outbox is a queue; hyper must hand slices on uncopied, which is what its vectored writes do.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

/// The longest marker: a fast client takes this much in one turn.
pub const MARKER_MAX_BYTES: usize = 64 << 20;

/// Takes no memory: its pages are never touched.
static MARKERS: [u8; MARKER_MAX_BYTES] = [0; MARKER_MAX_BYTES];

/// Bytes of an open file.
#[derive(Clone)]
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// Its inode's number.
    pub inode: u64,
    /// Where the bytes are in it.
    pub range: Range<u64>,
}

/// What one connection has to send of files, in order.
#[derive(Default)]
pub struct Outbox {
    queue: Mutex<VecDeque<FileRange>>,
}

impl Outbox {
    /// Puts a range of at most [`MARKER_MAX_BYTES`] in, and gives the marker for hyper.
    pub fn put(&self, range: FileRange) -> Bytes {
        let size_bytes = usize::try_from(range.len()).unwrap_or(usize::MAX);
        self.lock().push_back(range);
        Bytes::from_static(&MARKERS[..size_bytes])
    }

    /// What a marker, or the rest of one, stands for.
    ///
    /// # Errors
    /// The marker is not the next one. Never, as long as hyper sends what it is given in order.
    pub fn next(&self, marker: &[u8]) -> io::Result<FileRange> {
        let next = self.lock().front().filter(|range| range.len() == marker.len() as u64).cloned();
        next.ok_or_else(|| io::Error::other("a marker without its file"))
    }

    /// Takes `sent_bytes` off the next range.
    pub fn advance(&self, sent_bytes: u64) {
        let mut queue = self.lock();
        if let Some(next) = queue.front_mut() {
            next.range.start += sent_bytes;
            if next.range.is_empty() {
                queue.pop_front();
            }
        }
    }

    /// How much has not been sent.
    pub fn size_bytes(&self) -> u64 {
        self.lock().iter().map(FileRange::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<FileRange>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileRange {
    /// How many bytes it is.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Takes at most `max_bytes` off the front.
    pub fn split_front(&mut self, max_bytes: u64) -> Self {
        let end = self.range.end.min(self.range.start + max_bytes);
        let front = Self { range: self.range.start..end, ..self.clone() };
        self.range.start = end;
        front
    }
}

/// Whether a slice is a marker, or the rest of one.
pub fn is_marker(slice: &[u8]) -> bool {
    MARKERS.as_ptr_range().contains(&slice.as_ptr())
}

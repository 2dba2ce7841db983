//! What of the files was lately found to be in memory, so that each connection need not look again.
//!
//! To look costs a change of thread and a system call for every 128 KiB ([`crate::turn`]), a tenth of
//! what it costs to send them. Hundreds of clients want the same blob at the same time.

use std::{
    num::NonZeroUsize,
    ops::Range,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::outbox::FileRange;

/// How much of a file is looked at in one turn, and then sent without another.
pub const WINDOW_BYTES: u64 = 16 << 20;
/// How long it is believed. The kernel may need the memory for something else.
const BELIEF: Duration = Duration::from_secs(1);
/// How many windows are known: 64 GiB.
const WINDOWS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// By the inode and the window's number in it. An inode of another directory costs at worst a wait
/// for its disk.
type Seen = LruCache<(u64, u64), (Range<u64>, Instant)>;

static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(|| Mutex::new(LruCache::new(WINDOWS_MAX)));

/// The part of a range that is in its first window.
pub fn first_window(of: &FileRange) -> Range<u64> {
    let Range { start, end } = of.range;
    start..end.min((start / WINDOW_BYTES + 1) * WINDOW_BYTES)
}

/// How many bytes at the beginning of a range were lately in memory.
pub fn known_bytes(of: &FileRange) -> u64 {
    let Range { start, end } = first_window(of);
    match seen().get(&(of.inode, start / WINDOW_BYTES)) {
        Some((range, at)) if range.contains(&start) && at.elapsed() < BELIEF => {
            end.min(range.end) - start
        }
        _ => 0,
    }
}

/// Notes that a part of one window of a file is in memory.
pub fn note(inode: u64, range: Range<u64>) {
    seen().put((inode, range.start / WINDOW_BYTES), (range, Instant::now()));
}

fn seen() -> MutexGuard<'static, Seen> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_what_was_seen_is_known() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let known = |inode, range: Range<u64>| {
            known_bytes(&FileRange { file: Arc::clone(&file), inode, range })
        };
        let inode = u64::MAX;
        note(inode, WINDOW_BYTES + 10..WINDOW_BYTES + 30);
        assert_eq!(known(inode, WINDOW_BYTES + 10..3 * WINDOW_BYTES), 20);
        assert_eq!(known(inode, WINDOW_BYTES + 15..WINDOW_BYTES + 20), 5);
        assert_eq!(known(inode, WINDOW_BYTES + 9..WINDOW_BYTES + 20), 0);
        assert_eq!(known(inode, WINDOW_BYTES + 30..WINDOW_BYTES + 40), 0);
        assert_eq!(known(inode, 10..30), 0);
        assert_eq!(known(inode - 1, WINDOW_BYTES + 10..WINDOW_BYTES + 30), 0);
        note(inode, 0..WINDOW_BYTES);
        assert_eq!(known(inode, 0..2 * WINDOW_BYTES), WINDOW_BYTES);
    }
}

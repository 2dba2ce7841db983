//! What is in the cache, in memory. Nothing in here calls the disk, and each function takes the
//! index from one consistent state to another: nothing in between can fail.
//!
//! The blobs are in shards, so that whatever goes through all of them (a checkpoint, the search for
//! the next blob to scrub, a table that grows) lets others in between. Each shard is in order of
//! use; the `used` of its slots puts the shards in order.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lru::LruCache;

use super::{disk::Fingerprint, journal::Log, key::Key, record::Record, verity};

/// How many parts the index has.
pub const SHARDS: usize = 64;
/// The readers of a blob whose file is being removed: it counts as gone already.
const EVICTING: u32 = u32::MAX;
/// How many blobs may be used before the log is told.
const TOUCHED_MAX: usize = 1024;

/// A blob in the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// When it was last used, counted in uses.
    pub used: u64,
    /// The file, as it was when its content was last known to be right. Without an inode it was
    /// found in the directory, and nothing is known of its content.
    pub file: Fingerprint,
    /// When it came into the cache, in seconds since 1970.
    pub cached_s: u32,
    /// When its content was last hashed. 0 when it has to be hashed before it is served.
    pub verified_s: u32,
    readers: u32,
    /// Whether its file is known to be in the directory, in this run.
    pub is_seen: bool,
}

impl Slot {
    /// A slot for a file whose content has to be hashed.
    pub fn of(file: Fingerprint) -> Self {
        Self { used: 0, file, cached_s: 0, verified_s: 0, readers: 0, is_seen: false }
    }

    /// Whether a file that looks like this may be served.
    pub fn vouches_for(&self, file: &Fingerprint) -> bool {
        self.verified_s != 0 && self.file == *file
    }

    fn is_evicting(&self) -> bool {
        self.readers == EVICTING
    }
}

/// A file that has lost its name, but is still open.
#[derive(Debug, Default)]
struct Detached {
    readers: u32,
    charge_bytes: u64,
}

/// What the disk is used for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Blobs that nobody has open.
    pub idle: u64,
    pub open: u64,
    /// Blobs that are being removed.
    pub evicting: u64,
    /// Room that was promised.
    pub reserved: u64,
    pub detached: u64,
    pub quarantined: u64,
    /// What an earlier run had staged, and is not removed yet.
    pub discarded: u64,
}

impl Sums {
    pub fn used(&self) -> u64 {
        [self.idle, self.open, self.evicting, self.detached, self.quarantined, self.discarded]
            .into_iter()
            .fold(self.reserved, u64::saturating_add)
    }

    fn part(&mut self, slot: &Slot) -> &mut u64 {
        match slot.readers {
            0 => &mut self.idle,
            EVICTING => &mut self.evicting,
            _ => &mut self.open,
        }
    }
}

/// The index.
pub struct Index {
    shards: Vec<LruCache<Key, Slot>>,
    /// Counts uses: the next one's number.
    uses: u64,
    /// Blobs whose last use is not in the log.
    touched: HashSet<Key>,
    detached: HashMap<(Key, u64), Detached>,
    pub sums: Sums,
    pub log: Log,
    block_bytes: u64,
    has_verity: bool,
}

impl Index {
    /// An empty index, for a disk that is allocated in blocks of `block_bytes`. With fs-verity, each
    /// file has a tree beside it.
    pub fn new(block_bytes: u64, has_verity: bool) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| LruCache::unbounded()).collect(),
            uses: 1,
            touched: HashSet::new(),
            detached: HashMap::new(),
            sums: Sums::default(),
            log: Log::default(),
            block_bytes,
            has_verity,
        }
    }

    /// How much of the disk a file takes, its name included.
    pub fn charge(&self, size_bytes: u64) -> u64 {
        // A file from before the filesystem had it counts like the others, and takes a little less.
        let tree_bytes = if self.has_verity { verity::tree_bytes(size_bytes) } else { 0 };
        let blocks_bytes = size_bytes.max(1).checked_next_multiple_of(self.block_bytes);
        blocks_bytes.unwrap_or(u64::MAX).saturating_add(tree_bytes)
    }

    /// How many blobs there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(LruCache::len).sum()
    }

    /// What is known of a blob that is in the cache.
    pub fn get(&self, key: &Key) -> Option<&Slot> {
        self.slot(key).filter(|slot| !slot.is_evicting())
    }

    /// Whether a file of this name may be in the directory.
    pub fn has_file(&self, key: &Key) -> bool {
        self.slot(key).is_some()
    }

    /// Every blob of a shard, least recently used first.
    pub fn shard(&self, number: usize) -> impl Iterator<Item = (&Key, &Slot)> {
        self.shards[number].iter().rev()
    }

    /// Keeps a blob from being evicted, until it is unpinned with the inode that it has now.
    pub fn pin(&mut self, key: &Key) -> Option<Slot> {
        self.get(key)?;
        self.update(key, |slot| slot.readers += 1)
    }

    /// Takes back one pin of a file.
    pub fn unpin(&mut self, key: &Key, inode: u64) {
        if self.slot(key).is_some_and(|slot| slot.file.inode == inode) {
            self.update(key, |slot| slot.readers = slot.readers.saturating_sub(1));
            return;
        }
        let name = (key.clone(), inode);
        let Some(detached) = self.detached.get_mut(&name) else { return };
        detached.readers = detached.readers.saturating_sub(1);
        if detached.readers == 0 {
            self.reattach(key, inode);
        }
    }

    /// Makes a blob the most recently used.
    pub fn touch(&mut self, key: &Key) {
        self.promote(key);
        if !self.touched.contains(key) {
            self.touched.insert(key.clone());
        }
        if self.touched.len() >= TOUCHED_MAX {
            self.log_touches();
        }
    }

    /// Tells the log which blobs were used when, since it was last told.
    pub fn log_touches(&mut self) {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let used = |key: Key| Some((self.slot(&key)?.used, key));
        let mut touched: Vec<_> = touched.filter_map(used).collect();
        touched.sort_unstable();
        for (used, key) in touched {
            self.log.write(|stream| stream.touch(&key, used));
        }
    }

    /// Turns room into the slot of a blob whose staged file is about to get its name. It is pinned,
    /// and its content is not vouched for yet. The slot that was there before comes back: its file
    /// is pinned, too.
    pub fn begin_adopt(&mut self, key: &Key, file: Fingerprint, room_bytes: u64) -> Option<Slot> {
        let old = self.pop(key);
        if let Some(old) = &old {
            self.detach(key, old, 1);
        }
        self.release(room_bytes);
        let (used, cached_s) = (self.next_use(), now_s());
        self.put(key, Slot { used, cached_s, readers: 1, is_seen: true, ..Slot::of(file) });
        old
    }

    /// The staged file did not get its name: all is as before [`Index::begin_adopt`].
    pub fn cancel_adopt(&mut self, key: &Key, room_bytes: u64, old: Option<Slot>) {
        self.pop(key);
        self.sums.reserved = self.sums.reserved.saturating_add(room_bytes);
        let Some(old) = old else { return self.log.write(|stream| stream.remove(key)) };
        let readers = self.reattach(key, old.file.inode).saturating_sub(1);
        let used = self.next_use();
        self.put(key, Slot { used, readers, ..old });
    }

    /// The content of a blob was hashed and is right, and its file looks like this.
    pub fn confirm(&mut self, key: &Key, file: Fingerprint) {
        let Some(old) = self.get(key).copied() else { return };
        let mut readers = old.readers;
        if old.file.inode != file.inode {
            self.detach(key, &old, 0);
            readers = 0;
        }
        let confirmed = Slot { file, verified_s: now_s(), readers, is_seen: true, ..old };
        self.update(key, |slot| *slot = confirmed);
        self.log.write(|stream| stream.put(key, &confirmed));
    }

    /// The content of a blob is not to be believed until it is hashed.
    pub fn doubt(&mut self, key: &Key) {
        if let Some(slot) = self.update(key, |slot| slot.verified_s = 0) {
            self.log.write(|stream| stream.put(key, &slot));
        }
    }

    /// A file was found whose blob is not in the index. It is the first to be evicted.
    pub fn found(&mut self, key: &Key, file: Fingerprint) {
        let cached_s = u32::try_from(file.changed_ns / 1_000_000_000).unwrap_or(0);
        let file = Fingerprint { inode: 0, ..file };
        self.put(key, Slot { cached_s, is_seen: true, ..Slot::of(file) });
    }

    /// The file of a blob was seen in the directory.
    pub fn seen(&mut self, key: &Key) {
        self.update(key, |slot| slot.is_seen = true);
    }

    /// Forgets a blob whose file has lost its name. What has it open keeps its room.
    pub fn forget(&mut self, key: &Key) {
        let Some(slot) = self.pop(key) else { return };
        self.detach(key, &slot, 0);
        self.log.write(|stream| stream.remove(key));
    }

    /// Forgets a blob whose file is in quarantine now, and goes on taking so much room.
    pub fn quarantine(&mut self, key: &Key, inode: u64, charge_bytes: u64) {
        let Some(slot) = self.pop(key) else { return };
        self.detach(key, &slot, 0);
        if let Some(detached) = self.detached.get_mut(&(key.clone(), inode)) {
            self.sums.detached = self.sums.detached.saturating_sub(detached.charge_bytes);
            detached.charge_bytes = 0;
        }
        self.sums.quarantined += charge_bytes;
        self.log.write(|stream| stream.remove(key));
    }

    /// A file was removed from the quarantine. What has it open keeps its room.
    pub fn release_quarantined(&mut self, key: Option<&Key>, inode: u64, charge_bytes: u64) {
        self.sums.quarantined = self.sums.quarantined.saturating_sub(charge_bytes);
        let name = key.map(|key| (key.clone(), inode));
        if let Some(detached) = name.and_then(|name| self.detached.get_mut(&name)) {
            detached.charge_bytes += charge_bytes;
            self.sums.detached += charge_bytes;
        }
    }

    /// Gives promised room back.
    pub fn release(&mut self, size_bytes: u64) {
        self.sums.reserved = self.sums.reserved.saturating_sub(size_bytes);
    }

    /// Marks the least recently used blobs that nobody has open for eviction, until they make up
    /// `size_bytes`, or there are no more.
    pub fn take_victims(&mut self, mut size_bytes: u64) -> Vec<(Key, u64)> {
        let begun = self.uses;
        let mut victims = Vec::new();
        while size_bytes > 0
            && let Some((key, slot)) = self.oldest().filter(|(_, slot)| slot.used < begun)
        {
            // An open blob is in use. One that is evicted is out of the way so, and if that fails,
            // it is not the next to be tried.
            self.promote(&key);
            if slot.readers == 0 {
                size_bytes = size_bytes.saturating_sub(self.charge(slot.file.size_bytes));
                self.update(&key, |slot| slot.readers = EVICTING);
                victims.push((key, slot.file.inode));
            }
        }
        victims
    }

    /// Whether the file of a victim is still to be removed: the blob may have come in anew.
    pub fn is_victim(&self, key: &Key, inode: u64) -> bool {
        self.slot(key).is_some_and(|slot| slot.is_evicting() && slot.file.inode == inode)
    }

    /// The file of a victim could not be removed: the blob stays.
    pub fn spare(&mut self, key: &Key) {
        self.update(key, |slot| slot.readers = 0);
    }

    /// What the log of an earlier run says.
    pub fn replay(&mut self, record: Record) {
        match record {
            Record::Put(key, slot) => {
                self.uses = self.uses.max(slot.used.saturating_add(1));
                self.insert(key, slot);
            }
            Record::Touch(key, used) => {
                self.uses = self.uses.max(used.saturating_add(1));
                if let Some(slot) = self.shards[shard(&key)].get_mut(&key) {
                    slot.used = used;
                }
            }
            Record::Remove(key) => drop(self.pop(&key)),
            Record::Boot(_) | Record::Synced(_) => {}
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.block_bytes, self.has_verity);
    }

    fn slot(&self, key: &Key) -> Option<&Slot> {
        self.shards[shard(key)].peek(key)
    }

    /// The least recently used blob.
    fn oldest(&self) -> Option<(Key, Slot)> {
        let ends = self.shards.iter().filter_map(LruCache::peek_lru);
        let (key, slot) = ends.min_by_key(|(_, slot)| slot.used)?;
        Some((key.clone(), *slot))
    }

    fn promote(&mut self, key: &Key) {
        let used = self.next_use();
        if let Some(slot) = self.shards[shard(key)].get_mut(key) {
            slot.used = used;
        }
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses - 1
    }

    /// Counts a file apart that loses its name, if anything has it open: its readers, and `pins`.
    fn detach(&mut self, key: &Key, slot: &Slot, pins: u32) {
        let readers = if slot.is_evicting() { pins } else { slot.readers + pins };
        if readers > 0 {
            let charge_bytes = self.charge(slot.file.size_bytes);
            let detached = self.detached.entry((key.clone(), slot.file.inode)).or_default();
            detached.readers += readers;
            detached.charge_bytes += charge_bytes;
            self.sums.detached += charge_bytes;
        }
    }

    /// Counts a file apart no more, and tells how many readers it has.
    fn reattach(&mut self, key: &Key, inode: u64) -> u32 {
        let Detached { readers, charge_bytes } =
            self.detached.remove(&(key.clone(), inode)).unwrap_or_default();
        self.sums.detached = self.sums.detached.saturating_sub(charge_bytes);
        readers
    }

    /// Changes a slot in its place.
    fn update(&mut self, key: &Key, change: impl FnOnce(&mut Slot)) -> Option<Slot> {
        let slot = self.shards[shard(key)].peek_mut(key)?;
        let before = *slot;
        change(slot);
        let after = *slot;
        self.subtract(&before);
        self.add(&after);
        Some(after)
    }

    fn put(&mut self, key: &Key, slot: Slot) {
        self.log.write(|stream| stream.put(key, &slot));
        self.insert(key.clone(), slot);
    }

    fn insert(&mut self, key: Key, slot: Slot) {
        let shard = &mut self.shards[shard(&key)];
        // Never used, it is before all others.
        let replaced = if slot.used == 0 {
            let replaced = shard.put(key.clone(), slot);
            shard.demote(&key);
            replaced
        } else {
            shard.put(key, slot)
        };
        self.add(&slot);
        if let Some(replaced) = replaced {
            self.subtract(&replaced);
        }
    }

    fn pop(&mut self, key: &Key) -> Option<Slot> {
        let slot = self.shards[shard(key)].pop(key)?;
        self.subtract(&slot);
        Some(slot)
    }

    fn add(&mut self, slot: &Slot) {
        let charge_bytes = self.charge(slot.file.size_bytes);
        let part = self.sums.part(slot);
        *part = part.saturating_add(charge_bytes);
    }

    fn subtract(&mut self, slot: &Slot) {
        let charge_bytes = self.charge(slot.file.size_bytes);
        let part = self.sums.part(slot);
        *part = part.saturating_sub(charge_bytes);
    }
}

fn shard(key: &Key) -> usize {
    usize::from(key.bytes()[0]) % SHARDS
}

/// Seconds since 1970, and never 0.
pub fn now_s() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// The time behind so many seconds since 1970.
pub fn time_s(seconds: u32) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.into())
}

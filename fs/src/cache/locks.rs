//! One at a time for each blob: who gives its file a name, hashes it or takes its name away holds
//! the blob's lock, and none other. Who wants a lock holds neither another blob's lock nor that of
//! the index or the journal.

use std::{
    collections::HashSet,
    sync::{Condvar, Mutex, PoisonError},
};

use super::key::Key;

/// The locks of all blobs.
#[derive(Default)]
pub struct Locks {
    held: Mutex<HashSet<Key>>,
    released: Condvar,
}

/// Holds the lock of a blob until it is dropped.
pub struct Held<'a> {
    locks: &'a Locks,
    key: &'a Key,
}

impl Locks {
    /// Waits until nobody else holds the lock of this blob.
    pub fn lock<'a>(&'a self, key: &'a Key) -> Held<'a> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let is_held = |held: &mut HashSet<Key>| held.contains(key);
        let mut held =
            self.released.wait_while(held, is_held).unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone());
        Held { locks: self, key }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.locks.held.lock().unwrap_or_else(PoisonError::into_inner).remove(self.key);
        self.locks.released.notify_all();
    }
}

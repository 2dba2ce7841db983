//! How far the clients of a pull have read. What can be stored nowhere is in memory alone, and comes no
//! faster than they take it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// How long a client may take nothing while others wait for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The clients that read.
#[derive(Default)]
pub(super) struct Readers {
    places: Mutex<Places>,
    moved: Notify,
}

#[derive(Default)]
struct Places {
    offsets: HashMap<u64, u64>,
    next: u64,
}

/// One that reads, until it is dropped.
pub(super) struct Reader {
    readers: Arc<Readers>,
    number: u64,
}

impl Readers {
    /// One more reads, from `offset` on.
    pub(super) fn enter(self: &Arc<Self>, offset: u64) -> Reader {
        let mut places = self.places();
        let number = places.next;
        places.next += 1;
        places.offsets.insert(number, offset);
        drop(places);
        self.moved.notify_waiters();
        Reader { readers: Arc::clone(self), number }
    }

    /// Waits until every client has read up to `offset`, or has made the others wait for too long. Tells
    /// whether any is there.
    pub(super) async fn come_to(&self, offset: u64) -> bool {
        let all = async {
            loop {
                let mut moved = std::pin::pin!(self.moved.notified());
                // From now on no notification is missed.
                moved.as_mut().enable();
                if self.slowest().is_some_and(|slowest| slowest >= offset) {
                    return;
                }
                moved.await;
            }
        };
        // Who is behind after this finds out when it reads on.
        let _ = timeout(PATIENCE, all).await;
        self.places().offsets.values().any(|place| *place >= offset)
    }

    fn slowest(&self) -> Option<u64> {
        self.places().offsets.values().min().copied()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// It has read up to `offset`.
    pub(super) fn advance(&self, offset: u64) {
        self.readers.places().offsets.insert(self.number, offset);
        self.readers.moved.notify_waiters();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.places().offsets.remove(&self.number);
        self.readers.moved.notify_waiters();
    }
}

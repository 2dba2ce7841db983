//! What goes on in the background beside the scrubber: the journal, the first look at the
//! directory, what an earlier run left, and `cache.min_free` while others fill the disk.

use std::{
    fs::{self, File},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::Ordering,
        mpsc::{self, Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};

use nix::unistd::syncfs;

use super::{State, disk, journal, room::allocated_bytes};
use crate::error::Result;

/// How often the keeper looks around.
const TICK: Duration = Duration::from_secs(1);
/// How much of the order of use a crash may lose.
const TOUCH_INTERVAL: Duration = Duration::from_secs(10);
/// How much a crash of the machine may leave to be hashed anew.
const SYNC_INTERVAL: Duration = Duration::from_secs(300);
/// When something is tried again that has failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Says to the threads of a cache that it is closed.
#[derive(Default)]
pub struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub fn set(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    pub fn is_set(&self) -> bool {
        *self.lock()
    }

    /// Waits so long, or until it is set. Tells whether it is.
    pub fn wait(&self, timeout: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sync of the whole disk that is under way, in a thread that nobody has to wait for.
struct Sync {
    /// Where the journal ended when it began.
    offset: u64,
    outcome: Receiver<nix::Result<()>>,
}

/// What the thread knows.
pub struct Keeper {
    state: Arc<State>,
    is_reconciled: bool,
    sync: Option<Sync>,
    touched_at: Instant,
    synced_at: Instant,
}

impl Keeper {
    pub fn new(state: Arc<State>) -> Self {
        let now = Instant::now();
        Self { state, is_reconciled: false, sync: None, touched_at: now, synced_at: now }
    }

    /// Runs until the cache is closed.
    pub fn run(mut self) {
        let mut retry_at = Instant::now();
        while !self.state.stop.is_set() {
            if Instant::now() >= retry_at
                && let Err(e) = self.tidy()
            {
                tracing::warn!("{e}; tried again in {RETRY_INTERVAL:?}");
                retry_at = Instant::now() + RETRY_INTERVAL;
            }
            // Who needs room hears of it when there is none. Before all is counted it would be this
            // thread that this thread waits for, and whoever closes the cache would wait as well.
            if self.state.is_counted.load(Ordering::Relaxed) {
                let _ = self.state.make_room(0);
            }
            self.state.stop.wait(TICK);
        }
    }

    /// Does what is due.
    pub fn tidy(&mut self) -> Result<()> {
        if self.touched_at.elapsed() >= TOUCH_INTERVAL {
            self.state.index().log_touches();
            self.touched_at = Instant::now();
        }
        let flushed = self.state.flush();
        if self.state.is_checkpoint_due() {
            // The sync that is under way tells of the old journal.
            self.sync = None;
            self.state.checkpoint()?;
        } else {
            flushed?;
        }
        if !self.is_reconciled {
            self.state.reconcile()?;
            self.state.remove_discarded()?;
            self.is_reconciled = true;
        }
        self.sync()
    }

    /// Has the journal say what is on disk for good.
    fn sync(&mut self) -> Result<()> {
        if self.sync.is_none() && self.synced_at.elapsed() >= SYNC_INTERVAL {
            self.synced_at = Instant::now();
            self.sync = self.state.begin_sync()?;
        }
        let Some(Sync { offset, outcome }) = &self.sync else { return Ok(()) };
        match outcome.try_recv() {
            Ok(outcome) => {
                let offset = *offset;
                self.sync = None;
                self.state.end_sync(offset, outcome)
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => {
                self.sync = None;
                Ok(())
            }
        }
    }
}

impl State {
    /// Hands what happened to the kernel.
    pub(super) fn flush(&self) -> Result<()> {
        self.journal().flush(&self.index)
    }

    pub(super) fn checkpoint(&self) -> Result<()> {
        journal::checkpoint(&self.journal, &self.index)
    }

    fn is_checkpoint_due(&self) -> bool {
        let blobs = self.index().len();
        self.journal().is_overgrown(blobs)
    }

    /// Begins to sync the disk, if there is anything new on it.
    fn begin_sync(&self) -> Result<Option<Sync>> {
        let offset = {
            let mut journal = self.journal();
            journal.flush(&self.index)?;
            // What is put from here on is behind the offset, and needs another sync.
            if !std::mem::take(&mut self.index().log.has_unsynced) {
                return Ok(None);
            }
            journal.size_bytes()
        };
        let directory = disk::run("open", &self.directory, || File::open(&self.directory))?;
        let (sender, outcome) = mpsc::channel();
        std::thread::spawn(move || sender.send(syncfs(directory)));
        Ok(Some(Sync { offset, outcome }))
    }

    pub(super) fn end_sync(&self, offset: u64, outcome: nix::Result<()>) -> Result<()> {
        if outcome.is_err() {
            self.index().log.has_unsynced = true;
        }
        disk::run("sync", &self.directory, || Ok(outcome?))?;
        self.index().log.write(|stream| stream.synced(offset));
        let mut journal = self.journal();
        journal.flush(&self.index)?;
        journal.sync()
    }

    /// Removes what an earlier run had staged.
    pub(super) fn remove_discarded(&self) -> Result<()> {
        let directory = self.directory.join("discarded");
        for run in disk::run("list", &directory, || fs::read_dir(&directory))? {
            let run = disk::run("list", &directory, || run)?.path();
            for file in disk::run("list", &run, || fs::read_dir(&run))? {
                if self.stop.is_set() {
                    return Ok(());
                }
                disk::remove(&disk::run("list", &run, || file)?.path())?;
            }
            disk::run("remove", &run, || fs::remove_dir(&run))?;
        }
        self.index().sums.discarded = allocated_bytes(&directory)?;
        self.changed.notify_all();
        Ok(())
    }
}

//! File calls that may hang, on blocking threads, with deadlines and a limit.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::content::place::doubt;

/// How many calls may be under way at once. A dead mount keeps this many threads, of tokio's 512.
const CALLS_MAX: usize = 128;
/// The deadline of reading or writing one piece of a file.
pub const PIECE_DEADLINE: Duration = Duration::from_secs(30);
/// At most one line of log about a storage in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// The calls to one storage. Clones share the limit.
#[derive(Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

struct Shared {
    /// What the storage is to the operator, for the log.
    storage: &'static str,
    permits: Arc<Semaphore>,
    complained_at: Mutex<Option<Instant>>,
}

impl Calls {
    /// No calls yet to the storage of this name.
    pub fn new(storage: &'static str) -> Self {
        let permits = Arc::new(Semaphore::new(CALLS_MAX));
        Self { shared: Arc::new(Shared { storage, permits, complained_at: Mutex::new(None) }) }
    }

    /// Runs a call on a blocking thread.
    ///
    /// The permit goes with the thread, not with the caller: a call that hangs holds its permit
    /// when nobody waits for it any more, so that hanging calls cannot pile up.
    ///
    /// # Errors
    /// What the call says, or [`io::ErrorKind::TimedOut`].
    pub async fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let permits = Arc::clone(&self.shared.permits);
        let result = timeout(deadline, async {
            let permit = permits.acquire_owned().await.map_err(io::Error::other)?;
            let thread = spawn_blocking(move || {
                let _permit = permit;
                call()
            });
            thread.await.map_err(io::Error::other)?
        });
        let result = result.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        result.inspect_err(|error| self.shared.complain(error))
    }

    /// Reads exactly these bytes of an open file.
    ///
    /// # Errors
    /// The storage is in trouble, or the file is shorter.
    pub async fn read(&self, file: &Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
        let file = Arc::clone(file);
        let size_bytes = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        self.run(PIECE_DEADLINE, move || {
            let mut piece = vec![0; size_bytes];
            let read = file.read_exact_at(&mut piece, range.start);
            read.inspect_err(|error| doubt(&file, error))?;
            Ok(Bytes::from(piece))
        })
        .await
    }

    /// Writes `piece` at `offset` of an open file.
    ///
    /// # Errors
    /// The storage is in trouble.
    pub async fn write(&self, file: Arc<File>, offset: u64, piece: Bytes) -> io::Result<()> {
        self.run(PIECE_DEADLINE, move || file.write_all_at(&piece, offset)).await
    }
}

impl Shared {
    fn complain(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        let mut at = self.complained_at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            *at = Some(Instant::now());
            tracing::warn!(%error, storage = self.storage, "the storage is in trouble");
        }
    }
}

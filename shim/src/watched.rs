//! Files that are read again when they change.

use std::{
    fmt::Display,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// How often the files are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

type Read<T, E> = Box<dyn Fn() -> Result<T, E> + Send + Sync>;

/// What some files say, as they are now.
pub struct Watched<T, E> {
    paths: Vec<PathBuf>,
    read: Read<T, E>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: Arc<T>,
    /// When each file was last changed, and its length. Looked at before they are read, so that what
    /// changes in between is read again.
    stamps: Vec<Option<(SystemTime, u64)>>,
}

impl<T, E: Display> Watched<T, E> {
    /// Reads the files.
    ///
    /// # Errors
    /// What `read` says.
    pub fn new(
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let stamps = stamps(&paths);
        let current = Mutex::new(Current { value: Arc::new(read()?), stamps });
        Ok(Self { paths, read: Box::new(read), current })
    }

    /// What they say.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.lock().value)
    }

    /// Reads them again if they have changed. Those that cannot be used change nothing: they may be
    /// half written, and what was good before still is.
    pub fn refresh(&self) {
        let stamps = stamps(&self.paths);
        if stamps == self.lock().stamps {
            return;
        }
        match (self.read)() {
            Ok(value) => *self.lock() = Current { value: Arc::new(value), stamps },
            Err(mistake) => {
                self.lock().stamps = stamps;
                return tracing::error!(%mistake, "what was read before stays in use");
            }
        }
        tracing::info!(files = ?self.paths, "read again");
    }

    fn lock(&self) -> MutexGuard<'_, Current<T>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    paths.iter().map(stamp).collect()
}

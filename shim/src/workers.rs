//! The threads that serve connections: one for each processor, each with its own event loop.
//!
//! A connection stays with its worker. A runtime whose threads share their work wakes one of them
//! from another for nearly every request, which halves what small answers there are in a second.

use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// The workers. They end with this, and with what they serve.
pub struct Workers {
    workers: Vec<Worker>,
    next: usize,
}

struct Worker {
    runtime: Handle,
    /// Dropped to end it.
    _running: oneshot::Sender<()>,
}

impl Workers {
    /// Starts them.
    ///
    /// # Errors
    /// The system gives no more threads or descriptors.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..count).map(|_| Worker::start()).collect::<io::Result<_>>()?;
        Ok(Self { workers, next: 0 })
    }

    /// The worker whose turn it is to get a connection.
    pub fn next(&mut self) -> &Handle {
        self.next = (self.next + 1) % self.workers.len();
        &self.workers[self.next].runtime
    }
}

/// After how many connections that had their turn a worker looks for new requests. Each turn may send
/// 2 MiB ([`crate::turn`]), while others wait for a manifest.
const TURNS: u32 = 4;

impl Worker {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().event_interval(TURNS).build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("worker".to_owned()).spawn(move || {
            // An error says that the other end was dropped, which is what ends it.
            let _ = runtime.block_on(ended);
            // A call into a dead mount never comes back, and must not keep the process.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _running: running })
    }
}

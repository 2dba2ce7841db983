//! Whether a connection still gets anywhere.
//!
//! A client that asks for nothing, or takes next to nothing of what it asked for, costs a place
//! and memory for as long as it likes; the kernel ends only those that take nothing at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::sleep;

/// How often a connection is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How much a client has to take from one look to the next: a modem's pace.
const TAKEN_MIN_BYTES: u64 = 64 << 10;
/// After how many looks without progress it is over. The first may come just behind a request.
const STILL_MAX: u32 = 2;

/// What happens on one connection.
#[derive(Default)]
pub struct Pulse {
    requests: AtomicU64,
    /// How many answers, or parts of answers, the client waits for.
    awaited: AtomicUsize,
}

/// The client waits for us, and not we for the client, until this is dropped.
pub struct Awaited(Arc<Pulse>);

impl Pulse {
    /// A request has come, and its answer is awaited.
    pub fn request(self: &Arc<Self>) -> Awaited {
        self.requests.fetch_add(1, Relaxed);
        self.awaited()
    }

    /// More of an answer is awaited.
    pub fn awaited(self: &Arc<Self>) -> Awaited {
        self.awaited.fetch_add(1, Relaxed);
        Awaited(Arc::clone(self))
    }

    /// Returns when the connection has got nowhere for two minutes. `taken_bytes` tells how much
    /// the client has taken by now.
    pub async fn stopped(&self, taken_bytes: impl Fn() -> u64) {
        let mut still = 0;
        let mut seen = (0, taken_bytes());
        while still < STILL_MAX {
            sleep(LOOK_INTERVAL).await;
            let now = (self.requests.load(Relaxed), taken_bytes());
            let is_moving = now.0 > seen.0
                || now.1.saturating_sub(seen.1) >= TAKEN_MIN_BYTES
                || self.awaited.load(Relaxed) > 0;
            still = if is_moving { 0 } else { still + 1 };
            seen = now;
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.awaited.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_nothing_is_asked_awaited_or_taken() {
        let pulse = Arc::<Pulse>::default();
        let taken_bytes = AtomicU64::new(0);
        let taken = || taken_bytes.load(Relaxed);
        // Idle from the beginning.
        timeout(LOOK_INTERVAL * 3, pulse.stopped(taken)).await.unwrap();
        // What we take our time for is no fault of the client.
        let awaited = pulse.request();
        timeout(LONG, pulse.stopped(taken)).await.unwrap_err();
        drop(awaited);
        timeout(LOOK_INTERVAL * 4, pulse.stopped(taken)).await.unwrap();

        for (taken_each, is_over) in [(TAKEN_MIN_BYTES, false), (TAKEN_MIN_BYTES - 1, true)] {
            let client = async {
                loop {
                    sleep(LOOK_INTERVAL).await;
                    taken_bytes.fetch_add(taken_each, Relaxed);
                }
            };
            tokio::select! {
                () = client => {}
                ended = timeout(LONG, pulse.stopped(taken)) => assert_eq!(ended.is_ok(), is_over),
            }
        }
    }
}

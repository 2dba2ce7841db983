//! One answer for everybody who asks the same question at the same time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tracing::Instrument;

/// Work that is under way, by what it is for.
pub struct Flights<K: Eq + Hash, V> {
    running: Mutex<HashMap<K, watch::Receiver<Option<V>>>>,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Nothing is under way.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { running: Mutex::new(HashMap::new()) })
    }

    /// The result of the work for `key`: of the work that is under way, else of `work`, which
    /// runs to its end even if nobody waits for it any more. `None` when it panicked.
    pub async fn join(
        self: &Arc<Self>,
        key: K,
        work: impl Future<Output = V> + Send + 'static,
    ) -> Option<V> {
        let mut landing = self.enter(key, work);
        landing.wait_for(Option::is_some).await.ok()?.clone()
    }

    fn enter(
        self: &Arc<Self>,
        key: K,
        work: impl Future<Output = V> + Send + 'static,
    ) -> watch::Receiver<Option<V>> {
        let mut running = self.lock();
        if let Some(landing) = running.get(&key) {
            return landing.clone();
        }
        let (sender, landing) = watch::channel(None);
        running.insert(key.clone(), landing.clone());
        let seat = Seat { flights: Arc::clone(self), key };
        let flight = async move {
            let value = work.await;
            // Whoever asks from now on asks anew.
            drop(seat);
            sender.send_replace(Some(value));
        };
        // It belongs to the trace of who asked first.
        tokio::spawn(flight.in_current_span());
        landing
    }
}

impl<K: Eq + Hash, V> Flights<K, V> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, watch::Receiver<Option<V>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of running work in the map, given up even if it panics.
struct Seat<K: Eq + Hash, V> {
    flights: Arc<Flights<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Seat<K, V> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

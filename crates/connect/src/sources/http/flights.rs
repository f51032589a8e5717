//! Requests with an idempotency key that are under way: a second one with the same key waits for what
//! becomes of the first.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Digests of the keys that are under way. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<[u8; 16], watch::Receiver<()>>>>);

/// A key that is under way, until this is dropped.
pub(super) struct Flight {
    flights: Flights,
    key: [u8; 16],
    /// Closed when this is dropped: that wakes those who wait.
    _done: watch::Sender<()>,
}

impl Flights {
    /// Takes off; or, when the same key is under way, waits until it is not, and answers none.
    pub(super) async fn take_off(&self, key: [u8; 16]) -> Option<Flight> {
        let mut before = {
            let mut flying = self.0.lock();
            if let Some(before) = flying.get(&key) {
                before.clone()
            } else {
                let (done, waiting) = watch::channel(());
                flying.insert(key, waiting);
                return Some(Flight {
                    flights: self.clone(),
                    key,
                    _done: done,
                });
            }
        };
        while before.changed().await.is_ok() {}
        None
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
    }
}

//! The places in which requests wait for their first step. They are bounded, and some are kept for clients that have
//! nothing waiting, so that no client can fill them all.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One of so many places is kept for clients that have nothing waiting.
const KEPT: usize = 4;

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    /// No client has an entry of 0.
    by_client: HashMap<u64, usize>,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places taken.
    pub(super) fn num_taken(&self) -> usize {
        self.lock().total
    }

    /// Takes `num` places for a client if there are as many of the `limit`; says whether.
    #[must_use]
    pub(super) fn take(&self, client: u64, num: usize, limit: usize) -> bool {
        let mut taken = self.lock();
        let for_this_one = if taken.by_client.contains_key(&client) { limit - limit / KEPT } else { limit };
        if taken.total + num > for_this_one {
            return false;
        }
        taken.total += num;
        *taken.by_client.entry(client).or_default() += num;
        true
    }

    /// A request of the client waits no more.
    pub(super) fn give_back(&self, client: u64) {
        let mut taken = self.lock();
        taken.total = taken.total.saturating_sub(1);
        if let Some(count) = taken.by_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&client);
            }
        }
    }

    /// Nobody waits any more.
    pub(super) fn clear(&self) {
        *self.lock() = Taken::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_places_for_others() {
        let places = Places::default();
        let taken: Vec<bool> = (0..8).map(|_| places.take(7, 1, 8)).collect();
        assert_eq!(taken, [true, true, true, true, true, true, false, false]);
        assert!(places.take(8, 1, 8) && !places.take(8, 1, 8), "a second one is refused like the first client's");
        assert!(places.take(9, 1, 8) && !places.take(10, 1, 8), "all are taken");
        assert_eq!(places.num_taken(), 8);
        for client in [7, 7, 7, 8] {
            places.give_back(client);
        }
        assert!(places.take(8, 2, 8), "it has nothing waiting again");
        places.clear();
        assert!(places.take(7, 8, 8) && !places.take(8, 1, 8));
    }

    #[test]
    fn a_single_place_is_anybodys() {
        let places = Places::default();
        assert!(places.take(7, 1, 1) && !places.take(8, 1, 1));
        assert!(!Places::default().take(7, 1, 0));
    }
}

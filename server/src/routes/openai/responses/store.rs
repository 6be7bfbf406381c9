//! Kept responses. They are in memory, and bounded: the oldest go first, and all go with the server.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::{HttpMessage, HttpRequest};
use serde_json::Value;

use crate::access::claim;
use crate::access::client::Client;
use crate::access::keys::{KeyId, Secret};

/// Most responses.
pub const MAX_RESPONSES: usize = 1000;
/// Most bytes of their texts and objects.
pub const MAX_BYTES: usize = 64 << 20;
/// How long one is kept.
pub const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// A response with all that later requests may ask for.
#[derive(Debug)]
pub struct Kept {
    /// As its client got it.
    pub object: Value,
    /// What its request said, as it is listed.
    pub items: Vec<Value>,
    /// The whole conversation up to the answer and with it, as templates read it.
    pub messages: Vec<Value>,
}

impl Kept {
    /// What it takes, near enough: as JSON, with a surcharge for each message.
    fn bytes(&self) -> usize {
        let values = self.items.iter().chain(&self.messages).chain([&self.object]);
        values.map(|value| value.to_string().len() + 64).sum()
    }
}

/// Whose a response is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Where keys are asked for: who has this one, whatever its secret is by then.
    Key(KeyId),
    /// Elsewhere: whoever says the same. Nobody has checked it, but who doesn't know it can't say it.
    Claim(Secret),
    /// Clients that say nothing are all one: they need the id, which can't be guessed.
    Anyone,
}

impl Owner {
    /// Who sends this request. Addresses change, and keys don't.
    pub fn of(request: &HttpRequest) -> Self {
        if let Some(key) = request.extensions().get::<Client>().and_then(Client::key) {
            return Self::Key(key.clone());
        }
        claim(request.headers()).map_or(Self::Anyone, Self::Claim)
    }
}

#[derive(Debug)]
struct Entry {
    kept: Arc<Kept>,
    owner: Owner,
    since: Instant,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<String, Entry>,
    /// Oldest first; those that were deleted are skipped.
    order: VecDeque<String>,
    bytes: usize,
}

impl Entries {
    fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.by_id.remove(id)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// Drops the oldest for as long as one is too old or there are too many.
    fn trim(&mut self, now: Instant, limits: &Limits) {
        while let Some(oldest) = self.order.front() {
            if let Some(entry) = self.by_id.get(oldest) {
                let is_old = now.duration_since(entry.since) > limits.age;
                if !is_old && self.by_id.len() <= limits.responses && self.bytes <= limits.bytes {
                    return;
                }
            }
            if let Some(oldest) = self.order.pop_front() {
                self.remove(&oldest);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    responses: usize,
    bytes: usize,
    age: Duration,
}

/// The responses that are kept.
#[derive(Debug)]
pub struct ResponseStore {
    entries: Mutex<Entries>,
    limits: Limits,
}

impl Default for ResponseStore {
    fn default() -> Self {
        Self::with_limits(MAX_RESPONSES, MAX_BYTES, MAX_AGE)
    }
}

impl ResponseStore {
    fn with_limits(responses: usize, bytes: usize, age: Duration) -> Self {
        let limits = Limits { responses, bytes, age };
        Self { entries: Mutex::default(), limits }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.trim(Instant::now(), &self.limits);
        entries
    }

    /// Keeps a response. One that is larger than all may be isn't kept.
    pub fn insert(&self, id: String, owner: Owner, kept: Kept) {
        let bytes = kept.bytes();
        if bytes > self.limits.bytes {
            tracing::warn!("a response of {bytes} bytes is too large to be kept");
            return;
        }
        let mut entries = self.entries();
        entries.bytes += bytes;
        entries.order.push_back(id.clone());
        entries.by_id.insert(id, Entry { kept: Arc::new(kept), owner, since: Instant::now(), bytes });
        entries.trim(Instant::now(), &self.limits);
    }

    /// The response with this id, if it is this client's: others can't tell it from one that there isn't.
    pub fn get(&self, id: &str, owner: &Owner) -> Option<Arc<Kept>> {
        let entries = self.entries();
        entries.by_id.get(id).filter(|entry| entry.owner == *owner).map(|entry| Arc::clone(&entry.kept))
    }

    /// Forgets it; whether it was there and this client's.
    pub fn remove(&self, id: &str, owner: &Owner) -> bool {
        let mut entries = self.entries();
        if entries.by_id.get(id).is_none_or(|entry| entry.owner != *owner) {
            return false;
        }
        entries.order.retain(|known| known != id);
        entries.remove(id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use serde_json::json;

    use super::*;

    fn kept(text: &str) -> Kept {
        Kept { object: json!(text), items: Vec::new(), messages: Vec::new() }
    }

    const NOBODY: Owner = Owner::Anyone;

    #[test]
    fn the_oldest_go_first() {
        let store = ResponseStore::with_limits(3, 1000, MAX_AGE);
        for id in ["a", "b", "c"] {
            store.insert(id.into(), NOBODY, kept(id));
        }
        assert!(store.remove("b", &NOBODY) && !store.remove("b", &NOBODY));
        store.insert("d".into(), NOBODY, kept("d"));
        assert!(store.get("a", &NOBODY).is_some(), "there are three");
        store.insert("e".into(), NOBODY, kept("e"));
        assert!(store.get("a", &NOBODY).is_none() && store.get("c", &NOBODY).is_some());
        // 800 bytes leave room for two small ones beside them.
        store.insert("f".into(), NOBODY, kept(&"x".repeat(800)));
        assert!(store.get("c", &NOBODY).is_none() && store.get("f", &NOBODY).is_some());
        store.insert("g".into(), NOBODY, kept(&"x".repeat(2000)));
        assert!(
            store.get("g", &NOBODY).is_none() && store.get("f", &NOBODY).is_some(),
            "it isn't kept, and drives nobody out"
        );
        let entries = store.entries();
        assert_eq!(entries.bytes, entries.by_id.values().map(|entry| entry.bytes).sum::<usize>());
        assert_eq!(entries.by_id.len(), entries.order.len());
    }

    #[test]
    fn they_expire() {
        let store = ResponseStore::with_limits(3, 1000, Duration::ZERO);
        store.insert("a".into(), NOBODY, kept("a"));
        std::thread::sleep(Duration::from_millis(1));
        assert!(store.get("a", &NOBODY).is_none());
        assert_eq!(store.entries().bytes, 0);
    }

    #[test]
    fn nobody_sees_anothers() {
        let store = ResponseStore::default();
        let owner = |name: &'static str, key: &'static str| {
            Owner::of(&TestRequest::default().insert_header((name, key)).to_http_request())
        };
        let (ann, bob) = (owner("authorization", "Bearer ann"), owner("authorization", "Bearer bob"));
        assert_eq!(ann, owner("authorization", "Bearer ann"));
        assert_eq!(ann, owner("x-api-key", "ann"), "it is the same key");
        assert!(ann != owner("x-api-key", "Bearer ann") && ann != bob);
        let basic = owner("authorization", "Basic YW5uOg==");
        assert!(basic != NOBODY && basic == owner("authorization", "Basic YW5uOg==") && basic != ann);
        assert_eq!(Owner::of(&TestRequest::default().to_http_request()), NOBODY);
        store.insert("a".into(), ann.clone(), kept("a"));
        for other in [bob, NOBODY] {
            assert!(store.get("a", &other).is_none() && !store.remove("a", &other));
        }
        assert!(store.get("a", &ann).is_some());
    }
}

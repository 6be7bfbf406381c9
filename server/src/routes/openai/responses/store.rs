//! Kept responses. They are in memory, and bounded: the oldest go first, and all go with the server. Those that still run in
//! the background stay, so they may take half of the room at most.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::{HttpMessage, HttpRequest};
use serde_json::{Value, json};

use super::background::Live;
use crate::access::claim;
use crate::access::client::Client;
use crate::access::keys::{KeyId, Secret};
use crate::error::ApiError;

/// Most responses.
pub const MAX_RESPONSES: usize = 1000;
/// Most bytes of their texts and objects.
pub const MAX_BYTES: usize = 64 << 20;
/// When it is worth asking again for room to run.
const RETRY_AFTER: u64 = 5;
/// How long one is kept after its end.
pub const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// How far a response has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is computed in the background.
    Running,
    /// It has ended by itself.
    Whole,
    /// It has ended otherwise: there is nothing to go on from.
    Broken,
}

/// A response with all that later requests may ask for.
#[derive(Debug, Clone)]
pub struct Kept {
    /// As its client got it.
    pub object: Value,
    /// What its request said, as it is listed.
    pub items: Vec<Value>,
    /// The whole conversation, as templates read it: up to the answer and, if there is one, with it.
    pub messages: Vec<Value>,
    /// How far it has come.
    pub stage: Stage,
    /// Of one that was made with `background`.
    pub live: Option<Arc<Live>>,
}

impl Kept {
    /// What it takes, near enough: as JSON, with a surcharge for each message.
    fn bytes(&self) -> usize {
        let values = self.items.iter().chain(&self.messages).chain([&self.object]);
        let events = self.live.as_ref().map_or(0, |live| live.bytes());
        values.map(|value| value.to_string().len() + 64).sum::<usize>() + events
    }

    /// Has the answer said, if it is whole.
    pub fn end(&mut self, stage: Stage, answer: &str) {
        self.stage = stage;
        if stage == Stage::Whole {
            self.messages.push(json!({"role": "assistant", "content": answer}));
        }
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
    /// Oldest first, without those that run; those that were deleted are skipped.
    order: VecDeque<String>,
    bytes: usize,
}

impl Entries {
    fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.by_id.remove(id)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// How many run, and what they take.
    fn running(&self) -> (usize, usize) {
        let running = self.by_id.values().filter(|entry| entry.kept.stage == Stage::Running);
        running.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.bytes))
    }

    /// Changes a response, if it is still there, and counts it anew.
    fn change(&mut self, id: &str, change: impl FnOnce(&mut Kept)) -> bool {
        let Some(entry) = self.by_id.get_mut(id) else { return false };
        let kept = Arc::make_mut(&mut entry.kept);
        change(kept);
        let bytes = kept.bytes();
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        true
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

    /// Keeps a response that is about to run. It stays until it has ended.
    ///
    /// # Errors
    /// 429 when those that run take all the room that there is for them.
    pub fn start(&self, id: String, owner: Owner, kept: Kept) -> Result<(), ApiError> {
        let bytes = kept.bytes();
        let mut entries = self.entries();
        let (count, taken) = entries.running();
        if count >= self.limits.responses / 2 || taken + bytes > self.limits.bytes / 2 {
            let message =
                format!("{count} responses run in the background, and there is no room for more; wait for one");
            return Err(ApiError { code: Some("too_many_background"), ..ApiError::rate_limited(message, RETRY_AFTER) });
        }
        entries.bytes += bytes;
        entries.by_id.insert(id, Entry { kept: Arc::new(kept), owner, since: Instant::now(), bytes });
        entries.trim(Instant::now(), &self.limits);
        Ok(())
    }

    /// Changes one that runs, unless it was deleted.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Kept)) {
        self.entries().change(id, change);
    }

    /// Counts bytes to one that runs; whether it may go on: it can't take more than there is for all that run.
    pub fn grow(&self, id: &str, bytes: usize) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.by_id.get_mut(id) else { return true };
        entry.bytes += bytes;
        let may_go_on = entry.bytes <= self.limits.bytes / 2;
        entries.bytes += bytes;
        may_go_on
    }

    /// One that ran has ended: from now on it may have to go. Unless it was deleted.
    pub fn finish(&self, id: &str, change: impl FnOnce(&mut Kept)) {
        let mut entries = self.entries();
        if entries.change(id, change) {
            if let Some(entry) = entries.by_id.get_mut(id) {
                entry.since = Instant::now();
            }
            entries.order.push_back(id.to_owned());
            entries.trim(Instant::now(), &self.limits);
        }
    }

    /// The response with this id, if it is this client's: others can't tell it from one that there isn't.
    pub fn get(&self, id: &str, owner: &Owner) -> Option<Arc<Kept>> {
        let entries = self.entries();
        entries.by_id.get(id).filter(|entry| entry.owner == *owner).map(|entry| Arc::clone(&entry.kept))
    }

    /// Forgets it, and ends it if it runs; whether it was there and this client's.
    pub fn remove(&self, id: &str, owner: &Owner) -> bool {
        let mut entries = self.entries();
        if entries.by_id.get(id).is_none_or(|entry| entry.owner != *owner) {
            return false;
        }
        entries.order.retain(|known| known != id);
        let removed = entries.remove(id);
        if let Some(live) = removed.as_ref().and_then(|entry| entry.kept.live.as_ref()) {
            live.cancel();
        }
        removed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use serde_json::json;

    use super::*;
    use crate::routes::openai::responses::background::Log;

    fn kept(text: &str) -> Kept {
        let (items, messages) = (Vec::new(), Vec::new());
        Kept { object: json!(text), items, messages, stage: Stage::Whole, live: None }
    }

    fn running(text: &str) -> Kept {
        Kept { stage: Stage::Running, live: Some(Live::new(Log::Events)), ..kept(text) }
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
    fn those_that_run_stay_and_have_half_of_the_room() {
        let store = ResponseStore::with_limits(4, 1000, MAX_AGE);
        for id in ["a", "b"] {
            store.start(id.into(), NOBODY, running(id)).unwrap();
        }
        let error = store.start("c".into(), NOBODY, running("c")).unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (429, Some("too_many_background")));
        for id in ["d", "e", "f", "g"] {
            store.insert(id.into(), NOBODY, kept(id));
        }
        let there = |id: &str| store.get(id, &NOBODY).is_some();
        assert!(there("a") && there("b") && !there("d") && !there("e") && there("f") && there("g"));
        // One that has ended is the youngest of those that may have to go.
        store.finish("a", |kept| kept.end(Stage::Whole, "x"));
        store.insert("h".into(), NOBODY, kept("h"));
        assert!(there("a") && there("b") && !there("f") && there("g") && there("h"));
        assert!(!store.grow("b", 600) && store.entries().bytes <= 1000 + 600);
        store.finish("b", |kept| kept.end(Stage::Broken, ""));
        assert_eq!(store.get("b", &NOBODY).unwrap().messages, Vec::<Value>::new());
        assert_eq!(store.get("a", &NOBODY).unwrap().messages.len(), 1);
        let huge = Kept { object: json!("x".repeat(500)), ..running("") };
        assert_eq!(store.start("i".into(), NOBODY, huge).unwrap_err().code, Some("too_many_background"));
        store.start("j".into(), NOBODY, running("j")).unwrap();
        assert!(store.remove("j", &NOBODY));
        // Of one that was deleted nobody hears any more.
        store.change("j", |_| panic!("it is gone"));
        assert!(store.grow("j", 5000));
        store.finish("j", |_| panic!("it is gone"));
        let entries = store.entries();
        assert_eq!(entries.bytes, entries.by_id.values().map(|entry| entry.bytes).sum::<usize>());
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

//! Who a request is from, what it may take, and what it took.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use actix_web::{HttpMessage, HttpRequest};
use shimmy_runtime::Error;
use shimmy_runtime::engine::{Answer, Event, GenerationGroup, Timings};

use super::keys::{Key, KeyId, Secret};
use super::quota::Quota;
use crate::error::ApiError;

/// Who asks, and the account of this one request.
#[derive(Debug, Clone)]
pub struct Client {
    number: u64,
    /// Of the API key, where they are asked for.
    name: Option<Arc<str>>,
    key: Option<KeyId>,
    quota: Option<Arc<Quota>>,
    /// `None`: it may go before everybody.
    least_priority: Option<i32>,
    account: Arc<Account>,
}

/// What a request took, for the log.
#[derive(Debug, Default)]
pub struct Account {
    model: OnceLock<String>,
    prompt_tokens: AtomicUsize,
    completion_tokens: AtomicUsize,
    first_end: OnceLock<(Instant, Timings)>,
}

impl Account {
    /// The model that was asked.
    pub fn model(&self) -> Option<&str> {
        self.model.get().map(String::as_str)
    }

    /// Tokens of its prompts, and of the answers.
    pub fn tokens(&self) -> (usize, usize) {
        (self.prompt_tokens.load(Ordering::Relaxed), self.completion_tokens.load(Ordering::Relaxed))
    }

    /// When the first answer ended, and its times.
    pub fn first_end(&self) -> Option<(Instant, Timings)> {
        self.first_end.get().copied()
    }
}

impl Client {
    /// Whoever has this key.
    pub fn by_key(key: &Key) -> Self {
        let name = Some(Arc::from(key.name.as_str()));
        let (number, id) = (key.secret.number(), Some(key.id.clone()));
        let quota = key.quota.clone();
        Self { number, name, key: id, quota, least_priority: None, account: Arc::default() }
    }

    /// Whoever comes from there. Nobody has checked the key, so it only helps to tell clients apart: who makes up new ones
    /// takes more turns.
    pub fn by_address(address: Option<IpAddr>, secret: Option<&Secret>, quota: Option<Arc<Quota>>) -> Self {
        let mut hasher = DefaultHasher::new();
        address.hash(&mut hasher);
        secret.map(Secret::number).hash(&mut hasher);
        let number = hasher.finish();
        Self { number, name: None, key: None, quota, least_priority: None, account: Arc::default() }
    }

    /// The same client, whose requests may have no lower priority number than this: lower goes first.
    #[must_use]
    pub fn from_priority(self, least: Option<i32>) -> Self {
        Self { least_priority: least, ..self }
    }

    /// Whether a request of this client may have this priority.
    ///
    /// # Errors
    /// 403 that names the field.
    pub fn check_priority(&self, priority: i32) -> Result<(), ApiError> {
        let Some(least) = self.least_priority.filter(|&least| priority < least) else { return Ok(()) };
        let message = format!(
            "`priority` must be at least {least} for you, got {priority}: lower goes before others, which the server's owner \
             allows with `shimmy key new --least-priority`, or all with `serve --least-priority`"
        );
        Err(ApiError { param: Some("priority".into()), ..ApiError::forbidden(message, "priority_not_allowed") })
    }

    /// Tells clients apart: by key, else by address.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The name of its key.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Which key it has, where they are asked for.
    pub fn key(&self) -> Option<&KeyId> {
        self.key.as_ref()
    }

    /// Its limits, if it has any.
    pub fn quota(&self) -> Option<&Quota> {
        self.quota.as_deref()
    }

    /// What this request took.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The same client with its next request, on a connection that brings several.
    #[must_use]
    pub fn next_request(&self) -> Self {
        Self { account: Arc::default(), ..self.clone() }
    }

    /// Lets it compute something, if its limits have room.
    ///
    /// # Errors
    /// 429 that says when to come back.
    pub fn admit(&self) -> Result<(), ApiError> {
        self.quota.as_ref().map_or(Ok(()), |quota| quota.admit())
    }

    /// A prompt of so many tokens is about to be computed.
    pub fn charge_prompt(&self, model: &str, tokens: usize) {
        // It stays what it was first: a request has one model.
        let _ = self.account.model.set(model.to_owned());
        self.account.prompt_tokens.fetch_add(tokens, Ordering::Relaxed);
        self.charge(tokens);
    }

    fn charge_answer(&self, tokens: usize) {
        self.account.completion_tokens.fetch_add(tokens, Ordering::Relaxed);
        self.charge(tokens);
    }

    fn charge(&self, tokens: usize) {
        if let Some(quota) = &self.quota {
            quota.charge(tokens);
        }
    }
}

/// Who a request is from, as the guard found out.
///
/// # Errors
/// 500 on a way that leads past the guard: there is none.
pub fn client_of(request: &HttpRequest) -> Result<Client, ApiError> {
    let client = request.extensions().get::<Client>().cloned();
    client.ok_or_else(|| ApiError::server("nobody has asked who this request is from"))
}

/// The events of the answers to a prompt, which are counted for who asked. Dropping it cancels them.
#[derive(Debug)]
pub struct Answers {
    group: GenerationGroup,
    client: Client,
    /// Pieces of text so far of each answer.
    pieces: Vec<usize>,
}

impl Answers {
    /// Of this client.
    pub fn new(group: GenerationGroup, client: Client) -> Self {
        let pieces = vec![0; group.len()];
        Self { group, client, pieces }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// There is always one.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The next event and the number of its answer; `None` when all have ended.
    pub async fn recv(&mut self) -> Option<(usize, Event)> {
        let (index, event) = self.group.recv().await?;
        note(&self.client, &mut self.pieces, index, &event);
        Some((index, event))
    }

    /// All whole answers.
    ///
    /// # Errors
    /// The error of the first that fails; the others are cancelled.
    pub async fn collect(mut self) -> Result<Vec<Answer>, Error> {
        let Self { group, client, pieces } = &mut self;
        group.collect_seeing(|index, event| note(client, pieces, index, event)).await
    }

    /// Cancels all because their reader takes nothing: counted apart from clients that went away.
    pub fn cancel_slow_reader(mut self) {
        self.group.cancel_slow_reader();
    }
}

/// Each piece of text is a token at least, and is counted when it comes: an answer that is given up was computed so far.
fn note(client: &Client, pieces: &mut [usize], index: usize, event: &Event) {
    match event {
        Event::Text { .. } => {
            pieces[index] += 1;
            client.charge_answer(1);
        }
        Event::Done { usage, timings, .. } => {
            // It stays what it was first.
            let _ = client.account.first_end.set((Instant::now(), *timings));
            client.charge_answer(usage.completion_tokens.saturating_sub(pieces[index]));
        }
        Event::Failed(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::access::quota::Rates;

    #[test]
    fn clients_are_told_apart_by_address_and_by_what_they_say() {
        let client = |address: &str, key: Option<&str>| {
            Client::by_address(Some(address.parse().unwrap()), key.map(Secret::of).as_ref(), None).number()
        };
        assert_eq!(client("10.0.0.1", Some("a")), client("10.0.0.1", Some("a")));
        assert_ne!(client("10.0.0.1", Some("a")), client("10.0.0.1", None));
        assert_ne!(client("10.0.0.1", Some("a")), client("10.0.0.2", Some("a")));
    }

    #[test]
    fn who_goes_first_is_bounded() {
        let anyone = Client::by_address(None, None, None);
        assert!(anyone.check_priority(i32::MIN).is_ok());
        let bounded = anyone.from_priority(Some(-5)).next_request();
        assert!(bounded.check_priority(-5).is_ok() && bounded.check_priority(7).is_ok());
        let error = bounded.check_priority(-6).unwrap_err();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (403, Some("priority")));
        assert!(error.message.contains("at least -5"), "{}", error.message);
    }

    #[test]
    fn what_a_request_takes_is_on_its_account_and_off_the_quota() {
        let rates = Rates { requests_per_minute: None, tokens_per_minute: NonZeroU32::new(100) };
        let quota = Quota::new(rates).map(Arc::new);
        let client = Client::by_address(None, None, quota);
        client.charge_prompt("m", 30);
        client.charge_answer(20);
        assert_eq!((client.account().model(), client.account().tokens()), (Some("m"), (30, 20)));
        let next = client.next_request();
        assert_eq!(next.account().tokens(), (0, 0));
        let left = next.quota().unwrap().read().1.unwrap().remaining;
        assert!((50..=51).contains(&left), "{left}");
    }
}

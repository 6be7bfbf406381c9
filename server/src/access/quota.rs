//! What somebody may take a minute: buckets that fill up evenly and are emptied by requests and by tokens.
//!
//! A request is counted when it is let in. The tokens of a prompt are counted when it is read, those of an answer as they
//! come, since nobody knows before how many they will be: so a bucket of tokens can fall below zero, and then lets nobody
//! in until it is filled above zero again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Addresses that are told apart. Beyond it, those whose buckets are full are forgotten.
const MAX_ADDRESSES: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);

/// Amounts a minute; `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Requests that compute something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and of answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<NonZeroU32>,
}

impl Rates {
    /// These where they are given, else the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(other.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(other.tokens_per_minute),
        }
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// A bucket of a minute's amount, full at first.
#[derive(Debug)]
pub struct Bucket {
    per_minute: NonZeroU32,
    level: Mutex<Level>,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    /// May be below zero.
    amount: f64,
    at: Instant,
}

/// What is in a bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// A full bucket.
    pub limit: u32,
    /// Whole ones that are left.
    pub remaining: u32,
    /// Until it is full.
    pub full_in: Duration,
}

impl Bucket {
    /// A full one.
    pub fn new(per_minute: NonZeroU32, now: Instant) -> Self {
        Self { per_minute, level: Mutex::new(Level { amount: f64::from(per_minute.get()), at: now }) }
    }

    fn per_second(&self) -> f64 {
        f64::from(self.per_minute.get()) / MINUTE.as_secs_f64()
    }

    /// Changes the level as it is `now`. Clocks of several threads may be a little apart: time never goes back.
    fn with<T>(&self, now: Instant, change: impl FnOnce(&mut f64) -> T) -> T {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(level.at).as_secs_f64();
        level.amount = (level.amount + passed * self.per_second()).min(f64::from(self.per_minute.get()));
        level.at = level.at.max(now);
        change(&mut level.amount)
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take_one(&self, now: Instant) -> Result<(), Duration> {
        self.with(now, |amount| {
            if *amount >= 1.0 {
                *amount -= 1.0;
                return Ok(());
            }
            Err(self.time_for(1.0 - *amount))
        })
    }

    /// Takes nothing.
    ///
    /// # Errors
    /// How long until there is anything.
    pub fn check(&self, now: Instant) -> Result<(), Duration> {
        self.with(now, |amount| if *amount > 0.0 { Ok(()) } else { Err(self.time_for(1.0 - *amount)) })
    }

    /// Takes so many, whether they are there or not.
    pub fn charge(&self, count: usize, now: Instant) {
        self.with(now, |amount| *amount -= count as f64);
    }

    /// What is in it.
    pub fn read(&self, now: Instant) -> Reading {
        let limit = self.per_minute.get();
        self.with(now, |amount| Reading {
            limit,
            remaining: amount.max(0.0) as u32,
            full_in: self.time_for(f64::from(limit) - *amount),
        })
    }

    fn time_for(&self, amount: f64) -> Duration {
        Duration::try_from_secs_f64(amount / self.per_second()).unwrap_or(Duration::MAX)
    }
}

/// The buckets of somebody.
#[derive(Debug)]
pub struct Quota {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Quota {
    /// Full buckets; `None` where nothing is limited.
    pub fn new(rates: Rates) -> Option<Self> {
        let now = Instant::now();
        let bucket = |per_minute: Option<NonZeroU32>| per_minute.map(|per_minute| Bucket::new(per_minute, now));
        (!rates.is_unlimited())
            .then(|| Self { requests: bucket(rates.requests_per_minute), tokens: bucket(rates.tokens_per_minute) })
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// 429 that says when to come back.
    pub fn admit(&self) -> Result<(), ApiError> {
        let now = Instant::now();
        // Tokens first: a request that they keep out isn't counted.
        if let Some(tokens) = &self.tokens {
            tokens.check(now).map_err(|wait| refused("tokens", tokens.per_minute, wait))?;
        }
        if let Some(requests) = &self.requests {
            requests.take_one(now).map_err(|wait| refused("requests", requests.per_minute, wait))?;
        }
        Ok(())
    }

    /// Counts tokens.
    pub fn charge(&self, tokens: usize) {
        if let Some(bucket) = &self.tokens {
            bucket.charge(tokens, Instant::now());
        }
    }

    /// What is left: of requests, and of tokens.
    pub fn read(&self) -> (Option<Reading>, Option<Reading>) {
        let now = Instant::now();
        (self.requests.as_ref().map(|bucket| bucket.read(now)), self.tokens.as_ref().map(|bucket| bucket.read(now)))
    }

    fn is_full(&self) -> bool {
        let (requests, tokens) = self.read();
        [requests, tokens].into_iter().flatten().all(|reading| reading.full_in.is_zero())
    }
}

fn refused(what: &str, per_minute: NonZeroU32, wait: Duration) -> ApiError {
    let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
    let message = format!("the limit of {per_minute} {what} a minute is reached; come back in {seconds} s");
    ApiError::rate_limited(message, seconds)
}

/// Quotas of addresses.
#[derive(Debug, Default)]
pub struct Addresses {
    rates: Rates,
    quotas: Mutex<HashMap<Option<IpAddr>, Arc<Quota>>>,
}

impl Addresses {
    /// Each address may take so much.
    pub fn new(rates: Rates) -> Self {
        Self { rates, quotas: Mutex::default() }
    }

    /// That of this address; `None` is whoever comes through the Unix socket.
    pub fn quota(&self, address: Option<IpAddr>) -> Option<Arc<Quota>> {
        if self.rates.is_unlimited() {
            return None;
        }
        let address = address.map(network);
        let mut quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(quota) = quotas.get(&address) {
            return Some(Arc::clone(quota));
        }
        if quotas.len() >= MAX_ADDRESSES {
            quotas.retain(|_, quota| !quota.is_full());
        }
        let quota = Arc::new(Quota::new(self.rates)?);
        // When even those that took something are too many, newcomers start full each time: the map stays small.
        if quotas.len() < MAX_ADDRESSES {
            quotas.insert(address, Arc::clone(&quota));
        }
        Some(quota)
    }
}

/// Who has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_minute(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn a_bucket_gives_a_minutes_amount_at_once_and_then_as_it_fills() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let bucket = Bucket::new(per_minute(60), start);
        assert_eq!((0..100).filter(|_| bucket.take_one(start).is_ok()).count(), 60);
        let wait = bucket.take_one(at(0.25)).unwrap_err();
        assert!((wait.as_secs_f64() - 0.75).abs() < 1e-6, "{wait:?}");
        assert_eq!((0..100).filter(|_| bucket.take_one(at(10.0)).is_ok()).count(), 10);
        // It never holds more than a minute's amount.
        assert_eq!(bucket.read(at(1e6)), Reading { limit: 60, remaining: 60, full_in: Duration::ZERO });
        // A clock that is a little behind takes nothing away.
        assert_eq!(bucket.read(at(1.0)).remaining, 60);
    }

    #[test]
    fn debts_are_paid_before_anybody_is_let_in() {
        let start = Instant::now();
        let bucket = Bucket::new(per_minute(600), start);
        bucket.check(start).unwrap();
        bucket.charge(700, start);
        assert_eq!(bucket.read(start).remaining, 0);
        let wait = bucket.check(start).unwrap_err();
        assert!((wait.as_secs_f64() - 10.1).abs() < 1e-6, "{wait:?}");
        bucket.check(start + wait).unwrap();
    }

    #[test]
    fn the_limit_is_exact_however_many_ask_at_once() {
        let quota = Quota::new(Rates { requests_per_minute: Some(per_minute(50)), tokens_per_minute: None }).unwrap();
        let start = Instant::now();
        let admitted: usize = std::thread::scope(|scope| {
            let ask = || (0..100).filter(|_| quota.admit().is_ok()).count();
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let filled = (start.elapsed().as_secs_f64() * 50.0 / 60.0).ceil() as usize;
        assert!((50..=50 + filled).contains(&admitted), "{admitted}");
        let error = quota.admit().unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (429, Some("rate_limit_exceeded")));
        assert!(error.retry_after.is_some_and(|seconds| (1..=2).contains(&seconds)), "{error:?}");
    }

    #[test]
    fn an_exhausted_count_of_tokens_refuses_and_counts_no_request() {
        let rates = Rates { requests_per_minute: Some(per_minute(10)), tokens_per_minute: Some(per_minute(100)) };
        let quota = Quota::new(rates).unwrap();
        quota.admit().unwrap();
        quota.charge(1000);
        let error = quota.admit().unwrap_err();
        assert!(error.message.contains("100 tokens a minute"), "{}", error.message);
        assert_eq!(quota.read().0.unwrap().remaining, 9);
    }

    #[test]
    fn addresses_have_quotas_of_their_own_and_few_of_them() {
        let addresses = Addresses::new(Rates { requests_per_minute: Some(per_minute(1)), tokens_per_minute: None });
        let quota = |text: &str| addresses.quota(Some(text.parse().unwrap())).unwrap();
        quota("10.0.0.1").admit().unwrap();
        assert!(quota("10.0.0.1").admit().is_err());
        assert!(quota("::ffff:10.0.0.1").admit().is_err(), "the same in another form");
        quota("10.0.0.2").admit().unwrap();
        quota("2001:db8::1").admit().unwrap();
        assert!(quota("2001:db8::2").admit().is_err(), "one network, one quota");
        for n in 0..u32::try_from(2 * MAX_ADDRESSES).unwrap() {
            addresses.quota(Some(IpAddr::V4((0x0b00_0000 + n).into())));
        }
        assert!(addresses.quotas.lock().unwrap().len() <= MAX_ADDRESSES);
        assert!(quota("10.0.0.1").admit().is_err(), "who took something isn't forgotten");
        assert!(Addresses::default().quota(None).is_none());
    }
}

//! Sends load: a fixed number of clients that each wait for their answer (closed loop), or arrivals that wait for nobody
//! (open loop). One thread; the requests are tasks on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{self, Ask, Failure, Target, Timeline};
use super::workload::{self, Length, NoPrompt, Prompts};

/// Most seconds between two arrivals: beyond it a rate is a mistake, and clocks can't count for ever.
const MAX_GAP_SECONDS: f64 = 1e6;

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// So many clients, each with one request at a time.
    Concurrency(usize),
    /// So many requests a second, at random times (Poisson).
    Rate(f64),
}

/// When it ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// After so many requests.
    Requests(usize),
    /// No request starts after so many seconds; those that run are finished.
    Seconds(f64),
}

/// What a request is like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Shape {
    /// Tokens of the prompt.
    pub prompt: Length,
    /// Tokens of the answer.
    pub output: Length,
    /// Tokens that all prompts start with.
    pub shared_prefix: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Of lengths, prompts, arrivals and samplers.
    pub seed: u64,
    /// A request may take so long.
    pub limit: Duration,
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// When requests are sent.
    pub arrivals: Arrivals,
    /// When it ends.
    pub extent: Extent,
    /// What they are like.
    pub shape: Shape,
    /// Number of the first request: other numbers, other prompts.
    pub first_index: u64,
}

/// What a load gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that were answered to their end, with the tokens that were asked for.
    pub answered: Vec<(Timeline, Wanted)>,
    /// The others.
    pub failed: Vec<Failure>,
    /// From the first request to the last answer.
    pub wall: Duration,
    /// CPU time of the generator's thread meanwhile; `None` where the system doesn't tell.
    pub generator_cpu: Option<Duration>,
}

/// Tokens that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Of the prompt; with a tokenizer at hand exactly those of its text.
    pub prompt: usize,
    /// Of the answer.
    pub output: usize,
}

/// From a request's number to the request.
struct Source {
    prompts: Prompts,
    shape: Shape,
}

impl Source {
    fn ask(&self, index: u64) -> Result<(Ask, Wanted), NoPrompt> {
        let Shape { prompt, output, shared_prefix, temperature, seed, .. } = self.shape;
        // Prompts have the streams of small numbers.
        let mut rng = workload::rng(seed, u64::MAX - index);
        let wanted = Wanted { prompt: prompt.draw(&mut rng), output: output.draw(&mut rng) };
        let prompt = self.prompts.make(wanted.prompt, shared_prefix, seed, index)?;
        Ok((Ask { prompt, max_tokens: wanted.output, temperature, seed: seed.wrapping_add(index) }, wanted))
    }
}

/// Sends a load and waits for all answers; `on_end` is called after each request. Must run on a current-thread runtime:
/// the generator's CPU time is that of its thread.
///
/// # Errors
/// When the prompts can't be made.
pub async fn drive(
    target: &Arc<Target>,
    prompts: &Prompts,
    load: &Load,
    on_end: impl Fn() + Clone + Send + 'static,
) -> Result<Outcome, NoPrompt> {
    let source = Source { prompts: prompts.clone(), shape: load.shape };
    let cpu = thread_cpu();
    let start = Instant::now();
    let mut outcome = match load.arrivals {
        Arrivals::Concurrency(clients) => closed(target, source, *load, clients, on_end).await?,
        Arrivals::Rate(rate) => open(target, source, *load, rate, on_end).await?,
    };
    outcome.wall = start.elapsed();
    outcome.generator_cpu = cpu.zip(thread_cpu()).map(|(before, after)| after.saturating_sub(before));
    Ok(outcome)
}

async fn closed(
    target: &Arc<Target>,
    source: Source,
    load: Load,
    clients: usize,
    on_end: impl Fn() + Clone + Send + 'static,
) -> Result<Outcome, NoPrompt> {
    let (source, sent, start) = (Arc::new(source), Arc::new(AtomicU64::new(0)), Instant::now());
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let (target, source, sent) = (Arc::clone(target), Arc::clone(&source), Arc::clone(&sent));
        let on_end = on_end.clone();
        running.spawn(async move {
            let mut outcome = Outcome::default();
            loop {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                let is_over = match load.extent {
                    Extent::Requests(requests) => number >= requests as u64,
                    Extent::Seconds(seconds) => start.elapsed().as_secs_f64() >= seconds,
                };
                if is_over {
                    return Ok(outcome);
                }
                let (ask, wanted) = source.ask(load.first_index + number)?;
                outcome.add(client::request(&target, &ask, Instant::now(), load.shape.limit).await, wanted);
                on_end();
            }
        });
    }
    let mut all = Outcome::default();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(outcome) => all.merge(outcome?),
            Err(error) => all.failed.push(Failure::Event(error.to_string())),
        }
    }
    Ok(all)
}

async fn open(
    target: &Arc<Target>,
    source: Source,
    load: Load,
    rate: f64,
    on_end: impl Fn() + Clone + Send + 'static,
) -> Result<Outcome, NoPrompt> {
    let mut rng = workload::rng(load.shape.seed, u64::MAX / 2);
    let start = Instant::now();
    let (mut due, mut sent) = (start, 0);
    let mut running = JoinSet::new();
    loop {
        // The next prompt is made before its time, not at it.
        let (ask, wanted) = source.ask(load.first_index + sent)?;
        due += Duration::from_secs_f64(workload::gap_seconds(rate, &mut rng).min(MAX_GAP_SECONDS));
        let is_over = match load.extent {
            Extent::Requests(requests) => sent >= requests as u64,
            Extent::Seconds(seconds) => (due - start).as_secs_f64() >= seconds,
        };
        if is_over {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let (target, on_end) = (Arc::clone(target), on_end.clone());
        running.spawn(async move {
            let result = client::request(&target, &ask, due, load.shape.limit).await;
            on_end();
            (result, wanted)
        });
        sent += 1;
    }
    let mut all = Outcome::default();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((result, wanted)) => all.add(result, wanted),
            Err(error) => all.failed.push(Failure::Event(error.to_string())),
        }
    }
    Ok(all)
}

impl Outcome {
    fn add(&mut self, result: Result<Timeline, Failure>, wanted: Wanted) {
        match result {
            Ok(timeline) => self.answered.push((timeline, wanted)),
            Err(failure) => self.failed.push(failure),
        }
    }

    fn merge(&mut self, other: Self) {
        self.answered.extend(other.answered);
        self.failed.extend(other.failed);
    }
}

/// CPU time of this thread, from Linux's scheduler.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

//! One generation on the engine's thread: its tokens, its sampler, its limits, its events.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::draft::Drafter;
use super::embed::Pool;
use super::handle::Guesses;
use super::keep::Kept;
use super::metrics::Metrics;
use super::output::{Output, Piece};
use super::payoff::Offer;
use super::request::{
    Class, Event, FinishReason, GenerateRequest, Numerics, PromptCache, Speculation, Timings, TokenLogprob, Usage,
};
use super::rows::Logits;
use super::speculate::Guesser;
use super::vocabulary::Vocabulary;
use crate::error::Error;
use crate::kv::{PrefixMiss, PrefixSpace};
use crate::sample::{Logprobs, Sampler, Scratch, random_seed};
use crate::sched::SeqId;

/// The sending side of a generation's bounded channel, with one place kept for the last event: a client that reads
/// slowly still learns how it ended.
pub(super) struct EventSender {
    events: mpsc::Sender<Event>,
    last: Option<mpsc::OwnedPermit<Event>>,
}

/// Why an event couldn't be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotSent {
    /// The client has gone away.
    Gone,
    /// The client leaves too much unread.
    Full,
}

impl EventSender {
    pub(super) fn channel(max_unread: usize) -> (Self, mpsc::Receiver<Event>) {
        // tokio refuses absurd capacities by a panic.
        let capacity = max_unread.clamp(1, 1 << 20) + 1;
        let (events, receiver) = mpsc::channel(capacity);
        let last = events.clone().try_reserve_owned().ok();
        (Self { events, last }, receiver)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn send(&self, event: Event) -> Result<(), NotSent> {
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotSent::Full,
            mpsc::error::TrySendError::Closed(_) => NotSent::Gone,
        })
    }

    /// The last event, to be sent when the counts know of it. Later ones are dropped.
    #[must_use]
    pub(super) fn end(&mut self, event: Event) -> Option<Farewell> {
        self.last.take().map(|place| Farewell { place, event })
    }

    /// Events that the client may leave unread.
    pub(super) fn max_unread(&self) -> usize {
        self.events.max_capacity() - 1
    }
}

/// The last event of a generation, which has a place in its channel. Whoever reads the counts after it finds the
/// generation in them.
pub(super) struct Farewell {
    place: mpsc::OwnedPermit<Event>,
    event: Event,
}

impl Farewell {
    pub(super) fn send(self) {
        self.place.send(self.event);
    }
}

/// A request on its way to the thread.
pub(super) struct Submission {
    pub(super) request: GenerateRequest,
    /// Most tokens of prompt and answer together.
    pub(super) max_total: usize,
    /// Where its hidden states go, if they are what is wanted of it.
    pub(super) pool: Option<Pool>,
    /// One an answer.
    pub(super) events: Vec<EventSender>,
    pub(super) submitted: Instant,
}

impl Submission {
    /// The generations of all answers. They differ in their seeds.
    pub(super) fn into_sequences(self) -> Vec<Sequence> {
        let Self { mut request, max_total, mut pool, events, submitted } = self;
        let seed = request.sampling.seed.unwrap_or_else(random_seed);
        let sequence = |(index, events)| {
            request.sampling.seed = Some(seed.wrapping_add(index));
            Sequence { pool: pool.take(), ..Sequence::new(request.clone(), max_total, events, submitted) }
        };
        (0..).zip(events).map(sequence).collect()
    }
}

/// What a token meant for its generation.
pub(super) enum Outcome {
    /// One more token is known; go on.
    Continue,
    /// It has ended by itself; its client is to be told so.
    Done(Event),
    /// Its client has gone away.
    Gone,
    /// It can't go on.
    Failed(Error),
}

/// A generation.
pub(super) struct Sequence {
    /// Prompt and answer so far.
    pub(super) tokens: Vec<u32>,
    pub(super) events: EventSender,
    /// Further answers to the same prompt: they wait for its last token here, and go on by themselves from then.
    pub(super) siblings: Vec<Self>,
    pub(super) class: Class,
    pub(super) guesser: Guesser,
    /// Its hidden states are wanted, and no answer.
    pub(super) pool: Option<Pool>,
    /// What the store has of it.
    pub(super) kept: Kept,
    num_prompt: usize,
    max_total: usize,
    stop_token_ids: Vec<u32>,
    ignore_eos: bool,
    pub(super) num_logprobs: Option<usize>,
    prompt_cache: PromptCache,
    pub(super) numerics: Numerics,
    deadline: Option<Duration>,
    /// Tokens that the prefix cache had, and why not more.
    cached: (usize, Option<PrefixMiss>),
    /// Guesses that were computed, and those of them that were right.
    pub(super) guessed: Guesses,
    pub(super) sampler: Sampler,
    output: Output,
    submitted: Instant,
    first_step: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    fn new(request: GenerateRequest, max_total: usize, events: EventSender, submitted: Instant) -> Self {
        let num_prompt = request.prompt.len();
        Self {
            tokens: request.prompt,
            events,
            siblings: Vec::new(),
            class: request.class,
            guesser: Guesser::new(request.speculation.unwrap_or_default()),
            pool: None,
            kept: Kept::default(),
            num_prompt,
            max_total,
            stop_token_ids: request.stop_token_ids,
            ignore_eos: request.ignore_eos,
            num_logprobs: request.logprobs,
            prompt_cache: request.prompt_cache,
            numerics: request.numerics,
            deadline: request.deadline,
            cached: (0, None),
            guessed: Guesses::default(),
            sampler: Sampler::new(request.sampling),
            output: Output::new(&request.stop),
            submitted,
            first_step: None,
            first_token: None,
            last_token: None,
        }
    }

    pub(super) fn num_prompt(&self) -> usize {
        self.num_prompt
    }

    pub(super) fn max_total(&self) -> usize {
        self.max_total
    }

    pub(super) fn has_started(&self) -> bool {
        self.first_step.is_some()
    }

    /// Where it may share computed prompts. Those that depend on who was in the step are of no use to it if it mustn't.
    pub(super) fn prefix_space(&self) -> Option<PrefixSpace> {
        match (self.prompt_cache, self.numerics) {
            (PromptCache::Skip, _) => None,
            (PromptCache::Use, Numerics::Fast) => Some(PrefixSpace(0)),
            (PromptCache::Use, Numerics::Invariant) => Some(PrefixSpace(1)),
        }
    }

    /// The first step of its prompt begins, with so many tokens from the prefix cache.
    pub(super) fn start(&mut self, now: Instant, cached_tokens: usize, miss: Option<PrefixMiss>) {
        self.first_step.get_or_insert(now);
        self.cached = (cached_tokens, miss);
        self.siblings.iter_mut().for_each(|sibling| sibling.start(now, cached_tokens, miss));
    }

    /// What it can guess of its next tokens: no more than may still come after the one that isn't guessed.
    pub(super) fn offer(&mut self, id: SeqId, drafter: Option<&Drafter>) -> Offer {
        let most = (self.max_total - self.tokens.len()).saturating_sub(1);
        match drafter.filter(|_| self.guesser.speculation() == Speculation::Draft) {
            Some(drafter) => {
                let num_tokens = self.tokens.len();
                let entry_seconds = drafter.entry_seconds(id, num_tokens, most);
                self.guesser.offer_drafts(most.min(drafter.most(num_tokens)), drafter.chances(), entry_seconds)
            }
            None => self.guesser.offer(&self.tokens, most),
        }
    }

    /// What to tell its client if its deadline has passed.
    pub(super) fn overdue(&self, now: Instant) -> Option<Error> {
        let deadline = self.deadline.filter(|&deadline| now.duration_since(self.submitted) >= deadline)?;
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        Some(Error::DeadlineExceeded { deadline_ms, completion_tokens: self.tokens.len() - self.num_prompt })
    }

    /// Milliseconds since its first step.
    pub(super) fn service_ms(&self) -> f64 {
        self.first_step.map_or(0.0, |start| ms(start.elapsed()))
    }

    /// Ends an embedding, whose last token was computed.
    pub(super) fn end_embedding(&mut self, pool: &mut Pool, metrics: &Metrics) -> Outcome {
        if let Err(error) = pool.finish() {
            return Outcome::Failed(error);
        }
        self.first_token = Some(Instant::now());
        let usage = self.usage();
        let timings = Timings { predicted_ms: 0.0, ..self.timings() };
        metrics.embedded(&usage, &timings);
        Outcome::Done(Event::Done { reason: FinishReason::Stop, usage, timings, seed: self.sampler.seed() })
    }

    /// Samples the next token from a row of logits, sends the client its text, and says how it goes on.
    pub(super) fn take(
        &mut self,
        logits: Logits<'_>,
        vocabulary: &dyn Vocabulary,
        scratch: &mut Scratch,
        metrics: &Metrics,
    ) -> Outcome {
        let (token, logprobs) = match self.draw(logits, scratch) {
            Ok(drawn) => drawn,
            Err(error) => return Outcome::Failed(error),
        };
        self.sampler.accept(token);
        self.tokens.push(token);
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        match self.last_token.replace(now) {
            None => metrics.first_token(now - self.submitted),
            Some(last) => metrics.next_token(now - last),
        }

        let is_end = self.stop_token_ids.contains(&token)
            || (!self.ignore_eos && vocabulary.end_of_generation().contains(&token));
        let (piece, reason) = if is_end {
            (self.output.finish(), Some(FinishReason::Stop))
        } else {
            self.text_of(token, logprobs, vocabulary)
        };

        if !piece.is_empty() {
            let event = Event::Text { text: piece.text, logprobs: piece.logprobs };
            match self.events.send(event) {
                Ok(()) => {}
                Err(NotSent::Gone) => return Outcome::Gone,
                Err(NotSent::Full) => {
                    metrics.slow_reader();
                    return Outcome::Failed(Error::SlowReader(self.events.max_unread()));
                }
            }
        }
        let Some(reason) = reason else { return Outcome::Continue };
        let (usage, timings) = (self.usage(), self.timings());
        metrics.ended(reason, &usage, &timings);
        Outcome::Done(Event::Done { reason, usage, timings, seed: self.sampler.seed() })
    }

    /// The text that a token completes, and whether the answer ends with it.
    fn text_of(
        &mut self,
        token: u32,
        logprobs: Option<Logprobs>,
        vocabulary: &dyn Vocabulary,
    ) -> (Piece, Option<FinishReason>) {
        let entry = logprobs.map(|logprobs| {
            let named = |id, logprob| TokenLogprob { id, bytes: vocabulary.token_bytes(id).into_owned(), logprob };
            let top = logprobs.top.into_iter().map(|(id, logprob)| named(id, logprob)).collect();
            (named(token, logprobs.chosen), top)
        });
        let mut piece = self.output.push(&vocabulary.token_bytes(token), entry);
        if let Some(reason) = self.output.stop_reason() {
            return (piece, Some(reason));
        }
        if self.tokens.len() < self.max_total {
            return (piece, None);
        }
        let rest = self.output.finish();
        piece.text.push_str(&rest.text);
        piece.logprobs.extend(rest.logprobs);
        // What was held back may have completed a stop string after all.
        (piece, Some(self.output.stop_reason().unwrap_or(FinishReason::Length)))
    }

    fn usage(&self) -> Usage {
        let (cached_tokens, cache_miss) = self.cached;
        Usage {
            prompt_tokens: self.num_prompt,
            cached_tokens,
            cache_miss,
            completion_tokens: self.tokens.len() - self.num_prompt,
            guessed_tokens: self.guessed.computed as usize,
            accepted_tokens: self.guessed.accepted as usize,
        }
    }

    fn timings(&self) -> Timings {
        let first_step = self.first_step.unwrap_or(self.submitted);
        let first_token = self.first_token.unwrap_or(first_step);
        Timings {
            queue_ms: ms(first_step.duration_since(self.submitted)),
            prompt_ms: ms(first_token.duration_since(first_step)),
            predicted_ms: ms(first_token.elapsed()),
        }
    }
}

fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

//! [`Engine`] and [`Generation`]: the engine as its clients see it.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::draft::{DraftExecutor, Drafter};
use super::embed::{EmbedRequest, PendingEmbedding, Pool};
use super::group::GenerationGroup;
use super::keep::{SharedStore, kept_bytes};
use super::metrics::Metrics;
use super::output::Entry;
use super::places::Places;
use super::request::{Event, FinishReason, GenerateRequest, Numerics, Speculation, Timings, Usage};
use super::sequence::{EventSender, Submission};
use super::validate::{validate, validate_embedding};
use super::vocabulary::Vocabulary;
use super::worker::{Message, Worker, capacity};
use crate::error::{Error, Result};
use crate::exec::{Executor, Limits, PrefixReuse};

/// How an engine treats its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most requests that wait for their first step; the next is [`Error::Overloaded`]. A quarter of the places is kept for
    /// clients that have nothing waiting.
    pub queue: usize,
    /// Most generations that run at once, as far as the executor's limits allow.
    pub max_running: usize,
    /// Most events of a generation that its client may leave unread; then it is cancelled as a slow reader.
    pub max_unread_events: usize,
    /// Whether computed prompts are kept for later requests.
    pub prefix_cache: PrefixCache,
    /// Of requests that don't ask for more.
    pub numerics: Numerics,
    /// Of requests that don't say. A model whose keys depend on the length of the text never guesses.
    pub speculation: Speculation,
    /// How many guesses are computed.
    pub guess_policy: GuessPolicy,
    /// Most guesses that a draft model makes for a sequence in a step.
    pub draft_tokens: usize,
}

/// How many of the guesses that there are a step computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuessPolicy {
    /// As many as make tokens come soonest, by the times of the latest steps and the guesses that were right lately.
    #[default]
    WherePays,
    /// All for which there is room, whatever they cost: for tests, whose steps must not depend on the clock.
    Always,
}

/// What may stand beside a model.
#[derive(Default)]
pub struct Companions {
    /// A draft model for requests that want [`Speculation::Draft`]. Its executor computes logits over the same vocabulary;
    /// tokens beyond its end must be padding. If one of its steps fails, a warning is logged, and answers go on without it.
    pub draft: Option<DraftExecutor>,
    /// Computed prompts of earlier engines with the same plan and options, and a place for those of this one. It isn't used
    /// without the prefix cache.
    pub store: Option<SharedStore>,
}

/// Whether an engine keeps computed prompts. A model whose keys depend on the length of the text never does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrefixCache {
    /// As long as no other sequence needs their blocks.
    #[default]
    On,
    /// Every prompt is computed.
    Off,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            queue: 512,
            max_running: 256,
            max_unread_events: 4096,
            prefix_cache: PrefixCache::On,
            numerics: Numerics::Fast,
            speculation: Speculation::Off,
            guess_policy: GuessPolicy::WherePays,
            draft_tokens: 8,
        }
    }
}

/// What an engine is doing and has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that wait for their first step.
    pub queued: usize,
    /// Generations that own blocks.
    pub running: usize,
    /// KV blocks that nobody owns, cached ones included.
    pub free_blocks: usize,
    /// KV blocks that nobody owns and that hold computed prompts.
    pub cached_blocks: usize,
    /// KV blocks. These and those above are of the pool that holds sequences whole.
    pub total_blocks: usize,
    /// KV blocks that nobody owns of the pool for layers with a window.
    pub free_window_blocks: usize,
    /// Those of them that hold the ends of computed prompts.
    pub cached_window_blocks: usize,
    /// KV blocks of the pool for layers with a window; 0 for a model without one.
    pub total_window_blocks: usize,
    /// Steps computed.
    pub steps: u64,
    /// Generations that lost their blocks to older ones and were computed again.
    pub preemptions: u64,
    /// Prompt tokens that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Those of them that were found in the prefix cache.
    pub prefix_hits: u64,
    /// Those of them that came back from the store: from an earlier life of the model.
    pub recalled_tokens: u64,
    /// Prompt tokens of generations that came to their first token.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Rows of logits that came whole from a device that can keep them, as their sampling needed all of them.
    pub fetched_rows: u64,
    /// Guesses found in the text.
    pub ngram: Guesses,
    /// Guesses of the draft model.
    pub draft: Guesses,
    /// KV blocks of the draft model that some sequence owns.
    pub draft_blocks: usize,
    /// Embeddings that were computed; they are among those that ended by themselves.
    pub embeddings: u64,
    /// Generations that ended by themselves.
    pub completed: u64,
    /// Generations whose client went away.
    pub cancelled: u64,
    /// Generations that failed, those of slow readers included.
    pub failed: u64,
}

/// What guesses came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guesses {
    /// Steps of a sequence with guesses.
    pub steps: u64,
    /// Guesses computed.
    pub computed: u64,
    /// Those of them that were right.
    pub accepted: u64,
}

impl Guesses {
    /// A sequence's part of a step had so many guesses.
    pub(super) fn add(&mut self, computed: usize, accepted: usize) {
        self.steps += u64::from(computed > 0);
        self.computed += computed as u64;
        self.accepted += accepted as u64;
    }
}

/// Whether new requests are taken.
#[derive(Debug)]
pub(super) enum Status {
    Accepting,
    Draining,
    /// It failed or was told to end, and is about to let go of the executor.
    Ending(String),
    /// The thread has let go of the executor.
    Stopped(String),
}

/// What the thread and its clients share.
#[derive(Debug)]
pub(super) struct Shared {
    status: Mutex<Status>,
    stopped: Condvar,
    stats: Mutex<EngineStats>,
    pub(super) metrics: Metrics,
    /// Requests that were submitted and have had no step yet.
    pub(super) places: Places,
    /// How long a client should wait when the queue is full.
    pub(super) retry_after_ms: AtomicU64,
}

impl Shared {
    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses new requests for good.
    pub(super) fn refuse(&self, reason: String) {
        *self.status() = Status::Ending(reason);
    }

    /// Says that the thread has let go of everything.
    pub(super) fn stop(&self, reason: String) {
        *self.status() = Status::Stopped(reason);
        self.stopped.notify_all();
    }

    fn stop_reason(&self) -> String {
        match &*self.status() {
            Status::Accepting => "its thread is gone".into(),
            Status::Draining => "it is shutting down".into(),
            Status::Ending(reason) | Status::Stopped(reason) => reason.clone(),
        }
    }
}

struct Inner {
    inbox: std_mpsc::Sender<Message>,
    shared: Arc<Shared>,
    vocabulary: Arc<dyn Vocabulary>,
    limits: Limits,
    context_tokens: usize,
    options: EngineOptions,
    /// Keys don't depend on the length of the text: only then may a beginning be shared and a guess be tried.
    keys_are_fixed: bool,
    has_draft: bool,
}

/// A loaded model at work on its own thread. Clones are handles of the same engine; after the last one is dropped the
/// thread finishes what it has and ends.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

impl Engine {
    /// Starts the thread, which owns the executor from now on. `name` is for logs and the thread's name.
    ///
    /// # Errors
    /// [`Error::EngineStopped`] when the system has no thread to give; [`Error::OutOfMemory`] when the executor has no KV
    /// block at all.
    pub fn start(
        name: &str,
        executor: Box<dyn Executor>,
        vocabulary: Arc<dyn Vocabulary>,
        options: EngineOptions,
    ) -> Result<Self> {
        Self::start_with(name, executor, Companions::default(), vocabulary, options)
    }

    /// [`start`](Self::start) with what may stand beside the model.
    ///
    /// # Errors
    /// Those of [`start`](Self::start); [`Error::EngineStopped`] when the store has blocks of another size.
    pub fn start_with(
        name: &str,
        executor: Box<dyn Executor>,
        companions: Companions,
        vocabulary: Arc<dyn Vocabulary>,
        options: EngineOptions,
    ) -> Result<Self> {
        let limits = executor.limits();
        let Companions { draft, store } = companions;
        if draft.as_ref().is_some_and(|draft| draft.executor.limits().window.is_some()) {
            let message = format!("`{name}`: its draft model must keep all tokens in all layers (WindowKv::All)");
            return Err(Error::InvalidRequest { param: "draft-model", message });
        }
        let capacity = capacity(&limits, &options);
        let context_tokens = capacity.max_sequence_tokens();
        if context_tokens == 0 {
            return Err(Error::OutOfMemory(format!("no room for a single token of `{name}` in the KV cache")));
        }
        let (inbox, receiver) = std_mpsc::channel();
        let num_window_blocks = capacity.window.map_or(0, |window| window.num_blocks);
        let stats = EngineStats {
            total_blocks: capacity.num_blocks,
            free_blocks: capacity.num_blocks,
            total_window_blocks: num_window_blocks,
            free_window_blocks: num_window_blocks,
            ..EngineStats::default()
        };
        let shared = Arc::new(Shared {
            status: Mutex::new(Status::Accepting),
            stopped: Condvar::new(),
            stats: Mutex::new(stats),
            metrics: Metrics::new(),
            places: Places::default(),
            retry_after_ms: AtomicU64::new(1000),
        });
        let keys_are_fixed = executor.prefix_reuse() == PrefixReuse::Exact;
        let prefix_cache = if keys_are_fixed { options.prefix_cache } else { PrefixCache::Off };
        let store = store.filter(|_| prefix_cache == PrefixCache::On);
        if let Some(kept) = store.as_ref().map(|store| store.lock().block_bytes())
            && kept != kept_bytes(&*executor)
        {
            let own = kept_bytes(&*executor);
            return Err(Error::EngineStopped(format!("`{name}` has blocks of {own} bytes, its store those of {kept}")));
        }
        let of_worker = EngineOptions { prefix_cache, ..options };
        let (vocabulary_of_worker, shared_of_worker) = (Arc::clone(&vocabulary), Arc::clone(&shared));
        let has_draft = draft.is_some();
        let drafter = draft.map(|draft| Drafter::new(draft, vocabulary.vocab_size(), options.draft_tokens));
        let worker = Worker::new(name, executor, vocabulary_of_worker, receiver, shared_of_worker, &of_worker, store)
            .with_draft(drafter);
        // A thread's name can't hold a zero byte.
        let thread_name = format!("engine {}", name.replace('\0', ""));
        std::thread::Builder::new()
            .name(thread_name)
            .spawn(move || {
                worker.run();
                shimmy_kernels::memory::give_back();
            })
            .map_err(|error| Error::EngineStopped(format!("no thread for `{name}`: {error}")))?;
        Ok(Self {
            inner: Arc::new(Inner {
                inbox,
                shared,
                vocabulary,
                limits,
                context_tokens,
                options,
                keys_are_fixed,
                has_draft,
            }),
        })
    }

    /// Hands in a request. It never blocks.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming the field, [`Error::ContextLength`] when prompt and answer don't fit,
    /// [`Error::Overloaded`] when the queue is full, [`Error::EngineStopped`] after a failure or a shutdown.
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation> {
        self.send(request, 1)?.pop().ok_or_else(|| Error::EngineStopped("no generation was made".into()))
    }

    /// [`submit`](Self::submit) for `num_answers` answers to one prompt, which is computed once. Their seeds count up from the
    /// request's.
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit); the answers wait in as many places of the queue.
    pub fn submit_group(&self, request: GenerateRequest, num_answers: NonZeroUsize) -> Result<GenerationGroup> {
        self.send(request, num_answers.get()).map(GenerationGroup::new)
    }

    /// Hands in a text whose embedding is wanted. It never blocks.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] and [`Error::ContextLength`] for texts that are empty or too long, and as
    /// [`submit`](Self::submit) when the queue is full or the engine has stopped.
    pub fn embed(&self, request: EmbedRequest) -> Result<PendingEmbedding> {
        validate_embedding(&request, self.inner.vocabulary.vocab_size(), self.inner.context_tokens)?;
        let max_total = request.tokens.len();
        let (prompt, pool, vector) = request.into_prompt();
        let events = self.hand_in(prompt, max_total, 1, Some(pool))?.pop();
        let events = events.ok_or_else(|| Error::EngineStopped("no generation was made".into()))?;
        Ok(PendingEmbedding { events, vector })
    }

    fn send(&self, mut request: GenerateRequest, num_answers: usize) -> Result<Vec<Generation>> {
        let Inner { vocabulary, context_tokens, options, keys_are_fixed, has_draft, .. } = &*self.inner;
        let max_total = validate(&request, vocabulary.vocab_size(), *context_tokens)?;
        let speculation = request.speculation.unwrap_or(options.speculation);
        if speculation == Speculation::Draft && !has_draft {
            let message = "the model was loaded without a draft model; start the server with --draft-model".into();
            return Err(Error::InvalidRequest { param: "speculate", message });
        }
        request.speculation = Some(if *keys_are_fixed { speculation } else { Speculation::Off });
        self.hand_in(request, max_total, num_answers, None)
    }

    /// Sends the thread a checked request.
    fn hand_in(
        &self,
        mut request: GenerateRequest,
        max_total: usize,
        num_answers: usize,
        pool: Option<Pool>,
    ) -> Result<Vec<Generation>> {
        let Inner { inbox, shared, options, .. } = &*self.inner;
        // Held while sending: a request that is accepted lies before the order to shut down.
        let status = shared.status();
        match &*status {
            Status::Accepting => {}
            Status::Draining => return Err(Error::EngineStopped("it is shutting down".into())),
            Status::Ending(reason) | Status::Stopped(reason) => {
                return Err(Error::EngineStopped(reason.clone()));
            }
        }
        if !shared.places.take(request.class.client, num_answers, options.queue) {
            return Err(Error::Overloaded { retry_after_ms: shared.retry_after_ms.load(Ordering::Relaxed) });
        }
        let (events, receivers): (Vec<_>, Vec<_>) =
            (0..num_answers).map(|_| EventSender::channel(options.max_unread_events)).unzip();
        if options.numerics == Numerics::Invariant {
            request.numerics = Numerics::Invariant;
        }
        let submission = Submission { request, max_total, pool, events, submitted: Instant::now() };
        // The thread is gone without having said so only if it was killed; `recv` reports that.
        let _ = inbox.send(Message::Submit(Box::new(submission)));
        drop(status);
        let generation = |events| Generation { events, shared: Arc::clone(shared), ended: false };
        Ok(receivers.into_iter().map(generation).collect())
    }

    /// Submits and waits for the whole answer. Not for async code.
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit) and [`Generation::collect_blocking`].
    pub fn generate_blocking(&self, request: GenerateRequest) -> Result<Answer> {
        self.submit(request)?.collect_blocking()
    }

    /// What it is doing and has done.
    pub fn stats(&self) -> EngineStats {
        let queued = self.inner.shared.places.num_taken();
        EngineStats { queued, ..*self.inner.shared.stats() }
    }

    /// Distributions of its times and sizes.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.shared.metrics
    }

    /// What its executor can take.
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// Most tokens that prompt and answer may have together: the context, as far as the KV cache holds it.
    pub fn context_tokens(&self) -> usize {
        self.inner.context_tokens
    }

    /// Why it takes no requests any more; `None` while it does.
    pub fn stop_reason(&self) -> Option<String> {
        let accepting = matches!(*self.inner.shared.status(), Status::Accepting);
        (!accepting).then(|| self.inner.shared.stop_reason())
    }

    /// Drains: refuses new requests, finishes those that it has, waiting ones included, then ends the thread and drops the
    /// executor. Returns at once; see [`wait_stopped`](Self::wait_stopped).
    pub fn shutdown(&self) {
        let mut status = self.inner.shared.status();
        if matches!(*status, Status::Accepting) {
            *status = Status::Draining;
            // Without a receiver the thread has ended already.
            let _ = self.inner.inbox.send(Message::Shutdown);
        }
    }

    /// Ends after the step that it is in: all generations fail. Returns at once.
    pub fn abort(&self) {
        let mut status = self.inner.shared.status();
        if matches!(*status, Status::Accepting | Status::Draining) {
            *status = Status::Draining;
            let _ = self.inner.inbox.send(Message::Abort);
        }
    }

    /// Waits until the thread has let go of the executor and its memory; says whether it did within `timeout`.
    pub fn wait_stopped(&self, timeout: Duration) -> bool {
        let shared = &self.inner.shared;
        let running = |status: &mut Status| !matches!(status, Status::Stopped(_));
        let (_status, result) = shared
            .stopped
            .wait_timeout_while(shared.status(), timeout, running)
            .unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("limits", &self.inner.limits).field("stats", &self.stats()).finish()
    }
}

/// One generation's events. Dropping it cancels the generation: its blocks are free before the next step, and a request
/// that still waits never runs.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
    ended: bool,
}

impl Generation {
    /// The next event; `None` after [`Event::Done`] or [`Event::Failed`]. Exactly one of them ends every generation.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.note(event)
    }

    /// [`recv`](Self::recv) for code that isn't async.
    ///
    /// # Panics
    /// In async code, where it would block the runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.note(event)
    }

    /// [`recv`](Self::recv) for hand-written futures and streams.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context).map(|event| self.note(event))
    }

    /// The whole answer.
    ///
    /// # Errors
    /// The error of [`Event::Failed`].
    pub async fn collect(mut self) -> Result<Answer> {
        let mut parts = Parts::default();
        while let Some(event) = self.recv().await {
            if let Some(result) = parts.add(event) {
                return result;
            }
        }
        Err(self.lost())
    }

    /// [`collect`](Self::collect) for code that isn't async.
    ///
    /// # Errors
    /// The error of [`Event::Failed`].
    ///
    /// # Panics
    /// In async code, where it would block the runtime.
    pub fn collect_blocking(mut self) -> Result<Answer> {
        let mut parts = Parts::default();
        while let Some(event) = self.blocking_recv() {
            if let Some(result) = parts.add(event) {
                return result;
            }
        }
        Err(self.lost())
    }

    /// Cancels it because its reader takes nothing: counted apart from clients that went away.
    pub fn cancel_slow_reader(mut self) {
        // The engine may have given up on the same reader before.
        while let Ok(event) = self.events.try_recv() {
            if matches!(event, Event::Failed(Error::SlowReader(_))) {
                return;
            }
        }
        self.shared.metrics.slow_reader();
    }

    /// A channel that closes without a last event belongs to a thread that died: the client must not take that for an end.
    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        match event {
            Some(event) => {
                self.ended |= matches!(event, Event::Done { .. } | Event::Failed(_));
                Some(event)
            }
            None if self.ended => None,
            None => {
                self.ended = true;
                Some(Event::Failed(self.lost()))
            }
        }
    }

    fn lost(&self) -> Error {
        Error::EngineStopped(self.shared.stop_reason())
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Log-probabilities of its tokens, if they were asked for.
    pub logprobs: Vec<Entry>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Counts.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// Seed that was used.
    pub seed: u64,
}

#[derive(Default)]
pub(super) struct Parts {
    text: String,
    logprobs: Vec<Entry>,
}

impl Parts {
    /// Adds an event; the last one gives the result.
    pub(super) fn add(&mut self, event: Event) -> Option<Result<Answer>> {
        match event {
            Event::Text { text, logprobs } => {
                self.text.push_str(&text);
                self.logprobs.extend(logprobs);
                None
            }
            Event::Done { reason, usage, timings, seed } => {
                let Self { text, logprobs } = std::mem::take(self);
                Some(Ok(Answer { text, logprobs, reason, usage, timings, seed }))
            }
            Event::Failed(error) => Some(Err(error)),
        }
    }
}

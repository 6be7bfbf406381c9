//! The engine's thread: the step loop.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use super::draft::{Drafter, Wish};
use super::handle::{EngineOptions, EngineStats, GuessPolicy, PrefixCache, Shared};
use super::keep::SharedStore;
use super::payoff::{Offer, StepTimes};
use super::request::{Event, Speculation};
use super::rows::{Fetched, Logits};
use super::sequence::{EventSender, Farewell, Outcome, Sequence, Submission};
use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};
use crate::exec::{Executor, Limits, Numerics, OutputRows, StepBatch};
use crate::kv::{BlockPool, PrefixMiss, PrefixSpace};
use crate::sample::Scratch;
use crate::sched::{BlockCopy, Capacity, SeqId, State, StepPlan, TokenSource};

mod guessing;
mod tasks;

/// What clients send to the thread.
pub(super) enum Message {
    /// A request.
    Submit(Box<Submission>),
    /// Finish what is there, then end.
    Shutdown,
    /// End now.
    Abort,
}

/// What the scheduler may hand out on an executor with these limits.
pub(super) fn capacity(limits: &Limits, options: &EngineOptions) -> Capacity {
    Capacity {
        max_step_tokens: limits.max_step_tokens,
        max_step_outputs: limits.max_step_outputs,
        max_running: options.max_running.min(limits.max_step_outputs),
        num_blocks: limits.num_kv_blocks,
        window: limits.window,
        max_context: limits.max_context,
    }
}

/// Where [`Worker::times`] has the steps of these numerics.
fn times_of(numerics: Numerics) -> usize {
    match numerics {
        Numerics::Fast => 0,
        Numerics::Invariant => 1,
    }
}

/// The generations of one engine.
#[derive(Default)]
struct Sequences(HashMap<SeqId, Sequence>);

impl TokenSource for Sequences {
    fn tokens(&self, id: SeqId) -> &[u32] {
        self.0.get(&id).map_or(&[], |sequence| &sequence.tokens)
    }
}

/// The generations for a step that is being planned, and what brings blocks back for it.
struct Planning<'a> {
    sequences: &'a Sequences,
    recall: RefCell<Recall<'a>>,
}

struct Recall<'a> {
    store: Option<&'a SharedStore>,
    executor: &'a mut dyn Executor,
    /// Tokens that came back.
    num_tokens: usize,
    error: Option<Error>,
}

impl TokenSource for Planning<'_> {
    fn tokens(&self, id: SeqId) -> &[u32] {
        self.sequences.tokens(id)
    }

    fn recall(&self, space: PrefixSpace, tokens: &[u32], pool: &mut BlockPool) -> bool {
        let Recall { store: Some(store), executor, num_tokens, error } = &mut *self.recall.borrow_mut() else {
            return false;
        };
        match store.recall(&mut **executor, space, tokens, pool) {
            Ok(recalled) => {
                *num_tokens += recalled;
                recalled > 0
            }
            Err(refused) => {
                *error = Some(refused);
                false
            }
        }
    }
}

/// Everything that the thread owns.
pub(super) struct Worker {
    name: String,
    executor: Box<dyn Executor>,
    vocabulary: Arc<dyn Vocabulary>,
    inbox: Receiver<Message>,
    shared: Arc<Shared>,
    state: State,
    /// Layers with a window have blocks of their own.
    has_window: bool,
    sequences: Sequences,
    prefix_cache: PrefixCache,
    /// Where computed prompts go that the pool can't keep.
    store: Option<SharedStore>,
    is_draining: bool,
    stats: EngineStats,
    /// Milliseconds from first step to end, averaged over recent generations.
    service_ms: f64,
    guess_policy: GuessPolicy,
    drafter: Option<Drafter>,
    /// Of steps without pieces of prompts: with and without [`Numerics::Invariant`], whose kernels are others.
    times: [StepTimes; 2],
    // Reused from step to step.
    offers: Vec<Offer>,
    counts: Vec<usize>,
    wishes: Vec<Wish>,
    plan: StepPlan,
    batch: StepBatch,
    scratch: Scratch,
    fetched: Fetched,
    ended: Vec<SeqId>,
    copies: Vec<BlockCopy>,
    /// Sent when the counts are published.
    farewells: Vec<Farewell>,
}

impl Worker {
    pub(super) fn new(
        name: &str,
        executor: Box<dyn Executor>,
        vocabulary: Arc<dyn Vocabulary>,
        inbox: Receiver<Message>,
        shared: Arc<Shared>,
        options: &EngineOptions,
        store: Option<SharedStore>,
    ) -> Self {
        let (stats, capacity) = (*shared.stats(), capacity(&executor.limits(), options));
        Self {
            name: name.to_owned(),
            executor,
            vocabulary,
            inbox,
            shared,
            has_window: capacity.window.is_some(),
            state: State::new(capacity),
            sequences: Sequences::default(),
            prefix_cache: options.prefix_cache,
            store,
            is_draining: false,
            stats,
            service_ms: 0.0,
            guess_policy: options.guess_policy,
            drafter: None,
            times: Default::default(),
            offers: Vec::new(),
            counts: Vec::new(),
            plan: StepPlan::default(),
            batch: StepBatch::default(),
            scratch: Scratch::default(),
            fetched: Fetched::default(),
            ended: Vec::new(),
            copies: Vec::new(),
            farewells: Vec::new(),
            wishes: Vec::new(),
        }
    }

    pub(super) fn with_draft(mut self, drafter: Option<Drafter>) -> Self {
        self.drafter = drafter;
        self
    }

    /// The thread's whole life.
    pub(super) fn run(mut self) {
        // After a panic nothing of the state is used any more except to tell its clients.
        let reason = match catch_unwind(AssertUnwindSafe(|| self.serve().and_then(|()| self.keep_all()))) {
            Ok(Ok(())) => {
                tracing::debug!(model = self.name, "engine shut down");
                "it was shut down".to_owned()
            }
            Ok(Err(error)) => {
                tracing::error!(model = self.name, %error, "engine stopped");
                error.to_string()
            }
            Err(payload) => {
                let message = panic_message(payload.as_ref());
                tracing::error!(model = self.name, message, "engine panicked");
                format!("panic: {message}")
            }
        };
        self.stop(reason);
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            if self.state.is_idle() {
                if self.is_draining {
                    return Ok(());
                }
                match self.inbox.recv() {
                    Ok(message) => self.receive(message)?,
                    Err(_) => return Ok(()),
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(message) => self.receive(message)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.is_draining = true;
                        break;
                    }
                }
            }
            self.drop_leaving();
            if !self.state.is_idle() {
                self.step()?;
            }
            self.publish();
        }
    }

    /// Lets the store have what is cached before the executor goes.
    fn keep_all(&mut self) -> Result<()> {
        match &self.store {
            Some(store) => store.keep_all(&mut *self.executor, &self.state.cached()),
            None => Ok(()),
        }
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Submit(submission) => self.enqueue(submission.into_sequences()),
            Message::Shutdown => self.is_draining = true,
            Message::Abort => return Err(Error::EngineStopped("it was told to end at once".into())),
        }
        Ok(())
    }

    /// Lets the first of several answers to one prompt wait, with the others in its train.
    fn enqueue(&mut self, group: Vec<Sequence>) {
        let mut group = group.into_iter();
        while let Some(mut sequence) = group.next() {
            let space = match self.prefix_cache {
                PrefixCache::On => sequence.prefix_space(),
                PrefixCache::Off => None,
            };
            match self.state.submit(sequence.num_prompt(), sequence.max_total(), sequence.class, space) {
                Ok(id) => {
                    sequence.siblings = group.collect();
                    self.sequences.0.insert(id, sequence);
                    return;
                }
                Err(error) => {
                    self.leave_queue(&sequence);
                    self.stats.failed += 1;
                    self.farewells.extend(sequence.events.end(Event::Failed(error)));
                }
            }
        }
    }

    /// Frees what belongs to clients that have gone away and to requests whose deadline has passed, before any more work
    /// is done for them.
    fn drop_leaving(&mut self) {
        let now = Instant::now();
        let (stats, farewells) = (&mut self.stats, &mut self.farewells);
        let mut leaves = |sequence: &mut Sequence| {
            if sequence.events.is_gone() {
                stats.cancelled += 1;
            } else if let Some(error) = sequence.overdue(now) {
                stats.failed += 1;
                farewells.extend(sequence.events.end(Event::Failed(error)));
            } else {
                return false;
            }
            true
        };
        for (&id, sequence) in &mut self.sequences.0 {
            sequence.siblings.retain_mut(|sibling| {
                let leaves = leaves(sibling);
                if leaves && !sibling.has_started() {
                    self.shared.places.give_back(sibling.class.client);
                }
                !leaves
            });
            if leaves(sequence) {
                self.ended.push(id);
            }
        }
        self.remove_ended();
    }

    fn remove_ended(&mut self) {
        while let Some(id) = self.ended.pop() {
            self.state.remove(id);
            if let Some(drafter) = &mut self.drafter {
                drafter.forget(id);
            }
            if let Some(mut sequence) = self.sequences.0.remove(&id) {
                self.leave_queue(&sequence);
                self.enqueue(std::mem::take(&mut sequence.siblings));
            }
        }
    }

    /// Gives the place in the queue back of a sequence that ends without a step.
    fn leave_queue(&self, sequence: &Sequence) {
        if !sequence.has_started() {
            self.shared.places.give_back(sequence.class.client);
        }
    }

    fn step(&mut self) -> Result<()> {
        self.guess();
        let recall = Recall { store: self.store.as_ref(), executor: &mut *self.executor, num_tokens: 0, error: None };
        let planning = Planning { sequences: &self.sequences, recall: RefCell::new(recall) };
        self.state.schedule(&mut self.plan, &planning);
        let Recall { num_tokens, error, .. } = planning.recall.into_inner();
        self.stats.recalled_tokens += num_tokens as u64;
        if let Some(error) = error {
            return Err(error);
        }
        if self.plan.pieces.is_empty() {
            return Err(Error::EngineStopped("the scheduler found no work although sequences wait".into()));
        }
        self.stats.preemptions += self.plan.preempted.len() as u64;
        if let Some(drafter) = &mut self.drafter {
            self.plan.preempted.iter().for_each(|&id| drafter.forget(id));
        }
        self.fill_batch()?;
        self.fill_tasks();

        let keeps_rows = self.executor.keeps_rows();
        let start = Instant::now();
        let output = self.executor.step(&self.batch)?;
        let (metrics, elapsed) = (&self.shared.metrics, start.elapsed());
        metrics.step(self.batch.tokens.len(), self.batch.seqs.len(), elapsed);
        if self.plan.pieces.iter().all(|piece| piece.len == 1) && self.batch.num_hidden() == 0 {
            self.times[times_of(self.batch.numerics)].note(self.batch.tokens.len(), elapsed.as_secs_f64());
        }
        let (num_outputs, num_hidden) = (self.batch.num_outputs(), self.batch.num_hidden());
        if output.hidden.data.len() != num_hidden * output.hidden.width || num_hidden > 0 && output.hidden.width == 0 {
            return Err(Error::EngineStopped(format!(
                "the executor returned {} elements instead of {num_hidden} hidden states of {}",
                output.hidden.data.len(),
                output.hidden.width
            )));
        }
        let num_elements = if output.kept.is_some() { 0 } else { num_outputs * output.width };
        if output.num_rows != num_outputs || output.data.len() != num_elements {
            return Err(Error::EngineStopped(format!(
                "the executor returned {} rows of {} in {} elements instead of {num_outputs} rows",
                output.num_rows,
                output.width,
                output.data.len()
            )));
        }
        self.state.advance(&self.plan, &self.sequences);
        self.stats.steps += 1;

        if keeps_rows && output.kept.is_none() {
            self.fetched.count += num_outputs as u64;
        }
        let width = output.width.min(self.vocabulary.vocab_size());
        let (mut next_row, mut next_hidden) = (0, 0);
        for (piece, seq) in self.plan.pieces.iter().zip(&self.batch.seqs) {
            let Some(sequence) = self.sequences.0.get_mut(&piece.id) else {
                next_row += seq.output.logits(seq.tokens.clone()).len();
                next_hidden += seq.output.hidden(seq.tokens.clone()).len();
                continue;
            };
            if let Some(mut pool) = sequence.pool.take() {
                pool.begin(piece.start)?;
                for _ in seq.output.hidden(seq.tokens.clone()) {
                    pool.add(output.hidden.row(next_hidden));
                    next_hidden += 1;
                }
                if piece.output == OutputRows::None {
                    sequence.pool = Some(pool);
                    continue;
                }
                let outcome = sequence.end_embedding(&mut pool, metrics);
                self.stats.prompt_tokens += sequence.num_prompt() as u64;
                self.stats.embeddings += u64::from(matches!(outcome, Outcome::Done(_)));
                settle(outcome, sequence, &mut self.stats, &mut self.service_ms, &mut self.farewells);
                self.ended.push(piece.id);
                continue;
            }
            if piece.output == OutputRows::None {
                continue;
            }
            let first_row = next_row;
            next_row += 1 + piece.num_guesses;
            if sequence.tokens.len() == sequence.num_prompt() {
                self.stats.prompt_tokens += sequence.num_prompt() as u64;
            }
            let siblings = std::mem::take(&mut sequence.siblings);
            let mut goes_on = |sequence: &mut Sequence, row: usize| {
                let known = sequence.tokens.len();
                let logits = Logits::of(&output, row, width, &mut self.fetched);
                let outcome = sequence.take(logits, &*self.vocabulary, &mut self.scratch, metrics);
                self.stats.generated_tokens += (sequence.tokens.len() - known) as u64;
                settle(outcome, sequence, &mut self.stats, &mut self.service_ms, &mut self.farewells)
            };
            for mut sibling in siblings {
                if goes_on(&mut sibling, first_row)
                    && let Some(fork) = self.state.fork(piece.id)
                {
                    self.state.append(fork.id);
                    self.copies.extend(fork.copies.into_iter().flatten());
                    self.sequences.0.insert(fork.id, sibling);
                }
            }
            let Some(sequence) = self.sequences.0.get_mut(&piece.id) else { continue };
            // A guess stands if it is what the sampler draws after the tokens before it.
            let (mut num_right, num_known) = (0, sequence.tokens.len());
            // The last event of the generation, which one of its tokens may be, tells of them.
            sequence.guessed.add(piece.num_guesses, 0);
            loop {
                if !goes_on(sequence, first_row + num_right) {
                    self.ended.push(piece.id);
                    break;
                }
                self.state.append(piece.id);
                let guess = sequence.guesser.guesses().get(num_right).filter(|_| num_right < piece.num_guesses);
                if guess.is_none() || guess != sequence.tokens.last() {
                    break;
                }
                num_right += 1;
                sequence.guessed.accepted += 1;
            }
            self.state.accept(piece.id, num_right);
            let (num_proved, then) = sequence.guesser.learn(&sequence.tokens[num_known..]);
            if sequence.guesser.speculation() == Speculation::Draft {
                if let Some(drafter) = &mut self.drafter {
                    drafter.learn(num_proved, then);
                }
                self.stats.draft.add(piece.num_guesses, num_right);
            } else {
                self.stats.ngram.add(piece.num_guesses, num_right);
            }
        }
        self.stats.fetched_rows = self.fetched.count;
        // Before anything is freed: both sides of a copy still belong to somebody.
        for copy in self.copies.drain(..) {
            self.executor.copy_block(copy.pool, copy.from, copy.to)?;
        }
        self.keep_computed()?;
        self.remove_ended();
        Ok(())
    }

    /// Gives the store the blocks that the step has filled.
    fn keep_computed(&mut self) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        for piece in &self.plan.pieces {
            if let Some(sequence) = self.sequences.0.get_mut(&piece.id)
                && let Some((space, table)) = self.state.cached_table(piece.id)
            {
                store.keep(&mut *self.executor, space, &sequence.tokens, table, &mut sequence.kept)?;
            }
        }
        Ok(())
    }

    /// Writes the plan's tokens and block tables into the batch.
    fn fill_batch(&mut self) -> Result<()> {
        let now = Instant::now();
        for admission in &self.plan.admitted {
            let Some(sequence) = self.sequences.0.get_mut(&admission.id) else { continue };
            if !sequence.has_started() {
                sequence.start(now, admission.cached_tokens, admission.miss);
                (0..=sequence.siblings.len()).for_each(|_| self.shared.places.give_back(sequence.class.client));
                if admission.miss != Some(PrefixMiss::Disabled) {
                    self.stats.prefix_queries += sequence.num_prompt() as u64;
                    self.stats.prefix_hits += admission.cached_tokens as u64;
                }
            }
        }
        self.batch.clear();
        for piece in &self.plan.pieces {
            let Some(sequence) = self.sequences.0.get(&piece.id) else {
                return Err(Error::EngineStopped(format!("the scheduler named {:?}, which nobody knows", piece.id)));
            };
            if sequence.numerics == Numerics::Invariant {
                self.batch.numerics = Numerics::Invariant;
            }
            let tokens = &sequence.tokens[piece.start..piece.start + piece.len];
            let num_tokens = piece.num_tokens + piece.num_guesses;
            let output = sequence.pool.as_ref().map_or(piece.output, |pool| pool.output(piece.output));
            self.batch.push(tokens, piece.start, num_tokens, self.state.blocks(piece.id), output);
            self.batch.prompt_of_last(sequence.num_prompt());
            if self.has_window {
                self.batch.window_of_last(self.state.window_blocks(piece.id));
            }
            self.batch.extend_last(&sequence.guesser.guesses()[..piece.num_guesses]);
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.stats.running = self.state.num_running();
        self.stats.free_blocks = self.state.num_free_blocks();
        self.stats.cached_blocks = self.state.num_cached_blocks();
        self.stats.draft_blocks = self.drafter.as_ref().map_or(0, Drafter::num_blocks);
        self.stats.free_window_blocks = self.state.num_free_window_blocks();
        self.stats.cached_window_blocks = self.state.num_cached_window_blocks();
        *self.shared.stats() = self.stats;
        self.farewells.drain(..).for_each(Farewell::send);
        // When all places are taken, one gets free as often as a generation ends.
        let interval = self.service_ms / self.stats.running.max(1) as f64;
        self.shared.retry_after_ms.store(interval.clamp(1000.0, 60_000.0) as u64, Ordering::Relaxed);
    }

    /// Tells everybody, lets go of the executor, and only then reports the thread as ended.
    fn stop(mut self, reason: String) {
        self.shared.refuse(reason.clone());
        let mut fail = |mut events: EventSender| {
            self.farewells.extend(events.end(Event::Failed(Error::EngineStopped(reason.clone()))));
            self.stats.failed += 1;
        };
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Submit(submission) = message {
                submission.events.into_iter().for_each(&mut fail);
            }
        }
        for (_, sequence) in self.sequences.0.drain() {
            sequence.siblings.into_iter().for_each(|sibling| fail(sibling.events));
            fail(sequence.events);
        }
        self.shared.places.clear();
        self.stats.running = 0;
        self.stats.free_blocks = self.stats.total_blocks;
        self.stats.cached_blocks = 0;
        self.stats.draft_blocks = 0;
        self.stats.free_window_blocks = self.stats.total_window_blocks;
        self.stats.cached_window_blocks = 0;
        *self.shared.stats() = self.stats;
        self.farewells.drain(..).for_each(Farewell::send);
        self.drop_drafter();
        // The next engine of the model may open the store as soon as this one has stopped.
        drop(self.store);
        let executor = self.executor;
        if catch_unwind(AssertUnwindSafe(|| drop(executor))).is_err() {
            tracing::error!(model = self.name, "the executor panicked while it was dropped");
        }
        self.shared.stop(reason);
    }
}

/// Counts what became of a sequence and takes its last event down. Whether it goes on.
fn settle(
    outcome: Outcome,
    sequence: &mut Sequence,
    stats: &mut EngineStats,
    service_ms: &mut f64,
    farewells: &mut Vec<Farewell>,
) -> bool {
    let event = match outcome {
        Outcome::Continue => return true,
        Outcome::Done(event) => {
            stats.completed += 1;
            let weight = if *service_ms == 0.0 { 1.0 } else { 0.125 };
            *service_ms += (sequence.service_ms() - *service_ms) * weight;
            Some(event)
        }
        Outcome::Gone => {
            stats.cancelled += 1;
            None
        }
        Outcome::Failed(error) => {
            stats.failed += 1;
            Some(Event::Failed(error))
        }
    };
    farewells.extend(event.and_then(|event| sequence.events.end(event)));
    false
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

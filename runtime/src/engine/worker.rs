//! The engine's thread: the step loop.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use super::handle::{EngineOptions, EngineStats, PrefixCache, Shared};
use super::request::Event;
use super::sequence::{Outcome, Sequence, Submission};
use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};
use crate::exec::{Executor, Limits, OutputRows, StepBatch};
use crate::kv::{PrefixMiss, PrefixSpace};
use crate::sample::Scratch;
use crate::sched::{Capacity, Class, SeqId, State, StepPlan, TokenSource};

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
        max_running: options.max_running.min(limits.max_step_outputs),
        num_blocks: limits.num_kv_blocks,
        max_context: limits.max_context,
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

/// Everything that the thread owns.
pub(super) struct Worker {
    name: String,
    executor: Box<dyn Executor>,
    vocabulary: Arc<dyn Vocabulary>,
    inbox: Receiver<Message>,
    shared: Arc<Shared>,
    state: State,
    sequences: Sequences,
    prefix_cache: PrefixCache,
    is_draining: bool,
    stats: EngineStats,
    /// Milliseconds from first step to end, averaged over recent generations.
    service_ms: f64,
    // Reused from step to step.
    plan: StepPlan,
    batch: StepBatch,
    scratch: Scratch,
    ended: Vec<SeqId>,
}

impl Worker {
    pub(super) fn new(
        name: &str,
        executor: Box<dyn Executor>,
        vocabulary: Arc<dyn Vocabulary>,
        inbox: Receiver<Message>,
        shared: Arc<Shared>,
        capacity: Capacity,
        prefix_cache: PrefixCache,
    ) -> Self {
        let stats = *shared.stats();
        Self {
            name: name.to_owned(),
            executor,
            vocabulary,
            inbox,
            shared,
            state: State::new(capacity),
            sequences: Sequences::default(),
            prefix_cache,
            is_draining: false,
            stats,
            service_ms: 0.0,
            plan: StepPlan::default(),
            batch: StepBatch::default(),
            scratch: Scratch::default(),
            ended: Vec::new(),
        }
    }

    /// The thread's whole life.
    pub(super) fn run(mut self) {
        // After a panic nothing of the state is used any more except to tell its clients.
        let reason = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
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
            self.drop_cancelled();
            if !self.state.is_idle() {
                self.step()?;
            }
            self.publish();
        }
    }

    fn receive(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Submit(submission) => {
                let mut sequence = Sequence::new(*submission);
                let space =
                    (self.prefix_cache == PrefixCache::On && sequence.caches_prompt()).then(PrefixSpace::default);
                let (num_prompt, max_total) = (sequence.num_prompt(), sequence.max_total());
                match self.state.submit(num_prompt, max_total, Class::default(), space) {
                    Ok(id) => {
                        self.sequences.0.insert(id, sequence);
                    }
                    Err(error) => {
                        self.leave_queue();
                        self.stats.failed += 1;
                        sequence.events.end(Event::Failed(error));
                    }
                }
            }
            Message::Shutdown => self.is_draining = true,
            Message::Abort => return Err(Error::EngineStopped("it was told to end at once".into())),
        }
        Ok(())
    }

    /// Frees what belongs to clients that have gone away, before any more work is done for them.
    fn drop_cancelled(&mut self) {
        let gone = self.sequences.0.iter().filter(|(_, sequence)| sequence.events.is_gone());
        self.ended.extend(gone.map(|(&id, _)| id));
        self.stats.cancelled += self.ended.len() as u64;
        self.remove_ended();
    }

    fn remove_ended(&mut self) {
        while let Some(id) = self.ended.pop() {
            self.state.remove(id);
            if let Some(sequence) = self.sequences.0.remove(&id)
                && !sequence.has_started()
            {
                self.leave_queue();
            }
        }
    }

    fn leave_queue(&self) {
        self.shared.queued.fetch_sub(1, Ordering::Relaxed);
    }

    fn step(&mut self) -> Result<()> {
        self.state.schedule(&mut self.plan, &self.sequences);
        if self.plan.pieces.is_empty() {
            return Err(Error::EngineStopped("the scheduler found no work although sequences wait".into()));
        }
        self.stats.preemptions += self.plan.preempted.len() as u64;
        self.fill_batch()?;

        let start = Instant::now();
        let output = self.executor.step(&self.batch)?;
        let metrics = &self.shared.metrics;
        metrics.step(self.batch.tokens.len(), self.batch.seqs.len(), start.elapsed());
        let num_outputs = self.batch.num_outputs();
        if output.num_rows != num_outputs || output.data.len() != output.num_rows * output.width {
            return Err(Error::EngineStopped(format!(
                "the executor returned {} rows of {} in {} elements instead of {num_outputs} rows",
                output.num_rows,
                output.width,
                output.data.len()
            )));
        }
        self.state.advance(&self.plan, &self.sequences);
        self.stats.steps += 1;

        let width = output.width.min(self.vocabulary.vocab_size());
        let outputs = self.plan.pieces.iter().filter(|piece| piece.output == OutputRows::Last);
        for (row, piece) in outputs.enumerate() {
            let Some(sequence) = self.sequences.0.get_mut(&piece.id) else { continue };
            if sequence.tokens.len() == sequence.num_prompt() {
                self.stats.prompt_tokens += sequence.num_prompt() as u64;
            }
            let known = sequence.tokens.len();
            let outcome = sequence.take(&output.row(row)[..width], &*self.vocabulary, &mut self.scratch, metrics);
            self.stats.generated_tokens += (sequence.tokens.len() - known) as u64;
            match outcome {
                Outcome::Continue => {
                    self.state.append(piece.id);
                    continue;
                }
                Outcome::Done => {
                    self.stats.completed += 1;
                    let weight = if self.service_ms == 0.0 { 1.0 } else { 0.125 };
                    self.service_ms += (sequence.service_ms() - self.service_ms) * weight;
                }
                Outcome::Gone => self.stats.cancelled += 1,
                Outcome::Failed(error) => {
                    self.stats.failed += 1;
                    sequence.events.end(Event::Failed(error));
                }
            }
            self.ended.push(piece.id);
        }
        self.remove_ended();
        Ok(())
    }

    /// Writes the plan's tokens and block tables into the batch.
    fn fill_batch(&mut self) -> Result<()> {
        let now = Instant::now();
        for admission in &self.plan.admitted {
            let Some(sequence) = self.sequences.0.get_mut(&admission.id) else { continue };
            if !sequence.has_started() {
                sequence.start(now, admission.cached_tokens, admission.miss);
                self.shared.queued.fetch_sub(1, Ordering::Relaxed);
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
            let tokens = &sequence.tokens[piece.start..piece.start + piece.len];
            self.batch.push(tokens, piece.start, piece.num_tokens, self.state.blocks(piece.id), piece.output);
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.stats.running = self.state.num_running();
        self.stats.free_blocks = self.state.num_free_blocks();
        self.stats.cached_blocks = self.state.num_cached_blocks();
        *self.shared.stats() = self.stats;
        // When all places are taken, one gets free as often as a generation ends.
        let interval = self.service_ms / self.stats.running.max(1) as f64;
        self.shared.retry_after_ms.store(interval.clamp(1000.0, 60_000.0) as u64, Ordering::Relaxed);
    }

    /// Tells everybody, lets go of the executor, and only then reports the thread as ended.
    fn stop(mut self, reason: String) {
        self.shared.refuse(reason.clone());
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Submit(mut submission) = message {
                submission.events.end(Event::Failed(Error::EngineStopped(reason.clone())));
                self.stats.failed += 1;
            }
        }
        for (_, mut sequence) in self.sequences.0.drain() {
            self.stats.failed += 1;
            sequence.events.end(Event::Failed(Error::EngineStopped(reason.clone())));
        }
        self.shared.queued.store(0, Ordering::Relaxed);
        self.stats.running = 0;
        self.stats.free_blocks = self.stats.total_blocks;
        self.stats.cached_blocks = 0;
        *self.shared.stats() = self.stats;
        let executor = self.executor;
        if catch_unwind(AssertUnwindSafe(|| drop(executor))).is_err() {
            tracing::error!(model = self.name, "the executor panicked while it was dropped");
        }
        self.shared.stop(reason);
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

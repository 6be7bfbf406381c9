//! Responses that run on without their client: what computes them, what others see of them meanwhile, and how they are ended
//! early.
//!
//! A response that was made with `stream` keeps its events, numbered from 0, so that any client of its owner can read them
//! from any number on, while it runs and afterwards.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::web::{self, Bytes};
use shimmy_runtime::engine::Event;
use tokio::sync::watch;

use super::events::Events;
use super::store::Stage;
use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::begin::Begun;
use crate::routes::request::report::Done;
use crate::stream::Source;

/// Whether a response's events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// All of them.
    Events,
    /// None: only the response is wanted.
    Nothing,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    events: usize,
    is_over: bool,
}

/// What is shared between the one who computes a response and those who look at it.
#[derive(Debug)]
pub struct Live {
    log: Log,
    events: Mutex<Vec<Bytes>>,
    progress: watch::Sender<Progress>,
    cancelled: watch::Sender<bool>,
}

impl Live {
    /// Of a response that hasn't begun.
    pub fn new(log: Log) -> Arc<Self> {
        let (events, progress, cancelled) = (Mutex::default(), watch::Sender::default(), watch::Sender::new(false));
        Arc::new(Self { log, events, progress, cancelled })
    }

    fn events(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its events are kept.
    pub fn has_events(&self) -> bool {
        self.log == Log::Events
    }

    /// What its events take.
    pub fn bytes(&self) -> usize {
        self.events().iter().map(Bytes::len).sum()
    }

    /// Keeps these events, if they are kept; how many bytes that takes, and how many there are.
    fn append(&self, frames: Vec<Bytes>) -> (usize, usize) {
        if !self.has_events() {
            return (0, 0);
        }
        let bytes = frames.iter().map(Bytes::len).sum();
        let mut events = self.events();
        events.extend(frames);
        (bytes, events.len())
    }

    /// The same, and tells those who read them.
    fn push(&self, frames: Vec<Bytes>) -> usize {
        let (bytes, events) = self.append(frames);
        self.progress.send_modify(|progress| progress.events = events);
        bytes
    }

    /// There are no more.
    fn end(&self) {
        let events = self.events().len();
        self.progress.send_replace(Progress { events, is_over: true });
    }

    /// Asks for its end.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    async fn is_cancelled(&self) {
        // The sender is ours: it can't have gone.
        let _ = self.cancelled.subscribe().wait_for(|is_cancelled| *is_cancelled).await;
    }

    /// Returns when it has ended, however.
    pub async fn is_over(&self) {
        let _ = self.progress.subscribe().wait_for(|progress| progress.is_over).await;
    }
}

/// The events of a response for one reader.
#[derive(Debug)]
pub struct Reader {
    live: Arc<Live>,
    next: usize,
    progress: watch::Receiver<Progress>,
}

impl Reader {
    /// From this event on.
    pub fn new(live: Arc<Live>, next: usize) -> Self {
        let progress = live.progress.subscribe();
        Self { live, next, progress }
    }
}

impl Source for Reader {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let Progress { events, is_over } = *self.progress.borrow_and_update();
            if self.next < events {
                let event = self.live.events().get(self.next).cloned();
                self.next += 1;
                return event;
            }
            if is_over {
                return None;
            }
            self.progress.changed().await.ok()?;
        }
    }
}

/// How a response ended.
enum End {
    Done(Done),
    Failed(ApiError),
    Cancelled,
}

/// A response that is computed.
pub struct Task {
    state: web::Data<AppState>,
    live: Arc<Live>,
    events: Events,
    has_ended: bool,
}

impl Task {
    /// Of a response that the store has; its first events are there from now on.
    pub fn new(state: web::Data<AppState>, live: Arc<Live>, mut events: Events) -> Self {
        let first = events.queued();
        let mut task = Self { state, live, events, has_ended: false };
        // Two events are never too large.
        let _ = task.push(first);
        task
    }

    /// Computes it. `begin` gives the generation; it is cancelled with the response and when the server shuts down.
    pub async fn run(mut self, begin: impl Future<Output = Result<Begun, ApiError>>) {
        let (live, gate) = (Arc::clone(&self.live), Arc::clone(&self.state.gate));
        let end = tokio::select! {
            biased;
            () = live.is_cancelled() => End::Cancelled,
            () = gate.wait_closed() => End::Cancelled,
            end = self.compute(begin) => end,
        };
        self.end(end);
    }

    async fn compute(&mut self, begin: impl Future<Output = Result<Begun, ApiError>>) -> End {
        let Begun { model, mut group, running, .. } = match begin.await {
            Ok(begun) => begun,
            Err(error) => return End::Failed(error),
        };
        // For as long as it is computed.
        let _running = running;
        let (object, frames) = self.events.begun(&model);
        self.state.responses.change(self.events.id(), |kept| kept.object = object);
        if let Err(error) = self.push(frames) {
            return End::Failed(error);
        }
        while let Some((_, event)) = group.recv().await {
            match event {
                Event::Text { text, logprobs } => {
                    let frames = self.events.more(&text, &logprobs);
                    if let Err(error) = self.push(frames) {
                        return End::Failed(error);
                    }
                }
                Event::Done { reason, usage, timings, seed } => {
                    return End::Done(Done { reason, usage, timings, seed });
                }
                Event::Failed(error) => return End::Failed(error.into()),
            }
        }
        End::Failed(ApiError::server("the engine gave no answer"))
    }

    /// Keeps events, if there is room for them.
    fn push(&mut self, frames: Vec<Bytes>) -> Result<(), ApiError> {
        let bytes = self.live.push(frames);
        if self.state.responses.grow(self.events.id(), bytes) {
            return Ok(());
        }
        let message = "the events of this response take more memory than there is for it; make it without `stream`";
        Err(ApiError { code: Some("response_too_large"), ..ApiError::server(message) })
    }

    fn end(&mut self, end: End) {
        self.has_ended = true;
        let stage = if matches!(end, End::Done(_)) { Stage::Whole } else { Stage::Broken };
        let (object, frames) = match end {
            End::Done(done) => self.events.ended(&done),
            End::Failed(error) => self.events.failed(&error),
            End::Cancelled => self.events.cancelled(),
        };
        let text = std::mem::take(&mut self.events.text);
        // It is kept with its last events, which nobody hears of before.
        self.live.append(frames);
        self.state.responses.finish(self.events.id(), |kept| {
            kept.object = object;
            kept.end(stage, &text);
        });
        self.live.end();
    }
}

impl Drop for Task {
    /// The thread that computed it ends.
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(End::Cancelled);
        }
    }
}

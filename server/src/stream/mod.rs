//! From a generation to the wire: a bounded channel a stream, and a failed send cancels the generation.
//!
//! [`sse`]: server-sent events. [`ndjson`]: a line of JSON for each event.

pub mod ndjson;
pub mod sse;

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::web::Bytes;
use actix_web::{HttpResponse, HttpResponseBuilder};
use futures_core::Stream;
use shimmy_runtime::engine::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};

use crate::access::client::Answers;
use crate::drain::Running;
use crate::error::ApiError;
use crate::routes::request::report::{Done, TokenReport};

/// Events that wait for a slow reader before the generation has to wait too.
const QUEUED_EVENTS: usize = 32;
/// A sign of life that often keeps proxies from closing a silent stream.
const PING_EVERY: Duration = Duration::from_secs(15);

/// One protocol's bytes for the events of the answers to a prompt, which are numbered from 0.
pub trait Encoder: 'static {
    /// MIME type of the body.
    fn content_type(&self) -> &'static str;
    /// Before the first token of an answer.
    fn open(&mut self, index: usize) -> Option<Bytes>;
    /// New text.
    fn text(&mut self, index: usize, text: &str, reports: &[TokenReport]) -> Option<Bytes>;
    /// The end of an answer.
    fn done(&mut self, index: usize, done: &Done) -> Option<Bytes>;
    /// After the end of all answers.
    fn close(&mut self) -> Option<Bytes>;
    /// Instead of all further ones.
    fn failed(&mut self, error: ApiError) -> Bytes;
    /// What keeps proxies from closing a silent stream, if the protocol has something for it.
    fn ping(&self) -> Option<Bytes>;
}

/// Frames of a stream that somebody else makes, whether they are read or not.
pub trait Source: 'static {
    /// The next one, when it is there; `None` at the end. Nothing is lost when the future is dropped.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>>;
}

/// Answers with the server-sent events of `source`, for as long as the client takes them.
pub fn relay(response: HttpResponseBuilder, stall: Duration, mut source: impl Source) -> HttpResponse {
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
    let cut = Rc::new(Cell::new(false));
    let frames = Frames { receiver, cut: Rc::clone(&cut) };
    actix_web::rt::spawn(async move {
        let outlet = Outlet { sender, stall };
        if let Err(Unsent::Slow) = pass(&mut source, &outlet).await {
            tracing::info!("a client took nothing for {stall:?} and is cut off");
            cut.set(true);
        }
    });
    streaming(response, sse::CONTENT_TYPE, frames)
}

async fn pass(source: &mut impl Source, outlet: &Outlet) -> Result<(), Unsent> {
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        tokio::select! {
            biased;
            () = outlet.sender.closed() => return Err(Unsent::Gone),
            frame = source.next() => match frame {
                Some(frame) => outlet.send(frame).await?,
                None => return Ok(()),
            },
            _ = ping.tick() => {
                outlet.send(sse::comment()).await?;
                continue;
            }
        }
        ping.reset();
    }
}

/// Answers with the events of `group`. When the client goes away, the body and with it the receiver is dropped;
/// the task sees that at once, even between tokens, and drops the group, which cancels it. A client that takes
/// nothing for `stall` is cut off: its response breaks off, so that it can't be taken for a whole one.
pub fn respond(
    response: HttpResponseBuilder,
    mut group: Answers,
    running: Running,
    stall: Duration,
    encoder: impl Encoder,
) -> HttpResponse {
    let content_type = encoder.content_type();
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
    let cut = Rc::new(Cell::new(false));
    let frames = Frames { receiver, cut: Rc::clone(&cut) };
    actix_web::rt::spawn(async move {
        match pump(&mut group, encoder, &Outlet { sender, stall }).await {
            Ok(()) => {}
            Err(Unsent::Gone) => tracing::debug!("a client went away; its generation is cancelled"),
            Err(Unsent::Slow) => {
                tracing::info!("a client took nothing for {stall:?} and is cut off");
                cut.set(true);
                group.cancel_slow_reader();
            }
        }
        drop(running);
    });
    streaming(response, content_type, frames)
}

fn streaming(mut response: HttpResponseBuilder, content_type: &'static str, frames: Frames) -> HttpResponse {
    response
        .content_type(content_type)
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        // For nginx: hand each event on at once.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(frames)
}

/// Why a frame did not reach its client.
enum Unsent {
    /// The client has gone.
    Gone,
    /// The client takes nothing.
    Slow,
}

/// The sending side of a response's body.
struct Outlet {
    sender: mpsc::Sender<Bytes>,
    stall: Duration,
}

impl Outlet {
    async fn send_some(&self, frame: Option<Bytes>) -> Result<(), Unsent> {
        match frame {
            Some(frame) => self.send(frame).await,
            None => Ok(()),
        }
    }

    async fn send(&self, frame: Bytes) -> Result<(), Unsent> {
        match timeout(self.stall, self.sender.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unsent::Gone),
            Err(_) => Err(Unsent::Slow),
        }
    }
}

async fn pump(group: &mut Answers, mut encoder: impl Encoder, outlet: &Outlet) -> Result<(), Unsent> {
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    for index in 0..group.len() {
        outlet.send_some(encoder.open(index)).await?;
    }
    loop {
        let event = tokio::select! {
            biased;
            () = outlet.sender.closed() => return Err(Unsent::Gone),
            event = group.recv() => event,
            _ = ping.tick() => {
                outlet.send_some(encoder.ping()).await?;
                continue;
            }
        };
        ping.reset();
        match event {
            Some((index, Event::Text { text, logprobs })) => {
                outlet.send_some(encoder.text(index, &text, &logprobs)).await?;
            }
            Some((index, Event::Done { reason, usage, timings, seed })) => {
                outlet.send_some(encoder.done(index, &Done { reason, usage, timings, seed })).await?;
            }
            // The others are cancelled with it: a client that asked for several wants all.
            Some((_, Event::Failed(error))) => return outlet.send(encoder.failed(error.into())).await,
            None => return outlet.send_some(encoder.close()).await,
        }
    }
}

/// The receiving end as a response body.
struct Frames {
    receiver: mpsc::Receiver<Bytes>,
    /// The frames that were sent are not all.
    cut: Rc<Cell<bool>>,
}

impl Stream for Frames {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx).map(|frame| match frame {
            Some(frame) => Some(Ok(frame)),
            None => self.cut.take().then(|| Err(io::ErrorKind::TimedOut.into())),
        })
    }
}

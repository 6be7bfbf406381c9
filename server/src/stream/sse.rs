//! Server-sent events: `data: {json}`, a blank line, and `data: [DONE]` at the end.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::web::Bytes;
use actix_web::{HttpResponse, HttpResponseBuilder};
use futures_core::Stream;
use shimmy_runtime::engine::{Event, GenerationGroup};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};

use crate::drain::Running;
use crate::error::ApiError;
use crate::routes::openai::types::{Done, TokenReport};

/// Events that wait for a slow reader before the generation has to wait too.
const QUEUED_EVENTS: usize = 32;
/// A comment that often keeps proxies from closing a silent stream.
const PING_EVERY: Duration = Duration::from_secs(15);
/// A reader that takes nothing for so long is given up.
const SLOW_READER: Duration = Duration::from_secs(60);

/// One protocol's JSON for the events of the answers to a prompt, which are numbered from 0.
pub trait Encoder: 'static {
    /// Before the first token of an answer.
    fn open(&mut self, index: usize) -> Option<Vec<u8>>;
    /// New text.
    fn text(&mut self, index: usize, text: &str, reports: &[TokenReport]) -> Vec<u8>;
    /// The end of an answer.
    fn done(&mut self, index: usize, done: &Done) -> Vec<u8>;
    /// After the end of all answers.
    fn close(&mut self) -> Option<Vec<u8>>;
}

/// Answers with the events of `group`. When the client goes away, the body and with it the receiver is dropped;
/// the task sees that at once, even between tokens, and drops the group, which cancels it.
pub fn respond(
    mut response: HttpResponseBuilder,
    mut group: GenerationGroup,
    running: Running,
    encoder: impl Encoder,
) -> HttpResponse {
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
    actix_web::rt::spawn(async move {
        match pump(&mut group, encoder, &sender).await {
            Ok(()) => {}
            Err(Unsent::Gone) => tracing::debug!("a client went away; its generation is cancelled"),
            Err(Unsent::Slow) => {
                tracing::info!("a client took nothing for {SLOW_READER:?}; its generation is cancelled");
                group.cancel_slow_reader();
            }
        }
        drop(running);
    });
    response
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        // For nginx: hand each event on at once.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(Receiver(receiver))
}

/// Why a frame did not reach its client.
enum Unsent {
    /// The client has gone.
    Gone,
    /// The client takes nothing.
    Slow,
}

async fn pump(
    group: &mut GenerationGroup,
    mut encoder: impl Encoder,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Unsent> {
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    for index in 0..group.len() {
        if let Some(json) = encoder.open(index) {
            send(sender, data(&json)).await?;
        }
    }
    loop {
        let event = tokio::select! {
            biased;
            () = sender.closed() => return Err(Unsent::Gone),
            event = group.recv() => event,
            _ = ping.tick() => {
                send(sender, Bytes::from_static(b": ping\n\n")).await?;
                continue;
            }
        };
        ping.reset();
        match event {
            Some((index, Event::Text { text, logprobs })) => {
                send(sender, data(&encoder.text(index, &text, &logprobs))).await?;
            }
            Some((index, Event::Done { reason, usage, timings, seed })) => {
                send(sender, data(&encoder.done(index, &Done { reason, usage, timings, seed }))).await?;
            }
            // The others are cancelled with it: a client that asked for several wants all.
            Some((_, Event::Failed(error))) => {
                send(sender, data(&ApiError::from(error).to_json())).await?;
                break;
            }
            None => {
                if let Some(json) = encoder.close() {
                    send(sender, data(&json)).await?;
                }
                break;
            }
        }
    }
    send(sender, Bytes::from_static(b"data: [DONE]\n\n")).await
}

async fn send(sender: &mpsc::Sender<Bytes>, frame: Bytes) -> Result<(), Unsent> {
    match timeout(SLOW_READER, sender.send(frame)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Unsent::Gone),
        Err(_) => Err(Unsent::Slow),
    }
}

/// JSON holds no raw line breaks, so one `data:` line is always enough.
fn data(json: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(json.len() + 8);
    frame.extend_from_slice(b"data: ");
    frame.extend_from_slice(json);
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

/// The receiving end as a response body.
struct Receiver(mpsc::Receiver<Bytes>);

impl Stream for Receiver {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

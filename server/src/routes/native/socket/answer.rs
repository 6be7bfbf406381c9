//! One request of a socket.

use std::cell::Cell;

use actix_web::web;
use serde_json::{Value, json};
use shimmy_runtime::engine::Event;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::RecvError;

use super::outlet::{Outlet, Unsent};
use crate::access::client::{Answers, Client};
use crate::app::AppState;
use crate::routes::native::generate::{NativeRequest, done_frame, token_frame};
use crate::routes::request::begin::Begun;
use crate::routes::request::report::Done;

/// A request and how its frames are marked.
pub struct Asked {
    /// Who asks, for taking turns.
    pub client: Client,
    /// In every frame about it.
    pub id: Option<Value>,
    /// What is wanted.
    pub request: NativeRequest,
}

/// Answers `asked` until it is complete, or cancelled by a word on `cancel`. If the other end of `cancel` is dropped, the
/// socket has ended, and with it the generation. `over` is set before the last frame is sent: a peer that has read it may ask
/// again under the same id at once.
///
/// # Errors
/// When a frame can't be delivered.
pub async fn answer(
    state: web::Data<AppState>,
    asked: Asked,
    mut outlet: Outlet,
    mut cancel: oneshot::Receiver<()>,
    over: &Cell<bool>,
) -> Result<(), Unsent> {
    let Asked { client, id, request } = asked;
    let id = id.as_ref();
    let begun = tokio::select! {
        biased;
        word = &mut cancel => {
            over.set(true);
            return cancelled(word, id, &mut outlet, None).await;
        }
        begun = request.begin(state, client) => begun,
    };
    let (begun, ignored) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            over.set(true);
            return outlet.fail(id, &error).await;
        }
    };
    let Begun { model, mut group, prompt_tokens, running } = begun;
    let mut out = outlet.clone();
    let result = tokio::select! {
        biased;
        word = &mut cancel => {
            // Its blocks are free before the peer hears of the end.
            drop(group);
            over.set(true);
            let about = json!({"model": model.name, "usage": {"prompt_tokens": prompt_tokens}});
            let result = cancelled(word, id, &mut outlet, Some(about)).await;
            drop(running);
            return result;
        }
        result = pump(&mut group, &mut out, id, &model.name, ignored.as_deref(), over) => result,
    };
    if result == Err(Unsent::Slow) {
        group.cancel_slow_reader();
    }
    drop(running);
    result
}

async fn pump(
    group: &mut Answers,
    outlet: &mut Outlet,
    id: Option<&Value>,
    model: &str,
    ignored: Option<&str>,
    over: &Cell<bool>,
) -> Result<(), Unsent> {
    while let Some((_, event)) = group.recv().await {
        over.set(!matches!(event, Event::Text { .. }));
        match event {
            Event::Text { text, .. } if text.is_empty() => {}
            Event::Text { text, .. } => outlet.send(id, token_frame(&text)).await?,
            Event::Done { reason, usage, timings, seed } => {
                let done = Done { reason, usage, timings, seed };
                outlet.send(id, done_frame(model, &done, ignored)).await?;
            }
            Event::Failed(error) => outlet.fail(id, &error.into()).await?,
        }
    }
    Ok(())
}

/// The end of a request that was cancelled. What it came to isn't known then, but for what `about` says.
async fn cancelled(
    word: Result<(), RecvError>,
    id: Option<&Value>,
    outlet: &mut Outlet,
    about: Option<Value>,
) -> Result<(), Unsent> {
    if word.is_err() {
        return Err(Unsent::Gone);
    }
    let mut frame = json!({"done": true, "finish_reason": "cancelled"});
    if let (Some(frame), Some(Value::Object(about))) = (frame.as_object_mut(), about) {
        frame.extend(about);
    }
    outlet.send(id, frame).await
}

//! One socket: messages in, heartbeat, its end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use actix_web::web;
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, ProtocolError, Session};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at};

use super::answer::{Asked, answer};
use super::limits::{MAX_REQUESTS, max_message_bytes};
use super::outlet::{Outlet, Unsent};
use crate::access::client::Client;
use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::native::generate::NativeRequest;
use crate::routes::request::fields::{Fields, kind_of};

/// Most bytes of an id.
const MAX_ID_BYTES: usize = 128;

/// A request that runs. Dropping it ends it.
struct Running {
    id: Option<Value>,
    /// `None`: the word is given.
    cancel: Option<oneshot::Sender<()>>,
    /// Its last frame is out.
    over: Rc<Cell<bool>>,
}

/// Why a socket ends.
enum End {
    /// The peer is told.
    Close(Option<CloseReason>),
    /// The peer doesn't hear anything any more.
    Cut,
}

impl End {
    fn because(code: CloseCode, why: &str) -> Self {
        Self::Close(Some((code, why).into()))
    }
}

impl From<Unsent> for End {
    fn from(_: Unsent) -> Self {
        Self::Cut
    }
}

/// What a text message says.
enum Message {
    Request(Box<Asked>),
    /// Of the request with this id, or of all.
    Cancel(Option<Value>),
}

/// A socket and what runs on it.
pub struct Conversation {
    state: web::Data<AppState>,
    client: Client,
    outlet: Outlet,
    /// Why no more bytes come, if that is the guard's doing.
    broken: Rc<Cell<Option<CloseCode>>>,
    running: BTreeMap<u64, Running>,
    next_number: u64,
    /// Requests tell here that they have ended.
    ends: mpsc::UnboundedSender<(u64, Result<(), Unsent>)>,
    ended: mpsc::UnboundedReceiver<(u64, Result<(), Unsent>)>,
    /// When something was last asked or answered.
    last_use: Instant,
}

impl Conversation {
    /// A socket of this client.
    pub fn new(
        state: web::Data<AppState>,
        client: Client,
        session: Session,
        broken: Rc<Cell<Option<CloseCode>>>,
    ) -> Self {
        let (ends, ended) = mpsc::unbounded_channel();
        let outlet = Outlet::new(session, state.limits.stall);
        let (running, last_use) = (BTreeMap::new(), Instant::now());
        Self { state, client, outlet, broken, running, next_number: 0, ends, ended, last_use }
    }

    /// Talks until one side ends it. What still runs then is cancelled.
    pub async fn run(mut self, mut stream: AggregatedMessageStream) {
        let end = self.talk(&mut stream).await;
        self.running.clear();
        match end {
            End::Close(reason) => {
                tracing::debug!("a socket is closed: {reason:?}");
                self.outlet.close(reason).await;
            }
            End::Cut => tracing::debug!("a socket's peer went away"),
        }
    }

    async fn talk(&mut self, stream: &mut AggregatedMessageStream) -> End {
        let limits = self.state.limits.sockets;
        let gate = std::sync::Arc::clone(&self.state.gate);
        let mut ping = interval_at(Instant::now() + limits.ping_every, limits.ping_every);
        let (mut heard, mut draining) = (Instant::now(), false);
        loop {
            if draining && self.running.is_empty() {
                return End::because(CloseCode::Away, "the server is shutting down; connect again in a moment");
            }
            let message = tokio::select! {
                biased;
                Some((number, result)) = self.ended.recv() => {
                    self.running.remove(&number);
                    self.last_use = Instant::now();
                    match result {
                        Ok(()) => continue,
                        Err(Unsent::Gone) => return End::Cut,
                        Err(Unsent::Slow) => {
                            tracing::info!("a socket's peer took nothing for {:?} and is cut off", self.state.limits.stall);
                            return End::Cut;
                        }
                    }
                }
                () = gate.wait_closed(), if !draining => {
                    draining = true;
                    continue;
                }
                _ = ping.tick() => {
                    if heard.elapsed() >= limits.silence {
                        return End::because(CloseCode::Policy, "nothing was heard of you for too long, not even a pong");
                    }
                    if self.running.is_empty() && self.last_use.elapsed() >= limits.idle {
                        return End::because(CloseCode::Normal, "nothing was asked for a while; connect again when there is");
                    }
                    match self.outlet.ping().await {
                        Ok(()) => continue,
                        Err(unsent) => return unsent.into(),
                    }
                }
                message = stream.recv() => message,
            };
            heard = Instant::now();
            let done = match message {
                None => return End::Cut,
                Some(Err(error)) => return self.after(&error),
                Some(Ok(AggregatedMessage::Close(reason))) => return End::Close(reason),
                Some(Ok(AggregatedMessage::Binary(_))) => {
                    return End::because(CloseCode::Unsupported, "requests are text messages");
                }
                Some(Ok(AggregatedMessage::Ping(bytes))) => self.outlet.pong(&bytes).await,
                Some(Ok(AggregatedMessage::Pong(_))) => Ok(()),
                Some(Ok(AggregatedMessage::Text(text))) => self.hear(text.as_bytes()).await,
            };
            if let Err(unsent) = done {
                return unsent.into();
            }
        }
    }

    /// How a socket ends on which something came that is no message.
    fn after(&self, error: &ProtocolError) -> End {
        let most = max_message_bytes(self.state.limits.max_body_bytes);
        let too_large = || End::because(CloseCode::Size, &format!("a message may have up to {most} bytes"));
        match (self.broken.get(), error) {
            (Some(CloseCode::Size), _) | (None, ProtocolError::Overflow) => too_large(),
            (Some(code), _) => End::because(code, "a ping, pong or close has at most 125 bytes"),
            // The decoder has no kind of its own for this.
            (None, ProtocolError::Io(error)) if error.to_string().contains("utf-8") => {
                End::because(CloseCode::Invalid, "a text message must be UTF-8")
            }
            (None, ProtocolError::Io(error)) if error.kind() != std::io::ErrorKind::InvalidData => End::Cut,
            (None, error) => End::because(CloseCode::Protocol, &error.to_string()),
        }
    }

    /// Does what a text message says; a mistake in it is answered with an error frame.
    async fn hear(&mut self, text: &[u8]) -> Result<(), Unsent> {
        self.last_use = Instant::now();
        let mut id = None;
        let heard = self.read(text, &mut id).and_then(|message| match message {
            Message::Request(asked) => self.start(*asked),
            Message::Cancel(id) => {
                self.cancel(id.as_ref());
                Ok(())
            }
        });
        match heard {
            Ok(()) => Ok(()),
            Err(error) => self.outlet.fail(id.as_ref(), &error).await,
        }
    }

    /// Reads a message; its id into `id` as soon as it is known.
    fn read(&self, text: &[u8], id: &mut Option<Value>) -> Result<Message, ApiError> {
        let mut fields = Fields::parse(text)?;
        *id = take_id(&mut fields)?;
        if let Some(cancel) = fields.take::<bool>("cancel")? {
            if !cancel {
                return Err(ApiError::param("cancel", "`cancel` is true, or left out in a request"));
            }
            if let Some(name) = fields.rest().next() {
                let message = format!("`{name}` has no place beside `cancel`");
                return Err(ApiError::param(name, message));
            }
            return Ok(Message::Cancel(id.clone()));
        }
        let request = NativeRequest::parse(fields)?;
        request.check_streams()?;
        Ok(Message::Request(Box::new(Asked { client: self.client.next_request(), id: id.clone(), request })))
    }

    fn start(&mut self, asked: Asked) -> Result<(), ApiError> {
        // One whose last frame is out may still be on its way to tell so.
        let running = || self.running.values().filter(|running| !running.over.get());
        if running().any(|running| running.id == asked.id) {
            let message = match &asked.id {
                Some(id) => format!("`id`: a request with {id} runs on this socket; give each its own"),
                None => {
                    "`id`: a request without one runs on this socket; wait for its end, or give each its own".into()
                }
            };
            return Err(ApiError { code: Some("id_in_use"), ..ApiError::param("id", message) });
        }
        if running().count() >= MAX_REQUESTS {
            let message = format!("{MAX_REQUESTS} requests run on this socket; wait for the end of one");
            return Err(ApiError { code: Some("too_many_requests"), ..ApiError::bad_request(message) });
        }
        let number = self.next_number;
        self.next_number += 1;
        let (cancel, is_cancelled) = oneshot::channel();
        let over = Rc::new(Cell::new(false));
        self.running.insert(number, Running { id: asked.id.clone(), cancel: Some(cancel), over: Rc::clone(&over) });
        let (state, outlet, ends) = (self.state.clone(), self.outlet.clone(), self.ends.clone());
        actix_web::rt::spawn(async move {
            let result = answer(state, asked, outlet, is_cancelled, &over).await;
            // Without a receiver the socket has ended already.
            let _ = ends.send((number, result));
        });
        Ok(())
    }

    /// Cancels the request with this id, or all. One that has just ended needs no word.
    fn cancel(&mut self, id: Option<&Value>) {
        for running in self.running.values_mut().filter(|running| id.is_none() || running.id.as_ref() == id) {
            if let Some(cancel) = running.cancel.take() {
                // Without a receiver it has ended already.
                let _ = cancel.send(());
            }
        }
    }
}

/// Takes `id`: a string or a whole number, which every frame about the request repeats.
fn take_id(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    match fields.take::<Value>("id")? {
        None => Ok(None),
        Some(Value::String(id)) if id.len() > MAX_ID_BYTES => {
            Err(ApiError::param("id", format!("`id` has more than {MAX_ID_BYTES} bytes")))
        }
        Some(id @ Value::String(_)) => Ok(Some(id)),
        Some(Value::Number(id)) if !id.is_f64() => Ok(Some(Value::Number(id))),
        Some(other) => {
            let message = format!("`id` must be a string or a whole number, not {}", kind_of(&other));
            Err(ApiError::param("id", message))
        }
    }
}

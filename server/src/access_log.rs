//! What was asked and how it went: an identifier for each request and, when its response has left, a line of JSON and the
//! spans of a trace.
//!
//! The lines are written by a thread of their own: a disk that takes its time holds up no client. What it can't keep up
//! with is counted in a line of its own.

use std::io::{self, BufWriter, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::middleware::Next;
use actix_web::web::{self, Bytes};
use actix_web::{Error, HttpMessage};
use chrono::{SecondsFormat, Utc};
use serde::Serialize;

use crate::access::client::Client;
use crate::app::AppState;
use crate::error::ApiError;
use crate::ids;
use crate::otlp::context::{Parent, Sampled};
use crate::otlp::span::{RequestSpan, Work};
use crate::routes::native::capabilities::readable;

/// Lines that wait for the disk.
const QUEUED_LINES: usize = 4096;
/// After the end of the server.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Longer identifiers of clients are replaced.
const MAX_ID: usize = 128;
/// Of a request's body that is logged.
const MAX_LOGGED_BODY: usize = 64 << 10;
/// What is asked every few seconds by machines is no part of a trace, unless it says so.
const UNTRACED: [&str; 3] = ["/health", "/ready", "/metrics"];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where lines go.
#[derive(Debug)]
pub struct AccessLog {
    /// `None` while it is dropped.
    lines: Option<SyncSender<Vec<u8>>>,
    lost: Arc<AtomicU64>,
    with_bodies: bool,
    writer: JoinHandle<()>,
}

impl Drop for AccessLog {
    /// The last lines get some time to be written.
    fn drop(&mut self) {
        self.lines = None;
        let start = Instant::now();
        while !self.writer.is_finished() && start.elapsed() < LAST_LINES {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl AccessLog {
    /// Writes to `out`, with the bodies of requests (which hold the prompts) if asked for.
    ///
    /// # Errors
    /// When there can't be another thread.
    pub fn new(out: impl Write + Send + 'static, with_bodies: bool) -> io::Result<Self> {
        let (lines, receiver) = mpsc::sync_channel(QUEUED_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let writer = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            if let Err(error) = write_lines(&receiver, BufWriter::new(out), &counted) {
                tracing::error!("the access log ends: {error}");
            }
        })?;
        Ok(Self { lines: Some(lines), lost, with_bodies, writer })
    }

    /// Whether requests' bodies are logged.
    pub fn wants_bodies(&self) -> bool {
        self.with_bodies
    }

    fn write(&self, record: &Record<'_>) {
        // Text and numbers always serialise.
        let Ok(mut line) = serde_json::to_vec(record) else { return };
        line.push(b'\n');
        // Without a receiver the writer has said why it ended.
        if let Some(Err(TrySendError::Full(_))) = self.lines.as_ref().map(|lines| lines.try_send(line)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_lines(lines: &Receiver<Vec<u8>>, mut out: impl Write, lost: &AtomicU64) -> io::Result<()> {
    while let Ok(line) = lines.recv() {
        out.write_all(&line)?;
        for line in lines.try_iter() {
            out.write_all(&line)?;
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            writeln!(out, "{{\"lost\":{lost}}}")?;
        }
        out.flush()?;
    }
    Ok(())
}

/// A line of the log.
#[derive(Debug, Serialize)]
struct Record<'a> {
    /// When the response had left.
    time: String,
    id: &'a str,
    client: Option<String>,
    /// The name of the API key.
    key: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    status: u16,
    /// Until its head was ready, and until all had left.
    head_ms: f64,
    ms: f64,
    /// Of the body.
    bytes: u64,
    /// Whether all of it was taken.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
}

/// A request's body, for the log.
pub struct LoggedBody(pub Bytes);

/// Names the request, counts the response and logs it when it has left. It stands before everything else.
///
/// # Errors
/// Those of what comes after it.
pub async fn log(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let start = Instant::now();
    let id = request_id(request.headers().get(&REQUEST_ID));
    let came = SystemTime::now();
    let state = request.app_data::<web::Data<AppState>>().cloned();
    let trace = state.as_ref().filter(|state| state.tracer.is_some()).and_then(|_| Trace::of(&request));
    let mut response = next.call(request).await?;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
    let error = error.map(ApiError::reason);
    if let Some(state) = &state {
        state.counters.respond(response.status().as_u16(), error);
    }
    let head_ms = start.elapsed().as_secs_f64() * 1e3;
    if tracing::enabled!(tracing::Level::INFO) {
        let (request, status) = (response.request(), response.status().as_u16());
        tracing::info!("{} {} {status} {head_ms:.1} ms {id}", request.method(), request.path());
    }
    let is_wanted = |state: &web::Data<AppState>| state.access_log.is_some() || trace.is_some();
    let logged = state.filter(is_wanted).map(|state| {
        let request = response.request();
        let is_empty = matches!(response.response().body().size(), BodySize::None | BodySize::Sized(0));
        let body = request.extensions_mut().remove::<LoggedBody>();
        Open {
            start,
            came,
            trace,
            route: request.match_pattern().map(|pattern| readable(&pattern)),
            head_ms,
            id,
            client: request.extensions().get::<Client>().cloned(),
            address: request.peer_addr().map(|address| address.ip().to_string()),
            method: request.method().clone(),
            path: request.path().to_owned(),
            status: response.status().as_u16(),
            error,
            bytes: 0,
            // Nobody asks for these bodies.
            complete: is_empty || request.method() == Method::HEAD,
            request: body.map(|LoggedBody(body)| shortened(&body)),
            state,
        }
    });
    Ok(response.map_body(|_, body| Logged { body: Box::pin(body), open: logged }))
}

fn shortened(body: &Bytes) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_LOGGED_BODY)]);
    if body.len() > MAX_LOGGED_BODY { format!("{text}… ({} bytes)", body.len()) } else { text.into_owned() }
}

/// What the client calls its request, if that fits into a header and a log; else a new name.
fn request_id(given: Option<&HeaderValue>) -> String {
    let given = given.and_then(|value| value.to_str().ok());
    let is_good = |id: &&str| {
        (1..=MAX_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte))
    };
    given.filter(is_good).map_or_else(|| ids::unique("req"), str::to_owned)
}

/// Of a request that is traced.
struct Trace {
    /// `None`: it begins one.
    parent: Option<Parent>,
}

impl Trace {
    fn of(request: &ServiceRequest) -> Option<Self> {
        let parent = Parent::of(request.headers());
        let is_traced = match &parent {
            Some(parent) => parent.sampled == Sampled::Yes,
            None => !UNTRACED.contains(&request.path()),
        };
        is_traced.then_some(Self { parent })
    }
}

/// A response that is on its way.
struct Open {
    state: web::Data<AppState>,
    start: Instant,
    came: SystemTime,
    trace: Option<Trace>,
    route: Option<String>,
    head_ms: f64,
    id: String,
    client: Option<Client>,
    address: Option<String>,
    method: Method,
    path: String,
    status: u16,
    error: Option<&'static str>,
    bytes: u64,
    complete: bool,
    request: Option<String>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.export();
        let Some(log) = &self.state.access_log else { return };
        let account = self.client.as_ref().map(Client::account);
        let model = account.and_then(|account| account.model());
        let tokens = account.filter(|_| model.is_some()).map(|account| account.tokens());
        log.write(&Record {
            time: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            id: &self.id,
            client: self.address.take(),
            key: self.client.as_ref().and_then(Client::name),
            method: self.method.as_str(),
            path: &self.path,
            status: self.status,
            head_ms: tenths(self.head_ms),
            ms: tenths(self.start.elapsed().as_secs_f64() * 1e3),
            bytes: self.bytes,
            complete: self.complete,
            error: self.error,
            model,
            prompt_tokens: tokens.map(|(prompt, _)| prompt),
            completion_tokens: tokens.map(|(_, completion)| completion),
            request: self.request.take(),
        });
    }
}

impl Open {
    /// Hands the spans over, if the request is traced.
    fn export(&self) {
        let (Some(tracer), Some(trace)) = (&self.state.tracer, &self.trace) else { return };
        let account = self.client.as_ref().map(Client::account);
        let work = account.and_then(|account| {
            let (prompt_tokens, completion_tokens) = account.tokens();
            let timings = account.first_end().map(|(end, timings)| (end.elapsed(), timings));
            Some(Work { model: account.model()?, prompt_tokens, completion_tokens, timings })
        });
        tracer.export(&RequestSpan {
            parent: trace.parent.as_ref(),
            start: self.came,
            duration: self.start.elapsed(),
            request_id: &self.id,
            method: self.method.as_str(),
            path: &self.path,
            route: self.route.as_deref(),
            status: self.status,
            error: self.error,
            bytes: self.bytes,
            complete: self.complete,
            address: self.address.as_deref(),
            key: self.client.as_ref().and_then(Client::name),
            work,
        });
    }
}

fn tenths(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

/// A body that is counted, and whose end is logged.
struct Logged<B> {
    body: Pin<Box<B>>,
    open: Option<Open>,
}

impl<B: MessageBody> MessageBody for Logged<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>> {
        let next = self.body.as_mut().poll_next(cx);
        if let (Some(open), Poll::Ready(next)) = (&mut self.open, &next) {
            match next {
                Some(Ok(bytes)) => open.bytes += bytes.len() as u64,
                Some(Err(_)) => {}
                None => open.complete = true,
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What was written, for all who hold it.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn identifiers_of_clients_are_kept_if_they_fit() {
        let id = |text: &str| request_id(HeaderValue::from_str(text).ok().as_ref());
        assert_eq!(id("a-B_9.:/+="), "a-B_9.:/+=");
        for odd in ["", "a b", "\"", "é", &"x".repeat(129)] {
            assert!(id(odd).starts_with("req-"), "{odd}");
        }
    }

    #[test]
    fn lines_that_the_disk_cannot_keep_up_with_are_counted() {
        let (sender, receiver) = mpsc::sync_channel(4);
        let lost = AtomicU64::new(3);
        sender.send(b"{}\n".to_vec()).unwrap();
        drop(sender);
        let out = Shared::default();
        write_lines(&receiver, out.clone(), &lost).unwrap();
        assert_eq!(String::from_utf8(out.0.lock().unwrap().clone()).unwrap(), "{}\n{\"lost\":3}\n");
    }
}

//! The service: what all requests share, which resources there are, and how it starts and stops.

use std::any::Any;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix_cors::Cors;
use actix_web::dev::RequestHead;
use actix_web::http::header::{HOST, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use shimmy_runtime::models::Models;

use crate::access::Access;
use crate::access::guard::{ThroughUnixSocket, guard};
use crate::access_log::{self, AccessLog};
use crate::connections::{self, Connections};
use crate::counters::Counters;
use crate::drain::Gate;
use crate::listen::Listeners;
use crate::otlp::exporter::Exporter;
use crate::routes;
use crate::routes::body::Bodies;
use crate::routes::native::socket::SocketLimits;
use crate::routes::ollama::details::Summaries;
use crate::routes::openai::responses::store::ResponseStore;
use crate::tls::Tls;
use crate::unread;

/// HTTP threads. They only move bytes: more would take turns with the threads that compute.
const WORKERS: usize = 2;
/// The system closes a stalled connection a little later than its generation is cancelled, so that this is counted as
/// what it is.
const SYSTEM_STALL: Duration = Duration::from_secs(5);
/// How late a model may go.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// After the last generation ended: time for its last bytes to leave.
const LAST_BYTES_SECONDS: u64 = 3;

/// What is refused.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest request body.
    pub max_body_bytes: usize,
    /// All bodies that are on their way together; one that may be larger has room if it is alone.
    pub all_bodies_bytes: usize,
    /// A client that takes nothing for so long is cut off.
    pub stall: Duration,
    /// A connection on which nothing is asked stays open for so long.
    pub keep_alive: Duration,
    /// The head of a connection's first request must be there after so long; a later one when it has begun, at the
    /// latest after both times together.
    pub head: Duration,
    /// A body must be there after so long, and as long again as its bytes take at 32 KiB a second.
    pub body: Duration,
    /// Of WebSockets.
    pub sockets: SocketLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 10 << 20,
            all_bodies_bytes: 256 << 20,
            stall: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            head: Duration::from_secs(15),
            body: Duration::from_secs(30),
            sockets: SocketLimits::default(),
        }
    }
}

/// Whether the service can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The model named at the start isn't loaded yet.
    Loading,
    /// Yes.
    Ready,
    /// Running answers are finished, new ones are refused.
    Draining,
}

/// What all requests share.
pub struct AppState {
    /// Names to models.
    pub models: Models,
    /// Running generations.
    pub gate: Arc<Gate>,
    /// Connections and responses.
    pub counters: Arc<Counters>,
    /// Bodies on their way.
    pub bodies: Bodies,
    /// What runs on each connection.
    pub connections: Arc<Connections>,
    /// What is refused.
    pub limits: Limits,
    /// Who may ask, from where, and how much.
    pub access: Access,
    /// Where each request is written down, if anywhere.
    pub access_log: Option<AccessLog>,
    /// Where each request's spans go, if anywhere.
    pub tracer: Option<Exporter>,
    /// What models' files say of themselves.
    pub summaries: Summaries,
    /// When it was made.
    pub started: Instant,
    /// Responses that later requests may go on from.
    pub responses: ResponseStore,
    ready: AtomicBool,
}

impl AppState {
    /// A service over these models. It is [`Phase::Loading`] until [`AppState::set_ready`].
    pub fn new(models: Models, limits: Limits) -> Self {
        Self {
            models,
            gate: Arc::default(),
            counters: Arc::default(),
            bodies: Bodies::default(),
            connections: Arc::default(),
            limits,
            access: Access::default(),
            access_log: None,
            tracer: None,
            summaries: Summaries::default(),
            started: Instant::now(),
            responses: ResponseStore::default(),
            ready: AtomicBool::new(false),
        }
    }

    /// From now on requests are answered.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::SeqCst);
    }

    /// Whether it can answer now.
    pub fn phase(&self) -> Phase {
        if self.gate.is_closed() {
            Phase::Draining
        } else if self.ready.load(Ordering::SeqCst) {
            Phase::Ready
        } else {
            Phase::Loading
        }
    }
}

/// All resources: one line each.
pub fn configure(cfg: &mut web::ServiceConfig) {
    cfg.configure(routes::health::config)
        .configure(routes::metrics::config)
        .configure(routes::openai::config)
        .configure(routes::anthropic::config)
        .configure(routes::ollama::config)
        .configure(routes::openapi::config)
        .configure(routes::native::config)
        .configure(routes::page::config)
        .default_service(web::to(routes::not_found));
}

/// Lets the system close a connection whose client takes nothing, or has vanished without a word, for so long: the
/// service can't write to it, so only the system can let go of it.
#[cfg(target_os = "linux")]
fn close_when_stalled(connection: &dyn Any, stall: Duration) {
    if let Some(stream) = connections::tcp_of(connection)
        && let Err(error) = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(stall))
    {
        tracing::debug!("a stalled connection will stay open: {error}");
    }
}

#[cfg(not(target_os = "linux"))]
fn close_when_stalled(_: &dyn Any, _: Duration) {}

fn is_unix_socket(connection: &dyn Any) -> bool {
    #[cfg(unix)]
    return connection.is::<tokio::net::UnixStream>();
    #[cfg(not(unix))]
    return false;
}

/// Lets pages of allowed origins read the answers. Requests of others never come here, but for a browser's question whether
/// it may send one.
fn cors(state: &web::Data<AppState>) -> Cors {
    let state = state.clone();
    Cors::default()
        .allowed_origin_fn(move |origin: &HeaderValue, head: &RequestHead| {
            let host = head.headers().get(HOST).and_then(|host| host.to_str().ok());
            origin.to_str().is_ok_and(|origin| state.access.origins.allows(origin, host))
        })
        .allow_any_method()
        .allow_any_header()
        .expose_any_header()
        .max_age(600)
}

/// Lets models go whose time is over and reads files again that have changed, for ever.
async fn sweep(state: web::Data<AppState>, tls: Option<Arc<Tls>>) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (state, tls) = (state.clone(), tls.clone());
        // Letting go of a model takes a while. An error is a panic there, and the next try is as good.
        let swept = web::block(move || {
            state.access.keys.reload();
            if let Some(tls) = tls {
                tls.reload();
            }
            state.models.sweep()
        });
        if let Ok(gone @ 1..) = swept.await {
            tracing::info!("{gone} models were unused for as long as they are kept, and are unloaded");
        }
    }
}

/// Serves on `listeners` until `shutdown`, then refuses new generations, lets running ones finish for up to
/// `drain_deadline`, and returns.
///
/// # Errors
/// When a listener can't be used.
pub async fn serve(
    listeners: Listeners,
    state: web::Data<AppState>,
    drain_deadline: Duration,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let shared = state.clone();
    let Limits { keep_alive, head, .. } = state.limits;
    let stall = state.limits.stall + SYSTEM_STALL;
    let (connected, open) = (Arc::clone(&state.counters), Arc::clone(&state.connections));
    let mut server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            // The last one is asked first.
            .wrap(from_fn(guard))
            .wrap(from_fn(unread::hold))
            .wrap(cors(&shared))
            .wrap(from_fn(access_log::log))
            .wrap(from_fn(connections::count))
            .configure(configure)
    })
    .on_connect(move |connection, extensions| {
        extensions.insert(connected.connect());
        if let Some(place) = open.open(connection) {
            extensions.insert(place);
        }
        if is_unix_socket(connection) {
            extensions.insert(ThroughUnixSocket);
        }
        close_when_stalled(connection, stall);
    })
    .workers(WORKERS)
    .tcp_nodelay(true)
    // A client that closes its side has gone: this is how a vanished client stops its generation at once instead of
    // at the next failed write.
    .h1_allow_half_closed(false)
    .keep_alive(keep_alive)
    .client_request_timeout(head)
    .shutdown_timeout(LAST_BYTES_SECONDS)
    .disable_signals();
    for listener in listeners.tcp {
        server = match &listeners.tls {
            Some(tls) => server.listen_rustls_0_23(listener, tls.server_config().map_err(io::Error::other)?)?,
            None => server.listen(listener)?,
        };
    }
    #[cfg(unix)]
    for listener in listeners.unix {
        server = server.listen_uds(listener)?;
    }
    let server = server.run();
    let sweeper = actix_web::rt::spawn(sweep(state.clone(), listeners.tls));
    let closer = actix_web::rt::spawn(connections::sweep(Arc::clone(&state.connections), keep_alive + head));
    let handle = server.handle();
    let running = actix_web::rt::spawn(server);
    shutdown.await;
    sweeper.abort();
    state.gate.close();
    let count = state.gate.running();
    tracing::info!("shutting down; {count} generations still run");
    let is_idle = tokio::time::timeout(drain_deadline, state.gate.wait_idle()).await.is_ok();
    if !is_idle {
        tracing::warn!("{} generations did not end in {drain_deadline:?} and are cut off", state.gate.running());
    }
    handle.stop(is_idle).await;
    closer.abort();
    running.await.map_err(io::Error::other)?
}

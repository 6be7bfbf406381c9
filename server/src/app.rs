//! The service: what all requests share, which resources there are, and how it starts and stops.

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix_web::dev::Service;
use actix_web::{App, HttpServer, web};
use shimmy_runtime::models::Models;

use crate::counters::Counters;
use crate::drain::Gate;
use crate::error::ApiError;
use crate::routes;
use crate::routes::ollama::details::Summaries;

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
    /// A client that takes nothing for so long is cut off.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body_bytes: 10 << 20, stall: Duration::from_secs(60) }
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
    /// What is refused.
    pub limits: Limits,
    /// What models' files say of themselves.
    pub summaries: Summaries,
    ready: AtomicBool,
}

impl AppState {
    /// A service over these models. It is [`Phase::Loading`] until [`AppState::set_ready`].
    pub fn new(models: Models, limits: Limits) -> Self {
        Self {
            models,
            gate: Arc::default(),
            counters: Arc::default(),
            limits,
            summaries: Summaries::default(),
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
        .configure(routes::page::config)
        .default_service(web::to(routes::not_found));
}

/// Lets the system close a connection whose client takes nothing, or has vanished without a word, for so long: the
/// service can't write to it, so only the system can let go of it.
#[cfg(target_os = "linux")]
fn close_when_stalled(connection: &dyn Any, stall: Duration) {
    if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>()
        && let Err(error) = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(stall))
    {
        tracing::debug!("a stalled connection will stay open: {error}");
    }
}

#[cfg(not(target_os = "linux"))]
fn close_when_stalled(_: &dyn Any, _: Duration) {}

/// Lets models go whose time is over, for ever.
async fn sweep(state: web::Data<AppState>) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let state = state.clone();
        // Letting go of a model takes a while. An error is a panic there, and the next try is as good.
        if let Ok(gone @ 1..) = web::block(move || state.models.sweep()).await {
            tracing::info!("{gone} models were unused for as long as they are kept, and are unloaded");
        }
    }
}

/// Serves on `listener` until `shutdown`, then refuses new generations, lets running ones finish for up to
/// `drain_deadline`, and returns.
///
/// # Errors
/// When the listener can't be used.
pub async fn serve(
    listener: TcpListener,
    state: web::Data<AppState>,
    drain_deadline: Duration,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let shared = state.clone();
    let stall = state.limits.stall + SYSTEM_STALL;
    let (answered, connected) = (Arc::clone(&state.counters), Arc::clone(&state.counters));
    let server = HttpServer::new(move || {
        let counters = Arc::clone(&answered);
        App::new()
            .app_data(shared.clone())
            .wrap_fn(move |request, service| {
                let counters = Arc::clone(&counters);
                let start = Instant::now();
                let line =
                    tracing::enabled!(tracing::Level::INFO).then(|| format!("{} {}", request.method(), request.path()));
                let response = service.call(request);
                async move {
                    let response = response.await?;
                    let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
                    counters.respond(response.status().as_u16(), error);
                    if let Some(line) = line {
                        let ms = start.elapsed().as_secs_f64() * 1e3;
                        tracing::info!("{line} {} {ms:.1} ms", response.status().as_u16());
                    }
                    Ok(response)
                }
            })
            .configure(configure)
    })
    .on_connect(move |connection, extensions| {
        extensions.insert(connected.connect());
        close_when_stalled(connection, stall);
    })
    .workers(WORKERS)
    .tcp_nodelay(true)
    // A client that closes its side has gone: this is how a vanished client stops its generation at once instead of
    // at the next failed write.
    .h1_allow_half_closed(false)
    .keep_alive(Duration::from_secs(75))
    .client_request_timeout(Duration::from_secs(15))
    .shutdown_timeout(LAST_BYTES_SECONDS)
    .disable_signals()
    .listen(listener)?
    .run();
    let sweeper = actix_web::rt::spawn(sweep(state.clone()));
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
    running.await.map_err(io::Error::other)?
}

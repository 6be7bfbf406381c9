//! `shimmy serve`: models over HTTP.

mod access;
mod address;
mod signals;
mod traces;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use bytesize::ByteSize;
use shimmy_runtime::engine::{EngineOptions, Numerics, PrefixCache, Speculation};
use shimmy_runtime::kv::BLOCK_TOKENS;
use shimmy_runtime::models::{self, Discovered, KeepAlive, LoadOptions, Models};
use tokio::sync::Notify;

use self::access::AccessArgs;
use self::address::Address;
use self::signals::Signals;
use self::traces::TraceArgs;
use super::args::{ExecArgs, KeepArgs, RootArgs, SpeculateArgs, find};
use super::failure::usage;
use super::output;
use super::progress::Bar;
use crate::app::{self, AppState, Limits};
use crate::listen::{self, Listeners, SocketFile, State};
use crate::process;
use crate::routes::ollama::options::parse_keep_alive;

/// After the last answer: how long an engine may take to end.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Load this model at the start: a path, or a name that `shimmy list` shows. Requests that name no model get it.
    #[arg(short, long, env = "SHIMMY_BASE_GGUF")]
    model: Option<String>,
    /// Address to listen at: HOST, HOST:PORT, or `auto` [default: 127.0.0.1].
    #[arg(short, long, env = "SHIMMY_BIND_ADDRESS")]
    bind: Option<String>,
    /// Port to listen at [default: 11435, else the first free one up to 11535].
    #[arg(short, long, env = "SHIMMY_PORT")]
    port: Option<u16>,
    /// Host to listen at, if --bind names none.
    #[arg(long, env = "SHIMMY_HOST", hide = true)]
    host: Option<String>,
    /// Listen at a Unix socket, which only this user can open; at an address only if one is given too.
    #[arg(long, value_name = "PATH", env = "SHIMMY_UNIX_SOCKET")]
    unix_socket: Option<PathBuf>,
    /// Most requests that wait; more get 429.
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().queue)]
    queue: usize,
    /// Compute every prompt from its start, whatever of it was computed before.
    #[arg(long)]
    no_prefix_cache: bool,
    /// Answers to requests with a seed don't depend on what else is computed, to the last bit. Slower for few
    /// answers at once.
    #[arg(long)]
    deterministic: bool,
    /// How long a model stays loaded that was loaded for a request and that nobody uses: seconds, or a text such as 5m;
    /// negative is for ever. The one named with --model stays.
    #[arg(long, value_name = "TIME", env = "OLLAMA_KEEP_ALIVE", default_value = "5m", allow_hyphen_values = true,
          value_parser = parse_keep_alive)]
    keep_alive: KeepAlive,
    /// On SIGTERM and Ctrl-C: how long running answers may take to finish.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// A client that takes nothing of its answer for so long is cut off.
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().stall.as_secs())]
    stall_seconds: u64,
    /// Largest body of a request.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(Limits::default().max_body_bytes as u64))]
    max_body: ByteSize,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    speculate: SpeculateArgs,
    #[command(flatten)]
    exec: ExecArgs,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    roots: RootArgs,
}

/// Runs the command.
///
/// # Errors
/// See the exit codes.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    process::raise_open_files();
    let tls = args.access.tls()?;
    let pinned = args.model.as_deref().map(|model| find(model, &args.roots)).transpose()?;
    // Dropped at the end of the server, and the socket's file with it.
    let (listeners, _socket_file) = listeners(&args)?;
    let listeners = Listeners { tls, ..listeners };
    let access = args.access.rules(listeners.are_local())?;
    if !listeners.are_local() && !access.keys.is_required() {
        tracing::warn!(
            "other machines can reach {}, and this server asks nobody for a key; --api-key-file does",
            listeners.urls().join(" and ")
        );
    }
    let max_body_bytes = usize::try_from(args.max_body.as_u64()).unwrap_or(usize::MAX);
    let limits = Limits { max_body_bytes, stall: Duration::from_secs(args.stall_seconds), ..Limits::default() };
    let mut state = AppState::new(models(&args, pinned.clone())?, limits);
    state.access = access;
    state.access_log = args.access.log()?;
    state.tracer = args.traces.exporter()?;
    let state = web::Data::new(state);
    for url in listeners.urls() {
        output::write(&format!("listening on {url}\n"))?;
    }
    let (stop, failed) = (Arc::new(Notify::new()), Arc::new(std::sync::Mutex::new(None)));
    match pinned {
        Some(model) => load_in_background(model, state.clone(), Arc::clone(&stop), Arc::clone(&failed))?,
        None => {
            state.set_ready();
            listen::notify(State::Ready);
        }
    }
    let deadline = Duration::from_secs(args.drain_seconds);
    let state_at_end = state.clone();
    actix_web::rt::System::new().block_on(async move {
        let signals = Signals::new()?;
        let shutdown = async move {
            tokio::select! {
                () = signals.received() => {}
                () = stop.notified() => {}
            }
            listen::notify(State::Stopping);
        };
        app::serve(listeners, state, deadline, shutdown).await
    })?;
    // What they have computed may still be on its way to the disk.
    let models = state_at_end.models.loaded();
    models.iter().for_each(|model| model.engine.shutdown());
    for model in models {
        if !model.engine.wait_stopped(LAST_WRITES) {
            tracing::warn!(model = model.name, "it didn't end in time");
        }
    }
    // With it the access log, whose last lines are written then, and the traces, whose last spans are sent.
    drop(state_at_end);
    let failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    match failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The sockets: those that systemd opened, else those of the arguments.
fn listeners(args: &Args) -> anyhow::Result<(Listeners, Option<SocketFile>)> {
    let given = Listeners::from_systemd()?;
    if !given.is_empty() {
        return Ok((given, None));
    }
    let address = Address::parse(args.bind.as_deref(), args.host.as_deref(), args.port)?;
    let has_address = args.bind.is_some() || args.host.is_some() || args.port.is_some();
    let Some(path) = &args.unix_socket else { return Ok((address.listen()?.into(), None)) };
    #[cfg(unix)]
    {
        let (unix, file) =
            listen::at_path(path).map_err(|error| anyhow::anyhow!("can't listen at {}: {error}", path.display()))?;
        let tcp = if has_address { vec![address.listen()?] } else { vec![] };
        Ok((Listeners { tcp, unix: vec![unix], tls: None }, Some(file)))
    }
    #[cfg(not(unix))]
    {
        let _ = (path, has_address);
        Err(usage("--unix-socket: this system has none"))
    }
}

fn models(args: &Args, pinned: Option<Discovered>) -> anyhow::Result<Models> {
    let (exec, stores) = (args.exec.options(), args.keep.stores()?);
    let prefix_cache = if args.no_prefix_cache { PrefixCache::Off } else { PrefixCache::On };
    let numerics = if args.deterministic { Numerics::Invariant } else { Numerics::Fast };
    let plain = EngineOptions { queue: args.queue, prefix_cache, numerics, ..EngineOptions::default() };
    let engine = args.speculate.over(plain)?;
    let draft = args.speculate.draft(&args.roots)?;
    if draft.is_some() && pinned.is_none() {
        return Err(usage("--draft-model needs --model: it guesses for that one"));
    }
    let drafted = pinned.as_ref().map(|model| model.path.clone());
    let models = Models::new(pinned.into_iter().collect(), args.roots.roots(), move |model| {
        let bar = Bar::new(model.bytes);
        // The draft model has the vocabulary of the model that was named with it; others do without.
        let draft = draft.clone().filter(|_| drafted.as_ref() == Some(&model.path));
        let engine = match (engine.speculation, &draft) {
            (Speculation::Draft, None) => EngineOptions { speculation: Speculation::Off, ..engine },
            _ => engine,
        };
        let (exec, name) = (exec.clone(), Some(model.name.clone()));
        let options = LoadOptions { exec, engine, name, stores: stores.clone(), draft, progress: bar.watcher() };
        let loaded = models::load(&model.path, &options)?;
        let limits = loaded.engine.limits();
        let held = limits.num_kv_blocks * BLOCK_TOKENS;
        let of_windows = limits.window.map_or(String::new(), |window| {
            let held = window.num_blocks * BLOCK_TOKENS;
            format!(" ({held} of them in layers that see the last {})", window.num_tokens)
        });
        eprintln!(
            "{}: context {} tokens; KV cache {held} tokens{of_windows} in {}, up to {}",
            loaded.name,
            loaded.engine.context_tokens(),
            loaded.kv_types,
            ByteSize(loaded.kv_bytes as u64),
        );
        if let Some(placement) = &loaded.placement {
            eprintln!("{}: {placement}", loaded.name);
        }
        if let Some(draft) = &loaded.draft {
            let (name, held, bytes) = (&draft.name, draft.kv_tokens, ByteSize(draft.kv_bytes as u64));
            eprintln!("{}: draft model {name}; its KV cache {held} tokens, up to {bytes}", loaded.name);
        }
        Ok(loaded)
    });
    Ok(models.with_keep_alive(args.keep_alive))
}

type LoadFailure = Arc<std::sync::Mutex<Option<anyhow::Error>>>;

/// Loads the model named at the start, while `/health` says that it is loading. A server that can't answer ends.
fn load_in_background(
    model: Discovered,
    state: web::Data<AppState>,
    stop: Arc<Notify>,
    failed: LoadFailure,
) -> anyhow::Result<()> {
    std::thread::Builder::new().name("load".into()).spawn(move || match state.models.get(&model.name) {
        Ok(loaded) => {
            tracing::info!("{} is ready after {:.0} ms", loaded.name, loaded.load_time.as_secs_f64() * 1e3);
            state.set_ready();
            listen::notify(State::Ready);
        }
        Err(error) => {
            *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error.into());
            stop.notify_one();
        }
    })?;
    Ok(())
}

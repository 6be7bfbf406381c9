//! `shimmy serve`: models over HTTP.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use bytesize::ByteSize;
use shimmy_runtime::engine::{EngineOptions, Numerics, PrefixCache, Speculation};
use shimmy_runtime::kv::BLOCK_TOKENS;
use shimmy_runtime::models::{self, Discovered, KeepAlive, LoadOptions, Models};
use tokio::sync::Notify;

use super::args::{ExecArgs, KeepArgs, RootArgs, SpeculateArgs, find};
use super::failure::usage;
use super::output;
use super::progress::Bar;
use crate::app::{self, AppState, Limits};
use crate::process;
use crate::routes::ollama::options::parse_keep_alive;

/// The first port that is tried, and the last.
const PORTS: std::ops::RangeInclusive<u16> = 11435..=11535;

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
    let address = Address::new(&args)?;
    let pinned = args.model.as_deref().map(|model| find(model, &args.roots)).transpose()?;
    let listener = address.listen()?;
    let limits = Limits { stall: Duration::from_secs(args.stall_seconds), ..Limits::default() };
    let state = web::Data::new(AppState::new(models(&args, pinned.clone())?, limits));
    let bound = listener.local_addr()?;
    if !bound.ip().is_loopback() {
        tracing::warn!("{bound} can be reached from other machines, and this server asks nobody for a key");
    }
    output::write(&format!("listening on http://{bound}\n"))?;
    let (stop, failed) = (Arc::new(Notify::new()), Arc::new(std::sync::Mutex::new(None)));
    match pinned {
        Some(model) => load_in_background(model, state.clone(), Arc::clone(&stop), Arc::clone(&failed))?,
        None => state.set_ready(),
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
        };
        app::serve(listener, state, deadline, shutdown).await
    })?;
    // What they have computed may still be on its way to the disk.
    let models = state_at_end.models.loaded();
    models.iter().for_each(|model| model.engine.shutdown());
    for model in models {
        if !model.engine.wait_stopped(LAST_WRITES) {
            tracing::warn!(model = model.name, "it didn't end in time");
        }
    }
    let failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    match failed {
        Some(error) => Err(error),
        None => Ok(()),
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
        }
        Err(error) => {
            *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error.into());
            stop.notify_one();
        }
    })?;
    Ok(())
}

/// A second signal this soon is the same wish: a terminal and a wrapping script both pass Ctrl-C on.
const SAME_WISH: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }

    /// Returns at the first signal; a second, later one ends the process at once.
    async fn received(mut self) {
        self.next().await;
        actix_web::rt::spawn(async {
            tokio::time::sleep(SAME_WISH).await;
            // A new one doesn't know of the signals of the last second.
            if let Ok(mut signals) = Self::new() {
                signals.next().await;
                std::process::exit(i32::from(super::failure::INTERRUPTED));
            }
        });
    }
}

/// Where to listen, as the arguments say.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    host: String,
    /// `None`: any of [`PORTS`].
    port: Option<u16>,
}

impl Address {
    fn new(args: &Args) -> anyhow::Result<Self> {
        Self::parse(args.bind.as_deref(), args.host.as_deref(), args.port)
    }

    /// `bind` is HOST, HOST:PORT, [IPv6]:PORT or `auto`; `port` beats the port in it.
    fn parse(bind: Option<&str>, host: Option<&str>, port: Option<u16>) -> anyhow::Result<Self> {
        let given = |text: Option<&str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let host = given(host).unwrap_or_else(|| "127.0.0.1".into());
        let Some(bind) = given(bind).filter(|bind| bind != "auto") else { return Ok(Self { host, port }) };
        if let Ok(address) = bind.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: port.or(Some(address.port())) });
        }
        match bind.rsplit_once(':') {
            // `::1` and the like.
            _ if bind.parse::<std::net::IpAddr>().is_ok() => Ok(Self { host: bind, port }),
            Some((of_bind, in_bind)) => {
                let wrong = || usage(format!("--bind {bind}: `{in_bind}` is no port; write HOST or HOST:PORT"));
                let in_bind = in_bind.parse().map_err(|_| wrong())?;
                let host = if of_bind.is_empty() { host } else { of_bind.to_owned() };
                Ok(Self { host, port: port.or(Some(in_bind)) })
            }
            None => Ok(Self { host: bind, port }),
        }
    }

    fn listen(&self) -> anyhow::Result<TcpListener> {
        let bind = |port: u16| {
            (self.host.as_str(), port).to_socket_addrs().and_then(|all| TcpListener::bind(&*all.collect::<Vec<_>>()))
        };
        if let Some(port) = self.port {
            return bind(port).map_err(|error| {
                anyhow::anyhow!("can't listen at {}:{port}: {error}; choose another with --port", self.host)
            });
        }
        let mut last = None;
        for port in PORTS {
            match bind(port) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
                Err(error) => anyhow::bail!("can't listen at {}:{port}: {error}", self.host),
            }
        }
        let error = last.map(|error| error.to_string()).unwrap_or_default();
        anyhow::bail!("no free port at {} from {} to {}: {error}", self.host, PORTS.start(), PORTS.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_their_forms() {
        let parse = |bind: &str, host: &str, port| {
            let address = Address::parse(Some(bind), Some(host), port).unwrap();
            (address.host, address.port)
        };
        assert_eq!(parse("", "", None), ("127.0.0.1".into(), None));
        assert_eq!(parse("auto", "", None), ("127.0.0.1".into(), None));
        assert_eq!(parse("0.0.0.0", "", None), ("0.0.0.0".into(), None));
        assert_eq!(parse("0.0.0.0:80", "", None), ("0.0.0.0".into(), Some(80)));
        assert_eq!(parse("localhost:80", "", Some(81)), ("localhost".into(), Some(81)));
        assert_eq!(parse(":80", "10.0.0.1", None), ("10.0.0.1".into(), Some(80)));
        assert_eq!(parse("[::1]:80", "", None), ("::1".into(), Some(80)));
        assert_eq!(parse("::1", "", None), ("::1".into(), None));
        assert_eq!(parse("", "10.0.0.1", Some(5)), ("10.0.0.1".into(), Some(5)));
        assert!(Address::parse(Some("localhost:http"), None, None).is_err());
    }

    #[test]
    fn the_next_free_port_is_taken_unless_one_was_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Address { host: "127.0.0.1".into(), port: Some(port) }.listen().unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        let any = Address { host: "127.0.0.1".into(), port: None };
        let (first, second) = (any.listen().unwrap(), any.listen().unwrap());
        let ports = [&first, &second].map(|listener| listener.local_addr().unwrap().port());
        assert!(ports[0] < ports[1] && ports.iter().all(|port| PORTS.contains(port)), "{ports:?}");
    }
}

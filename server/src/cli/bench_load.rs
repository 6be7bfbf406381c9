//! `shimmy bench --serve-load`: a server under load, this build's own or any other that speaks OpenAI's protocol.

use std::io::IsTerminal;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use actix_web::web;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use shimmy_runtime::engine::EngineOptions;
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::models::{self, Discovered, LoadOptions, Models};
use shimmy_runtime::text::Tokenizer;
use tokio::sync::Notify;

use super::args::{ExecArgs, RootArgs, find};
use super::failure::usage;
use super::output;
use crate::app::{self, AppState, Limits};
use crate::load::client::{Api, Target};
use crate::load::drive::{Arrivals, Extent, Load, Shape, drive};
use crate::load::plot;
use crate::load::report::{Level, Report};
use crate::load::workload::{Length, Prompts};

/// Seconds of an open loop, if nothing says when it ends.
const OPEN_SECONDS: f64 = 30.0;
/// Requests of a closed loop, if nothing says when it ends: so many a client, and at least so many.
const CLOSED_REQUESTS: [usize; 2] = [4, 16];
/// Requests before the measured ones of an open loop.
const OPEN_WARMUP: usize = 4;
/// Numbers of the first requests of loads and of warm-ups are so far apart: no prompt is sent twice.
const LOAD_INDEX: u64 = 1 << 32;
const WARMUP_INDEX: u64 = 1 << 48;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A server under load")]
pub(super) struct Args {
    /// Measure a server under load: this build's own, started for it, or the one at --url.
    #[arg(long)]
    pub(super) serve_load: bool,
    /// Address of a running server that streams OpenAI's completions, as http://HOST:PORT. MODEL, if given, is only the
    /// tokenizer for prompts of exact lengths.
    #[arg(long, requires = "serve_load")]
    url: Option<String>,
    /// Name of the model in requests to --url [default: none is sent].
    #[arg(long, value_name = "NAME", requires = "url")]
    model_name: Option<String>,
    /// Which resource.
    #[arg(long, value_enum, default_value_t, requires = "serve_load")]
    api: Api,
    /// Clients that each send their next request when the last one is answered; one load each.
    #[arg(long, value_name = "N,N…", value_delimiter = ',', default_value = "1,4,16,64", requires = "serve_load")]
    concurrency: Vec<NonZeroUsize>,
    /// Requests a second that wait for nobody, at random times (Poisson), instead of clients; one load each.
    #[arg(long, value_name = "R,R…", value_delimiter = ',', requires = "serve_load")]
    rate: Vec<f64>,
    /// Requests of a load [default: 4 a client and at least 16].
    #[arg(long, value_name = "N", requires = "serve_load", conflicts_with = "duration")]
    requests: Option<NonZeroUsize>,
    /// Seconds in which requests of a load are sent [default with --rate: 30].
    #[arg(long, value_name = "SECONDS", requires = "serve_load")]
    duration: Option<f64>,
    /// Requests before the measured ones [default: one a client; with --rate 4].
    #[arg(long, value_name = "N", requires = "serve_load")]
    warmup: Option<usize>,
    /// Tokens of a prompt: N, LEAST-MOST, or lognormal:MEDIAN:SIGMA. Without a tokenizer they are words.
    #[arg(long, value_name = "LENGTH", default_value = "64", requires = "serve_load")]
    prompt_tokens: Length,
    /// Tokens of an answer, in the same forms.
    #[arg(long, value_name = "LENGTH", default_value = "64", requires = "serve_load")]
    output_tokens: Length,
    /// Let all prompts start with the same N tokens. Without it, no two prompts share anything.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "serve_load")]
    shared_prefix: usize,
    /// Temperature of the sampler; 0 always takes the most probable token.
    #[arg(long, value_name = "T", default_value_t = 0.0, requires = "serve_load")]
    load_temperature: f32,
    /// Of lengths, prompts, arrivals and samplers.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "serve_load")]
    load_seed: u64,
    /// A request that takes longer has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "serve_load")]
    limit: u64,
    /// Folder for load.json, load.md and load.svg.
    #[arg(long, value_name = "FOLDER", requires = "serve_load")]
    out: Option<PathBuf>,
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Print {
    /// A Markdown table.
    Markdown,
    /// The whole report.
    Json,
}

impl Args {
    /// The loads, in their order.
    fn arrivals(&self) -> anyhow::Result<Vec<Arrivals>> {
        if self.rate.is_empty() {
            return Ok(self.concurrency.iter().map(|clients| Arrivals::Concurrency(clients.get())).collect());
        }
        match self.rate.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
            Some(rate) => Err(usage(format!("--rate {rate}: a rate is above 0"))),
            None => Ok(self.rate.iter().map(|&rate| Arrivals::Rate(rate)).collect()),
        }
    }

    fn extent(&self) -> anyhow::Result<Option<Extent>> {
        match (self.requests, self.duration) {
            (_, Some(seconds)) if !(seconds.is_finite() && seconds > 0.0) => {
                Err(usage(format!("--duration {seconds}: seconds are above 0")))
            }
            (_, Some(seconds)) => Ok(Some(Extent::Seconds(seconds))),
            (Some(requests), None) => Ok(Some(Extent::Requests(requests.get()))),
            (None, None) => Ok(None),
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            prompt: self.prompt_tokens,
            output: self.output_tokens,
            shared_prefix: self.shared_prefix,
            temperature: self.load_temperature,
            seed: self.load_seed,
            limit: Duration::from_secs(self.limit),
        }
    }
}

fn default_extent(arrivals: Arrivals) -> Extent {
    let [each, least] = CLOSED_REQUESTS;
    match arrivals {
        Arrivals::Concurrency(clients) => Extent::Requests((clients * each).max(least)),
        Arrivals::Rate(_) => Extent::Seconds(OPEN_SECONDS),
    }
}

/// Runs the command.
///
/// # Errors
/// When no server can be started or reached, or when requests failed.
pub(super) fn run(
    args: &Args,
    model: Option<&str>,
    exec: &ExecArgs,
    roots: &RootArgs,
    print: Print,
) -> anyhow::Result<()> {
    let (arrivals, extent, shape) = (args.arrivals()?, args.extent()?, args.shape());
    let found = model.map(|model| find(model, roots)).transpose()?;
    let (target, prompts, server, _own);
    match (&args.url, &found) {
        (Some(url), found) => {
            target = Target::new(url, args.api, args.model_name.clone()).map_err(|error| usage(error.to_string()))?;
            prompts = match found {
                Some(found) => Prompts::exact(Arc::new(Tokenizer::for_model(&ModelFile::open(&found.path)?)?)),
                None => Prompts::words(),
            };
            (server, _own) = (url.clone(), None);
        }
        (None, Some(found)) => {
            let own = OwnServer::start(found, exec)?;
            target = Target::new(&own.url, args.api, None)?;
            prompts = Prompts::exact(own.tokenizer()?);
            (server, _own) = (format!("shimmy {}", env!("CARGO_PKG_VERSION")), Some(own));
        }
        (None, None) => return Err(usage("name a model, or a running server with --url")),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let target = Arc::new(target);
    let mut levels = Vec::new();
    for (number, &arrivals) in (0..).zip(&arrivals) {
        let measured = extent.unwrap_or_else(|| default_extent(arrivals));
        let warmup = args.warmup.unwrap_or(match arrivals {
            Arrivals::Concurrency(clients) => clients,
            Arrivals::Rate(_) => OPEN_WARMUP,
        });
        let run = |extent: Extent, first_index: u64, what: &str| {
            let load = Load { arrivals, extent, shape, first_index: first_index + number * LOAD_INDEX };
            let bar = bar(extent, what);
            let ticking = bar.clone();
            let outcome = runtime.block_on(drive(&target, &prompts, &load, move || ticking.inc(1)));
            bar.finish_and_clear();
            outcome
        };
        if warmup > 0 {
            run(Extent::Requests(warmup), WARMUP_INDEX, "warm-up")?;
        }
        let outcome = run(measured, 0, &format!("load {} of {}", number + 1, args.loads()))?;
        if let Some(failure) = outcome.failed.first() {
            tracing::warn!("{} requests failed; the first: {failure}", outcome.failed.len());
        }
        levels.push(Level::new(arrivals, &outcome));
    }
    let model = found.map(|found| found.name).or_else(|| args.model_name.clone());
    let report = Report { server, model, api: args.api, shape, extent, levels };
    if let Some(folder) = &args.out {
        write(folder, &report)?;
    }
    match print {
        Print::Markdown => output::write(&report.markdown())?,
        Print::Json => output::json(&report)?,
    }
    let failed: usize = report.levels.iter().map(Level::failed).sum();
    anyhow::ensure!(failed == 0, "{failed} requests have no whole answer; the report says of which kinds");
    Ok(())
}

impl Args {
    fn loads(&self) -> usize {
        if self.rate.is_empty() { self.concurrency.len() } else { self.rate.len() }
    }
}

fn write(folder: &Path, report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let json = serde_json::to_string_pretty(report)? + "\n";
    for (name, text) in [("load.json", json), ("load.md", report.markdown()), ("load.svg", plot::svg(report))] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A bar on stderr, if somebody watches.
fn bar(extent: Extent, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, style) = match extent {
        Extent::Requests(requests) => {
            (ProgressBar::new(requests as u64), "{msg:>14} [{bar:40}] {pos}/{len} requests {elapsed}")
        }
        Extent::Seconds(_) => (ProgressBar::new_spinner(), "{msg:>14} {spinner} {pos} requests {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// This build's server on a port that the system chose; drained when dropped.
struct OwnServer {
    url: String,
    state: web::Data<AppState>,
    name: String,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl OwnServer {
    fn start(found: &Discovered, exec: &ExecArgs) -> anyhow::Result<Self> {
        let exec = exec.options();
        let models = Models::new(vec![found.clone()], vec![], move |model| {
            let (name, engine) = (Some(model.name.clone()), EngineOptions::default());
            models::load(&model.path, &LoadOptions { exec: exec.clone(), engine, name, ..LoadOptions::default() })
        });
        let state = web::Data::new(AppState::new(models, Limits::default()));
        state.models.get(&found.name)?;
        state.set_ready();
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let stop = Arc::new(Notify::new());
        let (shared, stopped) = (state.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            let shutdown = async move { stopped.notified().await };
            actix_web::rt::System::new().block_on(app::serve(listener.into(), shared, Duration::from_secs(1), shutdown))
        })?;
        Ok(Self { url, state, name: found.name.clone(), stop, thread: Some(thread) })
    }

    fn tokenizer(&self) -> anyhow::Result<Arc<Tokenizer>> {
        Ok(Arc::clone(&self.state.models.get(&self.name)?.tokenizer))
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("the server ended with an error: {error}");
        }
    }
}

//! `shimmy bench`: tokens per second of a model, and what this machine could do at most.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use serde_json::json;
use shimmy_kernels::cpu::{CpuKernels, ceiling, topology};
use shimmy_runtime::exec;
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::measure::speed::{self, Workload, median};
use shimmy_runtime::plan::{OutputKind, cost};

use super::args::{ExecArgs, RootArgs, find};
use super::failure::usage;
use super::output;

/// Measure how fast a model runs here.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file, a folder or a name that `shimmy list` shows.
    #[arg(required_unless_present = "ceilings")]
    model: Option<String>,
    /// Tokens of the prompt; 0 leaves prefill out.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens decoded one by one from an empty context; 0 leaves decode out.
    #[arg(long, value_name = "N", default_value_t = 128)]
    generate: usize,
    /// Repetitions; the median counts.
    #[arg(long, value_name = "N", default_value = "5")]
    repeat: NonZeroUsize,
    /// Measure this machine instead: read bandwidth and integer multiply-adds on all threads.
    #[arg(long)]
    ceilings: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    roots: RootArgs,
    #[command(flatten)]
    exec: ExecArgs,
}

/// Runs the command.
///
/// # Errors
/// When the model can't be loaded or the workload doesn't fit.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let threads = args.exec.threads.map_or_else(topology::default_workers, NonZeroUsize::get);
    if args.ceilings {
        return ceilings(threads, args.json);
    }
    let Some(model) = &args.model else { return Err(usage("name a model, or ask for --ceilings")) };
    let found = find(model, &args.roots)?;

    let start = Instant::now();
    let file = ModelFile::open(&found.path)?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    let open_rss = resident_peak();
    let (_, plan) = shimmy_runtime::arch::load(&file, OutputKind::Logits)?;
    let mut executor = exec::build(&plan, &args.exec.options())?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;

    let work = Workload { prompt: args.prompt, generate: args.generate, repeat: args.repeat.get() };
    let speed = speed::measure(&mut *executor, plan.vocab_size, work, |_| {})?;
    let bytes_per_token = plan.total_cost(&cost::Workload::decode(0)).weight_bytes;
    let gb_per_s = median(&speed.decode) * bytes_per_token as f64 / 1e9;
    if args.json {
        return output::json(&json!({
            "model": found.name,
            "executor": executor.name(),
            "threads": threads,
            "prompt": args.prompt,
            "generate": args.generate,
            "open_ms": open_ms,
            "open_peak_rss_bytes": open_rss,
            "peak_rss_bytes": resident_peak(),
            "load_ms": load_ms,
            "prefill_tokens_per_s": speed.prefill,
            "decode_tokens_per_s": speed.decode,
            "decode_weight_bytes_per_token": bytes_per_token,
            "decode_gb_per_s": gb_per_s,
        }));
    }
    let spread = |values: &[f64]| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        format!("{:.1} tokens/s (of {} runs: {least:.1} to {most:.1})", median(values), values.len())
    };
    let mut text = format!(
        "{} on {}, {threads} threads; header read in {open_ms:.1} ms, ready after {load_ms:.1} ms\n\
         peak memory: {} with the header read, {} at the end\n",
        found.name,
        executor.name(),
        memory(open_rss),
        memory(resident_peak())
    );
    if !speed.prefill.is_empty() {
        text += &format!("prefill {:>4}: {}\n", args.prompt, spread(&speed.prefill));
    }
    if !speed.decode.is_empty() {
        text += &format!("decode  {:>4}: {}, {gb_per_s:.1} GB/s of weights\n", args.generate, spread(&speed.decode));
    }
    output::write(&text)
}

/// The largest resident size of this process so far, in bytes; `None` where the system doesn't tell.
fn resident_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

fn memory(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".into(), output::bytes)
}

fn ceilings(threads: usize, json: bool) -> anyhow::Result<()> {
    // Larger than any cache; read a few times, of which the best counts.
    let bandwidth = ceiling::ReadBuffer::new(1 << 30).read_bandwidth(threads, 5) / 1e9;
    let multiply_adds = ceiling::int8_peak(CpuKernels::detect().isa(), threads, Duration::from_millis(500))
        .map(|per_second| per_second / 1e9);
    if json {
        return output::json(&json!({
            "threads": threads,
            "read_gb_per_s": bandwidth,
            "int8_gmac_per_s": multiply_adds,
        }));
    }
    output::write(&format!(
        "{threads} threads: read bandwidth {bandwidth:.1} GB/s, int8 {} G multiply-adds/s\n",
        multiply_adds.map_or("unknown".into(), |peak| format!("{peak:.0}"))
    ))
}

//! `shimmy bench`: tokens per second of a model, what they cost, and what this machine could do at most.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use shimmy_kernels::cpu::{CpuKernels, ceiling, topology};
use shimmy_runtime::exec::{self, KvSize, WindowKv};
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::measure::speed::{self, Workload, median};
use shimmy_runtime::plan::{OutputKind, Plan, cost};

use super::args::{ExecArgs, RootArgs, find};
use super::bench_load::{self, Print};
use super::failure::usage;
use super::output;
use crate::process::peak_resident_bytes;

/// Measure how fast a model runs here.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file, a folder or a name that `shimmy list` shows.
    #[arg(required_unless_present_any = ["ceilings", "url"])]
    model: Option<String>,
    /// Tokens of the prompt; 0 leaves prefill out.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens decoded one by one; 0 leaves decode out.
    #[arg(long, value_name = "N", default_value_t = 128)]
    generate: usize,
    /// Tokens in the context before the prompt, and before what is decoded.
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Sequences that decode together; the rate counts the tokens of all.
    #[arg(long, value_name = "N", default_value = "1")]
    parallel: NonZeroUsize,
    /// Repetitions; the median counts.
    #[arg(long, value_name = "N", default_value = "5")]
    repeat: NonZeroUsize,
    /// Measure this machine instead: read bandwidth and multiply-adds on all threads.
    #[arg(long)]
    ceilings: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: bench_load::Args,
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
    if args.load.serve_load {
        let print = if args.json { Print::Json } else { Print::Markdown };
        return bench_load::run(&args.load, args.model.as_deref(), &args.exec, &args.roots, print);
    }
    let Some(model) = &args.model else { return Err(usage("name a model, or ask for --ceilings")) };
    let found = find(model, &args.roots)?;

    let start = Instant::now();
    let file = ModelFile::open(&found.path)?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    let open_rss = peak_resident_bytes();
    let (_, plan) = shimmy_runtime::arch::load(&file, OutputKind::Logits)?;
    let work = Workload {
        depth: args.depth,
        prompt: args.prompt,
        generate: args.generate,
        parallel: args.parallel.get(),
        repeat: args.repeat.get(),
    };
    // As large as the work needs: with less memory than one full context, the bench runs all the same.
    let mut options = args.exec.options();
    // Its steps go back to positions that they have left.
    options.window_kv = WindowKv::All;
    options.max_context = options.max_context.or(Some(work.sequence_tokens().max(1)));
    if options.kv_size == KvSize::Auto {
        options.kv_size = KvSize::Tokens(work.kv_tokens().max(1));
    }
    let mut executor = exec::build(&plan, &options)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;

    let speed = speed::measure(&mut *executor, plan.vocab_size, work, |_| {})?;
    let cost = Costs::new(&plan, &work);
    let gb_per_s = median(&speed.decode) / work.parallel as f64 * cost.decode_weight_bytes as f64 / 1e9;
    if args.json {
        return output::json(&json!({
            "model": found.name,
            "executor": executor.name(),
            "placement": executor.placement(),
            "threads": threads,
            "prompt": args.prompt,
            "generate": args.generate,
            "depth": args.depth,
            "parallel": args.parallel,
            "open_ms": open_ms,
            "open_peak_rss_bytes": open_rss,
            "peak_rss_bytes": peak_resident_bytes(),
            "load_ms": load_ms,
            "prefill_tokens_per_s": speed.prefill,
            "decode_tokens_per_s": speed.decode,
            "decode_gb_per_s": gb_per_s,
            "cost": cost,
        }));
    }
    let spread = |values: &[f64]| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        format!("{:.1} tokens/s (of {} runs: {least:.1} to {most:.1})", median(values), values.len())
    };
    let placement = executor.placement().map_or(String::new(), |placement| format!(" ({placement})"));
    let mut text = format!(
        "{} on {}{placement}, {threads} threads; header read in {open_ms:.1} ms, ready after {load_ms:.1} ms\n\
         peak memory: {} with the header read, {} at the end\n",
        found.name,
        executor.name(),
        memory(open_rss),
        memory(peak_resident_bytes())
    );
    if !speed.prefill.is_empty() {
        text += &format!("prefill {:>4}: {}\n", args.prompt, spread(&speed.prefill));
    }
    if !speed.decode.is_empty() {
        text += &format!("decode  {:>4}: {}, {gb_per_s:.1} GB/s of weights\n", args.generate, spread(&speed.decode));
    }
    output::write(&text)
}

/// What the work needs at least, to be divided by what the machine can do.
#[derive(Debug, Serialize)]
struct Costs {
    /// Of the whole prompt; its weights count once.
    prefill_bytes: u64,
    /// Of the whole prompt.
    prefill_multiply_adds: cost::MultiplyAdds,
    /// Weights that a decode step reads.
    decode_weight_bytes: u64,
    /// Weights and keys and values that a decode step reads, in the middle of the decoding.
    decode_bytes: u64,
    /// Of a decode step.
    decode_multiply_adds: cost::MultiplyAdds,
}

impl Costs {
    fn new(plan: &Plan, work: &Workload) -> Self {
        let context = work.depth + work.prompt;
        let prompt = cost::Workload { num_tokens: work.prompt, context, ..cost::Workload::prefill(work.prompt) };
        let one = cost::Workload::decode(work.depth + work.generate / 2 + 1);
        let step = cost::Workload { num_tokens: work.parallel, num_outputs: work.parallel, ..one };
        let (prefill, decode) = (plan.total_cost(&prompt), plan.total_cost(&one));
        Self {
            prefill_bytes: prefill.weight_bytes + prefill.kv_bytes,
            prefill_multiply_adds: plan.multiply_adds(&prompt),
            decode_weight_bytes: decode.weight_bytes,
            decode_bytes: decode.weight_bytes + work.parallel as u64 * decode.kv_bytes,
            decode_multiply_adds: plan.multiply_adds(&step),
        }
    }
}

fn memory(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".into(), output::bytes)
}

fn ceilings(threads: usize, json: bool) -> anyhow::Result<()> {
    // Larger than any cache; read a few times, of which the best counts.
    let bandwidth = ceiling::ReadBuffer::new(1 << 30).read_bandwidth(threads, 5) / 1e9;
    let (isa, duration) = (CpuKernels::detect().isa(), Duration::from_millis(300));
    let giga = |per_second: Option<f64>| per_second.map(|per_second| per_second / 1e9);
    let int8 = giga(ceiling::int8_peak(isa, threads, duration));
    let f32 = giga(ceiling::f32_peak(isa, threads, duration));
    let bf16 = giga(ceiling::bf16_peak(isa, threads, duration));
    let known = |peak: Option<f64>| peak.map_or("none".into(), |peak| format!("{peak:.0}"));
    if json {
        return output::json(&json!({
            "threads": threads,
            "read_gb_per_s": bandwidth,
            "int8_gmac_per_s": int8,
            "f32_gmac_per_s": f32,
            "bf16_gmac_per_s": bf16,
        }));
    }
    output::write(&format!(
        "{threads} threads: read bandwidth {bandwidth:.1} GB/s; G multiply-adds/s: int8 {}, f32 {}, bf16 {}\n",
        known(int8),
        known(f32),
        known(bf16)
    ))
}

//! `shimmy probe`: what this machine offers and, for a model, what would run it.

use std::fmt::Write;

use serde::Serialize;
use shimmy_kernels::{cpu, cuda};
use shimmy_runtime::exec::Backend;
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::plan::OutputKind;

use super::args::{ExecArgs, RootArgs, find};
use super::output;
use crate::process::{meminfo, proc_field};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a folder with safetensors, or a name that `shimmy list` shows.
    model: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    exec: ExecArgs,
    #[command(flatten)]
    roots: RootArgs,
}

#[derive(Serialize)]
struct Machine {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
    cpu: Option<String>,
    cpu_features: Vec<&'static str>,
    isa: &'static str,
    /// Hardware threads that this process may use.
    available_threads: Option<usize>,
    /// Workers of the cpu executor, unless told otherwise.
    default_workers: usize,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    cuda: String,
    cuda_devices: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Model>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    architecture: String,
    weight_bytes: u64,
    /// Of the context that the executor would offer.
    kv_bytes: u64,
    context: usize,
    /// What would run it.
    executor: String,
    /// Which layers run where, if that isn't one place.
    placement: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the model's file is damaged or nothing here can run it.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let driver = cuda::probe();
    let cuda_devices = match &driver {
        cuda::Driver::Present { devices, .. } => devices.iter().map(|device| device.name.clone()).collect(),
        _ => Vec::new(),
    };
    let machine = Machine {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        cpu: proc_field("/proc/cpuinfo", "model name"),
        cpu_features: cpu::CpuKernels::features(),
        isa: cpu::CpuKernels::detect().isa().name(),
        available_threads: std::thread::available_parallelism().ok().map(Into::into),
        default_workers: args.exec.threads.map_or_else(cpu::topology::default_workers, Into::into),
        memory_bytes: meminfo("MemTotal"),
        memory_available_bytes: meminfo("MemAvailable"),
        cuda: driver.to_string(),
        cuda_devices,
        model: args.model.as_deref().map(|model| probe_model(model, &args)).transpose()?,
    };
    if args.json { output::json(&machine) } else { output::write(&text(&machine)) }
}

/// Builds the executor for real, but with a context of one block: whether a plan can run is the executor's to say.
fn probe_model(model: &str, args: &Args) -> anyhow::Result<Model> {
    let found = find(model, &args.roots)?;
    let file = ModelFile::open(&found.path)?;
    let (config, plan) = shimmy_runtime::arch::load(&file, OutputKind::Logits)?;
    let mut options = args.exec.options();
    let context = options.max_context.unwrap_or(plan.max_context).min(plan.max_context);
    options.max_context = Some(context.min(shimmy_runtime::kv::BLOCK_TOKENS));
    options.max_step_tokens = options.max_step_tokens.min(shimmy_runtime::kv::BLOCK_TOKENS);
    let executor = shimmy_runtime::exec::build(&plan, &options)?;
    let kv_bytes = shimmy_runtime::exec::kv_bytes_of_context(&plan, &args.exec.options(), executor.kv_types(), context);
    let (executor, placement) = (executor.name(), executor.placement().map(str::to_owned));
    let executor = match options.backend {
        Backend::Auto => executor.to_owned(),
        Backend::Cpu | Backend::Candle | Backend::Cuda => format!("{executor} (forced)"),
    };
    Ok(Model {
        name: found.name,
        architecture: config.architecture,
        weight_bytes: file.tensor_bytes(),
        kv_bytes: kv_bytes as u64,
        context,
        executor,
        placement,
    })
}

fn text(machine: &Machine) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    let unknown = || "unknown".to_owned();
    line("shimmy", machine.version);
    line("system", &format!("{} {}", machine.os, machine.arch));
    line("cpu", &machine.cpu.clone().unwrap_or_else(unknown));
    line("kernels", machine.isa);
    line("features", &machine.cpu_features.join(" "));
    let threads = machine.available_threads.map_or_else(unknown, |threads| threads.to_string());
    line("threads", &format!("{threads} available, {} workers", machine.default_workers));
    let size = |bytes: Option<u64>| bytes.map_or_else(unknown, output::bytes);
    line("memory", &format!("{}, {} available", size(machine.memory_bytes), size(machine.memory_available_bytes)));
    line("cuda", &machine.cuda);
    if let Some(model) = &machine.model {
        line("", "");
        line("model", &format!("{} ({})", model.name, model.architecture));
        line("executor", &model.executor);
        if let Some(placement) = &model.placement {
            line("", placement);
        }
        line("weights", &output::bytes(model.weight_bytes));
        line("kv cache", &format!("{} for a context of {} tokens", output::bytes(model.kv_bytes), model.context));
    }
    text
}

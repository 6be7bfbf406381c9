//! The fast executor for CPUs: a plan's [program](shimmy_kernels::program) on a team of pinned workers.

use std::borrow::Cow;

use shimmy_kernels::cpu::program::Program;
use shimmy_kernels::cpu::{CpuKernels, topology};
use shimmy_kernels::program::{ProgramBuilder, ProgramSize, Span};

use crate::error::{Error, Result};
use crate::exec::build::{available_memory, in_mib};
use crate::exec::lower::{lower, program_size};
use crate::exec::options::{Activations, ExecOptions, WeightMemory};
use crate::exec::program::ProgramExecutor;
use crate::loader::Bytes;
use crate::plan::Plan;

/// Runs a plan on the CPU.
pub type CpuExecutor = ProgramExecutor<Program>;

impl CpuExecutor {
    /// Lowers the plan and allocates everything that a step needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the op or the weight type that has no instruction, [`Error::OutOfMemory`].
    pub fn new(plan: &Plan, options: &ExecOptions) -> Result<Self> {
        Self::with_kernels(plan, options, CpuKernels::detect())
    }

    /// As [`Self::new`], with kernels of a chosen instruction set (tests).
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_kernels(plan: &Plan, options: &ExecOptions, kernels: CpuKernels) -> Result<Self> {
        // First: what the cache may take is counted from the memory that is left.
        let plan = match options.weight_memory {
            WeightMemory::Mapped => Cow::Borrowed(plan),
            WeightMemory::Copied => Cow::Owned(with_copied_weights(plan)?),
        };
        let plan = &*plan;
        let limits = super::limits(plan, options, options.kv_types)?;
        let (builder, output) = lower(plan, options, &limits)?;
        let program = machine(kernels, options, builder, Some(output), program_size(plan, options, &limits))?;
        Self::around(program, plan, options, limits)
    }
}

/// The plan with its weights in memory of their own.
fn with_copied_weights(plan: &Plan) -> Result<Plan> {
    let mut plan = plan.clone();
    let weights: Vec<Bytes> = plan.weights.iter().map(|weight| weight.view.data.clone()).collect();
    let size = weights.iter().map(|bytes| bytes.len()).sum();
    let advice = "leave `--no-mmap` out, and the weights stay in the file's pages";
    if let Some(free) = available_memory().filter(|&free| free < size) {
        let (size, free) = (in_mib(size), in_mib(free));
        return Err(Error::OutOfMemory(format!("a copy of the weights takes {size}, and {free} are free: {advice}")));
    }
    let copies = Bytes::copied(&weights)
        .map_err(|error| Error::OutOfMemory(format!("a copy of the weights, {}: {error}; {advice}", in_mib(size))))?;
    for (weight, copy) in plan.weights.iter_mut().zip(copies) {
        weight.view.data = copy;
    }
    Ok(plan)
}

/// The machine for a program or a stage of one.
pub(super) fn machine(
    kernels: CpuKernels,
    options: &ExecOptions,
    builder: ProgramBuilder,
    output: Option<Span>,
    size: ProgramSize,
) -> Result<Program> {
    // Exact means that activations aren't rounded to bf16 either.
    let kernels = if options.activations == Activations::F32 { kernels.without_bf16() } else { kernels };
    let workers = options.threads.unwrap_or_else(topology::default_workers);
    let program = Program::new(kernels, workers, builder, output, size)
        .map_err(|error| Error::Unsupported(format!("cpu: {error}")))?;
    tracing::debug!(isa = kernels.isa().name(), workers, barriers = program.num_barriers(), "cpu program ready");
    Ok(program)
}

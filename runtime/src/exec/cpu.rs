//! The fast executor for CPUs: a plan's [program](shimmy_kernels::program) on a team of pinned workers.

use std::borrow::Cow;
use std::time::Instant;

use shimmy_kernels::cpu::program::Program;
use shimmy_kernels::cpu::{CpuKernels, topology};
use shimmy_kernels::program::{ProgramBuilder, ProgramSize, Span};

use crate::error::{Error, Result};
use crate::exec::build::in_mib;
use crate::exec::lower::{lower, program_size};
use crate::exec::memory;
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
        let plan = weights_in_memory(plan, options.weight_memory)?;
        let plan = &*plan;
        let limits = super::limits(plan, options, options.kv_types)?;
        let (builder, output) = lower(plan, options, &limits)?;
        let program = machine(kernels, options, builder, Some(output), program_size(plan, options, &limits))?;
        Self::around(program, plan, options, limits)
    }
}

/// Weights are copied unasked if they take at most this part of the memory that is free.
const COPIED_PART: usize = 3;

/// The plan with its weights where they are wanted.
fn weights_in_memory(plan: &Plan, wanted: WeightMemory) -> Result<Cow<'_, Plan>> {
    if wanted == WeightMemory::Mapped {
        return Ok(Cow::Borrowed(plan));
    }
    let weights: Vec<Bytes> = plan.weights.iter().map(|weight| weight.view.data.clone()).collect();
    let size: usize = weights.iter().map(|bytes| bytes.len()).sum();
    let free = memory::available();
    if wanted == WeightMemory::Auto {
        if !memory::has_huge_pages() || free.is_none_or(|free| free / COPIED_PART < size) {
            return Ok(Cow::Borrowed(plan));
        }
    } else if let Some(free) = free.filter(|&free| free < size) {
        let (size, free) = (in_mib(size), in_mib(free));
        let advice = "without `--no-mmap` the weights stay in the file's pages";
        return Err(Error::OutOfMemory(format!("a copy of the weights takes {size}, {free} are free: {advice}")));
    }
    let start = Instant::now();
    let copies = match Bytes::copied(&weights) {
        Ok(copies) => copies,
        Err(error) if wanted == WeightMemory::Auto => {
            tracing::warn!("the weights stay in the file's pages: {error}");
            return Ok(Cow::Borrowed(plan));
        }
        Err(source) => return Err(Error::Io { path: "(a copy of the weights)".into(), source }),
    };
    tracing::debug!("{} of weights copied in {:.0} ms", in_mib(size), start.elapsed().as_secs_f64() * 1e3);
    let mut plan = plan.clone();
    for (weight, copy) in plan.weights.iter_mut().zip(copies) {
        weight.view.data = copy;
    }
    Ok(Cow::Owned(plan))
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

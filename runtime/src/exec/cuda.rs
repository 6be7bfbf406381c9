//! The executor for NVIDIA GPUs: a plan's [program](shimmy_kernels::program) as launches on one device.

use shimmy_kernels::cuda::program::CudaProgram;
use shimmy_kernels::cuda::{CudaError, Emulation, Gpu, MemoryInfo, Target, emulator::Checks};
use shimmy_kernels::program::ProgramError;

use crate::error::{Error, Result};
use crate::exec::Limits;
use crate::exec::lower::{lower, program_size};
use crate::exec::options::{Activations, Device, ExecOptions, KvSize};
use crate::exec::program::ProgramExecutor;
use crate::kv::BLOCK_TOKENS;
use crate::plan::{Plan, Rows};

/// Runs a plan on a GPU.
pub type CudaExecutor = ProgramExecutor<CudaProgram>;

/// Kept free beside what is counted: the driver's own memory, and holes.
const SPARE_BYTES: usize = 256 << 20;

impl CudaExecutor {
    /// Opens the device, uploads the weights and allocates everything that a step needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a usable driver or device, or naming what has no kernel; [`Error::OutOfMemory`] with the
    /// numbers.
    pub fn new(plan: &Plan, options: &ExecOptions) -> Result<Self> {
        let gpu = open(options.device).map_err(refused)?;
        let MemoryInfo { free, total } = gpu.memory().map_err(refused)?;
        let limits = limits(plan, options, free)?;
        let (builder, output) = lower(plan, options, &limits)?;
        let info = gpu.info().clone();
        tracing::info!(
            device = info.name,
            kernels = info.kernels,
            free_mib = free >> 20,
            total_mib = total >> 20,
            "uploading the weights"
        );
        let is_exact = options.activations == Activations::F32;
        let mut tenth = 0;
        let mut progress = |done: usize, all: usize| {
            if let Some(now) = (done * 10).checked_div(all)
                && now > tenth
            {
                tenth = now;
                tracing::info!(percent = now * 10, mib = done >> 20, of_mib = all >> 20, "uploading the weights");
            }
        };
        let size = program_size(plan, options, &limits);
        let program =
            CudaProgram::new(&gpu, builder, output, size, is_exact, &mut progress).map_err(refused_program)?;
        Self::around(program, plan, options, limits)
    }
}

fn open(device: Device) -> Result<Gpu, CudaError> {
    match device {
        Device::Index(index) => Gpu::open(Target::Device(index)),
        // Bounds are always checked; what costs time is for the tests of the kernels.
        Device::Emulated => Gpu::emulated(&Emulation { checks: Checks::FAST, ..Emulation::default() }),
    }
}

fn refused(error: CudaError) -> Error {
    match error {
        CudaError::OutOfMemory { .. } => Error::OutOfMemory(error.to_string()),
        error => Error::Unsupported(format!("cuda: {error}")),
    }
}

fn refused_program(error: ProgramError) -> Error {
    match error {
        ProgramError::Cuda(error) => refused(error),
        error => Error::Unsupported(format!("cuda: {error}")),
    }
}

/// The limits with the KV cache in what the weights and buffers leave of the device's memory.
fn limits(plan: &Plan, options: &ExecOptions, free: usize) -> Result<Limits> {
    let weights: usize = plan.weights.iter().map(|weight| weight.view.data.len()).sum();
    let row_bytes = |rows: Rows| -> usize {
        plan.buffers.iter().filter(|buffer| buffer.rows == rows).map(|buffer| buffer.width * size_of::<f32>()).sum()
    };
    // Rows come as f32 and, for matmuls, quantised.
    let widest = plan.buffers.iter().map(|buffer| buffer.width).max().unwrap_or(0);
    let reduced = shimmy_kernels::cuda::program::reduce::row_bytes(plan.buffers[plan.output.0].width);
    let a_token = row_bytes(Rows::Tokens) + row_bytes(Rows::Hidden) + row_bytes(Rows::Outputs) + reduced + 4 * widest;
    // A pool that is smaller than a step's tokens makes steps smaller, too.
    let step_tokens = match options.kv_size {
        KvSize::Tokens(tokens) => options.max_step_tokens.min(tokens.next_multiple_of(BLOCK_TOKENS)),
        _ => options.max_step_tokens,
    };
    let needed = weights + a_token * step_tokens + SPARE_BYTES;
    let Some(available) = free.checked_sub(needed) else {
        let mib = |bytes: usize| bytes >> 20;
        return Err(Error::OutOfMemory(format!(
            "the weights take {} MiB and a step's buffers {} MiB of the GPU's memory, of which {} MiB are free; \
             ask for a smaller --batch-tokens, or run the model on the CPU (--backend cpu)",
            mib(weights),
            mib(needed - weights),
            mib(free)
        )));
    };
    super::build::limits_in(plan, options, options.kv_types, Some(available))
}

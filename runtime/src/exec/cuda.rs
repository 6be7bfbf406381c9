//! The executor for NVIDIA GPUs: a plan's [program](shimmy_kernels::program) as launches on one device or several, and on the
//! CPU as far as they have no room for it.

use shimmy_kernels::cpu::CpuKernels;
use shimmy_kernels::cuda::program::CudaProgram;
use shimmy_kernels::cuda::{CudaError, Emulation, Gpu, MemoryInfo, Target, emulator::Checks};
use shimmy_kernels::program::{Machine, ProgramError, Stage, Staged};

use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::exec::build::{Room, in_mib, limits_in, warn_of_context};
use crate::exec::cpu::{self, CpuExecutor};
use crate::exec::lower::{lower, program_size};
use crate::exec::options::{Activations, Device, ExecOptions, GpuLayers, GpuMemory};
use crate::exec::placement::{Budget, place};
use crate::exec::program::ProgramExecutor;
use crate::plan::Plan;

/// Runs a plan on GPUs.
pub type CudaExecutor = ProgramExecutor<Staged>;

/// Kept free beside what is counted: the driver's own memory, and holes.
const SPARE_BYTES: usize = 256 << 20;

/// Opens the devices, uploads the weights and allocates everything that a step needs. With no layer for a GPU it is the CPU's
/// executor.
///
/// # Errors
/// [`Error::Unsupported`] without a usable driver or device, or naming what has no kernel; [`Error::OutOfMemory`] with the
/// numbers; [`Error::InvalidRequest`] for devices that can't be meant.
pub fn build(plan: &Plan, options: &ExecOptions) -> Result<Box<dyn Executor>> {
    if options.gpu.layers == GpuLayers::Last(0) {
        tracing::info!("no layer is for a GPU: all of the model runs on the CPU");
        return Ok(Box::new(CpuExecutor::new(plan, options)?));
    }
    let devices = &options.gpu.devices;
    let named_before =
        |(index, device): (usize, &Device)| *device != Device::Emulated && devices[..index].contains(device);
    if devices.is_empty() || devices.iter().enumerate().any(named_before) {
        let message = "wants one GPU or several, each once".into();
        return Err(Error::InvalidRequest { param: "device", message });
    }
    let gpus = devices.iter().map(|&device| open(device)).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    Ok(Box::new(CudaExecutor::on(&gpus, plan, options)?))
}

impl CudaExecutor {
    /// As [`build`], on devices that are open.
    fn on(gpus: &[Gpu], plan: &Plan, options: &ExecOptions) -> Result<Self> {
        let budgets = gpus
            .iter()
            .zip(&options.gpu.devices)
            .enumerate()
            .map(|(index, (gpu, device))| budget(gpu, index, *device, options.gpu.memory))
            .collect::<Result<Vec<_>>>()?;
        // The pools that caches lie in don't depend on how much memory there is.
        let any = limits_in(plan, options, options.kv_types, &[Room::unknown((0..plan.kv.len()).collect())])?;
        let (program, output) = lower(plan, options, &any)?;
        let placement = place(plan, options, (&program, &output), &budgets)?;
        let limits = placement.limits;
        warn_of_context(plan, options, &limits);
        let names: Vec<String> = gpus
            .iter()
            .zip(&budgets)
            .map(|(gpu, Budget { device, .. })| match gpu.info() {
                info if info.emulated => device.clone(),
                info => format!("{device} ({})", info.name),
            })
            .collect();
        let described = placement.describe(&names);
        for (gpu, Budget { device, bytes, why }) in gpus.iter().zip(&budgets) {
            let kernels = &gpu.info().kernels;
            tracing::info!(device, kernels, usable_mib = bytes >> 20, "{why}");
        }
        let on_cpu = placement.places.iter().find(|place| place.gpu.is_none()).map_or(0, |place| place.layers.len());
        if options.gpu.layers == GpuLayers::Auto && on_cpu > 0 {
            tracing::warn!("{on_cpu} of {} layers don't fit on the GPUs and run on the CPU", plan.kv.len());
        }
        tracing::info!("{described}");
        let mut upload =
            Upload::of(placement.places.iter().filter(|place| place.gpu.is_some()).map(|p| p.weight_bytes));
        let size = program_size(plan, options, &limits);
        let is_exact = options.activations == Activations::F32;
        let machine = |index: usize, stage: Stage| -> Result<Box<dyn Machine>, Refused> {
            let Stage { program, output, .. } = stage;
            let Some(gpu) = placement.places[index].gpu else {
                let machine = cpu::machine(CpuKernels::detect(), options, program, output, size).map_err(Refused)?;
                return Ok(Box::new(machine));
            };
            let progress = &mut |done, all| upload.report(done, all);
            Ok(Box::new(CudaProgram::new(&gpus[gpu], program, output, size, is_exact, progress)?))
        };
        let staged =
            Staged::build(&program, &output, &size, &placement.cuts, machine).map_err(|Refused(error)| error)?;
        Ok(Self::around(staged, plan, options, limits)?.placed(described))
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

/// Why there is no machine for a stage.
struct Refused(Error);

impl From<ProgramError> for Refused {
    fn from(error: ProgramError) -> Self {
        Self(match error {
            ProgramError::Cuda(error) => refused(error),
            error => Error::Unsupported(format!("cuda: {error}")),
        })
    }
}

/// What a device, number `index` of those that were named, can give: what is free but for the spare, and no more than was
/// allowed.
fn budget(gpu: &Gpu, index: usize, device: Device, memory: GpuMemory) -> Result<Budget> {
    let MemoryInfo { free, total } = gpu.memory().map_err(refused)?;
    let usable = free.saturating_sub(SPARE_BYTES);
    let allowed = match memory {
        GpuMemory::Free => usize::MAX,
        GpuMemory::Bytes(bytes) => bytes,
        GpuMemory::Percent(percent) => total / 100 * usize::from(percent),
    };
    let taken = gpu.taken();
    let left = allowed.saturating_sub(taken);
    let why = if left < usable {
        let others = if taken > 0 { format!(", of which {} are taken", in_mib(taken)) } else { String::new() };
        format!("--gpu-memory allows {}{others}", in_mib(allowed))
    } else {
        format!("{} of {} are free, and {} stay so", in_mib(free), in_mib(total), in_mib(SPARE_BYTES))
    };
    let device = match device {
        Device::Index(index) => format!("GPU {index}"),
        Device::Emulated => format!("emulated GPU {index}"),
    };
    Ok(Budget { device, bytes: left.min(usable), why })
}

/// How far the weights of all devices are.
struct Upload {
    total: usize,
    /// On the devices before this one, and on this one.
    done: [usize; 2],
    tenth: usize,
}

impl Upload {
    fn of(weights: impl Iterator<Item = usize>) -> Self {
        Self { total: weights.sum(), done: [0, 0], tenth: 0 }
    }

    /// So many bytes of a device's are done.
    fn report(&mut self, done: usize, of_device: usize) {
        self.done[1] = done;
        let all = self.done[0] + done;
        if done == of_device {
            self.done = [all, 0];
        }
        if let Some(now) = (all * 10).checked_div(self.total)
            && now > self.tenth
        {
            self.tenth = now;
            tracing::info!(percent = now * 10, mib = all >> 20, of_mib = self.total >> 20, "uploading the weights");
        }
    }
}

#[cfg(test)]
mod tests;

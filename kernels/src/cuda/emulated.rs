//! The backend of [`Gpu`](super::Gpu) that runs the embedded PTX on the CPU.
//!
//! For tests and debugging: the same modules, checks and errors as on a device, with memory that is poisoned when it is
//! fresh and fenced off on both sides. A launch is done when the call returns.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::emulator::{EmulatorError, GlobalMemory, KernelId, Launch, Module};
use super::error::{CudaError, Result};
use super::modules::{self, KernelModule};
use super::types::{DeviceInfo, Emulation, FunctionRecord, MemoryInfo, Step};

/// Multiprocessors that the emulated device claims. Few, so that kernels that size their grid by it stay quick, and more
/// than one, so that they split their work.
const NUM_SMS: u32 = 4;
const L2_BYTES: usize = 4 << 20;
/// A fill writes so many bytes at a time.
const FILL_BYTES: usize = 1 << 16;

/// Parsed modules and their memory.
pub(super) struct Emulated {
    modules: Vec<Module>,
    /// By number of the function: its name, module and kernel.
    functions: Vec<(String, usize, KernelId)>,
    memory: Mutex<GlobalMemory>,
    capacity: usize,
}

impl std::fmt::Debug for Emulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulated").field("functions", &self.functions.len()).field("capacity", &self.capacity).finish()
    }
}

/// The parts of an open device that `Gpu` keeps.
pub(super) struct Opened {
    pub(super) emulated: Emulated,
    pub(super) info: DeviceInfo,
    pub(super) functions: Vec<FunctionRecord>,
}

fn refused(error: EmulatorError) -> CudaError {
    CudaError::Emulator { message: error.to_string() }
}

/// Parses the PTX that was made for this capability.
pub(super) fn open(emulation: &Emulation) -> Result<Opened> {
    let capability = emulation.compute_capability;
    let name = "emulated device";
    let archive = modules::ptx(capability).ok_or_else(|| CudaError::NoKernels {
        device: name.into(),
        capability,
        why: "; only what PTX is made for is emulated: 7.5, 8.0 and 9.0".into(),
    })?;
    let mut memory = GlobalMemory::with_checks(emulation.memory_bytes, emulation.checks);
    let (mut parsed, mut functions, mut records) = (Vec::new(), Vec::new(), Vec::new());
    for KernelModule { name, kernels, code } in archive.unpack()? {
        let damaged = |why: String| CudaError::Archive { archive: archive.to_string(), why: format!("{name}: {why}") };
        let text = std::str::from_utf8(&code).map_err(|_| damaged("it isn't text".into()))?;
        let mut module = Module::parse(text).map_err(|error| damaged(error.to_string()))?;
        module.load(&mut memory).map_err(refused)?;
        for kernel in kernels {
            let id = module.kernel(&kernel.name).ok_or_else(|| damaged(format!("it lacks {}", kernel.name)))?;
            functions.push((kernel.name.clone(), parsed.len(), id));
            records.push(FunctionRecord { kernel, static_shared: 0 });
        }
        parsed.push(module);
    }
    let info = DeviceInfo {
        name: name.into(),
        compute_capability: capability,
        num_sms: NUM_SMS,
        // Of the chips with these capabilities.
        shared_per_block_optin: match capability {
            (7, _) => 64 << 10,
            (8, _) => 163 << 10,
            _ => 227 << 10,
        },
        l2_bytes: L2_BYTES,
        kernels: archive.to_string(),
        emulated: true,
    };
    let capacity = emulation.memory_bytes;
    let emulated = Emulated { modules: parsed, functions, memory: Mutex::new(memory), capacity };
    Ok(Opened { emulated, info, functions: records })
}

impl Emulated {
    /// A panic while the lock was held left memory as a fault would: readable, with unknown contents.
    fn lock(&self) -> MutexGuard<'_, GlobalMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn memory(&self) -> MemoryInfo {
        MemoryInfo { free: self.capacity.saturating_sub(self.lock().used()), total: self.capacity }
    }

    pub(super) fn alloc(&self, bytes: usize) -> Option<u64> {
        self.lock().alloc(bytes)
    }

    pub(super) fn free(&self, address: u64) {
        self.lock().free(address);
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.lock().write(address, bytes).map_err(refused)
    }

    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        self.lock().read(address, into).map_err(refused)
    }

    /// Runs a step.
    pub(super) fn run(&self, step: &Step<'_>) -> Result<()> {
        let mut memory = self.lock();
        match *step {
            Step::Launch { function, shape, args } => {
                let (name, module, kernel) =
                    self.functions.get(function).ok_or(CudaError::OtherDevice { what: "launch: the function" })?;
                let launch = Launch { grid: shape.grid, block: shape.block, dynamic_shared: shape.dynamic_shared };
                self.modules[*module].launch(*kernel, &launch, args, &mut memory).map_err(|error| match error {
                    // On a device this ends the context.
                    EmulatorError::Fault(_) => {
                        CudaError::DeviceLost { kernel: Some(name.clone()), message: error.to_string() }
                    }
                    other => refused(other),
                })
            }
            Step::Fill { address, bytes, value } => {
                let values = vec![value; bytes.min(FILL_BYTES)];
                let mut done = 0;
                while done < bytes {
                    let length = values.len().min(bytes - done);
                    memory.write(address + done as u64, &values[..length]).map_err(refused)?;
                    done += length;
                }
                Ok(())
            }
            Step::Copy { from, to, bytes } => memory.copy(from, to, bytes).map_err(refused),
        }
    }
}

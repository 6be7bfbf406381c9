//! What [`Gpu`](super::Gpu) is asked and what it answers: plain data.

use super::emulator::Checks;
use super::modules::KernelRecord;

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The driver's device with this index.
    Device(usize),
    /// The embedded PTX, run on the CPU: the same code paths, for tests and debugging. [`Gpu::emulated`] has the choices.
    Emulated,
}

/// What to emulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emulation {
    /// Whose PTX runs: `(7, 5)`, `(8, 0)` or `(9, 0)`.
    pub compute_capability: (u32, u32),
    /// Bytes of device memory. They are addresses: only what is used takes memory of the host.
    pub memory_bytes: usize,
    /// What is looked for beside accesses outside of buffers.
    pub checks: Checks,
}

impl Default for Emulation {
    fn default() -> Self {
        Self { compute_capability: (9, 0), memory_bytes: 8 << 30, checks: Checks::ALL }
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As the driver calls it.
    pub name: String,
    /// `(9, 0)` is sm_90.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub num_sms: u32,
    /// Bytes of shared memory that one block can have, static and dynamic.
    pub shared_per_block_optin: u32,
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
    /// The embedded archive that runs, such as `sm_90`, or `compute_90` where the driver translates.
    pub kernels: String,
    /// No device: the emulator.
    pub emulated: bool,
}

/// Memory of a device, in bytes. Other processes share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not allocated by anybody.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

/// A kernel of one [`Gpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Which `Gpu`, by its number.
    pub(super) gpu: u64,
    /// In its table.
    pub(super) index: usize,
}

/// How many threads a launch has, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks by dimension: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block by dimension.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
    /// Programmatic dependent launch: the kernel may begin before its predecessor has ended, because it calls
    /// `griddepcontrol.wait` itself before it touches memory. Without effect where the device can't.
    pub overlap: bool,
}

impl LaunchShape {
    /// One dimension, no dynamic shared memory, no overlap.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared: 0, overlap: false }
    }
}

/// A kernel with its limits.
#[derive(Debug)]
pub(super) struct FunctionRecord {
    pub(super) kernel: KernelRecord,
    /// Bytes of a block's shared memory that the kernel itself declares, as far as the backend tells.
    pub(super) static_shared: u32,
}

/// Work of the queue, checked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    Launch { function: usize, shape: LaunchShape, args: &'a [u8] },
    Fill { address: u64, bytes: usize, value: u8 },
    Copy { from: u64, to: u64, bytes: usize },
}

/// The same, kept for replays.
#[derive(Debug)]
pub(super) enum KeptStep {
    Launch { function: usize, shape: LaunchShape, args: Vec<u8> },
    Fill { address: u64, bytes: usize, value: u8 },
    Copy { from: u64, to: u64, bytes: usize },
}

impl Step<'_> {
    pub(super) fn keep(&self) -> KeptStep {
        match *self {
            Self::Launch { function, shape, args } => KeptStep::Launch { function, shape, args: args.to_vec() },
            Self::Fill { address, bytes, value } => KeptStep::Fill { address, bytes, value },
            Self::Copy { from, to, bytes } => KeptStep::Copy { from, to, bytes },
        }
    }
}

impl KeptStep {
    pub(super) fn step(&self) -> Step<'_> {
        match *self {
            Self::Launch { function, shape, ref args } => Step::Launch { function, shape, args },
            Self::Fill { address, bytes, value } => Step::Fill { address, bytes, value },
            Self::Copy { from, to, bytes } => Step::Copy { from, to, bytes },
        }
    }
}

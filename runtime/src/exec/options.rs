//! How an executor is asked to run.

use shimmy_kernels::cpu::kv::KvTypes;

/// Which executor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// The fastest that can run the plan.
    #[default]
    Auto,
    /// [`crate::exec::cpu`].
    Cpu,
    /// [`crate::exec::candle`].
    Candle,
    /// `exec::cuda`, on [`ExecOptions::gpu`].
    Cuda,
}

/// Which GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// By the driver's number.
    Index(usize),
    /// None: the GPU's code is run instruction by instruction on the CPU. For tests and debugging; very slow.
    Emulated,
}

impl Default for Device {
    fn default() -> Self {
        Self::Index(0)
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Emulated => f.write_str("emulated"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match (name, name.parse()) {
            ("emulated", _) => Ok(Self::Emulated),
            (_, Ok(index)) => Ok(Self::Index(index)),
            _ => Err(format!("`{name}` is neither the number of a GPU nor `emulated`")),
        }
    }
}

/// Which layers run on the GPUs; the others run on the CPU, in the same step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many of the last as fit into the memory.
    #[default]
    Auto,
    /// All of them.
    All,
    /// So many of the last, and the output; all, if there are fewer.
    Last(usize),
}

impl std::fmt::Display for GpuLayers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::All => f.write_str("all"),
            Self::Last(layers) => write!(f, "{layers}"),
        }
    }
}

impl std::str::FromStr for GpuLayers {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match (name, name.parse()) {
            ("auto", _) => Ok(Self::Auto),
            ("all", _) => Ok(Self::All),
            (_, Ok(layers)) => Ok(Self::Last(layers)),
            _ => Err(format!("`{name}` is neither a number of layers nor `all` nor `auto`")),
        }
    }
}

/// Most of a GPU's memory that this process takes: weights, buffers and KV caches of all its models together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GpuMemory {
    /// What is free when a model is loaded, but for a spare.
    #[default]
    Free,
    /// So many bytes, if they are free.
    Bytes(usize),
    /// So many hundredths of all memory that the GPU has, if they are free.
    Percent(u8),
}

/// The GPUs and what they get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuOptions {
    /// In the order of the layers that they get.
    pub devices: Vec<Device>,
    /// What isn't left to the CPU.
    pub layers: GpuLayers,
    /// Of each device.
    pub memory: GpuMemory,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Device::default().into()
    }
}

impl From<Device> for GpuOptions {
    fn from(device: Device) -> Self {
        Self { devices: vec![device], layers: GpuLayers::default(), memory: GpuMemory::default() }
    }
}

/// Arithmetic of matmuls on the cpu and cuda executors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// On quantised weights activations in blocks of 32 int8 with an f32 scale: what makes integer dot products possible. Where the CPU
    /// multiplies bf16, many rows on bf16 and f16 weights are rounded to that, and so are those weights; with AMX many rows on quantised
    /// weights too, without it the factors of their attention over a cache that isn't f32.
    #[default]
    Q8,
    /// f32 activations on the exact values of the weights: slower.
    F32,
}

/// Size of the KV pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvSize {
    /// What this machine's memory allows: see [`crate::exec::limits`].
    #[default]
    Auto,
    /// For so many tokens.
    Tokens(usize),
    /// As many blocks as fit into so many bytes.
    Bytes(usize),
}

/// What layers that see a window keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WindowKv {
    /// The last tokens, in blocks of their own: every piece of a step brings a second block table.
    #[default]
    Last,
    /// All tokens, like the other layers: for steps made by hand, and to compare with.
    All,
}

/// Where the cpu executor reads its weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WeightMemory {
    /// In a copy, where that takes at most a third of the memory that is free and the system has huge pages for it; else in the mapped file.
    #[default]
    Auto,
    /// In the mapped file: the system shares its pages with other processes and may drop them. They are huge only where the file system
    /// has such and the file was read since it was written.
    Mapped,
    /// In a copy in huge pages: decoding is up to a quarter faster, loading slower, and the process takes as much memory more.
    Copied,
}

/// What `exec::build` needs beside a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOptions {
    /// Which executor.
    pub backend: Backend,
    /// Where the cuda executor runs.
    pub gpu: GpuOptions,
    /// Worker threads; `None`: physical cores inside the cgroup's limit.
    pub threads: Option<usize>,
    /// Most tokens of one sequence; `None`: the model's own context, as far as the KV pool allows.
    pub max_context: Option<usize>,
    /// How much the KV pool holds over all sequences.
    pub kv_size: KvSize,
    /// What of it is for layers with a window.
    pub window_kv: WindowKv,
    /// Most tokens in a step.
    pub max_step_tokens: usize,
    /// Matmul arithmetic.
    pub activations: Activations,
    /// KV storage.
    pub kv_types: KvTypes,
    /// Where weights are read.
    pub weight_memory: WeightMemory,
}

impl Default for ExecOptions {
    fn default() -> Self {
        Self {
            backend: Backend::Auto,
            gpu: GpuOptions::default(),
            threads: None,
            max_context: None,
            kv_size: KvSize::Auto,
            window_kv: WindowKv::Last,
            max_step_tokens: 512,
            activations: Activations::Q8,
            kv_types: KvTypes::default(),
            weight_memory: WeightMemory::default(),
        }
    }
}

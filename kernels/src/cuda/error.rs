//! What a GPU, or the emulated device in its place, can refuse.

/// Shorthand for a result with [`CudaError`].
pub type Result<T, E = CudaError> = std::result::Result<T, E>;

/// An error of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No driver library on this host.
    #[error("no NVIDIA driver on this host (libcuda was not found)")]
    NoDriver,
    /// The driver speaks an older CUDA than the calls that are made.
    #[error("the NVIDIA driver speaks CUDA {}.{}; {}.{} or newer is needed: update the driver", have.0, have.1, need.0, need.1)]
    DriverTooOld {
        /// Of the driver.
        have: (u32, u32),
        /// The oldest that serves.
        need: (u32, u32),
    },
    /// There are fewer devices.
    #[error("there is no CUDA device {index}: the driver shows {count}")]
    NoDevice {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// None of the embedded archives runs on the device.
    #[error("{device} (compute capability {}.{}) runs none of the kernels in this binary{why}", capability.0, capability.1)]
    NoKernels {
        /// As the driver calls it.
        device: String,
        /// `(6, 1)` is sm_61.
        capability: (u32, u32),
        /// What the driver said of each archive that it refused, each behind a `; `; may be empty.
        why: String,
    },
    /// An embedded archive is damaged.
    #[error("the embedded kernels {archive} are damaged: {why}")]
    Archive {
        /// Such as `sm_90`.
        archive: String,
        /// What is wrong.
        why: String,
    },
    /// A kernel that no embedded module holds.
    #[error("the embedded kernels {archive} hold no function `{name}`")]
    MissingFunction {
        /// Which one.
        name: String,
        /// Such as `sm_90`.
        archive: String,
    },
    /// The device's memory doesn't hold that much more.
    #[error("out of GPU memory: {wanted} bytes wanted, {free} of {total} bytes free")]
    OutOfMemory {
        /// Bytes that were asked for.
        wanted: usize,
        /// Bytes that were free.
        free: usize,
        /// Bytes that the device has.
        total: usize,
    },
    /// A range that isn't in its buffer.
    #[error("{what}: {bytes} bytes at {offset} are outside of a buffer of {len} bytes")]
    OutOfRange {
        /// The call and the argument.
        what: &'static str,
        /// Where the range begins.
        offset: usize,
        /// How long it is.
        bytes: usize,
        /// Length of the buffer.
        len: usize,
    },
    /// A copy within one buffer whose two ranges share bytes.
    #[error("copy: the {bytes} bytes at {from} and those at {to} overlap")]
    Overlap {
        /// Where the source begins.
        from: usize,
        /// Where the target begins.
        to: usize,
        /// Length of both.
        bytes: usize,
    },
    /// A buffer, function or graph of another device.
    #[error("{what} belongs to another device")]
    OtherDevice {
        /// The call and the argument.
        what: &'static str,
    },
    /// A launch that no device would take.
    #[error("launch of `{function}`: {why}")]
    Launch {
        /// The kernel.
        function: String,
        /// What is wrong.
        why: String,
    },
    /// A call that waits for the device, or changes its memory from the host, while launches are recorded.
    #[error("{what} is not possible while a graph is recorded")]
    Recording {
        /// The call.
        what: &'static str,
    },
    /// The device, or this process' part of it, is unusable from now on: a kernel read or wrote memory that isn't its own,
    /// or the hardware failed.
    #[error("the CUDA device is lost{}: {message}", kernel.as_ref().map(|name| format!(" (in kernel `{name}`)")).unwrap_or_default())]
    DeviceLost {
        /// Where it happened, if that is certain. A driver reports a fault when somebody waits, so it is where one kernel
        /// ran since the last wait, or with `CUDA_LAUNCH_BLOCKING=1` in the environment.
        kernel: Option<String>,
        /// What the driver or the emulator said.
        message: String,
    },
    /// The driver refused a call.
    #[error("{call}: {message}")]
    Driver {
        /// Name of the driver's function.
        call: &'static str,
        /// What it said.
        message: String,
    },
    /// The emulator refused a module or a call.
    #[error("emulated device: {message}")]
    Emulator {
        /// What it said.
        message: String,
    },
}

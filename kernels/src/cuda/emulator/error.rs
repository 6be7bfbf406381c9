//! What the emulator reports: text it can't read, and programs that do what a GPU would punish or, worse, forgive.

/// An error of the emulator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmulatorError {
    /// The text isn't PTX as this parser knows it.
    #[error("PTX line {line}: {what}")]
    Parse {
        /// Line of the text, from 1.
        line: u32,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel has an instruction that the emulator lacks; other kernels of the module still run.
    #[error("kernel {kernel} can't be emulated: PTX line {line}: {what}")]
    Unsupported {
        /// Name of the entry.
        kernel: String,
        /// Line of the text, from 1.
        line: u32,
        /// The first instruction that isn't known.
        what: String,
    },
    /// The launch itself is impossible: a block too large, parameters of the wrong size.
    #[error("kernel {kernel} can't be launched: {what}")]
    Launch {
        /// Name of the entry.
        kernel: String,
        /// What is wrong with it.
        what: String,
    },
    /// The host asked for memory that isn't there.
    #[error("{bytes} bytes at {address:#x}: {what}")]
    Memory {
        /// Where the access starts.
        address: u64,
        /// How many bytes it wanted.
        bytes: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A thread did what is forbidden or undefined on a GPU.
    #[error("{0}")]
    Fault(Box<Fault>),
}

/// Where a thread went wrong and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "kernel {kernel}, PTX line {line}, block {block:?}, thread {thread:?}: {what}{}",
    address.map(|address| format!(" (address {address:#x})")).unwrap_or_default()
)]
pub struct Fault {
    /// Name of the entry.
    pub kernel: String,
    /// Line of the module's text, from 1.
    pub line: u32,
    /// `%ctaid`, x first.
    pub block: [u32; 3],
    /// `%tid` of the first thread concerned, x first.
    pub thread: [u32; 3],
    /// The address it used, if memory is what it is about: as the instruction saw it, in the instruction's space.
    pub address: Option<u64>,
    /// What happened.
    pub what: String,
}

/// A fault before the block and the kernel that it happened in are known.
#[derive(Debug)]
pub(super) struct Trap {
    /// Lane of the warp.
    pub(super) lane: u32,
    pub(super) address: Option<u64>,
    pub(super) what: String,
}

impl Trap {
    /// What `lane` did wrong, without an address.
    pub(super) fn new(lane: u32, what: impl Into<String>) -> Self {
        Self { lane, address: None, what: what.into() }
    }

    /// What `lane` did wrong at `address`.
    pub(super) fn at(lane: u32, address: u64, what: impl Into<String>) -> Self {
        Self { lane, address: Some(address), what: what.into() }
    }
}

//! A model's step as instructions over buffers, weights and KV caches, and the [`Machine`]s that run it.
//!
//! | file | what lives there |
//! |---|---|
//! | [`instr`] | the instructions and what they read and write |
//! | [`builder`] | collects the parts of a program and checks every shape once |
//! | [`input`] | the input of a step, and its check |
//!
//! [`crate::cpu::program`] runs programs on a team of CPU workers, `crate::cuda::program` on a GPU.

pub mod builder;
pub mod input;
pub mod instr;
#[cfg(test)]
pub(crate) mod testing;

pub use builder::ProgramBuilder;
pub use input::{SeqInput, StepInput};
pub use instr::{
    ActId, BufId, CacheId, Instr, MatMulPart, MatMulThen, MatMulX, Rows, SharedBytes, Span, VecId, WeightId,
};

use crate::cpu::kv::{KvPool, KvTypes};

/// What a program can refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// An instruction's shapes don't fit its buffers or weights.
    #[error("instruction {index} ({name}): {what}")]
    Instr {
        /// Position in the program.
        index: usize,
        /// Kind.
        name: &'static str,
        /// What doesn't fit.
        what: String,
    },
    /// A step's input is outside what the program was built for.
    #[error("step: {0}")]
    Step(String),
    /// A worker panicked.
    #[error(transparent)]
    Worker(#[from] crate::cpu::team::WorkerPanicked),
    /// A matrix's bytes don't fit its shape.
    #[error(transparent)]
    Kernel(#[from] crate::Error),
    /// The GPU refused something.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
}

/// What a program is sized for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramSize {
    /// Token ids are below it.
    pub vocab_size: usize,
    /// Most tokens in a step.
    pub max_tokens: usize,
    /// Most rows of output in a step.
    pub max_outputs: usize,
    /// KV blocks in the pool of whole sequences.
    pub num_blocks: usize,
    /// KV blocks in the pool of the last tokens; 0 when no cache lies there.
    pub num_window_blocks: usize,
    /// Element types of the KV cache.
    pub kv: KvTypes,
}

/// What runs a program: a device with the program's weights, buffers and KV caches.
pub trait Machine: Send {
    /// Short name for logs: `cpu`, `cuda`.
    fn name(&self) -> &'static str;

    /// Runs one step and returns `[outputs, width]`.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when the input is outside the program's sizes; nothing was written then. After any other error the
    /// program can't be used any more.
    fn run(&mut self, input: &StepInput<'_>) -> Result<&[f32], ProgramError>;

    /// The outputs of the last step, `[num_rows, width]`: as many as it was asked for.
    fn outputs(&self, num_rows: usize) -> &[f32];

    /// The hidden states of the last step, `[num_rows, width]`: as many as it was asked for. Empty for a program without that
    /// output.
    fn hidden(&self, num_rows: usize) -> &[f32];

    /// Copies a block of a KV pool, the keys and values of all its caches, over another one.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when one of them is outside the pool.
    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<(), ProgramError>;

    /// Bytes of a block of a KV pool: the keys and values of all its caches.
    fn block_bytes(&self, pool: KvPool) -> usize;

    /// Appends the keys and values of a block, cache by cache: [`block_bytes`](Self::block_bytes) in all. What they mean
    /// depends on the kind of machine, the program and the KV types.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when it is outside the pool.
    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<(), ProgramError>;

    /// Replaces the keys and values of a block by what [`read_block`](Self::read_block) gave.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when it is outside the pool, or the number of bytes is wrong; then nothing was written.
    fn write_block(&mut self, pool: KvPool, block: u32, bytes: &[u8]) -> Result<(), ProgramError>;

    /// Other work follows on the same cores: threads that would stay ready for the next step sleep until it comes.
    fn rest(&self) {}
}

//! A model's step as instructions over buffers, weights and KV caches, and the [`Machine`]s that run it.
//!
//! | file | what lives there |
//! |---|---|
//! | [`instr`] | the instructions and what they read and write |
//! | [`builder`] | collects the parts of a program and checks every shape once |
//! | [`input`] | the input of a step, and its check |
//! | [`cut`] | where a program can be cut, and the programs of its stages |
//! | [`staged`] | a machine of machines, each with a stage |
//! | [`reduce`] | what sampling needs of a row of logits that stays on its device |
//!
//! [`crate::cpu::program`] runs programs on a team of CPU workers, `crate::cuda::program` on a GPU.

pub mod builder;
pub mod cut;
pub mod input;
pub mod instr;
pub mod reduce;
pub mod staged;
#[cfg(test)]
pub(crate) mod testing;

pub use builder::ProgramBuilder;
pub use cut::{Cut, Stage};
pub use input::{SeqInput, StepInput};
pub use instr::{
    ActId, BufId, CacheId, Instr, MatMulPart, MatMulThen, MatMulX, Rows, SharedBytes, Span, VecId, WeightId,
};

pub use reduce::{Candidate, Draw, Reduce, ReducedRow, RowTask};
pub use staged::Staged;

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

impl ProgramSize {
    /// Blocks of a KV pool.
    pub fn num_blocks_in(&self, pool: KvPool) -> usize {
        match pool {
            KvPool::Full => self.num_blocks,
            KvPool::Window => self.num_window_blocks,
        }
    }

    /// Most rows that a buffer of such rows has in a step.
    pub(crate) fn max_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens | Rows::Hidden => self.max_tokens,
            Rows::Outputs => self.max_outputs,
        }
    }

    /// Refuses a row that no step has.
    pub(crate) fn check_output(&self, row: usize) -> Result<(), ProgramError> {
        if row < self.max_outputs {
            return Ok(());
        }
        Err(ProgramError::Step(format!("output {row} of at most {}", self.max_outputs)))
    }

    /// Refuses so many elements as the first rows of a buffer of such rows, `width` wide.
    pub(crate) fn check_rows(&self, rows: Rows, width: usize, num_elements: usize) -> Result<(), ProgramError> {
        let most = self.max_rows(rows);
        if num_elements <= most * width && num_elements.is_multiple_of(width) {
            return Ok(());
        }
        Err(ProgramError::Step(format!("{num_elements} elements in at most {most} rows of {width}")))
    }

    /// Refuses a block outside a pool.
    pub(crate) fn check_block(&self, pool: KvPool, block: u32) -> Result<(), ProgramError> {
        let num_blocks = self.num_blocks_in(pool);
        if (block as usize) < num_blocks {
            return Ok(());
        }
        Err(ProgramError::Step(format!("block {block} of a pool of {num_blocks}")))
    }

    /// Refuses to replace a block outside a pool, or one of `block_bytes` by a different number of bytes.
    pub(crate) fn check_write(
        &self,
        pool: KvPool,
        block: u32,
        bytes: &[u8],
        block_bytes: usize,
    ) -> Result<(), ProgramError> {
        self.check_block(pool, block)?;
        if bytes.len() == block_bytes {
            return Ok(());
        }
        Err(ProgramError::Step(format!("{} bytes for a block of {block_bytes}", bytes.len())))
    }
}

/// What runs a program: a device with the program's weights, buffers and KV caches.
pub trait Machine: Send {
    /// Short name for logs: `cpu`, `cuda`.
    fn name(&self) -> &'static str;

    /// Runs one step and returns `[outputs, width]`; nothing where [`StepInput::reduce`] was heeded.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when the input is outside the program's sizes; nothing was written then. After any other error the
    /// program can't be used any more.
    fn run(&mut self, input: &StepInput<'_>) -> Result<&[f32], ProgramError>;

    /// The outputs of the last step, `[num_rows, width]`: as many as it was asked for.
    fn outputs(&self, num_rows: usize) -> &[f32];

    /// Whether [`StepInput::reduce`] is heeded: where whole rows are far away.
    fn reduces(&self) -> bool {
        false
    }

    /// What an output of the last step was reduced to. `None`: nothing was asked of it, or it has NaN or +∞, or nothing but −∞.
    fn reduced(&self, _row: usize) -> Option<ReducedRow<'_>> {
        None
    }

    /// Reads one whole output of the last step into `into`, replacing what is there.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when the program has no such row; those of the device.
    fn read_output(&self, row: usize, into: &mut Vec<f32>) -> Result<(), ProgramError>;

    /// The hidden states of the last step, `[num_rows, width]`: as many as it was asked for. Empty for a program without that
    /// output.
    fn hidden(&self, num_rows: usize) -> &[f32];

    /// Reads the first rows of a whole buffer as the last step left them: `[num_rows, width]`, replacing what is in `into`.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when the program has no such rows; those of the device.
    fn read_rows(&mut self, buf: BufId, num_rows: usize, into: &mut Vec<f32>) -> Result<(), ProgramError>;

    /// Replaces the first rows of a whole buffer, `[any, width]`, before a step that reads them without having written them.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when the program has no such rows; those of the device.
    fn write_rows(&mut self, buf: BufId, rows: &[f32]) -> Result<(), ProgramError>;

    /// Names how keys and values lie in a block: what [`read_block`](Self::read_block) gives serves machines of the same name.
    fn kv_layout(&self) -> String {
        self.name().to_owned()
    }

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

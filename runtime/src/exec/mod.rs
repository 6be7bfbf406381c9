//! Executors: what runs a plan on a device.
//!
//! | executor | what it is |
//! |---|---|
//! | [`candle`] | op by op on candle tensors in f32: the definition, and the oracle of `verify` and the tests |
//! | [`cpu`] | the fast one: a team of pinned workers walks the plan together over one arena |
//! | `cuda` | launches on NVIDIA GPUs, and on the CPU what they don't get (feature `cuda`) |

pub mod batch;
pub mod build;
pub mod candle;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod lower;
mod memory;
pub mod options;
#[cfg(feature = "cuda")]
mod placement;
pub mod program;
pub mod rows;

pub use batch::{Numerics, OutputRows, SeqStep, StepBatch};
pub use build::{build, kv_bytes, kv_bytes_of_context, limits};
pub use options::{
    Activations, Backend, Device, ExecOptions, GpuLayers, GpuMemory, GpuOptions, KvSize, WeightMemory, WindowKv,
};
pub use rows::{Candidate, Draw, KeptRows, MAX_BEST, ReducedRow, RowTask, RowTasks};
pub use shimmy_kernels::cpu::kv::{KvType, KvTypes};

use crate::error::{Error, Result};
use crate::kv::{KvPool, KvWindow};
use crate::plan::{KvSpec, Plan, RopeScaling, RopeSpec};

/// What an executor can take, fixed when it was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens in one [`StepBatch`].
    pub max_step_tokens: usize,
    /// Most rows of output in one step.
    pub max_step_outputs: usize,
    /// Blocks in the KV pool, each of [`crate::kv::BLOCK_TOKENS`] tokens over all layers, or all those without a window if
    /// the others have a pool of their own. Block ids are `0..num_kv_blocks`.
    pub num_kv_blocks: usize,
    /// The pool of the layers with a window; `None`: there are no such layers, or they keep all tokens in the same blocks
    /// as the others.
    pub window: Option<KvWindow>,
    /// Most tokens of one sequence.
    pub max_context: usize,
}

impl Limits {
    /// The pool that a layer's keys and values lie in.
    pub fn pool_of(&self, cache: &KvSpec) -> KvPool {
        if self.window.is_some() && cache.window.is_some() { KvPool::Window } else { KvPool::Full }
    }

    /// Blocks of a pool.
    pub fn num_blocks(&self, pool: KvPool) -> usize {
        match pool {
            KvPool::Full => self.num_kv_blocks,
            KvPool::Window => self.window.map_or(0, |window| window.num_blocks),
        }
    }

    /// Refuses a block outside a pool.
    ///
    /// # Errors
    /// [`InvalidRequest`](crate::Error::InvalidRequest) on the parameter `block`.
    pub fn check_block(&self, pool: KvPool, block: u32) -> Result<()> {
        if (block as usize) < self.num_blocks(pool) {
            return Ok(());
        }
        let message = format!("{block} is outside the pool of {}", self.num_blocks(pool));
        Err(Error::InvalidRequest { param: "block", message })
    }
}

/// The rows that a step computed: `[num_rows, width]`, f32, row-major, in the order of the batch's sequences and,
/// inside a sequence, of its tokens.
#[derive(Debug, Clone, Copy)]
pub struct StepOutput<'a> {
    /// Rows.
    pub num_rows: usize,
    /// Vocabulary or hidden size.
    pub width: usize,
    /// `num_rows · width` elements; none where the rows are kept.
    pub data: &'a [f32],
    /// The rows, if the executor keeps them and was [asked](StepBatch::tasks) for less.
    pub kept: Option<&'a dyn KeptRows>,
    /// The hidden states that were asked for, in the same order.
    pub hidden: HiddenRows<'a>,
}

/// Hidden states after the final norm: `[rows, width]`, f32, row-major.
#[derive(Debug, Clone, Copy, Default)]
pub struct HiddenRows<'a> {
    /// Hidden size.
    pub width: usize,
    /// Whole rows.
    pub data: &'a [f32],
}

impl<'a> HiddenRows<'a> {
    /// Row `row`, of `width` elements.
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }
}

impl<'a> StepOutput<'a> {
    /// Row `row`, of `width` elements, of rows that aren't kept.
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.width..(row + 1) * self.width]
    }
}

/// Whether the keys and values of a text's beginning serve every text that begins so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixReuse {
    /// They depend on the tokens up to there only.
    Exact,
    /// They depend on how long the whole text was when they were computed (dynamic rope scaling).
    DependsOnLength,
}

impl PrefixReuse {
    /// What a plan's positions allow.
    pub fn of(plan: &Plan) -> Self {
        let is_dynamic = |rope: &RopeSpec| matches!(rope.scaling, RopeScaling::Dynamic { .. });
        if plan.ropes.iter().any(is_dynamic) { Self::DependsOnLength } else { Self::Exact }
    }
}

/// Runs the steps of one loaded plan. It owns the KV storage; who uses which block is the scheduler's business.
pub trait Executor: Send {
    /// Short name for logs and `--backend`: `cpu`, `candle`, `cuda`.
    fn name(&self) -> &'static str;

    /// Which layers run where, for people; `None` where that is one place and its name says which.
    fn placement(&self) -> Option<&str> {
        None
    }

    /// What it can take.
    fn limits(&self) -> Limits;

    /// As what it stores keys and values.
    fn kv_types(&self) -> KvTypes;

    /// Whether sequences may share the blocks of a common beginning.
    fn prefix_reuse(&self) -> PrefixReuse;

    /// Copies a block of a KV pool over another one: a sequence that was forked goes on in its own copy of the block
    /// that both have begun.
    ///
    /// # Errors
    /// [`InvalidRequest`](crate::Error::InvalidRequest) on the parameter `block` when one of them is outside the pool.
    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<()>;

    /// Names how keys and values lie in a block: what [`read_block`](Self::read_block) gives serves executors of the same name,
    /// plan and options.
    fn kv_layout(&self) -> String {
        self.name().to_owned()
    }

    /// Bytes of a block of a KV pool over all its layers; 0 where there is no such pool.
    fn block_bytes(&self, pool: KvPool) -> usize;

    /// Appends the keys and values of a block: [`block_bytes`](Self::block_bytes) in all.
    ///
    /// # Errors
    /// [`InvalidRequest`](crate::Error::InvalidRequest) on the parameter `block` when it is outside the pool.
    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<()>;

    /// Replaces the keys and values of a block by what [`read_block`](Self::read_block) gave, be it in another process with an
    /// executor of the same [layout](Self::kv_layout), plan and options.
    ///
    /// # Errors
    /// [`InvalidRequest`](crate::Error::InvalidRequest) on the parameter `block` when it is outside the pool or the number of
    /// bytes is wrong; then nothing was written.
    fn write_block(&mut self, pool: KvPool, block: u32, bytes: &[u8]) -> Result<()>;

    /// Other work follows on the same cores: threads that would stay ready for the next step sleep until it comes.
    fn rest(&mut self) {}

    /// Whether it keeps rows of logits to itself when it is [asked](StepBatch::tasks) for less than all of them.
    fn keeps_rows(&self) -> bool {
        false
    }

    /// Computes the batch and writes its keys and values to the cache.
    ///
    /// # Errors
    /// When the batch breaks [`Limits`], a token id is outside the vocabulary or a block id outside the pool; then nothing was written.
    fn step(&mut self, batch: &StepBatch) -> Result<StepOutput<'_>>;
}

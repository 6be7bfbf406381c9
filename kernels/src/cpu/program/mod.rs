//! A [program](crate::program) that the worker team runs together (SPMD): every worker walks the same instructions and
//! does its share of each; barriers stand only where data crosses from one worker to another.
//!
//! | file | what lives there |
//! |---|---|
//! | [`build`] | places the barriers, allocates all memory |
//! | [`run`] | executes a step; allocates nothing |
//! | `ops`, `glu`, `attend` | what each instruction does on one worker |
//! | `memory` | memory that workers share |
//!
//! # Why the shared memory is sound
//! 1. *Bounds.* [`build`] checks each instruction's columns against its buffer, and [`run`] checks each step's token
//!    ids, positions, block ids and row counts, before any worker starts.
//! 2. *Disjoint writes.* Inside an instruction a worker writes only rows (row-wise instructions), columns (matmul) or
//!    heads of rows (attention) that no other worker reads or writes: shares and pieces partition the index space.
//! 3. *Order.* Between two instructions that touch the same memory, one of them writing, there is a barrier, unless
//!    both are row-wise over the same rows: then the same worker owns the row in both.

mod attend;
pub mod build;
mod glu;
mod memory;
mod ops;
pub mod run;
#[cfg(test)]
mod tests;

pub use crate::program::{
    ActId, BufId, CacheId, Instr, MatMulPart, MatMulThen, MatMulX, ProgramBuilder, ProgramError, ProgramSize, Rows,
    SeqInput, SharedBytes, Span, StepInput, VecId, WeightId,
};

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::kv::{KvPool, KvTypes};
use super::lines::Lines;
use super::program::memory::{Own, Region};
use super::team::Team;
use super::vector::VectorKernels;
use super::{CpuKernels, Scratch};
use crate::program::builder::WeightSlot;
use crate::program::input::InputCheck;

/// A checked program with its memory.
pub struct Program {
    code: Code,
    memory: Memory,
    team: Team,
}

/// What doesn't change between steps.
struct Code {
    kernels: CpuKernels,
    vectors: VectorKernels,
    buffers: Vec<BufferSlot>,
    acts: Vec<ActSlot>,
    caches: Vec<CacheSlot>,
    weights: Vec<WeightSlot>,
    vectors_data: Vec<Arc<[f32]>>,
    instrs: Vec<Step>,
    /// `None` for a stage that isn't the last of its program.
    output: Option<Span>,
    /// Hidden states that a step can return beside its outputs.
    hidden: Option<Span>,
    size: ProgramSize,
    /// Values of cos (and of sin) a token, for each rope table.
    rope_halves: Vec<usize>,
}

/// What the team does at once, and whether it meets before.
struct Step {
    barrier: bool,
    work: Work,
}

/// An instruction, or what this machine does beside those.
enum Work {
    Instr(Instr),
    /// Packs the f32 rows of the next matmul, if they are many.
    PackFloats(Span),
    /// A gated matmul whose result goes nowhere but into the next step: of many rows it is quantised at once.
    GluQuantize(Instr, ActId),
    /// That next step.
    QuantizeFew(Span, ActId),
}

struct BufferSlot {
    /// In the f32 arena.
    offset: usize,
    width: usize,
    rows: Rows,
}

struct ActSlot {
    k: usize,
    /// Offsets of the rows in the arenas of values, scales and sums.
    q: usize,
    d: usize,
    sums: usize,
    /// Offsets of the packed rows in their arenas of values, scales and sums.
    packed_q: usize,
    packed_d: usize,
    packed_sums: usize,
    /// Offset of the rounded rows in their arena.
    pairs: usize,
}

struct CacheSlot {
    pool: KvPool,
    num_kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    /// Offsets in the KV arena, in bytes.
    k: usize,
    v: usize,
}

/// All memory of a step, allocated once. Zeroed memory that is never used never becomes resident.
struct Memory {
    /// Buffers, f32.
    arena: Region<f32>,
    /// Quantised activations.
    act_q: Region<i8>,
    act_d: Region<f32>,
    act_sums: Region<i16>,
    /// The same packed, in steps of many rows.
    packed_q: Region<i8>,
    packed_d: Region<f32>,
    packed_sums: Region<i16>,
    /// Instead of those, where many rows are rounded.
    pairs: Region<u32>,
    /// f32 rows of one matmul, packed, in steps of many rows.
    packed_floats: Region<f32>,
    kv: Region<u8>,
    /// Attention over parts of a context: `[CUT_ROWS][num_heads][MAX_PARTS][v_dim + 2]` of the largest layer.
    parts: Region<f32>,
    /// Parts that are done, for each sequence whose context is cut and each KV head; 0 between instructions.
    arrivals: Vec<AtomicU32>,
    scratch: Vec<Own<WorkerScratch>>,
    check: InputCheck,
}

/// What a worker needs for itself.
struct WorkerScratch {
    matmul: Scratch,
    attention: super::attention::TileScratch,
    /// How the attention of the step's sequences is cut.
    seq_pieces: Vec<attend::SeqPieces>,
    /// One row of the widest buffer.
    row: Vec<f32>,
    /// Results of [`Work::GluQuantize`] that aren't quantised yet.
    lanes: Lines<f32>,
}

impl Program {
    /// Tokens that a step takes at most.
    pub fn max_tokens(&self) -> usize {
        self.code.size.max_tokens
    }

    /// Blocks of [`super::attention::KV_BLOCK`] tokens in a KV pool.
    pub fn num_blocks(&self, pool: KvPool) -> usize {
        self.code.size.num_blocks_in(pool)
    }

    /// Workers.
    pub fn num_workers(&self) -> usize {
        self.team.num_workers()
    }

    /// Barriers of a step.
    pub fn num_barriers(&self) -> usize {
        self.code.instrs.iter().filter(|step| step.barrier).count()
    }
}

impl Code {
    /// Where a block's keys and values lie in the KV arena, in bytes: two ranges a cache of its pool, always in the same
    /// order.
    fn block_ranges(&self, pool: KvPool, block: u32) -> impl Iterator<Item = Range<usize>> {
        let KvTypes { k, v } = self.size.kv;
        let caches = self.caches.iter().filter(move |cache| cache.pool == pool);
        caches.flat_map(move |cache| {
            [(cache.k, k.block_bytes(cache.k_dim)), (cache.v, v.block_bytes(cache.v_dim))].map(|(start, head_bytes)| {
                let bytes = cache.num_kv_heads * head_bytes;
                let first = start + block as usize * bytes;
                first..first + bytes
            })
        })
    }
}

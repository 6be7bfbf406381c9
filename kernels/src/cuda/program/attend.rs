//! What storing keys and values and attending launch.

use super::Code;
use super::launch::{Step, shape, u};
use super::memory::{CacheSlot, kind};
use crate::cpu::attention::KV_BLOCK;
use crate::cpu::kv::{KvPool, KvType, KvTypes};
use crate::cuda::args::{AttendArgs, StoreArgs};
use crate::cuda::{CudaError, Function, Gpu, LaunchShape};
use crate::program::builder::CacheShape;
use crate::program::{Instr, ProgramBuilder, ProgramSize, Span};

/// Threads of attention: `ATTEND_WARPS` warps.
const ATTEND_THREADS: u32 = 128;
/// Query heads that a block of attention takes at most, by the kernels that there are.
const ATTEND_HEADS: [usize; 4] = [1, 2, 4, 8];
/// Query heads times rows of a block of attention on the tensor cores.
const TILE_QUERIES: usize = 64;
/// Largest heads that its kernels take.
const TILE_DIMS: [usize; 3] = [64, 128, 256];
/// Elements that the sizes of its heads are multiples of.
const TILE_DIM_STEP: usize = 16;
/// Bytes of shared memory of a block for each octet of keys and values: two stages of 32 tokens.
const TILE_OCTET_BYTES: usize = 2 * KV_BLOCK * 16;
/// Rows whose positions are divided among several blocks: more rows are enough work by themselves.
const SPLIT_ROWS: usize = 32;
/// Positions of a split at least.
const SPLIT: usize = 256;
/// Splits of a row at most: a bound on the memory of their results.
pub(super) const MAX_SPLITS: usize = 32;

/// The kernels of this file.
pub(super) struct AttendFunctions {
    store_kv: Function,
    merge_splits: Function,
    /// By type of the cache, then by [`ATTEND_HEADS`].
    f16: [Function; 4],
    q8_0: [Function; 4],
    q4_0: [Function; 4],
    mixed: [Function; 4],
    /// By [`TILE_DIMS`]; `None` where the device has no such tensor cores.
    tile: Option<[Function; 3]>,
}

impl AttendFunctions {
    pub(super) fn resolve(gpu: &Gpu) -> Result<Self, CudaError> {
        let attend = |kv: &str| -> Result<[Function; 4], CudaError> {
            let [a, b, c, d] = ATTEND_HEADS.map(|heads| gpu.function(&format!("attend_{kv}_{heads}")));
            Ok([a?, b?, c?, d?])
        };
        Ok(Self {
            store_kv: gpu.function("store_kv")?,
            merge_splits: gpu.function("merge_splits")?,
            f16: attend("f16")?,
            q8_0: attend("q8_0")?,
            q4_0: attend("q4_0")?,
            mixed: attend("mixed")?,
            tile: match TILE_DIMS.map(|dim| gpu.function(&format!("attend_tile_{dim}"))) {
                [Ok(a), Ok(b), Ok(c)] => Some([a, b, c]),
                _ => None,
            },
        })
    }

    fn by_type(&self, kv: KvTypes) -> &[Function; 4] {
        match (kv.k, kv.v) {
            (KvType::F16, KvType::F16) => &self.f16,
            (KvType::Q8_0, KvType::Q8_0) => &self.q8_0,
            (KvType::Q4_0, KvType::Q4_0) => &self.q4_0,
            _ => &self.mixed,
        }
    }
}

/// Bytes that the results of splits take at most.
pub(super) fn parts_bytes(builder: &ProgramBuilder, size: &ProgramSize) -> usize {
    let of = |instr: &Instr| match instr {
        Instr::Attend { cache, num_heads, .. } => num_heads * part_len(builder.caches[cache.0].v_dim),
        _ => 0,
    };
    let floats = builder.instrs.iter().map(of).max().unwrap_or(0);
    floats * size.max_tokens.min(SPLIT_ROWS) * MAX_SPLITS * size_of::<f32>()
}

/// Rows of a tile of attention for groups of so many query heads; `None` where they don't fit into one.
pub(super) fn tile_rows(num_heads: usize, num_kv_heads: usize) -> Option<usize> {
    let rows = TILE_QUERIES / (num_heads / num_kv_heads);
    (rows > 0).then_some(rows)
}

/// Floats of the state of one head: weighted values, maximum, sum.
fn part_len(v_dim: usize) -> usize {
    v_dim.next_multiple_of(8) + 2
}

/// Attention on the tensor cores.
#[derive(Clone, Copy)]
struct Tiles {
    /// Of the list in the step's input.
    offset: usize,
    count: usize,
    function: Function,
}

impl Code {
    /// Positions of a split, for sequences of up to `longest`. Where results may not depend on the batch, always the same.
    pub(super) fn split(&self, is_invariant: bool, longest: usize) -> usize {
        let most = if is_invariant { self.size.num_blocks * KV_BLOCK } else { longest };
        most.div_ceil(MAX_SPLITS).next_multiple_of(SPLIT).max(SPLIT)
    }
}

impl Step<'_> {
    pub(super) fn store(&self, k: &Span, v: &Span, cache: &CacheSlot) -> Result<(), CudaError> {
        let ((k_address, k_stride), (v_address, v_stride)) = (self.code.arena.at(k), self.code.arena.at(v));
        let KvTypes { k: k_type, v: v_type } = self.code.size.kv;
        let memory = self.code.kv.buffer.address();
        let args = StoreArgs {
            k: k_address,
            v: v_address,
            k_cache: memory + cache.k as u64,
            v_cache: memory + cache.v as u64,
            rows: self.layout.rows_in_kv(self.input, cache.shape.pool == KvPool::Window),
            k_stride,
            v_stride,
            num_kv_heads: u(cache.shape.num_kv_heads),
            k_dim: u(cache.shape.k_dim),
            v_dim: u(cache.shape.v_dim),
            k_kind: kind(k_type),
            v_kind: kind(v_type),
            unused: 0,
        };
        let grid = [cache.shape.num_kv_heads, self.shape.tokens, 2];
        self.gpu.launch(self.code.functions.attention.store_kv, &shape(grid, 32), &args)
    }

    pub(super) fn attend(&self, instr: &Instr) -> Result<(), CudaError> {
        let Instr::Attend { q, out, cache, num_heads, scale, softcap, window, causal, sinks } = instr else {
            return Ok(());
        };
        let cache = &self.code.kv.caches[cache.0];
        let CacheShape { pool, num_kv_heads, k_dim, v_dim } = cache.shape;
        let kv = self.code.size.kv;
        let memory = self.code.kv.buffer.address();
        let group = num_heads / num_kv_heads;
        let tiles = self.tiles(*num_heads, &cache.shape);
        let choice = ATTEND_HEADS.iter().position(|&heads| heads >= group).unwrap_or(ATTEND_HEADS.len() - 1);
        let heads = ATTEND_HEADS[choice];
        let seen = window.map_or(self.shape.positions, |window| window.min(self.shape.positions));
        let split = self.code.split(self.shape.is_invariant, self.shape.positions);
        let is_split = self.shape.is_invariant || self.shape.tokens <= SPLIT_ROWS;
        let num_splits = if is_split { seen.div_ceil(split).clamp(1, MAX_SPLITS) } else { 1 };
        let split = if num_splits == 1 { self.shape.positions.max(KV_BLOCK) } else { split };
        let (k_len, v_len) = (k_dim.next_multiple_of(8), part_len(v_dim));
        let floats = heads * k_len + ATTEND_THREADS as usize / 32 * heads * v_len;
        // Splits have memory for so many rows at a time.
        let rows_at_once = if num_splits == 1 || tiles.is_some() { self.shape.tokens } else { SPLIT_ROWS };
        for first in (0..self.shape.tokens).step_by(rows_at_once) {
            let num_rows = rows_at_once.min(self.shape.tokens - first);
            let ((q_address, q_stride), (to, out_stride)) =
                (self.code.arena.at_row(q, first), self.code.arena.at_row(out, first));
            let args = AttendArgs {
                q: q_address,
                out: to,
                k_cache: memory + cache.k as u64,
                v_cache: memory + cache.v as u64,
                sinks: self.vector(*sinks),
                parts: self.code.parts.address(),
                rows: self.layout.rows_in_kv(self.input, pool == KvPool::Window).without_rows(first),
                tiles: tiles.map_or(0, |tiles| self.input + tiles.offset as u64),
                q_stride,
                out_stride,
                num_heads: u(*num_heads),
                num_kv_heads: u(num_kv_heads),
                k_dim: u(k_dim),
                v_dim: u(v_dim),
                k_kind: kind(kv.k),
                v_kind: kind(kv.v),
                scale: *scale,
                softcap: softcap.unwrap_or(0.0),
                window: window.map_or(0, u),
                causal: u32::from(*causal),
                split: u(split),
                num_splits: u(num_splits),
            };
            if let Some(Tiles { count, function, .. }) = tiles {
                let octets = k_dim.div_ceil(8) + v_dim.div_ceil(8);
                let dynamic_shared = u(octets * TILE_OCTET_BYTES);
                let tile = LaunchShape { dynamic_shared, ..shape([count, num_kv_heads, 1], ATTEND_THREADS) };
                return self.gpu.launch(function, &tile, &args);
            }
            let grid = [num_splits, num_kv_heads * group.div_ceil(heads), num_rows];
            let dynamic_shared = u(floats * size_of::<f32>());
            let attend = LaunchShape { dynamic_shared, ..shape(grid, ATTEND_THREADS) };
            self.gpu.launch(self.code.functions.attention.by_type(kv)[choice], &attend, &args)?;
            if num_splits > 1 {
                let threads = u(v_dim.next_multiple_of(32));
                let merge = shape([*num_heads, num_rows, 1], threads);
                self.gpu.launch(self.code.functions.attention.merge_splits, &merge, &args)?;
            }
        }
        Ok(())
    }

    /// How the tensor cores take a step's attention, if they do: many rows, keys and values in f16, nothing that must be exact
    /// or independent of the other rows.
    fn tiles(&self, num_heads: usize, shape: &CacheShape) -> Option<Tiles> {
        let kv = self.code.size.kv;
        let fits = (kv.k, kv.v) == (KvType::F16, KvType::F16)
            && shape.k_dim.is_multiple_of(TILE_DIM_STEP)
            && shape.v_dim.is_multiple_of(TILE_DIM_STEP);
        if self.code.is_exact || self.shape.is_invariant || !fits {
            return None;
        }
        let (offset, count) = self.layout.tiles_of(self.code, tile_rows(num_heads, shape.num_kv_heads)?)?;
        let choice = TILE_DIMS.iter().position(|&dim| dim >= shape.k_dim.max(shape.v_dim))?;
        Some(Tiles { offset, count, function: self.code.functions.attention.tile?[choice] })
    }
}

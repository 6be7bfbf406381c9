//! Matmul in f32: the loops around an ISA's dot products and tiles, the same for every ISA and type.
//!
//! Few rows of activations: dot products on the weights as they lie in the file; quantised rows are turned into f32 four at a
//! time. More: as in `gemm.rs`, with weights unpacked to f32.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::ahead::ReadOnce;
use super::{
    DECODE_ROWS,
    ahead::Ahead,
    matrix::{FloatActs, MatrixRef, ROW_TILE, Scratch},
    pack::PACK_ROWS,
    tile::FloatTile,
};
use crate::quant::QuantType;

/// Rows of activations up to which dot products cost less than making panels.
pub(super) const DOT_ROWS: usize = 32;
/// Rows of activations that share one unpacking of the weights.
const SLAB_ROWS: usize = 512;
/// Elements of K in a chunk: a multiple of every block; activations of a block take 32 KiB.
const CHUNK: usize = 256;
/// Columns that are unpacked together: a multiple of every tile's rows of weights, and of [`COL_STEP`].
const BLOCK_COLS: usize = 240;
/// What the rows of weights of every tile divide.
const COL_STEP: usize = 12;
/// What the GEMM takes from scratch: weights, packed activations and sums.
pub(super) const SCRATCH_BYTES: usize = 4 * (BLOCK_COLS * CHUNK + CHUNK * PACK_ROWS + SLAB_ROWS * BLOCK_COLS);
const _: () = assert!(SLAB_ROWS.is_multiple_of(PACK_ROWS) && BLOCK_COLS.is_multiple_of(COL_STEP));

/// Activations and output of a dot product or tile. Strides in elements.
#[derive(Clone, Copy)]
pub(super) struct FloatJob {
    /// Elements to sum over.
    pub(super) k: usize,
    /// `[rows, x_stride]`
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// `[rows, out_stride]`
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// How to ask for weights that come next.
    #[cfg(target_arch = "x86_64")]
    pub(super) read_once: ReadOnce,
}

/// What an ISA brings.
pub(super) trait FloatIsa {
    /// 32-bit lanes of a register.
    const LANES: usize;
    /// Rows of weights in a tile of one register of activation rows, and of two; they divide [`COL_STEP`].
    const TILE_COLS: [usize; 2];

    /// See `CpuKernels::dequantize_row`.
    ///
    /// # Safety
    /// The CPU must have the ISA; lengths must fit.
    unsafe fn dequantize_row(dtype: QuantType, src: &[u8], dst: &mut [f32]);

    /// `num_rows` rows of float weights at `w` against `num_acts` (at most [`DECODE_ROWS`]) rows of activations.
    ///
    /// # Safety
    /// The CPU must have the ISA; `w` must hold rows of `job.k` elements of `dtype` every `row_bytes`; the job must be valid.
    unsafe fn dots(dtype: QuantType, w: *const u8, row_bytes: usize, num_rows: usize, num_acts: usize, job: &FloatJob);

    /// See [`super::pack::transpose`].
    ///
    /// # Safety
    /// As there, and the CPU must have the ISA.
    unsafe fn transpose(
        rows: *const u32,
        stride: usize,
        num_rows: usize,
        num_units: usize,
        to: *mut u32,
        to_stride: usize,
    );

    /// Asks for the cache line at `address`, which need not be valid.
    fn prefetch(address: *const u8);

    /// Computes a tile of `registers` registers of activation rows.
    ///
    /// # Safety
    /// The CPU must have the ISA; the tile's pointers must be valid for its shapes.
    unsafe fn tile(tile: &FloatTile, registers: usize);
}

/// See `CpuKernels::matmul_f32`.
///
/// # Safety
/// As there; the CPU must have the ISA.
pub(super) unsafe fn matmul<I: FloatIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &FloatActs,
    out: *mut f32,
    out_stride: usize,
    scratch: &mut Scratch,
) {
    let num_rows = acts.num_rows;
    let job = FloatJob {
        k: w.cols(),
        x: acts.x.as_ptr(),
        x_stride: acts.stride,
        out,
        out_stride,
        #[cfg(target_arch = "x86_64")]
        read_once: ReadOnce::detect(),
    };
    // SAFETY: the wrapper checked the shapes; rows are inside the matrix; `out` is the caller's promise.
    unsafe {
        if FloatActs::takes_packed(num_rows, acts.numerics) {
            gemm::<I>(w, rows, acts, &job, scratch);
        } else if w.dtype().is_float() {
            // All at once, or as many as stay in the cache while the activations take their turns.
            let step = if num_rows <= DECODE_ROWS { rows.len().max(1) } else { ROW_TILE };
            for row in rows.clone().step_by(step) {
                let first = w.data().as_ptr().add(row * w.row_bytes());
                let job = FloatJob { out: out.wrapping_add(row), ..job };
                grouped_dots::<I>(w.dtype(), first, w.row_bytes(), step.min(rows.end - row), num_rows, &job);
            }
        } else {
            let four = scratch.carve().take::<f32>(4 * w.cols());
            for row in rows.clone().step_by(4) {
                let count = 4.min(rows.end - row);
                for (r, weights) in four.chunks_exact_mut(w.cols()).take(count).enumerate() {
                    I::dequantize_row(w.dtype(), w.row(row + r), weights);
                }
                let job = FloatJob { out: out.wrapping_add(row), ..job };
                grouped_dots::<I>(QuantType::F32, four.as_ptr().cast(), w.cols() * 4, count, num_rows, &job);
            }
        }
    }
}

/// [`FloatIsa::dots`] for any number of rows of activations, [`DECODE_ROWS`] at a time.
unsafe fn grouped_dots<I: FloatIsa>(
    dtype: QuantType,
    w: *const u8,
    row_bytes: usize,
    num_rows: usize,
    num_acts: usize,
    job: &FloatJob,
) {
    for m in (0..num_acts).step_by(DECODE_ROWS) {
        let part =
            FloatJob { x: job.x.wrapping_add(m * job.x_stride), out: job.out.wrapping_add(m * job.out_stride), ..*job };
        // SAFETY: the caller's promises, passed on; rows m.. of the job.
        unsafe { I::dots(dtype, w, row_bytes, num_rows, DECODE_ROWS.min(num_acts - m), &part) };
    }
}

unsafe fn gemm<I: FloatIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &FloatActs,
    job: &FloatJob,
    scratch: &mut Scratch,
) {
    const { assert!(COL_STEP.is_multiple_of(I::TILE_COLS[0]) && COL_STEP.is_multiple_of(I::TILE_COLS[1])) };
    if rows.is_empty() {
        return;
    }
    let mut carve = scratch.carve();
    let weights = carve.take::<f32>(BLOCK_COLS * CHUNK);
    let own = carve.take::<f32>(CHUNK * PACK_ROWS);
    let strip = carve.take::<f32>(SLAB_ROWS / PACK_ROWS * BLOCK_COLS * PACK_ROWS);
    // Equal blocks of columns.
    let block_cols = rows.len().div_ceil(rows.len().div_ceil(BLOCK_COLS)).next_multiple_of(COL_STEP);
    for (slab, first) in (0..acts.num_rows).step_by(SLAB_ROWS).flat_map(|slab| {
        let blocks = rows.clone().step_by(block_cols);
        blocks.map(move |first| (slab..acts.num_rows.min(slab + SLAB_ROWS), first))
    }) {
        let cols = first..rows.end.min(first + block_cols);
        for from in (0..job.k).step_by(CHUNK) {
            let elements = CHUNK.min(job.k - from);
            // Both are whole blocks, as K and CHUNK are.
            let blocks = |elements: usize| elements / w.dtype().block_len() * w.dtype().block_bytes();
            let bytes = blocks(from)..blocks(from) + blocks(elements);
            for (col, weights) in cols.clone().zip(weights.chunks_exact_mut(CHUNK)) {
                // SAFETY: the CPU is the caller's promise; both are `elements` elements.
                unsafe { I::dequantize_row(w.dtype(), &w.row(col)[bytes.clone()], &mut weights[..elements]) };
            }
            let num_tiles = slab.len().div_ceil(PACK_ROWS) * cols.len().div_ceil(I::TILE_COLS[1]);
            let mut ahead = Ahead::new(w, &cols, block_cols, from..from + elements, num_tiles);
            for (block, strip) in slab.clone().step_by(PACK_ROWS).zip(strip.chunks_exact_mut(BLOCK_COLS * PACK_ROWS)) {
                let block_rows = PACK_ROWS.min(slab.end - block);
                let packed = match acts.packed {
                    Some(packed) => &packed[block * job.k + from * PACK_ROWS..][..elements * PACK_ROWS],
                    None => {
                        // SAFETY: rows block ..+ block_rows of x, elements from ..+ elements; a chunk of a block.
                        unsafe {
                            let x = job.x.add(block * job.x_stride + from).cast();
                            I::transpose(x, job.x_stride, block_rows, elements, own.as_mut_ptr().cast(), PACK_ROWS);
                        }
                        &own[..]
                    }
                };
                let num_registers = block_rows.div_ceil(I::LANES);
                let mut register = 0;
                while register < num_registers {
                    let registers = (num_registers - register).min(2);
                    let lane = register * I::LANES;
                    for col in (0..cols.len()).step_by(I::TILE_COLS[registers - 1]) {
                        ahead.ask(I::prefetch);
                        let tile = FloatTile {
                            k: elements,
                            weights: weights[col * CHUNK..].as_ptr(),
                            weight_stride: CHUNK,
                            x: packed[lane..].as_ptr(),
                            sums: strip[col * PACK_ROWS + lane..].as_mut_ptr(),
                            accumulate: from > 0,
                        };
                        // SAFETY: the CPU is the caller's promise; weights and sums hold whole tiles, since tiles divide BLOCK_COLS.
                        unsafe { I::tile(&tile, registers) };
                    }
                    register += registers;
                }
            }
        }
        for (block, strip) in slab.clone().step_by(PACK_ROWS).zip(strip.chunks_exact(BLOCK_COLS * PACK_ROWS)) {
            // SAFETY: the strip's rows are columns of the output; rows block.. and columns `cols` of `out` are the caller's promise.
            unsafe {
                let out = job.out.add(block * job.out_stride + cols.start).cast();
                let block_rows = PACK_ROWS.min(slab.end - block);
                I::transpose(strip.as_ptr().cast(), PACK_ROWS, cols.len(), block_rows, out, job.out_stride);
            }
        }
    }
}

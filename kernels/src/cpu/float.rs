//! Matmul in f32: the loops around an ISA's dot products and tiles, the same for every ISA and type.
//!
//! Few rows of activations: dot products on the weights as they lie in the file; quantised rows are turned into f32 four at a
//! time. More: panels of [`ROW_TILE`] rows in f32, unpacked once a slab of activation rows.

use std::ops::Range;

use super::{
    DECODE_ROWS,
    matrix::{MatrixRef, ROW_TILE, Scratch},
    pack::Transpose,
};
use crate::quant::QuantType;

/// Rows of activations up to which dot products cost less than making panels.
const DOT_ROWS: usize = 32;
/// Rows of activations that share one unpacking of the weights.
const SLAB_ROWS: usize = 512;
/// Elements of K in a chunk: a multiple of every block; a panel is 32 KiB.
const CHUNK: usize = 256;
/// What the GEMM takes from scratch: a panel and the rows that it is made from.
pub(super) const SCRATCH_BYTES: usize = 2 * CHUNK * ROW_TILE * 4;

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
}

/// What an ISA brings.
pub(super) trait FloatIsa: Transpose {
    /// Most rows of activations in a tile.
    const TILE_ROWS: usize;

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

    /// `tile_rows` (1 to [`Self::TILE_ROWS`]) rows of activations against a panel `[job.k][ROW_TILE]`, of which `num_cols`
    /// columns are wanted, added to what `out` holds if `accumulate`.
    ///
    /// # Safety
    /// The CPU must have the ISA; panel and job must be valid.
    unsafe fn tile(panel: *const f32, job: &FloatJob, num_cols: usize, accumulate: bool, tile_rows: usize);
}

/// See `CpuKernels::matmul_f32`.
///
/// # Safety
/// As there; the CPU must have the ISA.
#[expect(clippy::too_many_arguments, reason = "the signature of the table")]
pub(super) unsafe fn matmul<I: FloatIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    x: &[f32],
    x_stride: usize,
    num_rows: usize,
    out: *mut f32,
    out_stride: usize,
    scratch: &mut Scratch,
) {
    let job = FloatJob { k: w.cols(), x: x.as_ptr(), x_stride, out, out_stride };
    // SAFETY: the wrapper checked the shapes; rows are inside the matrix; `out` is the caller's promise.
    unsafe {
        if num_rows > DOT_ROWS {
            gemm::<I>(w, rows, num_rows, &job, scratch);
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

unsafe fn gemm<I: FloatIsa>(w: &MatrixRef, rows: Range<usize>, num_rows: usize, job: &FloatJob, scratch: &mut Scratch) {
    let mut carve = scratch.carve();
    let panel = carve.take::<f32>(CHUNK * ROW_TILE);
    let strip = carve.take::<f32>(ROW_TILE * CHUNK);
    for slab in (0..num_rows).step_by(SLAB_ROWS) {
        let slab_end = num_rows.min(slab + SLAB_ROWS);
        for from in (0..job.k).step_by(CHUNK) {
            let elements = CHUNK.min(job.k - from);
            // Both are whole blocks, as K and CHUNK are.
            let blocks = |elements: usize| elements / w.dtype().block_len() * w.dtype().block_bytes();
            let bytes = blocks(from)..blocks(from) + blocks(elements);
            for row in rows.clone().step_by(ROW_TILE) {
                let num_cols = ROW_TILE.min(rows.end - row);
                if num_cols < ROW_TILE {
                    strip.fill(0.0);
                }
                for (r, strip) in strip.chunks_exact_mut(CHUNK).take(num_cols).enumerate() {
                    // SAFETY: the CPU is the caller's promise; both are `elements` elements.
                    unsafe { I::dequantize_row(w.dtype(), &w.row(row + r)[bytes.clone()], &mut strip[..elements]) };
                }
                // SAFETY: the CPU is the caller's promise.
                unsafe { I::transpose(bytemuck::cast_slice(strip), CHUNK, elements, bytemuck::cast_slice_mut(panel)) };
                let mut m = slab;
                while m < slab_end {
                    let left = slab_end - m;
                    let tile_rows = left.div_ceil(left.div_ceil(I::TILE_ROWS));
                    // SAFETY: rows m ..+ tile_rows of x and `out`, columns row ..+ num_cols; the panel was just filled.
                    unsafe {
                        let tile = FloatJob {
                            k: elements,
                            x: job.x.add(m * job.x_stride + from),
                            out: job.out.add(m * job.out_stride + row),
                            ..*job
                        };
                        I::tile(panel.as_ptr(), &tile, num_cols, from > 0, tile_rows);
                    }
                    m += tile_rows;
                }
            }
        }
    }
}

//! Matmul of many rows on 16-bit weights, with activations rounded to bfloat16, and weights of half precision too: products are exact
//! in f32, sums are f32.
//!
//! Outside in: slabs of activation rows; chunks of K, for which the slab's activations are rounded; panels of [`PANEL`] rows of
//! weights, transposed so that lanes are weights and neighbours in K lie in one lane; tiles of up to [`TILE_ROWS`] activation
//! rows. The order of additions for an element of the output depends on K only.

use core::arch::x86_64::*;
use std::{mem::transmute, ops::Range};

use super::gemm::transpose;
use crate::cpu::{
    float,
    kernels::BF16_UNIT as UNIT,
    matrix::{FloatActs, MatrixRef, Scratch},
};
use crate::quant::QuantType;

/// Rows of activations that share one transposition of the weights.
const SLAB_ROWS: usize = 512;
/// Most elements of K in a chunk: a panel takes 32 KiB then.
pub(super) const CHUNK: usize = 512;
/// Rows of weights in a panel.
pub(super) const PANEL: usize = 32;
/// Most rows of activations in a tile.
pub(super) const TILE_ROWS: usize = 32;

/// What [`matmul`] takes from scratch: rounded activations and weights, a panel, and the sums of a tile.
const SCRATCH_BYTES: usize = (SLAB_ROWS + PANEL) * CHUNK * 2 + CHUNK / 2 * PANEL * 4 + TILE_ROWS * PANEL * 4;
const _: () = assert!(SCRATCH_BYTES <= float::SCRATCH_BYTES && CHUNK.is_multiple_of(UNIT));

/// One tile.
pub(super) struct Tile {
    /// bf16 `[TILE_ROWS][CHUNK]`; rows that there are not hold anything.
    pub(super) x: *const u16,
    /// Pairs of bf16 `[num_units · 16][PANEL]`; lanes that there are not hold anything.
    pub(super) panel: *const u32,
    /// Chunks of [`UNIT`] elements.
    pub(super) num_units: usize,
    /// Rows of activations, 1 to [`TILE_ROWS`].
    pub(super) num_rows: usize,
    /// `[TILE_ROWS][PANEL]`, overwritten.
    pub(super) sums: *mut f32,
}

/// How a tile is computed.
pub(super) trait Bf16Isa {
    /// Prepares this thread for [`Self::tile`].
    ///
    /// # Safety
    /// The CPU must have the ISA.
    unsafe fn begin();

    /// Rounds `x` to nearest even.
    ///
    /// # Safety
    /// `to` must be valid for as many elements as `x` has, a multiple of 32; the CPU must have the ISA.
    unsafe fn round_row(x: &[f32], to: *mut u16);

    /// Rounds half precision to nearest even.
    ///
    /// # Safety
    /// `from` and `to` must be valid for `len` elements, a multiple of 32, at any alignment; the CPU must have the ISA.
    unsafe fn round_f16(from: *const u16, len: usize, to: *mut u16);

    /// `sums[m][n] = Σ x[m] · panel[n]`; rows and lanes that there are not may come out as anything.
    ///
    /// # Safety
    /// The CPU must have the ISA; the tile's pointers must be valid for its shapes; [`Self::begin`] came before.
    unsafe fn tile(tile: &Tile);

    /// Undoes [`Self::begin`].
    ///
    /// # Safety
    /// The CPU must have the ISA.
    unsafe fn end();
}

/// `vdpbf16ps`.
pub(super) struct Avx512Bf16;

impl Bf16Isa for Avx512Bf16 {
    unsafe fn begin() {}

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn round_row(x: &[f32], to: *mut u16) {
        for (i, x) in x.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: 16 floats in, 16 bf16 out.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr()));
                to.add(16 * i).cast::<__m256bh>().write_unaligned(rounded);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn round_f16(from: *const u16, len: usize, to: *mut u16) {
        for i in (0..len).step_by(32) {
            // SAFETY: 32 elements in, as many out.
            unsafe {
                let low = _mm512_cvtph_ps(_mm256_loadu_si256(from.add(i).cast()));
                let high = _mm512_cvtph_ps(_mm256_loadu_si256(from.add(i + 16).cast()));
                to.add(i).cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low));
            }
        }
    }

    unsafe fn tile(tile: &Tile) {
        for row in (0..tile.num_rows).step_by(8) {
            // SAFETY: the caller's promises; rows row ..+ 8, of which the arrays have all.
            unsafe { rows::<8>(tile, row) };
        }
    }

    unsafe fn end() {}
}

const _: () = assert!(TILE_ROWS.is_multiple_of(8));

/// What those instructions do, on CPUs without them: so that all but them is tested everywhere.
#[cfg(test)]
pub(super) struct Emulated;

#[cfg(test)]
impl Bf16Isa for Emulated {
    unsafe fn begin() {}

    unsafe fn round_row(x: &[f32], to: *mut u16) {
        for (i, &x) in x.iter().enumerate() {
            // SAFETY: as many elements as `x` has.
            unsafe { to.add(i).write(half::bf16::from_f32(x).to_bits()) };
        }
    }

    unsafe fn round_f16(from: *const u16, len: usize, to: *mut u16) {
        for i in 0..len {
            // SAFETY: the caller's elements.
            unsafe {
                let x = half::f16::from_bits(from.add(i).read_unaligned()).to_f32();
                to.add(i).write(half::bf16::from_f32(x).to_bits());
            }
        }
    }

    unsafe fn tile(tile: &Tile) {
        let wide = |x: u32| f32::from_bits(x << 16);
        for (m, n) in (0..tile.num_rows).flat_map(|m| (0..PANEL).map(move |n| (m, n))) {
            // SAFETY: the tile's shapes.
            unsafe {
                let mut sum = 0.0;
                for i in 0..tile.num_units * UNIT {
                    let pair = *tile.panel.add(i / 2 * PANEL + n);
                    sum += wide(pair >> (16 * (i % 2)) & 0xffff) * wide(u32::from(*tile.x.add(m * CHUNK + i)));
                }
                tile.sums.add(m * PANEL + n).write(sum);
            }
        }
    }

    unsafe fn end() {}
}

/// `M` rows of a tile, from `row` on: two registers of sums each.
///
/// # Safety
/// As [`Bf16Isa::tile`]; rows row ..+ M are below [`TILE_ROWS`]; the CPU must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const M: usize>(tile: &Tile, row: usize) {
    // SAFETY: the tile's shapes. A vector of bf16 is 512 bits of any content.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        let x = tile.x.add(row * CHUNK).cast::<i32>();
        for pair in 0..tile.num_units * (UNIT / 2) {
            let panel = tile.panel.add(pair * PANEL);
            let w0 = panel.cast::<__m512bh>().read_unaligned();
            let w1 = panel.add(16).cast::<__m512bh>().read_unaligned();
            for m in 0..M {
                let x = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x.add(m * (CHUNK / 2) + pair)));
                acc[m][0] = _mm512_dpbf16_ps(acc[m][0], x, w0);
                acc[m][1] = _mm512_dpbf16_ps(acc[m][1], x, w1);
            }
        }
        for m in 0..M {
            for half in 0..2 {
                _mm512_storeu_ps(tile.sums.add((row + m) * PANEL + half * 16), acc[m][half]);
            }
        }
    }
}

/// Adds a tile's sums to the output, or sets it.
///
/// # Safety
/// `sums` must be valid for `num_rows` rows, `out` for as many with `num_cols` columns; the CPU must have AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn store(sums: *const f32, num_rows: usize, num_cols: usize, out: *mut f32, stride: usize, accumulate: bool) {
    let all = if num_cols >= PANEL { !0 } else { (1u32 << num_cols) - 1 };
    for m in 0..num_rows {
        for half in 0..2 {
            let mask = (all >> (16 * half)) as u16;
            // SAFETY: the caller's shapes; columns that there are not are masked off, and their address isn't used.
            unsafe {
                let mut sum = _mm512_loadu_ps(sums.add(m * PANEL + 16 * half));
                let out = out.wrapping_add(m * stride + 16 * half);
                if accumulate {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out));
                }
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}

/// See `CpuKernels::matmul_rounded`: K is a multiple of [`UNIT`].
///
/// # Safety
/// As there; the CPU must have AVX-512 F and BF16, and the ISA.
pub(super) unsafe fn matmul<I: Bf16Isa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &FloatActs,
    out: *mut f32,
    out_stride: usize,
    scratch: &mut Scratch,
) {
    let FloatActs { x, stride: x_stride, num_rows, .. } = *acts;
    let k = w.cols();
    let mut carve = scratch.carve();
    let rounded = carve.take::<u16>(SLAB_ROWS * CHUNK);
    let rounded_weights = carve.take::<u16>(PANEL * CHUNK);
    let panel = carve.take::<u32>(CHUNK / 2 * PANEL);
    let sums = carve.take::<f32>(TILE_ROWS * PANEL);
    // SAFETY: the CPU is the caller's promise.
    unsafe { I::begin() };
    for slab in (0..num_rows).step_by(SLAB_ROWS) {
        let slab_rows = SLAB_ROWS.min(num_rows - slab);
        for from in (0..k).step_by(CHUNK) {
            let elements = CHUNK.min(k - from);
            for (m, rounded) in rounded.chunks_exact_mut(CHUNK).take(slab_rows).enumerate() {
                let first = (slab + m) * x_stride + from;
                // SAFETY: K and CHUNK are multiples of 32.
                unsafe { I::round_row(&x[first..first + elements], rounded.as_mut_ptr()) };
            }
            for row in rows.clone().step_by(PANEL) {
                let num_cols = PANEL.min(rows.end - row);
                // SAFETY: rows row ..+ num_cols of the matrix, elements from ..+ elements, which are whole units; as pairs of them.
                // The panel has as many pairs as the chunk.
                unsafe {
                    let (weights, stride) = if w.dtype() == QuantType::F16 {
                        for (n, to) in rounded_weights.chunks_exact_mut(CHUNK).take(num_cols).enumerate() {
                            let weights = w.row(row + n).as_ptr().cast::<u16>().add(from);
                            I::round_f16(weights, elements, to.as_mut_ptr());
                        }
                        (rounded_weights.as_ptr().cast(), CHUNK / 2)
                    } else {
                        (w.row(row).as_ptr().cast::<u32>().add(from / 2), k / 2)
                    };
                    transpose(weights, stride, num_cols, elements / 2, panel.as_mut_ptr(), PANEL);
                }
                for m in (0..slab_rows).step_by(TILE_ROWS) {
                    let tile = Tile {
                        x: rounded[m * CHUNK..].as_ptr(),
                        panel: panel.as_ptr(),
                        num_units: elements / UNIT,
                        num_rows: TILE_ROWS.min(slab_rows - m),
                        sums: sums.as_mut_ptr(),
                    };
                    // SAFETY: the tile's rows are in `rounded`, since TILE_ROWS divides SLAB_ROWS; rows slab + m.. and columns row..
                    // of `out` are the caller's promise.
                    unsafe {
                        I::tile(&tile);
                        let out = out.add((slab + m) * out_stride + row);
                        store(tile.sums, tile.num_rows, num_cols, out, out_stride, from > 0);
                    }
                }
            }
        }
    }
    // SAFETY: the CPU is the caller's promise.
    unsafe { I::end() };
}

const _: () = assert!(SLAB_ROWS.is_multiple_of(TILE_ROWS));

//! Matmul of many rows on quantised weights, both rounded to bfloat16: products are exact in f32, sums are f32.
//!
//! Tiles of AMX multiply bf16 so fast that it pays to leave integers: those of 32 elements would have to come out of the tiles
//! after every group, to be scaled, which takes longer than to multiply them. Here a scale is part of the weight.
//!
//! Outside in as in `cpu/gemm.rs`: slabs of activation rows; blocks of columns; chunks of K, for which the block's weights are
//! dequantised, row-major as the left operand of a tile has them; blocks of activation rows, which were packed before; tiles. The
//! order of additions for an element of the output depends on K only.

use core::arch::x86_64::*;
use std::ops::Range;

use super::{
    formats::{Format, Mins},
    gemm::{prefetch, transpose, transpose_16},
};
use crate::{
    cpu::{
        ahead::Ahead,
        gemm::{Output, SLAB_ROWS, Source, equal_parts},
        matrix::{ACT_GROUP, MatrixRef, Scratch},
        pack::{PACK_ROWS, RoundedActs},
        scalar::unreachable_float,
    },
    quant::{GroupKind, with_block},
};

/// Elements of K in one multiplication of tiles.
pub(super) const UNIT: usize = 32;
/// Columns in a tile: two registers of 16.
const TILE_COLS: usize = 32;
/// Most elements of K in a chunk: a block of activations takes 32 KiB then.
const CHUNK: usize = 512;
/// Most columns that are dequantised together.
const BLOCK_COLS: usize = 256;
/// Elements between rows of a chunk, so that those of a tile lie in different sets of the first cache.
pub(super) const STRIDE: usize = CHUNK + 32;
/// What [`matmul`] takes from scratch at most: weights and strip.
pub(in crate::cpu) const SCRATCH_BYTES: usize = BLOCK_COLS * STRIDE * 2 + SLAB_ROWS * BLOCK_COLS * 4;

const _: () = assert!(BLOCK_COLS.is_multiple_of(TILE_COLS) && CHUNK.is_multiple_of(256) && UNIT == ACT_GROUP);

/// 16 or 32 columns × 16 or 32 rows of activations.
pub(super) struct Tile {
    /// bf16 `[columns][STRIDE]`; columns that there are not hold anything.
    pub(super) weights: *const u16,
    /// Pairs of bf16 `[num_units · 16][PACK_ROWS]`; lanes that there are not hold anything.
    pub(super) pairs: *const u32,
    /// Chunks of [`UNIT`] elements, at least one.
    pub(super) num_units: usize,
    /// `[columns][PACK_ROWS]`
    pub(super) sums: *mut f32,
    /// Whether to go on from what `sums` holds.
    pub(super) accumulate: bool,
    /// Registers of columns and of rows: 1 or 2.
    pub(super) registers: [usize; 2],
}

/// What multiplies tiles.
pub(super) trait TileIsa {
    /// Prepares this thread for [`Self::tile`].
    ///
    /// # Safety
    /// The CPU must have the ISA.
    unsafe fn begin();

    /// Adds up products of bf16 in f32.
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

/// What the tiles do, on CPUs without them: so that all else is tested there too.
#[cfg(test)]
pub(super) struct Emulated;

#[cfg(test)]
impl TileIsa for Emulated {
    unsafe fn begin() {}

    unsafe fn tile(tile: &Tile) {
        let wide = |x: u32| f32::from_bits(x << 16);
        let [columns, lanes] = tile.registers.map(|registers| registers * 16);
        for (n, lane) in (0..columns).flat_map(|n| (0..lanes).map(move |lane| (n, lane))) {
            // SAFETY: the tile's shapes.
            unsafe {
                let sum = tile.sums.add(n * PACK_ROWS + lane);
                let mut total = if tile.accumulate { *sum } else { 0.0 };
                for i in 0..tile.num_units * UNIT {
                    let pair = *tile.pairs.add(i / 2 * PACK_ROWS + lane);
                    total += wide(pair >> (16 * (i % 2)) & 0xffff) * wide(u32::from(*tile.weights.add(n * STRIDE + i)));
                }
                sum.write(total);
            }
        }
    }

    unsafe fn end() {}
}

/// See `CpuKernels::matmul_on_rounded` and its variant with lanes.
///
/// # Safety
/// As there; the CPU must have AVX-512 with BF16, and the ISA.
pub(super) unsafe fn matmul<I: TileIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &RoundedActs,
    output: Output,
    scratch: &mut Scratch,
) {
    if rows.is_empty() || acts.k == 0 {
        return;
    }
    // SAFETY: the CPU is the caller's promise.
    unsafe { I::begin() };
    for slab in (0..acts.num_rows).step_by(SLAB_ROWS) {
        let (acts, output) = (acts.rows(slab..acts.num_rows.min(slab + SLAB_ROWS)), output.skip_rows(slab));
        with_block!(
            w.dtype(),
            // SAFETY: the caller's promises, passed on; the slab's part of the output.
            |F| unsafe { typed::<F, I>(w, rows.clone(), &acts, &output, scratch) },
            unreachable_float(w.dtype())
        );
    }
    // SAFETY: the CPU is the caller's promise.
    unsafe { I::end() };
}

/// # Safety
/// As [`matmul`], with the ISA's preparation done.
unsafe fn typed<F: Format, I: TileIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &RoundedActs,
    output: &Output,
    scratch: &mut Scratch,
) {
    let chunk = equal_parts(acts.k, CHUNK, F::LEN.max(UNIT));
    let block_cols = equal_parts(rows.len(), BLOCK_COLS, TILE_COLS);
    let num_blocks = acts.num_rows.div_ceil(PACK_ROWS);
    let mut carve = scratch.carve();
    let weights = carve.take::<u16>(block_cols * STRIDE);
    let strip = output.strip(num_blocks * block_cols * PACK_ROWS, &mut carve);
    for first in rows.clone().step_by(block_cols) {
        let cols = first..rows.end.min(first + block_cols);
        let (sums, sums_cols) = output.sums(strip, first - rows.start, block_cols);
        let num_tiles = cols.len().div_ceil(16);
        for from in (0..acts.k).step_by(chunk) {
            let elements = chunk.min(acts.k - from);
            let source = Source::<F>::new(w, &cols, from..from + elements);
            // SAFETY: the CPU is the caller's promise.
            unsafe { dequantize::<F>(&source, weights) };
            let mut ahead = Ahead::new(w, &cols, block_cols, from..from + chunk, num_blocks * num_tiles.div_ceil(2));
            for block in 0..num_blocks {
                let num_rows = PACK_ROWS.min(acts.num_rows - block * PACK_ROWS);
                for tile in (0..num_tiles).step_by(2) {
                    ahead.ask(prefetch);
                    // SAFETY: 16 or 32 of the dequantised columns, and of `sums`, which holds whole registers of them; the block's
                    // activations from element `from` on.
                    unsafe {
                        I::tile(&Tile {
                            weights: weights.as_ptr().add(tile * 16 * STRIDE),
                            pairs: acts.pairs.as_ptr().add((block * acts.k + from) / 2 * PACK_ROWS),
                            num_units: elements / UNIT,
                            sums: sums.add((block * sums_cols + tile * 16) * PACK_ROWS),
                            accumulate: from > 0,
                            registers: [(num_tiles - tile).min(2), num_rows.div_ceil(16)],
                        });
                    }
                }
            }
        }
        // SAFETY: the strip holds these columns of all rows; the output and the CPU are the caller's promises.
        unsafe { output.store(sums, sums_cols, &cols, acts.num_rows, transpose) };
    }
}

/// Dequantises each row of `from` to a row of `to`, `[rows][STRIDE]`, as `Block::dequantize` does, and rounds to nearest even.
///
/// # Safety
/// The CPU must have AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn dequantize<F: Format>(from: &Source<F>, to: &mut [u16]) {
    assert!(from.num_blocks * F::LEN <= STRIDE);
    for (blocks, to) in from.rows().zip(to.chunks_exact_mut(STRIDE)) {
        for first in (0..blocks.len()).step_by(F::CHUNK_BLOCKS) {
            let count = F::CHUNK_BLOCKS.min(blocks.len() - first);
            // SAFETY: `count` blocks from `first` on, at most 16 groups of them; the row has room (asserted).
            unsafe {
                let block = blocks.as_ptr().add(first).cast::<u8>();
                let (scale, min) = F::scales(block, count);
                // Sixteen numbers each; minima in the upper half are without their sign.
                let min = match F::MINS {
                    Mins::None | Mins::Apart => min,
                    Mins::Upper => {
                        let upper = _mm512_shuffle_f32x4::<0b1110>(scale, scale);
                        _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(upper), _mm512_set1_epi32(i32::MIN)))
                    }
                };
                let to = to.as_mut_ptr().add(first * F::LEN);
                let scales = Scales { scale: to_array(scale), min: to_array(min) };
                for i in 0..count * F::LEN / 64 {
                    let codes = F::codes(block, i);
                    round_32::<F>(_mm512_castsi512_si256(codes), &scales, 64 * i, to);
                    round_32::<F>(_mm512_extracti64x4_epi64::<1>(codes), &scales, 64 * i + 32, to);
                }
                if !(count * F::LEN).is_multiple_of(64) {
                    let last = F::half(block.add((count - 1) * F::BYTES));
                    round_32::<F>(_mm512_castsi512_si256(last), &scales, (count - 1) * F::LEN, to);
                }
            }
        }
    }
}

/// Scales and minima of 16 groups.
struct Scales {
    scale: [f32; 16],
    min: [f32; 16],
}

#[target_feature(enable = "avx512f")]
#[inline]
fn to_array(x: __m512) -> [f32; 16] {
    let mut array = [0.0; 16];
    // SAFETY: sixteen floats.
    unsafe { _mm512_storeu_ps(array.as_mut_ptr(), x) };
    array
}

/// Elements `at ..+ 32` of a chunk, from their codes.
///
/// # Safety
/// `to` must be valid for writes of those elements; the CPU must have AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn round_32<F: Format>(codes: __m256i, scales: &Scales, at: usize, to: *mut u16) {
    let half = |codes: __m128i, at: usize| {
        let group = at / F::GROUP;
        let codes = _mm512_cvtepu8_epi32(codes);
        let scale = _mm512_set1_ps(scales.scale[group]);
        match F::KIND {
            GroupKind::Offset(offset) => {
                let codes = _mm512_sub_epi32(codes, _mm512_set1_epi32(offset.into()));
                _mm512_mul_ps(scale, _mm512_cvtepi32_ps(codes))
            }
            // Two roundings, as in `Block::dequantize`.
            GroupKind::Min => {
                let product = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(codes));
                _mm512_add_ps(product, _mm512_set1_ps(scales.min[group]))
            }
        }
    };
    let low = half(_mm256_castsi256_si128(codes), at);
    let high = half(_mm256_extracti128_si256::<1>(codes), at + 16);
    // SAFETY: 32 elements, by contract.
    unsafe { to.add(at).cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low)) };
}

/// See `CpuKernels::round_acts`.
///
/// # Safety
/// As there, with `k` a multiple of 32; the CPU must have AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn round_acts(x: *const f32, stride: usize, num_rows: usize, k: usize, to: *mut u32) {
    for row in (0..num_rows).step_by(16) {
        let count = (num_rows - row).min(16);
        let mask = if count == 16 { !0 } else { (1u16 << count) - 1 };
        for from in (0..k).step_by(UNIT) {
            let mut square = [_mm512_setzero_si512(); 16];
            // SAFETY: 32 elements of each row, and the 16 pairs of those lanes; lanes behind the last row are masked off.
            unsafe {
                for r in 0..count {
                    let x = x.add((row + r) * stride + from);
                    let rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x.add(16)), _mm512_loadu_ps(x));
                    square[r] = std::mem::transmute::<__m512bh, __m512i>(rounded);
                }
                transpose_16(&mut square);
                for (pair, lanes) in square.into_iter().enumerate() {
                    _mm512_mask_storeu_epi32(to.add((from / 2 + pair) * PACK_ROWS + row).cast(), mask, lanes);
                }
            }
        }
    }
}

/// See `CpuKernels::round_lanes`.
///
/// # Safety
/// The CPU must have AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round_lanes(x: &[[f32; PACK_ROWS]; ACT_GROUP], to: &mut [[u32; PACK_ROWS]; ACT_GROUP / 2]) {
    for (columns, to) in x.as_chunks::<2>().0.iter().zip(to) {
        for lane in (0..PACK_ROWS).step_by(16) {
            // SAFETY: 16 lanes of both columns, and of their pairs. A vector of bf16 is bits of any content.
            unsafe {
                let [low, high] = [0, 1].map(|i| {
                    let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(columns[i].as_ptr().add(lane)));
                    _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(rounded))
                });
                let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(to.as_mut_ptr().cast::<u32>().add(lane).cast(), pairs);
            }
        }
    }
}

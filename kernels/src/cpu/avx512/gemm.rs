//! The tile of the 8-bit GEMM: 32 rows of weights (two registers of 16 lanes) × up to 6 rows of activations.
//!
//! 12 chains of dot products are enough to hide their latency, with two loads of weights and six broadcasts for each 12.
//! Integers are exact inside a group; at its end one conversion, one product with the activation's scale and one multiply-add
//! bring them into the f32 sums. An offset costs nothing: dot products start at −offset · Σ x. Minima cost one more multiply-add.

use core::arch::x86_64::*;
use std::marker::PhantomData;

use super::{dot::Dot, pack::pack_chunks};
use crate::{
    cpu::{
        gemm::{GemmIsa, GemmTile},
        matrix::{ACT_GROUP, ROW_TILE, SUM_GROUP},
        pack::CodePanel,
        scalar::unreachable_float,
    },
    quant::{Block, GroupKind, with_block},
};

/// The GEMM with one of the dot products.
pub(super) struct Gemm<D>(PhantomData<D>);

impl<D: Dot> GemmIsa for Gemm<D> {
    const TILE_ROWS: usize = 6;

    unsafe fn pack<B: Block>(
        rows: &[B],
        blocks_per_row: usize,
        from: usize,
        num_elements: usize,
        panel: &mut CodePanel,
    ) {
        // SAFETY: the caller's promises, passed on; `rows` holds whole rows. F is B.
        unsafe {
            with_block!(
                B::TYPE,
                |F| {
                    let (first, num_rows) = (rows.as_ptr().cast(), rows.len() / blocks_per_row);
                    pack_chunks::<F>(first, num_rows, blocks_per_row, from, num_elements, panel);
                },
                unreachable_float(B::TYPE)
            );
        }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch doesn't fault, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    unsafe fn tile<B: Block>(tile: &GemmTile, tile_rows: usize) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match (B::KIND, B::GROUP) {
                (GroupKind::Offset(_), ACT_GROUP) => by_rows::<D, ACT_GROUP, false>(tile, tile_rows),
                (GroupKind::Offset(_), _) => by_rows::<D, SUM_GROUP, false>(tile, tile_rows),
                (GroupKind::Min, ACT_GROUP) => by_rows::<D, ACT_GROUP, true>(tile, tile_rows),
                (GroupKind::Min, _) => by_rows::<D, SUM_GROUP, true>(tile, tile_rows),
            }
        }
    }
}

unsafe fn by_rows<D: Dot, const GROUP: usize, const MIN: bool>(tile: &GemmTile, tile_rows: usize) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match tile_rows {
            1 => D::gemm_tile::<GROUP, MIN, 1>(tile),
            2 => D::gemm_tile::<GROUP, MIN, 2>(tile),
            3 => D::gemm_tile::<GROUP, MIN, 3>(tile),
            4 => D::gemm_tile::<GROUP, MIN, 4>(tile),
            5 => D::gemm_tile::<GROUP, MIN, 5>(tile),
            _ => D::gemm_tile::<GROUP, MIN, 6>(tile),
        }
    }
}

/// Computes a tile of `M` rows of activations.
///
/// # Safety
/// The tile's pointers must be valid for its shapes; the CPU must have the features of `D`.
#[inline(always)]
pub(super) unsafe fn tile<D: Dot, const GROUP: usize, const MIN: bool, const M: usize>(tile: &GemmTile) {
    // SAFETY: all offsets are inside the shapes that the fields state; stores are masked to `num_cols`.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        let mut codes = tile.codes;
        for group in 0..tile.num_groups {
            for part in 0..32 / GROUP {
                let index = group * (32 / GROUP) + part;
                let mut dots = [[_mm512_setzero_si512(); 2]; M];
                if !MIN {
                    for m in 0..M {
                        dots[m] = [_mm512_set1_epi32(*tile.aux.add(m * tile.aux_stride + index)); 2];
                    }
                }
                let q = tile.q.add(group * 32 + part * GROUP);
                for step in 0..GROUP / 4 {
                    let w0 = _mm512_loadu_si512(codes.add(step * ROW_TILE).cast());
                    let w1 = _mm512_loadu_si512(codes.add(step * ROW_TILE + 16).cast());
                    for m in 0..M {
                        let x = _mm512_set1_epi32(q.add(m * tile.q_stride + step * 4).cast::<i32>().read_unaligned());
                        dots[m][0] = D::dot(dots[m][0], w0, x);
                        dots[m][1] = D::dot(dots[m][1], w1, x);
                    }
                }
                codes = codes.add(GROUP / 4 * ROW_TILE);
                let scales = [
                    _mm512_loadu_ps(tile.scales.add(index * ROW_TILE)),
                    _mm512_loadu_ps(tile.scales.add(index * ROW_TILE + 16)),
                ];
                for m in 0..M {
                    let d = _mm512_set1_ps(*tile.d.add(m * tile.d_stride + group));
                    for half in 0..2 {
                        let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[m][half]), d);
                        acc[m][half] = _mm512_fmadd_ps(dot, scales[half], acc[m][half]);
                    }
                }
                if MIN {
                    let mins = [
                        _mm512_loadu_ps(tile.mins.add(index * ROW_TILE)),
                        _mm512_loadu_ps(tile.mins.add(index * ROW_TILE + 16)),
                    ];
                    for m in 0..M {
                        let sum = _mm512_set1_ps(*tile.aux.add(m * tile.aux_stride + index).cast::<f32>());
                        for half in 0..2 {
                            acc[m][half] = _mm512_fmadd_ps(sum, mins[half], acc[m][half]);
                        }
                    }
                }
            }
        }
        let all = if tile.num_cols >= 32 { !0 } else { (1u32 << tile.num_cols) - 1 };
        for m in 0..M {
            for half in 0..2 {
                let mask = (all >> (16 * half)) as u16;
                let out = tile.out.wrapping_add(m * tile.out_stride + 16 * half);
                let mut sum = acc[m][half];
                if tile.accumulate {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out));
                }
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}

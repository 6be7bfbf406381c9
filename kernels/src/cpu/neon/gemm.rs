//! The 8-bit GEMM: what `cpu/gemm.rs` and `cpu/tile.rs` want of an ISA. Tiles: 6 rows of weights × two registers of activation
//! rows, or 12 × 1. Sixteen codes of a row of weights are loaded at once, and their quarters broadcast by the instruction.

use core::arch::aarch64::*;
use std::marker::PhantomData;

use super::dot::Dot;
use crate::{
    cpu::{
        gemm::{GemmIsa, Source, TileRows, Unpacked},
        matrix::{ACT_GROUP, SUM_GROUP},
        pack,
        tile::{Tile, TileLanes},
    },
    quant::{Block, GroupKind},
};

/// The GEMM with one of the dot products.
pub(super) struct Gemm<D>(PhantomData<D>);

/// Calls `D::$function::<GROUP, MIN, ..>` for a type's group and kind.
macro_rules! by_kind {
    ($block:ident, $function:ident, [$($more:tt)*] ($($arg:expr),*)) => {
        match ($block::KIND, $block::GROUP) {
            (GroupKind::Offset(_), ACT_GROUP) => D::$function::<ACT_GROUP, false, $($more)*>($($arg),*),
            (GroupKind::Offset(_), _) => D::$function::<SUM_GROUP, false, $($more)*>($($arg),*),
            (GroupKind::Min, ACT_GROUP) => D::$function::<ACT_GROUP, true, $($more)*>($($arg),*),
            (GroupKind::Min, _) => D::$function::<SUM_GROUP, true, $($more)*>($($arg),*),
        }
    };
}

impl<D: Dot> GemmIsa for Gemm<D> {
    const LANES: usize = 4;
    const TILE_COLS: [usize; 2] = [12, 6];

    #[target_feature(enable = "neon")]
    unsafe fn unpack<B: Block>(from: &Source<B>, to: &mut Unpacked) {
        unpack_blocks(from, Lanes::<D>::bias(B::MAX_CODE), to);
    }

    unsafe fn prepare_aux<B: Block>(sums: *const i16, d: *const f32, num_groups: usize, aux: *mut i32) {
        let bias = i32::from(Lanes::<D>::bias(B::MAX_CODE));
        let offset = match B::KIND {
            GroupKind::Offset(offset) => i32::from(offset) - bias,
            GroupKind::Min => 0,
        };
        debug_assert!(B::KIND != GroupKind::Min || bias == 0, "minima are for small codes");
        // SAFETY: the caller's promises, passed on.
        unsafe { by_kind!(B, gemm_aux, [](offset, sums, d, num_groups, aux)) }
    }

    unsafe fn transpose(
        rows: *const u32,
        stride: usize,
        num_rows: usize,
        num_units: usize,
        to: *mut u32,
        to_stride: usize,
    ) {
        // SAFETY: the caller's promises, passed on.
        unsafe { transpose(rows, stride, num_rows, num_units, to, to_stride) }
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {
        // The intrinsic is not stable in Rust 1.95, and the hardware follows rows of weights by itself.
    }

    unsafe fn tile<B: Block>(tile: &Tile, rows: TileRows) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match rows {
                // There are no halves here.
                TileRows::Half | TileRows::One => by_kind!(B, gemm_tile, [1, 12](tile)),
                TileRows::Two => by_kind!(B, gemm_tile, [2, 6](tile)),
            }
        }
    }
}

/// [`GemmIsa::unpack`] through the formats' own scalar code, with `bias` subtracted from the codes. To be inlined into a function
/// compiled for an ISA, where the compiler vectorises it.
#[inline(always)]
fn unpack_blocks<B: Block>(from: &Source<B>, bias: u8, to: &mut Unpacked) {
    let num_groups = B::LEN / B::GROUP;
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    for (row, blocks) in from.rows().enumerate() {
        let codes = to.codes[row * to.code_stride..].chunks_exact_mut(B::LEN);
        for (i, (block, codes)) in blocks.iter().zip(codes).enumerate() {
            block.unpack(codes, &mut scales, &mut mins);
            if bias != 0 {
                codes.iter_mut().for_each(|code| *code = code.wrapping_sub(bias));
            }
            let at = row * to.scale_stride + i * num_groups;
            to.scales[at..at + num_groups].copy_from_slice(&scales[..num_groups]);
            if matches!(B::KIND, GroupKind::Min) {
                to.mins[at..at + num_groups].copy_from_slice(&mins[..num_groups]);
            }
        }
    }
}

/// Four lanes.
pub(super) struct Lanes<D>(PhantomData<D>);

impl<D: Dot> TileLanes for Lanes<D> {
    const LANES: usize = 4;
    type Int = int32x4_t;
    type Float = float32x4_t;

    fn bias(max: u8) -> u8 {
        if max > 127 { 128 } else { 0 }
    }

    #[inline(always)]
    unsafe fn load_int(p: *const i32) -> int32x4_t {
        // SAFETY: the caller's register; loads of bytes have no alignment.
        unsafe { vreinterpretq_s32_u8(vld1q_u8(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_int(p: *mut i32, x: int32x4_t) {
        // SAFETY: the caller's register; stores of bytes have no alignment.
        unsafe { vst1q_u8(p.cast(), vreinterpretq_u8_s32(x)) }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> int32x4_t {
        // SAFETY: value-only.
        unsafe { vdupq_n_s32(x) }
    }

    #[inline(always)]
    unsafe fn add_int(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: value-only.
        unsafe { vaddq_s32(a, b) }
    }

    #[inline(always)]
    unsafe fn halves(x: int32x4_t) -> [int32x4_t; 2] {
        // SAFETY: value-only.
        unsafe { [vshrq_n_s32::<16>(vshlq_n_s32::<16>(x)), vshrq_n_s32::<16>(x)] }
    }

    #[inline(always)]
    unsafe fn mul_add_int(a: int32x4_t, b: int32x4_t, c: int32x4_t) -> int32x4_t {
        // SAFETY: value-only.
        unsafe { vmlaq_s32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        // SAFETY: the caller's register; loads of bytes have no alignment.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: float32x4_t) {
        // SAFETY: the caller's register; stores of bytes have no alignment.
        unsafe { vst1q_u8(p.cast(), vreinterpretq_u8_f32(x)) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        // SAFETY: value-only.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn from_bits(x: int32x4_t) -> float32x4_t {
        // SAFETY: value-only.
        unsafe { vreinterpretq_f32_s32(x) }
    }

    #[inline(always)]
    unsafe fn to_bits(x: float32x4_t) -> int32x4_t {
        // SAFETY: value-only.
        unsafe { vreinterpretq_s32_f32(x) }
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: value-only.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: value-only.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn dots<const GROUP: usize, const MAX: u8, const R: usize, const N: usize>(
        start: [int32x4_t; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[int32x4_t; R]; N] {
        // SAFETY: the caller's promises, passed on.
        unsafe { D::group::<GROUP, R, N>(start, codes, stride, q) }
    }
}

/// See [`GemmIsa::transpose`]: squares of 4 × 4, and the edges as the scalar code does.
///
/// # Safety
/// As there; the CPU must have NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn transpose(
    rows: *const u32,
    stride: usize,
    num_rows: usize,
    num_units: usize,
    to: *mut u32,
    to_stride: usize,
) {
    for row in (0..num_rows).step_by(4) {
        for unit in (0..num_units).step_by(4) {
            let (row_count, unit_count) = ((num_rows - row).min(4), (num_units - unit).min(4));
            // SAFETY: a square of the caller's shapes, whole or cut off; loads and stores of bytes have no alignment.
            unsafe {
                let (from, to) = (rows.add(row * stride + unit), to.add(unit * to_stride + row));
                if row_count < 4 || unit_count < 4 {
                    pack::transpose(from, stride, row_count, unit_count, to, to_stride);
                    continue;
                }
                let load = |r: usize| vreinterpretq_u32_u8(vld1q_u8(from.add(r * stride).cast()));
                let (a, b, c, d) = (load(0), load(1), load(2), load(3));
                let (low, high) = (vtrnq_u32(a, b), vtrnq_u32(c, d));
                let pairs = [
                    (vget_low_u32(low.0), vget_low_u32(high.0)),
                    (vget_low_u32(low.1), vget_low_u32(high.1)),
                    (vget_high_u32(low.0), vget_high_u32(high.0)),
                    (vget_high_u32(low.1), vget_high_u32(high.1)),
                ];
                for (u, (two, four)) in pairs.into_iter().enumerate() {
                    vst1q_u8(to.add(u * to_stride).cast(), vreinterpretq_u8_u32(vcombine_u32(two, four)));
                }
            }
        }
    }
}

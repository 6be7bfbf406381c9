//! The 8-bit dot product, and the functions that must be compiled once for each way of doing it.

use core::arch::{aarch64::*, asm};
use std::hint::black_box;

use super::{
    decode::{self, DecodeJob},
    gemm::Lanes,
};
use crate::{
    cpu::{
        pack::PACK_ROWS,
        tile::{self, Tile},
    },
    quant::Block,
};

/// How bytes are multiplied and added up in four lanes, with signed w and signed x that is never −128. No i32 overflows: a group
/// has at most 32 products of at most 2^14 each.
///
/// A `#[target_feature]` function can't depend on a type parameter, so each implementation brings the hot functions compiled
/// for its own features.
pub(super) trait Dot: Copy + 'static {
    /// `acc + Σ w · x`, spread over the lanes in any way: only their total is used. To be inlined into the functions below.
    ///
    /// # Safety
    /// The CPU must have this implementation's features.
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;

    /// `acc[lane] + Σ x[4 · lane + j] · w[4 · QUARTER + j]`, j in 0..4. To be inlined into the functions below.
    ///
    /// # Safety
    /// The CPU must have this implementation's features.
    unsafe fn dot_quarter<const QUARTER: i32>(acc: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t;

    /// [`TileLanes::dots`](tile::TileLanes::dots). To be inlined into the functions below.
    ///
    /// # Safety
    /// As there; the CPU must have this implementation's features.
    #[inline(always)]
    unsafe fn group<const GROUP: usize, const R: usize, const N: usize>(
        start: [int32x4_t; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[int32x4_t; R]; N] {
        // SAFETY: the caller's promises, passed on.
        unsafe { by_quarters::<Self, GROUP, R, N>(start, codes, stride, q) }
    }

    /// [`decode::tile`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`decode::tile`].
    unsafe fn decode_tile<B: Block, const R: usize, const M: usize>(job: &DecodeJob<B>, row: usize);

    /// [`tile::compute`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`tile::compute`].
    unsafe fn gemm_tile<const GROUP: usize, const MIN: bool, const R: usize, const N: usize>(tile: &Tile);

    /// [`tile::prepare_aux`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`tile::prepare_aux`].
    unsafe fn gemm_aux<const GROUP: usize, const MIN: bool>(
        offset: i32,
        sums: *const i16,
        d: *const f32,
        num_groups: usize,
        aux: *mut i32,
    );
}

macro_rules! hot_functions {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn decode_tile<B: Block, const R: usize, const M: usize>(job: &DecodeJob<B>, row: usize) {
            // SAFETY: the caller's promises, passed on.
            unsafe { decode::tile::<B, Self, R, M>(job, row) }
        }

        #[target_feature(enable = $features)]
        unsafe fn gemm_tile<const GROUP: usize, const MIN: bool, const R: usize, const N: usize>(tile: &Tile) {
            // SAFETY: the caller's promises, passed on. Codes are signed bytes whatever their largest value.
            unsafe { tile::compute::<Lanes<Self>, GROUP, MIN, 255, R, N>(tile) }
        }

        #[target_feature(enable = $features)]
        unsafe fn gemm_aux<const GROUP: usize, const MIN: bool>(
            offset: i32,
            sums: *const i16,
            d: *const f32,
            num_groups: usize,
            aux: *mut i32,
        ) {
            // SAFETY: the caller's promises, passed on.
            unsafe { tile::prepare_aux::<Lanes<Self>, GROUP, MIN>(offset, sums, d, num_groups, aux) }
        }
    };
}

/// `sdot`: as assembly, since its intrinsic is not stable in Rust 1.95.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dotprod;

impl Dot for Dotprod {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        let mut acc = acc;
        // SAFETY: the caller has dot product instructions; this one works on registers only.
        unsafe {
            asm!(
                "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
                acc = inout(vreg) acc,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        acc
    }

    #[inline(always)]
    unsafe fn dot_quarter<const QUARTER: i32>(acc: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
        let mut acc = acc;
        // SAFETY: as above.
        unsafe {
            asm!(
                "sdot {acc:v}.4s, {x:v}.16b, {w:v}.4b[{quarter}]",
                acc = inout(vreg) acc,
                x = in(vreg) x,
                w = in(vreg) w,
                quarter = const QUARTER,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        acc
    }

    hot_functions!("neon,dotprod");
}

/// [`Dot::group`] with [`Dot::dot_quarter`]: a lane of activations against a quarter of 16 codes.
///
/// # Safety
/// As [`Dot::group`].
#[inline(always)]
unsafe fn by_quarters<D: Dot, const GROUP: usize, const R: usize, const N: usize>(
    start: [int32x4_t; R],
    codes: *const u8,
    stride: usize,
    q: *const i8,
) -> [[int32x4_t; R]; N] {
    let mut dots = [start; N];
    // SAFETY: `GROUP` codes of each of N rows, and as many elements of R registers of activation rows.
    unsafe {
        for part in 0..GROUP / 16 {
            let mut w = [vdupq_n_s8(0); N];
            for n in 0..N {
                w[n] = vld1q_s8(codes.add(n * stride + part * 16).cast());
            }
            macro_rules! step {
                ($($quarter:literal)*) => {
                    $(for r in 0..R {
                        let x = vld1q_s8(q.add(((part * 4 + $quarter) * PACK_ROWS + r * 4) * 4));
                        for n in 0..N {
                            dots[n][r] = D::dot_quarter::<$quarter>(dots[n][r], x, w[n]);
                        }
                    })*
                };
            }
            step!(0 1 2 3);
        }
    }
    dots
}

/// `smmla`, the matrix product of two rows of eight codes with two rows of eight activations: twice the multiplications of
/// `sdot`. As assembly, since its intrinsic is not stable in Rust 1.95.
#[derive(Debug, Clone, Copy)]
pub(super) struct I8mm;

impl I8mm {
    /// `acc[2i + j] + Σ x[8i + t] · w[8j + t]`, t in 0..8, for i and j in 0..2.
    ///
    /// # Safety
    /// The CPU must have 8-bit matrix multiplication.
    #[inline(always)]
    unsafe fn product(acc: int32x4_t, x: int32x4_t, w: int8x16_t) -> int32x4_t {
        let mut acc = acc;
        // SAFETY: the caller has the instruction; it works on registers only. Activations are bytes in whatever lanes.
        unsafe {
            asm!(
                "smmla {acc:v}.4s, {x:v}.16b, {w:v}.16b",
                acc = inout(vreg) acc,
                x = in(vreg) x,
                w = in(vreg) w,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        acc
    }
}

impl Dot for I8mm {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller has dot product instructions too.
        unsafe { Dotprod::dot(acc, w, x) }
    }

    #[inline(always)]
    unsafe fn dot_quarter<const QUARTER: i32>(acc: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe { Dotprod::dot_quarter::<QUARTER>(acc, x, w) }
    }

    #[inline(always)]
    unsafe fn group<const GROUP: usize, const R: usize, const N: usize>(
        start: [int32x4_t; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[int32x4_t; R]; N] {
        if !N.is_multiple_of(2) {
            // SAFETY: the caller's promises, passed on.
            return unsafe { by_quarters::<Self, GROUP, R, N>(start, codes, stride, q) };
        }
        let mut dots = [start; N];
        // SAFETY: `GROUP` codes of each of N rows, and as many elements of R registers of activation rows.
        unsafe {
            // Until the end the first of a pair of rows of weights holds its products with activation rows 0 and 1 and those of the
            // second, and the second both with rows 2 and 3.
            let mut products = [[vdupq_n_s32(0); R]; N];
            for part in 0..GROUP / 8 {
                let mut x = [[vdupq_n_s32(0); 2]; R];
                for r in 0..R {
                    let unit = |unit: usize| vld1q_s8(q.add(((part * 2 + unit) * PACK_ROWS + r * 4) * 4));
                    let (first, second) = (vreinterpretq_s32_s8(unit(0)), vreinterpretq_s32_s8(unit(1)));
                    x[r] = [vzip1q_s32(first, second), vzip2q_s32(first, second)];
                }
                for n in (0..N).step_by(2) {
                    let row = |n: usize| vld1_s8(codes.add(n * stride + part * 8).cast());
                    let w = vcombine_s8(row(n), row(n + 1));
                    for r in 0..R {
                        products[n][r] = Self::product(products[n][r], x[r][0], w);
                        products[n + 1][r] = Self::product(products[n + 1][r], x[r][1], w);
                    }
                }
            }
            for n in (0..N).step_by(2) {
                for r in 0..R {
                    let (low, high) = (products[n][r], products[n + 1][r]);
                    dots[n][r] = vaddq_s32(start[r], vuzp1q_s32(low, high));
                    dots[n + 1][r] = vaddq_s32(start[r], vuzp2q_s32(low, high));
                }
            }
        }
        dots
    }

    hot_functions!("neon,dotprod,i8mm");
}

/// Two widening multiplications, whose products are added in pairs of 16 bits: 2 · 128 · 127 = 32512 < 2^15.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: value-only.
        unsafe {
            let pairs = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            vpadalq_s16(acc, vmlal_high_s8(pairs, w, x))
        }
    }

    #[inline(always)]
    unsafe fn dot_quarter<const QUARTER: i32>(acc: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
        // SAFETY: value-only. Lanes 0 and 1 come from the lower half, 2 and 3 from the upper.
        unsafe {
            let w = vreinterpretq_s8_s32(vdupq_laneq_s32::<QUARTER>(vreinterpretq_s32_s8(w)));
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
            let high = vpaddlq_s16(vmull_high_s8(x, w));
            vaddq_s32(acc, vpaddq_s32(low, high))
        }
    }

    hot_functions!("neon");
}

/// A round of `int8_peak`: 16 chains of sums.
///
/// # Safety
/// The CPU must have the features of `D`.
#[inline(always)]
unsafe fn chains<D: Dot>() -> u64 {
    const STEPS: u64 = 20_000;
    // SAFETY: the caller's promise.
    unsafe {
        let (w, x) = (vdupq_n_s8(black_box(1)), vdupq_n_s8(black_box(1)));
        let mut acc = [vdupq_n_s32(0); 16];
        for _ in 0..STEPS {
            for acc in &mut acc {
                // The sum goes in, so that the products can't be computed once for all.
                *acc = D::dot(*acc, veorq_s8(w, vreinterpretq_s8_s32(*acc)), x);
            }
        }
        black_box(acc);
        STEPS * 16 * 16
    }
}

/// # Safety
/// The CPU must have NEON.
#[target_feature(enable = "neon")]
pub(in crate::cpu) unsafe fn dots() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { chains::<Widening>() }
}

/// # Safety
/// The CPU must have NEON and dot product instructions.
#[target_feature(enable = "neon,dotprod")]
pub(in crate::cpu) unsafe fn dots_dotprod() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { chains::<Dotprod>() }
}

/// A round of `int8_peak`: 16 chains of sums of matrix products.
///
/// # Safety
/// The CPU must have NEON, dot product instructions and 8-bit matrix multiplication.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(in crate::cpu) unsafe fn matrix_products() -> u64 {
    const STEPS: u64 = 20_000;
    // SAFETY: the caller's promise.
    unsafe {
        let (w, x) = (vdupq_n_s8(black_box(1)), vdupq_n_s32(black_box(1)));
        let mut acc = [vdupq_n_s32(0); 16];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = I8mm::product(*acc, x, w);
            }
        }
        black_box(acc);
        STEPS * 16 * 32
    }
}

//! The 8-bit dot product, and the function that must be compiled once for each way of doing it.

use core::arch::{aarch64::*, asm};

use super::decode::{self, DecodeJob};
use crate::quant::Block;

/// How `acc + Σ w · x` is computed, with signed w, signed x that is never −128, and sums spread over four lanes in any way: only
/// their total is used. No i32 overflows: a group has at most 32 products of at most 2^14 each.
///
/// A `#[target_feature]` function can't depend on a type parameter, so each implementation brings the hot function compiled
/// for its own features.
pub(super) trait Dot: Copy + 'static {
    /// The dot product itself, to be inlined into the function below.
    ///
    /// # Safety
    /// The CPU must have this implementation's features.
    unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;

    /// [`decode::tile`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`decode::tile`].
    unsafe fn decode_tile<B: Block, const R: usize, const M: usize>(job: &DecodeJob<B>, row: usize);
}

macro_rules! hot_function {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn decode_tile<B: Block, const R: usize, const M: usize>(job: &DecodeJob<B>, row: usize) {
            // SAFETY: the caller's promises, passed on.
            unsafe { decode::tile::<B, Self, R, M>(job, row) }
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

    hot_function!("neon,dotprod");
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

    hot_function!("neon");
}

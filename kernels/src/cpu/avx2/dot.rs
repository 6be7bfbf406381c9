//! The 8-bit dot product of decode on 256-bit registers, and the function that must be compiled once for each way of doing it.

use core::arch::x86_64::*;

use super::{
    Avx2,
    decode::{self, DecodeJob},
    formats::Format,
};
use crate::cpu::gemm::GemmIsa;

/// How `acc[lane] + Σ codes[4·lane + j] · x[4·lane + j]`, j in 0..4, is computed, for codes as [`Format`] gives them: unsigned or,
/// with [`Format::SIGNED`], signed. x is never −128. No i32 overflows: see the AVX-512 trait of this name.
///
/// A `#[target_feature]` function can't depend on a type parameter, so each implementation brings the hot function compiled
/// for its own features.
pub(super) trait Dot: Copy + 'static {
    /// Its GEMM.
    type Gemm: GemmIsa;

    /// The dot product itself, to be inlined into the function below.
    ///
    /// # Safety
    /// The CPU must have this implementation's features.
    unsafe fn dot<F: Format>(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i;

    /// [`decode::tile`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`decode::tile`].
    unsafe fn decode_tile<F: Format, const R: usize, const M: usize>(job: &DecodeJob, row: usize);
}

macro_rules! hot_function {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn decode_tile<F: Format, const R: usize, const M: usize>(job: &DecodeJob, row: usize) {
            // SAFETY: the caller's promises, passed on.
            unsafe { decode::tile::<F, Self, R, M>(job, row) }
        }
    };
}
pub(super) use hot_function;

/// An unsigned and a signed factor with the same product: signed codes give their sign to x, which is never −128. The codes'
/// magnitude is at most 128, which an unsigned byte holds.
#[inline(always)]
pub(super) unsafe fn unsigned_by_signed<F: Format>(codes: __m256i, x: __m256i) -> (__m256i, __m256i) {
    // SAFETY: value-only.
    unsafe { if F::SIGNED { (_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes)) } else { (codes, x) } }
}

/// `vpmaddubsw` and `vpmaddwd`. Unsigned codes are at most 63 here: 2 · 63 · 127 = 16002 < 2^15, so the first doesn't saturate.
/// Nor do signed ones: 2 · 128 · 127 = 32512 < 2^15.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maddubs;

impl Dot for Maddubs {
    type Gemm = Avx2;

    #[inline(always)]
    unsafe fn dot<F: Format>(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        const { assert!(F::SIGNED || F::MAX_CODE <= 63) };
        // SAFETY: the caller has AVX2.
        unsafe {
            let (codes, x) = unsigned_by_signed::<F>(codes, x);
            _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)))
        }
    }

    hot_function!("avx2,fma,f16c");
}

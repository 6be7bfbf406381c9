//! The 8-bit dot product, and the functions that must be compiled once for each way of doing it.

use core::arch::x86_64::*;

use super::{
    decode::{self, DecodeJob},
    formats::Format,
    gemm::Lanes,
};
use crate::cpu::tile::{self, Tile};

/// How `acc[lane] += Σ codes[4·lane + j] · x[4·lane + j]`, j in 0..4, is computed, with unsigned codes and signed x. The sum of
/// four products is at most 4 · 255 · 128 < 2^17, and a group has at most 8 of them in a lane: no i32 overflows.
///
/// A `#[target_feature]` function can't depend on a type parameter, so each implementation brings the hot functions compiled
/// for its own features.
pub(super) trait Dot: Copy + 'static {
    /// See [`tile::TileLanes::CONVERTS`].
    const CONVERTS: bool = false;

    /// The dot product itself, to be inlined into the functions below.
    ///
    /// # Safety
    /// The CPU must have this implementation's features.
    unsafe fn dot(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i;

    /// [`decode::tile`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`decode::tile`].
    unsafe fn decode_tile<F: Format, const R: usize, const M: usize>(job: &DecodeJob, row: usize, step: usize);

    /// [`tile::prepare_aux`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`tile::prepare_aux`].
    unsafe fn prepare_aux<const GROUP: usize, const MIN: bool>(
        offset: i32,
        sums: *const i16,
        d: *const f32,
        num_groups: usize,
        aux: *mut i32,
    );

    /// [`tile::compute`] with this dot product.
    ///
    /// # Safety
    /// The CPU must have this implementation's features; and as [`tile::compute`].
    unsafe fn gemm_tile<const GROUP: usize, const MIN: bool, const R: usize, const N: usize>(tile: &Tile);
}

/// `vpdpbusd`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vnni;

/// `vpdpbusd` on CPUs with BF16 but without AMX, which are AMD's: they convert and add in other pipes than they multiply.
#[derive(Debug, Clone, Copy)]
pub(super) struct VnniConverts;

/// Multiplication of even and odd bytes as 16-bit integers: exact for all codes, where `vpmaddubsw` would saturate above 128.
#[derive(Debug, Clone, Copy)]
pub(super) struct Emulated;

macro_rules! hot_functions {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn decode_tile<F: Format, const R: usize, const M: usize>(job: &DecodeJob, row: usize, step: usize) {
            // SAFETY: the caller's promises, passed on.
            unsafe { decode::tile::<F, Self, R, M>(job, row, step) }
        }

        #[target_feature(enable = $features)]
        unsafe fn prepare_aux<const GROUP: usize, const MIN: bool>(
            offset: i32,
            sums: *const i16,
            d: *const f32,
            num_groups: usize,
            aux: *mut i32,
        ) {
            // SAFETY: the caller's promises, passed on.
            unsafe { tile::prepare_aux::<Lanes<Self>, GROUP, MIN>(offset, sums, d, num_groups, aux) }
        }

        #[target_feature(enable = $features)]
        unsafe fn gemm_tile<const GROUP: usize, const MIN: bool, const R: usize, const N: usize>(tile: &Tile) {
            // SAFETY: the caller's promises, passed on.
            unsafe { tile::compute::<Lanes<Self>, GROUP, MIN, 255, R, N>(tile) }
        }
    };
}

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller has VNNI.
        unsafe { _mm512_dpbusd_epi32(acc, codes, x) }
    }

    hot_functions!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
}

impl Dot for VnniConverts {
    const CONVERTS: bool = true;
    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller has VNNI.
        unsafe { Vnni::dot(acc, codes, x) }
    }

    hot_functions!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
}

impl Dot for Emulated {
    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller has AVX-512 BW. Products are at most 255 · 128 in magnitude, and `vpmaddwd` adds two in i32.
        unsafe {
            let even = _mm512_and_si512(codes, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(codes);
            let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
            let x_odd = _mm512_srai_epi16::<8>(x);
            let sum = _mm512_add_epi32(_mm512_madd_epi16(even, x_even), _mm512_madd_epi16(odd, x_odd));
            _mm512_add_epi32(acc, sum)
        }
    }

    hot_functions!("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
}
